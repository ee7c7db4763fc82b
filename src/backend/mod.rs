//! A dumb store of named, write-once objects. It knows names and bytes, nothing of what they mean.
//!
//! Contract of every backend, held by one test suite: `put` is atomic and durable when it returns, and succeeds quietly
//! if the object is already there (names are hashes, so the bytes are the same); `get_range` returns exactly the bytes
//! asked for or an error; `list` shows every object whose `put` returned before it began, except that the listings of a
//! distributed store may lag: no decision that could lose data rests on one.
//!
//! `local` and `mem` are here; `remote` is what `s3` and `swift` have in common; `count`, `deadline` and `near` wrap a
//! backend.

pub mod count;
pub mod deadline;
pub mod local;
pub mod mem;
pub mod near;
#[cfg(feature = "remote")]
pub mod remote;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "swift")]
pub mod swift;

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
    /// The store did not answer as it should, or in time: that says nothing of the object.
    Unanswered,
    /// The thread may not wait for storage, and would have to: see [`deadline::without_waiting`].
    WouldWait,
    /// The run was asked to end.
    Interrupted,
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

/// How soon bytes are wanted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// By later runs too: worth a place on the local disk.
    Often,
    /// Hardly ever after this run.
    Seldom,
}

/// A store of write-once objects. See the module for the contract.
pub trait Backend: Send + Sync {
    /// The store, as the user would name it.
    fn location(&self) -> String;

    /// Whether it is reached through a network, where every request takes its time.
    fn is_remote(&self) -> bool {
        false
    }

    /// How many requests at once make the best use of it.
    fn parallel(&self) -> usize {
        1
    }

    /// Makes the store ready for a new repository; refuses one that already holds a configuration object.
    fn create(&self) -> Result<()>;

    /// Stores `bytes` under `name`, durably, before it returns.
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()>;

    /// As [`Backend::put`], of bytes that the caller does not need any more.
    fn put_vec(&self, name: ObjectName, bytes: Vec<u8>, _reuse: Reuse) -> Result<()> {
        self.put(name, &bytes)
    }

    /// The whole object; refuses one longer than `len_max` before it allocates.
    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>>;

    /// Small objects, each of at most `len_max` bytes, will be asked for soon.
    fn will_get(&self, _names: &[ObjectName], _len_max: u64) {}

    /// Fills `out` from `offset` of the object.
    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Up to `len` bytes from `offset` of the object; fewer only where it ends.
    fn get_part(&self, name: ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let end = self.len(name)?;
        let mut part = vec![0; (len as u64).min(end.saturating_sub(offset)) as usize];
        if !part.is_empty() {
            self.get_range(name, offset, &mut part)?;
        }
        Ok(part)
    }

    /// As [`Backend::get_range`], and says how soon the bytes are wanted again.
    fn get_range_for(&self, name: ObjectName, offset: u64, out: &mut [u8], _reuse: Reuse) -> Result<()> {
        self.get_range(name, offset, out)
    }

    /// As [`Backend::get_range`], from the store itself: what nearer places hold turned out to be wrong.
    fn get_range_again(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        self.get_range(name, offset, out)
    }

    /// `len` bytes from `offset` of the object will be asked for soon.
    fn will_read(&self, _name: ObjectName, _offset: u64, _len: u64, _reuse: Reuse) {}

    /// Calls `found` for every object of `kind`, in no order.
    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()>;

    /// Calls `found` for every object of several kinds, with as few requests as the store allows.
    fn list_kinds(&self, kinds: &[ObjectKind], found: &mut dyn FnMut(ObjectKind, Listed)) -> Result<()> {
        kinds.iter().try_for_each(|kind| self.list(*kind, &mut |listed| found(*kind, listed)))
    }

    /// Length of the object in bytes.
    fn len(&self, name: ObjectName) -> Result<u64>;

    /// Deletes the object; no error if it is gone already.
    fn delete(&self, name: ObjectName) -> Result<()>;

    /// Removes leftovers of interrupted writes that are older than `age_min_s` seconds; returns how many.
    fn clean(&self, age_min_s: u64) -> Result<u64>;
}
