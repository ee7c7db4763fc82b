//! A backup run: the live tree in, one snapshot out.
//!
//! ```text
//! walk (one thread)      ask the kernel about every entry of the source, in order
//! scan (one thread)      compare with the parent, group what is to be read, cut large files  -> batches, in order
//! pool (every core)      read and hash the files of a batch; make deltas; compress and seal segments
//! run (the caller)       store what is new, build trees, then index, then the snapshot
//! ```
//! Batches are worked on in any order and taken in the order of the walk, so that blobs lie in packs as the tree has them.
//! What is in flight is bounded in bytes: a fixed number of batches of bounded size.

mod earlier;
mod long;
mod parent;
mod read;
mod scan;
mod stream;
mod tree_builder;
mod walker;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::browse::{self, OwnedNode};
use crate::format::content::{Content, Part, Parts};
use crate::format::limits::ENTRIES_MAX;
use crate::format::snapshot::{Snapshot, Summary};
use crate::format::tree::{Kind, Metadata, Node, Time, Xattrs};
use crate::host;
use crate::id::{BlobId, BlobKind, ContentHash, ObjectId};
use crate::pool::{Pool, Urgency, cores};
use crate::progress::Progress;
use crate::repo::writer::{WriteOptions, WriteStats, Writer};
use crate::repo::{self, Repository};
use crate::source::{self, WalkOptions};

use self::earlier::{Earlier, NewChunk};
use self::long::{CutRun, Cutter, FileEnd, Piece, Run, Stopped};
use self::read::{Done, OwnedContent, OwnedPiece, ToRead};
use self::scan::{Item, Was};
use self::stream::Running;
pub use self::stream::{Stream, StreamSource};
use self::tree_builder::{ListBuilder, TreeBuilder};

/// Content up to this length, in bytes, is kept inside the tree. Two releases of a source tree take 289 MB at 0 to 1,024
/// bytes, 294 at 2,048 and 304 at 4,096, where each change writes its neighbours again; times do not differ.
const INLINE_LEN: usize = 512;

/// How soon a wait for the source notices that the run was cancelled.
const CANCEL_CHECK: Duration = Duration::from_millis(100);
/// Age in seconds at which a temporary file of the store belongs to nobody any more.
const LEFTOVER_AGE_S: u64 = 24 * 3600;

/// What to back up and how.
#[derive(Debug)]
pub struct Options {
    /// Files and directories, and what to leave out.
    pub walk: WalkOptions,
    /// Streams to store as files in the root directory.
    pub streams: Vec<Stream>,
    /// Exclude patterns as given, to be recorded.
    pub excludes: Vec<String>,
    /// Host to record; this host's name if empty.
    pub host: String,
    /// Labels to record.
    pub tags: Vec<String>,
    /// Time to record; now if `None`.
    pub time: Option<Time>,
    /// Where unchanged files are taken from.
    pub parent: ParentChoice,
    /// How unchanged files are recognised.
    pub compare: Compare,
    /// Write nothing; only count what would be.
    pub dry_run: bool,
    /// Write no snapshot if its tree is the parent's.
    pub skip_if_unchanged: bool,
    /// Compression and size of packs.
    pub write: WriteOptions,
    /// Threads that read and compute; as many as there are cores if 0.
    pub threads: usize,
    /// Whether chunks that are much like the file's earlier version are stored as deltas.
    pub deltas: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            walk: WalkOptions::default(),
            streams: Vec::new(),
            excludes: Vec::new(),
            host: String::new(),
            tags: Vec::new(),
            time: None,
            parent: ParentChoice::default(),
            compare: Compare::default(),
            dry_run: false,
            skip_if_unchanged: false,
            write: WriteOptions::default(),
            threads: 0,
            deltas: true,
        }
    }
}

/// Which snapshot unchanged files are taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParentChoice {
    /// The newest one of the same host and paths.
    #[default]
    Newest,
    /// None: every file is read.
    None,
    /// This one.
    Snapshot(ObjectId),
}

/// What of a file's identity must be equal for it to count as unchanged, besides its size and modification time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compare {
    /// Do not look at the time of the last inode change.
    pub ignore_ctime: bool,
    /// Do not look at the inode number.
    pub ignore_inode: bool,
}

/// Why a backup made no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository failed, or the run was cancelled.
    #[error(transparent)]
    Repository(#[from] repo::Error),
    /// There is nothing to read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The parent that was asked for cannot be read.
    #[error("the parent snapshot {} cannot be read: {message}", id.short())]
    Parent {
        /// The parent.
        id: ObjectId,
        /// Why.
        message: String,
    },
    /// A stream's command failed or its input could not be read.
    #[error("{name}: {message}; no snapshot was made")]
    Stream {
        /// The stream's file name.
        name: String,
        /// Why.
        message: String,
    },
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The snapshot, unless the run was dry or nothing had changed.
    pub snapshot: Option<ObjectId>,
    /// The record as it was, or would have been, written.
    pub record: Snapshot,
    /// What went wrong and cost only time.
    pub warnings: Vec<String>,
}

/// Runs a backup. Errors of single entries go to `progress` and the rest is kept; an error of the repository or of a
/// stream ends the run, and then there is no snapshot.
pub fn run(repo: &Arc<Repository>, options: Options, progress: &Arc<Progress>) -> Result<Outcome, Error> {
    let started = Instant::now();
    let time = options.time.unwrap_or_else(now);
    let host = if options.host.is_empty() { host::host_name() } else { options.host.clone() };
    repo.hide_damaged_index()?;
    let snapshot_ids = repo.take_stock()?;
    if !options.dry_run {
        // What interrupted runs left; younger files may belong to a run that goes on.
        // A store that refuses to delete is no reason to make no backup.
        let _ = repo.backend().clean(LEFTOVER_AGE_S);
    }

    let threads = if options.threads == 0 { cores() } else { options.threads };
    let system = |source| repo::Error::System { op: "start threads", source };
    let pool = Arc::new(Pool::new("backup", threads).map_err(system)?);
    let writer = if options.dry_run { None } else { Some(Writer::new(repo.clone(), pool.clone(), options.write)?) };

    let mut warnings = Vec::new();
    let snapshots = readable_snapshots(repo, snapshot_ids, &mut warnings)?;
    let running = Running::default();
    let scan = scan::start(scan::Setup {
        repo,
        options: &options,
        host: &host,
        snapshots: &snapshots,
        pool: &pool,
        progress,
        running: &running,
    })?;
    let mut committer = Committer::new(repo.clone(), pool.clone(), writer, progress.clone());
    committer.summary.errors = 0;
    // The scan may be waiting for what a command prints, and would not notice that it is waited for by nobody.
    let root = committer.take(scan.steps).inspect_err(|_| running.end())?;
    let parent = scan.parent;
    if let (Some((id, _)), Some(message)) = (&parent, scan.unread.get()) {
        warnings.push(format!(
            "not all of the parent snapshot {} can be read, so that files were read again: {message}",
            id.short()
        ));
    }

    let mut record = Snapshot {
        time,
        host,
        user: host::user_name(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        tags: options.tags.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
        paths: scan.paths,
        excludes: options.excludes,
        parent: parent.as_ref().map(|(id, _)| *id),
        previous: scan.previous,
        program: concat!("bygone ", env!("CARGO_PKG_VERSION")).to_owned(),
        users: committer.users.names(host::user_names()),
        groups: committer.groups.names(host::group_names()),
        ..Snapshot::of_root(&root.node())
    };
    let (mut summary, stats) = committer.finish()?;
    summary.data_blobs = stats.data_blobs;
    summary.tree_blobs = stats.tree_blobs;
    summary.data_added = stats.plain_bytes;
    summary.data_added_packed = stats.stored_bytes;
    summary.errors = progress.error_count();
    summary.duration_ms = started.elapsed().as_millis() as u64;
    record.summary = summary;

    let skip = match &parent {
        _ if options.dry_run => true,
        // A parent that cannot be compared with is none to do without a snapshot for.
        Some((_, parent)) if options.skip_if_unchanged => is_unchanged(repo, parent, &record).unwrap_or(false),
        _ => false,
    };
    if progress.is_cancelled() {
        return Err(repo::Error::Cancelled.into());
    }
    let snapshot = if skip { None } else { Some(repo.put_snapshot(&record)?) };
    Ok(Outcome { snapshot, record, warnings })
}

/// The snapshots, oldest first, one of which becomes the parent. Those that cannot be read are left out with a warning:
/// old damage must not stand in the way of a new backup.
fn readable_snapshots(
    repo: &Repository,
    ids: Vec<ObjectId>,
    warnings: &mut Vec<String>,
) -> repo::Result<Vec<(ObjectId, Snapshot)>> {
    if let Ok(snapshots) = repo.read_snapshots(&ids) {
        return Ok(snapshots);
    }
    let mut snapshots = Vec::new();
    for id in ids {
        match repo.snapshot(&id) {
            Ok(snapshot) => snapshots.push((id, snapshot)),
            Err(error) => {
                warnings.push(format!("snapshot {} cannot be read and is not used as the parent: {error}", id.short()));
            }
        }
    }
    snapshots.sort_by_key(|(id, snapshot)| (snapshot.time, *id));
    Ok(snapshots)
}

/// Whether what was backed up is as the parent has it. The directories above it do not count: others change those.
fn is_unchanged(repo: &Repository, parent: &Snapshot, record: &Snapshot) -> repo::Result<bool> {
    if parent.paths != record.paths {
        return Ok(false);
    }
    for path in &record.paths {
        let (old, new) = (browse::resolve(repo, parent, path)?, browse::resolve(repo, record, path)?);
        let (Some(old), Some(new)) = (old, new) else { return Ok(false) };
        let (old, new) = (old.node(), new.node());
        // A stream's times are those of the run.
        let is_stream = new.metadata.inode == 0;
        let seen =
            |metadata: &Metadata| (metadata.mode, metadata.uid, metadata.gid, (!is_stream).then_some(metadata.mtime));
        if old.kind != new.kind || old.xattrs != new.xattrs || seen(&old.metadata) != seen(&new.metadata) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn now() -> Time {
    let now = jiff::Timestamp::now();
    Time { sec: now.as_second(), nsec: now.subsec_nanosecond().max(0) as u32 }
}

fn lost_thread() -> repo::Error {
    repo::Error::System { op: "back up", source: std::io::Error::other("a thread ended early") }
}

/// Numbers of users or groups that occur in the tree.
#[derive(Default)]
struct Owners(BTreeSet<u32>);

impl Owners {
    fn names(&self, known: Vec<(u32, String)>) -> Vec<(u32, String)> {
        known.into_iter().filter(|(number, _)| self.0.contains(number)).collect()
    }
}

/// Blobs that a dry run has counted, by the first bytes of their ids.
#[derive(Default)]
struct DryBlobs(HashSet<u64>);

/// More than these are not remembered, so that memory stays bounded; the count of a dry run is then too high.
const DRY_BLOBS_MAX: usize = 4 << 20;

impl DryBlobs {
    /// Whether the blob had not been counted.
    fn insert(&mut self, id: BlobId) -> bool {
        let short = u64::from_le_bytes(id.0[..8].try_into().expect("an id has more than 8 bytes"));
        if self.0.len() < DRY_BLOBS_MAX { self.0.insert(short) } else { !self.0.contains(&short) }
    }
}

/// A large file being put together from its runs.
struct OpenFile {
    list: ListBuilder,
    size: u64,
    /// What new chunks may be deltas of.
    earlier: Option<Earlier>,
    /// Runs that come next, in order, while deltas are made.
    coming: VecDeque<Coming>,
    /// Bytes of the file up to the end of those.
    seen: u64,
}

/// A run as it will be stored.
enum Coming {
    Ready(Run),
    /// Its deltas are being made.
    Later(Receiver<Run>),
}

impl OpenFile {
    fn new(earlier: Option<Earlier>) -> Self {
        Self { list: ListBuilder::new(), size: 0, earlier, coming: VecDeque::new(), seen: 0 }
    }
}

/// Content of a hard link that was read under an earlier name.
struct LinkedContent {
    node: OwnedNode,
}

/// Takes the scan's steps in order, stores blobs, builds trees.
struct Committer {
    repo: Arc<Repository>,
    pool: Arc<Pool>,
    writer: Option<Writer>,
    progress: Arc<Progress>,
    directories: Vec<TreeBuilder>,
    /// Nodes of streams, which are read before the walk begins.
    streams: Vec<OwnedNode>,
    file: Option<OpenFile>,
    links: HashMap<(u64, u64), LinkedContent>,
    summary: Summary,
    dry_stats: WriteStats,
    /// What a dry run would have stored.
    dry_blobs: DryBlobs,
    users: Owners,
    groups: Owners,
    root: Option<OwnedNode>,
    /// Entries that the snapshot may still take.
    entries_left: u64,
}

impl Committer {
    fn new(repo: Arc<Repository>, pool: Arc<Pool>, writer: Option<Writer>, progress: Arc<Progress>) -> Self {
        Committer {
            repo,
            pool,
            writer,
            progress,
            directories: Vec::new(),
            streams: Vec::new(),
            file: None,
            links: HashMap::new(),
            summary: Summary::default(),
            dry_stats: WriteStats::default(),
            dry_blobs: DryBlobs::default(),
            users: Owners::default(),
            groups: Owners::default(),
            root: None,
            entries_left: ENTRIES_MAX,
        }
    }

    /// Takes everything; returns the root directory's node.
    fn take(&mut self, steps: Receiver<scan::Step>) -> Result<OwnedNode, Error> {
        let lost = lost_thread;
        loop {
            let step = match steps.recv_timeout(CANCEL_CHECK) {
                _ if self.progress.is_cancelled() => return Err(repo::Error::Cancelled.into()),
                Ok(step) => step,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            match step {
                scan::Step::Batch(batch) => {
                    let batch = batch.recv().map_err(|_| lost())?;
                    for item in batch.items {
                        self.item(item, &batch.content)?;
                    }
                }
                scan::Step::BeginFile(earlier) => {
                    let earlier = earlier.and_then(|earlier| Earlier::new(&self.repo, &earlier.node()));
                    self.file = Some(OpenFile::new(earlier));
                }
                scan::Step::Run(run) => self.run(run.recv().map_err(|_| lost())?)?,
                scan::Step::EndFile(end) => self.end_file(end)?,
                scan::Step::Failed(error) => return Err(error),
            }
        }
        self.root.take().ok_or_else(|| lost().into())
    }

    fn finish(self) -> repo::Result<(Summary, WriteStats)> {
        let stats = match self.writer {
            Some(writer) => writer.finish()?,
            None => self.dry_stats,
        };
        Ok((self.summary, stats))
    }

    fn item(&mut self, item: Item, content: &[u8]) -> repo::Result<()> {
        match item {
            Item::Enter(directory) => {
                self.progress.set_current(&directory.path);
                self.directories.push(TreeBuilder::new(directory));
                Ok(())
            }
            Item::Leave => self.leave(),
            Item::Unchanged(node) => {
                let node = node.node();
                if let Kind::File { size, .. } = node.kind {
                    self.summary.files_unmodified += 1;
                    self.count_file(size);
                    self.progress.add(size);
                } else {
                    self.summary.others += 1;
                    self.progress.add(0);
                }
                self.push(&node)
            }
            Item::Done(done) => self.done(done, content),
            Item::Link { name, metadata } => {
                let key = (metadata.dev, metadata.inode);
                let Some(first) = self.links.get(&key) else {
                    let directory = self.directories.last().map_or(&b"/"[..], |directory| directory.path());
                    let path = [directory, b"/", &name].concat();
                    self.progress.error(&path, "read", "another name of the same file could not be read");
                    return Ok(());
                };
                let first = first.node.clone();
                let node = Node { name: &name, ..first.node() };
                if let Kind::File { size, .. } = node.kind {
                    self.summary.files_new += 1;
                    self.count_file(size);
                    self.progress.add(size);
                }
                self.push(&node)
            }
            Item::ForgetLink(key) => {
                self.links.remove(&key);
                Ok(())
            }
            Item::Grown(to_read) => self.grown(to_read),
            Item::ToRead(_) => unreachable!("every batch went through the pool"),
        }
    }

    fn count_file(&mut self, size: u64) {
        self.summary.total_files_processed += 1;
        self.summary.total_bytes_processed += size;
    }

    fn done(&mut self, done: Done, batch: &[u8]) -> repo::Result<()> {
        let Done { name, metadata, xattrs, was, is_linked, kind } = done;
        let mut parts_encoded = Vec::new();
        let kind = match &kind {
            read::OwnedKind::File { size, content } => {
                match was {
                    Was::New => self.summary.files_new += 1,
                    Was::Changed => self.summary.files_changed += 1,
                }
                self.count_file(*size);
                self.progress.add(*size);
                let content = match content {
                    OwnedContent::Empty => Content::Empty,
                    OwnedContent::Inline(range) => Content::Inline(&batch[range.clone()]),
                    OwnedContent::Whole(hash, range, delta) => {
                        let id = self.repo.blob_id(BlobKind::Data, hash);
                        self.store_chunk(id, &batch[range.clone()], delta.as_deref())?;
                        Content::Whole(*hash)
                    }
                    OwnedContent::Pieces(hash, pieces) => {
                        for piece in pieces {
                            let part = match piece {
                                OwnedPiece::Hole(len) => Part::Hole { len: *len },
                                OwnedPiece::Chunk(id, range, delta) => {
                                    self.store_chunk(*id, &batch[range.clone()], delta.as_deref())?;
                                    Part::Data { id: *id, len: range.len() as u32 }
                                }
                            };
                            part.encode(&mut parts_encoded);
                        }
                        Content::Parts { hash: Some(*hash), parts: Parts::new(pieces.len(), &parts_encoded) }
                    }
                };
                Kind::File { size: *size, content }
            }
            read::OwnedKind::Other(other) => {
                self.summary.others += 1;
                self.progress.add(0);
                other.as_kind()
            }
        };
        let node = Node { name: &name, metadata, kind, xattrs: Xattrs::new(&xattrs) };
        if is_linked {
            self.links.insert((metadata.dev, metadata.inode), LinkedContent { node: OwnedNode::of(&node) });
        }
        self.push(&node)
    }

    /// Reads a file that has become too long for a batch, here and now: it happens hardly ever.
    fn grown(&mut self, mut to_read: ToRead) -> repo::Result<()> {
        let open = match long::open(&mut to_read) {
            Ok(Some(open)) => open,
            result => {
                let error = result.err().unwrap_or_else(|| std::io::Error::other("it is replaced again and again"));
                self.progress.error(&to_read.path, "open", error);
                return Ok(());
            }
        };
        self.file = Some(OpenFile::new(None));
        let (chunker, progress) = (self.repo.chunker(), self.progress.clone());
        let mut failed = None;
        let cutter = Cutter::new(&chunker, &progress, |run: CutRun| {
            self.run(run.hash()).map_err(|error| {
                failed = Some(error);
                Stopped
            })
        });
        match long::read(to_read, &open, cutter, &progress) {
            Ok(end) => self.end_file(end),
            Err(Stopped) => Err(failed.unwrap_or(repo::Error::Cancelled)),
        }
    }

    /// Takes the next run of a large file.
    fn run(&mut self, run: Run) -> repo::Result<()> {
        let mut file = self.file.take().expect("a file was begun");
        if file.earlier.is_none() {
            self.file = Some(file);
            return self.store_run(run);
        }
        let coming = self.make_deltas(&mut file, run);
        file.coming.push_back(coming);
        self.file = Some(file);
        // What is being worked on is in memory; more than the pool has threads for would only wait.
        self.store_coming(self.pool.threads() + 1)
    }

    /// Has deltas made of what is new in `run` and where something like it was.
    fn make_deltas(&self, file: &mut OpenFile, mut run: Run) -> Coming {
        let (Some(earlier), Some(writer)) = (&mut file.earlier, &self.writer) else { return Coming::Ready(run) };
        let mut chunks = Vec::new();
        for piece in &run.pieces {
            match piece {
                Piece::Hole(len) => file.seen += len,
                Piece::Chunk(hash, range, _) => {
                    let (len, id) = (range.len() as u32, self.repo.blob_id(BlobKind::Data, hash));
                    chunks.push(NewChunk { offset: file.seen, len, id });
                    file.seen += u64::from(len);
                }
            }
        }
        let is_new: Vec<bool> = chunks.iter().map(|chunk| !writer.has(&chunk.id)).collect();
        let regions = earlier.align(&chunks, |number| is_new[number]);
        if regions.iter().all(Vec::is_empty) {
            return Coming::Ready(run);
        }
        let repo = self.repo.clone();
        let (sender, receiver) = sync_channel(1);
        self.pool.submit(Urgency::Urgent, move || {
            let chunks = run.pieces.iter_mut().filter_map(|piece| match piece {
                Piece::Chunk(_, range, delta) => Some((range, delta)),
                Piece::Hole(_) => None,
            });
            for ((range, delta), regions) in chunks.zip(&regions) {
                *delta = earlier::encode(&repo, &run.content[range.clone()], regions);
            }
            let _ = sender.send(run);
        });
        Coming::Later(receiver)
    }

    /// Stores what comes next of a large file until no more than `left` runs of it are left.
    fn store_coming(&mut self, left: usize) -> repo::Result<()> {
        loop {
            let coming = &mut self.file.as_mut().expect("a file was begun").coming;
            if coming.len() <= left {
                return Ok(());
            }
            let run = match coming.pop_front().expect("there are more than none") {
                Coming::Ready(run) => run,
                Coming::Later(run) => run.recv().map_err(|_| lost_thread())?,
            };
            self.store_run(run)?;
        }
    }

    /// Stores the chunks of a run of a large file.
    fn store_run(&mut self, run: Run) -> repo::Result<()> {
        let mut file = self.file.take().expect("a file was begun");
        for piece in &run.pieces {
            match piece {
                Piece::Hole(len) => {
                    file.size += len;
                    self.list_part(&mut file.list, Part::Hole { len: *len })?;
                }
                Piece::Chunk(hash, range, delta) => {
                    let len = range.len() as u32;
                    let id = self.repo.blob_id(BlobKind::Data, hash);
                    self.store_chunk(id, &run.content[range.clone()], delta.as_deref())?;
                    file.size += u64::from(len);
                    self.list_part(&mut file.list, Part::Data { id, len })?;
                }
            }
        }
        self.progress.bytes_done.fetch_add(run.len(), Ordering::Relaxed);
        self.file = Some(file);
        Ok(())
    }

    fn list_part(&mut self, list: &mut ListBuilder, part: Part) -> repo::Result<()> {
        list.push(part, &mut |page| self.store_plain(BlobKind::List, page))
    }

    fn end_file(&mut self, end: FileEnd) -> repo::Result<()> {
        self.store_coming(0)?;
        let OpenFile { list, size, .. } = self.file.take().expect("a file was begun");
        let Some(end) = end else { return Ok(()) };
        self.progress.files_done.fetch_add(1, Ordering::Relaxed);
        self.count_file(size);
        let list = list.finish(&mut |page| self.store_plain(BlobKind::List, page))?;
        let content = list.content(size, end.hash);
        let kind = Kind::File { size, content };
        // A stream has nothing but its content to compare.
        let old = end.stream.as_ref().and_then(Option::as_ref).map(|old| old.node().kind);
        let count = match (end.was, old) {
            (_, Some(old)) if old == kind => &mut self.summary.files_unmodified,
            (Was::Changed, _) | (_, Some(Kind::File { .. })) => &mut self.summary.files_changed,
            (Was::New, _) => &mut self.summary.files_new,
        };
        *count += 1;
        let node = Node { name: &end.name, metadata: end.metadata, kind, xattrs: Xattrs::new(&end.xattrs) };
        if end.is_linked {
            self.links.insert((node.metadata.dev, node.metadata.inode), LinkedContent { node: OwnedNode::of(&node) });
        }
        if end.stream.is_some() {
            self.owners(&end.metadata);
            self.streams.push(OwnedNode::of(&node));
            return Ok(());
        }
        self.push(&node)
    }

    fn owners(&mut self, metadata: &Metadata) {
        self.users.0.insert(metadata.uid);
        self.groups.0.insert(metadata.gid);
    }

    fn push(&mut self, node: &Node<'_>) -> repo::Result<()> {
        self.owners(&node.metadata);
        let mut directory = self.directories.pop().expect("entries come inside directories");
        if self.directories.is_empty() {
            // Streams lie in the root directory, among its other entries.
            while self.streams.first().is_some_and(|stream| stream.node().name < node.name) {
                let stream = self.streams.remove(0);
                self.add(&mut directory, &stream.node())?;
            }
        }
        if self.directories.is_empty() && self.streams.first().is_some_and(|stream| stream.node().name == node.name) {
            let object = format!("stream {}", String::from_utf8_lossy(node.name));
            let what = "what is backed up has an entry of that name in the root directory".to_owned();
            return Err(repo::Error::Clash { object, what });
        }
        self.add(&mut directory, node)?;
        self.directories.push(directory);
        Ok(())
    }

    /// Adds an entry to a directory. One that has no room for more is kept with what it has, and told once.
    fn add(&mut self, directory: &mut TreeBuilder, node: &Node<'_>) -> repo::Result<()> {
        let Some(left) = self.entries_left.checked_sub(1) else {
            let object = String::from_utf8_lossy(directory.path()).into_owned();
            let what = format!("a snapshot has at most {ENTRIES_MAX} entries: back up fewer at a time");
            return Err(repo::Error::Clash { object, what });
        };
        self.entries_left = left;
        let was_full = directory.is_full();
        if !directory.push(node, &mut |leaf| self.store_plain(BlobKind::Tree, leaf))? && !was_full {
            let from = String::from_utf8_lossy(node.name);
            let what =
                format!("more entries than a directory of a snapshot can have; those from `{from}` on are left out");
            self.progress.error(directory.path(), "keep all of", what);
        }
        Ok(())
    }

    fn leave(&mut self) -> repo::Result<()> {
        let mut directory = self.directories.pop().expect("a directory was entered");
        if self.directories.is_empty() {
            for stream in std::mem::take(&mut self.streams) {
                self.add(&mut directory, &stream.node())?;
            }
        }
        let (entered, tree, entries) = directory.finish(&mut |leaf| self.store_plain(BlobKind::Tree, leaf))?;
        match entered.parent_tree {
            None => self.summary.dirs_new += 1,
            Some(parent) if parent == tree => self.summary.dirs_unmodified += 1,
            Some(_) => self.summary.dirs_changed += 1,
        }
        let kind = Kind::Directory { tree, entries };
        let node = Node { name: &entered.name, metadata: entered.metadata, kind, xattrs: Xattrs::new(&entered.xattrs) };
        if self.directories.is_empty() {
            self.owners(&entered.metadata);
            self.root = Some(OwnedNode::of(&Node { name: b"", ..node }));
            return Ok(());
        }
        self.push(&node)
    }

    fn store_plain(&mut self, kind: BlobKind, plain: &[u8]) -> repo::Result<BlobId> {
        let id = self.repo.blob_id(kind, &ContentHash::of(plain));
        self.store(kind, id, plain)?;
        Ok(id)
    }

    /// Stores a chunk of a file, as its delta if there is one.
    fn store_chunk(&mut self, id: BlobId, plain: &[u8], delta: Option<&[u8]>) -> repo::Result<()> {
        // What was stored plain and is lost becomes plain again: deltas of other snapshots may be made of it.
        if let (Some(writer), Some(delta)) = (&mut self.writer, delta)
            && !self.repo.index().lost_plain(&id)
        {
            return writer.store_delta(id, delta, plain.len()).map(drop);
        }
        self.store(BlobKind::Data, id, plain)
    }

    fn store(&mut self, kind: BlobKind, id: BlobId, plain: &[u8]) -> repo::Result<()> {
        match &mut self.writer {
            Some(writer) => {
                writer.store(kind, id, plain)?;
            }
            None if self.repo.has(&id) => {}
            None if !self.dry_blobs.insert(id) => {}
            None => {
                match kind {
                    BlobKind::Data => self.dry_stats.data_blobs += 1,
                    BlobKind::Tree | BlobKind::List => self.dry_stats.tree_blobs += 1,
                }
                self.dry_stats.plain_bytes += plain.len() as u64;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::browse::sample::{Sample, inline};

    /// A committer that is in the directory `/d`.
    fn in_a_directory() -> Committer {
        let progress = Arc::new(Progress::new());
        let pool = Arc::new(Pool::new("test", 1).expect("a thread"));
        let mut committer = Committer::new(Sample::new().repo, pool, None, progress);
        committer.directories.push(TreeBuilder::new(scan::Directory {
            name: b"d".to_vec(),
            path: b"/d".to_vec(),
            metadata: Metadata::default(),
            xattrs: Vec::new(),
            parent_tree: None,
        }));
        committer
    }

    #[test]
    fn a_snapshot_with_more_entries_than_a_mount_can_number_is_refused() {
        let mut committer = in_a_directory();
        committer.entries_left = 2;
        committer.push(&inline(b"a", b"x").node()).expect("one");
        committer.push(&inline(b"b", b"x").node()).expect("two");
        let refused = committer.push(&inline(b"c", b"x").node()).expect_err("there is no room for a third");
        assert!(refused.to_string().starts_with("/d cannot be stored"), "{refused}");
    }

    #[test]
    fn a_directory_that_is_too_large_is_told_once_and_the_backup_goes_on() {
        let mut committer = in_a_directory();
        committer.directories[0].index_left = 0;
        for name in ["a", "b", "c"] {
            committer.push(&inline(name.as_bytes(), b"x").node()).expect("goes on");
        }
        committer.leave().expect("the directory is kept");
        let errors = committer.progress.take_errors();
        assert_eq!((errors.len(), errors[0].path.as_slice()), (1, b"/d".as_slice()));
        assert!(errors[0].message.contains("`a`"), "{}", errors[0].message);
    }
}
