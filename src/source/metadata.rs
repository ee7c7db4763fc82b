//! What the kernel says about one entry: its metadata, kind, link target and extended attributes.
//!
//! Everything is asked relative to an open directory or of an open file, never by a path that could lead elsewhere by
//! now. Times and modes are brought into the ranges that the format stores. Nothing here opens or follows an entry.

use crate::format::limits::{TARGET_LEN_MAX, XATTR_VALUE_LEN_MAX, XATTRS_LEN_MAX};
use crate::format::tree::{Metadata, Time, Xattrs};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{self, AtFlags, FileType, StatxFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;

/// What an entry of the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of `size` bytes.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A block device given as a target, to be stored as a file with its content. Its times say nothing about that
    /// content, so it has to be read every time.
    Volume {
        /// Length in bytes.
        size: u64,
        /// Its device number.
        rdev: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice {
        /// Its device number.
        rdev: u64,
    },
    /// A character device.
    CharDevice {
        /// Its device number.
        rdev: u64,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One answer of the kernel about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Owner, permissions, times, identity.
    pub metadata: Metadata,
    /// What it is.
    pub kind: EntryKind,
    /// Blocks of 512 bytes that it takes in the source.
    pub blocks: u64,
}

impl Stat {
    /// Asks about `name` in `directory`; a symbolic link is not followed, an automount not triggered.
    pub fn at(directory: impl AsFd, name: &CStr) -> rustix::io::Result<Self> {
        Self::ask(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    /// Asks about what `name` in `directory` leads to.
    pub fn behind(directory: impl AsFd, name: &CStr) -> rustix::io::Result<Self> {
        Self::ask(directory.as_fd(), name, AtFlags::empty())
    }

    /// Asks about an open file or directory.
    pub fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        Self::ask(file.as_fd(), c"", AtFlags::EMPTY_PATH)
    }

    fn ask(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> rustix::io::Result<Self> {
        match fs::statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME) {
            Ok(stat) => Ok(Self::from_statx(&stat)),
            // Kernels before 4.11 and some sandboxes.
            Err(Errno::NOSYS) => fs::statat(directory, name, flags).map(|stat| Self::from_stat(&stat)),
            Err(error) => Err(error),
        }
    }

    fn from_statx(stat: &fs::Statx) -> Self {
        let time = |t: &fs::StatxTimestamp| time(t.tv_sec, t.tv_nsec);
        let metadata = Metadata {
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            atime: Some(time(&stat.stx_atime)),
            btime: (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(&stat.stx_btime)),
            dev: fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            nlink: stat.stx_nlink,
        };
        let rdev = fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        let kind = kind(FileType::from_raw_mode(u32::from(stat.stx_mode)), stat.stx_size, rdev);
        Self { metadata, kind, blocks: stat.stx_blocks }
    }

    #[allow(clippy::unnecessary_cast)] // The types of these fields differ between architectures.
    fn from_stat(stat: &fs::Stat) -> Self {
        let metadata = Metadata {
            mode: stat.st_mode as u32 & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as u32),
            atime: Some(time(stat.st_atime as i64, stat.st_atime_nsec as u32)),
            btime: None,
            dev: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        };
        let kind = kind(FileType::from_raw_mode(stat.st_mode as u32), stat.st_size as u64, stat.st_rdev as u64);
        Self { metadata, kind, blocks: stat.st_blocks as u64 }
    }

    /// Whether both are about the same inode.
    pub fn is_same_inode(&self, other: &Metadata) -> bool {
        (self.metadata.dev, self.metadata.inode) == (other.dev, other.inode)
    }
}

/// A moment in the range that the format stores, whatever a file system makes up.
fn time(sec: i64, nsec: u32) -> Time {
    Time { sec, nsec: nsec.min(999_999_999) }
}

fn kind(file_type: FileType, size: u64, rdev: u64) -> EntryKind {
    match file_type {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        FileType::BlockDevice => EntryKind::BlockDevice { rdev },
        FileType::CharacterDevice => EntryKind::CharDevice { rdev },
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        // A kernel that knows more types than these does not exist; their content could only be read like a file's.
        FileType::RegularFile | FileType::Unknown => EntryKind::File { size },
    }
}

/// Where the symbolic link `name` in `directory` points, verbatim.
pub(super) fn link_target(directory: impl AsFd, name: &CStr) -> io::Result<Vec<u8>> {
    let target = fs::readlinkat(directory, name, Vec::with_capacity(256))?.into_bytes();
    if target.len() > TARGET_LEN_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    Ok(target)
}

/// Whose extended attributes.
pub(super) enum XattrOwner<'a> {
    /// An open file or directory's (not one opened as a path only).
    Open(BorrowedFd<'a>),
    /// An entry's of an open directory.
    In(BorrowedFd<'a>, &'a CStr),
}

/// Bytes that the list and most values fit in. The kernel allocates as much as it is offered, so a larger first offer
/// would cost every file that has none.
const XATTR_LEN_USUAL: usize = 1024;
/// The longest list that the kernel gives.
const XATTR_LIST_LEN_MAX: usize = 64 << 10;

/// The extended attributes as [`Xattrs`] stores them, empty if there are none: one system call then. What cannot be read
/// is handed to `failed`, the rest is kept.
pub(super) fn xattrs(owner: XattrOwner<'_>, mut failed: impl FnMut(io::Error)) -> Vec<u8> {
    // No system call before Linux 6.13 takes a directory and a name, but the path of an open directory in /proc does.
    let path = match &owner {
        XattrOwner::Open(_) => None,
        XattrOwner::In(directory, name) => {
            let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            path.extend_from_slice(name.to_bytes());
            Some(CString::new(path).expect("a C string's bytes have no NUL"))
        }
    };
    let list = |buffer: &mut [u8]| match (&owner, &path) {
        (XattrOwner::Open(fd), _) => fs::flistxattr(fd, buffer),
        (_, path) => fs::llistxattr(path.as_deref().unwrap_or_default(), buffer),
    };
    let value = |name: &CStr, buffer: &mut [u8]| match (&owner, &path) {
        (XattrOwner::Open(fd), _) => fs::fgetxattr(fd, name, buffer),
        (_, path) => fs::lgetxattr(path.as_deref().unwrap_or_default(), name, buffer),
    };

    let mut usual = [0; XATTR_LEN_USUAL];
    let mut large = Vec::new();
    let names = match read_into(&mut usual, &mut large, XATTR_LIST_LEN_MAX, list) {
        Ok([]) | Err(Errno::OPNOTSUPP) => return Vec::new(),
        Ok(names) => names.to_vec(),
        Err(error) => {
            failed(error.into());
            return Vec::new();
        }
    };
    let mut pairs = Vec::new();
    let mut len = 0;
    for name in names.split_inclusive(|&b| b == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok()) {
        match read_into(&mut usual, &mut large, XATTR_VALUE_LEN_MAX, |buffer| value(name, buffer)) {
            Ok(value) => {
                // With the two lengths, of at most two and three bytes.
                len += name.to_bytes().len() + value.len() + 5;
                if len > XATTRS_LEN_MAX {
                    failed(attribute_error(name, io::Error::other("the attributes together are too long")));
                    break;
                }
                pairs.push((name.to_bytes().to_vec(), value.to_vec()));
            }
            // Removed since it was listed, or listed by a file system that does not hand it out.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => failed(attribute_error(name, error.into())),
        }
    }
    Xattrs::encode(&mut pairs)
}

fn attribute_error(name: &CStr, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("attribute {}: {error}", name.to_string_lossy()))
}

/// Calls `read` with a small buffer and, if that does not suffice, with one of `len_max` bytes.
fn read_into<'a>(
    usual: &'a mut [u8],
    large: &'a mut Vec<u8>,
    len_max: usize,
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<&'a [u8]> {
    match read(usual) {
        Ok(len) => Ok(&usual[..len]),
        Err(Errno::RANGE) => {
            large.resize(len_max, 0);
            read(large).map(|len| &large[..len])
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags, XattrFlags};

    fn open_directory(path: &std::path::Path) -> rustix::fd::OwnedFd {
        fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn all_xattrs(owner: XattrOwner<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let encoded = xattrs(owner, |error| panic!("{error}"));
        // Security modules may label files on their own.
        let pairs = Xattrs::new(&encoded).iter().filter(|(name, _)| !name.starts_with(b"security.selinux"));
        pairs.map(|(n, v)| (n.to_vec(), v.to_vec())).collect()
    }

    #[test]
    fn every_kind_of_entry_is_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::write(at("file"), "12345").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let directory = open_directory(temp.path());
        let kind = |name| Stat::at(&directory, name).unwrap().kind;
        assert_eq!(kind(c"file"), EntryKind::File { size: 5 });
        assert_eq!(kind(c"directory"), EntryKind::Directory);
        assert_eq!(kind(c"link"), EntryKind::Symlink);
        assert_eq!(kind(c"fifo"), EntryKind::Fifo);
        assert_eq!(kind(c"socket"), EntryKind::Socket);
        assert_eq!(Stat::at(&directory, c"missing"), Err(Errno::NOENT));
        assert_eq!(link_target(&directory, c"link").unwrap(), b"nowhere");
        let null = Stat::at(CWD, c"/dev/null").unwrap();
        assert_eq!(null.kind, EntryKind::CharDevice { rdev: fs::makedev(1, 3) });
    }

    #[test]
    fn statx_and_stat_agree() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let by_statx = Stat::of(temp.as_file()).unwrap();
        let by_stat = Stat::from_stat(&fs::fstat(temp.as_file()).unwrap());
        let without_btime = Metadata { btime: None, ..by_statx.metadata };
        assert_eq!(by_stat, Stat { metadata: without_btime, ..by_statx });
    }

    #[test]
    fn impossible_nanoseconds_are_brought_into_range() {
        assert_eq!(time(-1, u32::MAX), Time { sec: -1, nsec: 999_999_999 });
    }

    #[test]
    fn xattrs_are_read_whether_open_or_by_name() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        std::fs::write(&path, "").unwrap();
        let directory = open_directory(temp.path());
        let by_name = || all_xattrs(XattrOwner::In(directory.as_fd(), c"file"));
        assert_eq!(by_name(), []);
        if let Err(error) = fs::setxattr(&path, "user.b", b"two", XattrFlags::empty()) {
            eprintln!("SKIPPED: no user attributes in {}: {error}", temp.path().display());
            return;
        }
        fs::setxattr(&path, "user.a", b"", XattrFlags::empty()).unwrap();
        let expected = [(b"user.a".to_vec(), b"".to_vec()), (b"user.b".to_vec(), b"two".to_vec())];
        assert_eq!(by_name(), expected);
        let file = std::fs::File::open(&path).unwrap();
        assert_eq!(all_xattrs(XattrOwner::Open(file.as_fd())), expected);

        let large: Vec<u8> = (0..XATTR_VALUE_LEN_MAX).map(|i| i as u8).collect();
        match fs::setxattr(&path, "user.large", &large, XattrFlags::empty()) {
            Ok(()) => assert_eq!(by_name()[2].1, large),
            Err(error) => eprintln!("SKIPPED: no attribute of 64 KiB in {}: {error}", temp.path().display()),
        }
    }

    #[test]
    fn a_list_longer_than_usual_is_read_whole() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let mut set = 0;
        for i in 0..40 {
            let name = format!("user.{i:0100}");
            set += usize::from(fs::fsetxattr(temp.as_file(), name.as_str(), b"v", XattrFlags::empty()).is_ok());
        }
        if set * 100 < XATTR_LEN_USUAL {
            eprintln!("SKIPPED: the file system takes only {set} attributes");
            return;
        }
        assert_eq!(all_xattrs(XattrOwner::Open(temp.as_file().as_fd())).len(), set);
    }

    #[test]
    fn a_symlink_has_its_own_xattrs_and_not_its_targets() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link")).unwrap();
        if fs::setxattr(temp.path().join("file"), "user.a", b"1", XattrFlags::empty()).is_err() {
            eprintln!("SKIPPED: no user attributes in {}", temp.path().display());
            return;
        }
        let directory = open_directory(temp.path());
        let link = || all_xattrs(XattrOwner::In(directory.as_fd(), c"link"));
        assert_eq!(link(), []);
        match fs::lsetxattr(temp.path().join("link"), "trusted.l", b"own", XattrFlags::empty()) {
            Ok(()) => assert_eq!(link(), [(b"trusted.l".to_vec(), b"own".to_vec())]),
            Err(error) => eprintln!("SKIPPED: attributes of symbolic links need root: {error}"),
        }
    }
}
