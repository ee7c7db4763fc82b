//! A repository on a backend: opening it, reading verified blobs, storing new ones once.

pub mod reader;
pub mod writer;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use self::reader::SegmentCache;
use crate::backend::{self, Backend, ObjectKind, ObjectName};
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

/// Why a repository could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// An object or blob is not what it must be.
    #[error("{object} is damaged: {what}")]
    Corrupt {
        /// Which.
        object: String,
        /// How.
        what: String,
    },
    /// A blob that a tree names is in no index.
    #[error("{kind:?} blob {id} is missing from the index of {location}")]
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
    #[error("{object} has format version {found}; this program reads versions {supported}")]
    Version {
        /// Which object.
        object: String,
        /// The version found.
        found: u32,
        /// The versions this program reads.
        supported: &'static str,
    },
    /// Two things were given the same place in a snapshot.
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

/// Result of a repository operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether an object that should be there is gone or cut short.
    fn is_lost(&self) -> bool {
        use backend::ErrorKind::{NotFound, Truncated};
        matches!(self, Error::Backend(error) if matches!(error.kind, NotFound | Truncated))
    }

    /// A decoding error of `object`.
    pub fn decode(object: impl ToString, error: DecodeError) -> Self {
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
    /// When the packs were listed last.
    packs_listed: Mutex<Option<Instant>>,
}

/// Most bytes of decoded segments kept when the caller does not say.
const SEGMENT_CACHE_LEN_DEFAULT: usize = 64 << 20;
/// From this many snapshots on, sealed copies are kept in the local catalog: opening it takes as long as reading a few
/// hundred small files, and far less than fetching as many from far away.
const SNAPSHOTS_CACHED_FROM: usize = 256;
/// Longest key object in bytes.
const KEY_LEN_MAX: u64 = 64 << 10;
/// Longest index or snapshot object in bytes: its plain bytes and what sealing adds at most.
const OBJECT_LEN_MAX: u64 = OBJECT_PLAIN_LEN_MAX as u64 + (1 << 20);

impl Repository {
    /// Opens the repository on `backend` with `password`.
    pub fn open(backend: Arc<dyn Backend>, password: &[u8], options: &OpenOptions) -> Result<Arc<Repository>> {
        let stored = read_config(&*backend)?;
        let id = Config::repository_id(&stored).map_err(|error| config_error(&stored, error))?;
        let (key_in_use, master) = find_key(&*backend, &id, password)?;
        let keys = Keys::new(master);
        let config = Config::decode(&stored, &keys).map_err(|error| config_error(&stored, error))?;
        Self::assemble(backend, keys, config, key_in_use, options)
    }

    /// Creates a repository on `backend` whose first key opens with `password`.
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
        let key = put_key(&*backend, keys.master(), &config.id, password)?;
        // The configuration comes last: a repository is there when it is.
        backend.put(ObjectName::config(), &config.encode(&keys).map_err(system)?)?;
        Self::assemble(backend, keys, config, key, options)
    }

    /// Checks that there is a repository, without opening it.
    pub fn probe(backend: &dyn Backend) -> Result<()> {
        let stored = read_config(backend)?;
        check_version(&ObjectName::config(), &stored)
    }

    fn assemble(
        backend: Arc<dyn Backend>,
        keys: Keys,
        config: Config,
        key_in_use: ObjectId,
        options: &OpenOptions,
    ) -> Result<Arc<Repository>> {
        let id = config.id;
        let cache_dir = options.cache_dir.as_ref().map(|directory| directory.join(id.to_hex()));
        let index = Index::open(cache_dir.as_deref(), id, &Source { backend: &*backend, keys: &keys, id })?;
        let len = if options.segment_cache_len == 0 { SEGMENT_CACHE_LEN_DEFAULT } else { options.segment_cache_len };
        let cache = SegmentCache::new(len);
        let packs_listed = Mutex::new(None);
        Ok(Arc::new(Repository { backend, id, keys, chunks: config.chunks, index, cache, key_in_use, packs_listed }))
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

    /// Every snapshot, oldest first. A snapshot that cannot be read is an error: a listing is never silently short.
    pub fn snapshots(&self) -> Result<Vec<(ObjectId, Snapshot)>> {
        let ids = self.snapshot_ids()?;
        let mut cached: HashMap<ObjectId, Vec<u8>> = HashMap::new();
        let catalog = self.index.catalog().filter(|_| ids.len() >= SNAPSHOTS_CACHED_FROM);
        if let Some(catalog) = catalog {
            cached.extend(catalog.snapshots(&ids));
        }
        let mut fetched = Vec::new();
        let mut snapshots = Vec::with_capacity(ids.len());
        for id in &ids {
            let name = ObjectName::new(ObjectKind::Snapshot, *id);
            let stored = match cached.remove(id) {
                Some(stored) => stored,
                None => {
                    let stored = self.source().read(name)?;
                    if catalog.is_some() {
                        fetched.push((*id, stored.clone()));
                    }
                    stored
                }
            };
            snapshots.push((*id, self.open_snapshot(name, stored)?));
        }
        if let Some(catalog) = catalog.filter(|_| !fetched.is_empty()) {
            catalog.put_snapshots(fetched);
            let mut present = ids;
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
        list(&*self.backend, ObjectKind::Snapshot)
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

    /// The ids of all index objects, in no order.
    pub fn index_ids(&self) -> Result<Vec<ObjectId>> {
        list(&*self.backend, ObjectKind::Index)
    }

    /// What is wrong with key objects; the one in use is among those that are well.
    pub fn broken_keys(&self) -> Result<Vec<Error>> {
        let ids = list(&*self.backend, ObjectKind::Key)?;
        Ok(ids.iter().filter_map(|id| read_key(&*self.backend, id).err()).collect())
    }

    /// The packs of an index object.
    pub fn index_object(&self, id: &ObjectId) -> Result<Vec<IndexedPack>> {
        use crate::index::IndexSource;
        self.source().load(id)
    }

    fn source(&self) -> Source<'_> {
        Source { backend: &*self.backend, keys: &self.keys, id: self.id }
    }

    /// The key objects, and whether each is the one in use.
    pub fn key_objects(&self) -> Result<Vec<(ObjectId, KeyObject, bool)>> {
        let mut keys = Vec::new();
        for id in list(&*self.backend, ObjectKind::Key)? {
            keys.push((id, read_key(&*self.backend, &id)?, id == self.key_in_use));
        }
        keys.sort_by_key(|(id, key, _)| (key.created, *id));
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

    /// Opens what [`Source::read`] read.
    fn open(&self, name: ObjectName, kind: StoredKind, stored: Vec<u8>) -> Result<Vec<u8>> {
        check_version(&name, &stored)?;
        object::open(self.keys, &self.id, kind, stored).map_err(|error| Error::decode(name, error))
    }
}

impl crate::index::IndexSource for Source<'_> {
    type Error = Error;

    fn list(&self) -> Result<Vec<ObjectId>> {
        list(self.backend, ObjectKind::Index)
    }

    fn load(&self, id: &ObjectId) -> Result<Vec<IndexedPack>> {
        let name = ObjectName::new(ObjectKind::Index, *id);
        let plain = self.open(name, StoredKind::Index, self.read(name)?)?;
        crate::format::index::decode(&plain).map_err(|error| Error::decode(name, error))
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
            Err(Error::NoRepository { location: backend.location() })
        }
        other => Ok(other?),
    }
}

fn config_error(stored: &[u8], error: DecodeError) -> Error {
    let name = ObjectName::config();
    check_version(&name, stored).err().unwrap_or_else(|| Error::decode(name, error))
}

fn check_version(name: &ObjectName, stored: &[u8]) -> Result<()> {
    match Header::version(stored) {
        Some(found) if found != VERSION => {
            Err(Error::Version { object: name.to_string(), found: u32::from(found), supported: VERSIONS_READ })
        }
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

/// Tries every key object. A damaged one does not keep the others from opening, but is the error if none opens.
fn find_key(backend: &dyn Backend, repository: &RepositoryId, password: &[u8]) -> Result<(ObjectId, MasterKey)> {
    let mut failed = None;
    let mut readable = false;
    for id in list(backend, ObjectKind::Key)? {
        match read_key(backend, &id) {
            Ok(key) => {
                readable = true;
                match key.unwrap(repository, password) {
                    Ok(Some(master)) => return Ok((id, master)),
                    Ok(None) => {}
                    Err(source) => failed = Some(Error::System { op: "derive a key", source }),
                }
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None if readable => Err(Error::WrongPassword { location: backend.location() }),
        None => Err(Error::Corrupt { object: backend.location(), what: "it holds no key object".to_owned() }),
    }
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
}
