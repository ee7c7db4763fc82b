//! Every way to read a file gives the bytes of its source.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, SeekFrom, seek};

use crate::support::generate::noise;
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

    let direct = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECT, Mode::empty()).unwrap();
    let direct = File::from(direct);
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
