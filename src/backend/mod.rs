//! A dumb store of named, write-once objects. It knows names and bytes, nothing of what they mean.
//!
//! Contract of every backend, held by one test suite: `put` is atomic and durable when it returns, never overwrites, and
//! succeeds quietly if the object is already there (names are hashes, so the bytes are the same); `get_range` returns
//! exactly the bytes asked for or an error; `list` shows every object whose `put` returned before it began.

pub mod local;
pub mod mem;

use std::fmt;
use std::io;

use crate::id::ObjectId;

/// Sorts of objects. Each has its own directory or prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// The repository's one configuration object; its id is all zeros.
    Config,
    /// A wrapped master key.
    Key,
    /// Sealed segments of blobs.
    Pack,
    /// Where blobs lie.
    Index,
    /// A restore point.
    Snapshot,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [ObjectKind; 5] =
        [ObjectKind::Config, ObjectKind::Key, ObjectKind::Pack, ObjectKind::Index, ObjectKind::Snapshot];

    /// The directory or prefix.
    pub fn directory(self) -> &'static str {
        match self {
            ObjectKind::Config => "config",
            ObjectKind::Key => "keys",
            ObjectKind::Pack => "packs",
            ObjectKind::Index => "index",
            ObjectKind::Snapshot => "snapshots",
        }
    }
}

/// Name of a stored object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its sort.
    pub kind: ObjectKind,
    /// Hash of its stored bytes.
    pub id: ObjectId,
}

impl ObjectName {
    /// The object of `kind` named `id`.
    pub fn new(kind: ObjectKind, id: ObjectId) -> Self {
        Self { kind, id }
    }

    /// The one configuration object.
    pub fn config() -> Self {
        Self { kind: ObjectKind::Config, id: ObjectId([0; 32]) }
    }

    /// Path below the repository's root, with `/` between its parts.
    pub fn path(&self) -> String {
        match self.kind {
            ObjectKind::Config => "config".to_owned(),
            ObjectKind::Pack => {
                let hex = self.id.to_hex();
                format!("packs/{}/{hex}", &hex[..2])
            }
            kind => format!("{}/{}", kind.directory(), self.id),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// What callers may decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such object.
    NotFound,
    /// The store refused: permissions, credentials.
    Denied,
    /// No room left, or over quota.
    Full,
    /// The object is shorter than the range asked for.
    Truncated,
    /// Might work when tried again.
    Transient,
    /// Anything else.
    Other,
}

/// A backend operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} `{object}` in {location}: {source}")]
pub struct Error {
    /// The operation, e.g. "read".
    pub op: &'static str,
    /// The object or directory.
    pub object: String,
    /// The store, as the user named it.
    pub location: String,
    /// What callers may decide on.
    pub kind: ErrorKind,
    /// The cause.
    pub source: io::Error,
}

/// Result of a backend operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An object in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub id: ObjectId,
    /// Its stored length in bytes.
    pub len: u64,
}

/// A store of write-once objects. See the module for the contract.
pub trait Backend: Send + Sync {
    /// The store, as the user would name it.
    fn location(&self) -> String;

    /// Whether it is reached through a network, where every request takes its time.
    fn is_remote(&self) -> bool {
        false
    }

    /// Makes the store ready for a new repository; refuses one that already holds a configuration object.
    fn create(&self) -> Result<()>;

    /// Stores `bytes` under `name`, durably, before it returns.
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()>;

    /// The whole object; refuses one longer than `len_max` before it allocates.
    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>>;

    /// Fills `out` from `offset` of the object.
    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Calls `found` for every object of `kind`, in no order.
    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()>;

    /// Length of the object in bytes.
    fn len(&self, name: ObjectName) -> Result<u64>;

    /// Deletes the object; no error if it is gone already.
    fn delete(&self, name: ObjectName) -> Result<()>;

    /// Removes leftovers of interrupted writes that are older than `age_min_s` seconds; returns how many.
    fn clean(&self, age_min_s: u64) -> Result<u64>;
}
