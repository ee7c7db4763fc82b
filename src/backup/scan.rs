//! The scan: walks the source beside the parent, groups what has to be read into batches, reads and cuts large files.
//!
//! One thread, behind that of the walk; it runs ahead of the committer by a fixed number of steps, each of bounded size, and no further.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::chunk::{CHUNK_LEN_MAX, Chunker, Scale};
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Metadata, Time, Xattrs};
use crate::id::{BlobId, ContentHash, ObjectId};
use crate::pool::{Pool, Urgency};
use crate::progress::Progress;
use crate::repo::{self, Repository};
use crate::source::read::{Extent, Extents};
use crate::source::{Entry, EntryKind, Event, WalkOptions};

use super::parent::{self, ParentDirectory};
use super::read::{Done, Reader, ToRead, hash_zeros, read_up_to};
use super::stream::{Open, Stream};
use super::walker::Walker;
use super::{Compare, Error, Options, ParentChoice};

/// Files longer than this, in bytes, are read and cut by the scan itself, in runs.
const SMALL_LEN_MAX: u64 = 1 << 20;
/// Bytes of small files in a batch, about.
const BATCH_LEN: u64 = 1 << 20;
/// Entries to read in a batch; each holds its directory open.
const BATCH_READ_MAX: usize = 128;
/// Entries in a batch.
const BATCH_ITEMS_MAX: usize = 1024;
/// Bytes of a run of a large file: enough to cut at least one chunk.
const RUN_LEN: usize = CHUNK_LEN_MAX;
/// Holes up to this many bytes are hashed as zeros; a file with more has no hash of its whole content.
const HOLES_HASHED_MAX: u64 = 256 << 20;
/// Inodes with several names that are remembered while their other names are looked for.
const LINKS_MAX: usize = 100_000;

/// Whether the parent has an entry of this name and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Was {
    New,
    Changed,
}

/// A directory that was entered.
pub(super) struct Directory {
    pub name: Vec<u8>,
    pub path: Vec<u8>,
    pub metadata: Metadata,
    pub xattrs: Vec<u8>,
    /// The parent's tree of it.
    pub parent_tree: Option<BlobId>,
}

/// One thing in a batch.
pub(super) enum Item {
    Enter(Directory),
    Leave,
    /// Taken over from the parent.
    Unchanged(crate::browse::OwnedNode),
    ToRead(ToRead),
    Done(Done),
    /// Another name of a file that was read before.
    Link {
        name: Vec<u8>,
        metadata: Metadata,
    },
    /// All names of this inode were met.
    ForgetLink((u64, u64)),
}

/// Consecutive entries, and the content of those that were read.
#[derive(Default)]
pub(super) struct Batch {
    pub items: Vec<Item>,
    pub content: Vec<u8>,
}

/// A piece of a run.
pub(super) enum Piece {
    Hole(u64),
    Chunk(ContentHash, Range<usize>),
}

/// Consecutive bytes of a large file.
pub(super) struct Run {
    pub content: Vec<u8>,
    pub pieces: Vec<Piece>,
}

impl Run {
    /// Bytes of the file that it covers.
    pub(super) fn len(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Hole(len) => *len,
                Piece::Chunk(_, range) => range.len() as u64,
            })
            .sum()
    }
}

/// What is known of a large file at its end.
pub(super) struct EndedFile {
    pub name: Vec<u8>,
    pub metadata: Metadata,
    pub xattrs: Vec<u8>,
    pub was: Was,
    pub hash: Option<ContentHash>,
    pub is_linked: bool,
    pub is_stream: bool,
}

/// `None` if the file could not be read to its end.
pub(super) type FileEnd = Option<EndedFile>;

/// What the committer takes, in order.
pub(super) enum Step {
    Batch(Receiver<Batch>),
    BeginFile,
    Run(Receiver<Run>),
    EndFile(FileEnd),
    /// The run cannot go on.
    Failed(Error),
}

/// What a scan needs.
pub(super) struct Setup<'a> {
    pub repo: &'a Arc<Repository>,
    pub options: &'a Options,
    pub host: &'a str,
    pub snapshots: &'a [(ObjectId, Snapshot)],
    pub pool: &'a Arc<Pool>,
    pub progress: &'a Arc<Progress>,
}

/// A scan that has begun.
pub(super) struct Scan {
    pub steps: Receiver<Step>,
    pub paths: Vec<Vec<u8>>,
    pub parent: Option<(ObjectId, Snapshot)>,
    pub previous: Option<ObjectId>,
}

/// What the scan finds out before its first step.
struct Begun {
    paths: Vec<Vec<u8>>,
    parent: Option<(ObjectId, Snapshot)>,
    previous: Option<ObjectId>,
}

/// Starts the scan on a thread of its own; returns once its targets and its parent are known.
pub(super) fn start(setup: Setup<'_>) -> Result<Scan, Error> {
    let Setup { repo, options, host, snapshots, pool, progress } = setup;
    let (steps, receiver) = sync_channel((2 * pool.threads() + 2).min(16));
    let (begun_sender, begun) = sync_channel(1);
    let mut streams = options.streams.clone();
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    let (walk, choice, compare) = (options.walk.clone(), options.parent, options.compare);
    let (repo, host, snapshots, pool, progress) =
        (repo.clone(), host.to_owned(), snapshots.to_vec(), pool.clone(), progress.clone());
    let scan = move || {
        let reader = Arc::new(Reader { chunker: repo.chunker(), progress: progress.clone(), repo: repo.clone() });
        let chunker = repo.chunker();
        let sender = Sender { steps, pool };
        let mut scanner = Scanner {
            repo: &repo,
            progress: &progress,
            reader,
            chunker,
            sender,
            compare,
            batch: Batch::default(),
            batch_len: 0,
            batch_read: 0,
            links: HashMap::new(),
        };
        scanner.scan(walk, &streams, |paths: &[Vec<u8>]| {
            let mut paths = paths.to_vec();
            paths.extend(streams.iter().map(|stream| format!("/{}", stream.name).into_bytes()));
            paths.sort();
            let newest = parent::newest(&snapshots, &host, &paths);
            let parent = match choice {
                ParentChoice::Newest => newest.cloned(),
                ParentChoice::None => None,
                ParentChoice::Snapshot(id) => snapshots.iter().find(|(other, _)| *other == id).cloned(),
            };
            let previous = newest.map(|(id, _)| *id);
            let root = parent.as_ref().map(|(_, snapshot)| snapshot.root().kind);
            let tree = root.and_then(|kind| match kind {
                Kind::Directory { tree, .. } => Some(tree),
                _ => None,
            });
            let _ = begun_sender.send(Begun { paths, parent, previous });
            tree
        });
    };
    let system = |source| repo::Error::System { op: "start a thread", source };
    std::thread::Builder::new().name("scan".to_owned()).spawn(scan).map_err(system)?;
    match begun.recv() {
        Ok(Begun { paths, parent, previous }) => Ok(Scan { steps: receiver, paths, parent, previous }),
        Err(_) => match receiver.recv() {
            Ok(Step::Failed(error)) => Err(error),
            _ => Err(system(io::Error::other("the scan ended early")).into()),
        },
    }
}

/// The committer is gone, so there is no reason to go on.
struct Stopped;

type Go<T = ()> = Result<T, Stopped>;

struct Sender {
    steps: SyncSender<Step>,
    pool: Arc<Pool>,
}

impl Sender {
    fn send(&self, step: Step) -> Go {
        self.steps.send(step).map_err(|_| Stopped)
    }

    /// Has `work` done on the pool and its result taken by the committer in this place.
    fn send_work<T: Send + 'static>(
        &self,
        step: impl FnOnce(Receiver<T>) -> Step,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Go {
        let (result, receiver) = sync_channel(1);
        // First the place, which waits while too much is in flight, then the work.
        self.send(step(receiver))?;
        self.pool.submit(Urgency::Normal, move || {
            let _ = result.send(work());
        });
        Ok(())
    }
}

struct Scanner<'a> {
    repo: &'a Repository,
    progress: &'a Progress,
    reader: Arc<Reader>,
    chunker: Chunker,
    sender: Sender,
    compare: Compare,
    batch: Batch,
    batch_len: u64,
    batch_read: usize,
    /// Inodes with several names: how many are still to come, and when the inode had changed last. One that has changed
    /// since may be another file by now.
    links: HashMap<(u64, u64), (u32, Time)>,
}

impl Scanner<'_> {
    fn scan(&mut self, options: WalkOptions, streams: &[Stream], begin: impl FnOnce(&[Vec<u8>]) -> Option<BlobId>) {
        let has_targets = !options.targets.is_empty();
        let mut walk = None;
        if has_targets || streams.is_empty() {
            let failed = match Walker::start(options, self.reader.progress.clone()) {
                Ok(Ok(found)) => {
                    walk = Some(found);
                    None
                }
                Ok(Err(error)) => Some(Error::from(error)),
                Err(source) => Some(repo::Error::System { op: "start a thread", source }.into()),
            };
            if let Some(error) = failed {
                drop(begin);
                let _ = self.sender.send(Step::Failed(error));
                return;
            }
        }
        let tree = begin(walk.as_ref().map_or(&[], Walker::targets));
        let _ = self.steps(walk, streams, tree);
    }

    fn steps(&mut self, walk: Option<Walker>, streams: &[Stream], tree: Option<BlobId>) -> Go {
        for stream in streams {
            if let Err(message) = self.stream(stream)? {
                let name = stream.name.clone();
                return self.sender.send(Step::Failed(Error::Stream { name, message: message.to_string() }));
            }
        }
        match walk {
            Some(walk) => self.walk(walk, tree)?,
            None => {
                self.item(Item::Enter(Directory {
                    name: Vec::new(),
                    path: b"/".to_vec(),
                    metadata: stream_metadata(0o755),
                    xattrs: Vec::new(),
                    parent_tree: tree,
                }))?;
                self.item(Item::Leave)?;
            }
        }
        self.flush()
    }

    fn walk(&mut self, walk: Walker, tree: Option<BlobId>) -> Go {
        let repo = self.repo;
        let mut parents: Vec<ParentDirectory<'_>> = Vec::new();
        let mut paths: Vec<Vec<u8>> = Vec::new();
        for (event, path) in walk {
            if self.progress.is_cancelled() {
                return Err(Stopped);
            }
            match event {
                Event::Enter(entry) => {
                    let node = parents.last_mut().and_then(|parent| parent.take(entry.name()));
                    let node = node.as_ref().map(|node| node.node());
                    let parent_tree = match node.map(|node| node.kind) {
                        Some(Kind::Directory { tree, .. }) => Some(tree),
                        Some(_) => None,
                        None if parents.is_empty() => tree,
                        None => None,
                    };
                    parents.push(ParentDirectory::new(repo, parent_tree));
                    let metadata = *entry.metadata();
                    paths.push(path.clone());
                    // An attribute cannot change without the inode's change time.
                    let known = node
                        .filter(|node| (node.metadata.ctime, node.metadata.inode) == (metadata.ctime, metadata.inode));
                    let xattrs = match known {
                        Some(node) if !self.compare.ignore_ctime => node.xattrs.encoded().to_vec(),
                        _ => entry.xattrs(|error| {
                            self.progress.error(&path, "read an extended attribute of", error);
                        }),
                    };
                    debug_assert!(Xattrs::new(&xattrs).encoded().len() == xattrs.len());
                    let name = entry.name().to_vec();
                    self.item(Item::Enter(Directory { name, path, metadata, xattrs, parent_tree }))?;
                }
                Event::Leave => {
                    parents.pop();
                    paths.pop();
                    self.item(Item::Leave)?;
                }
                Event::Entry(entry) => {
                    let parent = parents.last_mut().expect("entries come inside directories");
                    self.entry(entry, parent, paths.last().expect("entered with its directory"))?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry, parent: &mut ParentDirectory<'_>, directory: &[u8]) -> Go {
        let mut was = Was::New;
        if let Some(node) = parent.take(entry.name()) {
            let is_file = |kind: Kind<'_>| matches!(kind, Kind::File { .. });
            let both_files = is_file(node.node().kind) && matches!(entry.kind(), EntryKind::File { .. });
            if both_files {
                was = Was::Changed;
            }
            if let Some(node) = parent.unchanged(node, &entry, self.compare) {
                return self.item(Item::Unchanged(node));
            }
        }
        let metadata = *entry.metadata();
        let mut is_linked = false;
        if metadata.nlink > 1 && matches!(entry.kind(), EntryKind::File { .. }) {
            let key = (metadata.dev, metadata.inode);
            if let Some((left, ctime)) = self.links.get_mut(&key)
                && *ctime == metadata.ctime
            {
                *left -= 1;
                let is_last = *left == 0;
                self.item(Item::Link { name: entry.name().to_vec(), metadata })?;
                if is_last {
                    self.links.remove(&key);
                    self.item(Item::ForgetLink(key))?;
                }
                return Ok(());
            }
            if self.links.len() < LINKS_MAX {
                self.links.insert(key, (metadata.nlink - 1, metadata.ctime));
                is_linked = true;
            }
        }
        let slash: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
        let path = [directory, slash, entry.name()].concat();
        match entry.kind() {
            EntryKind::File { size } if size <= SMALL_LEN_MAX => {
                self.batch_len += size;
                self.add_to_read(ToRead { entry, path, was, is_linked })
            }
            EntryKind::File { .. } | EntryKind::Volume { .. } => self.large_file(&entry, &path, was, is_linked),
            _ => self.add_to_read(ToRead { entry, path, was, is_linked }),
        }
    }

    fn add_to_read(&mut self, to_read: ToRead) -> Go {
        self.batch_read += 1;
        self.item(Item::ToRead(to_read))
    }

    fn item(&mut self, item: Item) -> Go {
        self.batch.items.push(item);
        let is_full = self.batch_len >= BATCH_LEN
            || self.batch_read >= BATCH_READ_MAX
            || self.batch.items.len() >= BATCH_ITEMS_MAX;
        if is_full { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Go {
        if self.batch.items.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::take(&mut self.batch);
        let has_work = std::mem::take(&mut self.batch_read) > 0;
        let len = std::mem::take(&mut self.batch_len) as usize;
        if !has_work {
            let (result, receiver) = sync_channel(1);
            let _ = result.send(batch);
            return self.sender.send(Step::Batch(receiver));
        }
        let reader = self.reader.clone();
        self.sender.send_work(Step::Batch, move || {
            batch.content.reserve_exact(len);
            reader.process(&mut batch);
            batch
        })
    }

    fn large_file(&mut self, entry: &Entry, path: &[u8], was: Was, is_linked: bool) -> Go {
        self.flush()?;
        self.progress.set_current(path);
        let open = match entry.open() {
            Ok(open) => open,
            Err(error) => {
                self.progress.error(path, "open", error);
                return Ok(());
            }
        };
        self.sender.send(Step::BeginFile)?;
        let mut cutter = Cutter::new(&self.sender, &self.chunker, self.progress);
        let mut is_short = false;
        let mut read_error = None;
        for extent in Extents::new(&open) {
            match extent {
                Extent::Hole(range) => cutter.hole(range.end - range.start)?,
                Extent::Data(range) => {
                    let mut at = range.start;
                    let read = cutter.data(|out| {
                        let want = out.len().min((range.end - at) as usize);
                        let len = read_up_to(&open.file, &mut out[..want], at)?;
                        at += len as u64;
                        Ok(len)
                    })?;
                    if let Err(error) = read {
                        read_error = Some(error);
                        break;
                    }
                    is_short = at < range.end;
                    if is_short {
                        break;
                    }
                }
            }
        }
        let hash = cutter.finish()?;
        if let Some(error) = read_error {
            self.progress.error(path, "read", error);
            return self.sender.send(Step::EndFile(None));
        }
        let is_volume = matches!(entry.kind(), EntryKind::Volume { .. });
        match open.has_changed() {
            Ok(false) if !is_short => {}
            // A device's times say nothing.
            Ok(_) if is_volume && !is_short => {}
            Ok(_) => self.progress.error(path, "read", "the file changed while it was read; what was read is kept"),
            Err(error) => self.progress.error(path, "stat", error),
        }
        let xattrs = open.xattrs(|error| self.progress.error(path, "read an extended attribute of", error));
        let name = entry.name().to_vec();
        let metadata = *entry.metadata();
        self.sender.send(Step::EndFile(Some(EndedFile {
            name,
            metadata,
            xattrs,
            was,
            hash,
            is_linked,
            is_stream: false,
        })))
    }

    fn stream(&mut self, stream: &Stream) -> Go<io::Result<()>> {
        self.progress.set_current(stream.name.as_bytes());
        let mut open = match Open::start(&stream.source) {
            Ok(open) => open,
            Err(error) => return Ok(Err(error)),
        };
        self.sender.send(Step::BeginFile)?;
        let mut cutter = Cutter::new(&self.sender, &self.chunker, self.progress);
        let read = cutter.data(|out| open.read(out))?;
        let hash = cutter.finish()?;
        if let Err(error) = read.and_then(|()| open.finish()) {
            return Ok(Err(error));
        }
        let (name, metadata) = (stream.name.clone().into_bytes(), stream_metadata(0o600));
        self.sender.send(Step::EndFile(Some(EndedFile {
            name,
            metadata,
            xattrs: Vec::new(),
            was: Was::New,
            hash,
            is_linked: false,
            is_stream: true,
        })))?;
        Ok(Ok(()))
    }
}

/// What a file that no file system knows has as metadata.
fn stream_metadata(mode: u32) -> Metadata {
    let now = super::now();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Metadata { mode, uid, gid, mtime: now, ctime: now, atime: None::<Time>, nlink: 1, ..Metadata::default() }
}

/// Cuts the bytes of a large file into chunks and sends them in runs, to be hashed on the pool.
struct Cutter<'a> {
    sender: &'a Sender,
    chunker: &'a Chunker,
    progress: &'a Progress,
    content: Vec<u8>,
    /// Up to here the content is cut.
    cut: usize,
    /// Where that is in the file.
    offset: u64,
    scale: Option<Scale>,
    pieces: Vec<UnhashedPiece>,
    hasher: Option<blake3::Hasher>,
    holes_len: u64,
}

enum UnhashedPiece {
    Hole(u64),
    Chunk(Range<usize>),
}

impl<'a> Cutter<'a> {
    fn new(sender: &'a Sender, chunker: &'a Chunker, progress: &'a Progress) -> Self {
        let hasher = Some(blake3::Hasher::new());
        let content = Vec::with_capacity(RUN_LEN);
        Self {
            sender,
            chunker,
            progress,
            content,
            cut: 0,
            offset: 0,
            scale: None,
            pieces: Vec::new(),
            hasher,
            holes_len: 0,
        }
    }

    fn hole(&mut self, len: u64) -> Go {
        self.holes_len += len;
        self.offset += len;
        match &mut self.hasher {
            Some(hasher) if self.holes_len <= HOLES_HASHED_MAX => hash_zeros(hasher, len),
            _ => self.hasher = None,
        }
        self.pieces.push(UnhashedPiece::Hole(len));
        Ok(())
    }

    /// Takes in bytes until `read` returns 0; a read error is returned inside.
    fn data(&mut self, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Go<io::Result<()>> {
        loop {
            if self.progress.is_cancelled() {
                return Err(Stopped);
            }
            if self.content.len() == RUN_LEN {
                self.send()?;
            }
            let at = self.content.len();
            self.content.resize(RUN_LEN, 0);
            let len = match read(&mut self.content[at..]) {
                Ok(len) => len,
                Err(error) => {
                    self.content.truncate(at);
                    return Ok(Err(error));
                }
            };
            self.content.truncate(at + len);
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&self.content[at..]);
            }
            let is_end = len == 0;
            self.cut_chunks(is_end);
            if is_end {
                return Ok(Ok(()));
            }
        }
    }

    fn cut_chunks(&mut self, is_end: bool) {
        loop {
            let left = &self.content[self.cut..];
            let scale = *self.scale.get_or_insert_with(|| Scale::of(left));
            let is_enough = left.len() >= self.chunker.len_max(scale, self.offset);
            if !(is_enough || is_end && !left.is_empty()) {
                return;
            }
            let len = self.chunker.cut(left, scale, self.offset);
            self.pieces.push(UnhashedPiece::Chunk(self.cut..self.cut + len));
            self.cut += len;
            self.offset += len as u64;
        }
    }

    /// Sends what is cut and keeps the rest.
    fn send(&mut self) -> Go {
        let mut next = Vec::with_capacity(RUN_LEN);
        next.extend_from_slice(&self.content[self.cut..]);
        let content = std::mem::replace(&mut self.content, next);
        self.cut = 0;
        let pieces = std::mem::take(&mut self.pieces);
        self.sender.send_work(Step::Run, move || {
            let hash = |piece| match piece {
                UnhashedPiece::Hole(len) => Piece::Hole(len),
                UnhashedPiece::Chunk(range) => Piece::Chunk(ContentHash::of(&content[range.clone()]), range),
            };
            let pieces = pieces.into_iter().map(hash).collect();
            Run { content, pieces }
        })
    }

    /// Sends the rest; returns the hash of the whole content unless its holes are too long.
    fn finish(mut self) -> Go<Option<ContentHash>> {
        if !self.pieces.is_empty() {
            self.send()?;
        }
        Ok(self.hasher.map(|hasher| ContentHash(*hasher.finalize().as_bytes())))
    }
}
