//! Small objects as stored: index, snapshot and configuration are one sealed unit each.

use crate::chunk::ChunkSizes;
use crate::format::codec::{DecodeError, Decoder, Encode, Fields, Result};
use crate::format::header::{HEADER_LEN, Header, StoredKind};
use crate::format::limits::OBJECT_PLAIN_LEN_MAX;
use crate::id::{ObjectId, RepositoryId};
use crate::key::Keys;
use crate::seal::{Compressor, Decompressor, ONLY_UNIT, ObjectCipher, Sealer, TAG_LEN};

/// zstd level of small objects.
const LEVEL: i32 = 3;

/// Seals `plain` as an object of `kind`.
pub fn seal(keys: &Keys, repository: &RepositoryId, kind: StoredKind, plain: &[u8]) -> std::io::Result<Vec<u8>> {
    if plain.len() > OBJECT_PLAIN_LEN_MAX {
        return Err(std::io::Error::other(format!(
            "{} bytes are more than the {OBJECT_PLAIN_LEN_MAX} of an object",
            plain.len()
        )));
    }
    let sealer = Sealer::new(keys, repository, kind)?;
    let mut out = sealer.header().to_vec();
    out.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    out.extend(sealer.seal(ONLY_UNIT, plain.len(), Compressor::new(LEVEL)?.run(plain)?));
    Ok(out)
}

/// Opens an object that must be of `kind`.
pub fn open(keys: &Keys, repository: &RepositoryId, kind: StoredKind, mut stored: Vec<u8>) -> Result<Vec<u8>> {
    let mut input = Decoder::new(&stored);
    let header = Header::decode(input.take(HEADER_LEN, "header")?, kind)?;
    let plain_len = input.u32("plain length")? as usize;
    // zstd makes at most 2^17 bytes of four, a block that repeats one byte; a lying length is refused before it allocates.
    if plain_len > OBJECT_PLAIN_LEN_MAX || plain_len > input.remaining() << 15 {
        return Err(input.error("plain length"));
    }
    let offset = input.offset();
    let mut decompressor = Decompressor::new().map_err(|_| DecodeError::new("decompressor", offset))?;
    ObjectCipher::new(keys, repository, &header)
        .open(ONLY_UNIT, &mut stored[offset..], plain_len, &mut decompressor)
        .map_err(|_| DecodeError::new("sealed bytes (changed, or sealed with another key)", offset))
}

/// The configuration object: who the repository is and how its files are cut. It cannot be named by its hash, since it is
/// found by name, so it carries one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The repository's id.
    pub id: RepositoryId,
    /// Sizes of chunks.
    pub chunks: ChunkSizes,
}

/// Longest configuration object in bytes.
pub const CONFIG_LEN_MAX: u64 = 64 << 10;
const HASH_LEN: usize = 32;
/// Field of the configuration: number of the chunker, and its sizes.
const CHUNKING: u64 = 2;
/// FastCDC with a keyed gear table and normalisation level 2; other numbers are for later chunkers.
const CHUNKER: u64 = 1;

impl Config {
    /// The object as stored.
    pub fn encode(&self, keys: &Keys) -> std::io::Result<Vec<u8>> {
        let mut chunking = Vec::new();
        chunking.put_varint(CHUNKER);
        [self.chunks.min, self.chunks.avg, self.chunks.max]
            .iter()
            .for_each(|size| chunking.put_varint(u64::from(*size)));
        let mut plain = Vec::new();
        plain.put_field(CHUNKING, &chunking);
        let sealed = seal(keys, &self.id, StoredKind::Config, &plain)?;
        let mut out = sealed[..HEADER_LEN].to_vec();
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&sealed[HEADER_LEN..]);
        let hash = ObjectId::of(&out);
        out.extend_from_slice(&hash.0);
        Ok(out)
    }

    /// The repository's id, which the keys' objects are bound to, from a configuration whose hash is right.
    pub fn repository_id(stored: &[u8]) -> Result<RepositoryId> {
        let mut input = Decoder::new(stored);
        Header::decode(input.take(HEADER_LEN, "header")?, StoredKind::Config)?;
        let id = RepositoryId(input.array("repository id")?);
        if input.remaining() < 4 + TAG_LEN + HASH_LEN {
            return Err(input.error("configuration"));
        }
        let (body, hash) = stored.split_at(stored.len() - HASH_LEN);
        if ObjectId::of(body).0 != hash {
            return Err(DecodeError::new("hash of the configuration", body.len()));
        }
        Ok(id)
    }

    /// Opens a configuration.
    pub fn decode(stored: &[u8], keys: &Keys) -> Result<Config> {
        let id = Self::repository_id(stored)?;
        let sealed = [&stored[..HEADER_LEN], &stored[HEADER_LEN + 32..stored.len() - HASH_LEN]].concat();
        let plain = open(keys, &id, StoredKind::Config, sealed)?;
        Ok(Config { id, chunks: Self::decode_fields(&plain)? })
    }

    /// What an opened configuration says.
    pub fn decode_fields(plain: &[u8]) -> Result<ChunkSizes> {
        let mut fields = Fields::new(plain, &[CHUNKING]);
        let mut found = None;
        while let Some((tag, value)) = fields.next()? {
            match tag {
                CHUNKING => found = Some(Self::decode_chunking(value)?),
                unknown => fields.unknown(unknown)?,
            }
        }
        found.ok_or(DecodeError::new("configuration (it says nothing of chunks)", plain.len()))
    }

    fn decode_chunking(value: &[u8]) -> Result<ChunkSizes> {
        let mut input = Decoder::new(value);
        if input.varint("chunker")? != CHUNKER {
            return Err(input.newer("chunker"));
        }
        let chunks = ChunkSizes {
            min: input.varint_u32("chunk sizes")?,
            avg: input.varint_u32("chunk sizes")?,
            max: input.varint_u32("chunk sizes")?,
        };
        input.finish("chunk sizes")?;
        if chunks.are_valid() { Ok(chunks) } else { Err(input.error("chunk sizes")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::MasterKey;

    #[test]
    fn an_object_opens_only_as_what_it_is_and_unchanged() {
        let keys = Keys::new(MasterKey::random().expect("randomness"));
        let id = RepositoryId([1; 32]);
        let stored = seal(&keys, &id, StoredKind::Index, b"payload").expect("seals");
        assert_eq!(open(&keys, &id, StoredKind::Index, stored.clone()).as_deref(), Ok(b"payload".as_slice()));
        assert!(open(&keys, &id, StoredKind::Snapshot, stored.clone()).is_err());
        assert!(open(&keys, &RepositoryId([2; 32]), StoredKind::Index, stored.clone()).is_err());
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            bad[at] ^= 1;
            assert!(open(&keys, &id, StoredKind::Index, bad).is_err(), "byte {at}");
            assert!(open(&keys, &id, StoredKind::Index, stored[..at].to_vec()).is_err(), "length {at}");
        }
    }

    #[test]
    fn what_compresses_best_is_opened_again() {
        let keys = Keys::new(MasterKey::random().expect("randomness"));
        let id = RepositoryId([1; 32]);
        for len in [1, 100, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 1 << 20, 10_000_000, OBJECT_PLAIN_LEN_MAX] {
            let stored = seal(&keys, &id, StoredKind::Index, &vec![0; len]).expect("seals");
            let opened = open(&keys, &id, StoredKind::Index, stored);
            assert!(opened.is_ok_and(|plain| plain.len() == len), "{len} zeros");
        }
    }

    #[test]
    fn a_configuration_may_say_more_than_this_version_knows() {
        let chunks = ChunkSizes::DEFAULT;
        let chunking = [
            vec![1],
            [chunks.min, chunks.avg, chunks.max].iter().fold(Vec::new(), |mut out, size| {
                out.put_varint(u64::from(*size));
                out
            }),
        ]
        .concat();
        let mut plain = Vec::new();
        plain.put_field(1, b"optional");
        plain.put_field(CHUNKING, &chunking);
        assert_eq!(Config::decode_fields(&plain), Ok(chunks));
        let mut later = plain.clone();
        later.put_field(4, b"to be understood");
        assert!(Config::decode_fields(&later).is_err_and(|error| error.newer));
        let mut other = Vec::new();
        other.put_field(CHUNKING, &[&[2], &chunking[1..]].concat());
        assert!(Config::decode_fields(&other).is_err_and(|error| error.newer), "another chunker");
        plain.put_field(CHUNKING, &chunking);
        assert!(Config::decode_fields(&plain).is_err_and(|error| !error.newer), "twice the same field");
        assert!(Config::decode_fields(b"").is_err());
    }

    #[test]
    fn a_configuration_survives_a_round_trip_and_no_flipped_bit() {
        let keys = Keys::new(MasterKey::random().expect("randomness"));
        let config = Config { id: RepositoryId([3; 32]), chunks: ChunkSizes::DEFAULT };
        let stored = config.encode(&keys).expect("encodes");
        assert_eq!(Config::decode(&stored, &keys), Ok(config));
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            bad[at] ^= 1;
            assert!(Config::decode(&bad, &keys).is_err(), "byte {at}");
        }
    }
}
