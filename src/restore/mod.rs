//! Restores a snapshot, or a part of it, into a directory.
//!
//! One planner walks the tree in order, makes directories and hands out entries in batches, large files in ranges; all
//! cores write them. Blobs lie in packs in the order of the walk, so each segment is decoded about once. Directories
//! get their metadata when everything in them is finished. Memory is bounded by the number of batches under way.
//!
//! Nothing outside the target is touched, whatever the repository says or others do to the target meanwhile: every step
//! is one name relative to an open directory, symbolic links are never followed, existing files never written through.

mod ahead;
mod existing;
mod file;
mod links;
mod metadata;
mod place;
mod planner;
mod queue;
mod remove;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::browse;
use crate::format::snapshot::Snapshot;
use crate::format::tree::Kind;
use crate::progress::Progress;
use crate::repo::{self, Repository};
use file::Job;
use metadata::Owners;
use planner::Planner;
use queue::Queue;

/// Workers at least, where the repository is far away.
const WORKERS_FAR: usize = 6;
/// Jobs that wait for them, and bytes of packs that these and those being done may have had fetched: what is near of the
/// store keeps a little more.
const QUEUED_FAR: usize = 16;
const FETCHED_FAR: u64 = 24 << 20;

/// What happens to files that are there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// They are made equal to the snapshot's.
    #[default]
    Always,
    /// So are those whose size or modification time differs.
    IfChanged,
    /// So are those that the snapshot has a newer version of.
    IfNewer,
    /// They stay.
    Never,
}

/// Which entries take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The entry itself does.
    pub entry: bool,
    /// Something below it may.
    pub below: bool,
}

/// Chooses entries by path.
pub trait Select: Sync {
    /// Whether the entry at `path`, which starts with a slash and is relative to what is restored, takes part.
    fn select(&self, path: &[u8], is_directory: bool) -> Selection;
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is there now.
    Restored,
    /// It replaced what was there.
    Updated,
    /// It was there; at most its metadata was set.
    Unchanged,
    /// What was there stays, whatever it is, as `overwrite` says.
    Kept,
    /// The snapshot does not have it; it is gone.
    Deleted,
}

/// Called with the path of an entry, what became of it and its length in bytes. From any thread.
pub type Report<'a> = &'a (dyn Fn(&[u8], Action, u64) + Sync);

/// How to restore.
#[derive(Default)]
pub struct Options<'a> {
    /// What happens to files that are there already.
    pub overwrite: Overwrite,
    /// Whether entries of restored directories that the snapshot does not have are removed.
    pub delete: bool,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Read every written file back and compare it.
    pub verify: bool,
    /// Leave out blocks of zeros in data; holes of the source are holes anyway.
    pub sparse: bool,
    /// Owners by the names that the snapshot has for their numbers.
    pub ownership_by_name: bool,
    /// Which entries take part; all if `None`.
    pub select: Option<&'a dyn Select>,
    /// Who wants to know about each entry.
    pub report: Option<Report<'a>>,
    /// Device and inode numbers of directories that `delete` must leave alone: the repository.
    pub protected: Vec<(u64, u64)>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Entries selected.
    pub total_files: u64,
    /// Of these, made or replaced.
    pub files_restored: u64,
    /// Of these, there already.
    pub files_skipped: u64,
    /// Of these, kept out by something else that stays, as `overwrite` says.
    pub files_kept: u64,
    /// Entries removed because the snapshot does not have them.
    pub files_deleted: u64,
    /// Bytes of the selected files.
    pub total_bytes: u64,
    /// Of these, in files made or replaced.
    pub bytes_restored: u64,
    /// Of these, in files there already.
    pub bytes_skipped: u64,
    /// Of these, in files kept out by something else that stays.
    pub bytes_kept: u64,
}

/// Why nothing, or not everything, could be restored. Single entries that fail are reported to [`Progress`] instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] repo::Error),
    /// The snapshot has no such path.
    #[error("the snapshot has no `{}`", .0.escape_ascii())]
    NoSuchPath(Vec<u8>),
    /// The target cannot be used.
    #[error("cannot {op} the target directory `{}`: {source}", target.display())]
    Target {
        /// What was being done.
        op: &'static str,
        /// The directory.
        target: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What planner and workers share.
struct Context<'a> {
    repo: &'a Repository,
    options: &'a Options<'a>,
    progress: &'a Progress,
    owners: Owners,
    temporary: AtomicU64,
    random: u64,
    restored: [AtomicU64; 2],
    skipped: [AtomicU64; 2],
    kept: [AtomicU64; 2],
    deleted: AtomicU64,
}

impl Context<'_> {
    /// Counts and reports what became of an entry with `len` bytes of content.
    fn count(&self, action: Action, len: u64, path: impl FnOnce() -> Vec<u8>) {
        let counts = match action {
            Action::Restored | Action::Updated => Some(&self.restored),
            Action::Unchanged => Some(&self.skipped),
            Action::Kept => Some(&self.kept),
            Action::Deleted => None,
        };
        match counts {
            Some([files, bytes]) => {
                files.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(len, Ordering::Relaxed);
            }
            None => {
                self.deleted.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(report) = self.options.report {
            report(&path(), action, len);
        }
    }
}

/// Restores what `snapshot` holds at `path` into `target`: a directory's entries, or a file under its name.
///
/// Entries that cannot be restored are reported to `progress` while the rest goes on.
pub fn run(
    repo: &Repository,
    snapshot: &Snapshot,
    path: &[u8],
    target: &Path,
    options: &Options<'_>,
    progress: &Progress,
) -> Result<Summary, Error> {
    let start = browse::resolve(repo, snapshot, path)?.ok_or_else(|| Error::NoSuchPath(path.to_vec()))?;
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| repo::Error::System { op: "get random bytes", source: io::Error::other(error.to_string()) })?;
    let context = Context {
        repo,
        options,
        progress,
        owners: Owners::new(snapshot, options.ownership_by_name),
        temporary: AtomicU64::new(0),
        random: u64::from_le_bytes(random),
        restored: Default::default(),
        skipped: Default::default(),
        kept: Default::default(),
        deleted: AtomicU64::new(0),
    };
    let (root, made) = open_target(target, options.dry_run)?;
    // A new or empty target becomes what was named. One with something in it is only a place to put things, unless it is
    // to be made the same or is where they came from; and so is the one of a whole snapshot, whose root stands for no
    // directory of the source.
    let becomes = made || options.delete || root.as_ref().is_some_and(existing::is_empty) || is_in_place(target, path);
    let is_named = !start.node().name.is_empty() && matches!(start.node().kind, Kind::Directory { .. });
    let root_node = (becomes && is_named).then(|| start.clone());
    // Those of a store far away wait most of the time.
    let least = if repo.backend().is_remote() { WORKERS_FAR.min(repo.backend().parallel()) } else { 2 };
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16).max(least);
    // What waits far away is fetched meanwhile, and must not push out what the workers are at.
    let queue = Queue::new(if repo.backend().is_remote() { QUEUED_FAR } else { workers + 4 }, FETCHED_FAR);
    let (files, bytes) = std::thread::scope(|scope| {
        let _close = CloseOnDrop(&queue);
        for _ in 0..workers {
            std::thread::Builder::new()
                .name("restore".into())
                .spawn_scoped(scope, || {
                    while let Some((_taken, job)) = queue.take() {
                        context.work(job);
                    }
                })
                .map_err(|source| repo::Error::System { op: "start a thread", source })?;
        }
        let mut planner = Planner::new(&context, &queue, root, made, root_node);
        planner.plan(&start.node())?;
        Ok::<_, Error>((planner.files, planner.bytes))
    })?;
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Ok(Summary {
        total_files: files,
        files_restored: get(&context.restored[0]),
        files_skipped: get(&context.skipped[0]),
        files_kept: get(&context.kept[0]),
        files_deleted: get(&context.deleted),
        total_bytes: bytes,
        bytes_restored: get(&context.restored[1]),
        bytes_skipped: get(&context.skipped[1]),
        bytes_kept: get(&context.kept[1]),
    })
}

/// Whether the target is the very path that is restored.
fn is_in_place(target: &Path, path: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Some(names) = browse::components(path) else { return false };
    let path: PathBuf = std::iter::once(OsStr::new("/")).chain(names.map(OsStr::from_bytes)).collect();
    target.canonicalize().is_ok_and(|target| target == path)
}

struct CloseOnDrop<'q>(&'q Queue<Job>);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Opens the target, made if it is missing; also whether it was made. `None` if it is missing and must not be made.
fn open_target(target: &Path, dry_run: bool) -> Result<(Option<OwnedFd>, bool), Error> {
    let failed = |op| move |source: io::Error| Error::Target { op, target: target.to_owned(), source };
    let mut made = false;
    if !dry_run {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(failed("create"))?;
        }
        match std::fs::create_dir(target) {
            Ok(()) => made = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create")(error)),
        }
    }
    // The user named it, so links in it are followed.
    match rustix::fs::openat(CWD, target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Ok((Some(fd), made)),
        Err(Errno::NOENT) if dry_run => Ok((None, true)),
        Err(error) => Err(failed("open")(error.into())),
    }
}
