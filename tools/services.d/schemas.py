"""OpenStack's databases in the MariaDB of the same state directory: tables by the services' own migrations, and rows.

Each migration has a database for itself, so as many run at once as there are processors. They see a configuration and
an environment of ours: on a machine that is part of a cloud they must not find that cloud's databases.
"""

import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from state import Failure, Missing

ROWS = Path(__file__).with_name("schemas.sql")
# Seconds that one migration may take; on a small machine it takes up to 30.
LIMIT = 300
# What makes each database: whose command line, and the words for it. The longest come first, or one would run alone
# at the end. Each of Nova's cells is made for itself: told of both, Nova would make one after the other.
MIGRATIONS = {
    "neutron": ("neutron.db.migration.cli", "upgrade", "heads"),
    "cinder": ("cinder.cmd.manage", "db", "sync"),
    "keystone": ("keystone.cmd.manage", "db_sync"),
    "glance": ("glance.cmd.manage", "db_sync"),
    "nova_cell1": ("nova.cmd.manage", "db", "sync", "--local_cell"),
    "nova_cell0": ("nova.cmd.manage", "db", "sync", "--local_cell"),
    "nova_api": ("nova.cmd.manage", "api_db", "sync"),
}
# One for all: each reads what it knows.
CONFIG = """\
[DEFAULT]
use_stderr = true
state_path = {path}
core_plugin = ml2
transport_url = fake:///
[database]
connection = {url}
[api_database]
connection = {url}
"""
RUN = "import sys; from {} import main; sys.argv[0] = 'manage'; sys.exit(main())"


def check_installed():
    """Fails where the packages are missing."""
    modules = ("pymysql", *sorted({module.split(".")[0] for module, *_ in MIGRATIONS.values()}))
    missing = [f"python3-{module}" for module in modules if not importlib.util.find_spec(module)]
    if missing:
        raise Missing("schemas", missing)


def make(state):
    """Makes the databases that are not there yet, and puts rows into them."""
    check_installed()
    if not state.alive("mariadb"):
        raise Failure(f"no MariaDB runs in {state.path}: `tools/services start mariadb` starts one")
    if state.facts("schemas"):
        print("# the schemas are there already", file=sys.stderr)
        return
    begun = time.monotonic()
    sql = state.facts("mariadb")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for said in pool.map(lambda name: migrate(state, sql, name), MIGRATIONS):
            print(said, file=sys.stderr)
    filled = time.monotonic()
    with open(ROWS, "rb") as rows:
        client(sql, stdin=rows)
    ended = time.monotonic()
    state.set_facts("schemas", {"databases": sorted(MIGRATIONS)})
    print(f"# schemas are ready after {ended - begun:.1f} s, {ended - filled:.1f} s of it for rows", file=sys.stderr)


def client(sql, *words, **how):
    """What the server answers to statements."""
    done = subprocess.run(["mariadb", f"--defaults-file={sql['cnf']}", "--batch", "--skip-column-names", *words],
                          capture_output=True, text=True, **how)
    if done.returncode:
        raise Failure(f"MariaDB: {done.stderr[-1000:]}")
    return done.stdout.strip()


def migrate(state, sql, name):
    """Makes one database; returns a line about it."""
    begun = time.monotonic()
    # The character set that the services' documents prescribe.
    client(sql, "-e", f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb3")
    path = state.path / "schemas" / name
    (path / "empty").mkdir(parents=True, exist_ok=True)
    conf = path / "conf"
    conf.write_text(CONFIG.format(
        path=path, url=f"mysql+pymysql://root@localhost/{name}?unix_socket={sql['socket']}&charset=utf8"))
    module, *words = MIGRATIONS[name]
    argv = [sys.executable, "-B", "-W", "ignore", "-c", RUN.format(module), "--config-file", conf,
            "--config-dir", path / "empty", *words]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(path), "LC_ALL": "C.UTF-8"}
    try:
        with open(state.path / "log" / name, "ab") as log:
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=path, env=environment,
                           check=True, timeout=LIMIT)
    except subprocess.SubprocessError as failure:
        how = "failed" if isinstance(failure, subprocess.CalledProcessError) else f"took more than {LIMIT} s"
        raise Failure(f"the migration of {name} {how}\n{state.last_words(name)}") from None
    tables = client(sql, "-e", f"SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '{name}'")
    return f"# {name}: {tables} tables after {time.monotonic() - begun:.1f} s"
