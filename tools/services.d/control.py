"""Starts, describes and stops the servers of one state directory.

usage: tools/services [--state DIR] VERB

  install [NAME...]   install the Debian packages that are missing
  start [NAME...]     start swift, keystone, mariadb (all if none is named), wait until they answer, print what to
                      source; what runs is left as it is, and two starts at once share one set of servers
  env WAY             print what a client needs: tempauth, s3, keystone, application-credential, ec2 or mariadb
  schemas             make OpenStack's databases in the MariaDB that runs: the tables that the services' own migrations
                      make, and a few thousand rows in each that matters
  facts               print everything about them, as JSON
  stop [PROCESS...]   end them, or only the processes named, which `restart` brings back
  signal NAME PROCESS...   send a signal: STOP makes a server hang, CONT lets it go on, KILL is a crash
  restart PROCESS...  start a process that ended as it was before
  catch-up            what Swift could not do while one of its servers was away is done now: listings are right again
  status              one line a process: its name, its id, its state, its memory

The directory is DIR, else $BYGONE_SERVICES, else a new one that `start` prints.
"""

import argparse
import json
import os
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import schemas
import service_keystone
import service_mariadb
import service_swift
from state import Failure, Missing, State

# In the order in which they start: Swift asks Keystone.
SERVICES = {"mariadb": service_mariadb, "keystone": service_keystone, "swift": service_swift}
# Every variable that tells a client where to go and who it is: one way must not see what another left.
CLIENT_VARIABLES = [
    "ST_AUTH", "ST_USER", "ST_KEY", "ST_AUTH_VERSION", "OS_AUTH_URL", "OS_AUTH_TYPE", "OS_USERNAME", "OS_PASSWORD",
    "OS_PROJECT_NAME", "OS_PROJECT_ID", "OS_USER_DOMAIN_NAME", "OS_PROJECT_DOMAIN_NAME", "OS_REGION_NAME",
    "OS_IDENTITY_API_VERSION", "OS_INTERFACE", "OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_SECRET",
    "OS_STORAGE_URL", "OS_AUTH_TOKEN", "OS_CLOUD", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CA_BUNDLE", "OS_CACERT",
]


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/services", usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", default=os.environ.get("BYGONE_SERVICES"))
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = verbs.add_parser("start")
    start.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SERVICES))
    start.add_argument("--owner", type=int, metavar="PID",
                       help="stop everything and remove the directory when this process has ended")
    start.add_argument("--token-life", type=int, default=3600, metavar="SECONDS",
                       help="how long tokens of Keystone and of Swift's own accounts are good")
    start.add_argument("--tls", action="store_true",
                       help="Swift's proxy speaks TLS, with a certificate of an authority that nobody knows")
    start.add_argument("--replicas", type=int, default=1, help="copies that Swift keeps of everything")
    verbs.add_parser("env").add_argument("way", choices=sorted(ways({})))
    verbs.add_parser("schemas")
    verbs.add_parser("facts")
    verbs.add_parser("stop").add_argument("processes", nargs="*")
    send = verbs.add_parser("signal")
    send.add_argument("number", type=lambda name: signal.Signals[f"SIG{name}"], metavar="NAME")
    send.add_argument("processes", nargs="+")
    verbs.add_parser("restart").add_argument("processes", nargs="+")
    verbs.add_parser("catch-up")
    verbs.add_parser("status")
    verbs.add_parser("keep").add_argument("owner", type=int)
    return parser.parse_args()


def ways(facts):
    """Every way to reach the servers, as the variables that a client reads."""
    swift, identity, sql = (facts.get(name) or {} for name in ("swift", "keystone", "mariadb"))
    cloud = {"OS_AUTH_URL": identity.get("url"), "OS_IDENTITY_API_VERSION": "3",
             "OS_REGION_NAME": identity.get("region")}
    s3 = {"AWS_ENDPOINT_URL": swift.get("url"), "AWS_REGION": swift.get("region")}
    # Only where there is one to name: a way is complete when none of its variables is missing.
    own = {"OS_CACERT": swift["authority"]} if swift.get("authority") else {}
    s3 |= {"AWS_CA_BUNDLE": path for path in own.values()}
    return {
        "tempauth": {"ST_AUTH": swift.get("auth"), "ST_USER": swift.get("user"), "ST_KEY": swift.get("key"), **own},
        "s3": {**s3, "AWS_ACCESS_KEY_ID": swift.get("user"), "AWS_SECRET_ACCESS_KEY": swift.get("key")},
        "keystone": {**cloud, "OS_USERNAME": identity.get("user"), "OS_PASSWORD": identity.get("password"),
                     "OS_PROJECT_NAME": identity.get("project"), "OS_USER_DOMAIN_NAME": identity.get("domain"),
                     "OS_PROJECT_DOMAIN_NAME": identity.get("domain")},
        "application-credential": {**cloud, "OS_AUTH_TYPE": "v3applicationcredential",
                                   "OS_APPLICATION_CREDENTIAL_ID": identity.get("application_credential_id"),
                                   "OS_APPLICATION_CREDENTIAL_SECRET": identity.get("application_credential_secret")},
        "ec2": {**s3, "AWS_ACCESS_KEY_ID": identity.get("ec2_access"),
                "AWS_SECRET_ACCESS_KEY": identity.get("ec2_secret")},
        "mariadb": {"MYSQL_UNIX_PORT": sql.get("socket"), "MARIADB_CNF": sql.get("cnf")},
    }


def all_facts(state):
    """What every service said of itself when it was ready, and the variables of every way to reach it."""
    facts = {name: state.facts(name) for name in SERVICES}
    facts["ways"] = {way: variables for way, variables in ways(facts).items() if None not in variables.values()}
    return facts


def start(args, state):
    """Starts what is not running, in order; prints what to source."""
    names = args.names or list(SERVICES)
    for name in names:
        if name not in SERVICES:
            raise Failure(f"there is no service {name}; there are {', '.join(SERVICES)}")
    for name, module in SERVICES.items():
        if name not in names:
            continue
        module.check_installed()
        if all(map(state.alive, module.PROCESSES)) and module.is_current(state):
            print(f"# {name} runs already", file=sys.stderr)
            continue
        stop(state, module.PROCESSES)
        begun = time.monotonic()
        for attempt in (1, 2, 3):
            try:
                state.set_facts(name, module.start(state, args))
                break
            except Failure as failure:
                stop(state, module.PROCESSES)
                # Between finding a port free and listening on it somebody else may take it.
                if attempt == 3 or "Address already in use" not in str(failure):
                    raise
                state.forget_ports(*module.PROCESSES)
        print(f"# {name} is ready after {time.monotonic() - begun:.1f} s", file=sys.stderr)
    if args.owner and not state.alive("keeper"):
        state.spawn("keeper", [sys.executable, "-B", __file__, "--state", state.path, "keep", args.owner])
    print(f"export BYGONE_SERVICES={shlex.quote(str(state.path))}")


def stop(state, processes):
    """Ends processes, the newest first: who asks others goes before those who are asked."""
    for process in processes:
        state.end(process)


def keep(state, owner):
    """Waits until the process `owner` has ended, then stops everything and removes the directory."""
    try:
        poll = select.poll()
        poll.register(os.pidfd_open(owner), select.POLLIN)
        poll.poll()
    except ProcessLookupError:
        pass
    with state.locked():
        stop(state, [name for name in state.names() if name != "keeper"])
        shutil.rmtree(state.path, ignore_errors=True)


def status(state):
    """One line a process."""
    for name in state.names():
        pid, words = state.record(name)["pid"], {}
        if state.alive(name):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            words = dict(line.split(":", 1) for line in lines if ":" in line)
        kib = int(words.get("VmRSS", "0 kB").split()[0])
        print(f"{name:20} {pid:8} {words.get('State', 'ended').strip():14} {kib / 1024:7.1f} MiB")


def main():
    """Runs the verb."""
    args = arguments()
    if args.verb == "start" and not args.state:
        args.state = tempfile.mkdtemp(prefix="bygone-services-")
    if not args.state:
        raise Failure("say which servers: --state DIR, or BYGONE_SERVICES=DIR as `tools/services start` printed it")
    if args.verb != "start" and not Path(args.state).is_dir():
        raise Failure(f"{args.state}: no such directory")
    state = State(args.state)
    if args.verb == "start":
        with state.locked():
            start(args, state)
    elif args.verb == "env":
        variables = ways(all_facts(state))[args.way]
        if None in variables.values():
            raise Failure(f"the servers behind `{args.way}` were not started")
        print("unset " + " ".join(name for name in CLIENT_VARIABLES if name not in variables))
        for name, value in variables.items():
            print(f"export {name}={shlex.quote(value)}")
    elif args.verb == "schemas":
        with state.locked():
            schemas.make(state)
    elif args.verb == "facts":
        print(json.dumps(all_facts(state), indent=1))
    elif args.verb == "stop":
        with state.locked():
            for process in args.processes:
                state.end(process, forget=False)
            if not args.processes:
                stop(state, state.names())
    elif args.verb == "catch-up":
        service_swift.catch_up(state)
    elif args.verb == "keep":
        keep(state, args.owner)
    elif args.verb == "signal":
        for process in args.processes:
            if not state.alive(process):
                raise Failure(f"no process {process} runs in {state.path}")
            state.signal(process, args.number)
    elif args.verb == "restart":
        with state.locked():
            for process in args.processes:
                state.restart(process)
            for module in SERVICES.values():
                if set(args.processes) & set(module.PROCESSES):
                    module.wait(state)
    else:
        status(state)




if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        print(f"services: {failure}", file=sys.stderr)
        # What is not installed is told apart: a test is then skipped.
        sys.exit(77 if isinstance(failure, Missing) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
