//! The scan: walks the source beside the parent, groups what has to be read into batches, reads and cuts large files.
//!
//! One thread, behind that of the walk; it runs ahead of the committer by a fixed number of steps, each of bounded size, and no further.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::browse::OwnedNode;
use crate::chunk::Chunker;
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Metadata, Time, Xattrs};
use crate::id::{BlobId, ObjectId};
use crate::pool::{Pool, Urgency};
use crate::progress::Progress;
use crate::repo::{self, Repository};
use crate::source::{Entry, EntryKind, Event, WalkOptions};

use super::long::{self, CutRun, Cutter, EndedFile, FileEnd, Go, Run, Stopped};
use super::parent::{self, ParentDirectory, Unread};
use super::read::{Done, Reader, ToRead};
use super::stream::{Open, Running, Stream};
use super::walker::Walker;
use super::{Compare, Error, Options, ParentChoice};

/// Files longer than this, in bytes, are read and cut by the scan itself, in runs.
pub(super) const SMALL_LEN_MAX: u64 = 1 << 20;
/// Bytes of small files in a batch, about.
const BATCH_LEN: u64 = 1 << 20;
/// Entries to read in a batch; each holds its directory open.
const BATCH_READ_MAX: usize = 128;
/// Entries in a batch.
const BATCH_ITEMS_MAX: usize = 1024;
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
    Unchanged(OwnedNode),
    ToRead(ToRead),
    Done(Done),
    /// A file that has become too long for a batch since the walk.
    Grown(ToRead),
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

/// What the committer takes, in order.
pub(super) enum Step {
    Batch(Receiver<Batch>),
    /// With its earlier version, if deltas are to be made of that.
    BeginFile(Option<OwnedNode>),
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
    pub running: &'a Running,
}

/// A scan that has begun.
pub(super) struct Scan {
    pub steps: Receiver<Step>,
    pub paths: Vec<Vec<u8>>,
    pub parent: Option<(ObjectId, Snapshot)>,
    pub previous: Option<ObjectId>,
    /// Why some of the parent could not be read; final when the steps are at their end.
    pub unread: Unread,
}

/// What the scan finds out before its first step.
struct Begun {
    paths: Vec<Vec<u8>>,
    parent: Option<(ObjectId, Snapshot)>,
    previous: Option<ObjectId>,
}

/// Starts the scan on a thread of its own; returns once its targets and its parent are known.
pub(super) fn start(setup: Setup<'_>) -> Result<Scan, Error> {
    let Setup { repo, options, host, snapshots, pool, progress, running } = setup;
    let (steps, receiver) = sync_channel((2 * pool.threads() + 2).min(16));
    let (begun_sender, begun) = sync_channel(1);
    let mut streams = options.streams.clone();
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    let (walk, choice, compare) = (options.walk.clone(), options.parent, options.compare);
    let with_deltas = options.deltas && !options.dry_run;
    let (repo, host, snapshots, pool, progress) =
        (repo.clone(), host.to_owned(), snapshots.to_vec(), pool.clone(), progress.clone());
    let told = Unread::default();
    let unread = told.clone();
    let running = running.clone();
    let scan = move || {
        let reader = Arc::new(Reader { chunker: repo.chunker(), progress: progress.clone(), repo: repo.clone() });
        let chunker = repo.chunker();
        let sender = Sender { steps, pool };
        let mut scanner = Scanner {
            repo: &repo,
            progress: &progress,
            running,
            reader,
            chunker,
            sender,
            compare,
            with_deltas,
            asked_for_parent: if let ParentChoice::Snapshot(id) = choice { Some(id) } else { None },
            unread: unread.clone(),
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
            if parent.is_none() && matches!(choice, ParentChoice::Snapshot(_)) {
                let _ = unread.set("its object is missing or damaged".to_owned());
            }
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
        Ok(Begun { paths, parent, previous }) => Ok(Scan { steps: receiver, paths, parent, previous, unread: told }),
        Err(_) => match receiver.recv() {
            Ok(Step::Failed(error)) => Err(error),
            _ => Err(system(io::Error::other("the scan ended early")).into()),
        },
    }
}

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
    running: Running,
    reader: Arc<Reader>,
    chunker: Chunker,
    sender: Sender,
    compare: Compare,
    /// Whether earlier versions of files are handed on.
    with_deltas: bool,
    /// The parent, if the user named one.
    asked_for_parent: Option<ObjectId>,
    /// Why some of the parent could not be read.
    unread: Unread,
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
        let mut root = ParentDirectory::new(self.repo, if streams.is_empty() { None } else { tree }, &self.unread);
        self.check_parent()?;
        for stream in streams {
            let old = root.take(stream.name.as_bytes());
            if let Err(message) = self.stream(stream, old)? {
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
        let (repo, unread) = (self.repo, self.unread.clone());
        let mut parents: Vec<ParentDirectory<'_>> = Vec::new();
        let mut paths: Vec<Vec<u8>> = Vec::new();
        for (event, path) in walk {
            if self.progress.is_cancelled() {
                return Err(Stopped);
            }
            self.check_parent()?;
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
                    parents.push(ParentDirectory::new(repo, parent_tree, &unread));
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
        self.check_parent()
    }

    /// Ends the run if the parent that was asked for cannot be read. Any other one only saves work.
    fn check_parent(&self) -> Go {
        match (self.asked_for_parent, self.unread.get()) {
            (Some(id), Some(message)) => {
                self.sender.send(Step::Failed(Error::Parent { id, message: message.clone() }))?;
                Err(Stopped)
            }
            _ => Ok(()),
        }
    }

    fn entry(&mut self, entry: Entry, parent: &mut ParentDirectory<'_>, directory: &[u8]) -> Go {
        let mut was = Was::New;
        let mut earlier = None;
        if let Some(node) = parent.take(entry.name()) {
            let is_file = |kind: Kind<'_>| matches!(kind, Kind::File { .. });
            let both_files = is_file(node.node().kind) && matches!(entry.kind(), EntryKind::File { .. });
            if both_files {
                was = Was::Changed;
            }
            let unchanged = parent.unchanged(node, &entry, self.compare, |error| {
                self.progress.error(&path_of(directory, &entry), "read an extended attribute of", error);
            });
            match unchanged {
                Ok(node) => return self.item(Item::Unchanged(node)),
                Err(node) => earlier = Some(node).filter(|_| self.with_deltas),
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
        let path = path_of(directory, &entry);
        match entry.kind() {
            EntryKind::File { size } if size <= SMALL_LEN_MAX => {
                self.batch_len += size;
                self.add_to_read(ToRead { entry, path, was, is_linked, earlier })
            }
            EntryKind::File { .. } | EntryKind::Volume { .. } => {
                self.long_file(ToRead { entry, path, was, is_linked, earlier })
            }
            _ => self.add_to_read(ToRead { entry, path, was, is_linked, earlier: None }),
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

    fn long_file(&mut self, mut to_read: ToRead) -> Go {
        self.flush()?;
        self.progress.set_current(&to_read.path);
        let open = match long::open(&mut to_read) {
            Ok(Some(open)) => open,
            Ok(None) => return self.add_to_read(to_read),
            Err(error) => {
                self.progress.error(&to_read.path, "open", error);
                return Ok(());
            }
        };
        self.sender.send(Step::BeginFile(to_read.earlier.take()))?;
        let end = long::read(to_read, &open, self.cutter(), self.progress)?;
        self.sender.send(Step::EndFile(end))
    }

    /// A cutter whose runs are hashed on the pool.
    fn cutter(&self) -> Cutter<'_, impl FnMut(CutRun) -> Go> {
        let sender = &self.sender;
        Cutter::new(&self.chunker, self.progress, |run| sender.send_work(Step::Run, move || run.hash()))
    }

    fn stream(&mut self, stream: &Stream, old: Option<OwnedNode>) -> Go<io::Result<()>> {
        self.progress.set_current(stream.name.as_bytes());
        let mut open = match Open::start(&stream.source, &self.running) {
            Ok(open) => open,
            Err(error) => return Ok(Err(error)),
        };
        self.sender.send(Step::BeginFile(old.clone().filter(|_| self.with_deltas)))?;
        let mut cutter = self.cutter();
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
            stream: Some(old),
        })))?;
        Ok(Ok(()))
    }
}

fn path_of(directory: &[u8], entry: &Entry) -> Vec<u8> {
    let slash: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
    [directory, slash, entry.name()].concat()
}

/// What a file that no file system knows has as metadata.
fn stream_metadata(mode: u32) -> Metadata {
    let now = super::now();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Metadata { mode, uid, gid, mtime: now, ctime: now, atime: None::<Time>, nlink: 1, ..Metadata::default() }
}
