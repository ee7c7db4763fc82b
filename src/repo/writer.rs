//! From blobs to stored packs: each blob once, laid end to end in the order they come, segments sealed on all cores.
//!
//! Order is what keeps a repository whole: packs are durable before the index object that names them is written, and
//! that before the snapshot. One thread feeds a writer; it compresses on the pool and stores on a thread of its own.
//! However a run ends, packs that were stored get into an index, at the latest when the writer is dropped: the next run
//! finds their blobs. A killed process leaves some out, and so does one that cannot reach the store any more: the mark
//! that it leaves in the cache makes the next run look for them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::unfinished::Mark;
use super::{Error, Repository, Result};
use crate::backend::{Listed, ObjectKind, ObjectName, Reuse};
use crate::chunk::Texture;
use crate::format::header::StoredKind;
use crate::format::index::{IndexedPack, PackedBlob, encode_blobs};
use crate::format::limits::{BLOB_LEN_MAX, SEGMENT_LEN};
use crate::format::pack::{FOOTER_LEN, FOOTER_PLAIN_LEN, Footer, SegmentTable, padded_len};
use crate::format::{index, object};
use crate::id::{BlobId, BlobKind, ObjectId};
use crate::pool::{Pool, Urgency};
use crate::seal::{BLOB_TABLE_UNIT, Compressor, FOOTER_UNIT, SEGMENT_TABLE_UNIT, Sealer};

/// Stored bytes of a full pack. A power of two, so that full packs need hardly any padding.
pub const PACK_LEN_DEFAULT: u64 = 16 << 20;
/// A pack is closed when it is estimated to come this close to its full length: what the estimate may be wrong by.
const PACK_MARGIN: u64 = 96 << 10;
/// One segment of data in this many is decompressed again and compared before it is stored.
const VERIFY_ONE_IN: u32 = 8;
/// Most plain bytes of a pack, so that offsets and tables stay small even if everything compresses to nothing.
const PACK_PLAIN_LEN_MAX: u32 = 256 << 20;

/// When stored packs get an index object before the run ends: bounds memory and what a killed run has to repeat.
#[derive(Clone, Copy, Debug)]
struct IndexAfter {
    blobs: usize,
    /// Stored bytes of packs.
    len: u64,
    time: Duration,
}

const INDEX_AFTER: IndexAfter = IndexAfter { blobs: 256 << 10, len: 1 << 30, time: Duration::from_secs(300) };

/// Packs on their way to a store at most: each takes its full length of memory.
const UPLOADS_MAX: usize = 3;

/// What a writer did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Data blobs added.
    pub data_blobs: u64,
    /// Tree and list blobs added.
    pub tree_blobs: u64,
    /// Plain bytes added.
    pub plain_bytes: u64,
    /// Stored bytes added: packs and index objects.
    pub stored_bytes: u64,
}

/// How a writer compresses and packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// zstd level; what suits each segment if `None`.
    pub level: Option<i32>,
    /// Stored length of a full pack in bytes.
    pub pack_len: u64,
}

/// zstd level where none was asked for.
const LEVEL_DEFAULT: i32 = 1;
/// The same for segments of what is neither text nor dense: on disks and programs this gains 3 to 5 % of the size, on text
/// nothing, and such data is read and cut several times as fast as it is written elsewhere.
const LEVEL_BINARY: i32 = 5;
/// Lowest zstd level of segments of deltas: there are few, and what is left in them is worth it.
const LEVEL_DELTAS: i32 = 12;

/// What a pack holds; each has its own, so that whoever reads the one does not read the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Data,
    Deltas,
    /// Trees and lists: all segments are verified.
    Metadata,
}

const SLOTS: [Slot; 3] = [Slot::Data, Slot::Deltas, Slot::Metadata];

impl Default for WriteOptions {
    fn default() -> Self {
        Self { level: None, pack_len: PACK_LEN_DEFAULT }
    }
}

/// A sealed segment on its way back from the pool.
struct Sealed {
    pack: u64,
    unit: u32,
    plain_len: usize,
    bytes: std::io::Result<Vec<u8>>,
}

/// A pack being filled, or waiting for its last segments.
struct Pack {
    number: u64,
    slot: Slot,
    sealer: Arc<Sealer>,
    blobs: Vec<PackedBlob>,
    plain_len: u32,
    units: u32,
    /// Plain bytes of the segment that is not full yet.
    tail: Vec<u8>,
    /// How many of them are neither text nor dense.
    tail_binary: usize,
    /// Stored bytes so far: the header and the sealed segments, in order.
    stored: Vec<u8>,
    offsets: Vec<u32>,
    /// Segments that came back before an earlier one.
    early: BTreeMap<u32, Vec<u8>>,
    plain_in_flight: usize,
    sealed_len: u64,
}

struct Finished {
    bytes: Vec<u8>,
    blobs: Vec<PackedBlob>,
    reuse: Reuse,
}

/// Compresses `plain` at a level; the last argument says whether to verify it.
type Compress = fn(i32, &[u8], bool) -> std::io::Result<Vec<u8>>;

/// Stores blobs. Feed it from one thread; call [`Writer::finish`], or what it was given last is not stored.
pub struct Writer {
    repo: Arc<Repository>,
    pool: Arc<Pool>,
    options: WriteOptions,
    next_number: u64,
    /// The pack being filled for each slot.
    open: [Option<Pack>; SLOTS.len()],
    closing: Vec<Pack>,
    /// Ids in packs that are not stored yet.
    pending: HashSet<BlobId>,
    segments_in_flight: usize,
    segment_sender: std::sync::mpsc::Sender<Sealed>,
    segment_receiver: Receiver<Sealed>,
    upload: Option<SyncSender<Finished>>,
    uploaded: Receiver<Result<IndexedPack>>,
    uploaders: Vec<JoinHandle<()>>,
    unindexed: Vec<IndexedPack>,
    blobs_unindexed: usize,
    len_unindexed: u64,
    /// When the last index object was written, or the writer made.
    indexed_at: Instant,
    index_after: IndexAfter,
    compress: Compress,
    stats: WriteStats,
    mark: Option<Mark>,
}

thread_local! {
    static COMPRESSOR: RefCell<Option<(i32, Compressor)>> = const { RefCell::new(None) };
}

fn compress(level: i32, plain: &[u8], verify: bool) -> std::io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(have, _)| *have != level) {
            *slot = Some((level, Compressor::new(level)?));
        }
        let compressor = &mut slot.as_mut().expect("just filled").1;
        if verify { compressor.run(plain) } else { compressor.run_unverified(plain) }
    })
}

/// What `work` returns, or an error if it panics: whoever waits for the outcome gets one.
fn guarded<T>(work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let panicked = |_| Err(std::io::Error::other("a thread panicked; this is a fault of the program"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

fn system(op: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::System { op, source }
}

impl Writer {
    /// A writer into `repo` that compresses on `pool`.
    pub fn new(repo: Arc<Repository>, pool: Arc<Pool>, options: WriteOptions) -> Result<Writer> {
        let (segment_sender, segment_receiver) = channel();
        let (upload, to_upload) = sync_channel::<Finished>(0);
        let (report, uploaded) = channel();
        let to_upload = Arc::new(Mutex::new(to_upload));
        let mut uploaders = Vec::new();
        for _ in 0..repo.backend.parallel().min(UPLOADS_MAX) {
            let (repo, to_upload, report) = (repo.clone(), to_upload.clone(), report.clone());
            let work = move || {
                loop {
                    let next = to_upload.lock().expect("no panic while held").recv();
                    let Ok(Finished { bytes, blobs, reuse }) = next else { return };
                    let (id, len) = (ObjectId::of(&bytes), bytes.len() as u64);
                    let put = repo.backend.put_vec(ObjectName::new(ObjectKind::Pack, id), bytes, reuse);
                    let failed = put.is_err();
                    let stored = IndexedPack { id, len, blobs };
                    if report.send(put.map(|()| stored).map_err(Error::from)).is_err() || failed {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("upload".to_owned()).spawn(work);
            uploaders.push(thread.map_err(system("start a thread"))?);
        }
        // Those of the threads are what counts: without them nobody reports.
        drop((report, to_upload));
        let mut writer = Writer {
            repo,
            pool,
            options,
            next_number: 0,
            open: [None, None, None],
            closing: Vec::new(),
            pending: HashSet::new(),
            segments_in_flight: 0,
            segment_sender,
            segment_receiver,
            upload: Some(upload),
            uploaded,
            uploaders,
            unindexed: Vec::new(),
            blobs_unindexed: 0,
            len_unindexed: 0,
            indexed_at: Instant::now(),
            index_after: INDEX_AFTER,
            compress,
            stats: WriteStats::default(),
            mark: None,
        };
        writer.go_on();
        Ok(writer)
    }

    /// Leaves a mark, and takes in what runs before this one have stored and could not put into an index.
    fn go_on(&mut self) {
        let Some(directory) = self.repo.cache_dir.as_deref().map(|cache| cache.join("unfinished")) else { return };
        // Without a cache that can be written to there is nothing to go on with.
        let Ok((mark, left)) = Mark::leave(&directory) else { return };
        self.mark = Some(mark);
        if !left.is_empty() && self.adopt().is_ok() {
            for mark in left {
                let _ = std::fs::remove_file(mark);
            }
        }
    }

    /// Takes in every pack of the store that no index lists.
    fn adopt(&mut self) -> Result<()> {
        let (mut known, mut unknown) = (HashSet::new(), Vec::new());
        self.repo.index.for_each_pack(|_, pack| {
            known.insert(pack.id);
        });
        self.repo.backend.list(ObjectKind::Pack, &mut |found| {
            if !known.contains(&found.id) {
                unknown.push(found);
            }
        })?;
        for Listed { id, len } in unknown {
            // What cannot be read is of no use.
            if let Ok(blobs) = self.repo.read_blob_table(&id, len) {
                self.stored(IndexedPack { id, len, blobs })?;
            }
        }
        Ok(())
    }

    /// Whether the repository or this writer has the blob already.
    pub fn has(&self, id: &BlobId) -> bool {
        self.pending.contains(id) || self.repo.has(id)
    }

    /// Stores `plain` under its id `id`, unless it is there. Returns whether it was new.
    pub fn store(&mut self, kind: BlobKind, id: BlobId, plain: &[u8]) -> Result<bool> {
        let slot = if kind == BlobKind::Data { Slot::Data } else { Slot::Metadata };
        self.append(slot, kind, id, plain)
    }

    /// Stores the data blob `id` as its delta from others, which must be stored plain; the caller has made sure that
    /// `delta` makes it. `plain_len` is the blob's length in bytes. Returns whether it was new.
    pub fn store_delta(&mut self, id: BlobId, delta: &[u8], plain_len: usize) -> Result<bool> {
        let is_new = self.append(Slot::Deltas, BlobKind::Data, id, delta)?;
        if is_new {
            self.stats.plain_bytes += (plain_len - delta.len()) as u64;
        }
        Ok(is_new)
    }

    /// As [`Writer::store_delta`], as a host does that does not know of the blob yet.
    #[cfg(test)]
    pub(super) fn append_again(&mut self, id: BlobId, delta: &[u8]) -> Result<()> {
        self.append_new(Slot::Deltas, BlobKind::Data, id, delta)
    }

    /// Appends a blob, or the delta that stands for it, unless it is there.
    fn append(&mut self, slot: Slot, kind: BlobKind, id: BlobId, plain: &[u8]) -> Result<bool> {
        assert!((1..=BLOB_LEN_MAX).contains(&plain.len()), "a blob has 1 to {BLOB_LEN_MAX} bytes, not {}", plain.len());
        if self.has(&id) {
            return Ok(false);
        }
        self.append_new(slot, kind, id, plain).map(|()| true)
    }

    fn append_new(&mut self, slot: Slot, kind: BlobKind, id: BlobId, plain: &[u8]) -> Result<()> {
        self.pending.insert(id);
        self.collect(false)?;
        let open = slot as usize;
        if self.open[open].as_ref().is_some_and(|pack| pack.is_full_with(plain.len(), &self.options)) {
            self.close(slot)?;
        }
        if self.open[open].is_none() {
            self.open[open] = Some(self.new_pack(slot)?);
        }
        let pack = self.open[open].as_mut().expect("just opened");
        pack.blobs.push(PackedBlob { kind, id, len: plain.len() as u32, is_delta: slot == Slot::Deltas });
        pack.plain_len += plain.len() as u32;
        let mut rest = plain;
        let is_binary = slot == Slot::Data && self.options.level.is_none() && Texture::of(plain) == Texture::Binary;
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(SEGMENT_LEN - pack.tail.len()));
            pack.tail.extend_from_slice(head);
            pack.tail_binary += if is_binary { head.len() } else { 0 };
            rest = tail;
            if pack.tail.len() == SEGMENT_LEN {
                Self::seal_tail(pack, &self.pool, &self.segment_sender, self.compress, self.options.level);
                self.segments_in_flight += 1;
            }
        }
        match kind {
            BlobKind::Data => self.stats.data_blobs += 1,
            BlobKind::Tree | BlobKind::List => self.stats.tree_blobs += 1,
        }
        self.stats.plain_bytes += plain.len() as u64;
        Ok(())
    }

    fn new_pack(&mut self, slot: Slot) -> Result<Pack> {
        let sealer =
            Sealer::new(&self.repo.keys, &self.repo.id, StoredKind::Pack).map_err(system("read random bytes"))?;
        // Once, so that a pack is not copied as it grows; untouched memory costs nothing.
        let mut stored = Vec::with_capacity((self.options.pack_len + (1 << 20)) as usize);
        stored.extend_from_slice(&sealer.header());
        self.next_number += 1;
        Ok(Pack {
            number: self.next_number,
            slot,
            offsets: vec![stored.len() as u32],
            sealed_len: stored.len() as u64,
            sealer: Arc::new(sealer),
            blobs: Vec::new(),
            plain_len: 0,
            units: 0,
            tail: Vec::new(),
            tail_binary: 0,
            stored,
            early: BTreeMap::new(),
            plain_in_flight: 0,
        })
    }

    fn seal_tail(
        pack: &mut Pack,
        pool: &Pool,
        sender: &std::sync::mpsc::Sender<Sealed>,
        compress: Compress,
        level: Option<i32>,
    ) {
        let is_binary = std::mem::take(&mut pack.tail_binary) * 4 > pack.tail.len();
        let plain = std::mem::replace(&mut pack.tail, Vec::with_capacity(SEGMENT_LEN));
        let (number, unit, sealer, sender) = (pack.number, pack.units, pack.sealer.clone(), sender.clone());
        let verify = pack.slot != Slot::Data || unit.is_multiple_of(VERIFY_ONE_IN);
        let level = level.unwrap_or(if is_binary { LEVEL_BINARY } else { LEVEL_DEFAULT });
        let level = if pack.slot == Slot::Deltas { level.max(LEVEL_DELTAS) } else { level };
        pack.units += 1;
        pack.plain_in_flight += plain.len();
        pool.submit(Urgency::Urgent, move || {
            let sealed = guarded(|| {
                let compressed = compress(level, &plain, verify)?;
                Ok(sealer.seal(u64::from(unit), plain.len(), compressed))
            });
            // The receiver is gone only if the writer was dropped, and then nobody wants the segment.
            let _ = sender.send(Sealed { pack: number, unit, plain_len: plain.len(), bytes: sealed });
        });
    }

    fn close(&mut self, slot: Slot) -> Result<()> {
        let Some(mut pack) = self.open[slot as usize].take() else { return Ok(()) };
        if !pack.tail.is_empty() {
            Self::seal_tail(&mut pack, &self.pool, &self.segment_sender, self.compress, self.options.level);
            self.segments_in_flight += 1;
        }
        self.closing.push(pack);
        self.hand_over()
    }

    /// Takes in sealed segments and stored packs; waits while too many segments are in flight, or until none is.
    fn collect(&mut self, until_none: bool) -> Result<()> {
        let most = if until_none { 0 } else { 2 * self.pool.threads() + 2 };
        loop {
            let sealed = if self.segments_in_flight > most {
                // This writer holds a sender, so the channel cannot close, and every job answers, even one that panics.
                self.segment_receiver.recv().ok()
            } else {
                self.segment_receiver.try_recv().ok()
            };
            let Some(sealed) = sealed else { break };
            self.segments_in_flight -= 1;
            let bytes = sealed.bytes.map_err(system("compress a segment"))?;
            let mut packs = self.open.iter_mut().flatten().chain(&mut self.closing);
            let pack = packs.find(|pack| pack.number == sealed.pack).ok_or_else(unfinished)?;
            pack.accept(sealed.unit, sealed.plain_len, bytes);
        }
        self.hand_over()?;
        while let Ok(stored) = self.uploaded.try_recv() {
            self.stored(stored?)?;
        }
        Ok(())
    }

    /// Gives packs that are complete to the storing thread; waits for it, which bounds the packs in memory.
    fn hand_over(&mut self) -> Result<()> {
        while let Some(at) = self.closing.iter().position(Pack::is_complete) {
            let finished = self.closing.remove(at).finish()?;
            self.stats.stored_bytes += finished.bytes.len() as u64;
            let sent = self.upload.as_ref().is_some_and(|upload| upload.send(finished).is_ok());
            if !sent {
                return Err(self.upload_failure());
            }
        }
        Ok(())
    }

    fn upload_failure(&mut self) -> Error {
        while let Ok(result) = self.uploaded.try_recv() {
            if let Err(error) = result {
                return error;
            }
        }
        Error::System { op: "store packs", source: std::io::Error::other("the storing thread ended") }
    }

    fn stored(&mut self, pack: IndexedPack) -> Result<()> {
        self.repo.index.add(&pack);
        for blob in &pack.blobs {
            self.pending.remove(&blob.id);
        }
        self.blobs_unindexed += pack.blobs.len();
        self.len_unindexed += pack.len;
        self.unindexed.push(pack);
        let IndexAfter { blobs, len, time } = self.index_after;
        let due = self.blobs_unindexed >= blobs || self.len_unindexed >= len || self.indexed_at.elapsed() >= time;
        if due { self.write_index() } else { Ok(()) }
    }

    /// Ends the storing thread when it has stored what it was given, and takes in what it did.
    fn end_upload(&mut self) -> Result<()> {
        self.upload = None;
        let mut failed = None;
        while let Ok(stored) = self.uploaded.recv() {
            if let Err(error) = stored.and_then(|pack| self.stored(pack)) {
                failed.get_or_insert(error);
            }
        }
        for uploader in self.uploaders.drain(..) {
            // One that panicked has left blobs unstored, which is noticed.
            let _ = uploader.join();
        }
        failed.map_or(Ok(()), Err)
    }

    fn write_index(&mut self) -> Result<()> {
        if self.unindexed.is_empty() {
            return Ok(());
        }
        let plain = index::encode(&self.unindexed);
        let stored = object::seal(&self.repo.keys, &self.repo.id, StoredKind::Index, &plain);
        let stored = stored.map_err(system("seal an index"))?;
        let id = ObjectId::of(&stored);
        self.repo.backend.put(ObjectName::new(ObjectKind::Index, id), &stored)?;
        self.stats.stored_bytes += stored.len() as u64;
        self.repo.index.published(id, &self.unindexed);
        self.unindexed.clear();
        (self.blobs_unindexed, self.len_unindexed, self.indexed_at) = (0, 0, Instant::now());
        Ok(())
    }

    /// Makes everything durable: the last packs, then the index. Only after that may a snapshot name its blobs.
    pub fn finish(mut self) -> Result<WriteStats> {
        for slot in SLOTS {
            self.close(slot)?;
        }
        self.collect(true)?;
        self.end_upload()?;
        // After an error that a caller went on from, packs lack segments and blobs lack packs.
        if !self.closing.is_empty() || !self.pending.is_empty() {
            return Err(unfinished());
        }
        self.write_index()?;
        if let Some(mark) = self.mark.take() {
            mark.take_away();
        }
        Ok(self.stats)
    }
}

fn unfinished() -> Error {
    Error::System { op: "store packs", source: std::io::Error::other("some of their segments or blobs were lost") }
}

impl Drop for Writer {
    /// Names the packs that are stored in an index object, so that the next run need not store their blobs again. After
    /// [`Writer::finish`] there are none.
    fn drop(&mut self) {
        // The run has ended already, with an error of its own if with any.
        let ended = self.end_upload().and_then(|()| self.write_index());
        if let (Ok(()), Some(mark)) = (ended, self.mark.take()) {
            mark.take_away();
        }
    }
}

impl Pack {
    /// Whether `more` plain bytes would make the pack longer than it should be, as far as can be told while segments are
    /// still being compressed.
    fn is_full_with(&self, more: usize, options: &WriteOptions) -> bool {
        let plain_sealed = self.plain_len as usize - self.plain_in_flight - self.tail.len();
        let ratio = if plain_sealed < 4 * SEGMENT_LEN { 0.5 } else { self.sealed_len as f64 / plain_sealed as f64 };
        let waiting = (self.plain_in_flight + self.tail.len() + more) as f64 * ratio;
        let tables = self.blobs.len() as u64 * 23 + u64::from(self.units) * 3;
        let estimate = self.sealed_len + waiting as u64 + tables;
        estimate + PACK_MARGIN > options.pack_len || self.plain_len as usize + more > PACK_PLAIN_LEN_MAX as usize
    }

    fn accept(&mut self, unit: u32, plain_len: usize, bytes: Vec<u8>) {
        self.plain_in_flight -= plain_len;
        self.sealed_len += bytes.len() as u64;
        self.early.insert(unit, bytes);
        while let Some(bytes) = self.early.remove(&(self.offsets.len() as u32 - 1)) {
            self.stored.extend_from_slice(&bytes);
            self.offsets.push(self.stored.len() as u32);
        }
    }

    fn is_complete(&self) -> bool {
        self.tail.is_empty() && self.offsets.len() == self.units as usize + 1
    }

    /// Adds padding, tables and footer.
    fn finish(mut self) -> Result<Finished> {
        let seal = |unit, plain: &[u8]| -> Result<Vec<u8>> {
            let compressed = compress(LEVEL_DEFAULT, plain, true).map_err(system("compress a table"))?;
            Ok(self.sealer.seal(unit, plain.len(), compressed))
        };
        let mut blob_table = Vec::with_capacity(self.blobs.len() * 24);
        encode_blobs(&self.blobs, &mut blob_table);
        let table =
            SegmentTable { segment_len: SEGMENT_LEN as u32, plain_len: self.plain_len, offsets: self.offsets.clone() };
        let segment_table = table.encode();
        let sealed_blobs = seal(BLOB_TABLE_UNIT, &blob_table)?;
        let sealed_segments = seal(SEGMENT_TABLE_UNIT, &segment_table)?;
        let end = sealed_blobs.len() + sealed_segments.len() + FOOTER_LEN;
        let padded = padded_len((self.stored.len() + end) as u64) as usize;
        let padding = self.stored.len()..padded - end;
        self.stored.resize(padding.end, 0);
        // Like what is sealed before and after it, so that the bytes do not say where it begins.
        let seed = crate::key::random().map_err(system("read random bytes"))?;
        blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut self.stored[padding]);
        let footer = Footer {
            blob_table_offset: self.stored.len() as u32,
            blob_table_sealed_len: sealed_blobs.len() as u32,
            blob_table_plain_len: blob_table.len() as u32,
            segment_table_sealed_len: sealed_segments.len() as u32,
            segment_table_plain_len: segment_table.len() as u32,
        };
        self.stored.extend_from_slice(&sealed_blobs);
        self.stored.extend_from_slice(&sealed_segments);
        self.stored.extend(self.sealer.seal(FOOTER_UNIT, FOOTER_PLAIN_LEN, footer.encode().to_vec()));
        let reuse = if self.slot == Slot::Data { Reuse::Seldom } else { Reuse::Often };
        Ok(Finished { bytes: self.stored, blobs: self.blobs, reuse })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::mem::Memory;
    use crate::id::ContentHash;
    use crate::repo::OpenOptions;

    const PACK_LEN: u64 = 1 << 20;

    fn repository() -> (Arc<Memory>, Arc<Repository>) {
        let store = Arc::new(Memory::new());
        let repo = Repository::init(store.clone(), b"pw", &OpenOptions::default()).expect("init");
        (store, repo)
    }

    fn writer(repo: &Arc<Repository>) -> Writer {
        let pool = Arc::new(Pool::new("test", 2).expect("threads"));
        Writer::new(repo.clone(), pool, WriteOptions { pack_len: PACK_LEN, ..Default::default() }).expect("writer")
    }

    /// Stores `count` blobs of 64 KiB that do not compress; returns how many were new.
    fn store(writer: &mut Writer, count: u64) -> Result<u64> {
        let mut new = 0;
        for n in 0..count {
            let mut plain = vec![0; 64 << 10];
            blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut plain);
            let id = writer.repo.blob_id(BlobKind::Data, &ContentHash::of(&plain));
            new += u64::from(writer.store(BlobKind::Data, id, &plain)?);
        }
        Ok(new)
    }

    fn reopened(store: &Arc<Memory>) -> Arc<Repository> {
        Repository::open(store.clone(), b"pw", &OpenOptions::default()).expect("opens")
    }

    #[test]
    fn packs_stored_by_a_writer_that_was_dropped_are_found_by_the_next() {
        let (store_in, repo) = repository();
        let mut first = writer(&repo);
        assert_eq!(store(&mut first, 100).expect("stores"), 100);
        drop(first);
        let mut second = writer(&reopened(&store_in));
        let again = store(&mut second, 100).expect("stores");
        assert!(again <= 40, "of 100 blobs {again} are stored again");
        second.finish().expect("finishes");
        assert_eq!(store(&mut writer(&reopened(&store_in)), 100).expect("stores"), 0);
    }

    #[test]
    fn packs_stored_by_a_process_that_was_killed_are_found_up_to_the_last_index_object() {
        let (store_in, repo) = repository();
        for after in [
            IndexAfter { len: 2 * PACK_LEN, ..INDEX_AFTER },
            IndexAfter { time: Duration::ZERO, ..INDEX_AFTER },
            IndexAfter { blobs: 30, ..INDEX_AFTER },
        ] {
            let mut killed = writer(&repo);
            killed.index_after = after;
            store(&mut killed, 100).expect("stores");
            std::mem::forget(killed);
            let count = store(&mut writer(&reopened(&store_in)), 100).expect("stores");
            assert!(count <= 70, "of 100 blobs {count} are stored again");
            assert!(!repo.index_ids().expect("lists").is_empty());
            for id in repo.index_ids().expect("lists") {
                repo.backend().delete(ObjectName::new(ObjectKind::Index, id)).expect("deletes");
            }
            repo.refresh().expect("refreshes");
        }
    }

    #[test]
    fn a_panic_while_sealing_ends_the_writing_with_an_error() {
        let (_, repo) = repository();
        let mut writer = writer(&repo);
        writer.compress = |level, plain, verify| {
            if plain[0] % 8 == 3 { panic!("injected") } else { compress(level, plain, verify) }
        };
        let outcome = store(&mut writer, 100).and_then(|_| writer.finish().map(|_| 0));
        let error = outcome.expect_err("a segment is lost");
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[test]
    fn a_writer_that_is_finished_after_an_error_says_so() {
        let (_, repo) = repository();
        let mut writer = writer(&repo);
        writer.compress =
            |_, plain, _| if plain[0] % 2 == 0 { Err(std::io::Error::other("injected")) } else { Ok(plain.to_vec()) };
        let mut failed = 0;
        for _ in 0..4 {
            failed += usize::from(store(&mut writer, 60).is_err());
        }
        assert!(failed > 0);
        assert!(writer.finish().is_err());
    }
}
