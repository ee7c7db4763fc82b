//! A repository on a backend: opening it, reading verified blobs, storing new ones once.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::{self, Backend};
use crate::format::codec::DecodeError;
use crate::format::snapshot::Snapshot;
use crate::id::{BlobId, BlobKind, ContentHash, ObjectId, RepositoryId};

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
pub struct Repository {}

impl Repository {
    /// Opens the repository on `backend` with `password`.
    pub fn open(backend: Arc<dyn Backend>, password: &[u8], options: &OpenOptions) -> Result<Arc<Repository>> {
        let _ = (backend, password, options);
        todo!()
    }

    /// Creates a repository on `backend` whose first key opens with `password`.
    pub fn init(backend: Arc<dyn Backend>, password: &[u8], options: &OpenOptions) -> Result<Arc<Repository>> {
        let _ = (backend, password, options);
        todo!()
    }

    /// The repository's random id.
    pub fn id(&self) -> RepositoryId {
        todo!()
    }

    /// Its store, as the user named it.
    pub fn location(&self) -> String {
        todo!()
    }

    /// The id of the blob of `kind` whose plaintext hashes to `hash`.
    pub fn blob_id(&self, kind: BlobKind, hash: &ContentHash) -> BlobId {
        let _ = (kind, hash);
        todo!()
    }

    /// A whole blob, verified against its id.
    pub fn blob(&self, kind: BlobKind, id: &BlobId) -> Result<Blob> {
        let _ = (kind, id);
        todo!()
    }

    /// Fills `out` from `offset` within the data blob `id`; decodes only the segments hit.
    pub fn read_blob_at(&self, id: &BlobId, offset: u64, out: &mut [u8]) -> Result<()> {
        let _ = (id, offset, out);
        todo!()
    }

    /// Every snapshot, oldest first. A snapshot that cannot be read is an error: a listing is never silently short.
    pub fn snapshots(&self) -> Result<Vec<(ObjectId, Snapshot)>> {
        todo!()
    }

    /// Picks up what other processes have written since the repository was opened: index objects, snapshots.
    pub fn refresh(&self) -> Result<()> {
        todo!()
    }
}
