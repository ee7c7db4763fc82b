//! The first bytes of every stored object: what it is, which version wrote it, and the salt of its key.

use crate::format::codec::{DecodeError, Decoder, Result};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 44;
/// The format version that this program reads and writes.
pub const VERSION: u8 = 1;
/// The versions that this program reads, for messages.
pub const VERSIONS_READ: &str = "1";

const MAGIC: &[u8; 6] = b"BYGONE";
/// AES-256-GCM over zstd; other numbers are for later suites.
const SUITE: u16 = 1;

/// What an object says it is; a letter, so that `head -c 8` of an object reads well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StoredKind {
    /// Configuration.
    Config = b'C',
    /// Wrapped master key.
    Key = b'K',
    /// Pack of data blobs, or of tree and list blobs.
    Pack = b'P',
    /// Index.
    Index = b'I',
    /// Snapshot.
    Snapshot = b'S',
}

/// The header of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: StoredKind,
    /// Random, fresh for every object that is written: its key is derived from it.
    pub salt: [u8; 32],
}

impl Header {
    /// The header as stored.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..6].copy_from_slice(MAGIC);
        out[6] = VERSION;
        out[7] = self.kind as u8;
        out[8..10].copy_from_slice(&SUITE.to_le_bytes());
        out[12..].copy_from_slice(&self.salt);
        out
    }

    /// Decodes a header that must be of `kind` and of the version this program reads.
    pub fn decode(stored: &[u8], kind: StoredKind) -> Result<Header> {
        let mut input = Decoder::new(stored);
        if input.take(6, "magic")? != MAGIC {
            return Err(DecodeError::new("magic (not an object of this program)", 0));
        }
        match input.u8("version")? {
            VERSION => {}
            later if later > VERSION => return Err(DecodeError::newer("format version", 6)),
            _ => return Err(DecodeError::new("format version", 6)),
        }
        if input.u8("kind")? != kind as u8 {
            return Err(DecodeError::new("object kind", 7));
        }
        if input.u16("suite")? != SUITE {
            return Err(DecodeError::newer("cipher suite", 8));
        }
        if input.u16("reserved")? != 0 {
            return Err(DecodeError::newer("use of reserved bytes", 10));
        }
        Ok(Header { kind, salt: input.array("salt")? })
    }

    /// The version of an object, if it has this program's magic.
    pub fn version(stored: &[u8]) -> Option<u8> {
        (stored.len() > 6 && &stored[..6] == MAGIC).then(|| stored[6])
    }
}
