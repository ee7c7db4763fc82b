"""Serves Keystone on loopback, on a database that it makes first if there is none.

usage: OS_KEYSTONE_CONFIG_FILES=CONF serve_keystone.py CONF PORT URL ADMIN_PASSWORD
"""

import getpass
import grp
import os
import socketserver
import sys
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from keystone.cmd import manage

conf, port, url, password = sys.argv[1:]
prepared = Path(conf).with_name("prepared")


def prepare(*words):
    """One command of Keystone's own, in a process of its own: each reads its options anew."""
    child = os.fork()
    if child == 0:
        sys.argv = ["keystone-manage", "--config-file", conf, *words]
        try:
            manage.main()
            os._exit(0)
        except BaseException as failure:
            print(f"keystone-manage {words[0]}: {failure!r}", file=sys.stderr, flush=True)
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"keystone-manage {words[0]} failed")


if not prepared.exists():
    owner = ["--keystone-user", getpass.getuser(), "--keystone-group", grp.getgrgid(os.getegid()).gr_name]
    prepare("fernet_setup", *owner)
    prepare("credential_setup", *owner)
    prepare("db_sync")
    prepare("bootstrap", "--bootstrap-password", password, "--bootstrap-region-id", "RegionOne",
            *(word for sort in ("public", "internal", "admin") for word in (f"--bootstrap-{sort}-url", url)))
    prepared.touch()


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 128


class Handler(WSGIRequestHandler):
    """Takes clients by their address: nobody's name is looked up."""

    def address_string(self):
        """Who asks."""
        return self.client_address[0]


from keystone.server.wsgi import initialize_public_application  # noqa: E402  (reads the database at once)

sys.argv[1:] = []
make_server("127.0.0.1", int(port), initialize_public_application(), Server, Handler).serve_forever()
