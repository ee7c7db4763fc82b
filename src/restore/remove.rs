//! Removes what is in the place of an entry, or what the snapshot does not have.
//!
//! Removal never follows a symbolic link, never enters another file system, and takes neither protected directories nor
//! what is not selected; the directories above those stay, too. A dry run goes the same way and meets the same errors.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::existing::{Names, is_empty, stat, type_of};
use super::place::{Dir, Place, open_directory, open_directory_here};
use super::planner::{OPEN_EVERY, OPEN_LEVELS};
use super::{Action, Context, Select};

/// What may be removed, and whether it is.
pub(super) struct Removal<'r> {
    pub(super) select: Option<&'r dyn Select>,
    /// Device and inode numbers of directories that are never removed, nor anything above or in them.
    pub(super) protected: &'r [(u64, u64)],
    pub(super) dry_run: bool,
}

/// A directory that is gone through.
struct Level {
    place: Arc<Place>,
    /// Closed in the middle of a deep tree, and opened again.
    fd: Option<Arc<OwnedFd>>,
    names: Names,
    at: usize,
    /// Of these, the ones that have been removed.
    removed: Names,
    /// Something in it is not removed, and so neither is it.
    stays: bool,
}

impl Level {
    fn new(place: Arc<Place>, fd: Arc<OwnedFd>, names: Names) -> Self {
        Self { place, fd: Some(fd), names, at: 0, removed: Names::default(), stays: false }
    }

    fn fd(&mut self) -> io::Result<&Arc<OwnedFd>> {
        if self.fd.is_none() {
            self.fd = Some(self.place.open()?);
        }
        Ok(self.fd.as_ref().expect("just opened"))
    }
}

impl Removal<'_> {
    /// Removes `name` in `dir` with everything below it that may be. Returns whether the name is free now; `removed` is
    /// told what is gone, of a directory that is gone as a whole only that.
    pub(super) fn remove(&self, dir: &Dir, name: &[u8], mut removed: impl FnMut(Vec<u8>)) -> io::Result<bool> {
        let mut names = Names::default();
        names.push(name);
        let mut levels = vec![Level::new(dir.place.clone(), dir.fd.clone(), names)];
        loop {
            let level = levels.last_mut().expect("the first one ends the loop");
            let place = level.place.clone();
            let fd = level.fd()?.clone();
            if let Some(name) = level.names.get(level.at) {
                level.at += 1;
                let Some(stat) = stat(&fd, name)? else { continue };
                let is_directory = type_of(&stat) == FileType::Directory;
                if self.select.is_some_and(|select| !select.select(&place.path_of(name), is_directory).entry) {
                    level.stays = true;
                } else if is_directory {
                    let below = self.enter(&place, &fd, name)?;
                    levels.push(below);
                    if let Some(above) = (levels.len() - 1).checked_sub(OPEN_LEVELS)
                        && above % OPEN_EVERY != 0
                    {
                        levels[above].fd = None;
                    }
                } else {
                    self.unlink(&fd, name, AtFlags::empty())?;
                    level.removed.push(name);
                }
                continue;
            }
            let done = levels.pop().expect("it was just looked at");
            let above = levels.last_mut();
            if done.stays || above.is_none() {
                (0..).map_while(|at| done.removed.get(at)).for_each(|name| removed(done.place.path_of(name)));
            }
            let Some(above) = above else { return Ok(!done.stays) };
            above.stays |= done.stays;
            if !done.stays {
                let fd = above.fd()?.clone();
                let name = above.names.get(above.at - 1).expect("it was entered by this name");
                self.unlink(&fd, name, AtFlags::REMOVEDIR)?;
                above.removed.push(name);
            }
        }
    }

    fn unlink(&self, dir: &OwnedFd, name: &[u8], flags: AtFlags) -> io::Result<()> {
        if self.dry_run {
            return Ok(());
        }
        match rustix::fs::unlinkat(dir, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn enter(&self, place: &Arc<Place>, parent: &OwnedFd, name: &[u8]) -> io::Result<Level> {
        let fd = open_directory_here(parent, name).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::XDEV) => io::Error::other("another file system is mounted there"),
            _ => error,
        })?;
        let stat = rustix::fs::fstat(&fd)?;
        if self.protected.contains(&(stat.st_dev, stat.st_ino)) {
            return Err(io::Error::other("it holds the repository"));
        }
        let names = Names::read(&fd)?;
        let (place, fd) = (place.child(name), Arc::new(fd));
        place.set_fd(&fd);
        Ok(Level::new(place, fd, names))
    }
}

impl Context<'_> {
    fn removal(&self, dry_run: bool) -> Removal<'_> {
        Removal { select: self.options.select, protected: &self.options.protected, dry_run }
    }

    /// Removes the names `extra` of `dir`, which the snapshot does not have.
    pub(super) fn remove_surplus(&self, dir: &Dir, extra: &Names) {
        let removal = self.removal(self.options.dry_run);
        for name in (0..).map_while(|at| extra.get(at)) {
            let removed = removal.remove(dir, name, |path| self.count(Action::Deleted, 0, || path));
            if let Err(error) = removed {
                self.progress.error(&dir.path_of(name), "remove", error);
            }
        }
    }

    /// Makes way for an entry that is to be renamed to `name`, if a directory is there.
    pub(super) fn make_way(&self, dir: &Dir, name: &[u8]) -> io::Result<()> {
        let is_directory = |stat| type_of(&stat) == FileType::Directory;
        if !stat(&dir.fd, name)?.is_some_and(is_directory) {
            return Ok(());
        }
        if !self.options.delete && !is_empty(&open_directory(&dir.fd, name)?) {
            return Err(io::Error::other("a directory that is not empty is in its place (--delete removes it)"));
        }
        // Looked through first: one that cannot go as a whole is not to lose what is in it.
        if !self.removal(true).remove(dir, name, drop)? {
            return Err(io::Error::other("a directory with entries that are not selected is in its place"));
        }
        if !self.options.dry_run && !self.removal(false).remove(dir, name, drop)? {
            return Err(Errno::NOTEMPTY.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Selection;
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    fn open(path: &Path) -> Dir {
        let fd = Arc::new(OwnedFd::from(fs::File::open(path).unwrap()));
        Dir { place: Place::root(&fd), fd, made: false, inherits: false }
    }

    const ALL: Removal<'_> = Removal { select: None, protected: &[], dry_run: false };

    /// Everything but what has this name.
    struct But(&'static str);

    impl Select for But {
        fn select(&self, path: &[u8], is_directory: bool) -> Selection {
            let entry = !path.ends_with(self.0.as_bytes());
            Selection { entry, below: entry && is_directory }
        }
    }

    #[test]
    fn removal_takes_a_deep_tree_and_leaves_what_links_point_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/kept"), "x").unwrap();
        let mut at = dir.path().join("doomed");
        for _ in 0..400 {
            fs::create_dir(&at).unwrap();
            fs::write(at.join("file"), "x").unwrap();
            symlink(dir.path().join("outside"), at.join("link")).unwrap();
            at = at.join("d");
        }
        let mut removed = Vec::new();
        let mut remove = |removal: Removal<'_>| {
            removed.clear();
            removal.remove(&open(dir.path()), b"doomed", |path| removed.push(path)).map(|gone| (gone, removed.len()))
        };
        assert_eq!(remove(Removal { dry_run: true, ..ALL }).unwrap(), (true, 1));
        assert!(dir.path().join("doomed/d/d/file").exists());
        assert_eq!(remove(ALL).unwrap(), (true, 1));
        assert!(!dir.path().join("doomed").exists());
        assert!(dir.path().join("outside/kept").exists());
    }

    #[test]
    fn what_is_not_selected_stays_with_the_directories_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("doomed").join("d/".repeat(400));
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir_all(dir.path().join("doomed/other/below")).unwrap();
        for file in ["doomed/file", "doomed/other/below/file"] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        fs::write(deep.join("kept"), "x").unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        for dry_run in [true, false] {
            let mut removed = Vec::new();
            let removal = Removal { select: Some(&But("/kept")), dry_run, ..ALL };
            assert!(!removal.remove(&open(dir.path()), b"doomed", |path| removed.push(path)).unwrap());
            removed.sort();
            assert_eq!(removed.len(), 3, "{dry_run}");
            assert_eq!(removed[1..], [b"/doomed/file".to_vec(), b"/doomed/other".to_vec()], "{dry_run}");
            assert_eq!(deep.join("file").exists(), dry_run);
        }
        assert!(deep.join("kept").exists() && !dir.path().join("doomed/other").exists());
    }

    #[test]
    fn a_protected_directory_and_all_above_it_survive_removal() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/repository")).unwrap();
        fs::write(dir.path().join("a/b/repository/pack"), "x").unwrap();
        let stat = fs::metadata(dir.path().join("a/b/repository")).unwrap();
        for dry_run in [true, false] {
            let removal = Removal { protected: &[(stat.dev(), stat.ino())], dry_run, ..ALL };
            assert!(removal.remove(&open(dir.path()), b"a", drop).is_err());
        }
        assert!(dir.path().join("a/b/repository/pack").exists());
    }
}
