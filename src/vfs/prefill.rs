//! What the kernel is given before anybody asks for it.
//!
//! A request costs more than the bytes that it asks for. So whoever reads small files in the order of the walk finds the
//! next ones in the page cache already, and a read in the middle of a large file brings along what was decoded with it.
//! Nothing tells whether such bytes were used; so one file in the middle of each window is left out, and the request for
//! it tells that its reader has come so far. Failures are ignored: the reader meets them itself.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::format::tree::Kind;
use crate::index::{Location, PackNumber};

use super::cache::Cache;
use super::content::File;
use super::inode::{Inode, NodeAt};
use super::{PAGE_LEN, Vfs, Wait};

/// Longest file that is handed over whole to whoever reads one after the other; the kernel's own read-ahead does well on
/// longer ones.
const FILE_LEN_MAX: u64 = 512 << 10;
/// Longest read of a large file that counts as one in the middle: longer ones are read-ahead.
const AROUND_LEN_MAX: usize = 64 << 10;
/// Readers that are followed at once.
const READERS_MAX: usize = 16;
/// How far beyond what was handed over the next file may be: directories and links lie between, and what was skipped.
const SLACK: u32 = 64;
/// Nodes in the first window and in the longest one.
const WINDOW_MIN: u32 = 8;
const WINDOW_MAX: u32 = 512;
/// Bytes of a window.
const WINDOW_LEN_MAX: u64 = 4 << 20;
/// Files in a row that the kernel does not know, after which it is not asked about more: their directory was not listed yet.
const UNKNOWN_MAX: u32 = 4;
/// Segments remembered as handed over, so that a reader past the page cache does not cost a copy a request.
const SEGMENTS_KEPT: usize = 64;
/// Bytes of pages that lie in two units, kept until the other unit is decoded: at most some 8 MiB for each GiB of a file.
const BORDERS_LEN: usize = 8 << 20;
/// A large file is followed in steps of so many bytes.
const STEP_LEN: u64 = 128 << 10;
/// Longest file that is handed over whole once it is read in many places: what is not wanted of it costs time, too.
const SWEEP_LEN_MAX: u64 = 2 << 30;
/// It is read in many places when it was in one step of so many, and in so many in all.
const SWEEP_FROM_ONE_IN: u32 = 8;
const SWEEP_FROM_MIN: u32 = 16;
/// Steps that are handed over besides with each read from then on.
const SWEEP_STEPS: usize = 4;
/// Large files that are followed at once.
const SCATTERED_MAX: usize = 8;

/// Bytes to hand over.
#[derive(Debug, PartialEq, Eq)]
pub enum Prefill {
    /// The small files among these nodes of a snapshot.
    Files {
        /// Which reader they are for.
        reader: u64,
        /// The place where the snapshot appears.
        instance: u32,
        /// Nodes, by their place in the walk.
        ranks: Range<u32>,
    },
    /// What is stored with these bytes of a large file.
    Around {
        /// The file's inode number.
        number: u64,
        /// The bytes, at least one.
        bytes: Range<u64>,
    },
}

/// Takes bytes for the page cache: inode number, offset, bytes. Returns false if the kernel does not know the inode.
pub type Take<'t> = &'t mut dyn FnMut(u64, u64, &[u8]) -> bool;

/// A segment that a file lies in: the file's number, the pack, where in the pack it begins.
type SegmentOf = (u64, PackNumber, u32);

/// Whoever reads small files in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reader {
    id: u64,
    instance: u32,
    /// The node after the last one read.
    next: u32,
    /// The node after the last one handed over.
    until: u32,
    window: u32,
}

/// What is known of readers.
pub(super) struct Prefills {
    readers: Mutex<Readers>,
    /// Parts of pages that lie in two units, by the file's number and the page's offset.
    borders: Cache<(u64, u64), PagePart>,
    segments: Mutex<Vec<SegmentOf>>,
    /// The most recent last.
    scattered: Mutex<Vec<Scattered>>,
}

/// What one unit has of a page.
#[derive(Clone)]
struct PagePart {
    /// Where in the file it begins.
    start: u64,
    bytes: Arc<[u8]>,
}

impl PagePart {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// A large file that is read here and there.
struct Scattered {
    number: u64,
    /// Which steps were handed over.
    handed: Vec<bool>,
    count: u32,
    /// Reads of steps that had been handed over since the last time that all were forgotten.
    again: u32,
    /// Where to go on with those that nobody asked for.
    next: usize,
}

/// A run of a file's bytes that is decoded at once.
struct Unit {
    /// In whole pages; empty if it is less than one, never the wrong way round.
    bytes: Range<u64>,
    /// All of it.
    all: Range<u64>,
}

impl Unit {
    /// Which of the file's steps it counts as. In a file that is stored in one piece, each is the middle of one unit.
    fn step(&self) -> usize {
        (self.bytes.start.midpoint(self.bytes.end) / STEP_LEN) as usize
    }

    /// Whether it is about as much as a step; not so where a file is stored in many pieces.
    fn is_long(&self) -> bool {
        self.bytes.end - self.bytes.start >= STEP_LEN / 2
    }
}

impl Scattered {
    fn new(number: u64, size: u64) -> Self {
        let handed = vec![false; size.div_ceil(STEP_LEN) as usize];
        Self { number, handed, count: 0, again: 0, next: 0 }
    }

    fn is_dense(&self, count: u32) -> bool {
        count >= SWEEP_FROM_MIN && count as usize * SWEEP_FROM_ONE_IN as usize >= self.handed.len()
    }

    /// The step was read, and handed over: all of it, or one of the pieces that it is stored in.
    fn mark(&mut self, step: usize, whole: bool) {
        if step >= self.handed.len() || self.take(step) || !whole {
            return;
        }
        self.again += 1;
        // The kernel drops what it was given: more of it would not stay either, unless it is read as much again.
        if self.is_dense(self.again) {
            *self = Self { number: self.number, handed: vec![false; self.handed.len()], count: 0, again: 0, next: 0 };
        }
    }

    fn is_handed(&self, step: usize) -> bool {
        self.handed.get(step).is_some_and(|handed| *handed)
    }

    /// Whether the step is still to be handed over; from now on it is not.
    fn take(&mut self, step: usize) -> bool {
        match self.handed.get_mut(step) {
            Some(handed) if !*handed => {
                *handed = true;
                self.count += 1;
                true
            }
            _ => false,
        }
    }

    /// The next step to hand over although nobody asked for it.
    fn sweep(&mut self) -> Option<usize> {
        if !self.is_dense(self.count) {
            return None;
        }
        let step = self.next + self.handed[self.next..].iter().position(|handed| !handed)?;
        self.next = step + 1;
        self.take(step);
        Some(step)
    }
}

#[derive(Default)]
struct Readers {
    /// The most recent last.
    list: Vec<Reader>,
    count: u64,
}

impl Readers {
    /// The small file at `at` was read; returns for whom to hand over which nodes.
    fn advance(&mut self, at: NodeAt) -> Option<(u64, Range<u32>)> {
        let follows = |reader: &Reader| {
            let expected = reader.next..=reader.until.saturating_add(SLACK);
            reader.instance == at.instance && expected.contains(&at.rank)
        };
        let next = at.rank.saturating_add(1);
        let Some(position) = self.list.iter().rposition(follows) else {
            if self.list.len() == READERS_MAX {
                self.list.remove(0);
            }
            self.count += 1;
            self.list.push(Reader { id: self.count, instance: at.instance, next, until: next, window: 0 });
            return None;
        };
        let mut reader = self.list.remove(position);
        reader.next = next;
        reader.until = reader.until.max(next);
        let due = reader.until - reader.next <= reader.window / 2;
        let mut ranks = reader.until..reader.until;
        if due {
            reader.window = (reader.window * 2).clamp(WINDOW_MIN, WINDOW_MAX);
            reader.until = reader.next.saturating_add(reader.window);
            ranks.end = reader.until;
        }
        self.list.push(reader);
        (!ranks.is_empty()).then_some((reader.id, ranks))
    }

    /// Nodes from `rank` on were not handed over after all.
    fn stopped(&mut self, id: u64, rank: u32) {
        if let Some(reader) = self.list.iter_mut().find(|reader| reader.id == id) {
            reader.until = reader.until.min(rank).max(reader.next);
        }
    }
}

impl Prefills {
    pub(super) fn new() -> Self {
        let borders = Cache::new(BORDERS_LEN);
        Self { readers: Mutex::default(), borders, segments: Mutex::default(), scattered: Mutex::default() }
    }

    /// The segment was handed over.
    fn remember(&self, segment: SegmentOf) {
        let mut segments = self.segments.lock().expect("no panic while held");
        if segments.len() == SEGMENTS_KEPT {
            segments.remove(0);
        }
        segments.push(segment);
    }

    /// Puts the rest of a page of a file, of which `out` holds what `unit` has, into `out` if it was decoded before; returns
    /// whether it was. If not, what `unit` has is kept until then.
    fn complete(&self, number: u64, page: &Range<u64>, unit: &Range<u64>, out: &mut [u8]) -> bool {
        let (start, end) = (unit.start.max(page.start), unit.end.min(page.end));
        let is_rest = |part: &PagePart| {
            part.start == page.start && part.end() == start || part.start == end && part.end() == page.end
        };
        let key = (number, page.start);
        if let Some(rest) = self.borders.take(&key).filter(is_rest) {
            out[(rest.start - page.start) as usize..][..rest.bytes.len()].copy_from_slice(&rest.bytes);
            return true;
        }
        let bytes: Arc<[u8]> = out[(start - page.start) as usize..(end - page.start) as usize].into();
        let len = bytes.len();
        self.borders.put(key, PagePart { start, bytes }, len);
        false
    }

    /// What is known of a large file.
    fn scattered<T>(&self, number: u64, size: u64, with: impl FnOnce(&mut Scattered) -> T) -> T {
        let mut list = self.scattered.lock().expect("no panic while held");
        let known = list.iter().position(|scattered| scattered.number == number);
        if known.is_none() && list.len() == SCATTERED_MAX {
            list.remove(0);
        }
        let file = known.map_or_else(|| Scattered::new(number, size), |at| list.remove(at));
        list.push(file);
        with(list.last_mut().expect("just pushed"))
    }
}

/// The page of a file that the byte at `offset` lies in.
fn page_at(file: &File, offset: u64) -> Range<u64> {
    let start = offset - offset % PAGE_LEN;
    start..file.size.min(start + PAGE_LEN)
}

impl Vfs {
    /// What to hand over now that `len` bytes from `offset` of a file were read.
    pub fn prefill_after(&self, number: u64, offset: u64, len: usize) -> Option<Prefill> {
        let file = self.files.get(&number)?;
        if file.size > FILE_LEN_MAX || offset > 0 && file.size > STEP_LEN {
            let is_stored =
                || self.lists.extent_at(&self.repo, &file, offset, Wait::No).is_ok_and(|e| e.blob.is_some());
            return ((1..=AROUND_LEN_MAX).contains(&len) && offset < file.size && is_stored())
                .then(|| Prefill::Around { number, bytes: offset..file.size.min(offset + len as u64) });
        }
        if offset != 0 {
            return None;
        }
        let Inode::Node(at) = self.resolve(number).ok()? else { return None };
        let mut readers = self.prefills.readers.lock().expect("no panic while held");
        let (reader, ranks) = readers.advance(at)?;
        Some(Prefill::Files { reader, instance: at.instance, ranks })
    }

    /// What was to be handed over is not: its reader's next request is to bring it up again.
    pub fn not_prefilled(&self, what: &Prefill) {
        if let Prefill::Files { reader, ranks, .. } = what {
            self.prefills.readers.lock().expect("no panic while held").stopped(*reader, ranks.start);
        }
    }

    /// Hands over; waits for storage. What nobody has come near is handed over only as long as nobody waits for anything
    /// else, which `is_idle` tells.
    pub fn prefill(&self, what: &Prefill, take: Take<'_>, is_idle: &dyn Fn() -> bool) {
        match what {
            Prefill::Files { reader, instance, ranks } => {
                let stop = self.prefill_files(*instance, ranks.clone(), take);
                if stop < ranks.end {
                    self.prefills.readers.lock().expect("no panic while held").stopped(*reader, stop);
                }
            }
            Prefill::Around { number, bytes } => {
                let _ = self.prefill_around(*number, bytes, take, is_idle);
            }
        }
    }

    /// Returns where it stopped.
    fn prefill_files(&self, instance: u32, ranks: Range<u32>, take: Take<'_>) -> u32 {
        let left_out = ranks.start + (ranks.end - ranks.start) / 2;
        let mut left_one_out = false;
        // Since when, and how many files in a row.
        let mut unknown: Option<(u32, u32)> = None;
        let mut len = 0;
        let mut bytes = Vec::new();
        for rank in ranks.clone() {
            let at = NodeAt { instance, rank };
            let Ok(found) = self.find(at, Wait::Yes) else { return rank };
            let node = found.node();
            let size = match node.kind {
                Kind::File { size, .. } if (1..=FILE_LEN_MAX).contains(&size) => size,
                _ => continue,
            };
            if rank >= left_out && !left_one_out {
                left_one_out = true;
                continue;
            }
            let number = self.node_attr(at, &node).inode;
            if bytes.len() < size as usize {
                bytes.resize(size as usize, 0);
            }
            match self.read(number, 0, &mut bytes[..size as usize], Wait::Yes) {
                Ok(read) if read as u64 == size => {}
                // A name of a file with several that nobody has looked up yet, or damage.
                _ => continue,
            }
            unknown = match unknown {
                _ if take(number, 0, &bytes[..size as usize]) => None,
                None => Some((rank, 1)),
                Some((first, count)) => Some((first, count + 1)),
            };
            len += size;
            match unknown {
                Some((first, UNKNOWN_MAX)) => return first,
                _ if len > WINDOW_LEN_MAX => return rank + 1,
                _ => {}
            }
        }
        // What is not known yet will be when the reader has come to its directory.
        unknown.map_or(ranks.end, |(first, _)| first)
    }

    fn prefill_around(
        &self,
        number: u64,
        bytes: &Range<u64>,
        take: Take<'_>,
        is_idle: &dyn Fn() -> bool,
    ) -> Option<()> {
        let file = self.file(number, Wait::Yes).ok()?;
        // Whoever reads across the border of two segments has had both decoded.
        let first = self.segment_at(&file, bytes.start);
        let last = self.segment_at(&file, bytes.end - 1).filter(|last| first.as_ref() != Some(last));
        let due =
            |offset, segment: Option<_>| segment.and_then(|segment| self.unit_due(number, &file, offset, segment));
        let (first, last) = (due(bytes.start, first), due(bytes.end - 1, last));
        let is_swept = self.is_swept(&file);
        let mut is_new = false;
        for (segment, unit) in [first, last].into_iter().flatten() {
            is_new = true;
            self.prefills.remember(segment);
            self.hand_over_unit(number, &file, &unit, take)?;
            if is_swept && !unit.bytes.is_empty() {
                self.prefills.scattered(number, file.size, |file| file.mark(unit.step(), unit.is_long()));
            }
        }
        if is_new && is_swept {
            self.sweep(number, &file, take, is_idle)?;
        }
        Some(())
    }

    /// Whether the file is one to be handed over whole once it is read in many places.
    fn is_swept(&self, file: &File) -> bool {
        let steps = (u64::from(SWEEP_FROM_MIN) * STEP_LEN)..=SWEEP_LEN_MAX;
        steps.contains(&file.size) && !self.repo.backend().is_remote()
    }

    /// What `segment`, decoded for whoever read the byte at `offset`, has of the file, unless the kernel has that.
    fn unit_due(
        &self,
        number: u64,
        file: &File,
        offset: u64,
        segment: (PackNumber, Range<u32>),
    ) -> Option<(SegmentOf, Unit)> {
        let key = (number, segment.0, segment.1.start);
        if self.prefills.segments.lock().expect("no panic while held").contains(&key) {
            return None;
        }
        let unit = self.unit_around(file, offset, &segment)?;
        // That a page of two units was read does not say that what was handed over of them is lost.
        let is_handed = self.is_swept(file)
            && !unit.bytes.contains(&offset)
            && self.prefills.scattered(number, file.size, |file| file.is_handed(unit.step()));
        (!is_handed).then_some((key, unit))
    }

    /// Whoever reads a file in many places, as a database does, is likely to come to the others: hands over some of them.
    fn sweep(&self, number: u64, file: &File, take: Take<'_>, is_idle: &dyn Fn() -> bool) -> Option<()> {
        for _ in 0..SWEEP_STEPS {
            if !is_idle() {
                break;
            }
            let step = self.prefills.scattered(number, file.size, Scattered::sweep)?;
            let start = step as u64 * STEP_LEN;
            let bytes = start..file.size.min(start + STEP_LEN);
            let middle = start.midpoint(bytes.end);
            let segment = self.segment_at(file, middle);
            match segment.and_then(|segment| self.unit_around(file, middle, &segment)) {
                // Nothing is decoded twice if what is handed over is what is decoded.
                Some(unit) if unit.is_long() => {
                    let is_due = step == unit.step()
                        || self.prefills.scattered(number, file.size, |file| file.take(unit.step()));
                    if is_due {
                        self.hand_over_unit(number, file, &unit, take)?;
                    }
                }
                _ if self.is_hole(file, bytes.clone(), Wait::Yes).ok()? => {}
                _ => self.hand_over(number, file, &bytes, take)?,
            }
        }
        Some(())
    }

    /// Hands over a unit, if it has whole pages: these, and the pages on its borders if their rest was decoded before. Otherwise
    /// whoever reads such a page would have two units decoded again for it.
    fn hand_over_unit(&self, number: u64, file: &File, unit: &Unit, take: Take<'_>) -> Option<()> {
        let Unit { bytes, all } = unit;
        if bytes.is_empty() {
            return Some(());
        }
        let (first, last) = (page_at(file, all.start), page_at(file, all.end - 1));
        let base = first.start;
        let within = |range: &Range<u64>| (range.start - base) as usize..(range.end - base) as usize;
        let mut out = vec![0; (last.end - base) as usize];
        self.fill(file, all.start, &mut out[within(all)])?;
        let mut whole = bytes.clone();
        if all.start < bytes.start && self.prefills.complete(number, &first, all, &mut out[within(&first)]) {
            whole.start = first.start;
        }
        if bytes.end < all.end && self.prefills.complete(number, &last, all, &mut out[within(&last)]) {
            whole.end = last.end;
        }
        take(number, whole.start, &out[within(&whole)]);
        Some(())
    }

    fn hand_over(&self, number: u64, file: &File, range: &Range<u64>, take: Take<'_>) -> Option<()> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.fill(file, range.start, &mut bytes)?;
        take(number, range.start, &bytes);
        Some(())
    }

    /// Reads all of `out` from `offset` of a file; `None` if it could not be read.
    fn fill(&self, file: &File, offset: u64, out: &mut [u8]) -> Option<()> {
        let read = self.read_file(file, offset, out, Wait::Yes).ok()?;
        (read == out.len()).then_some(())
    }

    /// The segment that holds the byte at `offset`: its pack, and where it begins and ends there; `None` in a hole.
    fn segment_at(&self, file: &File, offset: u64) -> Option<(PackNumber, Range<u32>)> {
        let (location, _) = self.place(file, offset)?;
        Some((location.pack, self.repo.segment_span(location.pack, location.offset).ok()?))
    }

    /// The bytes around `offset` that `segment` holds. No more than it has on either side, though a file may hold the
    /// same blob many times in a row.
    fn unit_around(&self, file: &File, offset: u64, segment: &(PackNumber, Range<u32>)) -> Option<Unit> {
        let (pack, span) = segment;
        let reach = u64::from(span.end - span.start);
        let here = |location: &Location| location.pack == *pack && span.contains(&location.offset);
        let mut end = offset;
        while end < file.size && end - offset < reach {
            let Some((location, rest)) = self.place(file, end).filter(|(location, _)| here(location)) else { break };
            end += rest.min(u64::from(span.end - location.offset));
        }
        let mut start = offset;
        while start > 0 && offset - start < reach {
            let Some((last, _)) = self.place(file, start - 1).filter(|(location, _)| here(location)) else { break };
            // The blob begins this far before; its first byte may lie in the segment before this one.
            let extent = self.lists.extent_at(&self.repo, file, start - 1, Wait::Yes).ok()?;
            let in_segment = u64::from(last.offset - span.start) + 1;
            start -= in_segment.min(start - extent.start);
        }
        let all = start..end;
        let start = start.next_multiple_of(PAGE_LEN);
        if end < file.size {
            end -= end % PAGE_LEN;
        }
        Some(Unit { bytes: start..end.max(start), all })
    }

    /// Where the byte at `offset` of a file is stored, and how many bytes of its blob follow from there on; `None` in a
    /// hole.
    fn place(&self, file: &File, offset: u64) -> Option<(Location, u64)> {
        let extent = self.lists.extent_at(&self.repo, file, offset, Wait::Yes).ok()?;
        // What a delta makes lies nowhere.
        let location = self.repo.locate(&extent.blob?).filter(|location| !location.is_delta)?;
        let within = (offset - extent.start) as u32;
        Some((Location { offset: location.offset.checked_add(within)?, ..location }, extent.end - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(rank: u32) -> NodeAt {
        NodeAt { instance: 7, rank }
    }

    #[test]
    fn windows_grow_and_cover_each_file_once_while_a_reader_asks_only_for_what_was_left_out() {
        let mut readers = Readers::default();
        let mut covered = 0;
        let mut rank = 0;
        let mut requests = 0;
        while rank < 10_000 {
            requests += 1;
            let Some((_, ranks)) = readers.advance(at(rank)) else {
                rank += 1;
                continue;
            };
            assert!(ranks.start >= covered, "handed over twice: {ranks:?} after {covered}");
            assert!(ranks.len() <= WINDOW_MAX as usize);
            covered = ranks.end;
            rank = ranks.start + (ranks.end - ranks.start) / 2;
        }
        assert!(requests < 80, "{requests} requests for 10,000 files");
    }

    #[test]
    fn a_reader_that_jumps_is_given_nothing() {
        let mut readers = Readers::default();
        for rank in (0..100_000).step_by(1000) {
            assert_eq!(readers.advance(at(rank)), None);
        }
    }

    #[test]
    fn several_readers_are_told_apart() {
        let mut readers = Readers::default();
        for rank in 0..3 {
            for reader in 0..4u32 {
                let window = readers.advance(at(reader * 10_000 + rank));
                assert_eq!(window.is_some(), rank == 1, "reader {reader} at {rank}: {window:?}");
            }
        }
        assert_eq!(readers.list.len(), 4);
    }

    #[test]
    fn a_file_that_is_read_in_many_places_is_handed_over_whole_and_again_only_if_that_was_lost() {
        let mut file = Scattered::new(7, 800 * STEP_LEN - 1);
        for unit in (0..99).map(|n| n * 8) {
            file.mark(unit, true);
            assert_eq!(file.sweep(), None, "after {unit}");
        }
        file.mark(799, true);
        let mut swept: Vec<usize> = std::iter::from_fn(|| file.sweep()).collect();
        assert!(swept.is_sorted(), "in the order of the file");
        swept.extend((0..99).map(|n| n * 8).chain([799]));
        swept.sort_unstable();
        assert!(swept.into_iter().eq(0..800), "each once");
        for unit in 0..99 {
            file.mark(unit, false);
            file.mark(unit, true);
            assert_eq!(file.sweep(), None);
        }
        file.mark(5, false);
        assert_ne!(file.count, 0, "a piece of a step says nothing of the others");
        file.mark(5, true);
        assert_eq!((file.count, file.sweep()), (0, None), "all is forgotten");
        (0..100).for_each(|unit| file.mark(unit, true));
        assert_eq!(file.sweep(), Some(100));
        file.mark(usize::MAX, true);
    }

    #[test]
    fn after_a_stop_the_next_request_hands_over_from_there() {
        let mut readers = Readers::default();
        assert_eq!(readers.advance(at(0)), None);
        let (id, ranks) = readers.advance(at(1)).expect("in order");
        assert_eq!(ranks, 2..10);
        readers.stopped(id, 4);
        assert_eq!(readers.advance(at(4)), Some((id, 5..21)));
    }
}
