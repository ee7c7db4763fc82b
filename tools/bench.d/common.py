"""What every part of the benchmark needs: running commands with a limit, paths, messages, and clean ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

DEFAULT_DIR = Path("/dev/shm/bygone-bench")
PEERS = Path("/opt/peers")
MIB = 1 << 20


class Failure(Exception):
    """Something the user has to know: it names the thing and what to do."""


def say(text):
    """A line of progress, on stderr: results and tables own stdout."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def need_root():
    """The benchmark mounts and bind-mounts; nothing of it works as an ordinary user."""
    if os.geteuid() != 0:
        raise Failure("this needs root (it mounts images and drops the kernel's caches): run it with sudo")


def start(argv, **options):
    """Starts a command in a process group of its own, ahead of everything else that runs on the machine."""
    options.setdefault("stdin", subprocess.DEVNULL)
    process = subprocess.Popen([str(a) for a in argv], start_new_session=True, **options)
    prefer(process.pid)
    return process


def prefer(pid):
    """Puts a process and its children ahead of all others (nice does not: the scheduler first shares out between
    groups), so that a busy machine is not part of what is measured."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-20")


def run(argv, timeout=600, quiet=False, **options):
    """Runs a command to its end and returns its output; a failure carries the last lines of what it said."""
    argv = [str(a) for a in argv]
    process = start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException as stop:
        end_group(process.pid)
        process.communicate()
        if isinstance(stop, subprocess.TimeoutExpired):
            raise Failure(f"{' '.join(argv)[:200]}: not done after {timeout} s") from None
        raise
    if process.returncode and not quiet:
        raise Failure(f"{' '.join(argv)[:300]}: exit {process.returncode}\n{tail(err or out)}")
    return out


def tail(text, lines=12):
    """The last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:])


def end_group(pid):
    """Ends a process group that we started: first asks, then kills."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, sig)
        time.sleep(0.5)


def program(name):
    """The path of an installed program: ours under /opt/peers first, then the PATH; None if it is not there."""
    own = PEERS / "bin" / name
    return str(own) if own.exists() else shutil.which(name)


def remove(path):
    """Removes a tree or a file that may be gone already."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def mounted(path):
    """Whether something is mounted there; asks the kernel's list, so that a dead mount cannot make it hang."""
    wanted = str(path).replace(" ", "\\040")
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split()[4] == wanted for line in mounts)


def unmount(path):
    """Unmounts all that is mounted there, lazily where it is busy; nothing mounted is fine."""
    for flags in ([], [], ["-l"], ["-l"], ["-l"]):
        if not mounted(path):
            return
        subprocess.run(["umount", *flags, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False, timeout=120)
        time.sleep(0.05)


def enter_private_mounts(argv):
    """Runs this program again where its mounts are seen by nobody else and vanish with it, however it ends."""
    if os.environ.get("BYGONE_BENCH_PRIVATE") == "1":
        return
    os.environ["BYGONE_BENCH_PRIVATE"] = "1"
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *argv])
