//! Marks of runs that write. A run leaves one in the local cache, and takes it away when all its packs are in index
//! objects; one that is left over says that the store may hold packs that no index lists.
//!
//! A mark is a locked file, because a lock goes with its process, however that ends. Without a cache there are none.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The mark of a run of this process; stays behind unless it is taken away.
pub(super) struct Mark {
    path: PathBuf,
    _lock: File,
}

impl Mark {
    /// Leaves a mark in `directory`; also returns those that are left over from other runs.
    pub fn leave(directory: &Path) -> io::Result<(Mark, Vec<PathBuf>)> {
        fs::create_dir_all(directory)?;
        let name = crate::key::random::<8>()?;
        let path = directory.join(format!("{:016x}", u64::from_le_bytes(name)));
        let lock = File::create_new(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let mut left = Vec::new();
        for entry in fs::read_dir(directory)? {
            let other = entry?.path();
            let ended = |file: &File| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if other != path && File::open(&other).is_ok_and(|file| ended(&file)) {
                left.push(other);
            }
        }
        Ok((Mark { path, _lock: lock }, left))
    }

    /// Takes the mark away.
    pub fn take_away(self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marks_of_runs_that_have_ended_are_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let (first, none) = Mark::leave(dir.path()).unwrap();
        let (second, while_it_runs) = Mark::leave(dir.path()).unwrap();
        assert_eq!((none.len(), while_it_runs.len()), (0, 0));
        let path = first.path.clone();
        drop(first);
        second.take_away();
        let (third, left) = Mark::leave(dir.path()).unwrap();
        assert_eq!(left, [path]);
        third.take_away();
    }
}
