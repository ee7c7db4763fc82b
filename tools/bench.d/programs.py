"""How each program is told to back up, restore, check and mount: command lines only, no measuring.

Everybody runs at defaults, encrypted, with zstd level 3 where there is a choice and no progress display.
"""

import os
from pathlib import Path

from common import program, run

PASSWORD = "correct horse battery staple"
PROJECT = Path(__file__).resolve().parents[2]


class Place:
    """The directories one program works in, all of them removed after it."""

    def __init__(self, work):
        self.work = work
        self.repo, self.cache = work / "repo", work / "cache"
        self.target, self.mnt, self.log = work / "restored", work / "mnt", work / "log"
        for path in (self.cache, self.mnt):
            path.mkdir(parents=True, exist_ok=True)


class Program:
    """What all of them have in common; None as a command line means that the program cannot do that."""

    name = ""
    binary = ""
    foreground = True
    has_daemon = True
    is_peer = True
    # Shows the data themselves: they must stay where they are while it is mounted.
    shows_source = False
    # Options of a mount without extended attributes, if it has such a thing.
    no_xattrs = None

    def path(self):
        """The program's file, or None."""
        return program(self.binary)

    def version(self):
        """Its version, or None if it is not installed."""
        return run([self.path(), "--version"]).split()[1] if self.path() else None

    def env(self, place):
        """Its environment: secrets, repository, and caches of its own."""
        return {**os.environ, "HOME": str(place.cache), "XDG_CACHE_HOME": str(place.cache / "xdg"),
                "XDG_CONFIG_HOME": str(place.cache / "config"), "XDG_DATA_HOME": str(place.cache / "data"),
                **self.own_env(place)}

    def own_env(self, place):
        return {}

    def argv(self, *words):
        return [self.path(), *words]

    def init(self, place):
        """The commands that make an empty repository."""
        return [self.argv("init")]

    def backup(self, place, path, number):
        """Backs up a directory; `number` counts the snapshots of a repository."""
        return self.argv("backup", path)

    def restore(self, place, number, sparse=False):
        """Restores the newest snapshot, whose number is given, into the target; with `sparse` keeps holes."""
        return None

    def check(self, place):
        """Reads and verifies everything."""
        return None

    def find(self, place, pattern):
        """Finds names in all snapshots."""
        return None

    def restored(self, place, path):
        """Where the restored copy of a path lies."""
        return place.target / str(path).lstrip("/")

    def mount(self, place, number):
        """Mounts the newest snapshot, in the foreground unless `foreground` is False."""
        return None

    def unmount(self, place):
        """The program's own way to unmount, or None for umount(8)."""
        return None

    def seen(self, place, path, live):
        """Where a path that was backed up is seen in the mount."""
        return place.mnt / str(path).lstrip("/")


class Bygone(Program):
    name = binary = "bygone"
    foreground = False
    is_peer = False
    no_xattrs = ["--no-xattrs"]

    def path(self):
        named = os.environ.get("BYGONE")
        built = PROJECT / "target/release/bygone"
        return named or (str(built) if built.exists() else None)

    def own_env(self, place):
        return {"BYGONE_REPOSITORY": str(place.repo), "BYGONE_PASSWORD": PASSWORD,
                "BYGONE_CACHE_DIR": str(place.cache / "bygone")}

    def argv(self, *words):
        return [self.path(), "-q", *words]

    def init(self, place):
        return [self.argv("init")]

    def restore(self, place, number, sparse=False):
        return self.argv("restore", "latest", "--target", place.target, *(["--sparse"] if sparse else []))

    def check(self, place):
        return self.argv("check", "--read-data")

    def find(self, place, pattern):
        return self.argv("find", pattern)

    def mount(self, place, number):
        return self.argv("mount", place.mnt)

    def unmount(self, place):
        return self.argv("umount", place.mnt)

    def seen(self, place, path, live):
        return place.mnt / "snapshots/latest" / str(path).lstrip("/")


class Restic(Program):
    name = binary = "restic"

    def version(self):
        return run([self.path(), "version"]).split()[1] if self.path() else None

    def own_env(self, place):
        return {"RESTIC_REPOSITORY": str(place.repo), "RESTIC_PASSWORD": PASSWORD,
                "RESTIC_CACHE_DIR": str(place.cache / "restic")}

    def argv(self, *words):
        return [self.path(), "-q", *words]

    def restore(self, place, number, sparse=False):
        return self.argv("restore", "latest", "--target", place.target, *(["--sparse"] if sparse else []))

    def check(self, place):
        return self.argv("check", "--read-data")

    def find(self, place, pattern):
        return self.argv("find", pattern)

    def mount(self, place, number):
        return self.argv("mount", place.mnt)

    def seen(self, place, path, live):
        return place.mnt / "snapshots/latest" / str(path).lstrip("/")


class Rustic(Program):
    name = binary = "rustic"

    def own_env(self, place):
        return {"RUSTIC_REPOSITORY": str(place.repo), "RUSTIC_PASSWORD": PASSWORD,
                "RUSTIC_CACHE_DIR": str(place.cache / "rustic"), "RUSTIC_NO_PROGRESS": "true"}

    def restore(self, place, number, sparse=False):
        return self.argv("restore", *(["--sparse", "by-content"] if sparse else []), "latest", place.target)

    def check(self, place):
        return self.argv("check", "--read-data")

    def mount(self, place, number):
        return self.argv("mount", place.mnt, "latest")


class Borg(Program):
    name = binary = "borg"

    def own_env(self, place):
        return {"BORG_REPO": str(place.repo), "BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(place.cache / "borg"),
                "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}

    def init(self, place):
        return [self.argv("init", "--encryption", "repokey-blake2")]

    def backup(self, place, path, number):
        return self.argv("create", "--compression", "zstd,3", f"::{number}", path)

    def restore(self, place, number, sparse=False):
        return self.argv("extract", *(["--sparse"] if sparse else []), f"::{number}")

    def check(self, place):
        return self.argv("check", "--verify-data")

    def mount(self, place, number):
        return self.argv("mount", "-f", f"::{number}", place.mnt)


class Bupstash(Program):
    name = binary = "bupstash"

    def version(self):
        return run([self.path(), "--version"]).split("-")[-1].strip() if self.path() else None

    def own_env(self, place):
        return {"BUPSTASH_REPOSITORY": str(place.repo), "BUPSTASH_KEY": str(place.cache / "key"),
                "BUPSTASH_SEND_LOG": str(place.cache / "send-log"),
                "BUPSTASH_QUERY_CACHE": str(place.cache / "query-cache")}

    def init(self, place):
        return [self.argv("init"), self.argv("new-key", "-o", place.cache / "key")]

    def backup(self, place, path, number):
        return self.argv("put", "-q", "--compression", "zstd:3", f"number={number}", path)

    def restore(self, place, number, sparse=False):
        # It always keeps holes, so there is only one way.
        if sparse:
            return None
        return self.argv("restore", "-q", "--into", place.target, f"number={number}")

    def restored(self, place, path):
        return place.target


class Squashfs(Program):
    """No history and no encryption: the kernel's squashfs stands for the limit of reading a compressed tree."""

    name, binary = "squashfs", "mksquashfs"
    foreground = False
    has_daemon = False
    is_peer = False

    def version(self):
        return run([self.path(), "-version"], quiet=True).split()[2] if self.path() else None

    def init(self, place):
        return [["mkdir", place.repo]]

    def backup(self, place, path, number):
        return self.argv(path, place.repo / "image", "-comp", "zstd", "-Xcompression-level", "3", "-b", "128K",
                         "-noappend", "-no-progress", "-quiet")

    def mount(self, place, number):
        return ["mount", "-t", "squashfs", "-o", "loop,ro", place.repo / "image", place.mnt]

    def seen(self, place, path, live):
        return place.mnt / path.relative_to(live)


class Ceiling(Program):
    """No backup at all: a file system that has every answer ready, made of nothing (null) or of the source (pass)."""

    is_peer = False
    shows_source = True

    def __init__(self, name):
        self.name = self.binary = name

    def path(self):
        built = PROJECT / "target/release/examples/ceiling"
        return str(built) if built.exists() else None

    def version(self):
        return "ceiling" if self.path() else None

    def init(self, place):
        return [["mkdir", place.repo]]

    def backup(self, place, path, number):
        return ["true"]

    def mount(self, place, number):
        return [self.path(), self.name, place.live, place.mnt]

    def seen(self, place, path, live):
        return place.mnt / path.relative_to(live)


class Tmpfs(Ceiling):
    """The source in memory, read where it is."""

    foreground = False
    has_daemon = False

    def __init__(self):
        super().__init__("tmpfs")

    def path(self):
        return "/bin/mount"

    def version(self):
        return "source"

    def mount(self, place, number):
        return ["mount", "--rbind", place.live, place.mnt]


CEILINGS = (Ceiling("null"), Ceiling("pass"), Tmpfs())
PROGRAMS = (Bygone(), Restic(), Rustic(), Borg(), Bupstash(), Squashfs(), *CEILINGS)
BY_NAME = {one.name: one for one in PROGRAMS}
PEERS = [one.name for one in PROGRAMS if one.is_peer]
