"""Installs the peers and the tools that measure, on Debian, as root; what is there already is left alone.

restic comes from Debian's development suite, fetched through the mirror that apt is configured for and unpacked
beside the system, never installed into it; rustic and bupstash are built from their published crates; borg goes
into a Python environment of its own. All of them end in /opt/peers/bin.
"""

import os
import shutil

from common import PEERS, Failure, remove, run, say
from data import debian_mirror

PACKAGES = ("build-essential debootstrap e2fsprogs fio fuse3 libacl1-dev libfuse3-dev liblz4-dev libsodium-dev"
            " libssl-dev libxxhash-dev libzstd-dev pkg-config python3-dev python3-venv squashfs-tools xz-utils").split()
BORG = "borgbackup[pyfuse3]==1.4.*"
CRATES = (
    ("rustic", ["rustic-rs", "--version", "0.11.4", "--features", "mount"]),
    ("bupstash", ["bupstash", "--version", "0.12.0"]),
)
RESTIC_AT_LEAST = (0, 19, 1)
BUILD_TIMEOUT = 3 * 3600


def debian_packages(_jobs):
    """The Debian packages that are not installed yet."""
    installed = run(["dpkg-query", "-W", "-f", "${Package} ${Status}\n"])
    have = {line.split()[0] for line in installed.splitlines() if line.endswith(" installed")}
    missing = [name for name in PACKAGES if name not in have]
    if missing:
        say(f"Debian packages: {' '.join(missing)}")
        run(["apt-get", "update"])
        run(["apt-get", "install", "-y", "--no-install-recommends", *missing], timeout=1800,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def restic(_jobs):
    """restic from Debian sid, with an apt state of its own."""
    if (PEERS / "bin/restic").exists():
        return
    say("restic from Debian sid")
    mirror, _ = debian_mirror()
    state = PEERS / "build/sid"
    remove(state)
    for path in ("lists/partial", "cache/archives/partial"):
        (state / path).mkdir(parents=True)
    (state / "sources.list").write_text(
        f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} sid main\n")
    options = {"Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "/nonexistent",
               "Dir::State::lists": state / "lists", "Dir::State::status": "/dev/null", "Dir::Cache": state / "cache",
               "APT::Sandbox::User": "root"}
    apt = ["apt-get", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    run([*apt, "update"])
    run([*apt, "download", "restic"], cwd=state)
    (package,) = state.glob("restic_*.deb")
    run(["dpkg", "-x", package, state / "unpacked"])
    shutil.copy2(state / "unpacked/usr/bin/restic", PEERS / "bin/restic")
    remove(state)
    version = run([PEERS / "bin/restic", "version"]).split()[1]
    if tuple(map(int, version.split("."))) < RESTIC_AT_LEAST:
        raise Failure(f"restic {version} is too old; {'.'.join(map(str, RESTIC_AT_LEAST))} or newer is needed")


def borg(_jobs):
    """borg with its mount, in an environment of its own."""
    if (PEERS / "bin/borg").exists():
        return
    say("borg")
    run(["/usr/bin/python3", "-m", "venv", "--clear", PEERS / "borg"])
    run([PEERS / "borg/bin/pip", "install", BORG], timeout=BUILD_TIMEOUT)
    (PEERS / "bin/borg").symlink_to("../borg/bin/borg")


def crates(jobs):
    """rustic and bupstash, compiled; this is what takes long."""
    for binary, words in CRATES:
        if (PEERS / "bin" / binary).exists():
            continue
        if not shutil.which("cargo"):
            raise Failure(f"{binary} has to be compiled and there is no cargo: install a Rust toolchain first")
        say(f"{binary}: compiling (this takes a while)")
        target = PEERS / "build" / binary
        run(["cargo", "install", *words, "--locked", "-j", str(jobs), "--root", PEERS], timeout=BUILD_TIMEOUT,
            env={**os.environ, "CARGO_TARGET_DIR": str(target)})
        remove(target)


def everything(args):
    """Installs what is missing and prints what there is."""
    from programs import PROGRAMS

    (PEERS / "bin").mkdir(parents=True, exist_ok=True)
    for step in (debian_packages, restic, borg, crates):
        step(args.jobs)
    for program in PROGRAMS:
        print(f"{program.name}: {program.version() or 'not there'}")


def add_arguments(parser):
    """The arguments of `bench install`."""
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count(),
                        help="parallel compilations (default %(default)s)")
