//! A local index file: records sorted by blob id, immutable once written, readable by any number of processes.
//!
//! ```text
//! records   32 bytes each: blob id 20 | pack number 4 | offset 4 | length 4      sorted by blob id
//! fan-out   4 bytes each: number of the first record of a slot                  2^bits slots and one end
//! packs     48 bytes each: pack id 32 | stored length 8 | object number 4 | 0 4  in order of their number
//! objects   32 bytes each: ids of the index objects that the file covers
//! hashes    32 bytes each: BLAKE3 of each 64 KiB of all the above
//! footer    magic 8 | version 4 | bits 4 | records 8 | packs 8 | objects 8 | repository id 32 | BLAKE3 of hashes and footer 32
//! ```
//!
//! Integers are little-endian. A slot holds the records whose ids begin with the same `bits` bits, [`SLOT_RECORDS`] on
//! average, so a hit or a miss touches one fan-out entry and one slot. The footer and the hashes are checked when the
//! file is opened, the packs and objects are then copied to memory, and each 64 KiB of the rest is checked when it is first
//! touched: nothing is believed that was not checked.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::mapping::Mapping;
use super::{Damaged, PackInfo};
use crate::format::codec::Decoder;
use crate::id::{BLOB_ID_LEN, BlobId, ObjectId, RepositoryId};

/// Bytes of a record.
pub(super) const RECORD_LEN: usize = 32;
/// Bytes of an entry of the pack table.
pub(super) const PACK_LEN: usize = 48;
/// Bytes of an object id or a hash.
pub(super) const HASH_LEN: usize = 32;
/// Bytes that one hash vouches for.
pub(super) const BLOCK_LEN: usize = 64 << 10;
/// Blocks after which reading straight through lets go of the pages read.
const RELEASE_BLOCKS: u64 = 64;
/// Records that a slot of the fan-out table should hold on average.
pub(super) const SLOT_RECORDS: u64 = 8;
/// Most bits of the fan-out table.
const BITS_MAX: u32 = 28;
/// Most records of a file: the fan-out counts them in 32 bits.
pub(super) const RECORDS_MAX: u64 = u32::MAX as u64;
/// Bytes of the footer.
pub(super) const FOOTER_LEN: usize = 8 + 4 + 4 + 3 * 8 + 32 + 32;
const MAGIC: [u8; 8] = *b"bgindex\0";
const VERSION: u32 = 2;

/// Where one blob lies, with the pack's number in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: BlobId,
    pub(super) pack: u32,
    pub(super) offset: u32,
    /// Length in the pack's plaintext, its top bit set for a delta.
    pub(super) len: u32,
}

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..BLOB_ID_LEN].copy_from_slice(&self.id.0);
        bytes[20..24].copy_from_slice(&self.pack.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.offset.to_le_bytes());
        bytes[28..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_LEN]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut id = BlobId([0; BLOB_ID_LEN]);
        id.0.copy_from_slice(&bytes[..BLOB_ID_LEN]);
        Self { id, pack: word(20), offset: word(24), len: word(28) }
    }
}

/// The first eight bytes of an id as a number that sorts like the id.
#[inline]
pub(super) fn prefix(id: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id[..8]);
    u64::from_be_bytes(bytes)
}

/// A pack and the index object that lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackEntry {
    pub(super) info: PackInfo,
    /// Number of the index object in the file's object list.
    pub(super) object: u32,
}

impl PackEntry {
    pub(super) fn to_bytes(self) -> [u8; PACK_LEN] {
        let mut bytes = [0; PACK_LEN];
        bytes[..32].copy_from_slice(&self.info.id.0);
        bytes[32..40].copy_from_slice(&self.info.len.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.object.to_le_bytes());
        bytes
    }
}

/// Counts from which a file's layout follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) bits: u32,
    pub(super) records: u64,
    pub(super) packs: u64,
    pub(super) objects: u64,
}

impl Layout {
    /// Bits of a fan-out table for `records` records.
    pub(super) fn bits_for(records: u64) -> u32 {
        (records / SLOT_RECORDS).checked_ilog2().map_or(0, |bits| (bits + 1).min(BITS_MAX))
    }

    /// The slot of an id with this prefix.
    #[inline]
    pub(super) fn slot(bits: u32, prefix: u64) -> usize {
        prefix.checked_shr(64 - bits).unwrap_or(0) as usize
    }

    fn fan_out_at(&self) -> u64 {
        self.records * RECORD_LEN as u64
    }

    fn packs_at(&self) -> u64 {
        self.fan_out_at() + ((1 << self.bits) + 1) * 4
    }

    fn objects_at(&self) -> u64 {
        self.packs_at() + self.packs * PACK_LEN as u64
    }

    fn hashes_at(&self) -> u64 {
        self.objects_at() + self.objects * HASH_LEN as u64
    }

    fn file_len(&self) -> u64 {
        let blocks = self.hashes_at().div_ceil(BLOCK_LEN as u64);
        self.hashes_at() + blocks * HASH_LEN as u64 + FOOTER_LEN as u64
    }

    /// The footer of a file with these counts and block hashes.
    pub(super) fn footer(&self, repository: RepositoryId, hashes: &[u8]) -> Vec<u8> {
        let mut footer = Vec::with_capacity(FOOTER_LEN);
        footer.extend_from_slice(&MAGIC);
        footer.extend_from_slice(&VERSION.to_le_bytes());
        footer.extend_from_slice(&self.bits.to_le_bytes());
        for count in [self.records, self.packs, self.objects] {
            footer.extend_from_slice(&count.to_le_bytes());
        }
        footer.extend_from_slice(&repository.0);
        let hash = blake3::Hasher::new().update(hashes).update(&footer).finalize();
        footer.extend_from_slice(hash.as_bytes());
        footer
    }

    /// Reads the footer of a file of `repository`; `None` for anything else, whatever the reason.
    fn read(file: &[u8], repository: RepositoryId) -> Option<Self> {
        let footer = &file[file.len().checked_sub(FOOTER_LEN)?..];
        let mut input = Decoder::new(footer);
        if input.array("magic").ok()? != MAGIC || input.u32("version").ok()? != VERSION {
            return None;
        }
        let bits = input.u32("fan-out bits").ok()?;
        let mut count = || input.u64("count").ok();
        let (records, packs, objects) = (count()?, count()?, count()?);
        let most = file.len() as u64 / RECORD_LEN as u64;
        if bits > BITS_MAX || [records, packs, objects].iter().any(|count| *count > most.min(u64::from(u32::MAX))) {
            return None;
        }
        let layout = Layout { bits, records, packs, objects };
        if layout.file_len() != file.len() as u64 {
            return None;
        }
        let hashes = &file[layout.hashes_at() as usize..file.len() - FOOTER_LEN];
        (layout.footer(repository, hashes) == footer).then_some(layout)
    }
}

/// An open index file.
pub(super) struct IndexFile {
    /// Where it lies; `None` if nobody else can find it.
    path: Option<PathBuf>,
    bytes: Mapping,
    layout: Layout,
    packs: Box<[PackEntry]>,
    objects: Box<[ObjectId]>,
    /// One bit for each block that was found to be as written.
    checked: Vec<AtomicU64>,
    damaged: AtomicBool,
}

impl IndexFile {
    /// Opens the file at `path`; `None` if it is not a whole index file of `repository`.
    pub(super) fn open(path: &Path, repository: RepositoryId) -> Option<Self> {
        // Whatever else bears such a name must not make us wait.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mapping = Mapping::of_file(&file).ok()?;
        Self::new(mapping, Some(path.to_owned()), repository)
    }

    /// An index file of `repository` in `bytes`; `None` if it is not a whole one.
    pub(super) fn new(bytes: Mapping, path: Option<PathBuf>, repository: RepositoryId) -> Option<Self> {
        let layout = Layout::read(&bytes, repository)?;
        let blocks = layout.hashes_at().div_ceil(BLOCK_LEN as u64);
        let checked = (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let (packs, objects) = Default::default();
        let damaged = AtomicBool::new(false);
        let mut file = Self { path, bytes, layout, packs, objects, checked, damaged };
        let mut packs = Reader::<PACK_LEN>::new(&file, layout.packs_at(), layout.objects_at());
        let packs = std::iter::from_fn(|| packs.next().transpose());
        let packs = packs.map(|entry| parse_pack(&entry.ok()?)).collect::<Option<Box<[PackEntry]>>>()?;
        let mut objects = Reader::<HASH_LEN>::new(&file, layout.objects_at(), layout.hashes_at());
        let objects = std::iter::from_fn(|| objects.next().transpose());
        let objects = objects.map(|id| Some(ObjectId(id.ok()?))).collect::<Option<Box<[ObjectId]>>>()?;
        if packs.iter().any(|entry| entry.object as usize >= objects.len()) {
            return None;
        }
        (file.packs, file.objects) = (packs, objects);
        Some(file)
    }

    /// Where it lies; `None` if nobody else can find it.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Number of records.
    pub(super) fn record_count(&self) -> u64 {
        self.layout.records
    }

    /// Its packs in the order of their numbers.
    pub(super) fn packs(&self) -> &[PackEntry] {
        &self.packs
    }

    /// Index objects whose packs are all here.
    pub(super) fn objects(&self) -> &[ObjectId] {
        &self.objects
    }

    /// Whether anything in it was found not to be as written.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed) || self.bytes.is_lost()
    }

    /// The first record of `id` that `accept` takes.
    #[inline]
    pub(super) fn find(&self, id: &BlobId, accept: impl Fn(&Record) -> bool) -> Result<Option<Record>, Damaged> {
        if self.is_damaged() {
            return Err(Damaged);
        }
        let wanted = prefix(&id.0);
        let (from, to) = self.slot(wanted)?;
        let records = self.section(from * RECORD_LEN as u64, to * RECORD_LEN as u64)?;
        let (records, _) = records.as_chunks::<RECORD_LEN>();
        // A slot of usual size is read straight through: that beats jumping about in two cache lines.
        let first = if records.len() > 8 * SLOT_RECORDS as usize {
            records.partition_point(|record| record[..BLOB_ID_LEN] < id.0[..])
        } else {
            let before = records.iter().position(|record| {
                let found = prefix(record);
                found > wanted || found == wanted && record[..BLOB_ID_LEN] >= id.0[..]
            });
            before.unwrap_or(records.len())
        };
        let found = records[first..]
            .iter()
            .take_while(|record| record[..BLOB_ID_LEN] == id.0[..])
            .map(Record::from_bytes)
            .find(|record| !self.has_pack(record) || accept(record));
        if found.is_some_and(|record| !self.has_pack(&record)) {
            return Err(self.damage());
        }
        // Pages lost during the search read as zeros: then what was found, or not, means nothing.
        if self.bytes.is_lost() { Err(Damaged) } else { Ok(found) }
    }

    fn has_pack(&self, record: &Record) -> bool {
        u64::from(record.pack) < self.layout.packs
    }

    /// Checks again everything that an answer about `id` rests on, though it was checked before.
    pub(super) fn recheck(&self, id: &BlobId) -> Result<(), Damaged> {
        let entry = self.layout.fan_out_at() + Layout::slot(self.layout.bits, prefix(&id.0)) as u64 * 4;
        self.forget(entry, entry + 8);
        let (from, to) = self.slot(prefix(&id.0))?;
        let (from, to) = (from * RECORD_LEN as u64, to * RECORD_LEN as u64);
        self.forget(from, to);
        self.section(from, to)?;
        if self.is_damaged() { Err(Damaged) } else { Ok(()) }
    }

    /// Every record in order, from bytes checked anew.
    pub(super) fn records(&self) -> Reader<'_, RECORD_LEN> {
        Reader::new(self, 0, self.layout.fan_out_at())
    }

    /// Numbers of the first record of the slot of `prefix` and of the first one after it.
    #[inline]
    fn slot(&self, prefix: u64) -> Result<(u64, u64), Damaged> {
        let at = self.layout.fan_out_at() + Layout::slot(self.layout.bits, prefix) as u64 * 4;
        let entry = self.section(at, at + 8)?;
        let word = |at: usize| u64::from(u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]));
        let (from, to) = (word(0), word(4));
        if from > to || to > self.layout.records {
            return Err(self.damage());
        }
        Ok((from, to))
    }

    /// Bytes `from..to` of the file, which lie before the hashes, once their blocks are checked.
    #[inline]
    fn section(&self, from: u64, to: u64) -> Result<&[u8], Damaged> {
        let mut block = from / BLOCK_LEN as u64;
        while block * (BLOCK_LEN as u64) < to {
            let bit = 1 << (block % 64);
            if self.checked[(block / 64) as usize].load(Ordering::Relaxed) & bit == 0 {
                self.check(block)?;
            }
            block += 1;
        }
        Ok(&self.bytes[from as usize..to as usize])
    }

    /// A block of the body and the hash that it must have.
    fn block(&self, number: u64) -> (&[u8], &[u8]) {
        let end = self.layout.hashes_at();
        let from = number * BLOCK_LEN as u64;
        let to = end.min(from + BLOCK_LEN as u64);
        let hash_at = (end + number * HASH_LEN as u64) as usize;
        (&self.bytes[from as usize..to as usize], &self.bytes[hash_at..hash_at + HASH_LEN])
    }

    #[cold]
    fn check(&self, number: u64) -> Result<(), Damaged> {
        let (bytes, hash) = self.block(number);
        if blake3::hash(bytes).as_bytes()[..] != *hash || self.bytes.is_lost() {
            return Err(self.damage());
        }
        self.checked[(number / 64) as usize].fetch_or(1 << (number % 64), Ordering::Relaxed);
        Ok(())
    }

    /// Makes the blocks of bytes `from..to` count as not yet checked.
    fn forget(&self, from: u64, to: u64) {
        for block in from / BLOCK_LEN as u64..to.div_ceil(BLOCK_LEN as u64) {
            if let Some(word) = self.checked.get((block / 64) as usize) {
                word.fetch_and(!(1 << (block % 64)), Ordering::Relaxed);
            }
        }
    }

    #[cold]
    fn damage(&self) -> Damaged {
        self.damaged.store(true, Ordering::Relaxed);
        Damaged
    }
}

/// Reads a section from start to end. It checks a copy of each block, not the block: what is written elsewhere from here
/// is what was checked, even if the file changes meanwhile.
pub(super) struct Reader<'a, const LEN: usize> {
    file: &'a IndexFile,
    at: u64,
    end: u64,
    block: Vec<u8>,
    /// Offset of `block` in the file.
    block_at: u64,
}

impl<'a, const LEN: usize> Reader<'a, LEN> {
    fn new(file: &'a IndexFile, at: u64, end: u64) -> Self {
        Self { file, at, end, block: Vec::new(), block_at: 0 }
    }

    /// The next item, `None` at the end.
    #[inline]
    fn next(&mut self) -> Result<Option<[u8; LEN]>, Damaged> {
        if self.at >= self.end {
            return Ok(None);
        }
        let mut item = [0; LEN];
        let mut filled = 0;
        while filled < LEN {
            let in_block = (self.at - self.block_at) as usize;
            if self.block.is_empty() || in_block >= self.block.len() {
                self.fill()?;
                continue;
            }
            let len = (LEN - filled).min(self.block.len() - in_block);
            item[filled..filled + len].copy_from_slice(&self.block[in_block..in_block + len]);
            filled += len;
            self.at += len as u64;
        }
        Ok(Some(item))
    }

    #[cold]
    fn fill(&mut self) -> Result<(), Damaged> {
        let number = self.at / BLOCK_LEN as u64;
        if number.is_multiple_of(RELEASE_BLOCKS) {
            let to = number * BLOCK_LEN as u64;
            self.file.bytes.release(to.saturating_sub(RELEASE_BLOCKS * BLOCK_LEN as u64) as usize, to as usize);
        }
        let (bytes, hash) = self.file.block(number);
        self.block.clear();
        self.block.extend_from_slice(bytes);
        self.block_at = number * BLOCK_LEN as u64;
        if blake3::hash(&self.block).as_bytes()[..] != *hash || self.file.is_damaged() {
            return Err(self.file.damage());
        }
        Ok(())
    }
}

impl Reader<'_, RECORD_LEN> {
    /// The next record, `None` at the end.
    #[inline]
    pub(super) fn next_record(&mut self) -> Result<Option<Record>, Damaged> {
        let Some(record) = self.next()?.map(|record| Record::from_bytes(&record)) else {
            return Ok(None);
        };
        if !self.file.has_pack(&record) {
            return Err(self.file.damage());
        }
        Ok(Some(record))
    }
}

fn parse_pack(entry: &[u8]) -> Option<PackEntry> {
    let mut input = Decoder::new(entry);
    let info = PackInfo { id: ObjectId(input.array("pack id").ok()?), len: input.u64("pack length").ok()? };
    Some(PackEntry { info, object: input.u32("object number").ok()? })
}
