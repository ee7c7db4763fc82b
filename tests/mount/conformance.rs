//! Whatever a program may ask of a read-only file system: the right bytes, or the error that POSIX names.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::{
    Access, Advice, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, StatVfsMountFlags,
    Timespec, Timestamps, XattrFlags, copy_file_range, fadvise, openat, seek, sendfile,
};
use rustix::io::Errno;

use crate::support::attach::{Attached, run};
use crate::support::compare::assert_same;
use crate::support::generate::{self, noise, text};
use crate::support::mount::open_direct;
use crate::support::sandbox::Sandbox;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Numbers that come out the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound.max(1)
    }
}

/// A file as it is and as the mount shows it.
struct Pair {
    bytes: Vec<u8>,
    original: File,
    path: PathBuf,
}

impl Pair {
    /// Any offset, most of them odd ones near something: the start, the end, an edge of pages or segments.
    fn offset(&self, random: &mut Random) -> usize {
        let size = self.bytes.len();
        let near = match random.below(4) {
            0 => 0,
            1 => size,
            2 => random.below(size + 1) / (128 * KIB) * (128 * KIB),
            _ => random.below(size + 1) / 4096 * 4096,
        };
        (near + random.below(600)).saturating_sub(random.below(600))
    }

    /// What a read at `offset` of up to `len` bytes may see.
    fn expected(&self, offset: usize, len: usize) -> &[u8] {
        let from = offset.min(self.bytes.len());
        &self.bytes[from..(from + len).min(self.bytes.len())]
    }
}

fn length(random: &mut Random) -> usize {
    match random.below(4) {
        0 => 1 + random.below(16),
        1 => 1 + random.below(5000),
        2 => 128 * KIB - 3 + random.below(6),
        _ => 1 + random.below(700 * KIB),
    }
}

/// Reads by `next` until it gives nothing more or `out` is full.
fn fill(out: &mut [u8], mut next: impl FnMut(usize, &mut [u8]) -> usize) -> usize {
    let mut done = 0;
    while done < out.len() {
        match next(done, &mut out[done..]) {
            0 => break,
            count => done += count,
        }
    }
    done
}

const WAYS: usize = 11;

/// One random request to `file`, which is `pair` on the mount.
fn ask(pair: &Pair, file: &File, direct: &File, scratch: &Path, random: &mut Random) -> Result<(), String> {
    let (offset, len, size) = (pair.offset(random), length(random), pair.bytes.len());
    let expected = pair.expected(offset, len);
    let way = random.below(WAYS);
    let (name, got): (_, Vec<u8>) = match way {
        0 => ("pread", {
            let mut out = vec![0; len];
            let count = fill(&mut out, |at, rest| file.read_at(rest, (offset + at) as u64).unwrap());
            out[..count].to_vec()
        }),
        1 => {
            // A short answer is right, if it is right as far as it goes.
            let mut parts = [vec![0; len / 3], vec![0; 1], vec![0; len - len / 3]];
            let mut slices: Vec<_> = parts.iter_mut().map(|part| IoSliceMut::new(part)).collect();
            let count = rustix::io::preadv(file, &mut slices, offset as u64).unwrap();
            let got = parts.concat();
            if count < expected.len().min(4096) || got[..count] != *pair.expected(offset, count) {
                return Err(format!("preadv of {} bytes at {offset} of {size}: {count} bytes", len + 1));
            }
            return Ok(());
        }
        2 | 3 if size > 0 => {
            let options = memmap2::MmapOptions::new();
            // SAFETY: the file lies in a snapshot, which nobody changes; the private map is never made a file.
            let got = unsafe {
                if way == 2 {
                    let mut map = options.map_copy(file).unwrap();
                    let got = map[offset.min(size)..][..expected.len()].to_vec();
                    // A private page may be written, and nobody else sees it.
                    map[offset.min(size - 1)] ^= 0xff;
                    got
                } else {
                    options.map(file).unwrap()[offset.min(size)..][..expected.len()].to_vec()
                }
            };
            ("mmap", got)
        }
        4 | 5 => {
            let out = tempfile::tempfile_in(scratch).unwrap();
            let mut at = offset as u64;
            let mut left = len;
            while left > 0 {
                let count = if way == 4 {
                    sendfile(&out, file, Some(&mut at), left).map_err(|error| format!("sendfile: {error}"))?
                } else {
                    match copy_file_range(file, Some(&mut at), &out, None, left) {
                        // Between file systems not every kernel copies.
                        Err(Errno::XDEV | Errno::OPNOTSUPP) => return Ok(()),
                        copied => copied.map_err(|error| format!("copy_file_range: {error}"))?,
                    }
                };
                if count == 0 {
                    break;
                }
                left -= count;
            }
            let mut got = Vec::new();
            (&out).rewind().unwrap();
            (&out).read_to_end(&mut got).unwrap();
            (if way == 4 { "sendfile" } else { "copy_file_range" }, got)
        }
        6 => {
            for (which, from) in [("data", SeekFrom::Data(offset as u64)), ("hole", SeekFrom::Hole(offset as u64))] {
                let (got, right) = (seek(file, from), seek(&pair.original, from));
                if got != right {
                    return Err(format!("seek to {which} from {offset} of {size}: {got:?}, not {right:?}"));
                }
            }
            return Ok(());
        }
        7 => ("O_DIRECT", {
            let mut out = vec![0; len];
            let count = fill(&mut out, |at, rest| direct.read_at(rest, (offset + at) as u64).unwrap());
            out[..count].to_vec()
        }),
        8 => {
            let advice = [Advice::Random, Advice::Sequential, Advice::WillNeed, Advice::NoReuse, Advice::Normal];
            let len = std::num::NonZeroU64::new(len as u64);
            fadvise(file, offset as u64, len, advice[random.below(advice.len())]).unwrap();
            return Ok(());
        }
        9 => {
            fadvise(file, 0, None, Advice::DontNeed).unwrap();
            return Ok(());
        }
        _ => ("splice", {
            let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let mut out = vec![0; len];
            let count = fill(&mut out, |at, rest| {
                let mut place = (offset + at) as u64;
                let want = rest.len().min(60 * KIB);
                let flags = rustix::pipe::SpliceFlags::empty();
                let count = rustix::pipe::splice(file, Some(&mut place), &to, None, want, flags).unwrap();
                (&File::from(from.try_clone().unwrap())).read_exact(&mut rest[..count]).unwrap();
                count
            });
            out[..count].to_vec()
        }),
    };
    if got == expected {
        return Ok(());
    }
    let at = got.iter().zip(expected).position(|(one, other)| one != other);
    Err(format!(
        "{name} of {len} bytes at {offset} of {size}: {} bytes for {}, different from {at:?}",
        got.len(),
        expected.len()
    ))
}

/// Files of every size that matters, dense, sparse, empty.
fn write_files(sandbox: &Sandbox) -> Vec<String> {
    let mut names = Vec::new();
    let mut write = |name: String, bytes: Vec<u8>| {
        sandbox.write(&name, bytes);
        names.push(name);
    };
    for size in [0, 1, 4095, 4096, 4097, 32 * KIB, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1, 300_001] {
        write(format!("text-{size}"), text(size as u64, size));
        write(format!("noise-{size}"), noise(size as u64, size));
    }
    write("large-text".to_owned(), text(7, 9 * MIB + 5));
    write("large-noise".to_owned(), noise(8, 6 * MIB + 4095));
    write("zeros".to_owned(), vec![0; 3 * MIB + 1]);
    for (name, size, parts) in
        [("hole-at-end", 5 * MIB, vec![(0, MIB)]), ("islands", 20 * MIB + 77, vec![(MIB + 4096, 70_000), (9 * MIB, 1)])]
    {
        let file = File::create(sandbox.source().join(name)).unwrap();
        for (at, len) in parts {
            file.write_all_at(&noise(at as u64, len), at as u64).unwrap();
        }
        file.set_len(size as u64).unwrap();
        names.push(name.to_owned());
    }
    names
}

/// Threads that ask for anything, until each has asked `requests` times.
fn exercise(threads: u64, requests: usize) {
    let sandbox = Sandbox::new();
    let names = write_files(&sandbox);
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let open = |name: &String| Pair {
        bytes: fs::read(sandbox.source().join(name)).unwrap(),
        original: File::open(sandbox.source().join(name)).unwrap(),
        path: mount.latest().join(name),
    };
    let pairs: Vec<Pair> = names.iter().map(open).collect();
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()) << 20;
    let failures = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let (pairs, scratch) = (&pairs, sandbox.path("tmp"));
            move || {
                let mut random = Random(seed.wrapping_mul(2 * thread + 1) | 1);
                let mut done = 0;
                while done < requests {
                    let pair = &pairs[random.below(pairs.len())];
                    let file = File::open(&pair.path).unwrap();
                    assert_eq!(file.metadata().unwrap().size(), pair.bytes.len() as u64);
                    let direct = open_direct(&pair.path);
                    for _ in 0..1 + random.below(12) {
                        ask(pair, &file, &direct, &scratch, &mut random)
                            .map_err(|wrong| format!("{}: {wrong}", pair.path.display()))?;
                        done += 1;
                    }
                }
                Ok::<_, String>(())
            }
        };
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect::<Vec<_>>()
    });
    assert!(failures.is_empty(), "seed {seed}: {}", failures.join("\n"));
    mount.unmount();
}

#[test]
fn any_requests_of_several_threads_get_the_bytes_of_the_source() {
    needs_fuse!();
    exercise(6, 400);
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_a_million_requests_get_the_bytes_of_the_source() {
    needs_fuse!();
    exercise(16, 60_000);
}

#[test]
fn fio_verifies_what_it_wrote_before_the_backup() {
    needs_fuse!();
    needs_program!("fio");
    let sandbox = Sandbox::new();
    let fio = |dir: &Path, more: &[&str]| {
        let mut command = Command::new("fio");
        command.args(["--name=job", "--size=24m", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--numjobs=2"]);
        command.args(["--fallocate=none", "--create_serialize=0", "--filename_format=$jobnum"]).args(more);
        command.arg(format!("--directory={}", dir.display())).current_dir(sandbox.path("tmp"));
        let output = command.output().unwrap();
        (output.status.success(), format!("{}{}", output.stdout.escape_ascii(), output.stderr.escape_ascii()))
    };
    let (wrote, said) = fio(&sandbox.source(), &["--rw=randwrite", "--do_verify=0", "--buffer_compress_percentage=40"]);
    assert!(wrote, "{said}");
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    for (rw, more) in [
        ("read", &["--ioengine=psync"][..]),
        ("randread", &["--ioengine=mmap"]),
        ("randread", &["--ioengine=libaio", "--iodepth=8", "--direct=1"]),
        ("randread", &["--ioengine=pvsync2", "--invalidate=1"]),
    ] {
        let (right, said) = fio(&mount.latest(), &[&[format!("--rw={rw}").as_str()], more].concat());
        assert!(right, "{rw} {more:?}: {said}");
    }
    mount.unmount();
    // fio does look: one wrong byte in a copy, and it says so.
    let wrong = sandbox.path("wrong");
    run("cp", args!["-r", sandbox.source(), wrong]);
    let file = File::options().read(true).write(true).open(wrong.join("1")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 9_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 9_000_000).unwrap();
    assert!(!fio(&wrong, &["--rw=read"]).0, "fio verifies nothing");
}

/// A call that would change something, and what it comes back with.
type Refusal = (&'static str, Errno, rustix::io::Result<()>);

/// Every call that writes, on names that exist and names that do not.
fn refusals(dir: &Path, file: &Path, outside: &Path) -> Vec<Refusal> {
    let new = dir.join("new");
    let sub = dir.join("sub");
    let open = |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from(0o600)).map(drop);
    let read_only = File::open(file).unwrap();
    let writable = File::create(outside.join("writable")).unwrap();
    let fd: BorrowedFd<'_> = read_only.as_fd();
    let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    // SAFETY: takes a path only, which lives as long as the call.
    let truncated = match unsafe { libc::truncate(path(file).as_ptr(), 1) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
    };
    // A socket's path has little room: the directory's own may be longer.
    let at = generate::open_directory(CWD, dir);
    let socket = UnixListener::bind(format!("/proc/self/fd/{}/s", at.as_raw_fd())).map(drop);
    let socket = socket.map_err(|error| Errno::from_io_error(&error).expect("the path is short enough"));
    let no_flags = AtFlags::empty();
    let mode = Mode::from(0o600);
    let mut refused = vec![
        ("open to write", Errno::ROFS, open(file, OFlags::WRONLY)),
        ("open to read and write", Errno::ROFS, open(file, OFlags::RDWR)),
        ("open to append", Errno::ROFS, open(file, OFlags::WRONLY | OFlags::APPEND)),
        ("open to cut", Errno::ROFS, open(file, OFlags::RDONLY | OFlags::TRUNC)),
        ("open to create", Errno::ROFS, open(&new, OFlags::WRONLY | OFlags::CREATE)),
        ("open to create anew", Errno::ROFS, open(&new, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)),
        ("truncate", Errno::ROFS, truncated),
        ("mkdir", Errno::ROFS, rustix::fs::mkdir(&new, mode)),
        ("mknod of a pipe", Errno::ROFS, rustix::fs::mknodat(CWD, &new, FileType::Fifo, mode, 0)),
        ("mknod of a file", Errno::ROFS, rustix::fs::mknodat(CWD, &new, FileType::RegularFile, mode, 0)),
        ("bind of a socket", Errno::ROFS, socket),
        ("symlink", Errno::ROFS, rustix::fs::symlink("target", &new)),
        ("link", Errno::ROFS, rustix::fs::link(file, &new)),
        ("unlink", Errno::ROFS, rustix::fs::unlink(file)),
        ("rename", Errno::ROFS, rustix::fs::rename(file, &new)),
        ("rename that keeps", Errno::ROFS, rustix::fs::renameat_with(CWD, file, CWD, &new, RenameFlags::NOREPLACE)),
        ("exchange", Errno::ROFS, rustix::fs::renameat_with(CWD, file, CWD, &sub, RenameFlags::EXCHANGE)),
        ("rmdir", Errno::ROFS, rustix::fs::rmdir(&sub)),
        ("chmod", Errno::ROFS, rustix::fs::chmod(file, mode)),
        ("chmod of a directory", Errno::ROFS, rustix::fs::chmod(&sub, mode)),
        ("fchmod", Errno::ROFS, rustix::fs::fchmod(fd, mode)),
        ("chown", Errno::ROFS, rustix::fs::chown(file, Some(rustix::process::getuid()), None)),
        (
            "lchown",
            Errno::ROFS,
            rustix::fs::chownat(CWD, file, None, Some(rustix::process::getgid()), AtFlags::SYMLINK_NOFOLLOW),
        ),
        ("fchown", Errno::ROFS, rustix::fs::fchown(fd, Some(rustix::process::getuid()), None)),
        ("utimensat", Errno::ROFS, rustix::fs::utimensat(CWD, file, &times, no_flags)),
        ("futimens", Errno::ROFS, rustix::fs::futimens(fd, &times)),
        ("setxattr", Errno::ROFS, rustix::fs::setxattr(file, "user.new", b"x", XattrFlags::empty())),
        ("lsetxattr", Errno::ROFS, rustix::fs::lsetxattr(file, "user.new", b"x", XattrFlags::empty())),
        ("fsetxattr", Errno::ROFS, rustix::fs::fsetxattr(fd, "user.new", b"x", XattrFlags::empty())),
        ("removexattr", Errno::ROFS, rustix::fs::removexattr(file, "user.kept")),
        ("fremovexattr", Errno::ROFS, rustix::fs::fremovexattr(fd, "user.kept")),
        ("access to write", Errno::ROFS, rustix::fs::access(file, Access::WRITE_OK)),
        ("faccessat to write", Errno::ROFS, rustix::fs::accessat(CWD, file, Access::WRITE_OK, AtFlags::EACCESS)),
        ("access of a directory to write", Errno::ROFS, rustix::fs::access(dir, Access::WRITE_OK)),
        // What is refused because of the descriptor, whatever the file system.
        ("write", Errno::BADF, rustix::io::write(fd, b"x").map(drop)),
        ("pwrite", Errno::BADF, rustix::io::pwrite(fd, b"x", 0).map(drop)),
        ("ftruncate", Errno::INVAL, rustix::fs::ftruncate(fd, 1)),
        ("fallocate", Errno::BADF, rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, 10)),
        ("copy_file_range into it", Errno::BADF, copy_file_range(&writable, None, fd, None, 10).map(drop)),
        ("sendfile into it", Errno::BADF, sendfile(fd, &writable, None, 10).map(drop)),
        ("clone into it", Errno::BADF, rustix::fs::ioctl_ficlone(fd, File::open(file).unwrap())),
    ];
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::mknodat(CWD, &new, FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3));
        refused.push(("mknod of a device", Errno::ROFS, device));
    }
    refused
}

#[test]
fn every_call_that_writes_is_refused_and_harms_nothing() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let file = sandbox.write("dir/file", "content");
    generate::set_xattr(&file, "user.kept", b"value");
    fs::create_dir(sandbox.source().join("dir/sub")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let dir = mount.latest().join("dir");
    let mut wrong = Vec::new();
    for (call, right, got) in refusals(&dir, &dir.join("file"), &sandbox.path("tmp")) {
        if got != Err(right) {
            wrong.push(format!("{call}: {got:?}, not {right:?}"));
        }
    }
    // O_TMPFILE is refused as unknown by file systems that have no such files.
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let tmpfile = rustix::fs::open(&dir, flags, Mode::from(0o600)).map(drop);
    if !matches!(tmpfile, Err(Errno::ROFS | Errno::OPNOTSUPP)) {
        wrong.push(format!("open of a nameless file: {tmpfile:?}"));
    }
    let shown = File::open(dir.join("file")).unwrap();
    let flags = rustix::fs::ioctl_setflags(&shown, rustix::fs::IFlags::IMMUTABLE);
    if !matches!(flags, Err(Errno::ROFS | Errno::NOTTY | Errno::OPNOTSUPP | Errno::PERM)) {
        wrong.push(format!("chattr: {flags:?}"));
    }
    // The directories that no snapshot has.
    for made_up in ["", "snapshots", "ids", "hosts", "tags"] {
        let dir = mount.dir().join(made_up);
        let new = dir.join("new");
        let attempts: [(&str, rustix::io::Result<()>); 5] = [
            ("mkdir", rustix::fs::mkdir(&new, Mode::from(0o700))),
            (
                "create",
                openat(CWD, &new, OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::from(0o600)).map(drop),
            ),
            ("symlink", rustix::fs::symlink("x", &new)),
            ("chmod", rustix::fs::chmod(&dir, Mode::from(0o700))),
            ("setxattr", rustix::fs::setxattr(&dir, "user.new", b"x", XattrFlags::empty())),
        ];
        for (call, got) in attempts {
            if got != Err(Errno::ROFS) {
                wrong.push(format!("{call} in /{made_up}: {got:?}"));
            }
        }
    }
    let removed = rustix::fs::rmdir(mount.dir().join("snapshots/latest")).unwrap_err();
    assert!(matches!(removed, Errno::ROFS | Errno::NOTDIR), "{removed:?}");
    assert_eq!(wrong, Vec::<String>::new());
    let flags = rustix::fs::statvfs(mount.dir()).unwrap().f_flag;
    assert!(flags.contains(StatVfsMountFlags::RDONLY), "statvfs does not say that it is read-only: {flags:?}");
    drop(shown);
    assert_same(&sandbox.source(), &mount.latest());
    mount.unmount();
}

#[test]
fn an_overlay_of_the_mount_passes_the_posix_suite() {
    needs_root!();
    needs_fuse!();
    needs_program!("pjdfstest");
    let sandbox = Sandbox::new();
    generate::contents(&sandbox.source().join("contents"));
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let Some(overlay) = Attached::overlay(&mount.latest(), &sandbox.path("overlay")) else {
        crate::support::skipped("overlayfs is refused here");
        return;
    };
    // What overlays cannot do at all, one over the source itself cannot either.
    let plain = Attached::overlay(&sandbox.source(), &sandbox.path("plain")).unwrap();
    for dir in [overlay.dir(), plain.dir()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let (without, over) = std::thread::scope(|scope| {
        let without = scope.spawn(|| suite(&sandbox, "without", plain.dir()));
        let over = scope.spawn(|| suite(&sandbox, "over", overlay.dir()));
        (without.join().unwrap(), over.join().unwrap())
    });
    let worse: Vec<_> = over.difference(&without).collect();
    eprintln!("{} cases fail on an overlay of the source, {} on one of the mount", without.len(), over.len());
    assert!(worse.is_empty(), "these fail only on an overlay of the mount: {worse:?}");
    drop((overlay, plain));
    mount.unmount();
}

/// Names of the cases that fail in `dir`.
fn suite(sandbox: &Sandbox, name: &str, dir: &Path) -> BTreeSet<String> {
    let configuration = sandbox.path(&format!("{name}.toml"));
    let users = "[features]\n[settings]\nnaptime = 0.01\nallow_remount = false\n\
                 [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    fs::write(&configuration, users).unwrap();
    let output = Command::new("pjdfstest").arg("-c").arg(&configuration).arg("-p").arg(dir).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let passed = said.lines().filter(|line| line.contains("::") && line.trim_end().ends_with(" ok")).count();
    assert!(passed > 200, "{passed} cases of the suite passed in {}: {said}", dir.display());
    let failed = said.lines().filter(|line| line.contains("::") && line.trim_end().ends_with("FAILED"));
    failed.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}
