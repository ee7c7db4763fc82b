//! Restores a snapshot, or a part of it, into a directory.
//!
//! One planner walks the tree in order, makes directories and hands out entries in batches, large files in ranges; all
//! cores write them. Blobs lie in packs in the order of the walk, so each segment is decoded about once. Directories
//! get their metadata when everything in them is finished. Memory is bounded by the number of batches under way.
//!
//! Nothing outside the target is touched, whatever the repository says or others do to the target meanwhile: every step
//! is one name relative to an open directory, symbolic links are never followed, existing files never written through.

mod existing;
mod file;
mod links;
mod metadata;
mod place;
mod queue;
mod remove;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::browse::{self, Entry, Event, OwnedNode, Walk};
use crate::format::content::{Content, Part};
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Node};
use crate::id::BlobId;
use crate::progress::Progress;
use crate::repo::{self, Repository};
use existing::{Names, Plan, Surplus};
use file::{Job, Large, Task, content_len, is_large};
use links::{FirstName, LINKS_MAX, Links};
use metadata::{Owners, Subject};
use place::{Dir, Place};
use queue::Queue;

/// Bytes of a large file that one worker writes at a time.
const RANGE_LEN: u64 = 4 << 20;
/// Parts in such a range at most.
const RANGE_PARTS: usize = 1024;
/// Entries, directories, bytes of content and bytes of nodes in a batch.
const BATCH_TASKS: usize = 256;
const BATCH_DIRS: usize = 8;
const BATCH_LEN: u64 = 4 << 20;
const BATCH_NODES_LEN: usize = 1 << 20;
/// Directories and links that wait for batches to finish.
const DEFERRED_MAX: usize = 256;
/// Deepest directories of the walk that stay open; of those above, one in so many does.
const OPEN_LEVELS: usize = 64;
const OPEN_EVERY: usize = 256;
/// Workers at least, where the repository is far away.
const WORKERS_FAR: usize = 6;
/// Jobs that wait for them, and bytes of packs that these and those being done may have had fetched: what is near of the
/// store keeps a little more.
const QUEUED_FAR: usize = 16;
const FETCHED_FAR: u64 = 24 << 20;
/// Bytes of content that are fetched together: a store works for each request, and many batches are small.
const TOGETHER_LEN: u64 = 8 << 20;
/// Jobs that are known before the first of them is queued: what opening their packs takes is on its way meanwhile, so that
/// no pack begins with a round trip that everything waits for.
const AHEAD_FAR: usize = 16;

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
        let planned = planner.plan(&start.node());
        // Also after a failure: what a job has begun is finished or taken away by it.
        planner.queue_all();
        planned?;
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

enum State {
    /// Nothing in it has been selected yet.
    Unmade,
    /// Open.
    Open(Arc<Dir>),
    /// Made or found, closed to keep few descriptors.
    Closed { made: bool, inherits: bool },
    /// It would be made.
    Absent,
    /// It could not be made; the error was reported.
    Failed,
}

/// A directory on the way from the target's root to where the walk is.
struct Level {
    place: Arc<Place>,
    state: State,
    /// Its node, unless its metadata is not to be touched.
    node: Option<OwnedNode>,
    selected: bool,
    /// Names that may have to be removed.
    surplus: Option<Surplus>,
}

/// What waits until the entries before it are finished.
enum Waiting {
    /// A directory, for its metadata.
    Directory { dir: Arc<Dir>, node: OwnedNode },
    /// Another name of an entry restored before.
    Link { first: FirstName, task: Task },
}

/// Where an entry of a directory can go.
enum Into {
    Dir(Arc<Dir>),
    /// The directory would be made.
    Absent,
    Nowhere,
}

/// Blobs that a job reads, mostly one after the other in a pack.
struct Run {
    first: BlobId,
    last: BlobId,
    /// Bytes of all.
    len: u64,
    /// Bytes that are fetched for it.
    fetched: u64,
}

fn data_id(part: &Part) -> Option<BlobId> {
    if let Part::Data { id, .. } = part { Some(*id) } else { None }
}

struct Planner<'c> {
    context: &'c Context<'c>,
    queue: &'c Queue<Job>,
    /// Keeps the target open: every place is reached from it.
    _root: Option<Arc<OwnedFd>>,
    levels: Vec<Level>,
    links: Links,
    batch: Vec<Task>,
    batch_dirs: usize,
    batch_len: u64,
    batch_nodes_len: usize,
    /// Jobs that are held back, and what they read.
    ahead: VecDeque<(Job, Option<Run>)>,
    ahead_max: usize,
    /// Of these, the first so many, whose blobs are on their way.
    together: usize,
    deferred: VecDeque<(u64, Waiting)>,
    files: u64,
    bytes: u64,
}

impl<'c> Planner<'c> {
    fn new(
        context: &'c Context<'c>,
        queue: &'c Queue<Job>,
        root: Option<OwnedFd>,
        made: bool,
        node: Option<OwnedNode>,
    ) -> Self {
        let root = root.map(Arc::new);
        let (place, state) = match root.clone() {
            Some(fd) => {
                let place = Place::root(&fd);
                let inherits = metadata::has_default_acl(&fd);
                (place.clone(), State::Open(Arc::new(Dir { place, fd, made, inherits })))
            }
            None => (Place::nowhere(), State::Absent),
        };
        let mut planner = Self {
            context,
            queue,
            _root: root,
            levels: Vec::new(),
            links: Links::new(LINKS_MAX),
            batch: Vec::new(),
            batch_dirs: 0,
            batch_len: 0,
            batch_nodes_len: 0,
            ahead: VecDeque::new(),
            ahead_max: if context.repo.backend().is_remote() { AHEAD_FAR } else { 0 },
            together: 0,
            deferred: VecDeque::new(),
            files: 0,
            bytes: 0,
        };
        let surplus = planner.list_surplus(&state, b"");
        planner.levels.push(Level { place, state, node, selected: true, surplus });
        planner
    }

    /// Walks what `start` is and sees it finished.
    fn plan(&mut self, start: &Node<'_>) -> Result<(), Error> {
        match start.kind {
            Kind::Directory { tree, entries } => {
                if self.context.options.select.is_none() {
                    self.context.progress.files_total.store(entries, Ordering::Relaxed);
                }
                self.walk(tree)?;
            }
            _ => {
                let path = self.levels[0].place.path_of(start.name);
                self.levels[0].surplus = None;
                self.entry(&path, start, || OwnedNode::of(start));
            }
        }
        self.flush();
        while !self.deferred.is_empty() {
            self.finish_oldest();
        }
        self.wait_for(self.next_number() - 1);
        if self.context.progress.is_cancelled() { Err(repo::Error::Cancelled.into()) } else { Ok(()) }
    }

    fn walk(&mut self, tree: BlobId) -> Result<(), Error> {
        let mut walk = Walk::new(self.context.repo, tree, b"");
        while let Some(event) = walk.next() {
            if self.context.progress.is_cancelled() {
                return Err(repo::Error::Cancelled.into());
            }
            match event {
                Event::Entry { path, entry } => {
                    self.context.progress.set_current(path);
                    let keep = |entry: &Entry<'_>| entry.to_owned();
                    if !self.entry(path, &entry.node, || keep(&entry)) {
                        walk.skip();
                    }
                }
                Event::Leave { path } => self.leave(path),
                Event::Damage { path, error } => {
                    // Nothing can be called surplus when it is not known what the snapshot has.
                    if let Some(level) = self.levels.last_mut() {
                        level.surplus = None;
                    }
                    self.context.progress.error(path, "restore the directory", error);
                }
            }
        }
        Ok(())
    }

    /// Takes in an entry of the directory at hand. Returns whether the walk goes into it.
    fn entry(&mut self, path: &[u8], node: &Node<'_>, keep: impl FnOnce() -> OwnedNode) -> bool {
        let is_directory = matches!(node.kind, Kind::Directory { .. });
        let level = self.levels.last_mut().expect("the walk is within the directory at hand");
        if let Some(surplus) = &mut level.surplus {
            surplus.keep(node.name);
        }
        let selection = match self.context.options.select {
            Some(select) => select.select(path, is_directory),
            None => Selection { entry: true, below: true },
        };
        if is_directory {
            return (selection.entry || selection.below) && self.enter(path, node, keep(), selection.entry);
        }
        if selection.entry {
            self.files += 1;
            self.bytes += content_len(node);
            match self.reach(self.levels.len() - 1) {
                Into::Dir(dir) => self.hand_out(dir, node, keep()),
                Into::Absent => {
                    self.context.progress.add(content_len(node));
                    self.context.count(Action::Restored, content_len(node), || path.to_vec());
                }
                Into::Nowhere => {}
            }
        } else {
            self.links.pass(node);
        }
        false
    }

    /// Takes in a directory. Returns whether the walk goes into it.
    fn enter(&mut self, path: &[u8], node: &Node<'_>, kept: OwnedNode, selected: bool) -> bool {
        let parent = self.levels.last().expect("the walk is within the directory at hand");
        let place = parent.place.child(node.name);
        self.levels.push(Level { place, state: State::Unmade, node: Some(kept), selected, surplus: None });
        let index = self.levels.len() - 1;
        if selected {
            self.files += 1;
            if let Into::Nowhere = self.reach(index) {
                self.levels.pop();
                return false;
            }
            let surplus = self.list_surplus(&self.levels[index].state, path);
            self.levels[index].surplus = surplus;
        }
        if let Some(above) = index.checked_sub(OPEN_LEVELS)
            && above % OPEN_EVERY != 0
            && let State::Open(dir) = &self.levels[above].state
        {
            self.levels[above].state = State::Closed { made: dir.made, inherits: dir.inherits };
        }
        true
    }

    /// The names in a directory that was there before, if surplus ones are to be removed.
    fn list_surplus(&self, state: &State, path: &[u8]) -> Option<Surplus> {
        let State::Open(dir) = state else { return None };
        if !self.context.options.delete || dir.made {
            return None;
        }
        match Names::read(&dir.fd) {
            Ok(names) => Some(Surplus::new(names)),
            Err(error) => {
                self.context.progress.error(path, "list the directory", error);
                None
            }
        }
    }

    /// The directory of level `index`, made with those above it if it is not there yet.
    fn reach(&mut self, index: usize) -> Into {
        let mut at = index;
        while let State::Unmade = self.levels[at].state {
            at -= 1;
        }
        loop {
            let level = &mut self.levels[at];
            match &level.state {
                State::Closed { made, inherits } => match level.place.open() {
                    Ok(fd) => {
                        let place = level.place.clone();
                        let dir = Dir { place, fd, made: *made, inherits: *inherits };
                        level.state = State::Open(Arc::new(dir));
                    }
                    Err(error) => {
                        let path = level.place.path();
                        level.state = State::Failed;
                        self.context.progress.error(&path, "open the directory", error);
                    }
                },
                State::Failed => return Into::Nowhere,
                State::Absent | State::Open(_) if at == index => break,
                State::Absent | State::Open(_) => {
                    at += 1;
                    let (above, below) = self.levels.split_at_mut(at);
                    let (above, level) = (above.last().expect("at is not the root"), &mut below[0]);
                    let node = level.node.as_ref().expect("only the root may have none");
                    level.state = match &above.state {
                        State::Open(parent) => match self.context.make_directory(parent, &level.place, &node.node()) {
                            Ok(Some(dir)) => State::Open(Arc::new(dir)),
                            Ok(None) => State::Absent,
                            Err(error) => {
                                self.context.progress.error(&level.place.path(), "create the directory", error);
                                State::Failed
                            }
                        },
                        _ => State::Absent,
                    };
                }
                State::Unmade => unreachable!("levels are made from above"),
            }
        }
        match &self.levels[index].state {
            State::Open(dir) => Into::Dir(dir.clone()),
            State::Absent => Into::Absent,
            _ => Into::Nowhere,
        }
    }

    /// Leaves the directory at hand, the walk being done with it.
    fn leave(&mut self, path: &[u8]) {
        let index = self.levels.len() - 1;
        let reached = match self.levels[index].state {
            State::Unmade => Into::Nowhere,
            _ => self.reach(index),
        };
        let level = self.levels.pop().expect("the walk leaves what it entered");
        if index > 0 && level.selected && matches!(reached, Into::Dir(_) | Into::Absent) {
            self.context.progress.add(0);
            let made = match &reached {
                Into::Dir(dir) => dir.made,
                _ => true,
            };
            self.context.count(if made { Action::Restored } else { Action::Unchanged }, 0, || path.to_vec());
        }
        let Into::Dir(dir) = reached else { return };
        if let Some(surplus) = level.surplus {
            self.context.remove_surplus(&dir, &surplus.finish());
        }
        let wanted = dir.made || level.selected && self.context.options.overwrite != Overwrite::Never;
        if let Some(node) = level.node
            && wanted
            && !self.context.options.dry_run
        {
            self.defer(Waiting::Directory { dir, node });
        }
    }

    /// Gives an entry that is not a directory to the workers.
    fn hand_out(&mut self, dir: Arc<Dir>, node: &Node<'_>, kept: OwnedNode) {
        let plan = match existing::plan(&dir, node, self.context.options.overwrite) {
            Ok(plan) => plan,
            Err(error) => {
                return self.context.progress.error(&dir.path_of(node.name), "look at", error);
            }
        };
        let mut task = Task { dir, node: kept, plan, is_done: None };
        if plan == Plan::Skip {
            self.links.pass(node);
        } else if let Some(first) = self.links.first(node) {
            return self.defer(Waiting::Link { first, task });
        } else {
            task.is_done = self.links.remember(node, &task.dir.place);
        }
        if is_large(node) && matches!(plan, Plan::Create | Plan::Replace) && !self.context.options.dry_run {
            self.flush();
            return self.hand_out_ranges(task);
        }
        if self.batch.last().is_none_or(|last| !Arc::ptr_eq(&last.dir, &task.dir)) {
            self.batch_dirs += 1;
        }
        self.batch_len += content_len(node);
        self.batch_nodes_len += task.node.len();
        self.batch.push(task);
        if self.batch.len() >= BATCH_TASKS
            || self.batch_dirs >= BATCH_DIRS
            || self.batch_len >= BATCH_LEN
            || self.batch_nodes_len >= BATCH_NODES_LEN
        {
            self.flush();
        }
    }

    fn hand_out_ranges(&mut self, task: Task) {
        let Some(large) = self.context.begin_large(task) else { return };
        let Kind::File { size, content } = large.node().kind else { unreachable!("only files are large") };
        let mut range = Vec::new();
        let mut range_len = 0;
        for part in browse::parts(self.context.repo, size, content) {
            match part {
                Ok((_, Part::Hole { .. })) => {}
                Ok((offset, part)) => {
                    range.push((offset, part));
                    range_len += part.len();
                    if range_len >= RANGE_LEN || range.len() >= RANGE_PARTS {
                        self.hand_in_range(&large, std::mem::take(&mut range));
                        range_len = 0;
                    }
                }
                Err(error) => self.context.fail_large(&large, error),
            }
            if large.has_failed() || self.context.progress.is_cancelled() {
                break;
            }
        }
        if self.context.progress.is_cancelled() {
            self.context.fail_large(&large, repo::Error::Cancelled);
        }
        self.hand_in_range(&large, range);
        self.context.release(&large);
    }

    fn hand_in_range(&mut self, large: &Arc<Large>, range: Vec<(u64, Part)>) {
        let id = |part: Option<&(u64, Part)>| part.and_then(|(_, part)| data_id(part));
        if let (Some(first), Some(last)) = (id(range.first()), id(range.last())) {
            let len = range.iter().map(|(_, part)| part.len()).sum();
            self.hand_in(large.range(range), Some(Run { first, last, len, fetched: 0 }));
        }
    }

    /// Hands in a job that reads `run`: at once, or behind those that are held back.
    fn hand_in(&mut self, job: Job, run: Option<Run>) {
        if let Some(run) = &run {
            self.context.repo.will_read_blob(&run.last);
        }
        self.ahead.push_back((job, run));
        while self.ahead.len() > self.ahead_max {
            self.queue_oldest();
        }
    }

    /// Hands the first of the jobs that are held back to the workers.
    fn queue_oldest(&mut self) {
        if self.together == 0 {
            self.fetch_ahead();
        }
        let Some((job, run)) = self.ahead.pop_front() else { return };
        self.together = self.together.saturating_sub(1);
        self.queue.push(job, run.map_or(0, |run| run.fetched));
    }

    /// Lets be fetched what the next jobs read, as many as have it in one place.
    fn fetch_ahead(&mut self) {
        let mut len = 0;
        let fits = |(_, run): &&(Job, Option<Run>)| {
            len += run.as_ref().map_or(0, |run| run.len);
            len <= TOGETHER_LEN
        };
        let count = self.ahead.iter().take_while(fits).count().max(1);
        for count in (1..=count.min(self.ahead.len())).rev() {
            let mut runs = self.ahead.iter_mut().take(count).filter_map(|(_, run)| run.as_mut());
            let Some(first) = runs.next() else { continue };
            let (mut last, mut len) = (first.last, first.len);
            for run in runs {
                (last, len) = (run.last, len + run.len);
            }
            if let Some(fetched) = self.context.repo.will_read_run(&first.first, &last, len) {
                let runs = self.ahead.iter_mut().take(count).filter_map(|(_, run)| run.as_mut());
                runs.for_each(|run| run.fetched = fetched / count as u64);
                self.together = count;
                return;
            }
        }
    }

    fn queue_all(&mut self) {
        while !self.ahead.is_empty() {
            self.queue_oldest();
        }
    }

    /// Number that the next job will have.
    fn next_number(&self) -> u64 {
        self.queue.next_number() + self.ahead.len() as u64
    }

    /// Waits until every job up to `number` is finished.
    fn wait_for(&mut self, number: u64) {
        while self.queue.next_number() <= number {
            self.queue_oldest();
        }
        self.queue.wait_for(number);
    }

    /// What the batch reads, as far as its nodes tell.
    fn run_of_batch(&self) -> Option<Run> {
        let parts = |task: &Task| {
            let node = task.node.node();
            let Kind::File { size, content } = node.kind else { return None };
            // The parts of a long list would have to be fetched themselves.
            if matches!(content, Content::List { .. }) {
                return None;
            }
            let mut ids = browse::parts(self.context.repo, size, content).filter_map(|part| data_id(&part.ok()?.1));
            let first = ids.next()?;
            Some((first, ids.last().unwrap_or(first)))
        };
        let (first, mut last) = self.batch.iter().find_map(parts)?;
        if let Some((_, other)) = self.batch.iter().rev().find_map(parts) {
            last = other;
        }
        Some(Run { first, last, len: self.batch_len, fetched: 0 })
    }

    fn hand_in_batch(&mut self) {
        let run = if self.ahead_max > 0 { self.run_of_batch() } else { None };
        let batch = std::mem::take(&mut self.batch);
        (self.batch_dirs, self.batch_len, self.batch_nodes_len) = (0, 0, 0);
        self.hand_in(Job::Batch(batch), run);
    }

    /// Hands the batch to the workers.
    fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.hand_in_batch();
        }
        while let Some((needs, _)) = self.deferred.front()
            && self.queue.is_finished(*needs)
        {
            self.finish_oldest();
        }
    }

    /// Puts off what must come after every entry handed out so far.
    fn defer(&mut self, waiting: Waiting) {
        // The batch at hand will have the next number.
        let needs = self.next_number() - u64::from(self.batch.is_empty());
        self.deferred.push_back((needs, waiting));
        while self.deferred.len() > DEFERRED_MAX {
            self.finish_oldest();
        }
    }

    fn finish_oldest(&mut self) {
        let Some((needs, waiting)) = self.deferred.pop_front() else { return };
        if needs >= self.next_number() {
            self.hand_in_batch();
        }
        self.wait_for(needs);
        if self.context.progress.is_cancelled() {
            return;
        }
        match waiting {
            Waiting::Directory { dir, node } => self.context.finish_directory(&dir, &node.node()),
            Waiting::Link { first, task } => self.context.link(&first, &task),
        }
    }
}

impl Context<'_> {
    /// The directory `node` of `parent`, made or found there; `None` if it would be made.
    fn make_directory(&self, parent: &Dir, place: &Arc<Place>, node: &Node<'_>) -> io::Result<Option<Dir>> {
        let dry_run = self.options.dry_run;
        let mut made = true;
        let mkdir = || if dry_run { Err(Errno::EXIST) } else { rustix::fs::mkdirat(&parent.fd, node.name, Mode::RWXU) };
        if let Err(error) = mkdir() {
            if error != Errno::EXIST || parent.made {
                return Err(error.into());
            }
            let stat = match existing::stat(&parent.fd, node.name)? {
                None if dry_run => return Ok(None),
                stat => stat.ok_or(Errno::NOENT)?,
            };
            if existing::type_of(&stat) == FileType::Directory {
                made = false;
            } else if self.options.overwrite == Overwrite::Never
                || self.options.overwrite == Overwrite::IfNewer && node.metadata.mtime <= existing::mtime(&stat)
            {
                return Err(io::Error::other("something that is not a directory is there and is not overwritten"));
            } else if dry_run {
                return Ok(None);
            } else {
                rustix::fs::unlinkat(&parent.fd, node.name, AtFlags::empty())?;
                mkdir()?;
            }
        }
        let fd = existing::open_existing(&parent.fd, node.name, !dry_run)?;
        let mut inherits = false;
        if !made {
            inherits = metadata::has_default_acl(&fd);
            if !dry_run && !self.owners.is_root() {
                let stat = rustix::fs::fstat(&fd)?;
                if stat.st_mode & 0o300 != 0o300 && stat.st_uid == rustix::process::geteuid().as_raw() {
                    rustix::fs::fchmod(&fd, Mode::from_bits_retain(stat.st_mode & 0o7777 | 0o700))?;
                }
            }
        } else if parent.inherits {
            metadata::remove_inherited_acls(&fd)?;
        }
        let fd = Arc::new(fd);
        place.set_fd(&fd);
        Ok(Some(Dir { place: place.clone(), fd, made, inherits }))
    }

    /// Gives a directory its metadata, everything in it being done.
    fn finish_directory(&self, dir: &Dir, node: &Node<'_>) {
        use std::os::fd::AsFd;
        let prune = !dir.made || dir.inherits;
        for (during, message) in metadata::apply(&Subject::Open(dir.fd.as_fd()), node, prune, &self.owners) {
            self.progress.error(&dir.place.path(), during, message);
        }
    }
}
