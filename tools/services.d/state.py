"""The directory that one set of servers lives in: which processes run, on which ports, and what clients need to know.

A process is remembered by its id and its start time, so that a signal never reaches another one that got the same id.
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HOST = "127.0.0.1"
# Below the ports that the kernel gives to outgoing connections.
PORTS = range(20000, 32000)


class Failure(Exception):
    """Something the user has to know: it names the thing and what to do."""


class Missing(Failure):
    """Packages are not installed."""

    def __init__(self, service, packages):
        super().__init__(f"{' and '.join(packages)} missing: run `tools/services install {service}`")


def start_time(pid):
    """When the process began, in the kernel's clock ticks; None if it is gone or only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def free_port():
    """A port of loopback that nobody listens on at this moment."""
    for _ in range(1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.choice(PORTS)
            probe.bind((HOST, port))
            return port
    raise Failure(f"no port of {HOST} from {PORTS.start} to {PORTS.stop} is free")


def answers(url):
    """Whether `url` gives a good answer, whoever signed its certificate."""
    try:
        unverified = ssl._create_unverified_context() if url.startswith("https:") else None
        with urllib.request.urlopen(url, timeout=5, context=unverified) as reply:
            return reply.status < 400
    except (OSError, urllib.error.URLError):
        return False


class State:
    """A state directory that exists."""

    def __init__(self, path):
        self.path = Path(path).absolute()
        for name in ("log", "processes", "facts"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self):
        """One process at a time starts and stops servers; the others wait for it."""
        with open(self.path / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def port(self, name):
        """The port of `name`: the same one after a restart."""
        kept = self.path / "ports"
        ports = json.loads(kept.read_text()) if kept.exists() else {}
        if name not in ports:
            port = free_port()
            while port in ports.values():
                port = free_port()
            ports[name] = port
            kept.write_text(json.dumps(ports))
        return ports[name]

    def forget_ports(self, *names):
        """Lets `port` choose anew: somebody else was quicker to take one."""
        kept = self.path / "ports"
        ports = json.loads(kept.read_text()) if kept.exists() else {}
        kept.write_text(json.dumps({name: port for name, port in ports.items() if name not in names}))

    def facts(self, name):
        """What clients need to know of a service; None if it was never ready."""
        kept = self.path / "facts" / name
        return json.loads(kept.read_text()) if kept.exists() else None

    def set_facts(self, name, facts):
        """Says that a service is ready, and what clients need to know of it."""
        kept = self.path / "facts" / name
        kept.with_suffix(".new").write_text(json.dumps(facts))
        kept.with_suffix(".new").rename(kept)

    def names(self):
        """Every process that was started and not stopped, newest first."""
        kept = sorted((self.path / "processes").iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [path.name for path in kept]

    def spawn(self, name, argv, **environment):
        """Starts a process in a session of its own; what it says goes to the log of its name."""
        with open(self.path / "log" / name, "ab") as log:
            process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True, cwd=self.path,
                                       env={**os.environ, **{key: str(value) for key, value in environment.items()}})
        record = {"pid": process.pid, "started": start_time(process.pid), "argv": [str(word) for word in argv],
                  "environment": {key: str(value) for key, value in environment.items()}}
        (self.path / "processes" / name).write_text(json.dumps(record))

    def record(self, name):
        """What `spawn` noted of a process; None if there is none of that name."""
        kept = self.path / "processes" / name
        return json.loads(kept.read_text()) if kept.exists() else None

    def alive(self, name):
        """Whether the process that `spawn` started runs."""
        record = self.record(name)
        return bool(record and record["started"] and start_time(record["pid"]) == record["started"])

    def signal(self, name, number):
        """Sends a signal to the process `name`, if it runs."""
        if self.alive(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.record(name)["pid"], number)

    def end(self, name, patience=20, forget=True):
        """Ends the process `name`: asks, waits `patience` seconds, insists. Unless it is forgotten it can be restarted."""
        self.signal(name, signal.SIGTERM)
        self.signal(name, signal.SIGCONT)
        until = time.monotonic() + patience
        while self.alive(name):
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.record(name)["pid"], signal.SIGKILL)
                until += 5
            time.sleep(0.02)
        if forget:
            (self.path / "processes" / name).unlink(missing_ok=True)

    def restart(self, name):
        """Starts a process again that ended, as it was started before."""
        record = self.record(name)
        if record is None:
            raise Failure(f"there is no process {name} in {self.path}")
        if not self.alive(name):
            self.spawn(name, record["argv"], **record["environment"])

    def wait(self, names, what, ready, limit=90):
        """Waits until `ready()`; fails with the end of the log if one of the processes ends or time is up."""
        until = time.monotonic() + limit
        while not ready():
            ended = [name for name in names if not self.alive(name)]
            if ended or time.monotonic() > until:
                said = "\n".join(self.last_words(name) for name in ended or names)
                why = f"{', '.join(ended)} ended" if ended else f"not ready after {limit} s"
                raise Failure(f"{what}: {why}\n{said}")
            time.sleep(0.05)

    def last_words(self, name):
        """The end of what a process said."""
        log = self.path / "log" / name
        lines = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
        return "\n".join(f"{name}: {line}" for line in lines)
