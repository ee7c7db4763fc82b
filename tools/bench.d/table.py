"""Prints the medians of a results file as a Markdown table, and with --goals which of its goals are reached."""

import json
import sys
from pathlib import Path
from statistics import median

import remote
from common import Failure
from programs import BY_NAME, PEERS

TITLES = {"source": "source tree", "dump": "SQL dump", "image": "disk image", "mount": "mount, cold",
          "many": "1,000,000 files, 1,000 snapshots", "huge": "10,000,000 blobs, 1,000 snapshots", "remote": "remote store",
          "nights": "nightly dump"}


class Medians:
    """The medians of a results file: one number for a set, a step, a program and a figure."""

    def __init__(self, lines):
        self.values = {}
        self.versions = {}
        self.errors = []
        for line in lines:
            tool = line["tool"]
            self.versions[tool] = line["version"]
            if "error" in line:
                self.errors.append(f"{line['set']} {tool}, round {line['round']}: {line['error'].splitlines()[0]}")
                continue
            for figure, value in line.items():
                if isinstance(value, (int, float)):
                    self.values.setdefault((line["set"], line["step"], tool, figure), []).append(value)
        self.tools = [name for name in BY_NAME if name in self.versions]

    def get(self, name, step, tool, figure):
        """A median, or None if it was not measured; of peaks, which add up over a run, the largest."""
        values = self.values.get((name, step, tool, figure))
        if not values:
            return None
        return max(values) if figure == "peak_mib" else median(values)

    def cut_short(self, name, step, tool):
        """Whether a read off the mount reached its time limit, so that its rate is that of a part."""
        return False in self.values.get((name, step, tool, "finished"), [])

    def best_peer(self, name, steps, figure, best=min):
        """The best value that any peer reached in any of the steps, and that peer's name."""
        found = [(value, tool) for tool in PEERS for step in steps
                 if (value := self.get(name, step, tool, figure)) is not None]
        return best(found) if found else (None, None)


def read(path, last):
    """The lines of a results file, all or those of its last run."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: not a results file: {error}") from None
    if not lines:
        raise Failure(f"{path}: no results in it")
    return [line for line in lines if line["run"] == lines[-1]["run"]] if last else lines


def number(value):
    """Three digits at most, as a measurement deserves."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


class Row:
    """One row: a main figure, which is compared, and perhaps a second one in brackets."""

    def __init__(self, name, label, step, figure, second=None, more_is_better=False):
        self.name, self.label, self.step, self.figure = name, label, step, figure
        self.second = second or (step, None)
        self.best = max if more_is_better else min

    def cell(self, medians, tool):
        """What a program reached."""
        value = medians.get(self.name, self.step, tool, self.figure)
        step, figure = self.second
        second = medians.get(self.name, step, tool, figure) if figure else None
        mark = "*" if medians.cut_short(self.name, self.step, tool) else ""
        return number(value) + mark + (f" ({number(second)})" if second is not None else "")

    def ratio(self, medians):
        """bygone's figure as a multiple of the best peer's, with that peer's name."""
        own = medians.get(self.name, self.step, "bygone", self.figure)
        peer, who = medians.best_peer(self.name, [self.step], self.figure, self.best)
        return f"{number(own / peer)}x {who}" if own and peer else "–"


def backup_rows(name):
    """The rows of a set that is backed up and restored."""
    rows = [
        Row(name, "first backup, s (cpu s)", "first", "wall_s", ("first", "cpu_s")),
        Row(name, "nothing changed, s (cpu s)", "unchanged", "wall_s", ("unchanged", "cpu_s")),
        Row(name, "next day, s (cpu s)", "next", "wall_s", ("next", "cpu_s")),
        Row(name, "repository after first, MiB", "first", "repo_mib"),
        Row(name, "repository after both, MiB", "next", "repo_mib"),
        Row(name, "restore, s (cpu s)", "restore", "wall_s", ("restore", "cpu_s")),
        Row(name, "restore keeping holes, s (cpu s)", "restore-sparse", "wall_s", ("restore-sparse", "cpu_s")),
        Row(name, "peak memory, first backup (next day), MiB", "first", "peak_mib", ("next", "peak_mib")),
        Row(name, "peak memory, restore, MiB", "restore", "peak_mib"),
        Row(name, "check reading all data, s (cpu s)", "check", "wall_s", ("check", "cpu_s")),
    ]
    return rows if name == "image" else [row for row in rows if row.step != "restore-sparse"]


ROWS = [
    *backup_rows("source"), *backup_rows("dump"), *backup_rows("image"),
    Row("mount", "ready after, s", "mounted", "ready_s"),
    Row("mount", "find with sizes, entries/s (warm)", "find", "entries_per_s", ("find-warm", "entries_per_s"), True),
    Row("mount", "every file of the tree, MiB/s (warm)", "read-files", "mib_per_s", ("read-files-warm", "mib_per_s"),
        True),
    Row("mount", "cp -a of the tree, s", "copy", "wall_s"),
    Row("mount", "cp -a of the tree, mounted without attributes, s", "copy-no-xattrs", "wall_s"),
    Row("mount", "rsync -a of the tree, s", "rsync", "wall_s"),
    Row("mount", "dump in order, MiB/s (warm)", "read-dump", "mib_per_s", ("read-dump-warm", "mib_per_s"), True),
    Row("mount", "image in order, MiB/s", "read-image", "mib_per_s", None, True),
    Row("mount", "dump, random 4 KiB a second (p50, µs)", "random-dump", "iops", ("random-dump", "p50_us"), True),
    Row("mount", "dump, random 4 KiB a second, 8 readers", "random-dump-8", "iops", None, True),
    Row("mount", "image, random 4 KiB a second (p50, µs)", "random-image", "iops", ("random-image", "p50_us"), True),
    Row("mount", "image, random 4 KiB a second outside holes (p50, µs)", "random-image-data", "iops",
        ("random-image-data", "p50_us"), True),
    Row("mount", "peak memory of the daemon, MiB", "mounted", "peak_mib"),
    Row("many", "1,000 small backups, s (peak MiB)", "snapshots", "wall_s", ("snapshots", "peak_mib")),
    Row("many", "first backup, s (peak MiB)", "first", "wall_s", ("first", "peak_mib")),
    Row("many", "nothing changed, s (peak MiB)", "unchanged", "wall_s", ("unchanged", "peak_mib")),
    Row("many", "mount ready without a local index, s (peak MiB)", "mounted-cold-index", "ready_s",
        ("mounted-cold-index", "peak_mib")),
    Row("many", "mount ready with a local index, s (peak MiB)", "mounted-warm-index", "ready_s",
        ("mounted-warm-index", "peak_mib")),
    Row("many", "find on the mount, entries/s (peak MiB)", "find", "entries_per_s", ("find", "peak_mib"), True),
    Row("many", "the program's own find, s (peak MiB)", "find-command", "wall_s", ("find-command", "peak_mib")),
    Row("many", "restore, s (peak MiB)", "restore", "wall_s", ("restore", "peak_mib")),
    Row("huge", "mount ready without a local index, s (peak MiB)", "mounted-cold-index", "ready_s",
        ("mounted-cold-index", "peak_mib")),
    Row("huge", "mount ready with a local index, s (own MiB)", "mounted-warm-index", "ready_s",
        ("mounted-warm-index", "resident_mib")),
    *(Row("nights", f"day {day} adds, MiB", f"day-{day}", "added_mib") for day in range(2, 9)),
    Row("nights", "backup of day 1, s", "day-1", "wall_s"), Row("nights", "backup of day 2, s", "day-2", "wall_s"),
    *(Row("remote", f"{way}, {TITLES[name]}: {text}, s (requests)", f"{way}-{name}-{step}", "wall_s",
          (f"{way}-{name}-{step}", "requests"))
      for way in remote.WAYS for name in remote.DATA
      for text, step in (("first backup", "first"), ("nothing changed", "unchanged"),
                         ("nothing changed, empty cache", "unchanged-empty-cache"))),
    *(Row("remote", f"{TITLES[name]}: restore through a proxy{text}, s", f"restore-{name}-{step}", "wall_s")
      for name in remote.DATA for text, step in (("", "near"), (" that adds 30 ms", "far"))),
    Row("remote", "30 ms away: mount to first ls, s (round trips)", "far-ls", "ready_s", ("far-ls", "round_trips")),
    Row("remote", "30 ms away: dump in order, MiB/s", "far-read-dump", "mib_per_s", None, True),
    Row("remote", "30 ms away: cp -a of 10,000 small files, files/s", "far-copy", "files_per_s", None, True),
    Row("remote", "2 % of requests fail: requests (retries)", "faults", "requests", ("faults", "retries")),
]


def markdown(medians, limits):
    """The table, with or without the file systems that show the limits of mounting."""
    tools = [tool for tool in medians.tools if limits or not BY_NAME[tool].shows_source]
    head = ["", *(f"{tool} {medians.versions[tool]}" for tool in tools), "bygone to the best peer"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in ROWS:
        cells = [row.cell(medians, tool) for tool in tools]
        if any(cell != "–" for cell in cells):
            lines.append("| " + " | ".join([f"{TITLES[row.name]}: {row.label}", *cells, row.ratio(medians)]) + " |")
    if any("*" in line for line in lines):
        lines += ["", "\\* ended at the time limit; the rate is that of the part that was read"]
    busy = [value for key, values in medians.values.items() if key[3] == "others" for value in values]
    if busy and median(busy) > 0.05:
        lines += ["", f"Measured on a busy machine: other programs took {median(busy):.0%} of its processors (median)."]
    return "\n".join(lines)


class Goal:
    """Something the project wants to reach: a figure, and at most or at least how much of what."""

    def __init__(self, text, own, at_most=None, at_least=None, of=None, unit=""):
        self.text, self.own, self.of, self.unit = text, own, of, unit
        self.at_most, self.at_least = at_most, at_least

    def judge(self, medians):
        """The goal's text, what is needed, what was reached, and PASS, FAIL or that it was not measured."""
        limit = self.at_most if self.at_most is not None else self.at_least
        word = "at most" if self.at_most is not None else "at least"
        own = self.own(medians)
        base, who = self.of(medians) if self.of else (1, "")
        needed = f"{word} {limit:.4g}{self.unit}" + (f"x {who or 'the best peer'}" if self.of else "")
        if own is None or not base:
            return self.text, needed, "–", "not measured"
        reached = own / base
        good = reached <= limit if self.at_most is not None else reached >= limit
        shown = f"{reached:.2f}x ({number(own)} to {number(base)})" if self.of else f"{number(reached)}{self.unit}"
        return self.text, needed, shown, "PASS" if good else "FAIL"


def own(name, step, figure):
    """bygone's figure."""
    return lambda medians: medians.get(name, step, "bygone", figure)


def own_worst(name, steps, figure):
    """bygone's largest figure of several steps."""
    def worst(medians):
        values = [medians.get(name, step, "bygone", figure) for step in steps]
        return max((value for value in values if value is not None), default=None)
    return worst


def to_peers(name, text, step, figure, at_most):
    """A goal that compares bygone's figure with the same figure of the best peer."""
    return Goal(f"{TITLES[name]}: {text}", own(name, step, figure), at_most,
                of=lambda medians: medians.best_peer(name, [step], figure))


def of_tool(tool, name, step, figure):
    """Another program's figure."""
    return lambda medians: (medians.get(name, step, tool, figure), tool)


def restic(name, step, figure):
    """restic's figure."""
    return of_tool("restic", name, step, figure)


def limit_goals():
    """What the mount is measured against: a kernel file system on compressed data, and what the protocol allows."""
    for text, step, figure, squashfs, null in (
            ("dump in order", "read-dump", "mib_per_s", 1.5, None),
            ("image in order", "read-image", "mib_per_s", 1.5, None),
            ("find with sizes", "find", "entries_per_s", 1.5, 0.7),
            ("every file of the tree", "read-files", "mib_per_s", 1.5, 0.6),
            ("random 4 KiB of the dump", "random-dump", "iops", 0.8, 0.35),
            ("random 4 KiB of the image", "random-image", "iops", 0.8, 0.35),
            ("find, warm", "find-warm", "entries_per_s", 0.9, None),
            ("every file of the tree, warm", "read-files-warm", "mib_per_s", 0.9, None),
            ("dump in order, warm", "read-dump-warm", "mib_per_s", 0.9, None),
            ("random 4 KiB of the dump, warm", "random-dump-warm", "iops", 0.9, None)):
        for tool, factor in (("squashfs", squashfs), ("null", null)):
            if factor:
                yield Goal(f"mount: {text}", own("mount", step, figure), at_least=factor,
                           of=of_tool(tool, "mount", step, figure))
    for text, step in (("", "copy"), (", mounted without attributes", "copy-no-xattrs")):
        yield Goal(f"mount: cp -a of the tree{text}", own("mount", step, "wall_s"), 0.5,
                   of=of_tool("squashfs", "mount", "copy", "wall_s"))
    yield Goal("mount: cp of the dump, to our own restore", own("mount", "copy-dump", "mib_per_s"), at_least=0.8,
               of=lambda medians: own_restore_rate(medians, "dump"))
    yield Goal("mount: rsync -a of the tree", own("mount", "rsync", "wall_s"), 1.4,
               of=of_tool("tmpfs", "mount", "rsync", "wall_s"))
    yield Goal("mount: random 4 KiB of the dump, 8 readers", own("mount", "random-dump-8", "iops"), at_least=1.8,
               of=of_tool("bygone", "mount", "random-dump", "iops"))


def own_restore_rate(medians, name="source"):
    """MiB a second of bygone's restore of the source tree, or of another set."""
    wall, mib = (medians.get(name, "restore", "bygone", figure) for figure in ("wall_s", "data_mib"))
    return (mib / wall if wall else None), "bygone's restore"


def remote_goals():
    """What a store behind a network may cost."""
    title = TITLES["remote"]
    backups = [f"{way}-{name}" for way in remote.WAYS for name in remote.DATA]
    for step in (f"{backup}-first" for backup in backups):
        text = f"{title}: {step.replace('-', ', ')} backup"
        yield Goal(f"{text}, wall", own("remote", step, "wall_s"), 0.6, of=restic("remote", step, "wall_s"))
        yield Goal(f"{text}, requests", own("remote", step, "requests"), 1, of=restic("remote", step, "requests"))
        yield Goal(f"{text}, requests", own("remote", step, "requests"), 1,
                   of=lambda medians, step=step: (medians.get("remote", step, "bygone", "budget"),
                                                  "(bytes / pack size) x 1.2 + 20"))
    for text, step, most in (("warm cache", "unchanged", 5), ("empty cache", "unchanged-empty-cache", 20)):
        yield Goal(f"{title}: nothing changed, {text}",
                   own_worst("remote", [f"{backup}-{step}" for backup in backups], "requests"), most, unit=" requests")
    yield Goal(f"{title}, 30 ms away: dump in order", own("remote", "far-read-dump", "mib_per_s"),
               at_least=150e6 / (1 << 20), unit=" MiB/s")
    yield Goal(f"{title}, 30 ms away: cp -a of small files", own("remote", "far-copy", "files_per_s"), at_least=2000,
               unit=" files/s")
    yield Goal(f"{title}, 30 ms away: mount to first ls", own("remote", "far-ls", "round_trips"), 5,
               unit=" round trips")
    for name in remote.DATA:
        yield Goal(f"{title}, 30 ms away: restore of the {TITLES[name]}, wall",
                   own("remote", f"restore-{name}-far", "wall_s"), round(1 / 0.7, 3),
                   of=lambda medians, name=name: (medians.get("remote", f"restore-{name}-near", "bygone", "wall_s"),
                                                  "without the delay"))
    yield Goal(f"{title}, 2 % of requests fail: requests", own("remote", "faults", "requests"),
               at_least=remote.FAULTY_REQUESTS)
    yield Goal(f"{title}, 2 % of requests fail: lines shown", own("remote", "faults", "shown"), 0)
    yield Goal(f"{title}: backup, peak memory",
               own_worst("remote", [f"{backup}-{step}" for backup in backups
                                    for step in ("first", "unchanged", "unchanged-empty-cache")], "peak_mib"), 200,
               unit=" MiB")
    yield Goal(f"{title}: restore and mount, peak memory",
               own_worst("remote", ["far-read-dump", "far-copy", "restore-faults",
                                    *(f"restore-{name}-{step}" for name in remote.DATA for step in ("near", "far"))],
                         "peak_mib"), 300, unit=" MiB")


def night_goals():
    """What a night of a dump may cost where only what changed is stored."""
    title = TITLES["nights"]
    added = [own("nights", f"day-{day}", "added_mib") for day in range(2, 9)]

    def together(medians):
        values = [day(medians) for day in added]
        return None if None in values else sum(values)

    yield Goal(f"{title}: the second day adds", added[0], 6, unit=" MiB")
    yield Goal(f"{title}: seven nights add", together, 40, unit=" MiB")
    yield Goal(f"{title}: the second day's backup, wall", own("nights", "day-2", "wall_s"), 1.0,
               of=of_tool("bygone", "nights", "day-1", "wall_s"))
    yield Goal(f"{title}: backup, peak memory", own_worst("nights", [f"day-{day}" for day in range(1, 9)], "peak_mib"),
               200, unit=" MiB")
    yield Goal(f"{title}: the eighth day off the mount, to one stored whole", own("nights", "read-deltas", "mib_per_s"),
               at_least=0.6, of=of_tool("bygone", "nights", "read-whole", "mib_per_s"))
    yield Goal(f"{title}: restore of the eighth day, to one stored whole", own("nights", "restore-deltas", "wall_s"), 1.5,
               of=of_tool("bygone", "nights", "restore-whole", "wall_s"))
    for name, most in (("source", 0.6), ("image", 0.85)):
        yield Goal(f"{TITLES[name]}: the next day adds", grown(name, "bygone"), most,
                   of=lambda medians, name=name: (grown(name, "restic")(medians), "restic"))


def grown(name, tool):
    """By how much the second day's backup made the repository larger, in MiB."""
    def difference(medians):
        both, first = (medians.get(name, step, tool, "repo_mib") for step in ("next", "first"))
        return None if None in (both, first) else both - first
    return difference


def goals():
    """All goals, in the order of a backup's life."""
    for name, wall, size, restore in (("source", 0.7, 0.9, 0.6), ("dump", 0.6, 0.95, 0.6), ("image", 0.4, 1.0, 0.4)):
        title = TITLES[name]
        yield to_peers(name, "first backup, wall", "first", "wall_s", wall)
        yield to_peers(name, "first backup, cpu", "first", "cpu_s", 0.9)
        yield Goal(f"{title}: backup, peak memory", own_worst(name, ("first", "unchanged", "next"), "peak_mib"), 200,
                   unit=" MiB")
        if name == "source":
            yield to_peers(name, "nothing changed, wall", "unchanged", "wall_s", 0.7)
            yield to_peers(name, "next release, wall", "next", "wall_s", 0.7)
        yield to_peers(name, "repository after both", "next", "repo_mib", size)
        yield to_peers(name, "restore, wall", "restore", "wall_s", restore)
        yield Goal(f"{title}: restore, peak memory", own_worst(name, ("restore", "restore-sparse"), "peak_mib"), 300,
                   unit=" MiB")
    for text, step, figure, factor in (("find with sizes", "find", "entries_per_s", 6),
                                       ("every file of the tree", "read-files", "mib_per_s", 2.5),
                                       ("dump in order", "read-dump", "mib_per_s", 2.5),
                                       ("random 4 KiB of the dump", "random-dump", "iops", 20),
                                       ("random 4 KiB of the image, outside holes", "random-image-data", "iops", 20)):
        yield Goal(f"mount, cold: {text}", own("mount", step, figure), at_least=factor,
                   of=restic("mount", step, figure))
    yield Goal("mount, cold: every file of the tree, to our own restore", own("mount", "read-files", "mib_per_s"),
               at_least=0.3, of=own_restore_rate)
    yield from night_goals()
    yield from limit_goals()
    many = TITLES["many"]
    for text, *steps in (("backup", "snapshots", "first", "unchanged"),
                         ("mount and find on it", "mounted-cold-index", "mounted-warm-index", "find"),
                         ("the program's own find", "find-command"), ("restore", "restore")):
        yield Goal(f"{many}: {text}, peak memory", own_worst("many", steps, "peak_mib"), 300, unit=" MiB")
    huge = TITLES["huge"]
    yield Goal(f"{huge}: mount ready with a local index", own("huge", "mounted-warm-index", "ready_s"), 0.2, unit=" s")
    yield Goal(f"{huge}: memory of an idle mount", own("huge", "mounted-warm-index", "resident_mib"), 40, unit=" MiB")
    yield Goal(f"{huge}: cpu of an idle mount in 5 s", own("huge", "mounted-warm-index", "idle_cpu_s"), 0, unit=" s")
    yield from remote_goals()
    yield Goal(f"{many}: mount ready with a local index", own("many", "mounted-warm-index", "ready_s"), 1, unit=" s")


def show(args):
    """Prints the table or the goals; with goals, the exit code says whether all that was measured is reached."""
    medians = Medians(read(args.file, args.last))
    code = 0
    if args.goals:
        print("| goal | needed | reached | |\n|---|---|---|---|")
        for verdict in (goal.judge(medians) for goal in goals()):
            print("| " + " | ".join(verdict) + " |")
            code |= verdict[-1] == "FAIL"
    else:
        print(markdown(medians, args.limits))
    for error in medians.errors:
        print(f"not measured: {error}", file=sys.stderr)
    return int(code)


def add_arguments(parser):
    """The arguments of `bench table`."""
    parser.add_argument("file", type=Path, help="a results file of `bench run`")
    parser.add_argument("--goals", "--bars", action="store_true",
                        help="which of the project's goals are reached; exit 1 if one is not")
    parser.add_argument("--limits", action="store_true", help="also the file systems that have every answer ready")
    parser.add_argument("--last", action="store_true", help="only the last run in the file, not the medians of all")
