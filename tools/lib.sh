# shellcheck shell=bash
# What the scripts in tools/ share: saying what they do, acting as root, installing what is missing, FUSE.
# Sourced, never run. It changes nothing by itself.

# Administration programs (setcap, mkfs) are not in an ordinary user's PATH on Debian; cargo's own is not in cron's.
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"

# One line on what happens next.
say() { printf '== %s\n' "$*"; }

# One line on what went wrong and what to do about it.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Whether as_root can work without asking anyone anything.
has_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

# Runs a command as root.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# install_missing COMMAND:PACKAGE... installs the packages whose commands are not there.
install_missing() {
    local entry missing=()
    for entry; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    install_packages "${missing[@]}"
}

# install_packages PACKAGE... installs the Debian packages that are not there. No server that comes with one is started.
install_packages() {
    local package missing=() refused=''
    for package; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install the packages that bring: ${missing[*]}"
    has_root || die "please install what is missing: sudo apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    as_root "${apt[@]}" update >/dev/null || say "apt-get update failed; going on with the package lists there are"
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin /usr/sbin/policy-rc.d
        refused=1
    fi
    local status=0
    as_root "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null || status=1
    [ -z "$refused" ] || as_root rm -f /usr/sbin/policy-rc.d
    [ $status = 0 ] || die "apt-get could not install ${missing[*]}"
}

# The project is built with cargo, and a C compiler links it.
need_toolchain() {
    command -v cargo >/dev/null || die "please install a Rust toolchain first: see https://rustup.rs"
    install_missing cc:gcc
    [ -e /usr/include/stdlib.h ] || install_missing no-such-command:libc6-dev
}

# Sets `program` to bygone: the one that BYGONE_BIN names, or else one that is built now.
# shellcheck disable=SC2034
find_program() {
    program=${BYGONE_BIN:-}
    [ -z "$program" ] || return 0
    need_toolchain
    say "building bygone (a few minutes the first time)"
    cargo build --release
    program=${CARGO_TARGET_DIR:-$PWD/target}/release/bygone
}

# Makes /dev/fuse usable for everyone, as Debian's udev rule does; false where that cannot be done.
fuse_ready() {
    if has_root; then
        [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
        [ -c /dev/fuse ] || as_root mknod -m 666 /dev/fuse c 10 229 2>/dev/null || true
        as_root chmod 666 /dev/fuse 2>/dev/null || true
    fi
    [ -c /dev/fuse ] && (: <>/dev/fuse) 2>/dev/null
}

# What to do where fuse_ready is false.
# shellcheck disable=SC2034
fuse_hint="/dev/fuse is missing: run \`sudo modprobe fuse\`; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
