//! An open directory of the source: its names in order, and its entries opened through it.
//!
//! Holding the open directory instead of its path is what keeps a reader in the tree that the walk saw, at any depth.
//! A directory of a million entries costs its names and eight bytes each; nothing is asked about an entry here.

use crate::format::tree::name_is_valid;
use crate::source::metadata::{EntryKind, Stat, XattrOwner, link_target, xattrs};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, CWD, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::time::Duration;

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    /// Open for reading its names, not only for passing through.
    readable: bool,
}

/// A file of the source, opened to be read.
#[derive(Debug)]
pub struct OpenFile {
    /// The file; its offset may be anywhere.
    pub file: File,
    /// What it was when it was opened.
    pub stat: Stat,
    /// Bytes to read.
    pub size: u64,
}

impl OpenFile {
    /// Whether the file is not any more what it was when it was opened, so that what was read may be a mixture of old and
    /// new. A volume cannot tell.
    pub fn has_changed(&self) -> io::Result<bool> {
        if let EntryKind::Volume { .. } = self.stat.kind {
            return Ok(false);
        }
        let (then, now) = (&self.stat, Stat::of(&self.file)?);
        let times = |stat: &Stat| (stat.metadata.mtime, stat.metadata.ctime);
        Ok(then.kind != now.kind || times(then) != times(&now))
    }

    /// The extended attributes as [`crate::format::tree::Xattrs`] stores them; what cannot be read goes to `failed`.
    pub fn xattrs(&self, failed: impl FnMut(io::Error)) -> Vec<u8> {
        xattrs(XattrOwner::Open(self.file.as_fd()), failed)
    }
}

/// No read of a backup waits for a writer of a pipe, takes a terminal, or leaves a trace.
const FILE: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

impl Directory {
    /// Opens the root directory to pass through.
    pub(super) fn root() -> rustix::io::Result<Self> {
        Self::pass(CWD, c"/")
    }

    /// Opens the directory `name` to list its names.
    pub(super) fn list(&self, name: &CStr) -> rustix::io::Result<Self> {
        let fd = open_without_trace(self.fd.as_fd(), name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
        Ok(Self { fd, readable: true })
    }

    /// Opens the directory `name` to pass through, which needs no permission on it and mounts nothing. Whether it is a
    /// directory is for the caller to see.
    pub(super) fn pass(parent: impl AsFd, name: &CStr) -> rustix::io::Result<Self> {
        let fd = fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, readable: false })
    }

    /// Whether its names can be listed.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// What the directory itself is.
    pub(super) fn stat(&self) -> rustix::io::Result<Stat> {
        Stat::of(&self.fd)
    }

    /// Its names in order, all that could be read, and the error that ended the reading if one did.
    pub(super) fn names(&self, buffer: &mut Vec<u8>) -> (Names, Option<Errno>) {
        let mut names = Names::default();
        let mut error = None;
        let mut entries = RawDir::new(&self.fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) if name_is_valid(entry.file_name().to_bytes()) => {
                    names.push(entry.file_name(), entry.file_type() == FileType::Directory);
                }
                // A name with a slash or too long a one: only a broken file system has it.
                Ok(_) => error = Some(Errno::ILSEQ),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    error = Some(errno);
                    break;
                }
            }
        }
        names.sort();
        (names, error)
    }

    /// Opens the regular file `name` that the walk saw as `seen`, or the block device that it is or leads to.
    pub(super) fn open_file(&self, name: &CStr, seen: &Stat) -> io::Result<OpenFile> {
        let follow = matches!(seen.kind, EntryKind::Volume { .. });
        let flags = if follow { FILE } else { FILE | OFlags::NOFOLLOW };
        let fd = open_without_trace(self.fd.as_fd(), name, flags)?;
        let mut stat = Stat::of(&fd)?;
        let size = match (seen.kind, stat.kind) {
            (EntryKind::File { .. }, EntryKind::File { size }) if stat.is_same_inode(&seen.metadata) => size,
            (EntryKind::Volume { rdev: seen, .. }, EntryKind::BlockDevice { rdev }) if seen == rdev => {
                let size = fs::seek(&fd, SeekFrom::End(0))?;
                stat.kind = EntryKind::Volume { size, rdev };
                size
            }
            _ => return Err(io::Error::other("it was replaced by another file meanwhile")),
        };
        Ok(OpenFile { file: fd.into(), stat, size })
    }

    /// Where the symbolic link `name` points, verbatim.
    pub(super) fn link_target(&self, name: &CStr) -> io::Result<Vec<u8>> {
        link_target(&self.fd, name)
    }

    /// The extended attributes of the entry `name`, or of the directory itself if `name` is empty.
    pub(super) fn xattrs(&self, name: &CStr, failed: impl FnMut(io::Error)) -> Vec<u8> {
        let owner = match (name.is_empty(), self.readable) {
            (false, _) => XattrOwner::In(self.fd.as_fd(), name),
            (true, true) => XattrOwner::Open(self.fd.as_fd()),
            (true, false) => XattrOwner::In(self.fd.as_fd(), c"."),
        };
        xattrs(owner, failed)
    }

    /// The first `len_max` bytes of the regular file `name`.
    pub(super) fn read_start(&self, name: &CStr, len_max: usize) -> io::Result<Vec<u8>> {
        let stat = Stat::at(&self.fd, name)?;
        let file = self.open_file(name, &stat)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file.file, len_max as u64), &mut bytes)?;
        Ok(bytes)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How often, and how long apart, a file is tried again that another process holds a lease on (a file server, mostly).
const LEASE_TRIES: u32 = 100;
const LEASE_PAUSE: Duration = Duration::from_millis(50);

/// Opens for reading without changing the access time where that is allowed.
fn open_without_trace(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut access_time = OFlags::NOATIME;
    let mut tries = 0;
    loop {
        match fs::openat(parent, name, flags | access_time, Mode::empty()) {
            // Only the owner and root may ask for it.
            Err(Errno::PERM) if !access_time.is_empty() => access_time = OFlags::empty(),
            Err(Errno::AGAIN) if tries < LEASE_TRIES => {
                tries += 1;
                std::thread::sleep(LEASE_PAUSE);
            }
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The names of a directory in the order of their bytes, each once.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The names, each with its NUL.
    bytes: Vec<u8>,
    /// Of each: where it starts (shifted by 16), whether it is likely a directory's (bit 8), its length without the NUL.
    index: Vec<u64>,
}

impl Names {
    /// Appends a name, out of order until [`Names::sort`]; whether it is a directory's is a hint.
    pub(super) fn push(&mut self, name: &CStr, is_directory: bool) {
        let start = self.bytes.len() as u64;
        self.index.push(start << 16 | u64::from(is_directory) << 8 | name.to_bytes().len() as u64);
        self.bytes.extend_from_slice(name.to_bytes_with_nul());
    }

    pub(super) fn sort(&mut self) {
        let bytes = &self.bytes;
        let mut keyed: Vec<_> = self.index.iter().map(|&entry| (Self::sort_key(bytes, entry), entry)).collect();
        keyed.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| Self::slice(bytes, a.1).cmp(Self::slice(bytes, b.1))));
        // A directory that changes while it is read may give a name twice.
        keyed.dedup_by(|a, b| a.0 == b.0 && Self::slice(bytes, a.1) == Self::slice(bytes, b.1));
        self.index.clear();
        self.index.extend(keyed.iter().map(|&(_, entry)| entry));
        self.index.shrink_to_fit();
        self.bytes.shrink_to_fit();
    }

    /// The first 16 bytes as a number, which decides most comparisons without a look at the name. A name has no NUL, so
    /// that a shorter one comes first as it should.
    fn sort_key(bytes: &[u8], entry: u64) -> u128 {
        let mut key = [0; 16];
        let name = Self::slice(bytes, entry);
        let len = name.len().min(key.len());
        key[..len].copy_from_slice(&name[..len]);
        u128::from_be_bytes(key)
    }

    fn slice(bytes: &[u8], entry: u64) -> &[u8] {
        let start = (entry >> 16) as usize;
        &bytes[start..start + (entry & 0xff) as usize]
    }

    /// The name at `position` and whether it is likely a directory's.
    pub(super) fn at(&self, position: usize) -> Option<(&CStr, bool)> {
        let entry = *self.index.get(position)?;
        let start = (entry >> 16) as usize;
        let name = &self.bytes[start..=start + (entry & 0xff) as usize];
        Some((CStr::from_bytes_with_nul(name).expect("pushed as a C string"), entry >> 8 & 1 == 1))
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.index.binary_search_by_key(&name, |&entry| Self::slice(&self.bytes, entry)).is_ok()
    }

    /// Drops the names that `keep` refuses.
    pub(super) fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        self.index.retain(|&entry| keep(Self::slice(&self.bytes, entry)));
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn names_are_sorted_by_their_bytes_and_kept_once() {
        let long = "same-first-sixteen-bytes";
        let mut expected: Vec<String> = ["", "-", "0", "a", "é", "\u{1}"].map(|end| format!("{long}{end}")).into();
        expected.extend(["a", "a!", "ab", "a-very-long-name", "a-very-long-nam", "B", "~", "é"].map(String::from));
        let mut names = Names::default();
        for name in expected.iter().chain(expected.iter().rev()) {
            names.push(&CString::new(name.as_str()).unwrap(), name == "B");
        }
        names.sort();
        expected.sort();
        let sorted: Vec<_> = (0..names.len()).map(|i| names.at(i).unwrap().0.to_str().unwrap()).collect();
        assert_eq!(sorted, expected);
        assert_eq!(names.at(0), Some((c"B", true)));
        assert_eq!(names.at(names.len()), None);
        assert!(names.contains(b"~") && !names.contains(b"a-"));
        names.retain(|name| name == b"~");
        assert_eq!((names.len(), names.at(0)), (1, Some((c"~", false))));
    }
}
