//! Writes index files: sorted batches and existing files in, one sorted file out, in one pass and bounded memory.
//!
//! What is held while merging: one block for output, a number for each pack, half a byte of fan-out for each record.
//! Packs of index objects that are gone, or that an earlier input covers already, are left out with their records, so
//! the outcome is the same whatever files the inputs lay in.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashSet};
use std::io::{self, Write};

use super::file::{BLOCK_LEN, HASH_LEN, IndexFile, Layout, PackEntry, RECORD_LEN, RECORDS_MAX, Reader, Record, prefix};
use super::{Damaged, PackInfo, locations};
use crate::format::index::IndexedPack;
use crate::id::{BlobId, ObjectId, RepositoryId};

/// Pack or index object that is not in the output.
const DROPPED: u32 = u32::MAX;

/// Records and packs of index objects, in memory, on their way into a file.
#[derive(Default)]
pub(super) struct Batch {
    records: Vec<Record>,
    packs: Vec<PackEntry>,
    objects: Vec<ObjectId>,
}

impl Batch {
    /// Takes in the packs of `object`.
    pub(super) fn push<'a>(&mut self, object: ObjectId, packs: impl IntoIterator<Item = &'a IndexedPack>) {
        let object_number = self.objects.len() as u32;
        self.objects.push(object);
        for pack in packs {
            let info = PackInfo { id: pack.id, len: pack.len };
            let number = self.packs.len() as u32;
            self.packs.push(PackEntry { info, object: object_number });
            self.records.extend(locations(pack).map(|(id, offset, len)| Record { id, pack: number, offset, len }));
        }
    }

    /// Takes in a pack of `object`, whose other packs come right before or after it, and numbers it.
    pub(super) fn push_pack(&mut self, object: ObjectId, info: PackInfo) -> u32 {
        if self.objects.last() != Some(&object) {
            self.objects.push(object);
        }
        self.packs.push(PackEntry { info, object: self.objects.len() as u32 - 1 });
        self.packs.len() as u32 - 1
    }

    /// Takes in a record of a pack that was pushed.
    pub(super) fn push_record(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Number of records.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Index objects covered.
    pub(super) fn objects(&self) -> &[ObjectId] {
        &self.objects
    }

    /// Sorts the records, as merging requires.
    pub(super) fn sort(&mut self) {
        self.records.sort_unstable_by(|a, b| {
            prefix(&a.id.0).cmp(&prefix(&b.id.0)).then_with(|| (a.id, a.pack, a.offset).cmp(&(b.id, b.pack, b.offset)))
        });
    }
}

/// One input of a merge.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    File(&'a IndexFile),
    Batch(&'a Batch),
}

/// Why a merge failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// An input file is damaged, and marked so.
    Damaged,
    /// The output could not be written.
    Io(#[expect(dead_code, reason = "seen by a debugger only: the caller tries elsewhere")] io::Error),
}

impl From<Damaged> for Failure {
    fn from(_: Damaged) -> Self {
        Failure::Damaged
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl<'a> Input<'a> {
    fn record_count(self) -> u64 {
        match self {
            Input::File(file) => file.record_count(),
            Input::Batch(batch) => batch.records.len() as u64,
        }
    }

    fn objects(self) -> &'a [ObjectId] {
        match self {
            Input::File(file) => file.objects(),
            Input::Batch(batch) => &batch.objects,
        }
    }

    fn records(self) -> Records<'a> {
        match self {
            Input::File(file) => Records::File(file.records()),
            Input::Batch(batch) => Records::Batch(batch.records.iter()),
        }
    }

    fn packs(self) -> &'a [PackEntry] {
        match self {
            Input::File(file) => file.packs(),
            Input::Batch(batch) => &batch.packs,
        }
    }

    fn is_damaged(self) -> bool {
        matches!(self, Input::File(file) if file.is_damaged())
    }
}

/// The records of an input that are still to be read.
enum Records<'a> {
    File(Reader<'a, RECORD_LEN>),
    Batch(std::slice::Iter<'a, Record>),
}

/// Where an input's reading stands, and how its numbers translate into those of the output.
struct Cursor<'a> {
    input: Input<'a>,
    records: Records<'a>,
    /// Output numbers of its index objects, or [`DROPPED`].
    objects: Vec<u32>,
    /// Output numbers of its packs, or [`DROPPED`].
    packs: Vec<u32>,
}

impl Cursor<'_> {
    /// The next record that is not dropped, with its number in the output.
    #[inline]
    fn next(&mut self) -> Result<Option<Record>, Damaged> {
        loop {
            let next = match &mut self.records {
                Records::File(records) => records.next_record()?,
                Records::Batch(records) => records.next().copied(),
            };
            let Some(mut record) = next else {
                return Ok(None);
            };
            record.pack = self.packs[record.pack as usize];
            if record.pack != DROPPED {
                return Ok(Some(record));
            }
        }
    }
}

/// Order of records in the heap: by id, then as the inputs were given.
type Head = Reverse<(u64, BlobId, usize, u32, u32, u32)>;

fn head(record: Record, cursor: usize) -> Head {
    Reverse((prefix(&record.id.0), record.id, cursor, record.pack, record.offset, record.len))
}

/// Merges `inputs` into `out`: an index file of `repository` that covers their index objects as far as they are `live`.
pub(super) fn merge(
    inputs: &[Input<'_>],
    repository: RepositoryId,
    live: &dyn Fn(&ObjectId) -> bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut objects: Vec<ObjectId> = Vec::new();
    let mut seen: HashSet<ObjectId> = HashSet::new();
    let mut pack_count = 0u32;
    let mut cursors = Vec::with_capacity(inputs.len());
    for &input in inputs {
        let mut numbers = Vec::with_capacity(input.objects().len());
        for object in input.objects() {
            let kept = live(object) && seen.insert(*object);
            numbers.push(if kept { objects.len() as u32 } else { DROPPED });
            objects.extend(kept.then_some(*object));
        }
        let mut packs = Vec::new();
        for entry in input.packs() {
            let kept = numbers[entry.object as usize] != DROPPED;
            packs.push(if kept { pack_count } else { DROPPED });
            pack_count += u32::from(kept);
        }
        cursors.push(Cursor { input, records: input.records(), objects: numbers, packs });
    }

    let mut out = BlockWriter { out, block: Vec::with_capacity(BLOCK_LEN), hashes: Vec::new() };
    let most = inputs.iter().map(|input| input.record_count()).sum();
    let bits = Layout::bits_for(most);
    let (records, fan_out) = write_records(&mut cursors, bits, &mut out)?;
    for entry in fan_out {
        out.write(&entry.to_le_bytes())?;
    }
    for cursor in &cursors {
        for entry in cursor.input.packs() {
            let object = cursor.objects[entry.object as usize];
            if object != DROPPED {
                out.write(&PackEntry { object, ..*entry }.to_bytes())?;
            }
        }
    }
    for object in &objects {
        out.write(&object.0)?;
    }
    if inputs.iter().any(|input| input.is_damaged()) {
        return Err(Failure::Damaged);
    }
    let packs = u64::from(pack_count);
    out.finish(Layout { bits, records, packs, objects: objects.len() as u64 }, repository)?;
    Ok(())
}

/// Writes the records of all `cursors` in order; returns their number and the fan-out table.
fn write_records(cursors: &mut [Cursor<'_>], bits: u32, out: &mut BlockWriter<'_>) -> Result<(u64, Vec<u32>), Failure> {
    let mut fan_out = vec![0u32; (1 << bits) + 1];
    let mut slots_done = 0;
    let mut records = 0u64;
    let mut put = |record: Record| -> Result<(), Failure> {
        let slot = Layout::slot(bits, prefix(&record.id.0));
        while slots_done <= slot {
            fan_out[slots_done] = records as u32;
            slots_done += 1;
        }
        records += 1;
        if records > RECORDS_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        Ok(out.write(&record.to_bytes())?)
    };
    if let [only] = cursors {
        while let Some(record) = only.next()? {
            put(record)?;
        }
    } else {
        let mut heap: BinaryHeap<Head> = BinaryHeap::with_capacity(cursors.len());
        for (number, cursor) in cursors.iter_mut().enumerate() {
            heap.extend(cursor.next()?.map(|record| head(record, number)));
        }
        while let Some(mut first) = heap.peek_mut() {
            let Reverse((_, id, cursor, pack, offset, len)) = *first;
            put(Record { id, pack, offset, len })?;
            match cursors[cursor].next()? {
                Some(record) => *first = head(record, cursor),
                None => {
                    PeekMut::pop(first);
                }
            }
        }
    }
    fan_out[slots_done..].fill(records as u32);
    Ok((records, fan_out))
}

/// Writes a file's body and keeps the hash of each of its blocks.
struct BlockWriter<'a> {
    out: &'a mut dyn Write,
    block: Vec<u8>,
    hashes: Vec<u8>,
}

impl BlockWriter<'_> {
    #[inline]
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.block.len() + bytes.len() >= BLOCK_LEN {
            let (now, later) = bytes.split_at(BLOCK_LEN - self.block.len());
            self.block.extend_from_slice(now);
            bytes = later;
            self.flush()?;
        }
        self.block.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hashes.extend_from_slice(blake3::hash(&self.block).as_bytes());
        self.out.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self, layout: Layout, repository: RepositoryId) -> io::Result<()> {
        if !self.block.is_empty() {
            self.flush()?;
        }
        debug_assert_eq!(self.hashes.len() % HASH_LEN, 0);
        self.out.write_all(&self.hashes)?;
        self.out.write_all(&layout.footer(repository, &self.hashes))?;
        self.out.flush()
    }
}
