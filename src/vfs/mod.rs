//! A read-only file system over a repository's snapshots. Runs without a kernel: inode numbers in, attributes and bytes out.
//!
//! Stateless towards its caller: a number leads to its node by descent from the snapshot's root, so nothing need be
//! remembered or forgotten, except files with several names. What is not in the repository is `NotFound` only when the
//! directory was read and has no such name; whatever could not be read is an error, never a short or zero answer.

mod cache;
mod content;
mod directory;
mod inode;
mod layout;
mod prefill;
mod readahead;
mod recent;
mod template;

pub use inode::ROOT;
pub use prefill::{Prefill, Take};
pub use template::{PATH_TEMPLATES, TIME_TEMPLATE, TemplateError, Templates};

use std::collections::{HashMap, HashSet, hash_map};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::format::codec::DecodeError;
use crate::format::content::Content;
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Base, Kind, Metadata, Node, Time};
use crate::id::{BlobId, BlobKind, ContentHash, ObjectId};
use crate::pool::cores;
use crate::repo::reader::ReadCounts;
use crate::repo::{self, Blob, Repository};

use cache::Cache;
use content::{File, Lists};
use directory::{Directory, Place};
use inode::{Inode, NodeAt};
use layout::{Entry, Layout, Numbers, Virtual};
use readahead::ReadAhead;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory was read and has no such name, or the number names nothing.
    #[error("no such file or directory")]
    NotFound,
    /// A number that is not, or no longer, known.
    #[error("stale inode number")]
    Stale,
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// A file was expected.
    #[error("is a directory")]
    IsDirectory,
    /// The operation does not fit the kind of inode.
    #[error("invalid operation for this kind of file")]
    Invalid,
    /// The inode has no such attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// A seek beyond the end or the last data.
    #[error("no data beyond this offset")]
    NoData,
    /// The answer is not in memory, and the caller asked not to wait.
    #[error("the operation would wait")]
    WouldBlock,
    /// The repository could not give what it must have.
    #[error(transparent)]
    Repository(repo::Error),
}

impl From<repo::Error> for Error {
    fn from(error: repo::Error) -> Self {
        if error.would_wait() { Error::WouldBlock } else { Error::Repository(error) }
    }
}

/// Result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn corrupt(what: &str, id: BlobId, error: DecodeError) -> Error {
        Error::Repository(repo::Error::decode(format!("{what} {id}"), error))
    }
}

/// Whether an operation may wait for storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes; [`Error::WouldBlock`] only on a thread that may not wait for the store itself.
    Yes,
    /// Only what memory holds; [`Error::WouldBlock`] otherwise.
    No,
}

/// What the mount's root shows.
pub enum View {
    /// Directories of snapshots.
    Snapshots(Templates),
    /// One directory of one snapshot.
    Subtree {
        /// The snapshot.
        snapshot: ObjectId,
        /// The directory in it; names, no slashes.
        path: Vec<Vec<u8>>,
    },
}

/// Which snapshots are shown.
pub type Filter = Box<dyn Fn(&ObjectId, &Snapshot) -> bool + Send + Sync>;

/// What is shown and as whose.
pub struct Options {
    /// What the root shows.
    pub view: View,
    /// Snapshots to show.
    pub filter: Filter,
    /// Owner and group of the view directories.
    pub view_owner: (u32, u32),
    /// Shown as owner and group of everything in snapshots, if set.
    pub owner: Option<(u32, u32)>,
    /// Bytes of decoded directories kept.
    pub directory_cache_len: usize,
    /// Threads that decode ahead of readers.
    pub ahead_threads: usize,
}

impl Options {
    /// The usual view of all snapshots.
    pub fn new(view: View) -> Self {
        Self {
            view,
            filter: Box::new(|_, _| true),
            view_owner: (0, 0),
            owner: None,
            directory_cache_len: 64 << 20,
            ahead_threads: cores(),
        }
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Everything `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub inode: u64,
    /// Kind.
    pub kind: FileKind,
    /// The low 12 bits of `st_mode`.
    pub mode: u32,
    /// Number of names in the source; 1 for directories, which tells `find` that it says nothing of subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Units of 512 bytes that hold data, so that holes show.
    pub blocks: u64,
    /// Best length of reads in bytes.
    pub block_len: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Whether it stays as it is for ever; the views change when snapshots come and go.
    pub lasting: bool,
}

/// Takes an entry of a listing; true when it has no room for it.
type Emit<'e> = &'e mut dyn FnMut(Listed<'_>) -> bool;

/// One entry of a listing.
pub struct Listed<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The offset at which to go on after it.
    pub next: u64,
    /// Its attributes; for `.` and `..` only number and kind are right.
    pub attr: Attr,
}

/// What a seek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is stored.
    Data,
    /// The next hole, or the end.
    Hole,
}

/// Name of the attribute that tells a file's BLAKE3. Readable but never listed: copies must not take it along.
pub const HASH_XATTR: &[u8] = b"user.bygone.blake3";

/// How long a list of snapshots is believed.
const FRESH: Duration = Duration::from_secs(2);
const LIST_CACHE_LEN: usize = 32 << 20;
const FILE_CACHE_LEN: usize = 8 << 20;
const SPOT_CACHE_LEN: usize = 8 << 20;
const PAGE_LEN: u64 = 4096;
/// Never written, so that the system backs all of it by its one page of zeros.
static ZEROS: LazyLock<Box<[u8]>> = LazyLock::new(|| vec![0; 1 << 20].into());

/// The file system.
pub struct Vfs {
    repo: Arc<Repository>,
    options: Options,
    state: RwLock<State>,
    /// Serializes refreshes.
    known: Mutex<Known>,
    directories: Cache<BlobId, Arc<Directory>>,
    spots: Cache<NodeAt, Spot>,
    recent: recent::Leaves,
    files: Cache<u64, Arc<File>>,
    lists: Arc<Lists>,
    ahead: ReadAhead,
    prefills: prefill::Prefills,
    links: Mutex<HashMap<u64, Link>>,
    /// The root, if it is a directory of a snapshot.
    root: Option<NodeAt>,
}

#[derive(Default)]
struct State {
    layout: Arc<Layout>,
    /// Root records of the snapshots, by instance; those of vanished snapshots stay for whoever is inside, up to a number.
    roots: HashMap<u32, Arc<[u8]>>,
}

/// What a refresh starts from.
#[derive(Default)]
struct Known {
    /// When the list of snapshots was last read.
    at: Option<Instant>,
    snapshots: HashMap<ObjectId, Snapshot>,
    numbers: Numbers,
}

/// A directory of a snapshot: what its listing needs.
#[derive(Clone, Copy)]
struct Spot {
    at: NodeAt,
    parent: NodeAt,
    tree: BlobId,
    entries: u64,
}

/// A file with several names, while its number is in use.
struct Link {
    at: NodeAt,
    lookups: u64,
}

/// A node that was found.
struct Found {
    at: NodeAt,
    parent: NodeAt,
    source: Source,
}

enum Source {
    Root(Arc<[u8]>),
    Entry(Arc<Directory>, usize),
}

impl Found {
    fn node(&self) -> Node<'_> {
        match &self.source {
            Source::Root(record) => Node::decode(record, &Base::default()).expect("encoded from a decoded node"),
            Source::Entry(directory, position) => directory.node(*position),
        }
    }

    /// Whether there are extended attributes; far cheaper than decoding the node.
    fn has_xattrs(&self) -> bool {
        match &self.source {
            Source::Root(record) => Node::has_xattrs(record),
            Source::Entry(directory, position) => directory.has_xattrs(*position),
        }
    }

    fn spot(&self) -> Result<Spot> {
        match self.node().kind {
            Kind::Directory { tree, entries } => Ok(Spot { at: self.at, parent: self.parent, tree, entries }),
            _ => Err(Error::NotDirectory),
        }
    }
}

impl Vfs {
    /// A file system over `repo`; reads the list of snapshots.
    pub fn new(repo: Arc<Repository>, options: Options) -> Result<Vfs> {
        let mut vfs = Vfs {
            directories: Cache::new(options.directory_cache_len),
            spots: Cache::new(SPOT_CACHE_LEN),
            recent: recent::Leaves::default(),
            files: Cache::new(FILE_CACHE_LEN),
            lists: Arc::new(Lists::new(LIST_CACHE_LEN)),
            ahead: ReadAhead::new(repo.clone(), options.ahead_threads)
                .map_err(|source| repo::Error::System { op: "start threads", source })?,
            prefills: prefill::Prefills::new(),
            links: Mutex::default(),
            state: RwLock::default(),
            known: Mutex::default(),
            root: None,
            repo,
            options,
        };
        vfs.reload(&mut vfs.known.lock().expect("no panic while held"))?;
        vfs.root = vfs.find_root()?;
        Ok(vfs)
    }

    /// What reading from the repository has cost so far.
    pub fn read_counts(&self) -> ReadCounts {
        self.repo.read_counts()
    }

    /// Whether the inode belongs to the views and the list of snapshots is old enough to be read again first.
    pub fn is_stale(&self, number: u64) -> bool {
        let view = self.root.is_none() && matches!(Inode::from_number(number), Inode::Virtual(_));
        view && match self.known.try_lock() {
            Ok(known) => known.at.is_none_or(|at| at.elapsed() > FRESH),
            Err(_) => true,
        }
    }

    /// Whether what is known of the inode holds for ever; not so for the views.
    pub fn is_lasting(&self, number: u64) -> bool {
        self.root.is_some() || !matches!(Inode::from_number(number), Inode::Virtual(_))
    }

    /// Reads the list of snapshots again if it is old; the view directories that changed, by inode number.
    pub fn refresh(&self) -> Result<Vec<u64>> {
        let mut known = self.known.lock().expect("no panic while held");
        if self.root.is_some() || known.at.is_some_and(|at| at.elapsed() <= FRESH) {
            return Ok(Vec::new());
        }
        let before = self.layout();
        let result = self.reload(&mut known);
        // Even a failure counts: a store that is down is not asked again for each name.
        known.at = Some(Instant::now());
        result?;
        Ok(self.layout().changed_since(&before))
    }

    fn reload(&self, known: &mut Known) -> Result<()> {
        if let View::Subtree { snapshot: id, .. } = &self.options.view {
            let record = root_record(&self.repo.snapshot(id)?);
            let instance = inode::instance(b"", id, |_| false);
            self.state.write().expect("no panic while held").roots.insert(instance, record);
            return Ok(());
        }
        let View::Snapshots(templates) = &self.options.view else { unreachable!("the other view is done") };
        let ids = self.repo.snapshot_ids()?;
        let unknown: Vec<_> = ids.iter().filter(|id| !known.snapshots.contains_key(id)).copied().collect();
        let new = self.repo.read_snapshots(&unknown)?;
        if !new.is_empty() && known.at.is_some() {
            // Before any new snapshot is shown, so that its blobs are found.
            self.repo.refresh()?;
        }
        let ids: HashSet<ObjectId> = ids.into_iter().collect();
        if new.is_empty() && known.at.is_some() && known.snapshots.keys().all(|id| ids.contains(id)) {
            known.at = Some(Instant::now());
            return Ok(());
        }
        known.snapshots.retain(|id, _| ids.contains(id));
        known.snapshots.extend(new);
        let mut shown: Vec<_> = known.snapshots.iter().filter(|(id, s)| (self.options.filter)(id, s)).collect();
        shown.sort_by_key(|(id, snapshot)| (snapshot.time, **id));
        let layout = Layout::new(shown.into_iter(), templates, &mut known.numbers);
        let forgotten = known.numbers.forget_vanished(&layout);
        let mut state = self.state.write().expect("no panic while held");
        for instance in forgotten {
            state.roots.remove(&instance);
        }
        for (instance, id) in &layout.instances {
            state.roots.entry(*instance).or_insert_with(|| root_record(&known.snapshots[id]));
        }
        state.layout = Arc::new(layout);
        known.at = Some(Instant::now());
        Ok(())
    }

    fn find_root(&self) -> Result<Option<NodeAt>> {
        let View::Subtree { snapshot, path } = &self.options.view else { return Ok(None) };
        let mut at = NodeAt { instance: inode::instance(b"", snapshot, |_| false), rank: 0 };
        for name in path {
            let spot = self.spot(at, Wait::Yes)?;
            at = self.child(&spot, name, Wait::Yes)?.at;
        }
        self.spot(at, Wait::Yes)?;
        Ok(Some(at))
    }

    fn layout(&self) -> Arc<Layout> {
        self.state.read().expect("no panic while held").layout.clone()
    }

    /// What the number stands for, the root and files with several names resolved.
    fn resolve(&self, number: u64) -> Result<Inode> {
        match (Inode::from_number(number), self.root) {
            (Inode::Virtual(ROOT), Some(at)) => Ok(Inode::Node(at)),
            (Inode::Link(number), _) => {
                let links = self.links.lock().expect("no panic while held");
                links.get(&number).map(|link| Inode::Node(link.at)).ok_or(Error::Stale)
            }
            (inode, _) => Ok(inode),
        }
    }

    /// Attributes of an inode.
    pub fn attr(&self, number: u64, wait: Wait) -> Result<Attr> {
        match self.resolve(number)? {
            Inode::Virtual(number) => self.virtual_attr(number),
            Inode::Node(at) => {
                let found = self.find(at, wait)?;
                let attr = self.node_attr(at, &found.node());
                Ok(Attr { inode: if number == ROOT { ROOT } else { attr.inode }, ..attr })
            }
            Inode::Link(_) => unreachable!("resolved above"),
        }
    }

    /// The entry of `parent` called `name`. A file with several names counts as looked up once more.
    pub fn lookup(&self, parent: u64, name: &[u8], wait: Wait) -> Result<Attr> {
        match self.resolve(parent)? {
            Inode::Virtual(number) => {
                let layout = self.layout();
                match layout.get(number).ok_or(Error::Stale)? {
                    Virtual::Directory { entries, .. } => {
                        let at = entries.binary_search_by(|(entry, _)| entry.as_slice().cmp(name));
                        self.entry_attr(entries[at.map_err(|_| Error::NotFound)?].1)
                    }
                    Virtual::Link { .. } => Err(Error::NotDirectory),
                }
            }
            Inode::Node(at) => {
                let found = self.child(&self.spot(at, wait)?, name, wait)?;
                let attr = self.node_attr(found.at, &found.node());
                self.count_lookup(&attr, found.at);
                Ok(attr)
            }
            Inode::Link(_) => Err(Error::NotDirectory),
        }
    }

    /// Takes back `count` lookups of an inode.
    pub fn forget(&self, number: u64, count: u64) {
        if let Inode::Link(number) = Inode::from_number(number)
            && let hash_map::Entry::Occupied(mut link) = self.links.lock().expect("no panic while held").entry(number)
        {
            let lookups = &mut link.get_mut().lookups;
            *lookups = lookups.saturating_sub(count);
            if *lookups == 0 {
                link.remove();
            }
        }
    }

    /// Calls `emit` for the entries of a directory from `offset` on, until it returns true for an entry that it has
    /// not taken. With `lookups` each entry taken counts as looked up.
    pub fn list(
        &self,
        number: u64,
        offset: u64,
        lookups: bool,
        wait: Wait,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<()> {
        match self.resolve(number)? {
            Inode::Virtual(virtual_number) => {
                let layout = self.layout();
                let (parent, entries) = match layout.get(virtual_number).ok_or(Error::Stale)? {
                    Virtual::Directory { parent, entries, .. } => (*parent, entries),
                    Virtual::Link { .. } => return Err(Error::NotDirectory),
                };
                if emit_dots(number, parent, offset, emit) {
                    return Ok(());
                }
                for (position, (name, entry)) in entries.iter().enumerate().skip(offset.saturating_sub(2) as usize) {
                    if emit(Listed { name, next: position as u64 + 3, attr: self.entry_attr(*entry)? }) {
                        break;
                    }
                }
                Ok(())
            }
            Inode::Node(at) => {
                let spot = self.spot(at, wait)?;
                let parent = if number == ROOT { ROOT } else { self.directory_number(spot.parent) };
                let mut dots = |emit: &mut dyn FnMut(Listed<'_>) -> bool| emit_dots(number, parent, offset, emit);
                self.list_tree(&spot, offset.saturating_sub(2), lookups, wait, &mut dots, emit)
            }
            Inode::Link(_) => Err(Error::NotDirectory),
        }
    }

    /// Lists a snapshot's directory, `dots` before its first entry; nothing is emitted before the first page is there.
    fn list_tree(
        &self,
        spot: &Spot,
        skip: u64,
        lookups: bool,
        wait: Wait,
        dots: &mut dyn FnMut(Emit<'_>) -> bool,
        emit: Emit<'_>,
    ) -> Result<()> {
        // Entries of one blob, of which `before` entries with `ranks` ranks lie in earlier pages.
        let emit_leaf = |leaf: &Directory, before: u64, ranks: u32, emit: Emit<'_>| {
            let from = skip.saturating_sub(before).min(leaf.count() as u64) as usize;
            for position in from..leaf.count() {
                let node = leaf.node(position);
                let at = self.at_rank(spot.at, ranks, leaf.ranks_before(position));
                let attr = self.node_attr(at, &node);
                if emit(Listed { name: node.name, next: before + position as u64 + 3, attr }) {
                    return true;
                }
                if lookups {
                    self.count_lookup(&attr, at);
                }
            }
            false
        };
        let directory = self.directory(spot.tree, spot.entries, wait)?;
        if !directory.is_paged() {
            if !dots(emit) {
                emit_leaf(&directory, 0, 0, emit);
            }
            return Ok(());
        }
        let pages = directory.pages();
        let first = pages.partition_point(|page| page.entries_before <= skip).saturating_sub(1);
        for (number, page) in pages.iter().enumerate().skip(first) {
            // What was listed already is sent before the next page is waited for.
            match self.page(page.id, page.ranks, if number == first { wait } else { Wait::No }) {
                Ok(leaf) => {
                    let full = number == first && dots(emit);
                    if full || emit_leaf(&leaf, page.entries_before, page.ranks_before, emit) {
                        break;
                    }
                }
                Err(Error::WouldBlock) if number != first => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The target of a symbolic link, verbatim.
    pub fn link_target(&self, number: u64, wait: Wait) -> Result<Vec<u8>> {
        match self.resolve(number)? {
            Inode::Virtual(number) => match self.layout().get(number) {
                Some(Virtual::Link { target, .. }) => Ok(target.clone()),
                Some(Virtual::Directory { .. }) => Err(Error::Invalid),
                None => Err(Error::Stale),
            },
            Inode::Node(at) => match self.find(at, wait)?.node().kind {
                Kind::Symlink { target } => Ok(target.to_vec()),
                _ => Err(Error::Invalid),
            },
            Inode::Link(_) => unreachable!("resolved above"),
        }
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, number: u64, name: &[u8], wait: Wait) -> Result<Vec<u8>> {
        let Inode::Node(at) = self.resolve(number)? else { return Err(Error::NoAttribute) };
        let found = self.find(at, wait)?;
        if !found.has_xattrs() && name != HASH_XATTR {
            return Err(Error::NoAttribute);
        }
        let node = found.node();
        if let Some((_, value)) = node.xattrs.iter().find(|(stored, _)| *stored == name) {
            return Ok(value.to_vec());
        }
        match node.kind {
            Kind::File { content, .. } if name == HASH_XATTR => {
                let hash = match content {
                    Content::Empty => Some(ContentHash::of(b"")),
                    Content::Inline(bytes) => Some(ContentHash::of(bytes)),
                    Content::Whole(hash) => Some(hash),
                    Content::Parts { hash, .. } | Content::List { hash, .. } => hash,
                };
                Ok(hash.ok_or(Error::NoAttribute)?.to_hex().into_bytes())
            }
            _ => Err(Error::NoAttribute),
        }
    }

    /// Names of the extended attributes, each ended by a zero byte.
    pub fn xattr_names(&self, number: u64, wait: Wait) -> Result<Vec<u8>> {
        let Inode::Node(at) = self.resolve(number)? else { return Ok(Vec::new()) };
        let found = self.find(at, wait)?;
        let mut names = Vec::new();
        if !found.has_xattrs() {
            return Ok(names);
        }
        for (name, _) in found.node().xattrs.iter() {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// Reads from `offset` of a regular file into `out`; returns how many bytes there are, less only at the end.
    pub fn read(&self, number: u64, offset: u64, out: &mut [u8], wait: Wait) -> Result<usize> {
        let file = self.file(number, wait)?;
        let len = self.read_file(&file, offset, out, wait)?;
        self.has_read(number, &file, offset, len);
        Ok(len)
    }

    /// As [`Vfs::read`], and returns the bytes. Those of a hole are not written to `out`: all of them are one page of memory,
    /// which is read as fast as memory can be.
    pub fn read_bytes<'o>(&self, number: u64, offset: u64, out: &'o mut [u8], wait: Wait) -> Result<&'o [u8]> {
        let file = self.file(number, wait)?;
        let len = file.size.saturating_sub(offset).min(out.len() as u64) as usize;
        if len <= ZEROS.len() && self.is_hole(&file, offset..offset + len as u64, wait)? {
            self.has_read(number, &file, offset, len);
            return Ok(&ZEROS[..len]);
        }
        let len = self.read_file(&file, offset, out, wait)?;
        self.has_read(number, &file, offset, len);
        Ok(&out[..len])
    }

    /// Whether nothing is stored of the range, which is not beyond the end.
    fn is_hole(&self, file: &File, range: Range<u64>, wait: Wait) -> Result<bool> {
        let mut at = range.start;
        while file.inline().is_none() && at < range.end {
            let extent = self.lists.extent_at(&self.repo, file, at, wait)?;
            if extent.blob.is_some() {
                return Ok(false);
            }
            at = extent.end;
        }
        Ok(at > range.start)
    }

    /// Lets be decoded what follows after a read.
    fn has_read(&self, number: u64, file: &Arc<File>, offset: u64, len: usize) {
        match file.single_blob() {
            _ if file.inline().is_some() => {}
            Some(id) => self.ahead.after_blob(&id, offset, len),
            None => self.ahead.after_file(number, file, &self.lists, offset..offset + len as u64),
        }
    }

    /// As [`Vfs::read`], but nothing is decoded ahead: whoever reads here is no reader that goes on.
    fn read_file(&self, file: &File, offset: u64, out: &mut [u8], wait: Wait) -> Result<usize> {
        let len = file.size.saturating_sub(offset).min(out.len() as u64) as usize;
        if let Some(bytes) = file.inline() {
            if len > 0 {
                out[..len].copy_from_slice(&bytes[offset as usize..offset as usize + len]);
            }
            return Ok(len);
        }
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let extent = self.lists.extent_at(&self.repo, file, at, wait)?;
            let take = (extent.end - at).min((len - done) as u64) as usize;
            let piece = &mut out[done..done + take];
            match extent.blob {
                Some(id) if wait == Wait::Yes => self.repo.read_blob_at(&id, at - extent.start, piece)?,
                Some(id) => {
                    if !self.repo.read_blob_if_cached(&id, at - extent.start, piece)? {
                        return Err(Error::WouldBlock);
                    }
                }
                None => piece.fill(0),
            }
            done += take;
        }
        Ok(len)
    }

    /// The next data or hole of a regular file at or after `offset`.
    pub fn seek(&self, number: u64, offset: u64, what: Seek, wait: Wait) -> Result<u64> {
        let file = self.file(number, wait)?;
        if offset >= file.size {
            return Err(Error::NoData);
        }
        if file.inline().is_some() {
            return Ok(if what == Seek::Data { offset } else { file.size });
        }
        let mut at = offset;
        while at < file.size {
            let extent = self.lists.extent_at(&self.repo, &file, at, wait)?;
            if extent.blob.is_some() == (what == Seek::Data) {
                return Ok(at);
            }
            at = extent.end;
        }
        if what == Seek::Hole { Ok(file.size) } else { Err(Error::NoData) }
    }

    fn file(&self, number: u64, wait: Wait) -> Result<Arc<File>> {
        if let Some(file) = self.files.get(&number) {
            return Ok(file);
        }
        let Inode::Node(at) = self.resolve(number)? else { return Err(Error::IsDirectory) };
        let found = self.find(at, wait)?;
        let file = match found.node().kind {
            Kind::File { size, content } => {
                let file = File::new(size, &content, &self.repo);
                Arc::new(file.map_err(|error| repo::Error::decode(format!("content of inode {number:#x}"), error))?)
            }
            Kind::Directory { .. } => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid),
        };
        self.files.put(number, file.clone(), file.len());
        Ok(file)
    }

    /// The node at `at`.
    fn find(&self, at: NodeAt, wait: Wait) -> Result<Found> {
        if let Some(found) = self.recent.find(at) {
            return Ok(found);
        }
        let found = self.descend(at, wait)?;
        self.recent.remember(&found);
        Ok(found)
    }

    /// The node at `at`, by descent from its snapshot's root.
    fn descend(&self, at: NodeAt, wait: Wait) -> Result<Found> {
        let root = self.state.read().expect("no panic while held").roots.get(&at.instance).cloned();
        let top = NodeAt { rank: 0, ..at };
        let mut found = Found { at: top, parent: top, source: Source::Root(root.ok_or(Error::Stale)?) };
        // Each step leads to a node of higher rank that is not above the one sought, so this ends.
        while found.at != at {
            let spot = found.spot().map_err(|_| Error::Stale)?;
            let sought = at.rank - spot.at.rank - 1;
            let directory = self.directory(spot.tree, spot.entries, wait)?;
            found = match directory.find_rank(sought).ok_or(Error::Stale)? {
                Place::Here(position) => self.found_in(&spot, directory.clone(), position, 0),
                Place::Page(page) => {
                    let leaf = self.page(page.id, page.ranks, wait)?;
                    let Some(Place::Here(position)) = leaf.find_rank(sought - page.ranks_before) else {
                        return Err(Error::Stale);
                    };
                    self.found_in(&spot, leaf, position, page.ranks_before)
                }
            };
        }
        Ok(found)
    }

    /// The entry of `spot` called `name`.
    fn child(&self, spot: &Spot, name: &[u8], wait: Wait) -> Result<Found> {
        let directory = self.directory(spot.tree, spot.entries, wait)?;
        match directory.find(name).ok_or(Error::NotFound)? {
            Place::Here(position) => Ok(self.found_in(spot, directory.clone(), position, 0)),
            Place::Page(page) => {
                let leaf = self.page(page.id, page.ranks, wait)?;
                let Some(Place::Here(position)) = leaf.find(name) else { return Err(Error::NotFound) };
                Ok(self.found_in(spot, leaf, position, page.ranks_before))
            }
        }
    }

    fn found_in(&self, spot: &Spot, leaf: Arc<Directory>, position: usize, ranks_before: u32) -> Found {
        let at = self.at_rank(spot.at, ranks_before, leaf.ranks_before(position));
        Found { at, parent: spot.at, source: Source::Entry(leaf, position) }
    }

    /// The node so many ranks below a directory. Ranks were checked to fit when the directories were decoded, except
    /// where a damaged tree lies about its size: then numbers wrap and lead to `Stale`.
    fn at_rank(&self, directory: NodeAt, page: u32, within: u32) -> NodeAt {
        let rank = directory.rank.wrapping_add(1).wrapping_add(page).wrapping_add(within);
        NodeAt { rank, ..directory }
    }

    fn spot(&self, at: NodeAt, wait: Wait) -> Result<Spot> {
        if let Some(spot) = self.spots.get(&at) {
            return Ok(spot);
        }
        let spot = self.find(at, wait)?.spot()?;
        self.spots.put(at, spot, std::mem::size_of::<Spot>());
        Ok(spot)
    }

    fn directory(&self, id: BlobId, ranks: u64, wait: Wait) -> Result<Arc<Directory>> {
        if let Some(directory) = self.directories.get(&id) {
            // Two places may say different things of it only in a damaged tree.
            let agrees = directory.ranks() == ranks;
            return if agrees { Ok(directory) } else { Err(Error::corrupt("directory", id, Directory::wrong_ranks())) };
        }
        let stored = blob(&self.repo, BlobKind::Tree, &id, wait)?;
        let directory =
            Arc::new(Directory::decode(&stored, ranks).map_err(|error| Error::corrupt("directory", id, error))?);
        self.directories.put(id, directory.clone(), directory.len());
        self.ahead.after_blob(&id, 0, stored.len());
        Ok(directory)
    }

    fn page(&self, id: BlobId, ranks: u32, wait: Wait) -> Result<Arc<Directory>> {
        let leaf = self.directory(id, u64::from(ranks), wait)?;
        if leaf.is_paged() {
            return Err(Error::corrupt("directory page", id, DecodeError::new("page within a page", 0)));
        }
        Ok(leaf)
    }

    fn directory_number(&self, at: NodeAt) -> u64 {
        if self.root == Some(at) { ROOT } else { at.number() }
    }

    fn count_lookup(&self, attr: &Attr, at: NodeAt) {
        if let Inode::Link(number) = Inode::from_number(attr.inode) {
            let mut links = self.links.lock().expect("no panic while held");
            links.entry(number).or_insert(Link { at, lookups: 0 }).lookups += 1;
        }
    }

    fn node_attr(&self, at: NodeAt, node: &Node<'_>) -> Attr {
        let Metadata { mode, uid, gid, mtime, ctime, atime, nlink, .. } = node.metadata;
        let (kind, size, data, rdev) = match node.kind {
            Kind::File { size, content } => (FileKind::File, size, data_len(size, &content), 0),
            Kind::Directory { .. } => (FileKind::Directory, PAGE_LEN, PAGE_LEN, 0),
            Kind::Symlink { target } => (FileKind::Symlink, target.len() as u64, 0, 0),
            Kind::BlockDevice { rdev } => (FileKind::BlockDevice, 0, 0, rdev),
            Kind::CharDevice { rdev } => (FileKind::CharDevice, 0, 0, rdev),
            Kind::Fifo => (FileKind::Fifo, 0, 0, 0),
            Kind::Socket => (FileKind::Socket, 0, 0, 0),
        };
        let (inode, nlink) = match node.kind {
            Kind::Directory { .. } => (at.number(), 1),
            _ if nlink > 1 => (inode::of_link(at.instance, &node.metadata, size), nlink),
            _ => (at.number(), 1),
        };
        let block_len = match node.kind {
            // A large directory is read in large steps; a small one should not cost a large buffer.
            Kind::Directory { entries, .. } if entries > 1000 => 256 << 10,
            Kind::Directory { .. } => PAGE_LEN as u32,
            _ => 128 << 10,
        };
        let (uid, gid) = self.options.owner.unwrap_or((uid, gid));
        Attr {
            inode,
            kind,
            mode,
            nlink,
            uid,
            gid,
            rdev,
            size,
            blocks: data.div_ceil(PAGE_LEN) * (PAGE_LEN / 512),
            block_len,
            atime: atime.unwrap_or(mtime),
            mtime,
            ctime,
            lasting: true,
        }
    }

    fn entry_attr(&self, entry: Entry) -> Result<Attr> {
        match entry {
            Entry::Virtual(number) => self.virtual_attr(number),
            Entry::Snapshot(instance) => {
                let at = NodeAt { instance, rank: 0 };
                let attr = self.node_attr(at, &self.find(at, Wait::Yes)?.node());
                Ok(Attr { lasting: false, ..attr })
            }
        }
    }

    fn virtual_attr(&self, number: u64) -> Result<Attr> {
        let layout = self.layout();
        let (kind, mode, size, mtime) = match layout.get(number).ok_or(Error::Stale)? {
            Virtual::Directory { mtime, .. } => (FileKind::Directory, 0o555, 0, *mtime),
            Virtual::Link { target, mtime } => (FileKind::Symlink, 0o777, target.len() as u64, *mtime),
        };
        let (uid, gid) = self.options.owner.unwrap_or(self.options.view_owner);
        let times = dot_attr(number);
        Ok(Attr { kind, mode, size, uid, gid, atime: mtime, mtime, ctime: mtime, ..times })
    }
}

/// Lists `.` and `..`; whether one was not taken.
fn emit_dots(number: u64, parent: u64, offset: u64, emit: &mut dyn FnMut(Listed<'_>) -> bool) -> bool {
    [(b".".as_slice(), number), (b"..", parent)]
        .into_iter()
        .zip(1..)
        .any(|((name, inode), next)| offset < next && emit(Listed { name, next, attr: dot_attr(inode) }))
}

/// A whole blob, verified.
fn blob(repo: &Repository, kind: BlobKind, id: &BlobId, wait: Wait) -> Result<Blob> {
    match wait {
        Wait::Yes => Ok(repo.blob(kind, id)?),
        Wait::No => repo.blob_if_cached(kind, id)?.ok_or(Error::WouldBlock),
    }
}

fn root_record(snapshot: &Snapshot) -> Arc<[u8]> {
    let mut record = Vec::new();
    snapshot.root().encode(&Base::default(), &mut record);
    record.into()
}

/// Attributes of a directory of which only the number matters.
fn dot_attr(inode: u64) -> Attr {
    Attr {
        inode,
        kind: FileKind::Directory,
        mode: 0o555,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        block_len: PAGE_LEN as u32,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        lasting: false,
    }
}

/// Bytes of a file that are stored: its size less the holes that its node knows.
fn data_len(size: u64, content: &Content<'_>) -> u64 {
    match content {
        Content::Empty => 0,
        Content::Parts { parts, .. } => {
            let data = |part| match part {
                Ok(crate::format::content::Part::Data { len, .. }) => u64::from(len),
                _ => 0,
            };
            parts.iter().map(data).sum()
        }
        Content::List { data, .. } => *data,
        Content::Inline(_) | Content::Whole(_) => size,
    }
}

#[cfg(test)]
mod tests;
