//! Every way to read a file gives the bytes of its source.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::support::generate::{noise, set_xattr, text};
use crate::support::mount::{Foreground, open_direct, within};
use crate::support::sandbox::Sandbox;

const MIB: u64 = 1 << 20;

/// 40 MiB with data and holes of various lengths, the last one at the end.
fn write_sparse(path: &Path) {
    let file = File::create(path).unwrap();
    for (n, (offset, len)) in
        [(0, 5 * MIB), (9 * MIB + 4096, 70_000), (12 * MIB, 4096), (20 * MIB + 1, 11 * MIB)].into_iter().enumerate()
    {
        file.write_all_at(&noise(n as u64, len as usize), offset).unwrap();
    }
    file.set_len(40 * MIB).unwrap();
}

fn read_ranges(bytes: &[u8], mut read: impl FnMut(u64, &mut [u8]) -> usize, align: usize) {
    let mut at = 12_345_u64;
    for n in 0..200 {
        at = at * 48_271 % 2_147_483_647;
        let from = at as usize % bytes.len() / align * align;
        let len = [1, 511, 4096, 131_072, 600_000][n % 5].max(align) / align * align;
        let mut got = vec![0xee; len];
        let count = read(from as u64, &mut got);
        assert_eq!(count, len.min(bytes.len() - from), "{len} bytes at {from}");
        assert!(got[..count] == bytes[from..from + count], "{len} bytes at {from}");
    }
}

/// Reads until nothing more comes: a read may be short before the end.
fn read_fully(file: &File, offset: u64, out: &mut [u8]) -> usize {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], offset + done as u64).unwrap() {
            0 => break,
            count => done += count,
        }
    }
    done
}

fn data_and_holes(file: impl AsFd, size: u64) -> Vec<u64> {
    let mut edges = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(data) = seek(&file, SeekFrom::Data(at)) else { break };
        at = seek(&file, SeekFrom::Hole(data)).unwrap();
        edges.extend([data, at]);
    }
    edges
}

#[test]
fn every_way_to_read_gives_the_source() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let source = sandbox.source().join("sparse");
    write_sparse(&source);
    let bytes = fs::read(&source).unwrap();
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let path = mount.latest().join("sparse");
    let file = File::open(&path).unwrap();
    read_ranges(&bytes, |at, out| read_fully(&file, at, out), 1);

    let direct = open_direct(&path);
    read_ranges(&bytes, |at, out| read_fully(&direct, at, out), 4096);

    // SAFETY: nothing changes a file of a mounted snapshot.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    assert!(map[..] == bytes[..]);

    let copy = sandbox.path("copy");
    // The kernel copies by itself here, without a buffer of ours.
    io::copy(&mut File::open(&path).unwrap(), &mut File::create(&copy).unwrap()).unwrap();
    assert!(fs::read(&copy).unwrap() == bytes);
    drop((map, file, direct));
    mount.unmount();
}

#[test]
fn holes_are_where_they_were() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let source = sandbox.source().join("sparse");
    write_sparse(&source);
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let path = mount.latest().join("sparse");
    let (original, shown) = (File::open(&source).unwrap(), File::open(&path).unwrap());
    assert_eq!(data_and_holes(&shown, 40 * MIB), data_and_holes(&original, 40 * MIB));
    assert_eq!(seek(&shown, SeekFrom::Data(39 * MIB)), Err(rustix::io::Errno::NXIO));
    let blocks = |file: &File| file.metadata().unwrap().blocks();
    assert!(blocks(&shown).abs_diff(blocks(&original)) <= 16, "{} and {}", blocks(&shown), blocks(&original));
    drop(shown);
    mount.unmount();
}

/// Whether all of a file is in the page cache; does not read it.
fn is_in_page_cache(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    // SAFETY: nothing changes a file of a mounted snapshot.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    let mut pages = vec![0u8; map.len().div_ceil(4096)];
    // SAFETY: the range is the mapping's, and there is a byte for each of its pages.
    let result = unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    pages.iter().all(|page| page & 1 == 1)
}

#[test]
fn small_files_read_in_order_are_there_before_they_are_asked_for() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let name = |n: usize| format!("file-{n:03}");
    for n in 0..300 {
        fs::write(sandbox.source().join(name(n)), noise(n as u64, 5000 + n)).unwrap();
    }
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let at = mount.latest();
    // The kernel is given files that it has met.
    assert_eq!(fs::read_dir(&at).unwrap().count(), 300);
    assert!((0..300).all(|n| !is_in_page_cache(&at.join(name(n)))));
    for n in 0..100 {
        assert!(fs::read(at.join(name(n))).unwrap() == noise(n as u64, 5000 + n), "{}", name(n));
    }
    let ahead = || (100..300).filter(|n| is_in_page_cache(&at.join(name(*n)))).count();
    assert!(within(Duration::from_secs(10), || ahead() >= 8), "only {} files are there", ahead());
    for n in 100..300 {
        assert!(fs::read(at.join(name(n))).unwrap() == noise(n as u64, 5000 + n), "{}", name(n));
    }
    mount.unmount();
}

#[test]
fn a_random_read_of_a_large_file_brings_its_neighbours() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    // Compressible, so that it is stored in small chunks, several of them decoded together.
    let bytes: Vec<u8> = (0..400_000u32).flat_map(|n| format!("{n:07}\n").into_bytes()).collect();
    fs::write(sandbox.source().join("dump.sql"), &bytes).unwrap();
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let file = File::open(mount.latest().join("dump.sql")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, MIB).unwrap();
    assert!(page[..] == bytes[MIB as usize..][..4096]);
    // SAFETY: nothing changes a file of a mounted snapshot.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    let mut pages = vec![0u8; map.len().div_ceil(4096)];
    let mut resident = || {
        // SAFETY: the range is the mapping's, and there is a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    };
    assert!(within(Duration::from_secs(10), || resident() >= 8), "only {} pages", resident());
    assert!(map[..] == bytes[..]);
    drop((map, file));
    mount.unmount();
}

#[test]
fn a_mount_without_attributes_shows_everything_else() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let source = sandbox.write("file", b"with an attribute");
    let has_attribute = set_xattr(&source, "user.kept", b"value");
    sandbox.backup();
    let mut value = [0; 256];
    let mount = sandbox.mount_with("without", args!["--no-xattrs"]);
    let file = mount.latest().join("file");
    assert_eq!(fs::read(&file).unwrap(), b"with an attribute");
    assert_eq!(rustix::fs::listxattr(&file, &mut value[..]), Err(Errno::OPNOTSUPP));
    for (name, error) in [
        ("user.kept", Errno::OPNOTSUPP),
        ("user.bygone.blake3", Errno::OPNOTSUPP),
        ("system.posix_acl_access", Errno::NODATA),
    ] {
        assert_eq!(rustix::fs::getxattr(&file, name, &mut value[..]), Err(error), "{name}");
    }
    sandbox.exits(1, args!["mount", "--stats", mount.dir()]).says("--no-xattrs");
    let with = sandbox.mount("with");
    let file = with.latest().join("file");
    let kept = if has_attribute { Ok(5) } else { Err(Errno::NODATA) };
    assert_eq!(rustix::fs::getxattr(&file, "user.kept", &mut value[..]), kept);
    assert!(rustix::fs::getxattr(&file, "user.bygone.blake3", &mut value[..]).is_ok());
}

#[test]
fn processors_are_kept_awake_while_requests_come_quickly_and_not_longer() {
    needs_fuse!();
    needs_root!();
    const DEVICE: &str = "/dev/cpu_dma_latency";
    if !Path::new(DEVICE).exists() || std::thread::available_parallelism().unwrap().get() == 1 {
        return crate::support::skipped("needs two processors and /dev/cpu_dma_latency");
    }
    let sandbox = Sandbox::new();
    sandbox.write("file", b"asked for again and again");
    sandbox.backup();
    let mount = Foreground::start(&sandbox, &[]);
    let file = sandbox.path("mnt/ids/latest").join(sandbox.source().strip_prefix("/").unwrap()).join("file");
    let fds = format!("/proc/{}/fd", mount.process.id());
    let is_held = || {
        let fds = fs::read_dir(&fds).unwrap().flatten();
        fds.map(|fd| fs::read_link(fd.path())).any(|path| path.is_ok_and(|path| path == Path::new(DEVICE)))
    };
    assert!(!is_held(), "before there is a request");
    // On a machine that is busy requests may not come quickly at once.
    let held = within(Duration::from_secs(30), || {
        (0..1000).any(|_| {
            let _ = rustix::fs::listxattr(&file, &mut [0; 100][..]);
            is_held()
        })
    });
    assert!(held, "not for 1,000 requests in a row");
    assert!(within(Duration::from_secs(30), || !is_held()), "still when there are none");
}

#[test]
fn the_reader_s_processor_is_shared_while_the_other_one_decodes_and_not_longer() {
    needs_fuse!();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    if online.trim() != "0-1" || std::thread::available_parallelism().unwrap().get() != 2 {
        return crate::support::skipped("needs exactly two processors");
    }
    let sandbox = Sandbox::new();
    for n in 0..16 {
        fs::write(sandbox.source().join(format!("{n}")), text(n, 8 * MIB as usize)).unwrap();
    }
    sandbox.backup();
    let mount = Foreground::start(&sandbox, &[]);
    let at = sandbox.path("mnt/ids/latest").join(sandbox.source().strip_prefix("/").unwrap());
    let threads = format!("/proc/{}/task", mount.process.id());
    let allowed = || {
        let threads = fs::read_dir(&threads).unwrap().flatten();
        let session = threads
            .map(|entry| entry.path())
            .find(|path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("fuser")));
        let status = fs::read_to_string(session.expect("the thread that answers").join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap();
        u64::from_str_radix(&line.trim().replace(',', ""), 16).unwrap().count_ones()
    };
    let mut seen = false;
    let shared = within(Duration::from_secs(30), || {
        for n in 0..16 {
            let file = File::open(at.join(format!("{n}"))).unwrap();
            let mut page = [0; 4096];
            for offset in (0..8 * MIB).step_by(4096) {
                file.read_exact_at(&mut page, offset).unwrap();
            }
            seen |= allowed() == 1;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        seen
    });
    assert!(shared, "not once in all that reading");
    let free = within(Duration::from_secs(30), || {
        let _ = rustix::fs::listxattr(&at, &mut [0; 100][..]);
        allowed() == 2
    });
    assert!(free, "still when there is nothing to decode");
}
