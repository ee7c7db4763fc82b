//! The index object: which blobs lie in which packs, so that a repository opens without reading the packs.

use crate::format::codec::{Decoder, Encode, Result};
use crate::format::limits::{BLOB_LEN_MAX, PACK_LEN_MAX};
use crate::id::{BLOB_ID_LEN, BlobId, BlobKind, ObjectId};

/// One blob of a pack. Blobs lie end to end in the pack's plaintext, so their offsets are the sums of the lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedBlob {
    /// Its kind.
    pub kind: BlobKind,
    /// Its id.
    pub id: BlobId,
    /// Its plain length in bytes.
    pub len: u32,
}

/// A pack and its blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedPack {
    /// The pack's name.
    pub id: ObjectId,
    /// Its stored length in bytes.
    pub len: u64,
    /// Its blobs in order of their offsets.
    pub blobs: Vec<PackedBlob>,
}

/// Appends a list of blobs.
pub fn encode_blobs(blobs: &[PackedBlob], out: &mut Vec<u8>) {
    out.put_varint(blobs.len() as u64);
    for blob in blobs {
        out.put_varint(u64::from(blob.len) << 2 | blob.kind as u64);
        out.extend_from_slice(&blob.id.0);
    }
}

/// Decodes a list of blobs whose lengths add up to less than 4 GiB.
pub fn decode_blobs(input: &mut Decoder<'_>) -> Result<Vec<PackedBlob>> {
    let count = input.count(1 + BLOB_ID_LEN, "blob count")?;
    let mut blobs = Vec::with_capacity(count);
    let mut sum = 0u64;
    for _ in 0..count {
        let head = input.varint("blob length")?;
        let kind = BlobKind::from_number(head & 3).ok_or_else(|| input.error("blob kind"))?;
        let len = head >> 2;
        sum += len;
        if len == 0 || len > BLOB_LEN_MAX as u64 || sum > u64::from(u32::MAX) {
            return Err(input.error("blob length"));
        }
        blobs.push(PackedBlob { kind, id: BlobId(input.array("blob id")?), len: len as u32 });
    }
    Ok(blobs)
}

/// The index object's payload for `packs`.
pub fn encode(packs: &[IndexedPack]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_varint(packs.len() as u64);
    for pack in packs {
        out.extend_from_slice(&pack.id.0);
        out.put_varint(pack.len);
        encode_blobs(&pack.blobs, &mut out);
    }
    out
}

/// Decodes an index object's payload.
pub fn decode(stored: &[u8]) -> Result<Vec<IndexedPack>> {
    let mut input = Decoder::new(stored);
    let count = input.count(34, "pack count")?;
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        let id = ObjectId(input.array("pack id")?);
        let len = input.varint("pack length")?;
        if len > PACK_LEN_MAX {
            return Err(input.error("pack length"));
        }
        packs.push(IndexedPack { id, len, blobs: decode_blobs(&mut input)? });
    }
    input.finish("index")?;
    Ok(packs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_survives_a_round_trip_and_no_mutation_panics() {
        let blob = |n: u8, kind| PackedBlob { kind, id: BlobId([n; BLOB_ID_LEN]), len: u32::from(n) * 1000 + 1 };
        let packs = vec![
            IndexedPack {
                id: ObjectId([1; 32]),
                len: 99,
                blobs: vec![blob(1, BlobKind::Data), blob(2, BlobKind::Data)],
            },
            IndexedPack {
                id: ObjectId([2; 32]),
                len: 1 << 24,
                blobs: vec![blob(3, BlobKind::Tree), blob(4, BlobKind::List)],
            },
        ];
        let stored = encode(&packs);
        assert_eq!(decode(&stored), Ok(packs));
        for at in 0..stored.len() {
            for flip in 1..=255 {
                let mut bad = stored.clone();
                bad[at] ^= flip;
                let _ = decode(&bad);
            }
            assert!(decode(&stored[..at]).is_err());
        }
    }
}
