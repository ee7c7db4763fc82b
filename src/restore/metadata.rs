//! Gives a restored entry its owner, attributes, mode and times, through a descriptor of exactly that entry.
//!
//! The order is fixed by the kernel: a change of owner clears set-id bits and capabilities, an access control list
//! changes the mode, and everything changes times. Without root, what only root may do is left out and is no error:
//! the owner stays whoever restores, set-id bits of another owner and privileged attributes are not given.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Metadata, Node, Time};

/// A part of an entry's metadata that could not be given: what was being done, and why it failed.
pub(super) type Failure = (&'static str, String);

/// Set-user-id and set-group-id.
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;

/// How owners are given.
pub(super) struct Owners {
    root: bool,
    users: HashMap<u32, u32>,
    groups: HashMap<u32, u32>,
}

impl Owners {
    /// Owners by number, or where `by_name`, by the names that the snapshot has for its numbers.
    pub(super) fn new(snapshot: &Snapshot, by_name: bool) -> Self {
        let mut owners =
            Self { root: rustix::process::geteuid().is_root(), users: HashMap::new(), groups: HashMap::new() };
        if by_name {
            owners.users = local_numbers(&snapshot.users, user_number);
            owners.groups = local_numbers(&snapshot.groups, group_number);
        }
        owners
    }

    /// Whether this process may do everything.
    pub(super) fn is_root(&self) -> bool {
        self.root
    }
}

fn local_numbers(names: &[(u32, String)], number_of: impl Fn(&str) -> Option<u32>) -> HashMap<u32, u32> {
    names.iter().filter_map(|(number, name)| Some((*number, number_of(name)?))).collect()
}

/// Longest entry of the user database that is read.
const RECORD_LEN_MAX: usize = 1 << 20;

fn user_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0 as libc::c_char; 4096];
    loop {
        // SAFETY: all zeros is a valid `passwd`: numbers and null pointers.
        let mut record: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: the pointers are valid for the call and `buffer` is as long as said.
        let code =
            unsafe { libc::getpwnam_r(name.as_ptr(), &mut record, buffer.as_mut_ptr(), buffer.len(), &mut found) };
        if code == libc::ERANGE && buffer.len() < RECORD_LEN_MAX {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        }
        return (code == 0 && !found.is_null()).then_some(record.pw_uid);
    }
}

fn group_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0 as libc::c_char; 4096];
    loop {
        // SAFETY: all zeros is a valid `group`: numbers and null pointers.
        let mut record: libc::group = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: the pointers are valid for the call and `buffer` is as long as said.
        let code =
            unsafe { libc::getgrnam_r(name.as_ptr(), &mut record, buffer.as_mut_ptr(), buffer.len(), &mut found) };
        if code == libc::ERANGE && buffer.len() < RECORD_LEN_MAX {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        }
        return (code == 0 && !found.is_null()).then_some(record.gr_gid);
    }
}

/// The entry whose metadata is set: an open file or directory, or a descriptor that only names an entry of another kind.
pub(super) enum Subject<'a> {
    /// A regular file or directory opened for reading or writing.
    Open(BorrowedFd<'a>),
    /// An entry of another kind, opened with `O_PATH`, and its directory for what needs a name.
    Named { fd: BorrowedFd<'a>, dir: BorrowedFd<'a>, name: &'a [u8] },
}

impl Subject<'_> {
    /// A path that the kernel resolves to exactly this entry.
    fn magic_path(fd: &BorrowedFd<'_>) -> String {
        format!("/proc/self/fd/{}", fd.as_raw_fd())
    }

    fn chown(&self, uid: Option<Uid>, gid: Option<Gid>) -> rustix::io::Result<()> {
        match self {
            Subject::Open(fd) => rustix::fs::fchown(fd, uid, gid),
            Subject::Named { fd, .. } => rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn chmod(&self, mode: Mode) -> rustix::io::Result<()> {
        match self {
            Subject::Open(fd) => rustix::fs::fchmod(fd, mode),
            Subject::Named { fd, dir, name } => match rustix::fs::chmod(Self::magic_path(fd), mode) {
                // Without /proc the name must do; the directory is not writable by others while it is being filled.
                Err(Errno::NOENT) => rustix::fs::chmodat(dir, *name, mode, AtFlags::empty()),
                result => result,
            },
        }
    }

    fn set_xattr(&self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Subject::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Subject::Named { fd, .. } => rustix::fs::setxattr(Self::magic_path(fd), name, value, XattrFlags::empty()),
        }
    }

    fn remove_xattr(&self, name: &[u8]) -> rustix::io::Result<()> {
        match self {
            Subject::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Subject::Named { fd, .. } => rustix::fs::removexattr(Self::magic_path(fd), name),
        }
    }

    fn list_xattrs(&self) -> rustix::io::Result<Vec<u8>> {
        loop {
            let len = match self {
                Subject::Open(fd) => rustix::fs::flistxattr_query(fd)?,
                Subject::Named { fd, .. } => rustix::fs::listxattr_query(Self::magic_path(fd))?,
            };
            if len == 0 {
                return Ok(Vec::new());
            }
            let mut names = vec![0; len];
            let result = match self {
                Subject::Open(fd) => rustix::fs::flistxattr(fd, &mut names[..]),
                Subject::Named { fd, .. } => rustix::fs::listxattr(Self::magic_path(fd), &mut names[..]),
            };
            match result {
                Err(Errno::RANGE) => {}
                result => {
                    names.truncate(result?);
                    return Ok(names);
                }
            }
        }
    }

    /// Whether its extended attributes are those of `node`.
    pub(super) fn has_xattrs_of(&self, node: &Node<'_>) -> bool {
        if matches!(node.kind, Kind::Symlink { .. }) {
            return node.xattrs.is_empty();
        }
        let names = match self.list_xattrs() {
            Err(Errno::NOTSUP) => Vec::new(),
            Err(_) => return false,
            Ok(names) => names,
        };
        let has_more = names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty() && is_removable(name))
            .any(|name| node.xattrs.iter().all(|(stored, _)| stored != name));
        !has_more && node.xattrs.iter().all(|(name, value)| self.xattr_is(name, value))
    }

    fn xattr_is(&self, name: &[u8], value: &[u8]) -> bool {
        let mut found = vec![0; value.len()];
        let len = match self {
            Subject::Open(fd) => rustix::fs::fgetxattr(fd, name, &mut found[..]),
            Subject::Named { fd, .. } => rustix::fs::getxattr(Self::magic_path(fd), name, &mut found[..]),
        };
        // Of no bytes there is only the length to compare, which a longer value answers with its own.
        len.is_ok_and(|len| len == value.len()) && found == value
    }

    fn set_times(&self, times: &Timestamps) -> rustix::io::Result<()> {
        match self {
            Subject::Open(fd) => rustix::fs::futimens(fd, times),
            Subject::Named { dir, name, .. } => rustix::fs::utimensat(dir, *name, times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() }
}

/// What `futimens` takes for `metadata`; the access time is left alone unless it was kept.
fn timestamps(metadata: &Metadata) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access: metadata.atime.map_or(omit, timespec), last_modification: timespec(metadata.mtime) }
}

/// Whether the kernel lets only root set the attribute.
fn is_privileged(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name.starts_with(b"trusted.")
}

/// Whether an attribute that the snapshot does not have is taken off an entry that was there before.
fn is_removable(name: &[u8]) -> bool {
    name != b"security.selinux" && (!name.starts_with(b"system.") || name.starts_with(b"system.posix_acl_"))
}

/// Gives `subject` everything that `node` says. Where `prune`, attributes that the node does not have are taken off.
pub(super) fn apply(subject: &Subject<'_>, node: &Node<'_>, prune: bool, owners: &Owners) -> Vec<Failure> {
    let mut failures = Vec::new();
    let metadata = &node.metadata;
    let mut mode = metadata.mode;
    if let Err(error) = set_owner(subject, metadata, owners, &mut mode) {
        failures.push(("set the owner of", error.to_string()));
    }
    let is_link = matches!(node.kind, Kind::Symlink { .. });
    if prune && !is_link {
        match subject.list_xattrs() {
            Ok(names) => {
                for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_removable(name)) {
                    if node.xattrs.iter().all(|(kept, _)| kept != name)
                        && let Err(error) = subject.remove_xattr(name)
                        && error != Errno::NODATA
                        && (owners.root || !is_privileged(name))
                    {
                        failures.push(("remove an extended attribute of", describe(name, error)));
                    }
                }
            }
            Err(Errno::NOTSUP) => {}
            Err(error) => failures.push(("list extended attributes of", error.to_string())),
        }
    }
    for (name, value) in node.xattrs.iter() {
        if let Err(error) = subject.set_xattr(name, value)
            && (owners.root || !is_privileged(name))
        {
            failures.push(("set an extended attribute of", describe(name, error)));
        }
    }
    if !is_link && let Err(error) = subject.chmod(Mode::from_bits_retain(mode)) {
        failures.push(("set the mode of", error.to_string()));
    }
    if let Err(error) = subject.set_times(&timestamps(metadata)) {
        failures.push(("set the times of", error.to_string()));
    }
    failures
}

fn describe(name: &[u8], error: Errno) -> String {
    format!("{}: {error}", name.escape_ascii())
}

/// Sets owner and group as far as this process may; takes set-id bits out of `mode` that would serve somebody else.
fn set_owner(subject: &Subject<'_>, metadata: &Metadata, owners: &Owners, mode: &mut u32) -> io::Result<()> {
    let uid = *owners.users.get(&metadata.uid).unwrap_or(&metadata.uid);
    let gid = *owners.groups.get(&metadata.gid).unwrap_or(&metadata.gid);
    // The highest number means "leave it" to the kernel and is nobody's.
    let (user, group) = (Some(uid).filter(|uid| *uid != u32::MAX), Some(gid).filter(|gid| *gid != u32::MAX));
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    let result = if user.is_some() && group.is_some() { subject.chown(user, group) } else { Err(Errno::INVAL) };
    if result.is_ok() {
        return Ok(());
    }
    if !owners.root {
        // A user may give a file to the groups it is in.
        if subject.chown(None, group).is_err() {
            *mode &= !SET_GID;
        }
        if rustix::process::geteuid().as_raw() != uid {
            *mode &= !SET_UID;
        }
        return Ok(());
    }
    *mode &= !(SET_UID | SET_GID);
    Ok(result?)
}

/// Takes off the access control lists that an entry has inherited from its directory.
pub(super) fn remove_inherited_acls(directory: impl AsFd) -> io::Result<()> {
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        match rustix::fs::fremovexattr(&directory, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether new entries of `directory` inherit an access control list.
pub(super) fn has_default_acl(directory: impl AsFd) -> bool {
    rustix::fs::fgetxattr_query(directory, "system.posix_acl_default").is_ok_and(|len| len > 0)
}

/// The type that `lstat` reports for entries of this kind.
pub(super) fn file_type(kind: &Kind<'_>) -> FileType {
    match kind {
        Kind::File { .. } => FileType::RegularFile,
        Kind::Directory { .. } => FileType::Directory,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::CharDevice { .. } => FileType::CharacterDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}
