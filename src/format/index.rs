//! The index object: which blobs lie in which packs, so that a repository opens without reading the packs.
//!
//! Its payload is fields, one for each pack, so that later versions can add others.

use crate::format::codec::{Decoder, Encode, Fields, Result};
use crate::format::limits::{BLOB_LEN_MAX, PACK_LEN_MAX};
use crate::id::{BLOB_ID_LEN, BlobId, BlobKind, ObjectId};

/// Field of the payload: a pack.
const PACK: u64 = 2;

/// One blob of a pack. Blobs lie end to end in the pack's plaintext, so their offsets are the sums of the lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedBlob {
    /// Its kind.
    pub kind: BlobKind,
    /// Its id.
    pub id: BlobId,
    /// Its length in the pack's plaintext in bytes: that of the blob, or of its delta.
    pub len: u32,
    /// Whether it is stored as a delta (see [`crate::format::delta`]). Only data blobs are.
    pub is_delta: bool,
}

/// Stored in place of the kind of a data blob that is stored as a delta.
const DELTA: u64 = 3;

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
        let kind = if blob.is_delta { DELTA } else { blob.kind as u64 };
        out.put_varint(u64::from(blob.len) << 2 | kind);
        out.extend_from_slice(&blob.id.0);
    }
}

/// Decodes a list of blobs whose lengths add up to less than 4 GiB.
pub fn decode_blobs(input: &mut Decoder<'_>) -> Result<Vec<PackedBlob>> {
    let count = input.count(1 + BLOB_ID_LEN, "blob count")?;
    if count == 0 {
        return Err(input.error("blob count"));
    }
    let mut blobs = Vec::with_capacity(count);
    let mut sum = 0u64;
    for _ in 0..count {
        let head = input.varint("blob length")?;
        let is_delta = head & 3 == DELTA;
        let kind = if is_delta { Some(BlobKind::Data) } else { BlobKind::from_number(head & 3) };
        let kind = kind.expect("two bits have four values");
        let len = head >> 2;
        sum += len;
        if len == 0 || len > BLOB_LEN_MAX as u64 || sum > u64::from(u32::MAX) {
            return Err(input.error("blob length"));
        }
        blobs.push(PackedBlob { kind, id: BlobId(input.array("blob id")?), len: len as u32, is_delta });
    }
    Ok(blobs)
}

/// The index object's payload for `packs`.
pub fn encode(packs: &[IndexedPack]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut value = Vec::new();
    for pack in packs {
        value.clear();
        value.extend_from_slice(&pack.id.0);
        value.put_varint(pack.len);
        encode_blobs(&pack.blobs, &mut value);
        out.put_field(PACK, &value);
    }
    out
}

/// Decodes an index object's payload.
pub fn decode(stored: &[u8]) -> Result<Vec<IndexedPack>> {
    let mut fields = Fields::new(stored, &[]);
    let mut packs = Vec::new();
    while let Some((tag, value)) = fields.next()? {
        if tag != PACK {
            fields.unknown(tag)?;
            continue;
        }
        let mut input = Decoder::new(value);
        let id = ObjectId(input.array("pack id")?);
        let len = input.varint("pack length")?;
        if len > PACK_LEN_MAX {
            return Err(input.error("pack length"));
        }
        packs.push(IndexedPack { id, len, blobs: decode_blobs(&mut input)? });
        input.finish("pack of an index")?;
    }
    Ok(packs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_survives_a_round_trip_and_no_mutation_panics() {
        let blob = |n: u8, kind| PackedBlob {
            kind,
            id: BlobId([n; BLOB_ID_LEN]),
            len: u32::from(n) * 1000 + 1,
            is_delta: n == 2,
        };
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
        assert_eq!(decode(&stored).as_ref(), Ok(&packs));
        for at in 0..stored.len() {
            for flip in 1..=255 {
                let mut bad = stored.clone();
                bad[at] ^= flip;
                let _ = decode(&bad);
            }
            // Between two packs an index may end.
            let cut = decode(&stored[..at]);
            assert!(cut.is_err() || cut.is_ok_and(|cut| packs.starts_with(&cut)), "{at}");
        }
    }

    #[test]
    fn an_index_may_say_more_than_this_version_knows() {
        let blob = PackedBlob { kind: BlobKind::Data, id: BlobId([1; BLOB_ID_LEN]), len: 5, is_delta: false };
        let packs = vec![IndexedPack { id: ObjectId([1; 32]), len: 99, blobs: vec![blob] }];
        let mut stored = encode(&packs);
        stored.put_field(5, b"optional");
        assert_eq!(decode(&stored), Ok(packs.clone()));
        stored.put_field(6, b"to be understood");
        assert!(decode(&stored).is_err_and(|error| error.newer));

        let mut value = [[1; 32].as_slice(), &[99, 0]].concat();
        let field = |value: &[u8]| {
            let mut out = Vec::new();
            out.put_field(PACK, value);
            decode(&out)
        };
        assert!(field(&value).is_err(), "a pack without blobs");
        value[33] = 1;
        value.extend_from_slice(&[5 << 2 | 3; 1]);
        value.extend_from_slice(&[1; BLOB_ID_LEN]);
        let delta = field(&value).expect("a delta");
        assert_eq!((delta[0].blobs[0].kind, delta[0].blobs[0].is_delta), (BlobKind::Data, true));
        value[34] = 5 << 2;
        assert_eq!(field(&value), Ok(packs));
        value.push(0);
        assert!(field(&value).is_err(), "bytes left over");
    }
}
