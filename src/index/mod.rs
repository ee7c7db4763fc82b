//! Blob id to location. Index objects in the repository are the truth; what lies on the local disk is disposable.

use crate::id::ObjectId;

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
