//! Our own comparison of two trees: everything that can be seen of them, at any depth.
//!
//! Knows what rsync and tar do not: where the holes of sparse files are, which names share an inode, what lies deeper
//! than a path can be long, and 1 TiB of nothing without reading it. Not compared: inode numbers themselves, ctime,
//! atime, and the link counts of directories.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, SeekFrom};
use rustix::io::Errno;

use super::generate::open_directory;
use super::sandbox::shown;

/// What need not be the same.
#[derive(Clone, Copy, Default)]
pub struct Ignore {
    /// Where the holes are.
    pub holes: bool,
    /// Link counts, where not every name of an inode was backed up.
    pub link_counts: bool,
}

/// Insists that `copy` is the same as `original`.
pub fn assert_same(original: &Path, copy: &Path) {
    assert_same_but(original, copy, Ignore::default());
}

/// Insists that `copy` is the same as `original` but for what `ignore` says.
pub fn assert_same_but(original: &Path, copy: &Path, ignore: Ignore) {
    let found = differences(original, copy, ignore);
    let shown = found[..found.len().min(40)].join("\n");
    assert!(
        found.is_empty(),
        "{} differs from {} in {} points:\n{shown}",
        copy.display(),
        original.display(),
        found.len()
    );
}

/// Every difference between two trees, one line each.
pub fn differences(original: &Path, copy: &Path, ignore: Ignore) -> Vec<String> {
    let mut walk = Walk { ignore, ..Walk::default() };
    let pair = [original, copy].map(|dir| open_directory(CWD, dir));
    walk.entry("", pair.each_ref().map(|dir| handle(dir, OsStr::new("."))));
    walk.directory("", pair);
    walk.found
}

#[derive(Default)]
struct Walk {
    ignore: Ignore,
    /// Inode of the original to that of the copy.
    links: HashMap<(u64, u64), (u64, u64)>,
    found: Vec<String>,
}

/// A path by which `name` of `dir` can be reached however deep it lies.
fn handle(dir: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
}

fn names(dir: &OwnedFd) -> Vec<OsString> {
    let mut names: Vec<OsString> =
        fs::read_dir(handle(dir, OsStr::new("."))).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

impl Walk {
    fn says(&mut self, path: &str, what: impl std::fmt::Display) {
        self.found.push(format!("{}: {what}", if path.is_empty() { "." } else { path }));
    }

    fn directory(&mut self, path: &str, pair: [OwnedFd; 2]) {
        let [original, copy] = pair.each_ref().map(names);
        for (one, other, what) in [(&original, &copy, "missing"), (&copy, &original, "too much")] {
            for name in one {
                if other.binary_search(name).is_err() {
                    self.says(path, format!("{what}: {}", shown(name)));
                }
            }
            let doubles = one.windows(2).filter(|pair| pair[0] == pair[1]).count();
            if doubles > 0 {
                self.says(path, format!("{doubles} names are listed twice"));
            }
        }
        for name in original.iter().filter(|name| copy.binary_search(name).is_ok()) {
            let below = format!("{path}/{}", shown(name));
            if self.entry(&below, pair.each_ref().map(|dir| handle(dir, name))) {
                self.directory(&below, pair.each_ref().map(|dir| open_directory(dir, Path::new(name))));
            }
        }
    }

    /// Compares one entry without what is below it; true if both are directories.
    fn entry(&mut self, path: &str, pair: [PathBuf; 2]) -> bool {
        let [original, copy] = pair.each_ref().map(|path| fs::symlink_metadata(path).unwrap());
        let kinds = [&original, &copy].map(|meta| format!("{:?}", meta.file_type()));
        if kinds[0] != kinds[1] {
            self.says(path, format!("kind {} became {}", kinds[0], kinds[1]));
            return false;
        }
        let kind = original.file_type();
        type Field = (&'static str, fn(&fs::Metadata) -> u64);
        let fields: [Field; 4] = [
            ("mode", |meta| u64::from(meta.mode())),
            ("owner", |meta| u64::from(meta.uid())),
            ("group", |meta| u64::from(meta.gid())),
            ("device number", |meta| meta.rdev()),
        ];
        for (what, field) in fields {
            let (original, copy) = (field(&original), field(&copy));
            if original != copy {
                self.says(path, format!("{what} {original} ({original:o}) became {copy} ({copy:o})"));
            }
        }
        let times = [&original, &copy].map(|meta| (meta.mtime(), meta.mtime_nsec()));
        if times[0] != times[1] {
            self.says(path, format!("mtime {:?} became {:?}", times[0], times[1]));
        }
        self.attributes(path, &pair);
        if kind.is_dir() {
            return true;
        }
        if original.len() != copy.len() {
            self.says(path, format!("length {} became {}", original.len(), copy.len()));
        }
        if original.nlink() != copy.nlink() && !self.ignore.link_counts {
            self.says(path, format!("link count {} became {}", original.nlink(), copy.nlink()));
        }
        if original.nlink() > 1 {
            let inodes = [&original, &copy].map(|meta| (meta.dev(), meta.ino()));
            let known = *self.links.entry(inodes[0]).or_insert(inodes[1]);
            if known != inodes[1] {
                self.says(path, "is a hard link no more");
            }
        }
        if kind.is_symlink() {
            let targets = pair.each_ref().map(|path| fs::read_link(path).unwrap());
            if targets[0] != targets[1] {
                self.says(path, format!("target {:?} became {:?}", targets[0], targets[1]));
            }
        } else if kind.is_file() && original.len() == copy.len() {
            self.content(path, &pair, original.len());
        } else {
            debug_assert!(kind.is_file() || kind.is_fifo() || kind.is_socket() || original.rdev() == copy.rdev());
        }
        false
    }

    fn attributes(&mut self, path: &str, pair: &[PathBuf; 2]) {
        let [original, copy] = pair.each_ref().map(|path| attributes(path));
        if original == copy {
            return;
        }
        for (name, value) in &original {
            match copy.iter().find(|(other, _)| name == other) {
                None => self.says(path, format!("attribute {} is gone", shown(name))),
                Some((_, other)) if value != other => {
                    self.says(path, format!("attribute {} changed", shown(name)));
                }
                Some(_) => {}
            }
        }
        for (name, _) in copy.iter().filter(|(name, _)| original.iter().all(|(other, _)| name != other)) {
            self.says(path, format!("attribute {} is new", shown(name)));
        }
    }

    fn content(&mut self, path: &str, pair: &[PathBuf; 2], len: u64) {
        let files = pair.each_ref().map(File::open);
        let [Ok(original), Ok(copy)] = files else {
            self.says(path, format!("cannot be opened: {files:?}"));
            return;
        };
        let extents = [&original, &copy].map(|file| extents(file, len));
        if extents[0] != extents[1] && !self.ignore.holes {
            self.says(path, format!("data at {:x?} became {:x?}", extents[0], extents[1]));
        }
        // What is a hole in both need not be read; what is data in one of them must be the same in the other.
        for (from, to) in extents.iter().flatten() {
            if let Some(offset) = first_difference(&original, &copy, *from, *to) {
                self.says(path, format!("content differs from byte {offset}"));
                return;
            }
        }
    }
}

/// Names and values of all attributes of `path` itself, sorted.
pub fn attributes(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut list = vec![0; 65_536];
    let len = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => 0,
        Err(e) => panic!("{}: listing attributes: {e}", path.display()),
    };
    let names = list[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let name = OsStr::from_bytes(name);
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..])
                .unwrap_or_else(|e| panic!("{}: attribute {}: {e}", path.display(), shown(name)));
            value.truncate(len);
            (name.to_owned(), value)
        })
        .collect();
    all.sort();
    all
}

/// Where a file has data: offsets of begin and end, in order.
pub fn extents(file: &File, len: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < len {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(Errno::NXIO) => break,
            Err(e) => panic!("SEEK_DATA: {e}"),
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(from)).expect("SEEK_HOLE finds the end of data");
        found.push((from, at.min(len)));
    }
    found
}

fn first_difference(original: &File, copy: &File, from: u64, to: u64) -> Option<u64> {
    let mut buffers = [vec![0; 1 << 18], vec![0; 1 << 18]];
    let mut at = from;
    while at < to {
        let want = (to - at).min(1 << 18) as usize;
        for (file, buffer) in [original, copy].iter().zip(&mut buffers) {
            if let Err(e) = file.read_exact_at(&mut buffer[..want], at) {
                eprintln!("at {at}: {e}");
                return Some(at);
            }
        }
        let [a, b] = buffers.each_ref().map(|buffer| &buffer[..want]);
        if a != b {
            return Some(at + a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0) as u64);
        }
        at += want as u64;
    }
    None
}
