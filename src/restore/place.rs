//! Directories of the target, reached name by name from the target's root and never through a symbolic link.
//!
//! A [`Place`] remembers its name and its parent, so that it can be opened again at any depth, however long the path,
//! after its descriptor was closed to keep few of them open.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::format::tree::name_is_valid;

const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens the directory `name` of `parent`. A symbolic link is an error, wherever it points.
pub(super) fn open_directory(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    open_directory_with(parent, name, ResolveFlags::empty())
}

/// As [`open_directory`], but does not cross into another file system, bind mounts included.
pub(super) fn open_directory_here(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    open_directory_with(parent, name, ResolveFlags::NO_XDEV)
}

fn open_directory_with(parent: impl AsFd, name: &[u8], more: ResolveFlags) -> io::Result<OwnedFd> {
    if !name_is_valid(name) {
        return Err(Errno::INVAL.into());
    }
    static NO_OPENAT2: AtomicBool = AtomicBool::new(false);
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more;
        match rustix::fs::openat2(&parent, name, OPEN_DIRECTORY, Mode::empty(), resolve) {
            // Old kernels lack the call and old containers forbid it.
            Err(Errno::NOSYS | Errno::PERM) => NO_OPENAT2.store(true, Ordering::Relaxed),
            result => return Ok(result?),
        }
    }
    // One name that is neither `..` nor holds a slash, opened without following it, cannot lead elsewhere either.
    let fd = rustix::fs::openat(&parent, name, OPEN_DIRECTORY, Mode::empty())?;
    if more.contains(ResolveFlags::NO_XDEV) && rustix::fs::fstat(&fd)?.st_dev != rustix::fs::fstat(&parent)?.st_dev {
        return Err(Errno::XDEV.into());
    }
    Ok(fd)
}

/// A directory of the target by where it is. The root has no parent and no name.
pub(super) struct Place {
    parent: Option<Arc<Place>>,
    name: Box<[u8]>,
    /// Its descriptor, while somebody holds it.
    fd: Mutex<Weak<OwnedFd>>,
}

impl Place {
    /// The target itself.
    pub(super) fn root(fd: &Arc<OwnedFd>) -> Arc<Place> {
        Arc::new(Place { parent: None, name: Box::default(), fd: Mutex::new(Arc::downgrade(fd)) })
    }

    /// A target that is not there and will not be made.
    pub(super) fn nowhere() -> Arc<Place> {
        Arc::new(Place { parent: None, name: Box::default(), fd: Mutex::new(Weak::new()) })
    }

    /// The directory `name` in this one.
    pub(super) fn child(self: &Arc<Self>, name: &[u8]) -> Arc<Place> {
        Arc::new(Place { parent: Some(self.clone()), name: name.into(), fd: Mutex::new(Weak::new()) })
    }

    /// Remembers the open descriptor for as long as the caller or others hold it.
    pub(super) fn set_fd(&self, fd: &Arc<OwnedFd>) {
        *self.fd.lock().expect("no panic while held") = Arc::downgrade(fd);
    }

    /// The directory, opened again from the nearest place above that is open.
    pub(super) fn open(&self) -> io::Result<Arc<OwnedFd>> {
        let mut missing: Vec<&Place> = Vec::new();
        let mut at = self;
        let mut fd = loop {
            if let Some(fd) = at.fd.lock().expect("no panic while held").upgrade() {
                break fd;
            }
            missing.push(at);
            at = at.parent.as_deref().ok_or(Errno::BADF)?;
        };
        for place in missing.into_iter().rev() {
            fd = Arc::new(open_directory(&fd, &place.name)?);
        }
        self.set_fd(&fd);
        Ok(fd)
    }

    /// Path below the target, with a leading slash; `/` for the target.
    pub(super) fn path(&self) -> Vec<u8> {
        self.parent.as_ref().map_or_else(|| b"/".to_vec(), |parent| parent.path_of(&self.name))
    }

    /// Path of the entry `name` below the target, with a leading slash.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut names = vec![name];
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(&at.name);
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One after the other: dropping parents within each other would need a stack as deep as the tree.
        let mut parent = self.parent.take();
        while let Some(mut place) = parent.and_then(Arc::into_inner) {
            parent = place.parent.take();
        }
    }
}

/// An open directory that entries are restored into.
pub(super) struct Dir {
    pub(super) place: Arc<Place>,
    pub(super) fd: Arc<OwnedFd>,
    /// This run made it: its names are free until the run takes them.
    pub(super) made: bool,
    /// New entries inherit an access control list from it, which must be taken off them.
    pub(super) inherits: bool,
}

impl Dir {
    /// Path of the entry `name` below the target.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        self.place.path_of(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;

    fn root(path: &std::path::Path) -> Arc<OwnedFd> {
        Arc::new(rustix::fs::openat(CWD, path, OPEN_DIRECTORY, Mode::empty()).unwrap())
    }

    #[test]
    fn a_symbolic_link_is_never_opened_as_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let fd = root(dir.path());
        assert!(open_directory(&fd, b"real").is_ok());
        assert!(open_directory(&fd, b"link").is_err());
        assert!(open_directory(&fd, b"..").is_err());
    }

    #[test]
    fn a_place_is_reopened_at_a_depth_beyond_the_longest_path() {
        let dir = tempfile::tempdir().unwrap();
        let fd = root(dir.path());
        let name = [b'd'; 200];
        let mut place = Place::root(&fd);
        let mut at = fd.clone();
        for _ in 0..100 {
            rustix::fs::mkdirat(&at, &name[..], Mode::RWXU).unwrap();
            at = Arc::new(open_directory(&at, &name).unwrap());
            place = place.child(&name);
        }
        drop(at);
        let again = place.open().unwrap();
        rustix::fs::mkdirat(&again, "bottom", Mode::RWXU).unwrap();
        assert_eq!(place.path_of(b"x").len(), 100 * 201 + 2);
    }

    #[test]
    fn dropping_a_very_deep_place_does_not_exhaust_the_stack() {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::root(&root(dir.path()));
        for _ in 0..1_000_000 {
            place = place.child(b"d");
        }
        drop(place);
    }
}
