//! Names of things: blobs, objects and whole-file hashes, each its own type so that one is never taken for another.
//!
//! A blob is named by what it contains, an object by the bytes that are stored: see bygone-format(5), "NAMES".

use std::fmt;

/// Length of a [`BlobId`] in bytes: 160 bits of a keyed hash. Nobody without the repository's key can compute one, so
/// collisions can only be accidents, and 2^80 blobs are out of reach.
pub const BLOB_ID_LEN: usize = 20;

/// What a blob holds. The kind is part of the id, so that data is never accepted as a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum BlobKind {
    /// A chunk of file content.
    Data = 0,
    /// A directory, or one page of a large one.
    Tree = 1,
    /// A page of a large file's content list.
    List = 2,
}

impl BlobKind {
    /// Every kind, in the order of its stored number.
    pub const ALL: [BlobKind; 3] = [BlobKind::Data, BlobKind::Tree, BlobKind::List];

    /// The kind stored as `number`; `None` for numbers this version does not know.
    pub fn from_number(number: u64) -> Option<BlobKind> {
        Self::ALL.into_iter().find(|kind| *kind as u64 == number)
    }
}

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The id whose bytes are `bytes`; `None` if the length is wrong.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                Some(Self(bytes.try_into().ok()?))
            }

            /// The id written as lower-case hexadecimal; `None` if `text` is not exactly that.
            pub fn from_hex(text: &str) -> Option<Self> {
                let mut bytes = [0u8; $len];
                decode_hex(text, &mut bytes)?;
                Some(Self(bytes))
            }

            /// The whole id in lower-case hexadecimal.
            pub fn to_hex(&self) -> String {
                encode_hex(&self.0)
            }

            /// The first eight hexadecimal digits, as shown to people.
            pub fn short(&self) -> String {
                encode_hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
    };
}

hash_type!(
    /// Name of a blob: keyed BLAKE3 over its plaintext hash, one key for each [`BlobKind`].
    BlobId,
    BLOB_ID_LEN
);
hash_type!(
    /// Plain BLAKE3 of a whole file's content, as `b3sum` prints it.
    ContentHash,
    32
);
hash_type!(
    /// Name of a stored object: BLAKE3 of its stored bytes, so that it can be checked without a key.
    ObjectId,
    32
);
hash_type!(
    /// Random name of a repository, chosen once at `init`.
    RepositoryId,
    32
);

impl ContentHash {
    /// The hash of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

impl ObjectId {
    /// The name of an object whose stored bytes are `stored`.
    pub fn of(stored: &[u8]) -> Self {
        Self(*blake3::hash(stored).as_bytes())
    }
}

fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[(b >> 4) as usize] as char, DIGITS[(b & 15) as usize] as char]).collect()
}

fn decode_hex(text: &str, out: &mut [u8]) -> Option<()> {
    let text = text.as_bytes();
    if text.len() != out.len() * 2 {
        return None;
    }
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_survives_a_round_trip_and_refuses_everything_else() {
        let id = ObjectId::of(b"x");
        assert_eq!(ObjectId::from_hex(&id.to_hex()), Some(id));
        assert_eq!(ObjectId::from_hex(&id.to_hex().to_uppercase()), None);
        assert_eq!(ObjectId::from_hex(&id.to_hex()[1..]), None);
        assert_eq!(BlobId::from_bytes(&[0; 19]), None);
    }
}
