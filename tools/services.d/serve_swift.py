"""Runs one of Swift's servers, or one pass of a daemon, on a configuration that is not in /etc/swift.

usage: serve_swift.py account|container|object|proxy CONF
       serve_swift.py object-updater|container-updater CONF     what was left undone, once

The servers take their rings from the directory that their configuration names, but names of policies and the salt of
hashes always from /etc/swift, unless they are told otherwise before anything is imported that looks there.
"""

import os
import sys

kind, conf = sys.argv[1:]

from swift.common import utils  # noqa: E402

utils.SWIFT_CONF_FILE = os.path.join(os.path.dirname(conf), "swift.conf")
utils.HASH_PATH_PREFIX = utils.HASH_PATH_SUFFIX = b""
utils.validate_hash_conf()

from swift.common import constraints, storage_policy  # noqa: E402

constraints.reload_constraints()
storage_policy.reload_storage_policies()

if kind.endswith("-updater"):
    from swift.common.daemon import run_daemon
    from swift.container.updater import ContainerUpdater
    from swift.obj.updater import ObjectUpdater

    run_daemon(ObjectUpdater if kind.startswith("object") else ContainerUpdater, conf, once=True, verbose=True)
else:
    from swift.common.wsgi import run_wsgi

    more = {}
    if kind == "object":
        from swift.obj import server

        more["global_conf_callback"] = server.global_conf_callback
    # What is said goes to stderr: nothing here has a system log.
    sys.exit(run_wsgi(conf, f"{kind}-server", verbose=True, **more))
