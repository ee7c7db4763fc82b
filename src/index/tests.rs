//! The index as a whole: against a model under every kind of local damage, between processes, and its cost.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::id::{BLOB_ID_LEN, BlobKind};

const REPOSITORY: RepositoryId = RepositoryId([9; 32]);
/// Small, so that every path is walked with a few blobs.
const SMALL: Limits = Limits { recent_len: 40, recent_objects: 4, batch_len: 60 };

/// Index objects in memory; counts what is loaded.
#[derive(Default)]
struct Source {
    objects: Mutex<BTreeMap<ObjectId, Vec<IndexedPack>>>,
    loads: AtomicUsize,
}

impl IndexSource for Source {
    type Error = Infallible;

    fn list(&self) -> Result<Vec<ObjectId>, Infallible> {
        Ok(self.objects.lock().unwrap().keys().copied().collect())
    }

    fn load(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>, Infallible> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        Ok(self.objects.lock().unwrap().get(id).cloned())
    }
}

impl Source {
    fn with(objects: impl IntoIterator<Item = (ObjectId, Vec<IndexedPack>)>) -> Self {
        Self { objects: Mutex::new(objects.into_iter().collect()), loads: AtomicUsize::new(0) }
    }

    fn loads(&self) -> usize {
        self.loads.swap(0, Ordering::Relaxed)
    }

    fn everywhere(&self) -> Places {
        places(self.objects.lock().unwrap().values().flatten())
    }
}

/// Where a blob may be said to lie: pack, offset, length.
type Places = BTreeMap<BlobId, BTreeSet<(ObjectId, u32, u32)>>;

fn places<'a>(packs: impl IntoIterator<Item = &'a IndexedPack>) -> Places {
    let mut places = Places::new();
    for pack in packs {
        let mut offset = 0;
        for blob in &pack.blobs {
            places.entry(blob.id).or_default().insert((pack.id, offset, blob.len));
            offset += blob.len;
        }
    }
    places
}

fn blob_id(number: u64) -> BlobId {
    let mut id = BlobId([0; BLOB_ID_LEN]);
    id.0.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..BLOB_ID_LEN]);
    id
}

fn object_id(number: u64) -> ObjectId {
    ObjectId::of(&number.to_be_bytes())
}

/// Pack `number`, of the blobs `from..from + count`.
fn pack(number: u64, from: u64, count: u64) -> IndexedPack {
    let blob =
        |n: u64| PackedBlob { kind: BlobKind::Data, id: blob_id(n), len: 1 + (n % 5000) as u32, is_delta: n % 7 == 3 };
    IndexedPack { id: object_id(number), len: 1000 + number, blobs: (from..from + count).map(blob).collect() }
}

/// `count` index objects of one pack of `blobs` blobs each, numbered from `first`.
fn objects(first: u64, count: u64, blobs: u64) -> Vec<(ObjectId, Vec<IndexedPack>)> {
    (first..first + count).map(|n| (object_id(1_000_000 + n), vec![pack(n, n * blobs, blobs)])).collect()
}

/// Looks a blob up as a reader of the repository does: an answer that does not hold is checked again before it counts.
fn look_up(index: &Index, source: &Source, id: &BlobId, allowed: &Places) -> Option<(ObjectId, u32, u32)> {
    for _ in 0..20 {
        let found = index.find(id, source).unwrap();
        let found = found.map(|found| (index.pack(found.pack).id, found.offset, found.len));
        let holds = match &found {
            None => !allowed.contains_key(id),
            Some(place) => allowed.get(id).is_some_and(|places| places.contains(place)),
        };
        if holds || index.recheck(id).is_ok() {
            return found;
        }
        index.refresh(source).unwrap();
    }
    panic!("the index does not get whole again");
}

/// Every blob of `allowed` is found where it lies, and no other one is.
fn assert_answers(index: &Index, source: &Source, allowed: &Places, blobs: u64) {
    for number in 0..blobs {
        let id = blob_id(number);
        let found = look_up(index, source, &id, allowed);
        match (found, allowed.get(&id)) {
            (None, None) => {}
            (Some(place), Some(places)) if places.contains(&place) => {}
            (found, places) => panic!("blob {number}: found {found:?}, lies at {places:?}"),
        }
    }
}

fn local_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files.extend(local_files(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

fn index_files(cache: &Path) -> Vec<PathBuf> {
    let files = local_files(cache);
    files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "index")).collect()
}

#[derive(Clone, Debug)]
enum Damage {
    Truncate(u16),
    Flip(u16),
    Delete,
    Garbage(u16),
    Append,
    Stranger,
    Everything,
}

#[derive(Clone, Debug)]
enum Step {
    /// This process writes a pack, of new blobs or of some that are stored already.
    Add {
        blobs: u64,
        again: bool,
    },
    /// It writes an index object of its packs.
    Publish,
    /// Another process writes an index object.
    Other {
        blobs: u64,
        again: bool,
    },
    /// A prune replaces an index object by one with fewer packs.
    Prune(u16),
    Refresh,
    Reopen,
    Damage(u16, Damage),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let damage = prop_oneof![
        1 => any::<u16>().prop_map(Damage::Truncate),
        4 => any::<u16>().prop_map(Damage::Flip),
        1 => Just(Damage::Delete),
        1 => any::<u16>().prop_map(Damage::Garbage),
        1 => Just(Damage::Append),
        1 => Just(Damage::Stranger),
        1 => Just(Damage::Everything),
    ];
    let step = prop_oneof![
        3 => (1..30u64, any::<bool>()).prop_map(|(blobs, again)| Step::Add { blobs, again }),
        2 => Just(Step::Publish),
        4 => (0..90u64, any::<bool>()).prop_map(|(blobs, again)| Step::Other { blobs, again }),
        1 => any::<u16>().prop_map(Step::Prune),
        2 => Just(Step::Refresh),
        2 => Just(Step::Reopen),
        3 => (any::<u16>(), damage).prop_map(|(at, damage)| Step::Damage(at, damage)),
    ];
    prop::collection::vec(step, 1..25)
}

fn damage(cache: &Path, at: u16, damage: &Damage) {
    let files = local_files(cache);
    let Some(path) = files.get(at as usize % files.len().max(1)) else {
        return;
    };
    let open = || fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let len = fs::metadata(path).unwrap().len();
    match damage {
        Damage::Truncate(part) => open().set_len(len * u64::from(*part) / (1 << 16)).unwrap(),
        Damage::Flip(part) => {
            use std::os::unix::fs::FileExt;
            let (file, at) = (open(), len * u64::from(*part) / (1 << 16));
            let mut byte = [0];
            if file.read_at(&mut byte, at).unwrap() == 1 {
                file.write_at(&[byte[0] ^ 1 << (part % 8)], at).unwrap();
            }
        }
        Damage::Delete => fs::remove_file(path).unwrap(),
        Damage::Garbage(len) => {
            fs::remove_file(path).unwrap();
            fs::write(path, vec![0xa5; *len as usize]).unwrap();
        }
        Damage::Append => fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap(),
        Damage::Stranger => {
            let _ = fs::create_dir_all(cache.join("index"));
            fs::write(cache.join("index/0000000000000000.index"), [7; 5000]).unwrap();
            fs::copy(path, cache.join("index/0000000000000001.index")).unwrap();
        }
        Damage::Everything => {
            for file in files {
                fs::remove_file(file).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_index_answers_like_a_fresh_build_whatever_happens_to_its_files(steps in steps()) {
        let cache = tempfile::tempdir().unwrap();
        let source = Source::default();
        let open = || Index::open_with(Some(cache.path()), REPOSITORY, &source, SMALL).unwrap();
        let mut index = open();
        let (mut blobs, mut packs, mut objects) = (0u64, 0u64, 0u64);
        let mut mine: Vec<IndexedPack> = Vec::new();
        let mut new_pack = |count: u64, again: bool| {
            let from = if again { blobs / 2 } else { blobs };
            blobs = blobs.max(from + count);
            packs += 1;
            (pack(packs, from, count), blobs)
        };
        let mut blobs_so_far = 0;
        for step in steps {
            match &step {
                Step::Add { blobs, again } => {
                    let (pack, so_far) = new_pack(*blobs, *again);
                    blobs_so_far = so_far;
                    index.add(&pack);
                    mine.push(pack);
                }
                Step::Publish => {
                    objects += 1;
                    let listed = std::mem::take(&mut mine);
                    source.objects.lock().unwrap().insert(object_id(objects + 1_000_000), listed.clone());
                    index.published(object_id(objects + 1_000_000), &listed);
                }
                Step::Other { blobs, again } => {
                    let (pack, so_far) = new_pack(*blobs, *again);
                    blobs_so_far = so_far;
                    objects += 1;
                    source.objects.lock().unwrap().insert(object_id(objects + 1_000_000), vec![pack]);
                }
                Step::Prune(which) => {
                    let mut all = source.objects.lock().unwrap();
                    if let Some(id) = all.keys().nth(*which as usize % all.len().max(1)).copied() {
                        let packs = all.remove(&id).unwrap();
                        objects += 1;
                        let kept = packs.len() / 2;
                        all.insert(object_id(objects + 1_000_000), packs.into_iter().take(kept).collect());
                    }
                }
                Step::Refresh => {}
                Step::Reopen => {
                    mine.clear();
                    index = open();
                }
                Step::Damage(at, kind) => damage(cache.path(), *at, kind),
            }
            if !matches!(step, Step::Add { .. } | Step::Publish | Step::Damage(..)) {
                index.refresh(&source).unwrap();
                let mut allowed = source.everywhere();
                for (id, more) in places(&mine) {
                    allowed.entry(id).or_default().extend(more);
                }
                assert_answers(&index, &source, &allowed, blobs_so_far + 5);
            }
        }
        index.refresh(&source).unwrap();
        let mut allowed = source.everywhere();
        for (id, more) in places(&mine) {
            allowed.entry(id).or_default().extend(more);
        }
        assert_answers(&index, &source, &allowed, blobs_so_far + 5);
        prop_assert!(index.read().held.len() <= FILES_MAX + 1);
    }
}

#[test]
fn a_thousand_index_objects_are_loaded_once_and_lie_in_few_files() {
    let cache = tempfile::tempdir().unwrap();
    let source = Source::with(objects(0, 1000, 30));
    let first = Index::open(Some(cache.path()), REPOSITORY, &source).unwrap();
    assert_eq!((source.loads(), first.blob_count()), (1000, 30_000));
    for n in 1000..1400 {
        let (id, packs) = objects(n, 1, 30).remove(0);
        packs.iter().for_each(|pack| first.add(pack));
        source.objects.lock().unwrap().insert(id, packs.clone());
        first.published(id, &packs);
    }
    let second = Index::open(Some(cache.path()), REPOSITORY, &source).unwrap();
    assert_eq!(source.loads(), 0, "all is known from files and the local database");
    assert!(index_files(cache.path()).len() <= FILES_MAX);
    for index in [&first, &second] {
        assert_answers(index, &source, &source.everywhere(), 42_010);
    }
    // Without the database, only what is in no file yet is loaded again.
    fs::remove_dir_all(cache.path().join("catalog")).unwrap();
    Index::open(Some(cache.path()), REPOSITORY, &source).unwrap();
    assert!((1..=LIMITS.recent_objects).contains(&source.loads()));
}

#[test]
fn processes_that_open_a_cold_cache_together_agree_and_leave_few_files() {
    let cache = tempfile::tempdir().unwrap();
    let source = Source::with(objects(0, 40, 50));
    let allowed = source.everywhere();
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (cache, source, allowed) = (cache.path(), &source, &allowed);
            scope.spawn(move || {
                // Nothing but the disk is shared between these.
                let index = Index::open_with(Some(cache), REPOSITORY, source, SMALL).unwrap();
                for round in 0..10 {
                    let (id, packs) = objects(100 + n * 10 + round, 1, 20).remove(0);
                    source.objects.lock().unwrap().insert(id, packs.clone());
                    index.published(id, &packs);
                    index.refresh(source).unwrap();
                }
                for (id, places) in allowed {
                    let found = index.find(id, source).unwrap().unwrap();
                    assert!(places.contains(&(index.pack(found.pack).id, found.offset, found.len)));
                }
            });
        }
    });
    let index = Index::open_with(Some(cache.path()), REPOSITORY, &source, SMALL).unwrap();
    assert_answers(&index, &source, &source.everywhere(), 3200);
    assert!(index_files(cache.path()).len() <= FILES_MAX);
    let leftovers: Vec<_> = local_files(&cache.path().join("index"));
    assert!(leftovers.iter().all(|path| !path.to_str().unwrap().ends_with(".new")), "{leftovers:?}");
}

#[test]
fn blobs_of_packs_that_the_store_does_not_list_are_absent_until_stored_again() {
    let cache = tempfile::tempdir().unwrap();
    for limits in [SMALL, LIMITS] {
        let mut all = objects(0, 20, 10);
        // Blobs 0..10 lie in a second pack, too.
        all.push((object_id(77), vec![pack(500, 0, 10)]));
        let source = Source::with(all);
        let index = Index::open_with(Some(cache.path()), REPOSITORY, &source, limits).unwrap();
        let gone = [object_id(0), object_id(3), object_id(4)];
        let short = object_id(5);
        index.restrict_to(|pack| !gone.contains(&pack.id) && (pack.id != short || pack.len < 1000));
        index.refresh(&source).unwrap();
        let found = |n: u64| index.locate(&blob_id(n)).unwrap();
        assert_eq!(index.pack(found(5).unwrap().pack).id, object_id(500));
        assert!(found(29).is_some() && found(30).is_none() && found(49).is_none() && found(55).is_none());
        let mut packs = 0;
        index.for_each_pack(|_, _| packs += 1);
        assert_eq!(packs, 17);
        index.add(&pack(600, 30, 5));
        assert!(found(30).is_some() && found(35).is_none());
        // What others write later is there, and files that are written meanwhile do not bring the absent ones back.
        source.objects.lock().unwrap().extend(objects(21, 30, 10));
        index.refresh(&source).unwrap();
        assert!(found(215).is_some() && found(35).is_none());
        // Another process has made no such observation.
        let other = Index::open_with(Some(cache.path()), REPOSITORY, &source, limits).unwrap();
        assert!(other.locate(&blob_id(35)).unwrap().is_some());
    }
}

#[test]
fn a_mapped_file_that_is_truncated_or_changed_under_a_reader_is_replaced() {
    let cache = tempfile::tempdir().unwrap();
    let source = Source::with(objects(0, 40, 2000));
    let index = Index::open_with(Some(cache.path()), REPOSITORY, &source, SMALL).unwrap();
    let allowed = source.everywhere();
    for round in 0..3 {
        let files = index_files(cache.path());
        assert!(round > 0 || !files.is_empty());
        for path in files {
            let len = fs::metadata(&path).unwrap().len();
            if round == 0 {
                fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len / 3).unwrap();
            } else {
                use std::os::unix::fs::FileExt;
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                (0..len).step_by(4096).for_each(|at| file.write_all_at(&[0x55; 2048], at).unwrap());
            }
        }
        for (id, places) in allowed.iter().step_by(7) {
            assert!(places.contains(&look_up(&index, &source, id, &allowed).unwrap()));
        }
    }
}

#[test]
fn an_index_without_a_usable_cache_answers_the_same() {
    let source = Source::with(objects(0, 40, 50));
    let file = tempfile::NamedTempFile::new().unwrap();
    for cache in [None, Some(file.path()), Some(Path::new("/proc/nowhere"))] {
        let index = Index::open_with(cache, REPOSITORY, &source, SMALL).unwrap();
        assert_answers(&index, &source, &source.everywhere(), 2010);
    }
}

#[test]
fn a_file_of_another_repository_or_version_is_not_believed() {
    let cache = tempfile::tempdir().unwrap();
    let lie = Source::with(objects(0, 40, 50));
    drop(Index::open_with(Some(cache.path()), RepositoryId([1; 32]), &lie, SMALL).unwrap());
    // The same index objects by name, of other content.
    let truth = Source::with(objects(0, 40, 50).into_iter().map(|(id, _)| (id, vec![pack(1, 0, 3)])));
    let index = Index::open_with(Some(cache.path()), REPOSITORY, &truth, SMALL).unwrap();
    assert_answers(&index, &truth, &truth.everywhere(), 2010);
    let path = index_files(cache.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let footer = bytes.len() - file::FOOTER_LEN;
    let version = bytes[footer + 8];
    assert!(IndexFile::new(Mapping::Memory(bytes.clone()), None, REPOSITORY).is_some());
    // Another version, whole in itself: the body is a single block here.
    bytes[footer + 8] = version + 1;
    let hash = blake3::hash(&bytes[footer - file::HASH_LEN..footer + file::FOOTER_LEN - file::HASH_LEN]);
    bytes[footer + file::FOOTER_LEN - file::HASH_LEN..].copy_from_slice(hash.as_bytes());
    assert!(IndexFile::new(Mapping::Memory(bytes.clone()), None, REPOSITORY).is_none());
    bytes[footer + 8] = version;
    let hash = blake3::hash(&bytes[footer - file::HASH_LEN..footer + file::FOOTER_LEN - file::HASH_LEN]);
    bytes[footer + file::FOOTER_LEN - file::HASH_LEN..].copy_from_slice(hash.as_bytes());
    assert!(IndexFile::new(Mapping::Memory(bytes), None, REPOSITORY).is_some());
}

#[test]
fn pack_numbers_keep_their_meaning_when_files_are_merged() {
    let cache = tempfile::tempdir().unwrap();
    let source = Source::with(objects(0, 10, 10));
    let index = Index::open_with(Some(cache.path()), REPOSITORY, &source, SMALL).unwrap();
    index.add(&pack(300, 5000, 10));
    let before: Vec<(u64, PackNumber)> = (0..100)
        .chain([5005])
        .map(|n| (if n < 100 { n / 10 } else { 300 }, index.locate(&blob_id(n)).unwrap().unwrap().pack))
        .collect();
    index.published(object_id(400), &[pack(300, 5000, 10)]);
    source.objects.lock().unwrap().insert(object_id(400), vec![pack(300, 5000, 10)]);
    for n in 0..20 {
        source.objects.lock().unwrap().extend(objects(500 + n * 5, 5, 10));
        index.refresh(&source).unwrap();
    }
    for (pack, number) in before {
        assert_eq!(index.pack(number), PackInfo { id: object_id(pack), len: 1000 + pack });
    }
}

#[test]
fn a_source_that_fails_fails_the_open_and_not_the_running_index() {
    struct Failing<'a>(&'a Source, ObjectId);
    impl IndexSource for Failing<'_> {
        type Error = String;
        fn list(&self) -> Result<Vec<ObjectId>, String> {
            Ok(self.0.list().unwrap_or_default())
        }
        fn load(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>, String> {
            if *id == self.1 { Err("disk on fire".to_owned()) } else { Ok(self.0.load(id).unwrap_or_default()) }
        }
    }
    let source = Source::with(objects(0, 40, 50));
    let bad = object_id(1_000_007);
    assert_eq!(Index::open(None, REPOSITORY, &Failing(&source, bad)).err().as_deref(), Some("disk on fire"));
    let index = Index::open(None, REPOSITORY, &Failing(&source, object_id(0))).unwrap();
    let known = source.everywhere();
    source.objects.lock().unwrap().extend(objects(50, 3, 10));
    let failing = Failing(&source, object_id(1_000_050));
    assert!(index.refresh(&failing).is_err());
    for id in known.keys() {
        assert!(index.locate(id).unwrap().is_some());
    }
    index.refresh(&source).unwrap();
    assert_answers(&index, &source, &source.everywhere(), 2000);
}

#[test]
fn an_index_object_that_is_published_while_others_are_taken_in_is_kept() {
    /// A source after whose listing this process publishes an index object.
    struct Late<'a>(&'a Source, &'a Index, AtomicBool);
    impl IndexSource for Late<'_> {
        type Error = Infallible;
        fn list(&self) -> Result<Vec<ObjectId>, Infallible> {
            let listed = self.0.list();
            if !self.2.swap(true, Ordering::Relaxed) {
                let (id, packs) = objects(900, 1, 10).remove(0);
                packs.iter().for_each(|pack| self.1.add(pack));
                self.0.objects.lock().unwrap().insert(id, packs.clone());
                self.1.published(id, &packs);
            }
            listed
        }
        fn load(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>, Infallible> {
            self.0.load(id)
        }
    }
    let cache = tempfile::tempdir().unwrap();
    let source = Source::with(objects(0, 3, 10));
    let index = Index::open_with(Some(cache.path()), REPOSITORY, &source, SMALL).unwrap();
    // Enough to be written into a file.
    source.objects.lock().unwrap().extend(objects(10, 20, 10));
    let late = Late(&source, &index, AtomicBool::new(false));
    index.refresh(&late).unwrap();
    for number in (0..30).chain(100..300).chain(9000..9010) {
        assert!(index.locate(&blob_id(number)).unwrap().is_some(), "blob {number}");
    }
    index.refresh(&source).unwrap();
    assert_answers(&index, &source, &source.everywhere(), 9020);
}

#[test]
fn an_index_object_that_cannot_be_read_is_not_covered_and_is_read_once_it_can_be() {
    /// A source that cannot read this one, and lists it nevertheless.
    struct Without<'a>(&'a Source, ObjectId);
    impl IndexSource for Without<'_> {
        type Error = Infallible;
        fn list(&self) -> Result<Vec<ObjectId>, Infallible> {
            self.0.list()
        }
        fn load(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>, Infallible> {
            if *id == self.1 { Ok(None) } else { self.0.load(id) }
        }
    }
    for (cache, count) in [(None, 1), (None, 40), (Some(tempfile::tempdir().unwrap()), 40)] {
        let cache = cache.as_ref().map(|cache| cache.path());
        let source = Source::with(objects(0, count, 10));
        let without = Without(&source, object_id(1_000_000));
        let index = Index::open_with(cache, REPOSITORY, &without, SMALL).unwrap();
        let found = |index: &Index, n| index.locate(&blob_id(n)).unwrap().is_some();
        assert!(!found(&index, 5) && (count == 1 || found(&index, 15)));
        index.refresh(&without).unwrap();
        assert!(!found(&index, 5));
        let other = Index::open_with(cache, REPOSITORY, &source, SMALL).unwrap();
        assert!(found(&other, 5), "the failure is not remembered on the disk");
    }
}

#[test]
fn named_pipes_in_the_cache_make_nobody_wait() {
    let cache = tempfile::tempdir().unwrap();
    fs::create_dir(cache.path().join("index")).unwrap();
    for name in ["lock", "0000000000000000.index"] {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            cache.path().join("index").join(name),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
    }
    let source = Source::with(objects(0, 40, 50));
    let index = Index::open_with(Some(cache.path()), REPOSITORY, &source, SMALL).unwrap();
    assert_answers(&index, &source, &source.everywhere(), 2010);
}

/// Prints what building, opening and looking up cost. `INDEX_BLOBS` sets the number of blobs.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_large_index() {
    /// Index objects of 50,000 blobs in 200 packs, made when asked for.
    struct Synthetic(u64, AtomicU64);
    impl IndexSource for Synthetic {
        type Error = Infallible;
        fn list(&self) -> Result<Vec<ObjectId>, Infallible> {
            Ok((0..self.0 / 50_000)
                .map(|n| {
                    let mut id = ObjectId([3; 32]);
                    id.0[..8].copy_from_slice(&n.to_le_bytes());
                    id
                })
                .collect())
        }
        fn load(&self, id: &ObjectId) -> Result<Option<Vec<IndexedPack>>, Infallible> {
            let start = Instant::now();
            let number = u64::from_le_bytes(id.0[..8].try_into().unwrap());
            let packs = (number * 200..(number + 1) * 200).map(|n| pack(n, n * 250, 250)).collect();
            self.1.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
            Ok(Some(packs))
        }
    }
    let memory = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let lines = status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("Rss"));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
    };
    let blobs = std::env::var("INDEX_BLOBS").map_or(1_000_000, |text| text.parse().unwrap());
    let source = Synthetic(blobs, AtomicU64::new(0));
    let cache = tempfile::tempdir_in(".").unwrap();
    let start = Instant::now();
    let index = Index::open(Some(cache.path()), REPOSITORY, &source).unwrap();
    let (built, making) = (start.elapsed(), source.1.load(Ordering::Relaxed) / 1000);
    println!("build {built:?} (of which {making} ms, over {LOADERS} threads, to make up the blobs); {}", memory());
    drop(index);
    for _ in 0..3 {
        let start = Instant::now();
        let index = Index::open(Some(cache.path()), REPOSITORY, &source).unwrap();
        println!("open {:?}, {} files; {}", start.elapsed(), index.read().held.len(), memory());
    }
    let index = Index::open(Some(cache.path()), REPOSITORY, &source).unwrap();
    let random = |n: u64| blob_id(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % blobs);
    let hits: Vec<BlobId> = (0..1_000_000).map(random).collect();
    let misses: Vec<BlobId> = (0..1_000_000).map(|n| blob_id(blobs + n)).collect();
    for (name, ids, expected) in [
        ("hits, first touch", &hits, true),
        ("hits", &hits, true),
        ("misses", &misses, false),
        ("misses", &misses, false),
    ] {
        let start = Instant::now();
        assert!(ids.iter().all(|id| index.locate(id).unwrap().is_some() == expected));
        println!("{name}: {} ns each; {}", start.elapsed().as_nanos() / ids.len() as u128, memory());
    }
    // What a run with one small index object costs: the database, opened for each call.
    let start = Instant::now();
    for n in 0..20 {
        let packs = [pack(1 << 40 | n, blobs + 2_000_000 + n * 100, 100)];
        index.add(&packs[0]);
        index.published(object_id(1 << 50 | n), &packs);
    }
    println!("publish: {:?} each", start.elapsed() / 20);
}
