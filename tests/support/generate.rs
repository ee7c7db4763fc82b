//! A tree with everything a file system can hold, made the same way every time.
//!
//! As an ordinary user it leaves out what only root can make: devices, foreign owners, capabilities, unreadable files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::is_root;

/// Bytes that no compressor shortens, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Text that compresses well, the same for the same seed.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 64);
    for line in seed.. {
        if out.len() >= len {
            break;
        }
        writeln!(out, "{line:>12} INSERT INTO instances VALUES ({}, 'active', NULL);", line.wrapping_mul(7919))
            .unwrap();
    }
    out.truncate(len);
    out
}

/// Makes everything that the running user can make below `dir`.
pub fn everything(dir: &Path) {
    contents(&dir.join("contents"));
    sparse_files(&dir.join("sparse"));
    names(&dir.join("names"));
    kinds(&dir.join("kinds"));
    attributes(&dir.join("attributes"));
    hard_links(&dir.join("links"));
    modes(&dir.join("modes"));
    owners(&dir.join("owners"));
    times(&dir.join("times"));
    set_time(dir, -1, 1);
}

/// Files of every length that is treated differently.
pub fn contents(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for len in [0, 1, 15, 64, 511, 512, 513, 4095, 4096, 4097, 65_535, 131_072, 131_073, 1 << 20, 3_000_000] {
        fs::write(dir.join(format!("noise-{len}")), noise(len as u64, len)).unwrap();
        fs::write(dir.join(format!("text-{len}")), text(len as u64, len)).unwrap();
    }
    fs::write(dir.join("large"), noise(7, 20 << 20)).unwrap();
    fs::write(dir.join("zeros-written"), vec![0; 300_000]).unwrap();
    fs::write(dir.join("same-as-large"), noise(7, 20 << 20)).unwrap();
    fs::create_dir_all(dir.join("empty/empty/empty")).unwrap();
}

/// Files with holes at the beginning, in the middle, at the end, and everywhere.
pub fn sparse_files(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let block = |n: u64| n << 16;
    type Case = (&'static str, u64, &'static [(u64, u64)]);
    let cases: &[Case] = &[
        ("hole-only", block(64), &[]),
        ("hole-first", block(64), &[(32, 32)]),
        ("hole-last", block(64), &[(0, 32)]),
        ("hole-between", block(64), &[(0, 16), (48, 16)]),
        ("many-holes", block(64), &[(1, 1), (3, 1), (5, 1), (7, 1), (9, 1), (20, 4), (40, 1), (63, 1)]),
        ("odd-end", block(64) + 12_345, &[(1, 1)]),
        ("large", block(16 << 10), &[(0, 1), (5000, 1), ((16 << 10) - 1, 1)]),
    ];
    for (name, len, data) in cases {
        let file = File::create(dir.join(name)).unwrap();
        file.set_len(*len).unwrap();
        for (from, count) in *data {
            file.write_all_at(&noise(*from, block(*count) as usize), block(*from)).unwrap();
        }
    }
}

/// A file of 1 TiB with a little data in it; false where the file system cannot hold it.
pub fn terabyte(path: &Path) -> bool {
    let file = File::create(path).unwrap();
    let made = file.set_len(1 << 40).is_ok()
        && [0, 1 << 20, (1 << 39) + (1 << 16), (1 << 40) - (1 << 16)]
            .iter()
            .all(|offset| file.write_all_at(&noise(*offset, 1 << 16), *offset).is_ok());
    if !made {
        fs::remove_file(path).unwrap();
    }
    made
}

/// Names that break programs.
pub fn names(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let every_byte: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    let long = [b'x'; 255];
    let long_umlauts = "ü".repeat(127);
    let cases: Vec<&[u8]> = vec![
        &every_byte,
        &long,
        long_umlauts.as_bytes(),
        b"new\nline",
        b"carriage\rreturn",
        b"tab\tand\x0bvertical",
        b"\x1b]0;title\x07escape",
        b"\x1b[31mred\x1b[0m",
        b"\xff\xfe not utf-8",
        b"\xc3",
        b"quotes'\"`",
        b"back\\slash",
        b" leading and trailing space ",
        b"-rf",
        b"--delete",
        b"*?[a]{b,c}",
        b"$(reboot)",
        b"a:b",
        b"...",
        b".hidden",
        b"~",
        b"#",
        b"!",
        b"latest",
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        "\u{202e}gpj.exe".as_bytes(),
        "日本語".as_bytes(),
    ];
    for (n, name) in cases.iter().enumerate() {
        fs::write(dir.join(OsStr::from_bytes(name)), format!("file {n}")).unwrap();
        let below = dir.join("directories");
        fs::create_dir_all(below.join(OsStr::from_bytes(name))).unwrap();
    }
}

/// All seven kinds, devices only as root.
pub fn kinds(dir: &Path) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("file"), "file").unwrap();
    fs::create_dir(dir.join("directory")).unwrap();
    for (name, target) in
        [("link", "file"), ("link-dangling", "/no/such/thing"), ("link-up", "../.."), ("link-loop", "link-loop")]
    {
        symlink(target, dir.join(name)).unwrap();
    }
    symlink(OsStr::from_bytes(&[b'y'; 4095]), dir.join("link-long")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\n\x1b[0m"), dir.join("link-odd")).unwrap();
    let node = |name: &str, kind: FileType, rdev: u64| {
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), rdev).unwrap();
    };
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    if is_root() {
        node("char-device", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        node("block-device", FileType::BlockDevice, rustix::fs::makedev(259, 1_000_000));
        node("whiteout", FileType::CharacterDevice, 0);
    }
}

/// Extended attributes, ACLs, capabilities: what the file system takes of them.
pub fn attributes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    fs::create_dir(dir.join("directory")).unwrap();
    for name in ["several", "large", "acl", "capability", "trusted"] {
        fs::write(dir.join(name), name).unwrap();
    }
    symlink("several", dir.join("link")).unwrap();
    let several = dir.join("several");
    for n in 0..20 {
        set_xattr(&several, &format!("user.n{n:02}"), &noise(n, n as usize));
    }
    set_xattr(&several, "user.with\nnewline and \u{fc}", b"\0\xff\x1b[0m");
    set_xattr(&dir.join("directory"), "user.on.a.directory", b"yes");
    for len in [65_536, 60_000, 30_000, 3_000, 1_000] {
        if set_xattr(&dir.join("large"), "user.large", &noise(len, len as usize)) {
            break;
        }
    }
    let (owner, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    set_xattr(
        &dir.join("acl"),
        "system.posix_acl_access",
        &acl(&[(6, None), (7, Some(owner + 1)), (4, None), (5, None), (0, None)]),
    );
    let default = acl(&[(7, None), (5, Some(group + 1)), (5, None), (7, None), (5, None)]);
    set_xattr(&dir.join("directory"), "system.posix_acl_default", &default);
    set_xattr(&dir.join("directory"), "system.posix_acl_access", &default);
    if is_root() {
        // Version 2, effective, CAP_NET_RAW and CAP_NET_ADMIN.
        let mut capability = Vec::new();
        for word in [0x0200_0001_u32, 1 << 13 | 1 << 12, 0, 0, 0] {
            capability.extend_from_slice(&word.to_le_bytes());
        }
        set_xattr(&dir.join("capability"), "security.capability", &capability);
        set_xattr(&dir.join("trusted"), "trusted.of.root", b"only");
        set_xattr(&dir.join("link"), "trusted.on.a.link", b"odd but legal");
    }
}

/// Sets an attribute without following links; false if the file system does not take it.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> bool {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).is_ok()
}

/// An access control list as the kernel wants it: owner, named user, group, mask, others with their permissions.
fn acl(entries: &[(u16, Option<u32>); 5]) -> Vec<u8> {
    const TAGS: [u16; 5] = [0x01, 0x02, 0x04, 0x10, 0x20];
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, (permissions, id)) in TAGS.iter().zip(entries) {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&permissions.to_le_bytes());
        out.extend_from_slice(&id.unwrap_or(u32::MAX).to_le_bytes());
    }
    out
}

/// Hard links in one directory, across directories, and of things that are not files.
pub fn hard_links(dir: &Path) {
    fs::create_dir_all(dir.join("a/b/c")).unwrap();
    fs::create_dir_all(dir.join("z")).unwrap();
    fs::write(dir.join("first"), noise(1, 200_000)).unwrap();
    for name in ["second", "a/third", "a/b/c/fourth", "z/fifth"] {
        fs::hard_link(dir.join("first"), dir.join(name)).unwrap();
    }
    fs::write(dir.join("z/empty"), "").unwrap();
    fs::hard_link(dir.join("z/empty"), dir.join("a/also-empty")).unwrap();
    symlink("first", dir.join("link")).unwrap();
    fs::hard_link(dir.join("link"), dir.join("a/link")).unwrap();
    rustix::fs::mknodat(CWD, dir.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::hard_link(dir.join("fifo"), dir.join("z/fifo")).unwrap();
    // The other names of this one are outside what is backed up.
    fs::write(dir.join("z/outside"), "linked from elsewhere").unwrap();
    let elsewhere = dir.ancestors().nth(2).unwrap().join("linked-from-outside");
    fs::hard_link(dir.join("z/outside"), elsewhere).unwrap();
}

/// Every permission bit; what its owner cannot read only as root.
pub fn modes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let all = (0..12).map(|bit| 1 << bit).chain([0, 0o7777, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o444, 0o6711]);
    for mode in all {
        for name in [format!("file-{mode:04o}"), format!("directory-{mode:04o}")] {
            let path = dir.join(&name);
            let needed = if name.starts_with('f') { 0o400 } else { 0o500 };
            if !is_root() && mode & needed != needed {
                continue;
            }
            if name.starts_with('f') {
                fs::write(&path, &name).unwrap();
            } else {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("inside"), &name).unwrap();
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// Owners and groups with and without names; as an ordinary user the own ones.
pub fn owners(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let ids: &[(u32, u32)] = if is_root() {
        &[(0, 0), (1, 1), (65_534, 65_534), (1000, 1001), (123_456, 654_321), (u32::MAX - 1, u32::MAX - 1)]
    } else {
        &[]
    };
    for (uid, gid) in ids {
        let own = |path: &Path| {
            let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
        };
        let path = dir.join(format!("{uid}-{gid}"));
        fs::write(&path, "owned").unwrap();
        own(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
        let path = dir.join(format!("link-{uid}-{gid}"));
        symlink("nowhere", &path).unwrap();
        own(&path);
        let path = dir.join(format!("directory-{uid}-{gid}"));
        fs::create_dir(&path).unwrap();
        own(&path);
    }
}

/// Times from before 1970 to after 2038, with nanoseconds, on every kind of entry.
pub fn times(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let cases = [
        (0, 0),
        (0, 1),
        (-1, 999_999_999),
        (-1, 0),
        (-2_000_000_000, 123_456_789),
        (1, 500),
        (2_147_483_647, 999_999_999),
        (2_147_483_648, 0),
        (4_102_444_800, 1),
        (13_000_000_000, 987_654_321),
    ];
    for (sec, nsec) in cases {
        let path = dir.join(format!("file {sec} {nsec}"));
        fs::write(&path, "x").unwrap();
        set_time(&path, sec, nsec);
        let path = dir.join(format!("link {sec} {nsec}"));
        symlink("x", &path).unwrap();
        set_time(&path, sec, nsec);
        let path = dir.join(format!("directory {sec} {nsec}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        set_time(&path, sec, nsec);
    }
}

/// Sets the modification time of `path` itself, and another access time.
pub fn set_time(path: &Path, sec: i64, nsec: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 1_000_000_000, tv_nsec: 1 },
        last_modification: Timespec { tv_sec: sec, tv_nsec: nsec },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A directory of `count` small entries.
pub fn crowd(dir: &Path, count: usize) {
    fs::create_dir(dir).unwrap();
    let dir = open_directory(CWD, dir);
    for n in 0..count {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, format!("entry-{n:07}"), flags, Mode::from_raw_mode(0o644)).unwrap();
        // Some hold something, so that contents that got mixed up would show.
        if n % 100 == 0 {
            File::from(file).write_all(n.to_string().as_bytes()).unwrap();
        }
    }
}

/// A chain of directories whose path is longer than the kernel takes in one call, with a file at its end.
pub fn depth(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let mut at = open_directory(CWD, dir);
    for n in 0..40 {
        let name = format!("{n:02}-{}", "d".repeat(200));
        rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
        at = open_directory(&at, Path::new(&name));
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&at, "bottom", flags, Mode::from_raw_mode(0o600)).unwrap();
    File::from(file).write_all(b"the bottom of it").unwrap();
}

/// Opens the directory `name` of `dir`.
pub fn open_directory(dir: impl AsFd, name: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap_or_else(|e| panic!("{}: {e}", name.display()))
}
