//! The local database, in sled: what is small, changes often and can be fetched again or be done without.
//!
//! It holds the index objects that are too few for an index file yet, and sealed snapshot objects. sled lets one process
//! in at a time, so the database is opened for each call and closed after it; whoever finds it taken waits a moment and
//! then goes on without. Nothing of it is needed, so no call fails: a database that is damaged, or makes sled panic or
//! hang, is set aside and begun anew.

use std::any::Any;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::directory::make_private;
use crate::format::index::{self, IndexedPack};
use crate::id::{ObjectId, RepositoryId};

/// Waits this long for a database that another process has open.
const PATIENCE: Duration = Duration::from_secs(1);
/// A call that takes longer hangs: the database is set aside.
const DEADLINE: Duration = Duration::from_secs(20);
/// A database that takes longer to open has aged: it is begun anew.
const OPEN_TIME_MAX: Duration = Duration::from_secs(2);
/// A database larger than this is begun anew.
const LEN_MAX: u64 = 64 << 20;
/// sled's cache.
const CACHE_LEN: u64 = 4 << 20;
/// Longer values are not kept.
const VALUE_LEN_MAX: usize = 1 << 20;
/// Name of the threads that run sled, by which the panic hook knows them.
const THREAD_NAME: &str = "catalog";

const INDEX_OBJECTS: &str = "index objects";
const SNAPSHOTS: &str = "snapshots";

/// What the database holds at all: other contents are begun anew.
const SCHEMA: &[u8] = b"2";

/// The local database of one repository. Cheap to make and to clone: it is opened by each call.
#[derive(Clone, Debug)]
pub struct Catalog {
    path: PathBuf,
    repository: RepositoryId,
}

impl Catalog {
    /// The database of `repository` below `cache`, made when first written to.
    pub fn new(cache: &Path, repository: RepositoryId) -> Self {
        Self { path: cache.join("catalog"), repository }
    }

    /// The sealed bytes of those of the snapshot objects `ids` that are here; every one matches its id.
    pub fn snapshots(&self, ids: &[ObjectId]) -> Vec<(ObjectId, Vec<u8>)> {
        let found = self.get(SNAPSHOTS, ids);
        found.into_iter().filter(|(id, stored)| ObjectId::of(stored) == *id).collect()
    }

    /// Keeps the sealed bytes of snapshot objects.
    pub fn put_snapshots(&self, snapshots: Vec<(ObjectId, Vec<u8>)>) {
        self.put(SNAPSHOTS, snapshots);
    }

    /// Forgets every snapshot object that is not in `present`, which must be sorted.
    pub fn retain_snapshots(&self, present: Vec<ObjectId>) {
        self.run(false, move |db| {
            let tree = db.open_tree(SNAPSHOTS)?;
            for key in tree.iter().keys() {
                let key = key?;
                if ObjectId::from_bytes(&key).is_none_or(|id| present.binary_search(&id).is_err()) {
                    tree.remove(key)?;
                }
            }
            Ok(())
        });
    }

    /// Packs of those of the index objects `ids` that are here.
    pub(super) fn index_objects(&self, ids: &[ObjectId]) -> Vec<(ObjectId, Vec<IndexedPack>)> {
        let found = self.get(INDEX_OBJECTS, ids);
        found.into_iter().filter_map(|(id, value)| Some((id, open_value(&id, &value)?))).collect()
    }

    /// Keeps the packs of these index objects, except of very large ones.
    pub(super) fn put_index_objects(&self, objects: &[(ObjectId, &[IndexedPack])]) {
        let sealed = objects.iter().map(|(id, packs)| (*id, seal_value(id, &index::encode(packs))));
        self.put(INDEX_OBJECTS, sealed.collect());
    }

    /// Forgets the packs of these index objects.
    pub(super) fn forget_index_objects(&self, ids: Vec<ObjectId>) {
        self.run(false, move |db| {
            let tree = db.open_tree(INDEX_OBJECTS)?;
            ids.iter().try_for_each(|id| tree.remove(id.0).map(drop))
        });
    }

    fn get(&self, tree: &'static str, ids: &[ObjectId]) -> Vec<(ObjectId, Vec<u8>)> {
        if ids.is_empty() {
            return Vec::new();
        }
        let ids = ids.to_vec();
        let found = self.run(false, move |db| {
            let tree = db.open_tree(tree)?;
            let mut found = Vec::new();
            for id in ids {
                if let Some(value) = tree.get(id.0)? {
                    found.push((id, value.to_vec()));
                }
            }
            Ok(found)
        });
        found.unwrap_or_default()
    }

    fn put(&self, tree: &'static str, mut values: Vec<(ObjectId, Vec<u8>)>) {
        values.retain(|(_, value)| value.len() <= VALUE_LEN_MAX);
        if values.is_empty() {
            return;
        }
        self.run(true, move |db| {
            let tree = db.open_tree(tree)?;
            for (id, value) in values {
                tree.insert(id.0, value)?;
            }
            Ok(())
        });
    }

    /// Runs `call` on the open database. `None` if there is none and `create` is not set, if another process keeps it,
    /// or if it is of no use, in which case it has been set aside.
    fn run<T: Send + 'static>(
        &self,
        create: bool,
        call: impl FnOnce(&sled::Db) -> sled::Result<T> + Send + 'static,
    ) -> Option<T> {
        if !create && !self.path.exists() {
            return None;
        }
        silence_panics();
        let (sender, receiver) = sync_channel(1);
        let (path, repository) = (self.path.clone(), self.repository);
        let run = move || {
            let outcome = session(&path, repository, call);
            // The receiver has given up if nobody listens.
            let _ = sender.send(outcome);
        };
        std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(run).ok()?;
        match receiver.recv_timeout(DEADLINE) {
            Ok(Outcome::Done(value)) => Some(value),
            Ok(Outcome::Aged(value)) => {
                // Everything here can be fetched again, so the oldest way to get rid of garbage is the simplest.
                let _ = fs::remove_dir_all(&self.path);
                Some(value)
            }
            Ok(Outcome::Unavailable) => None,
            Ok(Outcome::Damaged) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.set_aside();
                None
            }
        }
    }

    /// Renames a database that is of no use, so that someone may look at it; the one before it goes.
    fn set_aside(&self) {
        let Some(parent) = self.path.parent() else {
            return;
        };
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("catalog.bad-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let aside = parent.join(format!("catalog.bad-{}", now_s()));
        if fs::rename(&self.path, aside).is_err() {
            let _ = fs::remove_dir_all(&self.path);
            let _ = fs::remove_file(&self.path);
        }
    }
}

enum Outcome<T> {
    Done(T),
    /// Done, but the database has grown too large or slow.
    Aged(T),
    /// Another process has it, or the disk refuses.
    Unavailable,
    Damaged,
}

/// Opens the database, checks whose it is, runs `call`, closes it. Never panics.
fn session<T>(path: &Path, repository: RepositoryId, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Outcome<T> {
    let start = Instant::now();
    let db = loop {
        match guarded(|| open(path)) {
            Ok(Ok(db)) => break db,
            Ok(Err(error)) if is_taken(&error) => {
                if start.elapsed() > PATIENCE {
                    return Outcome::Unavailable;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(Err(error)) => return outcome_of(&error),
            Err(_) => return Outcome::Damaged,
        }
    };
    let aged = db.0 > OPEN_TIME_MAX;
    let db = db.1;
    let done = guarded(|| {
        let owner = [&repository.0[..], SCHEMA].concat();
        match db.get("owner")? {
            Some(found) if found == owner => {}
            Some(_) => {
                for name in db.tree_names() {
                    if name != b"__sled__default" {
                        db.drop_tree(name)?;
                    }
                }
                db.insert("owner", owner)?;
            }
            None => drop(db.insert("owner", owner)?),
        }
        call(&db)
    });
    match done {
        Ok(done) => {
            let len = guarded(|| db.size_on_disk()).ok().and_then(Result::ok).unwrap_or(u64::MAX);
            if guarded(|| drop(db)).is_err() {
                return Outcome::Damaged;
            }
            match done {
                Ok(value) if aged || len > LEN_MAX => Outcome::Aged(value),
                Ok(value) => Outcome::Done(value),
                Err(error) => outcome_of(&error),
            }
        }
        Err(_) => {
            // Its destructor would run on a state that has just been found broken.
            std::mem::forget(db);
            Outcome::Damaged
        }
    }
}

/// The open database and the time it took.
fn open(path: &Path) -> sled::Result<(Duration, sled::Db)> {
    make_private(path)?;
    let start = Instant::now();
    let config = sled::Config::new().path(path).cache_capacity(CACHE_LEN).mode(sled::Mode::LowSpace);
    let db = config.flush_every_ms(None).open()?;
    Ok((start.elapsed(), db))
}

fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    panic::catch_unwind(AssertUnwindSafe(call))
}

/// sled reports its lock only in words.
fn is_taken(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn outcome_of<T>(error: &sled::Error) -> Outcome<T> {
    use std::io::ErrorKind::{NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error {
        sled::Error::Io(error)
            if matches!(
                error.kind(),
                NotFound | PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
            ) =>
        {
            Outcome::Unavailable
        }
        _ => Outcome::Damaged,
    }
}

/// Keeps panics of sled's threads off standard error: they are caught and mean no more than a lost cache.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if !thread.name().is_some_and(|name| name == THREAD_NAME || name.starts_with("sled-io-")) {
                previous(info);
            }
        }));
    });
}

/// A value that says whose it is and whether it is whole.
fn seal_value(id: &ObjectId, payload: &[u8]) -> Vec<u8> {
    let mut value = value_hash(id, payload).to_vec();
    value.extend_from_slice(payload);
    value
}

fn open_value(id: &ObjectId, value: &[u8]) -> Option<Vec<IndexedPack>> {
    let (hash, payload) = value.split_first_chunk::<32>()?;
    (*hash == value_hash(id, payload)).then(|| index::decode(payload).ok())?
}

fn value_hash(id: &ObjectId, payload: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_keyed(&id.0).update(payload).finalize().as_bytes()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const REPOSITORY: RepositoryId = RepositoryId([5; 32]);

    fn snapshot(number: u32) -> (ObjectId, Vec<u8>) {
        let stored = number.to_le_bytes().repeat(100);
        (ObjectId::of(&stored), stored)
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                files.extend(self::files(&entry.path()));
            } else {
                files.push(entry.path());
            }
        }
        files
    }

    #[test]
    fn what_is_put_is_found_and_what_is_false_is_not() {
        let cache = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(cache.path(), REPOSITORY);
        let (first, second, third) = (snapshot(1), snapshot(2), snapshot(3));
        assert_eq!(catalog.snapshots(&[first.0]), []);
        assert!(!cache.path().join("catalog").exists(), "asking makes nothing");
        catalog.put_snapshots(vec![first.clone(), second.clone(), (third.0, b"not it".to_vec())]);
        assert_eq!(catalog.snapshots(&[first.0, third.0, second.0]), [first.clone(), second.clone()]);
        catalog.retain_snapshots(vec![second.0]);
        assert_eq!(catalog.snapshots(&[first.0, second.0]), std::slice::from_ref(&second));
        let other = Catalog::new(cache.path(), RepositoryId([6; 32]));
        assert_eq!(other.snapshots(&[second.0]), Vec::new());
    }

    #[test]
    fn a_database_that_another_process_has_open_is_done_without_and_left_alone() {
        let cache = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(cache.path(), REPOSITORY);
        catalog.put_snapshots(vec![snapshot(1)]);
        let path = cache.path().join("catalog");
        let taken = loop {
            match open(&path) {
                Ok((_, db)) => break db,
                Err(error) => assert!(is_taken(&error)),
            }
        };
        let start = Instant::now();
        assert_eq!(catalog.snapshots(&[snapshot(1).0]), []);
        assert!(start.elapsed() < PATIENCE * 3);
        drop(taken);
        assert_eq!(catalog.snapshots(&[snapshot(1).0]), [snapshot(1)]);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_database_gives_nothing_false_and_is_begun_anew() {
        let cache = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(cache.path(), REPOSITORY);
        let all: Vec<_> = (0..50).map(snapshot).collect();
        let ids: Vec<_> = all.iter().map(|(id, _)| *id).collect();
        let rounds = std::env::var("CATALOG_ROUNDS").map_or(12, |text| text.parse().unwrap());
        let mut random = blake3::Hasher::new().finalize_xof();
        let mut lost = 0;
        for round in 0..rounds {
            catalog.put_snapshots(all.clone());
            let files = files(&cache.path().join("catalog"));
            let mut bytes = [0; 24];
            random.fill(&mut bytes);
            let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let path = &files[number(0) as usize % files.len()];
            let len = fs::metadata(path).unwrap().len();
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            match round % 4 {
                0 => file.set_len(number(8) % (len + 1)).unwrap(),
                1 => file.write_all_at(&bytes, number(8) % 4096).unwrap(),
                2 => file.write_all_at(&[0xff; 8], number(8) % (len + 1)).unwrap(),
                _ => fs::write(path, bytes).unwrap(),
            }
            let start = Instant::now();
            for found in catalog.snapshots(&ids) {
                assert!(all.contains(&found));
            }
            catalog.put_snapshots(all.clone());
            let found = catalog.snapshots(&ids).len();
            lost += usize::from(found < all.len());
            assert!(start.elapsed() < DEADLINE, "round {round} {path:?}");
        }
        catalog.put_snapshots(all.clone());
        assert!(catalog.snapshots(&ids).len() == all.len() || lost > 0);
        catalog.put_snapshots(all.clone());
        assert_eq!(catalog.snapshots(&ids), all, "it works again");
        let aside = fs::read_dir(cache.path()).unwrap().flatten();
        assert!(aside.filter(|entry| entry.file_name() != "catalog").count() <= 1);
    }
}
