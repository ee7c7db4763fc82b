"""MariaDB on a socket of its own and a data directory of its own; it reads no configuration of the machine's."""

import getpass
import shutil
import subprocess

from state import HOST, Failure, Missing

# Each process listens on the port of its name.
PROCESSES = ("mariadb",)
CONFIG = """\
[mariadbd]
datadir = {path}/data
socket = {path}/sock
pid-file = {path}/pid
tmpdir = {path}/tmp
user = {user}
bind-address = {host}
port = {port}
skip-name-resolve
performance_schema = OFF
innodb_buffer_pool_size = 64M
innodb_log_file_size = 16M
[client]
socket = {path}/sock
user = root
"""


def check_installed():
    """Fails where the packages are missing."""
    wanted = (("mariadbd", "mariadb-server-core"), ("mariadb-admin", "mariadb-client"),
              ("mariadb-backup", "mariadb-backup"))
    missing = [package for program, package in wanted if not shutil.which(program)]
    if missing:
        raise Missing("mariadb", missing)


def is_current(state):
    """Whether the server was ready once."""
    return state.facts("mariadb") is not None


def start(state, _args):
    """Makes the system tables if they are not there, and starts the server."""
    path = state.path / "mariadb"
    (path / "tmp").mkdir(parents=True, exist_ok=True)
    if len(str(path / "sock")) > 107:
        raise Failure(f"{path}: too long for the path of a socket: choose a state directory with a shorter name")
    cnf = path / "cnf"
    cnf.write_text(CONFIG.format(path=path, user=getpass.getuser(), host=HOST, port=state.port("mariadb")))
    if not (path / "data" / "mysql").is_dir():
        made = subprocess.run(["mariadb-install-db", f"--defaults-file={cnf}", "--skip-test-db", "--skip-name-resolve",
                               "--auth-root-authentication-method=normal"], capture_output=True, text=True, cwd=path)
        if made.returncode:
            raise Failure(f"mariadb-install-db: {(made.stdout + made.stderr)[-1000:]}")
    state.spawn("mariadb", [shutil.which("mariadbd"), f"--defaults-file={cnf}"])
    wait(state)
    return {"cnf": str(cnf), "socket": str(path / "sock"), "data": str(path / "data")}


def wait(state):
    """Waits until the server answers."""
    ping = ["mariadb-admin", f"--defaults-file={state.path / 'mariadb' / 'cnf'}", "--connect-timeout=2", "ping"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    state.wait(["mariadb"], "MariaDB", lambda: subprocess.run(ping, **quiet).returncode == 0)
