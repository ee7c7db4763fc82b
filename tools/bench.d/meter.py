"""Measures one command, one tree, one mount."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from common import MIB, Failure, end_group, program, remove, run, start, tail


def timed(argv, log, timeout, env=None, cwd=None):
    """Runs a command to its end; returns its wall and cpu seconds, the peak memory of its largest process, and which
    part of the machine was busy with something else meanwhile."""
    argv = [str(a) for a in argv]
    with open(log, "w+", errors="replace") as output:
        busy, begun = busy_seconds(), time.monotonic()
        process = start(argv, env=env, cwd=cwd, stdout=output, stderr=output)
        late = threading.Event()
        alarm = threading.Timer(timeout, lambda: (late.set(), end_group(process.pid)))
        alarm.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - begun
        except BaseException:
            end_group(process.pid)
            raise
        finally:
            alarm.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if late.is_set():
            raise Failure(f"{' '.join(argv)[:200]}: not done after {timeout} s")
        if process.returncode:
            output.seek(0)
            raise Failure(f"{' '.join(argv)[:200]}: exit {process.returncode}\n{tail(output.read())}")
    cpu = usage.ru_utime + usage.ru_stime
    others = max(0.0, (busy_seconds() - busy - cpu) / (wall * os.cpu_count()))
    return {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "peak_mib": round(usage.ru_maxrss / 1024, 1),
            "others": round(others, 2)}


def busy_seconds():
    """Seconds that the processors of the machine have worked since it started, stolen time among them."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def size(tree):
    """The bytes of all files of a tree, and what `du --apparent-size` says of it, in MiB."""
    total = sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(tree) for name in names)
    du = int(run(["du", "-s", "--apparent-size", "-B1", tree]).split()[0])
    return {"repo_mib": round(total / MIB, 2), "repo_du_mib": round(du / MIB, 2)}


def same(original, restored):
    """Raises when a restored tree or file differs from its original in names or content."""
    kind = ["cmp"] if original.is_file() else ["diff", "-rq", "--no-dereference"]
    differs = run([*kind, original, restored], timeout=900, quiet=True)
    if differs.strip() or not restored.exists():
        raise Failure(f"{restored} is not what was backed up ({original}):\n{tail(differs, 5)}")


def drop_inode_caches():
    """Makes the kernel forget names and attributes; pages stay, so that a repository in memory stays there."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def list_tree(tree, limit):
    """Entries a second of a `find` that needs the size of every entry."""
    begun = time.monotonic()
    text, finished = bounded(["find", tree, "-printf", "%s\\n"], limit)
    seconds = time.monotonic() - begun
    return {"entries_per_s": round(text.count("\n") / seconds, 1), "wall_s": round(seconds, 3), "finished": finished}


def read_tree(tree, files, mib, limit):
    """Files and MiB a second of reading every file of a tree, one by one; at the limit, of the part that was read."""
    batch = 500
    script = f'find "$1" -type f -print0 | xargs -0 -n {batch} sh -c \'cat -- "$@" > /dev/null && echo\' sh'
    begun = time.monotonic()
    text, finished = bounded(["sh", "-c", script, "sh", tree], limit)
    seconds = time.monotonic() - begun
    share = 1.0 if finished else text.count("\n") * batch / files
    if finished and text.count("\n") != -(-files // batch):
        raise Failure(f"{tree}: {text.count(chr(10))} batches of {batch} files were read, {files} files are there")
    return {"files_per_s": round(files * share / seconds, 1), "mib_per_s": round(mib * share / seconds, 2),
            "wall_s": round(seconds, 3), "finished": finished}


def bounded(argv, limit):
    """The output of a command that is ended after `limit` seconds, and whether it got to its end by itself."""
    process = start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        return out, False
    except BaseException:
        end_group(process.pid)
        raise
    if process.returncode or err.strip():
        raise Failure(f"{' '.join(map(str, argv))[:200]}: exit {process.returncode}\n{tail(err)}")
    return out, True


def copy_tree(argv, target, mib, limit):
    """Seconds that a copying program takes."""
    target.mkdir()
    try:
        begun = time.monotonic()
        _, finished = bounded(argv, limit)
        seconds = time.monotonic() - begun
        if finished:
            copied = int(run(["du", "-s", "--apparent-size", "-B1", target]).split()[0]) / MIB
            if copied < mib:
                raise Failure(f"{argv[0]}: {copied:.0f} MiB were copied of {mib:.0f}")
        return {"wall_s": round(seconds, 3), "finished": finished}
    finally:
        remove(target)


def read_file(path, mib, limit):
    """MiB a second of a sequential read."""
    begun = time.monotonic()
    process = start(["timeout", "-s", "INT", limit, "dd", f"if={path}", "of=/dev/null", "bs=1M"],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "LC_ALL": "C"})
    try:
        text, _ = process.communicate(timeout=limit + 60)
    except BaseException:
        end_group(process.pid)
        raise
    seconds = time.monotonic() - begun
    counted = [line for line in text.splitlines() if " bytes " in line]
    if process.returncode not in (0, 124) or not counted:
        raise Failure(f"{path}: dd exit {process.returncode}\n{tail(text)}")
    done = int(counted[-1].split()[0]) / MIB
    finished = process.returncode == 0
    if finished and abs(done - mib) > 1:
        raise Failure(f"{path}: {done:.0f} MiB were read of {mib:.0f}")
    return {"mib_per_s": round(done / seconds, 2), "wall_s": round(seconds, 3), "finished": finished}


BLOCK = 4096


def read_random(path, count, limit, plan=None, readers=1):
    """Random reads of 4 KiB a second, one at a time for each reader, the same places for every tool, and their median latency.

    The places are all over the file, or, with a plan, those of the plan.
    """
    fio = program("fio")
    if not fio:
        raise Failure("fio is missing: run `tools/bench install`")
    where = [f"--read_iolog={plan(path)}"] if plan else [
        f"--filename={path}", "--rw=randread", f"--bs={BLOCK}", f"--number_ios={count // readers}", "--randrepeat=1",
        "--randseed=7", "--norandommap"]
    if readers > 1:
        where += [f"--numjobs={readers}", "--group_reporting", "--thread"]
    out = run([fio, "--name=random", *where, "--readonly", "--ioengine=psync", "--iodepth=1", f"--runtime={limit}",
               "--fadvise_hint=0", "--invalidate=0", "--output-format=json"], timeout=limit + 120)
    read = json.loads(out[out.index("{"):])["jobs"][0]["read"]
    return {"iops": round(read["iops"], 1), "p50_us": round(read["clat_ns"]["percentile"]["50.000000"] / 1000, 1),
            "p99_us": round(read["clat_ns"]["percentile"]["99.000000"] / 1000, 1), "reads": read["total_ios"]}


def plan_in_data(original, count, log):
    """A plan of random reads that never fall into a hole: makes fio's list of reads for a copy of a sparse file."""
    blocks, at = [], 0
    with open(original, "rb") as file:
        while True:
            try:
                first = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), first, os.SEEK_HOLE)
            blocks.append((first // BLOCK, at // BLOCK))
    numbers = [block for first, end in blocks for block in range(first, end)]
    chosen = random.Random(7).choices(numbers, k=count)

    def plan(path):
        reads = "".join(f"{path} read {block * BLOCK} {BLOCK}\n" for block in chosen)
        Path(log).write_text(f"fio version 2 iolog\n{path} add\n{path} open\n{reads}{path} close\n")
        return log
    return plan


def peak_of(pid):
    """The peak memory of a process that still runs, in MiB; 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return 0.0


def resident(pids):
    """The private memory of processes that run, in MiB: pages of mapped files belong to the page cache."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1])
    return round(total / 1024, 1)


def cpu_of(pids):
    """The cpu seconds of processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def processes_with(*words):
    """The processes whose command line holds all these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if all(word in line for word in words):
                found.append(int(entry.name))
    return found


if sys.version_info < (3, 9):
    sys.exit("bench: Python 3.9 or newer is needed")
