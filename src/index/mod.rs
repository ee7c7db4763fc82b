//! Blob id to location. Index objects in the repository are the truth; what lies on the local disk is disposable.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::RwLock;

use crate::format::index::IndexedPack;
use crate::id::{BlobId, ObjectId, RepositoryId};

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
    /// Plain length in bytes.
    pub len: u32,
}

/// A pack's name and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackInfo {
    /// Its name.
    pub id: ObjectId,
    /// Its stored length in bytes.
    pub len: u64,
}

/// Where index objects come from.
pub trait IndexSource {
    /// Its errors.
    type Error;
    /// The names of all index objects.
    fn list(&self) -> Result<Vec<ObjectId>, Self::Error>;
    /// The packs of one.
    fn load(&self, id: &ObjectId) -> Result<Vec<IndexedPack>, Self::Error>;
}

#[derive(Default)]
struct State {
    blobs: HashMap<BlobId, Location>,
    packs: Vec<PackInfo>,
    objects: HashSet<ObjectId>,
    known: HashSet<ObjectId>,
    present: Option<HashSet<ObjectId>>,
}

/// The index.
pub struct Index(RwLock<State>);

impl Index {
    /// Opens it.
    pub fn open<S: IndexSource>(_: Option<&Path>, _: RepositoryId, source: &S) -> Result<Index, S::Error> {
        let index = Index(RwLock::default());
        index.refresh(source)?;
        Ok(index)
    }

    /// Loads new index objects.
    pub fn refresh<S: IndexSource>(&self, source: &S) -> Result<bool, S::Error> {
        let mut new = false;
        for id in source.list()? {
            if !self.0.read().expect("lock").objects.contains(&id) {
                new = true;
                let packs = source.load(&id)?;
                packs.iter().for_each(|pack| self.add(pack));
                self.0.write().expect("lock").objects.insert(id);
            }
        }
        Ok(new)
    }

    /// Where a blob lies.
    pub fn locate(&self, id: &BlobId) -> Option<Location> {
        let state = self.0.read().expect("lock");
        let location = *state.blobs.get(id)?;
        let pack = &state.packs[location.pack.0 as usize].id;
        state.present.as_ref().is_none_or(|present| present.contains(pack)).then_some(location)
    }

    /// A pack's name and size.
    pub fn pack(&self, number: PackNumber) -> PackInfo {
        self.0.read().expect("lock").packs[number.0 as usize]
    }

    /// A pack that was just written.
    pub fn add(&self, pack: &IndexedPack) {
        let mut state = self.0.write().expect("lock");
        if let Some(present) = &mut state.present {
            present.insert(pack.id);
        }
        if !state.known.insert(pack.id) {
            return;
        }
        let number = PackNumber(state.packs.len() as u32);
        state.packs.push(PackInfo { id: pack.id, len: pack.len });
        let mut offset = 0;
        for blob in &pack.blobs {
            state.blobs.insert(blob.id, Location { pack: number, offset, len: blob.len });
            offset += blob.len;
        }
    }

    /// This process wrote an index object.
    pub fn published(&self, object: ObjectId, _: &[IndexedPack]) {
        self.0.write().expect("lock").objects.insert(object);
    }

    /// Packs that exist.
    pub fn restrict_to(&self, present: HashSet<ObjectId>) {
        self.0.write().expect("lock").present = Some(present);
    }
}
