"""Measures the programs on the same data in one run, in interleaved rounds; everything it makes is removed again.

Sets: source, dump and image back up day 1, back up again with nothing changed, back up day 2, restore it, compare it,
and read everything back for a check. nights backs up the dump of eight days one after the other, and reads and restores
the last beside a copy of it that is stored whole. mount backs up all three, mounts the snapshot and reads it, each time from a fresh
mount with the kernel's name and attribute caches dropped. Beside them the kernel's squashfs, the source itself (tmpfs)
and two file systems that have every answer ready, of nothing (null) or of the source (pass), show the limits. many is a repository
of 1,000 small snapshots and a tree of 1,000,000 small files (for bygone alone, unless --tools says otherwise). huge is
the mount of a repository with 10,000,000 blobs and 1,000 snapshots. remote is a store behind a network: backups to a real
Swift and its S3 interface, reads and restores with 30 ms added to every request, and everything again with 2 % failing.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import memory
import meter
import remote
import sqldump
from common import DEFAULT_DIR, MIB, Failure, end_group, prefer, remove, run, say, start, tail, unmount
from data import SETS, Stage, live, parked
from programs import BY_NAME, PEERS, PROJECT, Place

ALL = (*SETS, "nights", "mount", "many", "huge", "remote")
TIMEOUT = 1800
MOUNT_LIMIT = 90
RANDOM_READS, RANDOM_LIMIT = 20_000, 20
MANY_FILES, MANY_SNAPSHOTS, MANY_DIRS = 1_000_000, 1_000, 100
NEEDED_MIB = {"source": 2048, "dump": 1536, "image": 5120, "mount": 2560, "nights": 4096, "many": 2048, "huge": 3072, "remote": 4096}
HUGE = PROJECT / "target/release/examples/huge"
HUGE_BLOBS, HUGE_SNAPSHOTS = 10_000_000, 1_000
DAYS = 8


class Results:
    """Appends one JSON line per measurement to a file and says it on the terminal."""

    def __init__(self, path):
        self.path = path
        self.common = {"run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host_cpus": os.cpu_count(),
                       "kernel": platform.release()}
        self.errors = 0

    def add(self, tool, name, step, round_number, figures):
        """Adds a measurement."""
        line = {**self.common, "round": round_number, "set": name, "tool": tool.name, "version": tool.shown_version,
                "step": step, **figures}
        with open(self.path, "a") as out:
            out.write(json.dumps(line) + "\n")
        say(f"{name} {tool.name} {step}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))

    def error(self, tool, name, round_number, failure):
        """Adds that something could not be measured."""
        self.errors += 1
        self.add(tool, name, "error", round_number, {"error": str(failure)})


class Bench:
    """One program in one round on one set, in a directory of its own; its repository is there too, unless variables
    lead elsewhere."""

    def __init__(self, tool, name, round_number, args, results, variables=()):
        self.tool, self.name, self.round, self.args, self.results = tool, name, round_number, args, results
        self.place = Place(args.work / f"{name}-{tool.name}-{round_number}")
        self.env = {**tool.env(self.place), **dict(variables)}
        self.snapshots = 0

    def __enter__(self):
        for argv in self.tool.init(self.place):
            run(argv, env=self.env, timeout=120)
        return self

    def __exit__(self, *_):
        unmount(self.place.mnt)
        remove(self.place.work)

    def add(self, step, figures):
        """Records a measurement of this program."""
        self.results.add(self.tool, self.name, step, self.round, figures)

    def timed(self, argv, cwd=None):
        """Runs one of the program's commands and measures it."""
        return meter.timed(argv, self.place.log, TIMEOUT, self.env, cwd)

    def backup(self, path):
        """Makes the next snapshot."""
        self.snapshots += 1
        return self.timed(self.tool.backup(self.place, path, self.snapshots))

    def restore(self, step, backed_up, original, sparse=False):
        """Restores the newest snapshot into memory and compares it."""
        argv = self.tool.restore(self.place, self.snapshots, sparse)
        if not argv:
            return
        self.place.target.mkdir()
        try:
            figures = self.timed(argv, cwd=self.place.target)
            restored = self.tool.restored(self.place, backed_up)
            if original.is_file():
                restored = restored / original.name
            taken = int(run(["du", "-s", "-B1", self.place.target]).split()[0])
            meter.same(original, restored)
            self.add(step, {**figures, "data_mib": round(data_mib(original)), "taken_mib": taken >> 20})
        finally:
            remove(self.place.target)

    def mounted(self):
        return Mounted(self)


def data_mib(path):
    """The bytes of a file or of all files of a tree, in MiB."""
    if path.is_file():
        return path.stat().st_size / MIB
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(path) for name in names) / MIB


def measure_backups(bench, root):
    """Backup, again, next version, restore, check."""
    name = bench.name
    with Stage(root, name) as stage:
        path = stage.show(1)
        bench.add("first", {**bench.backup(path), **meter.size(bench.place.repo)})
        bench.add("unchanged", bench.backup(path))
        path = stage.show(2)
        bench.add("next", {**bench.backup(path), **meter.size(bench.place.repo)})
        bench.restore("restore", path, live(root, name))
        if name == "image":
            bench.restore("restore-sparse", path, live(root, name), sparse=True)
    check = bench.tool.check(bench.place)
    if check:
        bench.add("check", bench.timed(check))


def measure_nights(bench, args):
    """The dump of eight days: what each adds; the last, mostly differences from the first, read beside one stored whole."""
    days = nights(args.many_dir / "bygone-bench-nights")
    path = args.dir / "live" / "nights"
    path.mkdir(parents=True, exist_ok=True)
    shown = path / "nova.sql"
    shown.touch()
    before = 0
    try:
        for day, dump in enumerate(days, start=1):
            run(["mount", "--bind", dump, shown])
            size = 0
            try:
                figures = bench.backup(path)
                size = meter.size(bench.place.repo)["repo_mib"]
                bench.add(f"day-{day}", {**figures, "added_mib": round(size - before, 2)})
                if day == len(days):
                    read_night(bench, "deltas", path, dump, args.dir)
            finally:
                unmount(shown)
            before = size
        if bench.tool.name != "bygone":
            return
        run(["mount", "--bind", days[-1], shown])
        with Bench(bench.tool, "nights-whole", bench.round, args, bench.results) as whole:
            whole.name = bench.name
            whole.backup(path)
            read_night(whole, "whole", path, days[-1], args.dir)
    finally:
        unmount(shown)


def read_night(bench, how, path, dump, root):
    """Copies the newest dump off a mount and restores it."""
    if bench.tool.name != "bygone":
        return
    bench.restore(f"restore-{how}", path, path / "nova.sql")
    with bench.mounted() as mount:
        at = mount.begin(path, root)
        bench.add(f"read-{how}", meter.read_file(at / "nova.sql", data_mib(dump), MOUNT_LIMIT))


def nights(home):
    """The dumps of eight days, made once."""
    days = [home / f"day-{day}.sql" for day in range(1, DAYS + 1)]
    if not all(day.exists() for day in days):
        say(f"the dump of {DAYS} days, in {home}")
        home.mkdir(parents=True, exist_ok=True)
        fresh = [day.with_suffix(".new") for day in days]
        sqldump.write(*fresh)
        for new, day in zip(fresh, days):
            new.rename(day)
    return days


class Mounted:
    """The newest snapshot, mounted; ready when the data can be listed."""

    def __init__(self, bench):
        self.bench, self.place, self.tool = bench, bench.place, bench.tool
        self.process, self.ready_s, self.pids = None, None, []

    def begin(self, path, root, options=()):
        """Mounts and waits until `path` can be listed there; forgets what the kernel knows of names and attributes."""
        argv = [str(word) for word in [*self.tool.mount(self.place, self.bench.snapshots), *options]]
        seen = self.tool.seen(self.place, path, root / "live")
        begun = time.monotonic()
        if self.tool.foreground:
            with open(self.place.log, "w") as log:
                self.process = start(argv, env=self.bench.env, stdout=log, stderr=log)
        else:
            # A daemon keeps the descriptors it inherits: it must not get a pipe that is read to its end.
            with open(self.place.log, "w") as log:
                process = start(argv, env=self.bench.env, stdout=log, stderr=log)
                try:
                    status = process.wait(300)
                except BaseException:
                    end_group(process.pid)
                    raise
            if status:
                raise Failure(f"{' '.join(argv)}: exit {status}\n{tail(self.place.log.read_text())}")
        # Where the snapshot is the mount point itself, it is a directory before anything is mounted: an empty one.
        while not subprocess.run(["ls", "-U", seen], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, check=False, timeout=120).stdout:
            if self.process and self.process.poll() is not None:
                raise Failure(f"{' '.join(argv)}: ended\n{tail(self.place.log.read_text())}")
            if time.monotonic() - begun > 300:
                raise Failure(f"{seen}: not there 300 s after mounting\n{tail(self.place.log.read_text())}")
            time.sleep(0.005)
        self.ready_s = round(time.monotonic() - begun, 3)
        self.pids = [self.process.pid] if self.process else meter.processes_with(str(self.place.mnt))
        if self.tool.has_daemon and not self.pids:
            raise Failure(f"{self.tool.name}: no process has {self.place.mnt} in its command line")
        for pid in self.pids:
            prefer(pid)
        meter.drop_inode_caches()
        return seen

    def peak(self):
        """The daemon's peak memory until now."""
        return max((meter.peak_of(pid) for pid in self.pids), default=0.0)

    def stop(self):
        """Unmounts and waits for the daemon's end."""
        own = self.tool.unmount(self.place)
        if own and not self.process:
            run(own, env=self.bench.env, timeout=60, quiet=True)
        unmount(self.place.mnt)
        if self.process:
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for _ in range(300):
            if not any(os.path.exists(f"/proc/{pid}") for pid in self.pids):
                return
            time.sleep(0.1)
        raise Failure(f"{self.tool.name}: the mount's process is still there 30 s after unmounting")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def measure_mount(bench, root):
    """Reads one snapshot of all three sets off a mount."""
    tool = bench.tool
    bench.place.live = root / "live"
    if not tool.mount(bench.place, 1):
        return
    stages = [Stage(root, name) for name in SETS]
    try:
        for stage in stages:
            stage.show(1)
        if tool.shows_source:
            return read_mounted(bench, root)
        bench.add("backup", {**bench.backup(root / "live"), **meter.size(bench.place.repo)})
    finally:
        for stage in stages:
            stage.close()
    read_mounted(bench, root)


def read_mounted(bench, root):
    """Reads in every way, each from a fresh mount."""
    tool = bench.tool
    source = parked(root, "source", 1)
    files, mib = count_files(source), data_mib(source)
    dump_mib, image_mib = (data_mib(parked(root, name, 1)) for name in ("dump", "image"))

    in_data = meter.plan_in_data(parked(root, "image", 1), RANDOM_READS, bench.place.work / "plan")

    def tree(at):
        return meter.list_tree(at / "src", MOUNT_LIMIT)

    def every_file(at):
        return meter.read_tree(at / "src", files, mib, MOUNT_LIMIT)

    def sequential(path, size):
        return lambda at: meter.read_file(at / path, size, MOUNT_LIMIT)

    def scattered(path, plan=None, readers=1):
        return lambda at: meter.read_random(at / path, RANDOM_READS, RANDOM_LIMIT, plan, readers)

    def copied(*argv):
        return lambda at: meter.copy_tree([*argv, f"{at / 'src'}/.", bench.place.target], bench.place.target, mib,
                                          MOUNT_LIMIT)

    def copied_dump(at):
        figures = meter.copy_tree(["cp", at / "dump/nova.sql", bench.place.target], bench.place.target, dump_mib,
                                  MOUNT_LIMIT)
        return {"mib_per_s": round(dump_mib / figures["wall_s"], 2), **figures}

    steps = (("find", tree, True), ("read-files", every_file, True),
             ("copy", copied("cp", "-a"), False), ("copy-no-xattrs", copied("cp", "-a"), False),
             ("rsync", copied("rsync", "-a"), False), ("copy-dump", copied_dump, False),
             ("read-dump", sequential("dump/nova.sql", dump_mib), True),
             ("read-image", sequential("image/disk.raw", image_mib), False),
             ("random-dump", scattered("dump/nova.sql"), True),
             ("random-dump-8", scattered("dump/nova.sql", readers=8), False),
             ("random-image", scattered("image/disk.raw"), False),
             ("random-image-data", scattered("image/disk.raw", in_data), False))
    for step, act, again in steps:
        options = tool.no_xattrs if step == "copy-no-xattrs" else []
        if options is None:
            continue
        with bench.mounted() as mount:
            at = mount.begin(root / "live", root, options)
            try:
                figures = act(at)
                bench.add(step, figures)
                if again and figures.get("finished", True):
                    bench.add(f"{step}-warm", act(at))
            except Failure as failure:
                bench.results.error(tool, "mount", bench.round, failure)
            bench.add("mounted", {"ready_s": mount.ready_s, "peak_mib": mount.peak(), "during": step})


def count_files(tree):
    """The regular files of a tree."""
    return sum(not os.path.islink(os.path.join(at, name)) for at, _, names in os.walk(tree) for name in names)


def make_many(path, count):
    """So many small files, every content twice, and a small tree."""
    for number in range(MANY_DIRS):
        directory = path / "files" / f"{number:03d}"
        directory.mkdir(parents=True)
        for file in range(number, count, MANY_DIRS):
            text = f"file {file % (count // 2):08d}: one of many small files, as mail and caches have them\n"
            fd = os.open(directory / f"file-{file:07d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, text.encode())
            os.close(fd)
    (path / "small").mkdir()
    for file in range(20):
        (path / "small" / f"config-{file:02d}").write_text(f"setting = {file}\n" * 50)


def measure_many(bench, root):
    """1,000 snapshots of a small tree and one of a million small files in one repository; with other numbers it is
    a trial, under another name, that reaches no goal."""
    if (bench.args.many_files, bench.args.many_snapshots) != (MANY_FILES, MANY_SNAPSHOTS):
        bench.name = "many-trial"
    home = bench.args.many_dir / f"bygone-bench-many-{os.getpid()}"
    home.mkdir(parents=True)
    bench.place.target = home / "restored"
    try:
        say(f"many: making {bench.args.many_files} files")
        make_many(home, bench.args.many_files)
        small = [snapshot_of_small(bench, home / "small", number) for number in range(bench.args.many_snapshots)]
        wall, cpu = (round(sum(one[figure] for one in small), 1) for figure in ("wall_s", "cpu_s"))
        bench.add("snapshots", {"wall_s": wall, "cpu_s": cpu, "peak_mib": max(one["peak_mib"] for one in small),
                                "count": len(small)})
        files = home / "files"
        bench.add("first", {**bench.backup(files), **meter.size(bench.place.repo)})
        bench.add("unchanged", bench.backup(files))
        find = bench.tool.find(bench.place, "file-0042424")
        if find:
            bench.add("find-command", bench.timed(find))
        if bench.tool.mount(bench.place, 1):
            measure_many_mounts(bench, root, files)
        bench.restore("restore", files, files)
    finally:
        remove(home)


def measure_huge(bench):
    """How soon a mount of a repository with 10,000,000 blobs and 1,000 snapshots can be listed, and what it holds."""
    if not HUGE.exists():
        raise Failure(f"{HUGE} is missing: build it with `cargo build --release --examples`")
    small = bench.place.work / "small"
    small.mkdir()
    (small / "file").write_text("the only file\n")
    bench.backup(small)
    run([HUGE, bench.place.repo, HUGE_BLOBS, HUGE_SNAPSHOTS], env=bench.env, timeout=TIMEOUT)
    bench.add("made", meter.size(bench.place.repo))
    for step in ("mounted-cold-index", "mounted-warm-index"):
        with bench.mounted() as mount:
            mount.begin(small, bench.args.dir)
            ready = {"ready_s": mount.ready_s, "peak_mib": mount.peak()}
            time.sleep(1)
            before = meter.cpu_of(mount.pids)
            time.sleep(5)
            bench.add(step, {**ready, "resident_mib": meter.resident(mount.pids),
                             "idle_cpu_s": round(meter.cpu_of(mount.pids) - before, 3)})


def measure_many_mounts(bench, root, files):
    """Ready time without and with local caches, then a find over the million files."""
    remove(bench.place.cache / "bygone")
    remove(bench.place.cache / "restic")
    with bench.mounted() as mount:
        mount.begin(files, root)
        bench.add("mounted-cold-index", {"ready_s": mount.ready_s, "peak_mib": mount.peak()})
    with bench.mounted() as mount:
        at = mount.begin(files, root)
        bench.add("mounted-warm-index", {"ready_s": mount.ready_s, "peak_mib": mount.peak()})
        bench.add("find", {**meter.list_tree(at, 600), "peak_mib": mount.peak()})


def snapshot_of_small(bench, small, number):
    """One more snapshot of the small tree, with one file changed."""
    (small / f"config-{number % 20:02d}").write_text(f"setting = {number}\n" * 50)
    return bench.backup(small)


def one(tool, name, round_number, args, results):
    """Measures one program on one set; what fails is recorded and does not stop the others."""
    try:
        if name == "remote":
            return remote.measure(lambda variables: Bench(tool, name, round_number, args, results, variables), tool,
                                  args.dir, args.work)
        with Bench(tool, name, round_number, args, results) as bench:
            if name == "mount":
                measure_mount(bench, args.dir)
            elif name == "many":
                measure_many(bench, args.dir)
            elif name == "huge":
                measure_huge(bench)
            elif name == "nights":
                measure_nights(bench, args)
            else:
                measure_backups(bench, args.dir)
    except (Failure, OSError, subprocess.SubprocessError) as failure:
        results.error(tool, name, round_number, failure)


def chosen_tools(args):
    """The programs to measure; those not named and not there are left out, those named must be there."""
    tools = []
    for name in args.tools or BY_NAME:
        tool = BY_NAME[name]
        if tool.path():
            tool.shown_version = tool.version()
            tools.append(tool)
        elif args.tools:
            build = "build it with `cargo build --release` or set BYGONE"
            raise Failure(f"{name} is not there: {build if name == 'bygone' else 'run `tools/bench install`'}")
        else:
            say(f"{name} is not there; left out")
    return tools


def check_memory(args, sets):
    """Refuses to start what cannot fit into memory."""
    free = os.statvfs(args.dir).f_bavail * os.statvfs(args.dir).f_frsize // MIB
    free = min(free, memory.mib("MemAvailable"))
    needed = max(NEEDED_MIB[name] for name in sets)
    if free < needed:
        raise Failure(f"{args.dir}: {free} MiB free in memory, {needed} MiB needed; end other programs or choose sets"
                      " with --only")


def run_all(args):
    """The whole run; its exit code says whether everything could be measured."""
    if not args.dir.is_dir():
        raise Failure(f"{args.dir}: no data; run `tools/bench data {args.dir}` first")
    tools, sets = chosen_tools(args), args.only or [*SETS, "mount"]
    check_memory(args, sets)
    args.work = args.dir / f"run-{os.getpid()}"
    args.work.mkdir()
    results = Results(args.out)
    try:
        with memory.kept():
            for round_number, name, tool in itertools.product(range(1, args.rounds + 1), sets, tools):
                if measurable(tool, name, args):
                    one(tool, name, round_number, args, results)
    finally:
        remove(args.work)
    say(f"results: {args.out}" + (f"; {results.errors} errors" if results.errors else ""))
    return 1 if results.errors else 0


def measurable(tool, name, args):
    """What is neither bygone nor a peer only mounts; many is bygone's alone unless tools are named."""
    if name == "huge":
        return tool.name == "bygone"
    if name == "nights":
        return tool.name == "bygone" or (bool(args.tools) and tool.name in PEERS)
    if name == "remote":
        return tool.name in ("bygone", "restic")
    if name == "many":
        return tool.name == "bygone" or (bool(args.tools) and tool.name in PEERS)
    return name == "mount" or tool.name == "bygone" or tool.is_peer


def names(allowed):
    """An argument type: a comma-separated list of these names."""
    def parse(text):
        chosen = text.split(",")
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name}: choose from {', '.join(allowed)}")
        return chosen
    return parse


def add_arguments(parser):
    """The arguments of `bench run`."""
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="where the data is (default %(default)s)")
    parser.add_argument("--only", type=names(ALL), help=f"only these sets, comma-separated: {', '.join(ALL)}"
                        " (default: source, dump, image, mount)")
    parser.add_argument("--tools", type=names(tuple(BY_NAME)),
                        help=f"only these, comma-separated: {', '.join(BY_NAME)} (default: all that are there)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench.jsonl"),
                        help="file to append results to (default %(default)s)")
    parser.add_argument("--many-files", type=int, default=MANY_FILES, help="files of many (default %(default)s)")
    parser.add_argument("--many-snapshots", type=int, default=MANY_SNAPSHOTS,
                        help="snapshots of many (default %(default)s)")
    parser.add_argument("--many-dir", type=Path, default=Path("/var/tmp"),
                        help="where the million files go (default %(default)s: they would take 4 GiB of memory, twice)")
