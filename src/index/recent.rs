//! Packs that are in no index file yet: those this process has just written, and those of a few new index objects.
//!
//! All in memory. What belongs to an index object moves to a file when it becomes much; what has no index object yet
//! stays until it has one.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use super::file::{Record, prefix};
use super::merge::Batch;
use super::{Location, PackInfo, PackNumber, locations};
use crate::format::index::IndexedPack;
use crate::id::{BlobId, ObjectId};

/// Blob ids are hashes already: their first bytes are the hash.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if bytes.len() >= 8 {
            self.0 = prefix(bytes);
        }
    }
    fn write_usize(&mut self, _: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

/// No further entry for the same blob.
const LAST: u32 = u32::MAX;

struct Entry {
    id: BlobId,
    location: Location,
    /// The next older entry for the same blob, or [`LAST`].
    older: u32,
}

struct RecentPack {
    info: PackInfo,
    blob_count: usize,
    /// The index object that lists it, once there is one.
    object: Option<ObjectId>,
}

/// Blobs of packs that are in no file.
#[derive(Default)]
pub(super) struct Recent {
    packs: HashMap<PackNumber, RecentPack>,
    /// Packs that no index object lists yet.
    unlisted: HashMap<ObjectId, PackNumber>,
    objects: HashSet<ObjectId>,
    entries: Vec<Entry>,
    newest: HashMap<BlobId, u32, BuildHasherDefault<IdHasher>>,
}

impl Recent {
    /// Takes in a pack that no index object lists yet. `number` gives packs their numbers.
    pub(super) fn add(&mut self, pack: &IndexedPack, number: &mut dyn FnMut(PackInfo) -> PackNumber) {
        if !self.unlisted.contains_key(&pack.id) {
            let number = self.push_pack(pack, None, number);
            self.unlisted.insert(pack.id, number);
        }
    }

    /// Takes in an index object and its packs, of which some may have been added before.
    pub(super) fn publish(
        &mut self,
        object: ObjectId,
        packs: &[IndexedPack],
        number: &mut dyn FnMut(PackInfo) -> PackNumber,
    ) {
        let known = !self.objects.insert(object);
        for pack in packs {
            let added = self.unlisted.remove(&pack.id).and_then(|number| self.packs.get_mut(&number));
            match added {
                Some(added) if added.blob_count == pack.blobs.len() => added.object = Some(object),
                _ if known => {}
                _ => {
                    self.push_pack(pack, Some(object), number);
                }
            }
        }
    }

    fn push_pack(
        &mut self,
        pack: &IndexedPack,
        object: Option<ObjectId>,
        number: &mut dyn FnMut(PackInfo) -> PackNumber,
    ) -> PackNumber {
        let info = PackInfo { id: pack.id, len: pack.len };
        let number = number(info);
        self.packs.insert(number, RecentPack { info, blob_count: pack.blobs.len(), object });
        for (id, offset, len) in locations(pack) {
            self.push(id, Location::of_record(number, offset, len));
        }
        number
    }

    fn push(&mut self, id: BlobId, location: Location) {
        let at = self.entries.len() as u32;
        let older = self.newest.insert(id, at).unwrap_or(LAST);
        self.entries.push(Entry { id, location, older });
    }

    /// The location of `id` that `accept` takes.
    #[inline]
    pub(super) fn find(&self, id: &BlobId, accept: impl Fn(&Location) -> bool) -> Option<Location> {
        let mut at = *self.newest.get(id)?;
        while at != LAST {
            let entry = &self.entries[at as usize];
            if accept(&entry.location) {
                return Some(entry.location);
            }
            at = entry.older;
        }
        None
    }

    /// Every pack.
    pub(super) fn packs(&self) -> impl Iterator<Item = (PackNumber, PackInfo)> + '_ {
        self.packs.iter().map(|(number, pack)| (*number, pack.info))
    }

    /// Index objects covered.
    pub(super) fn objects(&self) -> &HashSet<ObjectId> {
        &self.objects
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of entries that index objects list.
    pub(super) fn listed_len(&self) -> usize {
        self.packs.values().filter(|pack| pack.object.is_some()).map(|pack| pack.blob_count).sum()
    }

    /// All that index objects list, as a batch for a file.
    pub(super) fn batch(&self) -> Batch {
        let mut packs: Vec<_> =
            self.packs.iter().filter_map(|(number, pack)| Some((pack.object?, *number, pack.info))).collect();
        packs.sort_unstable_by_key(|(object, number, _)| (*object, *number));
        let mut batch = Batch::default();
        let mut numbers = HashMap::with_capacity(packs.len());
        for (object, number, info) in packs {
            numbers.insert(number, batch.push_pack(object, info));
        }
        let covered: HashSet<ObjectId> = batch.objects().iter().copied().collect();
        for object in self.objects.difference(&covered) {
            batch.push(*object, []);
        }
        for entry in &self.entries {
            if let Some(pack) = numbers.get(&entry.location.pack) {
                let (offset, len) = (entry.location.offset, entry.location.record_len());
                batch.push_record(Record { id: entry.id, pack: *pack, offset, len });
            }
        }
        batch
    }

    /// Forgets these index objects and their packs.
    pub(super) fn forget(&mut self, gone: &HashSet<ObjectId>) {
        if self.objects.is_disjoint(gone) {
            return;
        }
        self.objects.retain(|object| !gone.contains(object));
        self.packs.retain(|_, pack| pack.object.is_none_or(|object| !gone.contains(&object)));
        self.newest = HashMap::default();
        for entry in std::mem::take(&mut self.entries) {
            if self.packs.contains_key(&entry.location.pack) {
                self.push(entry.id, entry.location);
            }
        }
    }
}
