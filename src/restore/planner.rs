//! One walk of the tree, in order: makes directories, and hands out entries in batches and large files in ranges.
//!
//! Directories get their metadata, and further names of an entry are made, when every entry before them is finished.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::ahead::{Ahead, Run};
use super::existing::{self, Names, Plan, Surplus};
use super::file::{Job, Large, Task, content_len, is_large};
use super::links::{FirstName, LINKS_MAX, Links};
use super::metadata::{self, Subject};
use super::place::{Dir, Place};
use super::queue::Queue;
use super::{Action, Context, Error, Overwrite, Selection};
use crate::browse::{self, Entry, Event, OwnedNode, Walk};
use crate::format::content::{Content, Part};
use crate::format::tree::{Kind, Node};
use crate::id::BlobId;
use crate::repo;

/// Bytes of a large file that one worker writes at a time.
pub(super) const RANGE_LEN: u64 = 4 << 20;
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
pub(super) const OPEN_LEVELS: usize = 64;
pub(super) const OPEN_EVERY: usize = 256;

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

fn data_id(part: &Part) -> Option<BlobId> {
    if let Part::Data { id, .. } = part { Some(*id) } else { None }
}

/// Walks a snapshot, makes directories, hands out entries.
pub(super) struct Planner<'c> {
    context: &'c Context<'c>,
    jobs: Ahead<'c>,
    /// Keeps the target open: every place is reached from it.
    _root: Option<Arc<OwnedFd>>,
    levels: Vec<Level>,
    links: Links,
    /// What was there under several names and is kept.
    kept: HashSet<(u64, u64)>,
    batch: Vec<Task>,
    batch_dirs: usize,
    batch_len: u64,
    batch_nodes_len: usize,
    deferred: VecDeque<(u64, Waiting)>,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl<'c> Planner<'c> {
    pub(super) fn new(
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
            jobs: Ahead::new(context.repo, queue),
            _root: root,
            levels: Vec::new(),
            links: Links::new(LINKS_MAX),
            kept: HashSet::new(),
            batch: Vec::new(),
            batch_dirs: 0,
            batch_len: 0,
            batch_nodes_len: 0,
            deferred: VecDeque::new(),
            files: 0,
            bytes: 0,
        };
        let surplus = planner.list_surplus(&state, b"");
        planner.levels.push(Level { place, state, node, selected: true, surplus });
        planner
    }

    /// Walks what `start` is and sees it finished. Jobs that it has begun are handed in also when it fails: what they have
    /// made is finished or taken away by them.
    pub(super) fn plan(&mut self, start: &Node<'_>) -> Result<(), Error> {
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
        self.jobs.wait_for(self.jobs.next_number() - 1);
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
        let mut task = Task { dir, node: kept, plan, fate: None };
        if plan == Plan::Skip {
            self.links.pass(node);
        } else if let Some(first) = self.links.first(node) {
            return self.defer(Waiting::Link { first, task });
        } else {
            task.fate = self.links.remember(node, &task.dir.place);
            if node.metadata.nlink > 1
                && matches!(plan, Plan::Compare | Plan::Refresh)
                && !existing::may_be_kept(&task.dir, node, &mut self.kept)
            {
                task.plan = Plan::Replace;
            }
        }
        if is_large(node) && matches!(task.plan, Plan::Create | Plan::Replace) && !self.context.options.dry_run {
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
            self.jobs.hand_in(large.range(range), Some(Run::new(first, last, len)));
        }
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
        Some(Run::new(first, last, self.batch_len))
    }

    fn hand_in_batch(&mut self) {
        let run = if self.jobs.holds_back() { self.run_of_batch() } else { None };
        let batch = std::mem::take(&mut self.batch);
        (self.batch_dirs, self.batch_len, self.batch_nodes_len) = (0, 0, 0);
        self.jobs.hand_in(Job::Batch(batch), run);
    }

    /// Hands the batch to the workers.
    fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.hand_in_batch();
        }
        while let Some((needs, _)) = self.deferred.front()
            && self.jobs.is_finished(*needs)
        {
            self.finish_oldest();
        }
    }

    /// Puts off what must come after every entry handed out so far.
    fn defer(&mut self, waiting: Waiting) {
        // The batch at hand will have the next number.
        let needs = self.jobs.next_number() - u64::from(self.batch.is_empty());
        self.deferred.push_back((needs, waiting));
        while self.deferred.len() > DEFERRED_MAX {
            self.finish_oldest();
        }
    }

    fn finish_oldest(&mut self) {
        let Some((needs, waiting)) = self.deferred.pop_front() else { return };
        if needs >= self.jobs.next_number() {
            self.hand_in_batch();
        }
        self.jobs.wait_for(needs);
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
