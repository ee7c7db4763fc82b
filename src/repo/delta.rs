//! Blobs stored as deltas: made of their bases, which are stored plain, one step deep.
//!
//! A range of such a blob needs the segment that the delta lies in and those that the range's bytes lie in. Nothing is
//! kept of a delta but its decoded segment: to follow its commands again costs less than to look something up.

use std::ops::Range;
use std::sync::Arc;

use super::reader::PiecesAt;
use super::{Blob, Error, Repository, Result};
use crate::format::codec::DecodeError;
use crate::format::delta::{Base, Delta, Piece, Step};
use crate::id::{BlobId, BlobKind};
use crate::index::Location;

/// What is known of a blob that is stored as a delta.
#[derive(Clone, Debug)]
pub struct StoredDelta {
    /// The blob's length in bytes.
    pub plain_len: u32,
    /// The blobs that it is made of.
    pub bases: Vec<Base>,
    /// Where in the bases, laid end to end, it would begin if it went on as its first copy does.
    pub start: i64,
}

fn corrupt(id: &BlobId) -> impl Fn(DecodeError) -> Error {
    move |error| Error::decode(format!("delta of data blob {id}"), error)
}

impl Repository {
    /// How the data blob `id` is stored as a delta; `None` if it is stored plain.
    pub fn delta(&self, id: &BlobId) -> Result<Option<StoredDelta>> {
        self.read_at(BlobKind::Data, id, |location| {
            if !location.is_delta {
                return Ok(None);
            }
            let stored = self.blob_at(BlobKind::Data, &location)?;
            let delta = Delta::decode(&stored).map_err(corrupt(id))?;
            let mut start = 0;
            for step in delta.steps() {
                match step.map_err(corrupt(id))? {
                    Step::Literal(bytes) => start -= bytes.len() as i64,
                    Step::Copy { from, .. } => {
                        start += i64::from(from);
                        break;
                    }
                }
            }
            Ok(Some(StoredDelta { plain_len: delta.plain_len, bases: delta.bases, start }))
        })
    }

    /// Whether a writer need not store the blob `id` again. An index names it; and if it is stored as a delta only, indexes
    /// name its bases too, and it is not a lost base itself.
    pub fn has(&self, id: &BlobId) -> bool {
        let Some(location) = self.locate(id) else { return false };
        let is_plain = !location.is_delta || self.locate_plain(id).is_some();
        is_plain || !self.index.lost_plain(id) && self.has_bases(&location)
    }

    /// Whether indexes name every base of the delta at `location`. One that cannot be read has none.
    fn has_bases(&self, location: &Location) -> bool {
        let Ok(stored) = self.blob_at(BlobKind::Data, location) else { return false };
        Delta::decode(&stored).is_ok_and(|delta| delta.bases.iter().all(|base| self.locate_base(base).is_ok()))
    }

    /// Where a base is stored plain, with the length that the delta says.
    fn locate_base(&self, base: &Base) -> Result<Location> {
        let Base { id, len } = *base;
        let missing = || Error::MissingBlob { kind: BlobKind::Data, id, location: self.location() };
        let location = self.index.find_plain(&id, &self.source())?.ok_or_else(missing)?;
        if location.len != len {
            let what = format!("an index says {} bytes, a delta that is made of it {len}", location.len);
            return Err(Error::Corrupt { object: format!("Data blob {id}"), what });
        }
        Ok(location)
    }

    /// The blob `id` from its delta at `location`; not compared with its id.
    pub(super) fn blob_of_delta(&self, id: &BlobId, location: &Location) -> Result<Blob> {
        let stored = self.blob_at(BlobKind::Data, location)?;
        let bytes = self.apply_delta(id, &stored)?;
        let to = bytes.len();
        Ok(Blob { bytes: Arc::new(bytes), from: 0, to })
    }

    /// What the stored delta of the blob `id` makes; not compared with the id.
    pub fn apply_delta(&self, id: &BlobId, stored: &[u8]) -> Result<Vec<u8>> {
        let delta = Delta::decode(stored).map_err(corrupt(id))?;
        // A few bytes can say that they make 16 MiB; nothing is allocated before they are known to.
        delta.steps().try_for_each(|step| step.map(drop)).map_err(corrupt(id))?;
        let mut bytes = vec![0; delta.plain_len as usize];
        self.read_pieces(id, &delta, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out` from `offset` of the blob `id`, whose delta is at `location`.
    pub(super) fn read_delta(&self, id: &BlobId, location: &Location, offset: u64, out: &mut [u8]) -> Result<()> {
        let stored = self.blob_at(BlobKind::Data, location)?;
        let delta = Delta::decode(&stored).map_err(corrupt(id))?;
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > u64::from(delta.plain_len)) {
            let what = format!("bytes from {offset} are beyond its {} bytes", delta.plain_len);
            return Err(Error::Corrupt { object: format!("Data blob {id}"), what });
        }
        self.read_pieces(id, &delta, offset as u32, out)
    }

    fn read_pieces(&self, id: &BlobId, delta: &Delta<'_>, offset: u32, mut out: &mut [u8]) -> Result<()> {
        let mut bases: Vec<Option<PiecesAt>> = delta.bases.iter().map(|_| None).collect();
        for piece in delta.pieces(offset, out.len() as u32) {
            let piece = piece.map_err(corrupt(id))?;
            match piece {
                Piece::Literal(bytes) => {
                    let (head, tail) = out.split_at_mut(bytes.len());
                    head.copy_from_slice(bytes);
                    out = tail;
                }
                Piece::Base { index, offset, len } => {
                    let base = match &mut bases[index] {
                        Some(base) => base,
                        slot => slot.insert(self.pieces_at(self.locate_base(&delta.bases[index])?)?),
                    };
                    let (head, tail) = out.split_at_mut(len as usize);
                    self.copy_piece(base, offset, head)?;
                    out = tail;
                }
            }
        }
        Ok(())
    }

    /// Calls `each` once for each base that `len` bytes from `offset` of a blob need, whose delta is at `location`, or all of
    /// the blob without a range: with the part of the base from the first byte needed to the last.
    fn for_each_base(
        &self,
        id: &BlobId,
        location: &Location,
        range: Option<(u32, u32)>,
        each: &mut dyn FnMut(&Location, u32, u32) -> Result<()>,
    ) -> Result<()> {
        let stored = self.blob_at(BlobKind::Data, location)?;
        let delta = Delta::decode(&stored).map_err(corrupt(id))?;
        let (offset, len) = range.unwrap_or((0, delta.plain_len));
        let mut needed: Vec<Option<Range<u32>>> = vec![None; delta.bases.len()];
        for piece in delta.pieces(offset, len) {
            if let Piece::Base { index, offset, len } = piece.map_err(corrupt(id))? {
                let part = needed[index].get_or_insert(offset..offset);
                *part = part.start.min(offset)..part.end.max(offset + len);
            }
        }
        for (base, part) in delta.bases.iter().zip(needed) {
            if let Some(part) = part {
                each(&self.locate_base(base)?, part.start, part.end - part.start)?;
            }
        }
        Ok(())
    }

    /// See [`Repository::decode_ahead`].
    pub(super) fn decode_delta_ahead(&self, id: &BlobId, location: &Location, offset: u32, len: u32) -> Result<()> {
        self.for_each_base(id, location, Some((offset, len)), &mut |base, offset, len| {
            self.decode_ahead_at(base, offset, len)
        })
    }

    /// Whether a range of the blob whose delta is at `location`, or all of it, can be had without reading the store: also
    /// when that is an error.
    pub(super) fn delta_is_cached(&self, location: &Location, range: Option<(u32, u32)>) -> bool {
        if !self.is_cached(location, 0, location.len) {
            return false;
        }
        let mut is_cached = true;
        let id = BlobId([0; crate::id::BLOB_ID_LEN]);
        let walked = self.for_each_base(&id, location, range, &mut |base, offset, len| {
            is_cached &= self.is_cached(base, offset, len);
            Ok(())
        });
        is_cached || walked.is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::mem::Memory;
    use crate::backend::{ObjectKind, ObjectName};
    use crate::format::delta::{Command, encode};
    use crate::id::ContentHash;
    use crate::pool::Pool;
    use crate::repo::OpenOptions;
    use crate::repo::writer::Writer;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Two bases of 200,000 bytes and a blob that is made of them, each stored.
    struct Stored {
        store: Arc<Memory>,
        repo: Arc<Repository>,
        bases: [BlobId; 2],
        blob: BlobId,
        plain: Vec<u8>,
    }

    fn writer(repo: &Arc<Repository>) -> Writer {
        Writer::new(repo.clone(), Arc::new(Pool::new("test", 1).expect("a thread")), Default::default())
            .expect("writer")
    }

    fn stored() -> Stored {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        let (one, two) = (noise(1, 200_000), noise(2, 200_000));
        let mut first = writer(&repo);
        let bases = [&one, &two].map(|base| {
            let id = repo.blob_id(BlobKind::Data, &ContentHash::of(base));
            first.store(BlobKind::Data, id, base).expect("stores");
            id
        });
        first.finish().expect("finishes");
        let plain = [&one[100_000..], &noise(3, 1000), &two[..150_000]].concat();
        let commands = [
            Command { insert: 0, copy: 100_000, from: 100_000 },
            Command { insert: 1000, copy: 150_000, from: 200_000 },
        ];
        let delta = encode(&plain, &bases.map(|id| Base { id, len: 200_000 }), &commands);
        let blob = repo.blob_id(BlobKind::Data, &ContentHash::of(&plain));
        let mut second = writer(&repo);
        assert!(second.store_delta(blob, &delta, plain.len()).expect("stores"));
        assert!(!second.store_delta(blob, &delta, plain.len()).expect("stores"), "the second time it is there");
        let stats = second.finish().expect("finishes");
        assert_eq!((stats.data_blobs, stats.plain_bytes), (1, plain.len() as u64));
        Stored { store, repo, bases, blob, plain }
    }

    #[test]
    fn a_blob_stored_as_a_delta_is_read_whole_and_in_parts_by_this_process_and_the_next() {
        let Stored { store, repo, bases, blob, plain } = stored();
        let again = Repository::open(store, b"pw", &OpenOptions::default()).expect("opens");
        for repo in [&repo, &again] {
            assert!(repo.locate(&blob).expect("there").is_delta && repo.locate_plain(&blob).is_none());
            assert_eq!(&*repo.blob(BlobKind::Data, &blob).expect("reads"), &plain[..]);
            for (from, len) in [(0, 1), (99_990, 30), (100_500, 4096), (250_999, 1), (0, 251_000), (251_000, 0)] {
                let mut part = vec![0; len];
                repo.read_blob_at(&blob, from as u64, &mut part).expect("reads a part");
                assert_eq!(part, plain[from..from + len]);
            }
            assert!(repo.read_blob_at(&blob, 251_000, &mut [0]).is_err(), "beyond the end");
            assert!(repo.read_blob_at(&blob, u64::MAX, &mut [0]).is_err());
            let delta = repo.delta(&blob).expect("reads").expect("it is one");
            assert_eq!((delta.plain_len, delta.start), (251_000, 100_000));
            assert_eq!(delta.bases.iter().map(|base| base.id).collect::<Vec<_>>(), bases);
            assert!(repo.delta(&bases[0]).expect("reads").is_none());
        }
    }

    #[test]
    fn four_kib_decode_a_segment_of_the_delta_and_of_one_base() {
        let Stored { store, blob, .. } = stored();
        let repo = Repository::open(store, b"pw", &OpenOptions::default()).expect("opens");
        let mut part = vec![0; 4096];
        let before = repo.read_counts().misses;
        assert!(!repo.read_blob_if_cached(&blob, 5000, &mut part).expect("asks"));
        repo.read_blob_at(&blob, 5000, &mut part).expect("reads");
        assert_eq!(repo.read_counts().misses - before, 2);
        assert!(repo.read_blob_if_cached(&blob, 5000, &mut part).expect("asks"));
        assert!(repo.blob_if_cached(BlobKind::Data, &blob).expect("asks").is_none(), "not all of it is decoded");
        repo.decode_ahead(&blob, 0, 251_000).expect("decodes");
        assert!(repo.blob_if_cached(BlobKind::Data, &blob).expect("asks").is_some());
        assert!(repo.read_blob_if_cached(&blob, 251_000, &mut part).is_err(), "an error is an answer");
    }

    #[test]
    fn a_lost_base_is_an_error_that_names_it_for_the_range_that_needs_it() {
        let Stored { store, bases, blob, repo, plain } = stored();
        let number = repo.locate(&bases[0]).expect("there").pack;
        let name = ObjectName::new(ObjectKind::Pack, repo.index().pack(number).id);
        repo.backend().delete(name).expect("deletes");
        let repo = Repository::open(store, b"pw", &OpenOptions::default()).expect("opens");
        assert!(repo.blob(BlobKind::Data, &blob).is_err());
        repo.hide_lost_packs().expect("lists");
        let error = repo.blob(BlobKind::Data, &blob).expect_err("its bases are lost");
        assert!(error.to_string().contains(&bases[0].to_hex()), "{error}");
        let mut literal = vec![0; 1000];
        repo.read_blob_at(&blob, 100_000, &mut literal).expect("this is in the delta itself");
        assert_eq!(literal, plain[100_000..101_000]);
        assert!(repo.plain_blob(&bases[0]).is_err());
    }

    #[test]
    fn what_is_made_of_a_lost_base_is_stored_again_and_read_where_it_is_plain() {
        let Stored { store, repo, bases, blob, plain } = stored();
        assert!(repo.has(&blob) && repo.has(&bases[0]));
        let number = repo.locate(&bases[0]).expect("there").pack;
        repo.backend().delete(ObjectName::new(ObjectKind::Pack, repo.index().pack(number).id)).expect("deletes");
        let repo = Repository::open(store.clone(), b"pw", &OpenOptions::default()).expect("opens");
        repo.hide_lost_packs().expect("lists");
        assert!(repo.locate(&blob).is_some() && !repo.has(&blob), "the delta alone is of no use");
        assert!(repo.index().lost_plain(&bases[0]) && !repo.index().lost_plain(&blob));
        let mut again = writer(&repo);
        assert!(again.store(BlobKind::Data, blob, &plain).expect("stores"));
        again.finish().expect("finishes");
        let later = Repository::open(store, b"pw", &OpenOptions::default()).expect("opens");
        for repo in [&repo, &later] {
            assert!(repo.has(&blob));
            assert_eq!(&*repo.blob(BlobKind::Data, &blob).expect("reads"), &plain[..]);
            let mut part = vec![0; 5000];
            repo.read_blob_at(&blob, 2000, &mut part).expect("reads a part");
            assert_eq!(part, plain[2000..7000]);
        }
    }

    #[test]
    fn a_delta_that_does_not_add_up_is_refused_before_its_blob_is_allocated() {
        let Stored { repo, bases, blob, .. } = stored();
        let mut delta =
            encode(&[7; 10], &[Base { id: bases[0], len: 200_000 }], &[Command { insert: 10, copy: 0, from: 0 }]);
        assert_eq!(repo.apply_delta(&blob, &delta).expect("is one"), [7; 10]);
        delta.pop();
        assert!(repo.apply_delta(&blob, &delta).is_err());
    }

    #[test]
    fn a_base_stored_as_a_delta_too_is_read_where_it_is_plain() {
        let Stored { store, repo, bases, blob, plain } = stored();
        // Another host has stored the base as a delta of the other one.
        let one = repo.blob(BlobKind::Data, &bases[0]).expect("reads").to_vec();
        let commands = [Command { insert: 200_000, copy: 0, from: 0 }];
        let delta = encode(&one, &[Base { id: bases[1], len: 200_000 }], &commands);
        let mut other = writer(&repo);
        other.append_again(bases[0], &delta).expect("stores");
        other.finish().expect("finishes");
        let again = Repository::open(store, b"pw", &OpenOptions::default()).expect("opens");
        for repo in [&repo, &again] {
            assert!(!repo.locate_plain(&bases[0]).expect("there").is_delta);
            assert_eq!(&*repo.blob(BlobKind::Data, &blob).expect("reads"), &plain[..]);
            assert_eq!(&*repo.blob(BlobKind::Data, &bases[0]).expect("reads"), &one[..]);
        }
    }
}
