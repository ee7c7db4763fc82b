//! Blob id to location. Index objects in the repository are the truth; what lies on the local disk is disposable.
//!
//! Most of the index lies in a few immutable local files (`file`), mapped and shared by all processes of the host; what
//! is new lies in memory (`recent`) and, between runs, in the local database (`catalog`). New files are written by
//! whoever holds the directory's lock (`directory`), smaller ones merged into larger ones (`merge`), so that there are
//! few. Whoever cannot have the lock or the directory works on files of its own.
//!
//! The invariant: an answer is the one that a fresh build from all index objects would give, or it is [`Damaged`] and
//! [`Index::refresh`] repairs it. Local files are checked as they are read; bytes that change under a running process
//! after they were checked can only lead to a false miss or a location whose blob does not match its id, and
//! [`Index::recheck`] tells these from damage of the repository.

pub mod catalog;
mod directory;
mod file;
mod mapping;
mod merge;
mod numbers;
mod recent;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::format::index::{IndexedPack, PackedBlob};
use crate::id::{BlobId, ObjectId, RepositoryId};
use catalog::Catalog;
use directory::{Directory, Lock, NewFile};
use file::{IndexFile, RECORDS_MAX, Record};
use mapping::Mapping;
use merge::{Batch, Failure, Input, merge};
use numbers::PackNumbers;
use recent::Recent;

/// A pack's number within this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackNumber(pub u32);

/// Where a blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackNumber,
    /// Offset in the pack's plaintext, in bytes.
    pub offset: u32,
    /// Length there in bytes: that of the blob, or of its delta.
    pub len: u32,
    /// Whether a delta lies there from which the blob is made.
    pub is_delta: bool,
}

/// Bit of a record's length that is set for a delta; no length needs it.
const DELTA_BIT: u32 = 1 << 31;

impl Location {
    /// The location that a record of a pack says: its offset, and its length with [`DELTA_BIT`].
    fn of_record(pack: PackNumber, offset: u32, len: u32) -> Self {
        Self { pack, offset, len: len & !DELTA_BIT, is_delta: len & DELTA_BIT != 0 }
    }

    /// The length as a record has it.
    fn record_len(&self) -> u32 {
        if self.is_delta { self.len | DELTA_BIT } else { self.len }
    }
}

/// A pack's name and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackInfo {
    /// Its name.
    pub id: ObjectId,
    /// Its stored length in bytes.
    pub len: u64,
}

/// A local file is not what was written: [`Index::refresh`], then ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the local index is damaged")]
pub struct Damaged;

/// Where index objects come from.
pub trait IndexSource: Sync {
    /// Why the source failed.
    type Error: Send;

    /// How many index objects are best fetched at a time.
    fn parallel(&self) -> usize {
        LOADERS
    }

    /// Every index object there is, but for those that [`IndexSource::load`] could not read.
    fn list(&self) -> Result<Vec<ObjectId>, Self::Error>;

    /// The packs that the index object `id` lists. `None` if it has been deleted since it was listed or is damaged: then
    /// it counts as not there.
    fn load(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>, Self::Error>;
}

/// How much is kept in memory.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// More blobs than this leave memory for a file.
    recent_len: usize,
    /// More index objects than this leave memory for a file.
    recent_objects: usize,
    /// Records that are sorted in memory before they are written.
    batch_len: usize,
}

/// 1 MiB of recent blobs, 32 MiB of records to sort.
const LIMITS: Limits = Limits { recent_len: 32 << 10, recent_objects: 128, batch_len: 1 << 20 };
/// A file is merged into a new one that is at least one part in this many as large.
const TIER_RATIO: u64 = 4;
/// Files with fewer records count as having this many: merging them costs nothing.
const TIER_LEN_MIN: u64 = 16 << 10;
/// Most files that stay unmerged.
const FILES_MAX: usize = 8;
/// Index objects that are fetched at a time from a store that is near.
const LOADERS: usize = 4;
/// Damaged files after which this process no longer believes its disk and keeps what it loads in memory.
const STRIKES_MAX: u32 = 3;
/// Waits this long for another process that writes index files: it is likely writing what we need.
const PATIENCE_OPEN: Duration = Duration::from_secs(2);
/// The same, when what we need is only to move entries out of memory.
const PATIENCE_LATER: Duration = Duration::from_millis(100);

/// The index of one repository. Shared between threads; [`Index::locate`] never waits for I/O other than page faults.
pub struct Index {
    repository: RepositoryId,
    limits: Limits,
    directory: Option<Directory>,
    catalog: Option<Catalog>,
    state: RwLock<State>,
    /// Held by whoever changes the set of files.
    work: Mutex<Work>,
}

#[derive(Default)]
struct State {
    /// Files in use.
    held: Vec<Held>,
    recent: Recent,
    numbers: PackNumbers,
    /// Index objects whose packs can be found here.
    covered: HashSet<ObjectId>,
    /// Index objects that a file covers though they are gone.
    stale: HashSet<ObjectId>,
    /// Packs that are listed by index objects and yet not in the store.
    absent: HashSet<ObjectId>,
}

/// A file in use.
struct Held {
    file: Arc<IndexFile>,
    /// Number in this process of its first pack.
    base: u32,
    /// One bit for each of its packs that must not be used; `None` if there is no such pack.
    hidden: Option<Box<[u64]>>,
}

#[derive(Default)]
struct Work {
    /// Files that were found damaged and may still be there.
    distrusted: HashSet<PathBuf>,
    strikes: u32,
}

/// A new set of files, and what becomes of the rest when it is taken into use.
struct Plan {
    files: Vec<Arc<IndexFile>>,
    /// Index objects that come into memory.
    fresh: Vec<(ObjectId, Vec<IndexedPack>)>,
    /// Index objects that leave memory.
    leaving: HashSet<ObjectId>,
    /// Index objects that files cover though they are gone.
    stale: HashSet<ObjectId>,
}

impl Index {
    /// Opens the index of `repository`: from the local files in `cache`, and from `source` what they lack. Without
    /// `cache`, or if it cannot be used, everything comes from `source`.
    pub fn open<S: IndexSource>(cache: Option<&Path>, repository: RepositoryId, source: &S) -> Result<Index, S::Error> {
        Self::open_with(cache, repository, source, LIMITS)
    }

    fn open_with<S: IndexSource>(
        cache: Option<&Path>,
        repository: RepositoryId,
        source: &S,
        limits: Limits,
    ) -> Result<Index, S::Error> {
        let directory = cache.and_then(|cache| Directory::open(cache).ok());
        let catalog = cache.filter(|_| directory.is_some()).map(|cache| Catalog::new(cache, repository));
        let (state, work) = (RwLock::default(), Mutex::default());
        let index = Index { repository, limits, directory, catalog, state, work };
        index.update(source, PATIENCE_OPEN)?;
        Ok(index)
    }

    /// Whether there are no local files in `cache` yet, so that all of the index will come from the source.
    pub fn is_new(cache: Option<&Path>) -> bool {
        cache.is_none_or(|cache| !Directory::is_there(cache))
    }

    /// The local database that lies beside the index, if there is a cache.
    pub fn catalog(&self) -> Option<&Catalog> {
        self.catalog.as_ref()
    }

    /// Takes in index objects written since the last look, drops those that are gone, and repairs what is damaged.
    /// Returns whether anything changed.
    pub fn refresh<S: IndexSource>(&self, source: &S) -> Result<bool, S::Error> {
        self.update(source, PATIENCE_LATER)
    }

    /// Where the blob lies; `None` if it is in no pack that may be used.
    #[inline]
    pub fn locate(&self, id: &BlobId) -> Result<Option<Location>, Damaged> {
        self.locate_form(id, false)
    }

    /// As [`Index::locate`], but only if `plain_only` is not set or the blob is not stored as a delta there.
    #[inline]
    fn locate_form(&self, id: &BlobId, plain_only: bool) -> Result<Option<Location>, Damaged> {
        let state = self.read();
        let accept = |location: &Location| {
            !(plain_only && location.is_delta) && (state.absent.is_empty() || !state.is_absent(location.pack))
        };
        if let Some(location) = state.recent.find(id, accept) {
            return Ok(Some(location));
        }
        let mut damaged = false;
        for held in &state.held {
            let accept = |record: &Record| !(held.is_hidden(record.pack) || plain_only && record.len & DELTA_BIT != 0);
            match held.file.find(id, accept) {
                Ok(Some(record)) => {
                    let pack = PackNumber(held.base + record.pack);
                    return Ok(Some(Location::of_record(pack, record.offset, record.len)));
                }
                Ok(None) => {}
                Err(Damaged) => damaged = true,
            }
        }
        if damaged { Err(Damaged) } else { Ok(None) }
    }

    /// Like [`Index::locate`], and repairs a damaged index from `source` first.
    pub fn find<S: IndexSource>(&self, id: &BlobId, source: &S) -> Result<Option<Location>, S::Error> {
        loop {
            // Every repair drops a damaged file, and after a few of them nothing is kept in files: this ends.
            match self.locate(id) {
                Ok(location) => return Ok(location),
                Err(Damaged) => self.refresh(source)?,
            };
        }
    }

    /// As [`Index::find`], but only where the blob is not stored as a delta.
    pub fn find_plain<S: IndexSource>(&self, id: &BlobId, source: &S) -> Result<Option<Location>, S::Error> {
        loop {
            match self.locate_form(id, true) {
                Ok(location) => return Ok(location),
                Err(Damaged) => self.refresh(source)?,
            };
        }
    }

    /// Whether the blob was stored plain in a pack that is treated as absent: then deltas may be made of it that need it so.
    pub fn lost_plain(&self, id: &BlobId) -> bool {
        let state = self.read();
        let is_lost = |location: &Location| !location.is_delta && state.is_absent(location.pack);
        (!state.absent.is_empty() && state.recent.find(id, is_lost).is_some())
            || state.held.iter().any(|held| {
                let accept = |record: &Record| record.len & DELTA_BIT == 0 && held.is_hidden(record.pack);
                matches!(held.file.find(id, accept), Ok(Some(_)))
            })
    }

    /// Checks again what the local files say about a blob that was not found, or not where it should be. `Err` says that
    /// a local file has changed since it was checked: [`Index::refresh`], then ask again.
    pub fn recheck(&self, id: &BlobId) -> Result<(), Damaged> {
        self.read().held.iter().try_for_each(|held| held.file.recheck(id))
    }

    /// The pack that `number` stands for, which this index has handed out.
    pub fn pack(&self, number: PackNumber) -> PackInfo {
        self.read().numbers.get(number).expect("a number stands for its pack as long as the index lives")
    }

    /// Takes in a pack that this process has written and that no index object lists yet.
    pub fn add(&self, pack: &IndexedPack) {
        let State { recent, numbers, absent, .. } = &mut *self.write();
        absent.remove(&pack.id);
        recent.add(pack, &mut |info| numbers.add(info));
    }

    /// Notes that this process has written the index object `object`, which lists `packs`.
    pub fn published(&self, object: ObjectId, packs: &[IndexedPack]) {
        let much = {
            let State { recent, numbers, covered, .. } = &mut *self.write();
            if covered.insert(object) {
                recent.publish(object, packs, &mut |info| numbers.add(info));
            }
            recent.objects().len() > self.limits.recent_objects || recent.listed_len() > self.limits.recent_len
        };
        // If another thread is at it, the next index object will do.
        if much && let Ok(mut work) = self.work.try_lock() {
            self.settle(&mut work);
        } else if let Some(catalog) = &self.catalog {
            catalog.put_index_objects(&[(object, packs)]);
        }
    }

    /// From now on treats every pack that `is_present` denies as absent, and with it the blobs that are nowhere else, so
    /// that the next backup stores them again. Packs that are taken in later are taken to be present.
    pub fn restrict_to(&self, is_present: impl Fn(&PackInfo) -> bool) {
        let _work = self.work();
        let state = &mut *self.write();
        let mut absent = HashSet::new();
        state.each_listed_pack(|_, info| {
            if !is_present(&info) {
                absent.insert(info.id);
            }
        });
        for held in &mut state.held {
            held.hidden = hidden_packs(&held.file, &state.stale, &absent);
        }
        state.absent = absent;
    }

    /// Whether packs are hidden because they were absent when they were last listed.
    pub fn hides_packs(&self) -> bool {
        !self.read().absent.is_empty()
    }

    /// Calls `found` for every pack that may be used. A pack that two index objects list is found twice.
    pub fn for_each_pack(&self, mut found: impl FnMut(PackNumber, PackInfo)) {
        let state = self.read();
        state.each_listed_pack(|number, info| {
            if !state.absent.contains(&info.id) {
                found(number, info);
            }
        });
    }

    /// Number of blobs. A blob that lies in two packs counts twice.
    pub fn blob_count(&self) -> u64 {
        let state = self.read();
        state.recent.len() as u64 + state.held.iter().map(|held| held.file.record_count()).sum::<u64>()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no panic while held")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no panic while held")
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        // A source that panics leaves the set of files as it was: it changes in one step.
        self.work.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn update<S: IndexSource>(&self, source: &S, patience: Duration) -> Result<bool, S::Error> {
        let work = &mut *self.work();
        // What is published after this may be missing from the listing and is not gone.
        let known: HashSet<ObjectId> = self.read().covered.clone();
        let listed: HashSet<ObjectId> = source.list()?.into_iter().collect();
        let damaged = self.drop_damaged(work);
        if !damaged && known == listed {
            return Ok(false);
        }
        let held = self.read().files();
        let mut plan = Plan {
            files: held.into_iter().filter(|file| !file.is_damaged()).collect(),
            fresh: Vec::new(),
            leaving: known.difference(&listed).copied().collect(),
            stale: HashSet::new(),
        };
        let in_memory = self.read().recent.objects().clone();
        let missing = |files: &[Arc<IndexFile>]| -> Vec<ObjectId> {
            let in_files: HashSet<&ObjectId> = files.iter().flat_map(|file| file.objects()).collect();
            listed.iter().filter(|id| !in_files.contains(id) && !in_memory.contains(id)).copied().collect()
        };
        let mut lock = None;
        let mut batch = None;
        if !missing(&plan.files).is_empty() {
            lock = self.directory.as_ref().and_then(|directory| directory.lock(patience));
            plan.files = self.adopt(work, plan.files, &listed);
            let wanted = missing(&plan.files);
            batch = self.load(work, source, wanted, &mut plan, lock.as_ref())?;
        }
        let recent_len = self.read().recent.listed_len() + blobs_of(&plan.fresh);
        let recent_objects = in_memory.len() + plan.fresh.len();
        if recent_len > self.limits.recent_len || recent_objects > self.limits.recent_objects || batch.is_some() {
            self.settle_into(work, &mut plan, batch.unwrap_or_default(), &|id| listed.contains(id), lock.as_ref());
        }
        plan.stale = plan.files.iter().flat_map(|file| file.objects()).copied().collect();
        plan.stale.retain(|id| !listed.contains(id));
        self.commit(plan, lock.as_ref());
        Ok(true)
    }

    /// Removes damaged files from the disk, so that nobody opens them again; returns whether any is in use.
    fn drop_damaged(&self, work: &mut Work) -> bool {
        let files = self.read().files();
        let mut any = false;
        for file in files.iter().filter(|file| file.is_damaged()) {
            any = true;
            work.strikes += 1;
            if let Some(path) = file.path() {
                // Should it stay, we do not open it again, and another process finds out for itself.
                let _ = std::fs::remove_file(path);
                work.distrusted.insert(path.to_owned());
            }
        }
        any
    }

    /// The fewest of `held` and of the files in the directory that cover what they cover of `listed`.
    fn adopt(&self, work: &Work, held: Vec<Arc<IndexFile>>, listed: &HashSet<ObjectId>) -> Vec<Arc<IndexFile>> {
        let mut candidates = held;
        if let Some(directory) = self.directory.as_ref().filter(|_| work.strikes < STRIKES_MAX) {
            for path in directory.files() {
                let known = candidates.iter().any(|file| file.path() == Some(&path)) || work.distrusted.contains(&path);
                if !known && let Some(file) = IndexFile::open(&path, self.repository) {
                    candidates.push(Arc::new(file));
                }
            }
        }
        candidates.sort_by_key(|file| (file.path().is_none(), std::cmp::Reverse(file.objects().len())));
        let mut covered = HashSet::new();
        candidates.retain(|file| {
            let new: Vec<_> =
                file.objects().iter().filter(|id| listed.contains(id) && !covered.contains(*id)).copied().collect();
            covered.extend(new.iter().copied());
            !new.is_empty()
        });
        candidates
    }

    /// Fetches `wanted`: a few index objects into `plan.fresh`; of many, the rest into files in `plan.files` and the batch
    /// that is returned.
    fn load<S: IndexSource>(
        &self,
        work: &Work,
        source: &S,
        mut wanted: Vec<ObjectId>,
        plan: &mut Plan,
        lock: Option<&Lock>,
    ) -> Result<Option<Batch>, S::Error> {
        if let Some(catalog) = &self.catalog {
            plan.fresh = catalog.index_objects(&wanted);
            let known: HashSet<ObjectId> = plan.fresh.iter().map(|(id, _)| *id).collect();
            wanted.retain(|id| !known.contains(id));
        }
        let from_catalog = plan.fresh.len();
        let mut fresh_len = blobs_of(&plan.fresh);
        let mut rest: Option<Batch> = None;
        load_each(source, &wanted, |id, packs| {
            fresh_len += packs.iter().map(|pack| pack.blobs.len()).sum::<usize>();
            if fresh_len <= self.limits.recent_len && plan.fresh.len() < self.limits.recent_objects {
                plan.fresh.push((id, packs));
                return;
            }
            let batch = rest.get_or_insert_default();
            batch.push(id, &packs);
            if batch.len() >= self.limits.batch_len {
                batch.sort();
                plan.files.extend(self.write_file(work, &[Input::Batch(batch)], &|_| true, lock));
                *batch = Batch::default();
            }
        })?;
        if let Some(catalog) = self.catalog.as_ref().filter(|_| rest.is_none()) {
            let new: Vec<_> = plan.fresh[from_catalog..].iter().map(|(id, packs)| (*id, &packs[..])).collect();
            catalog.put_index_objects(&new);
        }
        Ok(rest)
    }

    /// Moves what is listed out of memory into a file, without a look at the source.
    fn settle(&self, work: &mut Work) {
        let lock = self.directory.as_ref().and_then(|directory| directory.lock(PATIENCE_LATER));
        let (files, stale) = {
            let state = self.read();
            (state.files(), state.stale.clone())
        };
        let mut plan = Plan { files, fresh: Vec::new(), leaving: HashSet::new(), stale: stale.clone() };
        self.settle_into(work, &mut plan, Batch::default(), &|id| !stale.contains(id), lock.as_ref());
        self.commit(plan, lock.as_ref());
    }

    /// Writes one file from what is in memory, `plan.fresh`, `batch` and those of `plan.files` that are not much larger.
    fn settle_into(
        &self,
        work: &mut Work,
        plan: &mut Plan,
        mut batch: Batch,
        live: &dyn Fn(&ObjectId) -> bool,
        lock: Option<&Lock>,
    ) {
        let mut recent = self.read().recent.batch();
        // What is not live was published after the source was listed: it must not leave memory for a file that lacks it.
        plan.leaving.extend(recent.objects().iter().filter(|id| live(id)));
        for (id, packs) in plan.fresh.drain(..) {
            recent.push(id, &packs);
        }
        recent.sort();
        batch.sort();
        loop {
            plan.files.sort_by_key(|file| (file.is_damaged(), std::cmp::Reverse(file.record_count())));
            let whole = plan.files.partition_point(|file| !file.is_damaged());
            let mut len = (recent.len() + batch.len()) as u64;
            let mut kept = whole;
            while let Some(smallest) = kept.checked_sub(1).map(|last| &plan.files[last])
                && len + smallest.record_count() <= RECORDS_MAX
                && (kept >= FILES_MAX || smallest.record_count() < TIER_RATIO * len.max(TIER_LEN_MIN))
            {
                len += smallest.record_count();
                kept -= 1;
            }
            let merged = plan.files[kept..whole].iter().map(|file| Input::File(file));
            let inputs: Vec<Input<'_>> =
                [Input::Batch(&recent), Input::Batch(&batch)].into_iter().chain(merged).collect();
            // An input that turns out to be damaged is left as it is: whoever reads it will have it replaced.
            if let Some(file) = self.write_file(work, &inputs, live, lock) {
                plan.files.splice(kept..whole, [file]);
                return;
            }
        }
    }

    /// Writes an index file where it can be written: in the directory, else where nobody else finds it, else in memory.
    /// `None` if an input is damaged.
    fn write_file(
        &self,
        work: &Work,
        inputs: &[Input<'_>],
        live: &dyn Fn(&ObjectId) -> bool,
        lock: Option<&Lock>,
    ) -> Option<Arc<IndexFile>> {
        if work.strikes < STRIKES_MAX {
            let shared = self.directory.as_ref().zip(lock).map(|(directory, lock)| -> Result<_, Failure> {
                let mut new = directory.create(lock)?;
                merge(inputs, self.repository, live, &mut new.file)?;
                let mapping = Mapping::of_file(&new.file)?;
                Ok(IndexFile::new(mapping, Some(directory.publish(new, lock)?), self.repository))
            });
            let private = || -> Result<_, Failure> {
                let mut file = NewFile::unlinked(&std::env::temp_dir())?;
                merge(inputs, self.repository, live, &mut file)?;
                Ok(IndexFile::new(Mapping::of_file(&file)?, None, self.repository))
            };
            for attempt in shared.into_iter().chain(std::iter::once_with(private)) {
                match attempt {
                    Ok(Some(file)) => return Some(Arc::new(file)),
                    Err(Failure::Damaged) => return None,
                    Ok(None) | Err(Failure::Io(_)) => {}
                }
            }
        }
        let mut bytes = Vec::new();
        merge(inputs, self.repository, live, &mut bytes).ok()?;
        let file = IndexFile::new(Mapping::Memory(bytes), None, self.repository);
        Some(Arc::new(file.expect("memory keeps what was written")))
    }

    /// Takes `plan` into use, in one step for everyone who is looking blobs up.
    fn commit(&self, plan: Plan, lock: Option<&Lock>) {
        let absent = self.read().absent.clone();
        let hidden: Vec<_> = plan.files.iter().map(|file| hidden_packs(file, &plan.stale, &absent)).collect();
        {
            let State { held, recent, numbers, covered, stale, .. } = &mut *self.write();
            let mut before = std::mem::take(held);
            for (file, hidden) in plan.files.iter().zip(hidden) {
                let base = match before.iter().position(|held| Arc::ptr_eq(&held.file, file)) {
                    Some(at) => before.swap_remove(at).base,
                    None => numbers.add_file(file),
                };
                held.push(Held { file: file.clone(), base, hidden });
            }
            for gone in before {
                numbers.retire(gone.base);
            }
            recent.forget(&plan.leaving);
            for (object, packs) in &plan.fresh {
                recent.publish(*object, packs, &mut |info| numbers.add(info));
            }
            *covered = plan.files.iter().flat_map(|file| file.objects()).copied().collect();
            covered.retain(|object| !plan.stale.contains(object));
            covered.extend(recent.objects());
            *stale = plan.stale;
        }
        if let Some((directory, lock)) = self.directory.as_ref().zip(lock) {
            directory.clean(&plan.files.iter().filter_map(|file| file.path()).collect(), lock);
            if let Some(catalog) = self.catalog.as_ref().filter(|_| !plan.leaving.is_empty()) {
                catalog.forget_index_objects(plan.leaving.into_iter().collect());
            }
        }
    }
}

impl State {
    fn files(&self) -> Vec<Arc<IndexFile>> {
        self.held.iter().map(|held| held.file.clone()).collect()
    }

    /// Calls `found` for every pack of an index object that is not gone, and for those that have none yet.
    fn each_listed_pack(&self, mut found: impl FnMut(PackNumber, PackInfo)) {
        self.recent.packs().for_each(|(number, info)| found(number, info));
        for held in &self.held {
            let gone: Vec<bool> = held.file.objects().iter().map(|object| self.stale.contains(object)).collect();
            for (number, entry) in (held.base..).zip(held.file.packs()) {
                if !gone[entry.object as usize] {
                    found(PackNumber(number), entry.info);
                }
            }
        }
    }

    #[cold]
    fn is_absent(&self, pack: PackNumber) -> bool {
        self.numbers.get(pack).is_some_and(|info| self.absent.contains(&info.id))
    }
}

impl Held {
    #[inline]
    fn is_hidden(&self, pack: u32) -> bool {
        self.hidden.as_ref().is_some_and(|bits| bits[(pack / 64) as usize] >> (pack % 64) & 1 == 1)
    }
}

/// The packs of `file` that must not be used: their index object is gone, or they are.
fn hidden_packs(file: &IndexFile, stale: &HashSet<ObjectId>, absent: &HashSet<ObjectId>) -> Option<Box<[u64]>> {
    let gone: Vec<bool> = file.objects().iter().map(|object| stale.contains(object)).collect();
    if absent.is_empty() && !gone.contains(&true) {
        return None;
    }
    let mut bits = vec![0u64; file.packs().len().div_ceil(64)];
    for (number, entry) in file.packs().iter().enumerate() {
        if gone[entry.object as usize] || absent.contains(&entry.info.id) {
            bits[number / 64] |= 1 << (number % 64);
        }
    }
    bits.iter().any(|bits| *bits != 0).then(|| bits.into_boxed_slice())
}

/// Id, offset and length as a record has it of each blob of `pack`.
fn locations(pack: &IndexedPack) -> impl Iterator<Item = (BlobId, u32, u32)> + '_ {
    let place = |offset: &mut u32, blob: &PackedBlob| {
        let at = *offset;
        // The decoder bounds the sum; what lies beyond cannot be found, which is better than found in a wrong place.
        *offset = at.checked_add(blob.len)?;
        Some((blob.id, at, if blob.is_delta { blob.len | DELTA_BIT } else { blob.len }))
    };
    pack.blobs.iter().scan(0, place)
}

fn blobs_of(objects: &[(ObjectId, Vec<IndexedPack>)]) -> usize {
    objects.iter().flat_map(|(_, packs)| packs).map(|pack| pack.blobs.len()).sum()
}

/// Loads `ids`, several at a time, and hands them to `found` as they arrive.
fn load_each<S: IndexSource>(
    source: &S,
    ids: &[ObjectId],
    mut found: impl FnMut(ObjectId, Vec<IndexedPack>),
) -> Result<(), S::Error> {
    if let [id] = ids {
        if let Some(packs) = source.load(id)? {
            found(*id, packs);
        }
        return Ok(());
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        for _ in 0..source.parallel().min(ids.len()) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let loaded = source.load(id).map(|packs| (*id, packs));
                    // Nobody listens after the first failure.
                    if sender.send(loaded).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        receiver.into_iter().try_for_each(|loaded| {
            if let (id, Some(packs)) = loaded? {
                found(id, packs);
            }
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests;
