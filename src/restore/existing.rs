//! What is at an entry's name already: whether it stays, is compared or is replaced, and which names are surplus.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::metadata::{Subject, file_type};
use super::place::open_directory;
use super::{Overwrite, place::Dir};
use crate::format::tree::{Kind, Node, Time};

/// Entries with several names that are kept at most; more of them are made anew.
const KEPT_MAX: usize = 1 << 21;

/// What is done about an entry that is not a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Its name is free.
    Create,
    /// Something else has its name and makes room.
    Replace,
    /// A file of the same size is there: replaced if its content differs, otherwise only its metadata is set.
    Compare,
    /// The same is there; only metadata is set.
    Refresh,
    /// What is there stays as it is.
    Skip,
}

/// What is at `name` in `dir`, links not followed.
pub(super) fn stat(dir: impl AsFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn type_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn mtime(stat: &Stat) -> Time {
    Time { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 }
}

/// Decides what is done about `node` in `dir`.
pub(super) fn plan(dir: &Dir, node: &Node<'_>, overwrite: Overwrite) -> io::Result<Plan> {
    if dir.made {
        return Ok(Plan::Create);
    }
    let Some(stat) = stat(&dir.fd, node.name)? else { return Ok(Plan::Create) };
    let newer = node.metadata.mtime > mtime(&stat);
    if overwrite == Overwrite::Never || overwrite == Overwrite::IfNewer && !newer {
        return Ok(Plan::Skip);
    }
    // What has several names may be somebody else's under the others.
    let is_shared = stat.st_nlink > 1 && node.metadata.nlink <= 1;
    if type_of(&stat) != file_type(&node.kind) || is_shared {
        return Ok(Plan::Replace);
    }
    Ok(match node.kind {
        Kind::File { size, .. } => {
            if stat.st_size as u64 != size {
                Plan::Replace
            } else if overwrite != Overwrite::IfChanged {
                Plan::Compare
            } else if mtime(&stat) == node.metadata.mtime {
                Plan::Refresh
            } else {
                Plan::Replace
            }
        }
        Kind::Symlink { target } => {
            let same = rustix::fs::readlinkat(&dir.fd, node.name, Vec::new()).is_ok_and(|at| at.as_bytes() == target);
            if same { Plan::Refresh } else { Plan::Replace }
        }
        Kind::BlockDevice { rdev } | Kind::CharDevice { rdev } if stat.st_rdev != rdev => Plan::Replace,
        _ => Plan::Refresh,
    })
}

/// Whether what is there under the name of `node`, which has several, may be kept if its content is right. If it has several
/// names, too, they may be somebody else's: then only if nothing of it has to be changed, and for one entry. `kept` are the
/// device and inode numbers of what was kept so far, of a bounded number.
pub(super) fn may_be_kept(dir: &Dir, node: &Node<'_>, kept: &mut HashSet<(u64, u64)>) -> bool {
    let Ok(Some(stat)) = stat(&dir.fd, node.name) else { return false };
    let metadata = &node.metadata;
    let is_as_stored = || {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(&dir.fd, node.name, flags, Mode::empty()) else { return false };
        let subject = Subject::Named { fd: fd.as_fd(), dir: dir.fd.as_fd(), name: node.name };
        (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (metadata.mode, metadata.uid, metadata.gid)
            && mtime(&stat) == metadata.mtime
            && subject.has_xattrs_of(node)
    };
    stat.st_nlink <= 1 || kept.len() < KEPT_MAX && is_as_stored() && kept.insert((stat.st_dev, stat.st_ino))
}

/// Calls `found` with each name in `directory`, in no order.
fn for_each_name(directory: &OwnedFd, mut found: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found(name);
        }
    }
    Ok(())
}

/// Whether `directory` holds nothing.
pub(super) fn is_empty(directory: &OwnedFd) -> bool {
    Names::read(directory).is_ok_and(|names| names.spans.is_empty())
}

/// Names of a directory in byte order, kept in one piece of memory.
#[derive(Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each name ends, after sorting start and length.
    spans: Vec<(usize, u8)>,
}

impl Names {
    /// The names that `directory` holds.
    pub(super) fn read(directory: &OwnedFd) -> io::Result<Self> {
        let mut names = Self::default();
        // A descriptor of our own, so that the position of the shared one stays.
        let own =
            rustix::fs::openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for_each_name(&own, |name| names.push(name))?;
        let bytes = &names.bytes;
        names.spans.sort_unstable_by_key(|(from, len)| &bytes[*from..*from + usize::from(*len)]);
        Ok(names)
    }

    pub(super) fn push(&mut self, name: &[u8]) {
        // The kernel's names have at most 255 bytes.
        let Ok(len) = u8::try_from(name.len()) else { return };
        self.spans.push((self.bytes.len(), len));
        self.bytes.extend_from_slice(name);
    }

    pub(super) fn get(&self, at: usize) -> Option<&[u8]> {
        let (from, len) = self.spans.get(at)?;
        Some(&self.bytes[*from..*from + usize::from(*len)])
    }
}

/// The names of a directory that its snapshot does not have, found while the snapshot's names go by in order.
pub(super) struct Surplus {
    present: Names,
    at: usize,
    extra: Names,
}

impl Surplus {
    pub(super) fn new(present: Names) -> Self {
        Self { present, at: 0, extra: Names::default() }
    }

    /// Tells that the snapshot has `name`; names come in byte order.
    pub(super) fn keep(&mut self, name: &[u8]) {
        while let Some(present) = self.present.get(self.at).filter(|present| *present <= name) {
            if present != name {
                self.extra.push(present);
            }
            self.at += 1;
        }
    }

    /// The names to remove.
    pub(super) fn finish(mut self) -> Names {
        while let Some(present) = self.present.get(self.at) {
            self.extra.push(present);
            self.at += 1;
        }
        self.extra
    }
}

/// Opens the existing directory `name` of `parent` to restore into.
pub(super) fn open_existing(parent: impl AsFd, name: &[u8], writable: bool) -> io::Result<OwnedFd> {
    match open_directory(&parent, name) {
        Err(error) if writable && Errno::from_io_error(&error) == Some(Errno::ACCESS) => {
            // Our own directory that we may not read: its mode is restored when it is finished.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let named = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", named.as_raw_fd()), Mode::RWXU)?;
            open_directory(&parent, name)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(path: &std::path::Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn surplus_is_what_is_present_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut surplus = Surplus::new(Names::read(&open(dir.path())).unwrap());
        for name in [&b"aa"[..], b"b", b"d"] {
            surplus.keep(name);
        }
        let extra = surplus.finish();
        let extra: Vec<_> = (0..).map_while(|at| extra.get(at)).collect();
        assert_eq!(extra, [b"a", b"c", b"e"]);
    }
}
