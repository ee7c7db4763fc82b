//! A repository on a backend: opening it, reading verified blobs, storing new ones once.

pub mod delta;
pub mod reader;
mod unfinished;
pub mod writer;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::reader::SegmentCache;
use crate::backend::deadline::Deadline;
use crate::backend::near::Near;
use crate::backend::{self, Backend, Listed, ObjectKind, ObjectName};
use crate::chunk::{ChunkSizes, Chunker};
use crate::format::codec::DecodeError;
use crate::format::header::{Header, StoredKind, VERSION, VERSIONS_READ};
use crate::format::index::IndexedPack;
use crate::format::limits::OBJECT_PLAIN_LEN_MAX;
use crate::format::object::{self, CONFIG_LEN_MAX, Config};
use crate::format::snapshot::Snapshot;
use crate::format::tree::Time;
use crate::id::{BlobId, BlobKind, ContentHash, ObjectId, RepositoryId};
use crate::index::Index;
use crate::key::{KeyObject, Keys, MasterKey};
use crate::pool;

/// Why a repository could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Backend(backend::Error),
    /// An object or blob is not what it must be.
    #[error("{object} is damaged: {what}")]
    Corrupt {
        /// Which.
        object: String,
        /// How.
        what: String,
    },
    /// A blob that a tree names is in no index.
    #[error("{kind:?} blob {id} is in no pack of {location} that is there; `bygone check` tells which is missing")]
    MissingBlob {
        /// Its kind.
        kind: BlobKind,
        /// Its id.
        id: BlobId,
        /// The repository.
        location: String,
    },
    /// There is no repository here.
    #[error("no repository at {location}")]
    NoRepository {
        /// Where.
        location: String,
    },
    /// There already is one.
    #[error("there already is a repository at {location}")]
    Exists {
        /// Where.
        location: String,
    },
    /// No key opens with this password.
    #[error("wrong password for the repository at {location}")]
    WrongPassword {
        /// Where.
        location: String,
    },
    /// Written by a version of the program that this one does not know.
    #[error("{object} was written by a newer version: {found}, and this program reads format versions {supported}")]
    Version {
        /// Which object.
        object: String,
        /// The format version found, or what of it is not known.
        found: String,
        /// The versions this program reads.
        supported: &'static str,
    },
    /// A snapshot has no place for it.
    #[error("{object} cannot be stored: {what}")]
    Clash {
        /// Which.
        object: String,
        /// Why.
        what: String,
    },
    /// No snapshot matches.
    #[error("{0}")]
    NoSnapshot(String),
    /// The operating system refused something local (threads, randomness, files).
    #[error("cannot {op}: {source}")]
    System {
        /// What.
        op: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The operation was cancelled.
    #[error("interrupted")]
    Cancelled,
}

impl From<backend::Error> for Error {
    fn from(error: backend::Error) -> Self {
        match error.kind {
            backend::ErrorKind::Interrupted => Error::Cancelled,
            _ => Error::Backend(error),
        }
    }
}

/// Result of a repository operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether an object is not there.
    fn is_gone(&self) -> bool {
        matches!(self, Error::Backend(error) if error.kind == backend::ErrorKind::NotFound)
    }

    /// Whether an object that should be there is gone or cut short.
    fn is_lost(&self) -> bool {
        use backend::ErrorKind::{NotFound, Truncated};
        matches!(self, Error::Backend(error) if matches!(error.kind, NotFound | Truncated))
    }

    /// Whether the thread that asked may not wait for storage, and would have to.
    pub fn would_wait(&self) -> bool {
        matches!(self, Error::Backend(error) if error.kind == backend::ErrorKind::WouldWait)
    }

    /// Whether one object is not what was stored, as opposed to a store that refuses or cannot be reached.
    fn is_damage(&self) -> bool {
        use backend::ErrorKind::{Other, Truncated};
        match self {
            Error::Corrupt { .. } => true,
            Error::Backend(error) => matches!(error.kind, Truncated | Other),
            _ => false,
        }
    }

    /// The kind of the object that the error is about, if it is about one object.
    pub fn object_kind(&self) -> Option<ObjectKind> {
        let object = match self {
            Error::Backend(error) => &error.object,
            Error::Corrupt { object, .. } => object,
            _ => return None,
        };
        let names = |kind: ObjectKind| object.split(' ').any(|word| word.split('/').next() == Some(kind.directory()));
        ObjectKind::ALL.into_iter().find(|kind| names(*kind))
    }

    /// Whether no index knows the blob.
    fn is_missing_blob(&self) -> bool {
        matches!(self, Error::MissingBlob { .. })
    }

    /// A decoding error of `object`.
    pub fn decode(object: impl ToString, error: DecodeError) -> Self {
        if error.newer {
            return Error::Version { object: object.to_string(), found: error.to_string(), supported: VERSIONS_READ };
        }
        Error::Corrupt { object: object.to_string(), what: error.to_string() }
    }
}

/// How to open a repository.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Where the local index and caches live (a directory of this repository's own is made inside); `None` for none.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of decoded segments kept in memory.
    pub segment_cache_len: usize,
    /// Bytes of stored packs kept in `cache_dir` if the repository is remote; 0 for as many as is usual.
    pub cache_len_max: u64,
    /// How long a store in a directory may take to answer; for ever if `None`.
    pub patience: Option<Duration>,
    /// Called once for each object that is found damaged and can be done without for now.
    pub warn: Option<fn(&Error)>,
}

/// Objects that were found damaged and are done without: each is told once.
#[derive(Default)]
struct DamagedObjects {
    names: Mutex<HashSet<ObjectName>>,
    warn: Option<fn(&Error)>,
}

impl DamagedObjects {
    fn note(&self, name: ObjectName, error: &Error) {
        let new = self.names.lock().expect("no panic while held").insert(name);
        if let Some(warn) = self.warn.filter(|_| new) {
            warn(error);
        }
    }

    fn contains(&self, name: &ObjectName) -> bool {
        self.names.lock().expect("no panic while held").contains(name)
    }

    /// What was read of `name`; `None` if the object has gone since it was listed, or is damaged, which is noted.
    fn readable<T>(&self, name: ObjectName, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) if error.is_damage() => {
                self.note(name, &error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Plain bytes of a blob, verified; cheap to clone, dereferences to `[u8]`.
#[derive(Clone, Debug)]
pub struct Blob {
    bytes: Arc<Vec<u8>>,
    from: usize,
    to: usize,
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self { from: 0, to: bytes.len(), bytes: Arc::new(bytes) }
    }
}

impl std::ops::Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }
}

/// A repository that is there and still locked.
pub struct Found {
    backend: Arc<dyn Backend>,
    stored: Vec<u8>,
    listed: Surveyed,
}

impl Found {
    /// Opens it.
    pub fn open(self, password: &[u8], options: &OpenOptions) -> Result<Arc<Repository>> {
        let Found { backend, stored, listed } = self;
        let id = Config::repository_id(&stored).map_err(|error| config_error(&stored, error))?;
        let backend = near(backend, &id, options, &listed);
        let damaged = DamagedObjects { warn: options.warn, ..DamagedObjects::default() };
        let (key_in_use, master) = find_key(&*backend, &listed.keys, &id, password, &damaged)?;
        let keys = Keys::new(master);
        let config = Config::decode(&stored, &keys).map_err(|error| config_error(&stored, error))?;
        Repository::assemble(backend, keys, config, key_in_use, damaged, options, Some(listed))
    }
}

/// An open repository. Shared between threads.
pub struct Repository {
    backend: Arc<dyn Backend>,
    id: RepositoryId,
    keys: Keys,
    chunks: ChunkSizes,
    index: Index,
    cache: SegmentCache,
    /// The key object that opened it.
    key_in_use: ObjectId,
    /// Snapshots that were listed when the repository was opened, until somebody asks for them.
    snapshots_listed: Mutex<Option<Vec<ObjectId>>>,
    /// When the index was listed last because it lacked a blob.
    index_listed: Mutex<Option<Instant>>,
    /// When the packs were listed last.
    packs_listed: Mutex<Option<Instant>>,
    /// Where this repository's local index and caches live, if they do.
    cache_dir: Option<PathBuf>,
    damaged: DamagedObjects,
}

/// Most bytes of decoded segments kept when the caller does not say.
const SEGMENT_CACHE_LEN_DEFAULT: usize = 64 << 20;
/// Most bytes of stored packs kept on the local disk when the caller does not say.
const CACHE_LEN_MAX_DEFAULT: u64 = 1 << 30;
/// From this many snapshots on, sealed copies are kept in the local catalog: opening it takes as long as reading a few
/// hundred small files, and far less than fetching as many from far away.
const SNAPSHOTS_CACHED_FROM: usize = 256;
/// Bytes of index objects that a backup compares with their names before it believes what the local index says of them.
const INDEX_VERIFIED_LEN: u64 = 8 << 20;
/// Bytes of index objects that are fetched while the key is still derived, if there is no local index.
const INDEX_EARLY_LEN: u64 = 16 << 20;
/// Longest key object in bytes.
const KEY_LEN_MAX: u64 = 64 << 10;
/// Longest index or snapshot object in bytes: its plain bytes and what sealing adds at most.
const OBJECT_LEN_MAX: u64 = OBJECT_PLAIN_LEN_MAX as u64 + (1 << 20);

impl Repository {
    /// Opens the repository on `backend` with `password`.
    pub fn open(backend: Arc<dyn Backend>, password: &[u8], options: &OpenOptions) -> Result<Arc<Repository>> {
        Self::find(backend)?.open(password, options)
    }

    /// The repository on `backend`, if there is one that this program can read.
    pub fn find(backend: Arc<dyn Backend>) -> Result<Found> {
        Self::find_for(backend, false)
    }

    /// As [`Repository::find`]; says whether the first thing that will be asked for are the snapshots. They are listed and
    /// fetched meanwhile where that saves round trips.
    pub fn find_for(backend: Arc<dyn Backend>, snapshots_soon: bool) -> Result<Found> {
        let (stored, listed) = survey(&*backend, snapshots_soon)?;
        check_version(&ObjectName::config(), &stored)?;
        Ok(Found { backend, stored, listed })
    }

    /// Creates a repository on `backend` whose first key opens with `password`. Of several that try at the same time, one
    /// does and the others find a repository there.
    pub fn init(backend: Arc<dyn Backend>, password: &[u8], options: &OpenOptions) -> Result<Arc<Repository>> {
        let location = backend.location();
        match backend.create() {
            Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { location });
            }
            other => other?,
        }
        let system = |source| Error::System { op: "make a key", source };
        let keys = Keys::new(MasterKey::random().map_err(system)?);
        let config = Config { id: RepositoryId(crate::key::random().map_err(system)?), chunks: ChunkSizes::DEFAULT };
        let backend = near(backend, &config.id, options, &Surveyed::default());
        let key = put_key(&*backend, keys.master(), &config.id, password)?;
        // The configuration comes last: a repository is there when it is.
        let stored = config.encode(&keys).map_err(system)?;
        backend.put(ObjectName::config(), &stored)?;
        // A put does not replace: what is there now is of whoever came first, and another's key opens nothing of theirs.
        if read_config(&*backend)? != stored {
            backend.delete(ObjectName::new(ObjectKind::Key, key))?;
            return Err(Error::Exists { location });
        }
        let damaged = DamagedObjects { warn: options.warn, ..DamagedObjects::default() };
        Self::assemble(backend, keys, config, key, damaged, options, None)
    }

    fn assemble(
        backend: Arc<dyn Backend>,
        keys: Keys,
        config: Config,
        key_in_use: ObjectId,
        damaged: DamagedObjects,
        options: &OpenOptions,
        listed: Option<Surveyed>,
    ) -> Result<Arc<Repository>> {
        let id = config.id;
        let cache_dir = cache_directory(&id, options);
        let (indexes, snapshots) = listed.map_or((None, None), |listed| (Some(listed.indexes), listed.snapshots));
        let indexes = indexes.map(|indexes| indexes.iter().map(|found| found.id).collect());
        let source = Source { backend: &*backend, keys: &keys, id, damaged: &damaged, listed: Mutex::new(indexes) };
        let index = Index::open(cache_dir.as_deref(), id, &source)?;
        let len = if options.segment_cache_len == 0 { SEGMENT_CACHE_LEN_DEFAULT } else { options.segment_cache_len };
        let cache = SegmentCache::new(len);
        let (index_listed, packs_listed, snapshots_listed) =
            (Mutex::default(), Mutex::default(), Mutex::new(snapshots));
        let chunks = config.chunks;
        Ok(Arc::new(Repository {
            backend,
            id,
            keys,
            chunks,
            index,
            cache,
            key_in_use,
            snapshots_listed,
            index_listed,
            packs_listed,
            cache_dir,
            damaged,
        }))
    }

    /// The repository's random id.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// Its store, as the user named it.
    pub fn location(&self) -> String {
        self.backend.location()
    }

    /// Its store.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Its index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Sizes of chunks.
    pub fn chunk_sizes(&self) -> ChunkSizes {
        self.chunks
    }

    /// A chunker that cuts as this repository's files are cut.
    pub fn chunker(&self) -> Chunker {
        Chunker::new(self.chunks, self.keys.gear())
    }

    /// The id of the blob of `kind` whose plaintext hashes to `hash`.
    pub fn blob_id(&self, kind: BlobKind, hash: &ContentHash) -> BlobId {
        self.keys.blob_id(kind, hash)
    }

    /// Every snapshot that can be read, oldest first. A damaged one is told of and left out; one that was removed since it
    /// was listed is left out.
    pub fn snapshots(&self) -> Result<Vec<(ObjectId, Snapshot)>> {
        self.read_snapshots(&self.snapshot_ids()?)
    }

    /// The snapshots of `ids`, oldest first, without those that have been deleted since they were listed.
    pub fn read_snapshots(&self, ids: &[ObjectId]) -> Result<Vec<(ObjectId, Snapshot)>> {
        let mut cached: HashMap<ObjectId, Vec<u8>> = HashMap::new();
        let catalog = self.index.catalog().filter(|_| ids.len() >= SNAPSHOTS_CACHED_FROM);
        if let Some(catalog) = catalog {
            cached.extend(catalog.snapshots(ids));
        }
        let source = self.source();
        let read = |id: &ObjectId| -> Result<_> {
            let name = ObjectName::new(ObjectKind::Snapshot, *id);
            let known = cached.get(id);
            let read = known.map_or_else(|| source.read(name), |stored| Ok(stored.clone()));
            let Some(stored) = self.damaged.readable(name, read)? else { return Ok(None) };
            let fetched = (catalog.is_some() && known.is_none()).then(|| (*id, stored.clone()));
            let opened = self.damaged.readable(name, self.open_snapshot(name, stored))?;
            Ok(opened.map(|snapshot| ((*id, snapshot), fetched)))
        };
        let mut snapshots = Vec::with_capacity(ids.len());
        let mut fetched = Vec::new();
        for found in pool::map(self.backend.parallel(), ids, read) {
            let Some((snapshot, new)) = found? else { continue };
            fetched.extend(new);
            snapshots.push(snapshot);
        }
        if let Some(catalog) = catalog.filter(|_| !fetched.is_empty()) {
            catalog.put_snapshots(fetched);
            let mut present = ids.to_vec();
            present.sort_unstable();
            catalog.retain_snapshots(present);
        }
        snapshots.sort_by_key(|(id, snapshot)| (snapshot.time, *id));
        Ok(snapshots)
    }

    fn open_snapshot(&self, name: ObjectName, stored: Vec<u8>) -> Result<Snapshot> {
        let plain = self.source().open(name, StoredKind::Snapshot, stored)?;
        Snapshot::decode(&plain).map_err(|error| Error::decode(name, error))
    }

    /// The ids of all snapshots, in no order.
    pub fn snapshot_ids(&self) -> Result<Vec<ObjectId>> {
        let listed = self.snapshots_listed.lock().expect("no panic while held").take();
        listed.map_or_else(|| list(&*self.backend, ObjectKind::Snapshot), Ok)
    }

    /// As [`Repository::snapshot`], but `None` if it has been removed, or is damaged, which is told.
    pub fn readable_snapshot(&self, id: &ObjectId) -> Result<Option<Snapshot>> {
        self.damaged.readable(ObjectName::new(ObjectKind::Snapshot, *id), self.snapshot(id))
    }

    /// One snapshot.
    pub fn snapshot(&self, id: &ObjectId) -> Result<Snapshot> {
        let name = ObjectName::new(ObjectKind::Snapshot, *id);
        self.open_snapshot(name, self.source().read(name)?)
    }

    /// Commits a snapshot: the one moment at which a backup comes to exist. Everything it names must be durable.
    pub fn put_snapshot(&self, snapshot: &Snapshot) -> Result<ObjectId> {
        // What no reader would accept must not be written: it would stand in the way of every later command.
        let plain = snapshot.encode();
        Snapshot::decode(&plain).map_err(|error| Error::decode("the new snapshot's record", error))?;
        let stored = object::seal(&self.keys, &self.id, StoredKind::Snapshot, &plain)
            .map_err(|source| Error::System { op: "seal a snapshot", source })?;
        let id = ObjectId::of(&stored);
        self.backend.put(ObjectName::new(ObjectKind::Snapshot, id), &stored)?;
        Ok(id)
    }

    /// Removes a snapshot record; its blobs stay.
    pub fn delete_snapshot(&self, id: &ObjectId) -> Result<()> {
        Ok(self.backend.delete(ObjectName::new(ObjectKind::Snapshot, *id))?)
    }

    /// Picks up index objects that other processes have written since the repository was opened.
    pub fn refresh(&self) -> Result<()> {
        self.index.refresh(&self.source())?;
        Ok(())
    }

    /// Compares index objects with their names, in random order and up to a number of bytes, and does without those that
    /// are damaged, though the local index knows what they said: other hosts cannot read it any more, so that the next
    /// backup must store again what they named. Not for a store in the network, where it would take a request for each.
    pub fn hide_damaged_index(&self) -> Result<()> {
        if self.backend.is_remote() {
            return Ok(());
        }
        let mut listed = Vec::new();
        self.backend.list(ObjectKind::Index, &mut |found| listed.push(found))?;
        let salt = crate::key::random::<32>().map_err(|source| Error::System { op: "read random bytes", source })?;
        listed.sort_by_cached_key(|found| *blake3::keyed_hash(&salt, &found.id.0).as_bytes());
        let mut left = INDEX_VERIFIED_LEN;
        for found in listed {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(found.len);
            let name = ObjectName::new(ObjectKind::Index, found.id);
            self.damaged.readable(name, self.source().read(name))?;
        }
        self.refresh()
    }

    /// The ids of all index objects, in no order.
    pub fn index_ids(&self) -> Result<Vec<ObjectId>> {
        list(&*self.backend, ObjectKind::Index)
    }

    /// What is wrong with key objects; the one in use is among those that are well.
    pub fn broken_keys(&self) -> Result<Vec<Error>> {
        let ids = list(&*self.backend, ObjectKind::Key)?;
        Ok(ids.iter().filter_map(|id| read_key(&*self.backend, id).err()).filter(|error| !error.is_gone()).collect())
    }

    /// The packs of an index object.
    pub fn index_object(&self, id: &ObjectId) -> Result<Vec<IndexedPack>> {
        self.source().load_strictly(id)
    }

    /// As [`Repository::index_object`], but `None` if it has been removed, or is damaged, which is told.
    pub fn readable_index_object(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>> {
        use crate::index::IndexSource;
        self.source().load(id)
    }

    /// Stores an index object, whatever it says.
    #[cfg(test)]
    pub(crate) fn put_index(&self, packs: &[IndexedPack]) -> ObjectId {
        let plain = crate::format::index::encode(packs);
        let stored = object::seal(&self.keys, &self.id, StoredKind::Index, &plain).expect("seals");
        let id = ObjectId::of(&stored);
        self.backend.put(ObjectName::new(ObjectKind::Index, id), &stored).expect("stores");
        id
    }

    fn source(&self) -> Source<'_> {
        Source {
            backend: &*self.backend,
            keys: &self.keys,
            id: self.id,
            damaged: &self.damaged,
            listed: Mutex::new(None),
        }
    }

    /// The key objects, oldest first and damaged ones last, and whether each is the one in use.
    pub fn key_objects(&self) -> Result<Vec<(ObjectId, Result<KeyObject>, bool)>> {
        let mut keys = Vec::new();
        for id in list(&*self.backend, ObjectKind::Key)? {
            match read_key(&*self.backend, &id) {
                Err(error) if error.is_gone() => {}
                Err(error) if !error.is_damage() => return Err(error),
                key => keys.push((id, key, id == self.key_in_use)),
            }
        }
        keys.sort_by_key(|(id, key, _)| (key.is_err(), key.as_ref().map_or(Time::default(), |key| key.created), *id));
        Ok(keys)
    }

    /// Adds a key object that opens with `password`.
    pub fn add_key(&self, password: &[u8]) -> Result<ObjectId> {
        put_key(&*self.backend, self.keys.master(), &self.id, password)
    }

    /// Removes a key object; the one in use must stay.
    pub fn remove_key(&self, id: &ObjectId) -> Result<()> {
        assert!(*id != self.key_in_use, "the caller refuses to remove the key in use");
        Ok(self.backend.delete(ObjectName::new(ObjectKind::Key, *id))?)
    }

    /// Removes the key object that opened the repository, which another one must have replaced.
    pub fn remove_old_key(&self) -> Result<()> {
        Ok(self.backend.delete(ObjectName::new(ObjectKind::Key, self.key_in_use))?)
    }

    /// The key object that opened the repository.
    pub fn key_in_use(&self) -> ObjectId {
        self.key_in_use
    }
}

/// Where the index gets its objects.
struct Source<'a> {
    backend: &'a dyn Backend,
    keys: &'a Keys,
    id: RepositoryId,
    damaged: &'a DamagedObjects,
    /// Index objects that were listed a moment ago: the first listing costs nothing.
    listed: Mutex<Option<Vec<ObjectId>>>,
}

impl Source<'_> {
    /// Reads a small object and compares it with its name.
    fn read(&self, name: ObjectName) -> Result<Vec<u8>> {
        let stored = self.backend.get(name, OBJECT_LEN_MAX)?;
        if ObjectId::of(&stored) != name.id {
            return Err(Error::Corrupt {
                object: name.to_string(),
                what: "its bytes do not hash to its name".to_owned(),
            });
        }
        Ok(stored)
    }

    /// The packs of an index object, which must be there and whole.
    fn load_strictly(&self, id: &ObjectId) -> Result<Vec<IndexedPack>> {
        let name = ObjectName::new(ObjectKind::Index, *id);
        let plain = self.open(name, StoredKind::Index, self.read(name)?)?;
        crate::format::index::decode(&plain).map_err(|error| Error::decode(name, error))
    }

    /// Opens what [`Source::read`] read.
    fn open(&self, name: ObjectName, kind: StoredKind, stored: Vec<u8>) -> Result<Vec<u8>> {
        check_version(&name, &stored)?;
        object::open(self.keys, &self.id, kind, stored).map_err(|error| Error::decode(name, error))
    }
}

impl crate::index::IndexSource for Source<'_> {
    type Error = Error;

    fn parallel(&self) -> usize {
        self.backend.parallel().max(4)
    }

    fn list(&self) -> Result<Vec<ObjectId>> {
        let listed = self.listed.lock().expect("no panic while held").take();
        let mut ids = listed.map_or_else(|| list(self.backend, ObjectKind::Index), Ok)?;
        ids.retain(|id| !self.damaged.contains(&ObjectName::new(ObjectKind::Index, *id)));
        Ok(ids)
    }

    fn load(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>> {
        self.damaged.readable(ObjectName::new(ObjectKind::Index, *id), self.load_strictly(id))
    }
}

fn list(backend: &dyn Backend, kind: ObjectKind) -> Result<Vec<ObjectId>> {
    let mut ids = Vec::new();
    backend.list(kind, &mut |found| ids.push(found.id))?;
    Ok(ids)
}

fn read_config(backend: &dyn Backend) -> Result<Vec<u8>> {
    match backend.get(ObjectName::config(), CONFIG_LEN_MAX) {
        Err(error) if error.kind == backend::ErrorKind::NotFound => {
            let location = backend.location();
            // A store may know more: that the whole container is missing.
            let why = error.source.get_ref().map(|why| format!(": {why}")).unwrap_or_default();
            Err(Error::NoRepository { location: format!("{location}{why}") })
        }
        other => Ok(other?),
    }
}

/// What is there besides the configuration.
#[derive(Default)]
struct Surveyed {
    keys: Vec<ObjectId>,
    indexes: Vec<Listed>,
    /// Only if they were asked for.
    snapshots: Option<Vec<ObjectId>>,
}

/// Reads the configuration and lists what opening needs, at once where that saves round trips.
fn survey(backend: &dyn Backend, snapshots_soon: bool) -> Result<(Vec<u8>, Surveyed)> {
    let look = || -> Result<Surveyed> {
        let mut surveyed = Surveyed::default();
        backend.list_kinds(&[ObjectKind::Key, ObjectKind::Index], &mut |kind, found| match kind {
            ObjectKind::Key => surveyed.keys.push(found.id),
            _ => surveyed.indexes.push(found),
        })?;
        Ok(surveyed)
    };
    if !backend.is_remote() {
        return Ok((read_config(backend)?, look()?));
    }
    std::thread::scope(|scope| {
        let surveyed = scope.spawn(look);
        // A snapshot that comes between the two listings has blobs that no index knows: the index is then listed again.
        let snapshots = snapshots_soon.then(|| scope.spawn(|| list(backend, ObjectKind::Snapshot)));
        let stored = read_config(backend)?;
        let mut surveyed = surveyed.join().expect("listing does not panic")?;
        surveyed.snapshots = snapshots.map(|listing| listing.join().expect("listing does not panic")).transpose()?;
        Ok((stored, surveyed))
    })
}

fn cache_directory(id: &RepositoryId, options: &OpenOptions) -> Option<PathBuf> {
    options.cache_dir.as_ref().map(|directory| directory.join(id.to_hex()))
}

/// A remote backend with what is near of it, which soon is what opening needs of what is there; a local one as it is, or
/// with a deadline.
fn near(backend: Arc<dyn Backend>, id: &RepositoryId, options: &OpenOptions, listed: &Surveyed) -> Arc<dyn Backend> {
    if !backend.is_remote() {
        return match options.patience {
            Some(patience) => Arc::new(Deadline::new(backend, patience)),
            None => backend,
        };
    }
    let len_max = if options.cache_len_max == 0 { CACHE_LEN_MAX_DEFAULT } else { options.cache_len_max };
    let directory = cache_directory(id, options);
    let is_new = Index::is_new(directory.as_deref());
    let near = Near::new(backend, directory.as_deref(), len_max);
    let names = |kind, ids: &[ObjectId]| ids.iter().map(|id| ObjectName::new(kind, *id)).collect::<Vec<_>>();
    let keys = names(ObjectKind::Key, &listed.keys);
    near.will_get(&keys, KEY_LEN_MAX);
    if is_new {
        let mut left = INDEX_EARLY_LEN;
        let some = listed.indexes.iter().take_while(|found| {
            let fits = found.len <= left;
            left = left.saturating_sub(found.len);
            fits
        });
        near.will_get(&names(ObjectKind::Index, &some.map(|found| found.id).collect::<Vec<_>>()), OBJECT_LEN_MAX);
    }
    if let Some(snapshots) = &listed.snapshots {
        let snapshots = names(ObjectKind::Snapshot, snapshots);
        near.forget_all_but(ObjectKind::Snapshot, snapshots.clone());
        near.will_get(&snapshots, OBJECT_LEN_MAX);
    }
    Arc::new(near)
}

fn config_error(stored: &[u8], error: DecodeError) -> Error {
    let name = ObjectName::config();
    check_version(&name, stored).err().unwrap_or_else(|| Error::decode(name, error))
}

fn check_version(name: &ObjectName, stored: &[u8]) -> Result<()> {
    match Header::version(stored) {
        Some(found) if found > VERSION => Err(Error::Version {
            object: name.to_string(),
            found: format!("it has format version {found}"),
            supported: VERSIONS_READ,
        }),
        _ => Ok(()),
    }
}

fn read_key(backend: &dyn Backend, id: &ObjectId) -> Result<KeyObject> {
    let name = ObjectName::new(ObjectKind::Key, *id);
    let stored = backend.get(name, KEY_LEN_MAX)?;
    if ObjectId::of(&stored) != *id {
        return Err(Error::Corrupt { object: name.to_string(), what: "its bytes do not hash to its name".to_owned() });
    }
    check_version(&name, &stored)?;
    KeyObject::decode(&stored).map_err(|error| Error::decode(name, error))
}

/// Tries every key object. A damaged one does not keep the others from opening. If none opens it is told, since the
/// password may be its own; it is the error if there is no other.
fn find_key(
    backend: &dyn Backend,
    ids: &[ObjectId],
    repository: &RepositoryId,
    password: &[u8],
    damaged: &DamagedObjects,
) -> Result<(ObjectId, MasterKey)> {
    let mut failed = None;
    let mut broken: Vec<(ObjectName, Error)> = Vec::new();
    let mut readable = false;
    for id in ids {
        match read_key(backend, id) {
            Ok(key) => {
                readable = true;
                match key.unwrap(repository, password) {
                    Ok(Some(master)) => return Ok((*id, master)),
                    Ok(None) => {}
                    Err(source) => failed = Some(Error::System { op: "derive a key", source }),
                }
            }
            Err(error) if error.is_gone() => {}
            Err(error) if error.is_damage() => broken.push((ObjectName::new(ObjectKind::Key, *id), error)),
            Err(error) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if readable {
        broken.iter().for_each(|(name, error)| damaged.note(*name, error));
        return Err(Error::WrongPassword { location: backend.location() });
    }
    let none = || Error::Corrupt {
        object: format!("{} in {}", ObjectKind::Key.directory(), backend.location()),
        what: "there is no key object".to_owned(),
    };
    Err(broken.pop().map_or_else(none, |(_, error)| error))
}

fn put_key(backend: &dyn Backend, master: &MasterKey, id: &RepositoryId, password: &[u8]) -> Result<ObjectId> {
    let now = jiff::Timestamp::now();
    let created = Time { sec: now.as_second(), nsec: now.subsec_nanosecond().max(0) as u32 };
    let key = KeyObject::wrap(master, id, password, created, &crate::host::host_name(), &crate::host::user_name())
        .map_err(|source| Error::System { op: "make a key", source })?;
    let stored = key.encode();
    let id = ObjectId::of(&stored);
    backend.put(ObjectName::new(ObjectKind::Key, id), &stored)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::writer::{WriteOptions, Writer};
    use super::*;
    use crate::backend::mem::Memory;
    use crate::pool::Pool;

    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    /// Stores blobs of many sizes; returns their ids and contents.
    fn fill(repo: &Arc<Repository>, seed: u64, pack_len: u64) -> Vec<(BlobKind, BlobId, Vec<u8>)> {
        let pool = Arc::new(Pool::new("test", 2).expect("threads"));
        let mut writer =
            Writer::new(repo.clone(), pool, WriteOptions { pack_len, ..Default::default() }).expect("writer");
        let mut blobs = Vec::new();
        for (at, len) in
            [1usize, 100, 128 << 10, 1 << 20, 300_000, 5000, 131_073].into_iter().cycle().take(40).enumerate()
        {
            let kind = BlobKind::ALL[at % 3];
            let plain = bytes(seed + at as u64, len);
            let id = repo.blob_id(kind, &ContentHash::of(&plain));
            let new = writer.store(kind, id, &plain).expect("stores");
            assert!(new && !writer.store(kind, id, &plain).expect("stores"), "the second time it is there");
            blobs.push((kind, id, plain));
        }
        let stats = writer.finish().expect("finishes");
        assert_eq!(stats.data_blobs + stats.tree_blobs, 40);
        blobs
    }

    fn check_blobs(repo: &Repository, blobs: &[(BlobKind, BlobId, Vec<u8>)]) {
        for (kind, id, plain) in blobs {
            assert_eq!(&*repo.blob(*kind, id).expect("reads"), &plain[..]);
            let from = plain.len() / 3;
            let mut part = vec![0; plain.len() / 2];
            repo.read_blob_at(id, from as u64, &mut part).expect("reads a part");
            assert_eq!(part, plain[from..from + part.len()]);
            assert!(repo.read_blob_at(id, plain.len() as u64, &mut [0]).is_err(), "beyond the end");
        }
    }

    #[test]
    fn blobs_are_read_back_by_this_process_and_by_the_next() {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        let blobs = fill(&repo, 0, 2 << 20);
        check_blobs(&repo, &blobs);
        let again = Repository::open(store.clone(), b"pw", &OpenOptions::default()).expect("opens");
        check_blobs(&again, &blobs);
        assert!(matches!(Repository::open(store, b"other", &OpenOptions::default()), Err(Error::WrongPassword { .. })));
    }

    #[test]
    fn blobs_that_came_after_the_index_was_listed_are_found_and_missing_ones_list_it_once() {
        use crate::backend::count::{Count, Request, Requests};
        let requests = Arc::new(Requests::default());
        let store = Arc::new(Count::new(Memory::new(), requests.clone()));
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        let early = Repository::open(store, b"pw", &OpenOptions::default()).expect("opens");
        check_blobs(&early, &fill(&repo, 0, 2 << 20));
        let before = requests.count(Request::List);
        for seed in 0..20 {
            let id = repo.blob_id(BlobKind::Data, &ContentHash::of(&bytes(1_000_000 + seed, 10)));
            assert!(matches!(early.blob(BlobKind::Data, &id), Err(Error::MissingBlob { .. })));
        }
        assert_eq!(requests.count(Request::List), before, "listed a moment ago");
    }

    #[test]
    fn no_pair_of_key_and_nonce_occurs_twice() {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        for seed in 0..5 {
            fill(&repo, seed * 1000, 1 << 20);
        }
        // Every object has its own salt, so its own key; within a pack the numbers of units are counted up from zero and
        // the tables have numbers of their own, so it is enough that no salt occurs twice.
        let mut salts = HashSet::new();
        let mut objects = 0;
        for kind in ObjectKind::ALL.into_iter().filter(|kind| *kind != ObjectKind::Config) {
            store
                .list(kind, &mut |found| {
                    let stored = store.get(ObjectName::new(kind, found.id), u64::MAX).expect("reads");
                    assert_eq!(ObjectId::of(&stored), found.id, "objects are named by their bytes");
                    objects += 1;
                    salts.insert(stored[12..44].to_vec());
                })
                .expect("lists");
        }
        assert!(objects > 30 && salts.len() == objects, "{objects} objects, {} salts", salts.len());
    }

    fn ids(store: &Memory, kind: ObjectKind) -> Vec<ObjectId> {
        list(store, kind).expect("lists")
    }

    fn snapshot(host: &str) -> Snapshot {
        let tree = BlobId([7; crate::id::BLOB_ID_LEN]);
        let node = crate::format::tree::Node {
            name: b"",
            metadata: Default::default(),
            kind: crate::format::tree::Kind::Directory { tree, entries: 0 },
            xattrs: crate::format::tree::Xattrs::new(&[]),
        };
        Snapshot { host: host.to_owned(), ..Snapshot::of_root(&node) }
    }

    #[test]
    fn a_damaged_snapshot_is_left_out_and_told_and_is_an_error_where_it_is_asked_for() {
        for damage in
            [|_: &mut Vec<u8>| {}, |stored: &mut Vec<u8>| stored.clear(), |stored: &mut Vec<u8>| stored[60] ^= 1]
        {
            let store = Arc::new(Memory::new());
            let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
            let hurt = repo.put_snapshot(&snapshot("hurt")).expect("puts");
            let well = repo.put_snapshot(&snapshot("well")).expect("puts");
            let name = ObjectName::new(ObjectKind::Snapshot, hurt);
            let before = store.get(name, u64::MAX).expect("reads");
            store.damage(name, damage);
            let is_hurt = store.get(name, u64::MAX).expect("reads") != before;
            let found: Vec<ObjectId> = repo.snapshots().expect("lists").into_iter().map(|(id, _)| id).collect();
            assert!(found.contains(&well));
            assert_eq!((found.len(), repo.damaged.contains(&name)), if is_hurt { (1, true) } else { (2, false) });
            assert_eq!(repo.snapshot(&hurt).is_err(), is_hurt);
        }
    }

    /// A store from which another process removes a snapshot just after it was listed.
    struct Vanishing(Arc<Memory>, ObjectKind);

    impl Backend for Vanishing {
        fn location(&self) -> String {
            self.0.location()
        }
        fn create(&self) -> backend::Result<()> {
            self.0.create()
        }
        fn put(&self, name: ObjectName, bytes: &[u8]) -> backend::Result<()> {
            self.0.put(name, bytes)
        }
        fn get(&self, name: ObjectName, len_max: u64) -> backend::Result<Vec<u8>> {
            self.0.get(name, len_max)
        }
        fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> backend::Result<()> {
            self.0.get_range(name, offset, out)
        }
        fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(backend::Listed)) -> backend::Result<()> {
            let mut first = None;
            self.0.list(kind, &mut |listed| {
                first.get_or_insert(listed.id);
                found(listed);
            })?;
            match first.filter(|_| kind == self.1) {
                Some(id) => self.0.delete(ObjectName::new(kind, id)),
                None => Ok(()),
            }
        }
        fn len(&self, name: ObjectName) -> backend::Result<u64> {
            self.0.len(name)
        }
        fn delete(&self, name: ObjectName) -> backend::Result<()> {
            self.0.delete(name)
        }
        fn clean(&self, age_min_s: u64) -> backend::Result<u64> {
            self.0.clean(age_min_s)
        }
    }

    #[test]
    fn an_object_that_vanishes_after_it_was_listed_is_left_out_quietly() {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        for host in ["one", "two", "three"] {
            repo.put_snapshot(&snapshot(host)).expect("puts");
        }
        let open = |kind| {
            Repository::open(Arc::new(Vanishing(store.clone(), kind)), b"pw", &OpenOptions::default()).expect("opens")
        };
        let vanishing = open(ObjectKind::Snapshot);
        assert_eq!(vanishing.snapshots().expect("lists").len(), 2);
        for seed in [0, 1000, 2000] {
            fill(&repo, seed, 64 << 20);
        }
        let vanishing = open(ObjectKind::Index);
        assert_eq!(ids(&store, ObjectKind::Index).len(), 2);
        assert!(vanishing.index.blob_count() > 0);
        assert!(vanishing.damaged.names.lock().expect("no panic").is_empty(), "nothing is damaged");
    }

    #[test]
    fn a_damaged_index_object_keeps_no_reader_out_and_its_blobs_are_missing_by_name_until_stored_again() {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        let hurt = fill(&repo, 0, 64 << 20);
        let name = ObjectName::new(ObjectKind::Index, ids(&store, ObjectKind::Index)[0]);
        let well = fill(&repo, 1000, 64 << 20);
        store.damage(name, |stored| stored[50] ^= 4);
        // This process knew the object before, and believes it no more once it has looked.
        assert!(repo.locate(&hurt[0].1).is_some());
        repo.hide_damaged_index().expect("looks");
        let again = Repository::open(store.clone(), b"pw", &OpenOptions::default()).expect("opens");
        for repo in [&repo, &again] {
            assert!(repo.damaged.contains(&name));
            check_blobs(repo, &well);
            for (kind, id, _) in &hurt {
                let error = repo.blob(*kind, id).expect_err("no index names it").to_string();
                assert!(error.contains(&id.to_hex()), "{error}");
            }
            assert!(repo.index_object(&name.id).is_err(), "a check is told");
        }
        fill(&repo, 0, 64 << 20);
        check_blobs(&Repository::open(store, b"pw", &OpenOptions::default()).expect("opens"), &hurt);
    }

    #[test]
    fn a_damaged_key_object_keeps_no_other_from_opening_and_is_listed_as_damaged() {
        for at in [0, 20, 50, 100] {
            let store = Arc::new(Memory::new());
            let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
            let second = repo.add_key(b"second").expect("adds");
            store.damage(ObjectName::new(ObjectKind::Key, second), |stored| stored[at] ^= 1);
            let open = |password: &[u8]| Repository::open(store.clone(), password, &OpenOptions::default());
            let again = open(b"pw").expect("the good one opens");
            let keys = again.key_objects().expect("lists");
            let shown: Vec<_> = keys.iter().map(|(id, key, current)| (*id, key.is_ok(), *current)).collect();
            assert_eq!(shown, [(repo.key_in_use(), true, true), (second, false, false)]);
            assert!(matches!(open(b"second"), Err(Error::WrongPassword { .. })));
            store.damage(ObjectName::new(ObjectKind::Key, repo.key_in_use()), |stored| stored[at] ^= 1);
            let error = open(b"pw").err().expect("none opens").to_string();
            assert!(error.contains("keys/") && error.contains("damaged"), "{error}");
        }
    }

    /// A store whose `create` returns only when all that are to begin a repository have called it.
    struct Racing(Arc<Memory>, std::sync::Barrier);

    impl Backend for Racing {
        fn create(&self) -> backend::Result<()> {
            self.0.create()?;
            self.1.wait();
            Ok(())
        }
        fn location(&self) -> String {
            self.0.location()
        }
        fn put(&self, name: ObjectName, bytes: &[u8]) -> backend::Result<()> {
            self.0.put(name, bytes)
        }
        fn get(&self, name: ObjectName, len_max: u64) -> backend::Result<Vec<u8>> {
            self.0.get(name, len_max)
        }
        fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> backend::Result<()> {
            self.0.get_range(name, offset, out)
        }
        fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(backend::Listed)) -> backend::Result<()> {
            self.0.list(kind, found)
        }
        fn len(&self, name: ObjectName) -> backend::Result<u64> {
            self.0.len(name)
        }
        fn delete(&self, name: ObjectName) -> backend::Result<()> {
            self.0.delete(name)
        }
        fn clean(&self, age_min_s: u64) -> backend::Result<u64> {
            self.0.clean(age_min_s)
        }
    }

    #[test]
    fn of_two_that_begin_a_repository_at_once_one_wins_and_the_other_leaves_nothing() {
        let memory = Arc::new(Memory::new());
        let store: Arc<dyn Backend> = Arc::new(Racing(memory.clone(), std::sync::Barrier::new(2)));
        let init = |password: &'static [u8]| {
            Repository::init(store.clone(), password, &OpenOptions::default()).map(|repo| (password, repo.id()))
        };
        let outcomes = std::thread::scope(|scope| {
            let threads = [b"one", b"two"].map(|password| scope.spawn(move || init(password)));
            threads.map(|thread| thread.join().expect("no panic"))
        });
        let won: Vec<_> = outcomes.iter().flatten().collect();
        assert_eq!(won.len(), 1);
        assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(Error::Exists { .. }))));
        assert_eq!(ids(&memory, ObjectKind::Key).len(), 1, "the loser's key is gone");
        let opened = Repository::open(memory, won[0].0, &OpenOptions::default()).expect("opens");
        assert_eq!(opened.id(), won[0].1);
    }

    #[test]
    fn a_flipped_bit_in_a_pack_is_an_error_that_names_the_pack() {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        let blobs = fill(&repo, 0, 64 << 20);
        let (kind, id, _) = &blobs[9];
        let location = repo.locate(id).expect("there");
        let name = ObjectName::new(ObjectKind::Pack, repo.index.pack(location.pack).id);
        let len = store.len(name).expect("there");
        let mut failures = 0;
        for at in (0..len).step_by(len as usize / 12) {
            let flip = |object: &mut Vec<u8>| object[at as usize] ^= 0x10;
            store.damage(name, flip);
            let again = Repository::open(store.clone(), b"pw", &OpenOptions::default()).expect("opens");
            for (kind, id, plain) in &blobs {
                match again.blob(*kind, id) {
                    Ok(blob) => assert_eq!(&*blob, &plain[..], "never wrong bytes"),
                    Err(error) => {
                        failures += 1;
                        assert!(error.to_string().contains(&name.id.to_hex()), "{error}");
                    }
                }
            }
            store.damage(name, flip);
        }
        assert!(failures > 0, "flips were noticed in {kind:?} packs");
    }

    #[test]
    fn nothing_in_a_pack_shows_where_its_parts_begin() {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        fill(&repo, 0, 1 << 20);
        let mut packs = Vec::new();
        store.list(ObjectKind::Pack, &mut |found| packs.push(found.id)).expect("lists");
        assert!(packs.len() > 3);
        for id in packs {
            let stored = store.get(ObjectName::new(ObjectKind::Pack, id), u64::MAX).expect("reads");
            let sealed = &stored[crate::format::header::HEADER_LEN..];
            // Six equal bytes in a row are one in 2^40 of random ones; padding of thousands of zeros would have them,
            // and so would numbers as they are.
            assert!(sealed.windows(6).all(|run| run.iter().any(|byte| *byte != run[0])), "{id}");
            let tail: Vec<u32> = sealed[sealed.len() - crate::format::pack::FOOTER_PLAIN_LEN..]
                .chunks_exact(4)
                .map(|number| u32::from_le_bytes(number.try_into().expect("four bytes")))
                .collect();
            assert!(tail.iter().any(|number| *number as usize > stored.len()), "a footer in plain: {tail:?}");
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_not_called_damaged() {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        let blobs = fill(&repo, 0, 64 << 20);
        let (kind, id, _) = &blobs[0];
        let location = repo.locate(id).expect("there");
        let name = ObjectName::new(ObjectKind::Pack, repo.index.pack(location.pack).id);
        store.damage(name, |object| object[6] = VERSION + 1);
        let again = Repository::open(store.clone(), b"pw", &OpenOptions::default()).expect("opens");
        let said = match again.blob(*kind, id) {
            Err(error @ Error::Version { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(said.contains(&name.to_string()) && said.contains("newer version"), "{said}");

        // An index with a field that must be understood.
        let mut plain = Vec::new();
        crate::format::codec::Encode::put_field(&mut plain, 4, b"later");
        let stored = object::seal(&repo.keys, &repo.id, StoredKind::Index, &plain).expect("seals");
        let name = ObjectName::new(ObjectKind::Index, ObjectId::of(&stored));
        store.put(name, &stored).expect("stores");
        match Repository::open(store, b"pw", &OpenOptions::default()) {
            Err(Error::Version { object, .. }) => assert_eq!(object, name.to_string()),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
}
