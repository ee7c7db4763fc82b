"""The set `remote`: what a store behind a network costs, on a real Swift that `tools/services` starts on loopback.

Backups go to Swift and to its S3 interface (that one behind TLS, without which restic signs bodies in a way that Swift
does not know); requests are counted in Swift's own log. Then bygone alone is measured through a proxy that adds 30 ms to
every request, and through one that harms 2 % of them.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import meter
from common import MIB, Failure, end_group, prefer, remove, run, start
from data import Stage, live, parked
from programs import PROJECT

SERVICES = PROJECT / "tools/services"
PROXY = PROJECT / "target/release/examples/fault-proxy"
DATA = ("source", "dump")
WAYS = ("swift", "s3")
PACK_MIB = 16
# Milliseconds that the proxy adds: what is measured, and so much more that round trips can be told from computing.
DELAY, DELAY_LONG = 30, 230
SMALL_FILES, SMALL_BYTES_MAX = 10_000, 64 << 10
FAULTY_REQUESTS, FAULTY_PACK_MIB = 2000, 4
FAULTS = ({"status": {"code": 500}}, {"cut_reply": 100}, {"cut_request": 3000}, "lose_reply")
READ_LIMIT = 90


class Servers:
    """One Swift, with nothing in it, until the block ends."""

    def __init__(self, state, *options):
        self.state, self.options = state, options
        self.containers = 0

    def __enter__(self):
        self.tool("start", *self.options, "--owner", os.getpid(), "swift")
        self.facts = json.loads(self.tool("facts"))
        # The measured program is put ahead of all others: the servers have to keep up with it.
        for line in self.tool("status").splitlines():
            prefer(line.split()[1])
        return self

    def __exit__(self, *_):
        self.tool("stop")
        remove(self.state)

    def tool(self, *words):
        """What `tools/services` says to this."""
        return run([SERVICES, "--state", self.state, *words], timeout=180)

    def new_repository(self, way):
        """The variables that lead every program to an empty container."""
        self.containers += 1
        name = f"bench-{self.containers}"
        if way == "swift":
            variables, repository = self.facts["ways"]["tempauth"], f"swift:{name}:/"
        else:
            variables, repository = self.facts["ways"]["s3"], f"s3:{self.facts['swift']['url']}/{name}"
        authority = {"RESTIC_CACERT": self.facts["swift"]["authority"]} if self.facts["swift"]["authority"] else {}
        return {**variables, **authority, "BYGONE_REPOSITORY": repository, "RESTIC_REPOSITORY": repository}

    def requests(self):
        """How many requests clients have sent so far, by Swift's own log."""
        log = (self.state / "log" / "proxy").read_text(errors="replace")
        return len(re.findall(r"^proxy-server: \d[\d.]+ \d[\d.]+ .* HTTP/1", log, re.MULTILINE))

    def stored(self):
        """Bytes of all objects."""
        return sum(path.stat().st_size for path in (self.state / "srv").rglob("*.data"))


class Proxy:
    """A network with faults, until the block ends."""

    def __init__(self, server, *rules):
        self.server, self.rules = server, rules

    def __enter__(self):
        if not PROXY.exists():
            raise Failure(f"{PROXY} is missing: build it with `cargo build --release --examples`")
        self.process = start([PROXY, self.server, *map(json.dumps, self.rules)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip().removeprefix("http://")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            end_group(self.process.pid)

    def counts(self):
        """Requests since the last call, and how many of them were harmed."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        counts = json.loads(self.process.stdout.readline())
        return {"requests": sum(counts["requests"].values()), "harmed": counts["harmed"]}


@contextlib.contextmanager
def through_proxy(bench, servers, *rules):
    """What the program asks within goes through a proxy with these rules."""
    direct = bench.env
    server = servers.facts["swift"]["url"].removeprefix("http://")
    with Proxy(server, *rules) as proxy:
        bench.env = {**direct, "ST_AUTH": direct["ST_AUTH"].replace(server, proxy.address)}
        try:
            yield proxy
        finally:
            bench.env = direct


def delayed(ms):
    """The rule that adds so many milliseconds to every request."""
    return {"request": "*", "fault": {"delay": ms}}


def measure(new_bench, tool, root, work):
    """Everything of this set for one program; `new_bench` makes a repository from the variables that lead to it."""
    for way in WAYS:
        options = ["--tls"] if way == "s3" else []
        with Servers(work / "services", *options) as servers:
            for name in DATA:
                with new_bench(servers.new_repository(way)) as bench, Stage(root, name) as stage:
                    back_up(bench, servers, f"{way}-{name}", stage.show(1))
                    if way == "swift" and tool.name == "bygone":
                        far_restore(bench, servers, name, stage.show(1), root)
                        if name == "dump":
                            far_dump(bench, servers, root)
            if way == "swift" and tool.name == "bygone":
                with new_bench(servers.new_repository(way)) as bench:
                    far_small(bench, servers, root)
                with new_bench(servers.new_repository(way)) as bench, Stage(root, "dump") as stage:
                    faults(bench, servers, stage.show(1), root)


def back_up(bench, servers, step, path):
    """First backup, and again with nothing changed: with the local cache, and without."""
    for again, empties_cache in (("first", False), ("unchanged", False), ("unchanged-empty-cache", True)):
        if empties_cache:
            remove(bench.place.cache)
            bench.place.cache.mkdir()
        requests, stored = servers.requests(), servers.stored()
        figures = bench.backup(path)
        stored_mib = (servers.stored() - stored) / MIB
        bench.add(f"{step}-{again}", {**figures, "requests": servers.requests() - requests,
                                      "stored_mib": round(stored_mib, 2),
                                      "budget": round(stored_mib / PACK_MIB * 1.2 + 20)})


def forget(bench):
    """Nothing of the repository is near any more."""
    remove(bench.place.cache)
    bench.place.cache.mkdir()
    meter.drop_inode_caches()


def far_restore(bench, servers, name, path, root):
    """A whole restore through the proxy, without and with its delay."""
    for step, rules in (("near", []), ("far", [delayed(DELAY)])):
        forget(bench)
        with through_proxy(bench, servers, *rules):
            bench.restore(f"restore-{name}-{step}", path, live(root, name))


def far_dump(bench, servers, root):
    """The mount far away: round trips until something can be listed, and a read of the dump from its first byte to its
    last."""
    dump = live(root, "dump")
    ready = {}
    for delay in (DELAY, DELAY_LONG):
        forget(bench)
        with through_proxy(bench, servers, delayed(delay)) as proxy, bench.mounted() as mount:
            at = mount.begin(dump.parent, root)
            ready[delay] = mount.ready_s, proxy.counts()["requests"]
            if delay == DELAY:
                figures = meter.read_file(at / dump.name, dump.stat().st_size / MIB, READ_LIMIT)
                bench.add("far-read-dump", {**figures, "peak_mib": mount.peak(), **proxy.counts()})
    trips = (ready[DELAY_LONG][0] - ready[DELAY][0]) / ((DELAY_LONG - DELAY) / 1000)
    bench.add("far-ls", {"ready_s": ready[DELAY][0], "round_trips": round(trips, 1), "requests": ready[DELAY][1]})


def far_small(bench, servers, root):
    """`cp -a` of ten thousand small files off the mount far away."""
    small = bench.place.work / "small"
    pick_small(parked(root, "source", 1), small)
    bench.backup(small)
    forget(bench)
    with through_proxy(bench, servers, delayed(DELAY)) as proxy, bench.mounted() as mount:
        at = mount.begin(small, root)
        proxy.counts()
        size = sum(path.lstat().st_size for path in small.rglob("*")) / MIB
        figures = meter.copy_tree(["cp", "-a", f"{at}/.", bench.place.target], bench.place.target, size, READ_LIMIT)
        rate = round(SMALL_FILES / figures["wall_s"], 1)
        bench.add("far-copy", {**figures, "files_per_s": rate, "peak_mib": mount.peak(), **proxy.counts()})


def pick_small(source, target):
    """Copies the first ten thousand small files of a tree, in the order of their names."""
    count = 0
    for at, directories, names in os.walk(source):
        directories.sort()
        for name in sorted(names):
            path = Path(at, name)
            if path.is_symlink() or path.stat().st_size > SMALL_BYTES_MAX:
                continue
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            count += 1
            if count == SMALL_FILES:
                return
    raise Failure(f"{source}: only {count} small files")


def faults(bench, servers, path, root):
    """A backup in small packs and restores of it until 2,000 requests were sent, of which 2 % failed; everything comes
    back, and nothing is shown but counts."""
    rules = [{"request": "*", "fault": fault, "chance": 0.02 / len(FAULTS)} for fault in FAULTS]
    shown, retries, begun = [], 0, time.monotonic()
    total = {"requests": 0, "harmed": 0}
    plain = bench.tool.argv

    def said():
        nonlocal retries
        for line in bench.place.log.read_text().splitlines():
            counted = re.search(r"requests: .* (\d+) retries", line)
            retries += int(counted[1]) if counted else 0
            shown.extend([] if counted or not line.strip() else [line])

    bench.tool.argv = lambda *words: plain("--stats", "requests", *words)
    try:
        with through_proxy(bench, servers, *rules) as proxy:
            bench.env["BYGONE_PACK_SIZE"] = str(FAULTY_PACK_MIB)
            bench.backup(path)
            said()
            while total["requests"] < FAULTY_REQUESTS:
                forget(bench)
                bench.restore("restore-faults", path, live(root, "dump"))
                said()
                total = {figure: total[figure] + count for figure, count in proxy.counts().items()}
    finally:
        del bench.tool.argv
    bench.add("faults", {**total, "retries": retries, "shown": len(shown),
                         "wall_s": round(time.monotonic() - begun, 3), **({"lines": shown[:3]} if shown else {})})
