//! From a blob's id to its bytes: locate, find its segments, decode each once, keep them, verify.
//!
//! Decoded segments live in a cache bounded by bytes. Threads that want the same segment at once share one decode.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::{Blob, Error, Repository, Result};
use crate::backend::deadline::may_wait;
use crate::backend::{self, ErrorKind, ObjectKind, ObjectName, Reuse};
use crate::format::header::{HEADER_LEN, Header, StoredKind};
use crate::format::index::PackedBlob;
use crate::format::pack::{FOOTER_LEN, Footer, SegmentTable, decode_blob_table};
use crate::id::{BlobId, BlobKind, ContentHash, ObjectId};
use crate::index::{Location, PackInfo, PackNumber};
use crate::pool;
use crate::seal::{BLOB_TABLE_UNIT, Decompressor, FOOTER_UNIT, ObjectCipher, SEGMENT_TABLE_UNIT};

/// Bytes read from the end of a pack to find its tables: enough for the table of segments of a 64 MiB pack.
const TAIL_LEN: u64 = 8 << 10;
/// Bytes of a pack that [`Repository::will_read_run`] asks for at most.
const RUN_LEN_MAX: u64 = 8 << 20;
/// So many it asks for even for less than that.
const RUN_LEN_MIN: u64 = 1 << 20;
/// Packs whose tables of segments are kept; each takes a few KiB.
const PACKS_KEPT: usize = 4096;
/// How long another thread may take for a segment until it must be waiting for storage: many times what decoding takes.
const DECODE_TIME: Duration = Duration::from_millis(2);
/// A listing of packs is believed for this long.
const PACKS_LISTED_FOR: Duration = Duration::from_secs(10);
const SHARDS: usize = 16;

/// A pack made ready for reading.
pub(super) struct OpenPack {
    name: ObjectName,
    cipher: ObjectCipher,
    table: SegmentTable,
    /// Whether what lies in it is read again and again: trees, lists, deltas.
    is_reused: AtomicBool,
}

/// Something in a pack that is read in many small pieces: its pack and the segment used last are at hand.
pub(super) struct PiecesAt {
    pack: Arc<OpenPack>,
    location: Location,
    held: Option<(usize, Segment)>,
}

/// A decoded segment.
pub type Segment = Arc<Vec<u8>>;

type SegmentKey = (PackNumber, u32);

struct Flight {
    landed: Mutex<bool>,
    wake: Condvar,
}

/// Tells those who wait for a segment that it has been decoded or will not be, also when decoding panics.
struct Landing<'a> {
    shard: &'a Mutex<Shard>,
    key: SegmentKey,
    flight: Arc<Flight>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        // Nobody panics while holding these locks; a second panic here would end the process.
        if let Ok(mut shard) = self.shard.lock() {
            shard.flights.remove(&self.key);
        }
        if let Ok(mut landed) = self.flight.landed.lock() {
            *landed = true;
        }
        self.flight.wake.notify_all();
    }
}

struct Shard {
    segments: LruCache<SegmentKey, Segment>,
    bytes: usize,
    flights: HashMap<SegmentKey, Arc<Flight>>,
}

/// What readers of a repository have cost since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Times that a segment was found decoded.
    pub hits: u64,
    /// Times that one had to be decoded, or waited for.
    pub misses: u64,
    /// Stored bytes read for that.
    pub stored_bytes: u64,
    /// Bytes that came out.
    pub decoded_bytes: u64,
    /// Bytes of decoded segments in memory now.
    pub cached_bytes: u64,
}

/// Decoded segments and open packs.
pub(super) struct SegmentCache {
    hits: AtomicU64,
    misses: AtomicU64,
    stored_bytes: AtomicU64,
    decoded_bytes: AtomicU64,
    shards: Vec<Mutex<Shard>>,
    shard_len_max: usize,
    packs: Mutex<LruCache<PackNumber, Arc<OpenPack>>>,
}

impl SegmentCache {
    pub(super) fn new(len_max: usize) -> Self {
        let shard = || Mutex::new(Shard { segments: LruCache::unbounded(), bytes: 0, flights: HashMap::new() });
        let kept = NonZeroUsize::new(PACKS_KEPT).expect("not zero");
        Self {
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            decoded_bytes: AtomicU64::new(0),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            shard_len_max: len_max / SHARDS,
            packs: Mutex::new(LruCache::new(kept)),
        }
    }

    fn shard(&self, key: &SegmentKey) -> &Mutex<Shard> {
        &self.shards[(key.0.0 as usize ^ key.1 as usize) % SHARDS]
    }
}

impl Shard {
    fn insert(&mut self, key: SegmentKey, segment: Segment, len_max: usize) {
        self.bytes += segment.len();
        if let Some((_, old)) = self.segments.push(key, segment) {
            self.bytes -= old.len();
        }
        // The newest segment stays even if it alone is over the limit: its reader is about to use it.
        while self.bytes > len_max && self.segments.len() > 1 {
            let Some((_, old)) = self.segments.pop_lru() else { break };
            self.bytes -= old.len();
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Option<(Decompressor, Vec<u8>)>> = const { RefCell::new(None) };
}

/// Runs `work` with this thread's decompressor and a buffer for sealed bytes.
fn with_scratch<T>(work: impl FnOnce(&mut Decompressor, &mut Vec<u8>) -> Result<T>) -> Result<T> {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.is_none() {
            let system = |source| Error::System { op: "set up decompression", source };
            *scratch = Some((Decompressor::new().map_err(system)?, Vec::new()));
        }
        let (decompressor, sealed) = scratch.as_mut().expect("just filled");
        work(decompressor, sealed)
    })
}

impl Repository {
    /// Where the blob `id` lies, if any index names it. While the local index cannot be repaired, it lies nowhere: a
    /// writer then stores it again.
    pub fn locate(&self, id: &BlobId) -> Option<Location> {
        self.index.find(id, &self.source()).ok().flatten()
    }

    /// As [`Repository::locate`], but only where the blob is stored plain.
    pub fn locate_plain(&self, id: &BlobId) -> Option<Location> {
        self.index.find_plain(id, &self.source()).ok().flatten()
    }

    fn locate_or_fail(&self, kind: BlobKind, id: &BlobId) -> Result<Location> {
        let missing = || Error::MissingBlob { kind, id: *id, location: self.location() };
        self.index.find(id, &self.source())?.ok_or_else(missing)
    }

    /// Runs `read` on the place of a blob. If that fails because the local index has changed since it was checked, the
    /// index is repaired; if no index knows the blob, it may have come with a snapshot after the index was listed; if the
    /// pack is gone or cut short, another pack that holds the blob is looked for: a backup made since has stored it again,
    /// or a pack that was out of reach is back. A delta that cannot be followed, because it or a base is lost, is no reason
    /// to fail where the blob is stored plain as well.
    pub(super) fn read_at<T>(
        &self,
        kind: BlobKind,
        id: &BlobId,
        mut read: impl FnMut(Location) -> Result<T>,
    ) -> Result<T> {
        let (mut looked_elsewhere, mut refreshed) = (false, false);
        let mut plain = None;
        loop {
            let location = plain.map_or_else(|| self.locate_or_fail(kind, id), Ok);
            let was_delta = location.as_ref().is_ok_and(|location| location.is_delta);
            let outcome = location.and_then(&mut read);
            let Err(error) = outcome else { return outcome };
            if error.would_wait() {
                return Err(error);
            }
            if self.index.recheck(id).is_err() {
                self.refresh()?;
                plain = None;
            } else if !refreshed && error.is_missing_blob() && self.index_may_be_old() {
                refreshed = true;
                self.refresh()?;
            } else if !looked_elsewhere && (error.is_lost() || error.is_missing_blob() && self.index.hides_packs()) {
                looked_elsewhere = true;
                self.hide_lost_packs_again()?;
                if self.index.find(id, &self.source())?.is_none() {
                    return Err(error);
                }
            } else if was_delta && let Some(location) = self.index.find_plain(id, &self.source())? {
                plain = Some(location);
            } else {
                return Err(error);
            }
        }
    }

    /// Blobs in packs that are gone or cut short count as absent from now on, whatever an index says.
    pub fn hide_lost_packs(&self) -> Result<()> {
        let mut present = Vec::new();
        self.backend.list(ObjectKind::Pack, &mut |found| present.push((found.id, found.len)))?;
        self.hide_all_packs_but(present)
    }

    /// [`Repository::hide_lost_packs`] and [`Repository::snapshot_ids`] with as few requests as the store allows.
    pub fn take_stock(&self) -> Result<Vec<ObjectId>> {
        let (mut present, mut snapshots) = (Vec::new(), Vec::new());
        self.backend.list_kinds(&[ObjectKind::Pack, ObjectKind::Snapshot], &mut |kind, found| match kind {
            ObjectKind::Pack => present.push((found.id, found.len)),
            _ => snapshots.push(found.id),
        })?;
        self.hide_all_packs_but(present)?;
        Ok(snapshots)
    }

    fn hide_all_packs_but(&self, mut present: Vec<(ObjectId, u64)>) -> Result<()> {
        present.sort_unstable();
        if self.backend.is_remote() {
            // The listing of a distributed store may lag; asking for the object itself is right.
            let mut missing = Vec::new();
            self.index.for_each_pack(|_, pack| {
                if present.binary_search(&(pack.id, pack.len)).is_err() {
                    missing.push((pack.id, pack.len));
                }
            });
            missing.sort_unstable();
            missing.dedup();
            let found = pool::map(self.backend.parallel(), &missing, |(id, len)| {
                match self.backend.len(ObjectName::new(ObjectKind::Pack, *id)) {
                    Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
                    found => Ok(found? == *len),
                }
            });
            for (pack, found) in missing.into_iter().zip(found) {
                let found: Result<bool> = found;
                if found? {
                    present.push(pack);
                }
            }
            present.sort_unstable();
        }
        self.index.restrict_to(|pack| present.binary_search(&(pack.id, pack.len)).is_ok());
        *self.packs_listed.lock().expect("no panic while held") = Some(Instant::now());
        Ok(())
    }

    /// Whether the index was not listed a moment ago for the sake of a missing blob: a reader of many lists it once.
    fn index_may_be_old(&self) -> bool {
        let mut listed = self.index_listed.lock().expect("no panic while held");
        let is_old = listed.is_none_or(|listed| listed.elapsed() >= PACKS_LISTED_FOR);
        if is_old {
            *listed = Some(Instant::now());
        }
        is_old
    }

    /// As [`Repository::hide_lost_packs`], unless that was done a moment ago: a reader of many lost blobs lists packs once.
    fn hide_lost_packs_again(&self) -> Result<()> {
        let listed = *self.packs_listed.lock().expect("no panic while held");
        if listed.is_some_and(|listed| listed.elapsed() < PACKS_LISTED_FOR) { Ok(()) } else { self.hide_lost_packs() }
    }

    /// A whole blob, verified against its id.
    pub fn blob(&self, kind: BlobKind, id: &BlobId) -> Result<Blob> {
        self.read_at(kind, id, |location| {
            let blob = match location.is_delta {
                true => self.blob_of_delta(id, &location)?,
                false => self.blob_at(kind, &location)?,
            };
            self.verified(kind, id, &location, blob)
        })
    }

    fn verified(&self, kind: BlobKind, id: &BlobId, location: &Location, blob: Blob) -> Result<Blob> {
        if self.keys.blob_id(kind, &ContentHash::of(&blob)) != *id {
            let pack = self.index.pack(location.pack).id;
            let object = format!("{kind:?} blob {id} in {}", ObjectName::new(ObjectKind::Pack, pack));
            return Err(Error::Corrupt { object, what: "it does not hash to its id".to_owned() });
        }
        Ok(blob)
    }

    /// As [`Repository::blob`], for a data blob where it is stored plain, so that deltas may be made of it.
    pub fn plain_blob(&self, id: &BlobId) -> Result<Blob> {
        let kind = BlobKind::Data;
        let missing = || Error::MissingBlob { kind, id: *id, location: self.location() };
        let location = self.index.find_plain(id, &self.source())?.ok_or_else(missing)?;
        self.verified(kind, id, &location, self.blob_at(kind, &location)?)
    }

    /// The bytes at `location`: a blob, or a delta.
    pub(super) fn blob_at(&self, kind: BlobKind, location: &Location) -> Result<Blob> {
        // Deltas are few, and read again with every snapshot that has them.
        let reuse = if kind == BlobKind::Data && !location.is_delta { Reuse::Seldom } else { Reuse::Often };
        let pack = self.open_pack_reused(location.pack, reuse)?;
        let (first, at) = pack.place(location.offset, location.len)?;
        let len = location.len as usize;
        if at + len <= pack.table.segment_plain_len(first) {
            return Ok(Blob { bytes: self.segment_of(&pack, location.pack, first)?, from: at, to: at + len });
        }
        let mut bytes = vec![0; len];
        self.copy_from_pack(&pack, location.pack, location.offset, &mut bytes)?;
        Ok(Blob { bytes: Arc::new(bytes), from: 0, to: len })
    }

    /// Fills `out` from `offset` within the data blob `id`; decodes only the segments hit. The bytes are authentic, but
    /// not compared with the id, which would take the whole blob.
    pub fn read_blob_at(&self, id: &BlobId, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read_at(BlobKind::Data, id, |location| {
            if location.is_delta {
                return self.read_delta(id, &location, offset, out);
            }
            let end = offset.checked_add(out.len() as u64);
            if end.is_none_or(|end| end > u64::from(location.len)) {
                let what = format!("bytes from {offset} are beyond its {} bytes", location.len);
                return Err(Error::Corrupt { object: format!("Data blob {id}"), what });
            }
            self.copy_at(&location, offset as u32, out)
        })
    }

    /// Fills `out` from `offset` of what is at `location`, which has that many bytes.
    fn copy_at(&self, location: &Location, offset: u32, out: &mut [u8]) -> Result<()> {
        let pack = self.open_pack(location.pack)?;
        self.copy_from_pack(&pack, location.pack, location.offset.saturating_add(offset), out)
    }

    /// What is at `location`, to be read in many small pieces.
    pub(super) fn pieces_at(&self, location: Location) -> Result<PiecesAt> {
        Ok(PiecesAt { pack: self.open_pack(location.pack)?, location, held: None })
    }

    /// Fills `out` from `offset` of what `from` is, which has that many bytes.
    pub(super) fn copy_piece(&self, from: &mut PiecesAt, offset: u32, out: &mut [u8]) -> Result<()> {
        let PiecesAt { pack, location, held } = from;
        self.copy_holding(pack, location.pack, location.offset.saturating_add(offset), out, held)
    }

    /// Decodes what `len` bytes from `offset` of the data blob `id` need, so that reading them finds it in memory.
    pub fn decode_ahead(&self, id: &BlobId, offset: u32, len: u32) -> Result<()> {
        let location = self.locate_or_fail(BlobKind::Data, id)?;
        if location.is_delta {
            return self.decode_delta_ahead(id, &location, offset, len);
        }
        self.decode_ahead_at(&location, offset, len)
    }

    /// As [`Repository::decode_ahead`], for `len` bytes from `offset` of what is at `location`.
    pub(super) fn decode_ahead_at(&self, location: &Location, offset: u32, len: u32) -> Result<()> {
        for index in self.segments_at(location.pack, location.offset.saturating_add(offset), len)? {
            if !self.segment_is_cached(location.pack, index) {
                self.segment(location.pack, index)?;
            }
        }
        Ok(())
    }

    /// As [`Repository::blob`], but `None` if it takes more than memory to answer.
    pub fn blob_if_cached(&self, kind: BlobKind, id: &BlobId) -> Result<Option<Blob>> {
        let Some(location) = self.index.find(id, &self.source())? else { return Ok(None) };
        let is_cached = match location.is_delta {
            true => self.delta_is_cached(&location, None),
            false => self.is_cached(&location, 0, location.len),
        };
        if is_cached { self.blob(kind, id).map(Some) } else { Ok(None) }
    }

    /// As [`Repository::read_blob_at`], but false if it takes more than memory to answer.
    pub fn read_blob_if_cached(&self, id: &BlobId, offset: u64, out: &mut [u8]) -> Result<bool> {
        let Some(location) = self.index.find(id, &self.source())? else { return Ok(false) };
        let len = out.len() as u32;
        let is_answered = match location.is_delta {
            true => u32::try_from(offset).map_or(true, |offset| self.delta_is_cached(&location, Some((offset, len)))),
            false => {
                let beyond = offset.checked_add(len.into()).is_none_or(|end| end > u64::from(location.len));
                beyond || self.is_cached(&location, offset as u32, len)
            }
        };
        if is_answered { self.read_blob_at(id, offset, out).map(|()| true) } else { Ok(false) }
    }

    /// Whether the segments with `len` bytes from `offset` of what is at `location` are decoded.
    pub(super) fn is_cached(&self, location: &Location, offset: u32, len: u32) -> bool {
        let packs = self.cache.packs.lock().expect("no panic while held");
        let Some(pack) = packs.peek(&location.pack).cloned() else { return false };
        drop(packs);
        let Ok((first, at)) = pack.place(location.offset.saturating_add(offset), len) else { return false };
        let count = (at + len as usize).div_ceil(pack.table.segment_len as usize);
        (first..first + count).all(|index| self.segment_is_cached(location.pack, index as u32))
    }

    fn copy_from_pack(&self, pack: &OpenPack, number: PackNumber, offset: u32, out: &mut [u8]) -> Result<()> {
        self.copy_holding(pack, number, offset, out, &mut None)
    }

    /// As [`Repository::copy_from_pack`]; `held` is the segment that was used last, with its number.
    fn copy_holding(
        &self,
        pack: &OpenPack,
        number: PackNumber,
        offset: u32,
        mut out: &mut [u8],
        held: &mut Option<(usize, Segment)>,
    ) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let (mut index, mut at) = pack.place(offset, out.len() as u32)?;
        while !out.is_empty() {
            let segment = match held {
                Some((last, segment)) if *last == index => &*segment,
                _ => &held.insert((index, self.segment_of(pack, number, index)?)).1,
            };
            let len = out.len().min(segment.len() - at);
            let (head, tail) = out.split_at_mut(len);
            head.copy_from_slice(&segment[at..at + len]);
            out = tail;
            at = 0;
            index += 1;
        }
        Ok(())
    }

    /// The segments that hold `len` bytes from `offset` of a pack's plaintext: the range of their indexes.
    pub fn segments_at(&self, number: PackNumber, offset: u32, len: u32) -> Result<std::ops::Range<u32>> {
        let pack = self.open_pack(number)?;
        let (first, at) = pack.place(offset, len)?;
        let count = (at + len as usize).div_ceil(pack.table.segment_len as usize);
        Ok(first as u32..first as u32 + count as u32)
    }

    /// The segment that holds the byte at `offset` of a pack's plaintext: where in the plaintext it begins and ends.
    pub fn segment_span(&self, number: PackNumber, offset: u32) -> Result<std::ops::Range<u32>> {
        let pack = self.open_pack(number)?;
        let (index, at) = pack.place(offset, 1)?;
        let start = offset - at as u32;
        Ok(start..start + pack.table.segment_plain_len(index) as u32)
    }

    /// A decoded segment of a pack; shared, cached.
    pub fn segment(&self, number: PackNumber, index: u32) -> Result<Segment> {
        let pack = self.open_pack(number)?;
        if index as usize >= pack.table.count() {
            let what = format!("it has no segment {index}");
            return Err(Error::Corrupt { object: pack.name.to_string(), what });
        }
        self.segment_of(&pack, number, index as usize)
    }

    /// Whether a segment is decoded already.
    pub fn segment_is_cached(&self, number: PackNumber, index: u32) -> bool {
        let key = (number, index);
        self.cache.shard(&key).lock().expect("no panic while held").segments.contains(&key)
    }

    fn segment_of(&self, pack: &OpenPack, number: PackNumber, index: usize) -> Result<Segment> {
        let key = (number, index as u32);
        let shard = self.cache.shard(&key);
        let flight = loop {
            let mut held = shard.lock().expect("no panic while held");
            if let Some(segment) = held.segments.get(&key) {
                self.cache.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(segment.clone());
            }
            self.cache.misses.fetch_add(1, Ordering::Relaxed);
            let Some(flight) = held.flights.get(&key).cloned() else {
                let flight = Arc::new(Flight { landed: Mutex::new(false), wake: Condvar::new() });
                held.flights.insert(key, flight.clone());
                break flight;
            };
            drop(held);
            let landed = flight.landed.lock().expect("no panic while held");
            let is_flying = |landed: &mut bool| !*landed;
            if may_wait() {
                drop(flight.wake.wait_while(landed, is_flying).expect("no panic while held"));
            } else {
                let waited = flight.wake.wait_timeout_while(landed, DECODE_TIME, is_flying);
                if waited.expect("no panic while held").1.timed_out() {
                    return Err(self.would_wait(pack));
                }
            }
            // Landed: cached now, or failed and then this thread tries itself.
        };
        let landing = Landing { shard, key, flight };
        let decoded = self.decode_segment(pack, index);
        if let Ok(segment) = &decoded {
            let mut held = shard.lock().expect("no panic while held");
            held.insert(key, segment.clone(), self.cache.shard_len_max);
        }
        drop(landing);
        decoded
    }

    /// The failure of a thread that may not wait for storage where another thread does.
    fn would_wait(&self, pack: &OpenPack) -> Error {
        let (object, location) = (pack.name.to_string(), self.location());
        let source = std::io::ErrorKind::WouldBlock.into();
        Error::Backend(backend::Error { op: "read", object, location, kind: ErrorKind::WouldWait, source })
    }

    fn decode_segment(&self, pack: &OpenPack, index: usize) -> Result<Segment> {
        let range = pack.table.offsets[index]..pack.table.offsets[index + 1];
        with_scratch(|decompressor, sealed| {
            sealed.resize(range.len(), 0);
            let offset = u64::from(range.start);
            self.backend.get_range_for(pack.name, offset, sealed, pack.reuse())?;
            let segment = match pack.open_segment(index, sealed, decompressor) {
                // Bytes may be damaged on their way or in a cache: what counts is what the store has.
                Err(_) if self.backend.is_remote() => {
                    self.backend.get_range_again(pack.name, offset, sealed)?;
                    pack.open_segment(index, sealed, decompressor)?
                }
                opened => opened?,
            };
            self.cache.stored_bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
            self.cache.decoded_bytes.fetch_add(segment.len() as u64, Ordering::Relaxed);
            Ok(Arc::new(segment))
        })
    }

    /// As [`Repository::open_pack`], for what is read as often as `reuse` says.
    fn open_pack_reused(&self, number: PackNumber, reuse: Reuse) -> Result<Arc<OpenPack>> {
        let pack = self.open_pack_for(number, reuse)?;
        if reuse == Reuse::Often {
            pack.is_reused.store(true, Ordering::Relaxed);
        }
        Ok(pack)
    }

    /// What reading has cost so far.
    pub fn read_counts(&self) -> ReadCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let cached = self.cache.shards.iter().map(|shard| shard.lock().expect("no panic while held").bytes as u64);
        ReadCounts {
            hits: get(&self.cache.hits),
            misses: get(&self.cache.misses),
            stored_bytes: get(&self.cache.stored_bytes),
            decoded_bytes: get(&self.cache.decoded_bytes),
            cached_bytes: cached.sum(),
        }
    }

    pub(super) fn open_pack(&self, number: PackNumber) -> Result<Arc<OpenPack>> {
        self.open_pack_for(number, Reuse::Seldom)
    }

    /// The data blob `id` will be read soon: what opening its pack takes is fetched meanwhile, if it is far away.
    pub fn will_read_blob(&self, id: &BlobId) {
        if !self.backend.is_remote() {
            return;
        }
        let Ok(Some(location)) = self.index.locate(id) else { return };
        if !self.cache.packs.lock().expect("no panic while held").contains(&location.pack) {
            self.will_open_pack(location.pack, Reuse::Seldom);
        }
    }

    fn will_open_pack(&self, number: PackNumber, reuse: Reuse) {
        let PackInfo { id, len } = self.index.pack(number);
        let name = ObjectName::new(ObjectKind::Pack, id);
        let tail_len = len.min(TAIL_LEN);
        self.backend.will_read(name, len - tail_len, tail_len, reuse);
        self.backend.will_read(name, 0, HEADER_LEN as u64, reuse);
    }

    /// `len` bytes of data blobs from `first` to `last` will be read soon, and mostly lie one after the other in a pack: if it
    /// is far away, that part of it is fetched meanwhile. Returns how many bytes, `None` if they do not lie so. Waits for
    /// what opening the pack takes.
    pub fn will_read_run(&self, first: &BlobId, last: &BlobId, len: u64) -> Option<u64> {
        if !self.backend.is_remote() {
            return Some(0);
        }
        // Whoever reads the blobs meets a failure again.
        let (from, to) = (self.index.locate(first).ok()??, self.index.locate(last).ok()??);
        if from.pack != to.pack || from.offset > to.offset {
            return None;
        }
        let pack = self.open_pack(from.pack).ok()?;
        let span = (to.offset - from.offset).saturating_add(to.len);
        // Where others' blobs lie between them, most of it would be fetched for nothing.
        self.will_read_span(&pack, &Location { len: span, ..from }, RUN_LEN_MAX.min(len.max(RUN_LEN_MIN)))
    }

    /// The tree blobs `ids` will be read soon: if they are far away, they are fetched meanwhile, as far as their packs have
    /// been opened, and what opening takes of the others.
    pub fn will_read_trees(&self, ids: impl Iterator<Item = BlobId>) {
        if !self.backend.is_remote() {
            return;
        }
        for location in ids.filter_map(|id| self.index.locate(&id).ok().flatten()) {
            let pack = self.cache.packs.lock().expect("no panic while held").peek(&location.pack).cloned();
            match pack {
                None => self.will_open_pack(location.pack, Reuse::Often),
                Some(_) if self.is_cached(&location, 0, location.len) => {}
                Some(pack) => _ = self.will_read_span(&pack, &location, RUN_LEN_MAX),
            }
        }
    }

    /// What is stored of the bytes at `location` will be read soon, and how many bytes are; `None` if more than `len_max`.
    fn will_read_span(&self, pack: &OpenPack, location: &Location, len_max: u64) -> Option<u64> {
        let (first, at) = pack.place(location.offset, location.len).ok()?;
        let end = first + (at + location.len as usize).div_ceil(pack.table.segment_len as usize);
        let edge = |segment: usize| u64::from(pack.table.offsets[segment]);
        let len = edge(end) - edge(first);
        if len > len_max {
            return None;
        }
        self.backend.will_read(pack.name, edge(first), len, pack.reuse());
        Some(len)
    }

    fn open_pack_for(&self, number: PackNumber, reuse: Reuse) -> Result<Arc<OpenPack>> {
        if let Some(pack) = self.cache.packs.lock().expect("no panic while held").get(&number) {
            return Ok(pack.clone());
        }
        // Not under the lock: a second thread may read the same table, which is harmless.
        let PackInfo { id, len } = self.index.pack(number);
        let (pack, _) = self.read_tables(&id, len, false, reuse)?;
        let pack = Arc::new(pack);
        self.cache.packs.lock().expect("no panic while held").put(number, pack.clone());
        Ok(pack)
    }

    /// Decodes every blob of the pack `name`, or the delta that is stored for it, from its bytes and calls `each` with that,
    /// or with why it cannot be decoded. An error is about the pack as a whole.
    pub fn for_each_blob(
        &self,
        name: ObjectName,
        stored: &[u8],
        each: &mut dyn FnMut(&PackedBlob, Result<&[u8]>),
    ) -> Result<()> {
        let (pack, blobs) = self.read_tables_from(name, stored.len() as u64, true, &|offset, out| {
            out.copy_from_slice(&stored[offset as usize..offset as usize + out.len()]);
            Ok(())
        })?;
        let mut segments: Vec<Result<Vec<u8>>> = Vec::new();
        let mut first = 0;
        let mut offset = 0usize;
        let segment_len = pack.table.segment_len as usize;
        let mut whole = Vec::new();
        for blob in &blobs {
            let range = offset / segment_len..(offset + blob.len as usize).div_ceil(segment_len);
            // Segments before this blob are done with; bounded by the longest blob.
            segments.drain(..(range.start - first).min(segments.len()));
            first = range.start;
            while first + segments.len() < range.end {
                let index = first + segments.len();
                let place = pack.table.offsets[index] as usize..pack.table.offsets[index + 1] as usize;
                segments.push(with_scratch(|decompressor, sealed| {
                    sealed.clear();
                    sealed.extend_from_slice(&stored[place]);
                    pack.open_segment(index, sealed, decompressor)
                }));
            }
            whole.clear();
            let mut failed = None;
            for (at, segment) in segments.iter().enumerate().take(range.len()) {
                match segment {
                    Ok(segment) => {
                        let start = (first + at) * segment_len;
                        let from = offset.saturating_sub(start);
                        let to = segment.len().min(offset + blob.len as usize - start);
                        whole.extend_from_slice(&segment[from..to]);
                    }
                    Err(Error::Corrupt { object, what }) => failed = Some((object.clone(), what.clone())),
                    Err(error) => failed = Some((name.to_string(), error.to_string())),
                }
            }
            match failed {
                None => each(blob, Ok(&whole)),
                Some((object, what)) => each(blob, Err(Error::Corrupt { object, what })),
            }
            offset += blob.len as usize;
        }
        Ok(())
    }

    /// Reads a pack's own table of blobs, for `check` and for rebuilding an index.
    pub fn read_blob_table(&self, id: &ObjectId, len: u64) -> Result<Vec<PackedBlob>> {
        let (_, blobs) = self.read_tables(id, len, true, Reuse::Seldom)?;
        Ok(blobs)
    }

    fn read_tables(
        &self,
        id: &ObjectId,
        len: u64,
        with_blobs: bool,
        reuse: Reuse,
    ) -> Result<(OpenPack, Vec<PackedBlob>)> {
        let name = ObjectName::new(ObjectKind::Pack, *id);
        // Both ends at once.
        self.backend.will_read(name, 0, HEADER_LEN as u64, reuse);
        let read = |offset, out: &mut [u8]| Ok(self.backend.get_range_for(name, offset, out, reuse)?);
        match self.read_tables_from(name, len, with_blobs, &read) {
            Err(Error::Corrupt { .. }) if self.backend.is_remote() => {
                let read = |offset, out: &mut [u8]| Ok(self.backend.get_range_again(name, offset, out)?);
                self.read_tables_from(name, len, with_blobs, &read)
            }
            other => other,
        }
    }

    fn read_tables_from(
        &self,
        name: ObjectName,
        len: u64,
        with_blobs: bool,
        read: &dyn Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<(OpenPack, Vec<PackedBlob>)> {
        let decode = |error| Error::decode(name, error);
        let damaged = |what: &str| Error::Corrupt { object: name.to_string(), what: what.to_owned() };
        if len < (HEADER_LEN + FOOTER_LEN) as u64 {
            return Err(damaged("it is too short"));
        }
        let tail_len = len.min(TAIL_LEN);
        let mut tail = vec![0; tail_len as usize];
        read(len - tail_len, &mut tail)?;
        let mut header = [0; HEADER_LEN];
        if tail_len == len {
            header.copy_from_slice(&tail[..HEADER_LEN]);
        } else {
            read(0, &mut header)?;
        }
        super::check_version(&name, &header)?;
        let header = Header::decode(&header, StoredKind::Pack).map_err(decode)?;
        let cipher = ObjectCipher::new(&self.keys, &self.id, &header);
        let footer_at = tail.len() - FOOTER_LEN;
        let footer = cipher
            .open_uncompressed(FOOTER_UNIT, &mut tail[footer_at..])
            .map_err(|error| Error::Corrupt { object: format!("footer of {name}"), what: error.to_string() })?;
        let footer = Footer::decode(footer, len).map_err(decode)?;
        let tail_offset = len - tail_len;
        let open = |unit, offset: u64, sealed_len: u32, plain_len: u32| {
            let mut sealed = vec![0; sealed_len as usize];
            if offset >= tail_offset {
                let from = (offset - tail_offset) as usize;
                sealed.copy_from_slice(&tail[from..from + sealed_len as usize]);
            } else {
                read(offset, &mut sealed)?;
            }
            with_scratch(|decompressor, _| {
                cipher
                    .open(unit, &mut sealed, plain_len as usize, decompressor)
                    .map_err(|error| Error::Corrupt { object: format!("table of {name}"), what: error.to_string() })
            })
        };
        let offset = footer.segment_table_offset();
        let plain = open(SEGMENT_TABLE_UNIT, offset, footer.segment_table_sealed_len, footer.segment_table_plain_len)?;
        let table = SegmentTable::decode(&plain, footer.blob_table_offset).map_err(decode)?;
        let blobs = if with_blobs {
            let offset = u64::from(footer.blob_table_offset);
            let plain = open(BLOB_TABLE_UNIT, offset, footer.blob_table_sealed_len, footer.blob_table_plain_len)?;
            decode_blob_table(&plain, table.plain_len).map_err(decode)?
        } else {
            Vec::new()
        };
        Ok((OpenPack { name, cipher, table, is_reused: AtomicBool::new(false) }, blobs))
    }
}

impl OpenPack {
    fn reuse(&self) -> Reuse {
        if self.is_reused.load(Ordering::Relaxed) { Reuse::Often } else { Reuse::Seldom }
    }

    fn open_segment(&self, index: usize, sealed: &mut [u8], decompressor: &mut Decompressor) -> Result<Vec<u8>> {
        let plain = self.cipher.open(index as u64, sealed, self.table.segment_plain_len(index), decompressor);
        plain.map_err(|error| Error::Corrupt {
            object: format!("segment {index} of {}", self.name),
            what: error.to_string(),
        })
    }

    /// The segment that holds `offset` of the plaintext, and the offset within it; `len` bytes from there must exist.
    fn place(&self, offset: u32, len: u32) -> Result<(usize, usize)> {
        if u64::from(offset) + u64::from(len) > u64::from(self.table.plain_len) {
            let what = format!("an index points at byte {offset} of its {} plain bytes", self.table.plain_len);
            return Err(Error::Corrupt { object: self.name.to_string(), what });
        }
        let segment_len = self.table.segment_len;
        Ok(((offset / segment_len) as usize, (offset % segment_len) as usize))
    }
}
