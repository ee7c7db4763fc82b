//! The local directory of index files: who may write there, which names exist, what is left over.
//!
//! Whoever holds the lock is the only writer; readers need no lock, since files appear whole under their final name and
//! an unlinked file stays readable for whoever has it open. Everything here may be deleted at any moment.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

/// Extension of the name of an index file.
const EXTENSION: &str = "index";
/// Time between two attempts to get a lock.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// The directory of index files of one repository.
pub(super) struct Directory {
    path: PathBuf,
}

/// The right to write in the directory; ends when dropped.
pub(super) struct Lock {
    _file: File,
}

/// A file that is being written.
pub(super) struct NewFile {
    pub(super) file: File,
    path: PathBuf,
    keep: bool,
}

impl Directory {
    /// The directory below `cache`, made if need be.
    pub(super) fn open(cache: &Path) -> io::Result<Self> {
        let path = Self::path_in(cache);
        make_private(&path)?;
        Ok(Self { path })
    }

    /// Whether it was made before.
    pub(super) fn is_there(cache: &Path) -> bool {
        Self::path_in(cache).is_dir()
    }

    fn path_in(cache: &Path) -> PathBuf {
        cache.join("index")
    }

    /// Waits up to `patience` for the right to write; `None` if another process has it or there can be none.
    pub(super) fn lock(&self, patience: Duration) -> Option<Lock> {
        let path = self.path.join("lock");
        let mut file = OpenOptions::new();
        // A named pipe in its place must not make us wait.
        file.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
        let file = file.open(path).ok()?;
        let start = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(Lock { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if start.elapsed() < patience => {
                    std::thread::sleep(RETRY_AFTER);
                }
                Err(_) => return None,
            }
        }
    }

    /// Paths of all index files; empty if they cannot be listed.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return Vec::new();
        };
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION)).collect()
    }

    /// Begins a file under a name of its own.
    pub(super) fn create(&self, _lock: &Lock) -> io::Result<NewFile> {
        create_in(&self.path)
    }

    /// Makes a finished file durable and visible; returns its path.
    pub(super) fn publish(&self, mut new: NewFile, _lock: &Lock) -> io::Result<PathBuf> {
        new.file.sync_data()?;
        let path = new.path.with_extension(EXTENSION);
        fs::rename(&new.path, &path)?;
        new.keep = true;
        Ok(path)
    }

    /// Removes whatever is not in `keep`: files that were merged into others, leftovers, strangers.
    pub(super) fn clean(&self, keep: &HashSet<&Path>, _lock: &Lock) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            if !keep.contains(path.as_path()) && entry.file_name() != "lock" {
                // A leftover that cannot be removed does no harm; a directory is nothing of ours.
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl NewFile {
    /// A file that nobody else can find and that goes when it is closed.
    pub(super) fn unlinked(directory: &Path) -> io::Result<File> {
        let new = create_in(directory)?;
        new.file.try_clone()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing depends on it, and the next writer removes what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes `path` and what is missing above it, for this user only.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn create_in(directory: &Path) -> io::Result<NewFile> {
    let mut name = [0u8; 8];
    getrandom::fill(&mut name).map_err(|_| io::Error::other("no random numbers"))?;
    let path = directory.join(format!("{:016x}.new", u64::from_le_bytes(name)));
    let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
    Ok(NewFile { file, path, keep: false })
}
