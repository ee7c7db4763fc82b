"""The data that is backed up: three sets, each on two days.

    src-1/       src-2/        two releases of the Linux source, 84,000 files, 1.2 GiB each
    dump-1.sql   dump-2.sql    an SQL dump of 736 MiB and the next night's
    image-1.raw  image-2.raw   a sparse 4 GiB disk with a small Debian, before and after an installation
    live/                      where `Stage` shows one day of each, so that the tools see both days at the same path
"""

import os
import shutil
import subprocess
from pathlib import Path

import sqldump
from common import DEFAULT_DIR, Failure, remove, run, say, unmount

SETS = ("source", "dump", "image")
PARKED = {"source": "src-{}", "dump": "dump-{}.sql", "image": "image-{}.raw"}
LIVE = {"source": "src", "dump": "dump/nova.sql", "image": "image/disk.raw"}
SOURCE_PACKAGE = "linux-source-6.1"
IMAGE_BYTES = 4 << 30
IMAGE_UUID = "6b79676f-6e65-4000-8000-000000000001"


def debian_mirror():
    """The mirror that apt is configured for, and the code name of the release."""
    lines = run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(REPO_URI)", "Created-By: Packages"])
    for line in lines.splitlines():
        origin, codename, uri = line.split("|")
        if origin == "Debian" and "-" not in codename:
            return uri, codename
    raise Failure("apt knows no Debian mirror: the benchmark's data comes from Debian packages")


def source_versions():
    """The oldest and the newest release of the source package that apt offers."""
    run(["apt-get", "update"])
    lines = run(["apt-cache", "madison", SOURCE_PACKAGE]).splitlines()
    versions = [line.split("|")[1].strip() for line in lines if line.count("|") == 2]
    if len(set(versions)) < 2:
        raise Failure(f"apt offers {versions or 'no version'} of {SOURCE_PACKAGE}; two are needed: add the security"
                      " suite to apt's sources")
    return versions[-1], versions[0]


def make_source(root, work):
    """Unpacks two releases of the Linux source."""
    if all((root / f"src-{day}").exists() for day in (1, 2)):
        return
    for day, version in enumerate(source_versions(), start=1):
        target = root / f"src-{day}"
        if target.exists():
            continue
        say(f"source tree, day {day}: {SOURCE_PACKAGE} {version}")
        run(["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{SOURCE_PACKAGE}={version}"], cwd=work)
        (package,) = work.glob(f"{SOURCE_PACKAGE}_*.deb")
        fresh = work / "src"
        fresh.mkdir()
        run(["sh", "-ec", 'dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/src/$2.tar.xz |'
             ' tar -xJ --no-same-owner --strip-components=1 -C "$3"', "sh", package, SOURCE_PACKAGE, fresh])
        package.unlink()
        fresh.rename(target)
        (root / f"src-{day}.version").write_text(version + "\n")


def make_dump(root, work):
    """Writes the SQL dump of both days."""
    if all((root / f"dump-{day}.sql").exists() for day in (1, 2)):
        return
    say("SQL dump, both days")
    sqldump.write(work / "1.sql", work / "2.sql")
    for day in (1, 2):
        (work / f"{day}.sql").rename(root / f"dump-{day}.sql")


def make_image(root, work):
    """Builds the disk image with a minimal Debian, then installs python3 and vim in a copy of it."""
    mirror, codename = debian_mirror()
    if not (root / "image-1.raw").exists():
        say(f"disk image, day 1: minimal Debian {codename}")
        tree, image = work / "tree", work / "1.raw"
        run(["debootstrap", "--variant=minbase", codename, tree, mirror], timeout=900)
        run(["truncate", "-s", IMAGE_BYTES, image])
        run(["mkfs.ext4", "-q", "-F", "-U", IMAGE_UUID, "-E", f"hash_seed={IMAGE_UUID}", "-d", tree, image])
        remove(tree)
        punch(image)
        image.rename(root / "image-1.raw")
    if not (root / "image-2.raw").exists():
        say("disk image, day 2: apt install python3 vim")
        image, at = work / "2.raw", work / "mnt"
        at.mkdir()
        run(["cp", "--sparse=always", root / "image-1.raw", image])
        run(["mount", "-o", "loop", image, at])
        try:
            shutil.copy("/etc/resolv.conf", at / "etc/resolv.conf")
            clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["apt-get", "update"], ["apt-get", "install", "-y", "python3", "vim"]):
                run(["chroot", at, *command], timeout=900, env=clean)
        finally:
            unmount(at)
        punch(image)
        image.rename(root / "image-2.raw")


def punch(image):
    """Turns blocks of zeros into holes, as a thin-provisioned disk has them."""
    run(["fallocate", "--dig-holes", image])


def make(root, only=None):
    """Makes what is missing and prints what there is."""
    root.mkdir(parents=True, exist_ok=True)
    work = root / f"tmp-{os.getpid()}"
    work.mkdir()
    try:
        for name, build in (("source", make_source), ("dump", make_dump), ("image", make_image)):
            if not only or name in only:
                build(root, work)
    finally:
        unmount(work / "mnt")
        remove(work)
    describe(root)


def describe(root):
    """Prints size, space taken and version of every set that is there."""
    for name in SETS:
        for day in (1, 2):
            path = parked(root, name, day)
            if not path.exists():
                print(f"{path}: missing")
                continue
            real, taken = (int(run(["du", "-s", *flags, path]).split()[0]) >> 20 for flags in (["-b"], ["-B1"]))
            version = Path(f"{path}.version")
            note = f", {SOURCE_PACKAGE} {version.read_text().strip()}" if version.exists() else ""
            files = f", {sum(len(f) for _, _, f in os.walk(path))} files" if path.is_dir() else ""
            print(f"{path}: {real} MiB, {taken} MiB on disk{files}{note}")


def parked(root, name, day):
    """Where a set of a day lies while it is not shown."""
    return root / PARKED[name].format(day)


def live(root, name):
    """The path at which the tools see a set, the same on both days."""
    return root / "live" / LIVE[name]


def source_of(root, name):
    """What the tools are told to back up: the tree, or the directory that holds the one file."""
    path = live(root, name)
    return path if name == "source" else path.parent


class Stage:
    """Shows one day of a set at its live path by a bind mount: nothing is copied, times and inodes stay."""

    def __init__(self, root, name):
        self.root, self.name, self.path = root, name, live(root, name)

    def show(self, day):
        """Replaces what is shown by this day's data."""
        origin = parked(self.root, self.name, day)
        if not origin.exists():
            raise Failure(f"{origin}: no such data; run `tools/bench data {self.root}` first")
        self.close()
        if origin.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        subprocess.run(["mount", "--bind", origin, self.path], check=True, timeout=30)
        return source_of(self.root, self.name)

    def close(self):
        """Shows nothing again."""
        unmount(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def add_arguments(parser):
    """The arguments of `bench data`."""
    parser.add_argument("dir", nargs="?", type=Path, default=DEFAULT_DIR, help="where to put it (default %(default)s)")
    parser.add_argument("--only", action="append", choices=SETS, help="only this set; may be repeated")
