//! From blobs to stored packs: each blob once, laid end to end in the order they come, segments sealed on all cores.
//!
//! Order is what keeps a repository whole: packs are durable before the index object that names them is written, and
//! that before the snapshot. One thread feeds a writer; it compresses on the pool and stores on a thread of its own.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use super::{Error, Repository, Result};
use crate::backend::{ObjectKind, ObjectName};
use crate::format::header::StoredKind;
use crate::format::index::{IndexedPack, PackedBlob, encode_blobs};
use crate::format::limits::{BLOB_LEN_MAX, SEGMENT_LEN};
use crate::format::pack::{FOOTER_LEN, Footer, SegmentTable, padded_len};
use crate::format::{index, object};
use crate::id::{BlobId, BlobKind, ObjectId};
use crate::pool::{Pool, Urgency};
use crate::seal::{BLOB_TABLE_UNIT, Compressor, SEGMENT_TABLE_UNIT, Sealer, TAG_LEN};

/// Stored bytes of a full pack. A power of two, so that full packs need hardly any padding.
pub const PACK_LEN_DEFAULT: u64 = 16 << 20;
/// A pack is closed when it is estimated to come this close to its full length: what the estimate may be wrong by.
const PACK_MARGIN: u64 = 96 << 10;
/// One segment of data in this many is decompressed again and compared before it is stored.
const VERIFY_ONE_IN: u32 = 8;
/// Most plain bytes of a pack, so that offsets and tables stay small even if everything compresses to nothing.
const PACK_PLAIN_LEN_MAX: u32 = 256 << 20;
/// Blobs that are written without an index object at most: bounds memory and what an interrupted run has to repeat.
const BLOBS_UNINDEXED_MAX: usize = 256 << 10;

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
    /// zstd level.
    pub level: i32,
    /// Stored length of a full pack in bytes.
    pub pack_len: u64,
}

/// zstd level of `--compression auto`.
pub const LEVEL_DEFAULT: i32 = 1;

impl Default for WriteOptions {
    fn default() -> Self {
        Self { level: LEVEL_DEFAULT, pack_len: PACK_LEN_DEFAULT }
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
    /// It holds trees and lists: all of its segments are verified.
    is_metadata: bool,
    sealer: Arc<Sealer>,
    blobs: Vec<PackedBlob>,
    plain_len: u32,
    units: u32,
    /// Plain bytes of the segment that is not full yet.
    tail: Vec<u8>,
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
}

/// Stores blobs. Feed it from one thread; call [`Writer::finish`] or nothing it did is referenced.
pub struct Writer {
    repo: Arc<Repository>,
    pool: Arc<Pool>,
    options: WriteOptions,
    next_number: u64,
    /// The pack being filled, for data and for trees.
    open: [Option<Pack>; 2],
    closing: Vec<Pack>,
    /// Ids in packs that are not stored yet.
    pending: HashSet<BlobId>,
    segments_in_flight: usize,
    segment_sender: std::sync::mpsc::Sender<Sealed>,
    segment_receiver: Receiver<Sealed>,
    upload: Option<SyncSender<Finished>>,
    uploaded: Receiver<Result<IndexedPack>>,
    uploader: Option<JoinHandle<()>>,
    unindexed: Vec<IndexedPack>,
    blobs_unindexed: usize,
    stats: WriteStats,
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

fn system(op: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::System { op, source }
}

impl Writer {
    /// A writer into `repo` that compresses on `pool`.
    pub fn new(repo: Arc<Repository>, pool: Arc<Pool>, options: WriteOptions) -> Result<Writer> {
        let (segment_sender, segment_receiver) = channel();
        let (upload, to_upload) = sync_channel::<Finished>(0);
        let (report, uploaded) = channel();
        let uploading = repo.clone();
        let uploader = std::thread::Builder::new()
            .name("upload".to_owned())
            .spawn(move || {
                for pack in to_upload {
                    let id = ObjectId::of(&pack.bytes);
                    let put = uploading.backend.put(ObjectName::new(ObjectKind::Pack, id), &pack.bytes);
                    let stored = IndexedPack { id, len: pack.bytes.len() as u64, blobs: pack.blobs };
                    let failed = put.is_err();
                    if report.send(put.map(|()| stored).map_err(Error::from)).is_err() || failed {
                        return;
                    }
                }
            })
            .map_err(system("start a thread"))?;
        Ok(Writer {
            repo,
            pool,
            options,
            next_number: 0,
            open: [None, None],
            closing: Vec::new(),
            pending: HashSet::new(),
            segments_in_flight: 0,
            segment_sender,
            segment_receiver,
            upload: Some(upload),
            uploaded,
            uploader: Some(uploader),
            unindexed: Vec::new(),
            blobs_unindexed: 0,
            stats: WriteStats::default(),
        })
    }

    /// Whether the repository or this writer has the blob already.
    pub fn has(&self, id: &BlobId) -> bool {
        self.pending.contains(id) || self.repo.locate(id).is_some()
    }

    /// Stores `plain` under its id `id`, unless it is there. Returns whether it was new.
    pub fn store(&mut self, kind: BlobKind, id: BlobId, plain: &[u8]) -> Result<bool> {
        assert!((1..=BLOB_LEN_MAX).contains(&plain.len()), "a blob has 1 to {BLOB_LEN_MAX} bytes, not {}", plain.len());
        if self.has(&id) {
            return Ok(false);
        }
        self.pending.insert(id);
        self.collect(false)?;
        let slot = usize::from(kind != BlobKind::Data);
        if self.open[slot].as_ref().is_some_and(|pack| pack.is_full_with(plain.len(), &self.options)) {
            self.close(slot)?;
        }
        if self.open[slot].is_none() {
            self.open[slot] = Some(self.new_pack(slot != 0)?);
        }
        let pack = self.open[slot].as_mut().expect("just opened");
        pack.blobs.push(PackedBlob { kind, id, len: plain.len() as u32 });
        pack.plain_len += plain.len() as u32;
        let mut rest = plain;
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(SEGMENT_LEN - pack.tail.len()));
            pack.tail.extend_from_slice(head);
            rest = tail;
            if pack.tail.len() == SEGMENT_LEN {
                Self::seal_tail(pack, &self.pool, &self.segment_sender, self.options.level);
                self.segments_in_flight += 1;
            }
        }
        match kind {
            BlobKind::Data => self.stats.data_blobs += 1,
            BlobKind::Tree | BlobKind::List => self.stats.tree_blobs += 1,
        }
        self.stats.plain_bytes += plain.len() as u64;
        Ok(true)
    }

    fn new_pack(&mut self, is_metadata: bool) -> Result<Pack> {
        let sealer =
            Sealer::new(&self.repo.keys, &self.repo.id, StoredKind::Pack).map_err(system("read random bytes"))?;
        // Once, so that a pack is not copied as it grows; untouched memory costs nothing.
        let mut stored = Vec::with_capacity((self.options.pack_len + (1 << 20)) as usize);
        stored.extend_from_slice(&sealer.header());
        self.next_number += 1;
        Ok(Pack {
            number: self.next_number,
            is_metadata,
            offsets: vec![stored.len() as u32],
            sealed_len: stored.len() as u64,
            sealer: Arc::new(sealer),
            blobs: Vec::new(),
            plain_len: 0,
            units: 0,
            tail: Vec::new(),
            stored,
            early: BTreeMap::new(),
            plain_in_flight: 0,
        })
    }

    fn seal_tail(pack: &mut Pack, pool: &Pool, sender: &std::sync::mpsc::Sender<Sealed>, level: i32) {
        let plain = std::mem::replace(&mut pack.tail, Vec::with_capacity(SEGMENT_LEN));
        let (number, unit, sealer, sender) = (pack.number, pack.units, pack.sealer.clone(), sender.clone());
        let verify = pack.is_metadata || unit.is_multiple_of(VERIFY_ONE_IN);
        pack.units += 1;
        pack.plain_in_flight += plain.len();
        pool.submit(Urgency::Urgent, move || {
            let sealed =
                compress(level, &plain, verify).map(|compressed| sealer.seal(u64::from(unit), plain.len(), compressed));
            // The receiver is gone only if the writer was dropped, and then nobody wants the segment.
            let _ = sender.send(Sealed { pack: number, unit, plain_len: plain.len(), bytes: sealed });
        });
    }

    fn close(&mut self, slot: usize) -> Result<()> {
        let Some(mut pack) = self.open[slot].take() else { return Ok(()) };
        if !pack.tail.is_empty() {
            Self::seal_tail(&mut pack, &self.pool, &self.segment_sender, self.options.level);
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
                // This writer holds a sender, so the channel cannot close; a job that panicked would never answer, but
                // sealing has no panic to offer.
                self.segment_receiver.recv().ok()
            } else {
                self.segment_receiver.try_recv().ok()
            };
            let Some(sealed) = sealed else { break };
            self.segments_in_flight -= 1;
            let bytes = sealed.bytes.map_err(system("compress a segment"))?;
            let mut packs = self.open.iter_mut().flatten().chain(&mut self.closing);
            let pack = packs.find(|pack| pack.number == sealed.pack).expect("a pack waits for all of its segments");
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
            let upload = self.upload.as_ref().expect("open until finish");
            if upload.send(finished).is_err() {
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
        self.unindexed.push(pack);
        if self.blobs_unindexed >= BLOBS_UNINDEXED_MAX { self.write_index() } else { Ok(()) }
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
        self.blobs_unindexed = 0;
        Ok(())
    }

    /// Makes everything durable: the last packs, then the index. Only after that may a snapshot name its blobs.
    pub fn finish(mut self) -> Result<WriteStats> {
        self.close(0)?;
        self.close(1)?;
        self.collect(true)?;
        assert!(self.closing.is_empty(), "all segments are back, so all packs are complete");
        self.upload = None;
        while let Ok(stored) = self.uploaded.recv() {
            self.stored(stored?)?;
        }
        if let Some(uploader) = self.uploader.take() {
            let _ = uploader.join();
        }
        self.write_index()?;
        assert!(self.pending.is_empty(), "every blob is in a stored pack");
        Ok(self.stats)
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
        self.stored.resize(padded - end, 0);
        let footer = Footer {
            blob_table_offset: self.stored.len() as u32,
            blob_table_sealed_len: sealed_blobs.len() as u32,
            blob_table_plain_len: blob_table.len() as u32,
            segment_table_sealed_len: sealed_segments.len() as u32,
            segment_table_plain_len: segment_table.len() as u32,
        };
        debug_assert!(sealed_blobs.len() >= TAG_LEN);
        self.stored.extend_from_slice(&sealed_blobs);
        self.stored.extend_from_slice(&sealed_segments);
        self.stored.extend_from_slice(&footer.encode());
        Ok(Finished { bytes: self.stored, blobs: self.blobs })
    }
}
