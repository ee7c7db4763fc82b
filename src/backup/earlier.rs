//! The earlier version of a file that is backed up again: which of its bytes a new chunk is likely made of, and the delta
//! that makes the chunk of them.
//!
//! A new chunk lies where the chunks around it lie in the earlier version. Chunks that are there unchanged say so, and so
//! do two in a row of the same lengths as two there: cut points move with the content, and most edits keep most lengths.
//! Those that keep none move them by little: several in a row of about the lengths of as many there say so, too. Where
//! nothing is found, what was known last holds. A wrong guess costs time, never correctness: a delta is followed
//! once more and compared before it is kept.

use std::cell::RefCell;

use crate::browse;
use crate::difference::Differ;
use crate::format::content::Part;
use crate::format::delta::{self, Base, Command, Delta, Step};
use crate::format::limits::DELTA_BASES_MAX;
use crate::format::tree::{Kind, Node};
use crate::id::BlobId;
use crate::repo::{Blob, Repository};

/// Parts of the earlier version that are remembered, from its beginning on: those of a file of a TiB.
const PARTS_MAX: usize = 1 << 20;
/// Places of one chunk that are compared.
const SAME_MAX: usize = 256;
/// Places at most where two lengths in a row say something.
const TWINS_MAX: usize = 4;
/// Lengths are about the same if they differ by one part in so many.
const LIKE_ONE_IN: u32 = 64;
/// So many in a row about the same say where they are, among so many parts either way of where they are expected.
const LIKE_NEAR: usize = 4;
const LIKE_NEAR_PARTS: usize = 256;
/// And so many in a row, wherever they are; not compared with more parts than this.
const LIKE_FAR: usize = 6;
const LIKE_FAR_PARTS: usize = 4096;
/// Parts that a delta is looked for in.
const REGION_PARTS_MAX: usize = 12;
/// Bytes of them, but for one part that is longer.
const REGION_LEN_MAX: u64 = 2 << 20;
/// Bytes of all bases of them: those of a region's parts are about as long as it, unless somebody wants our memory.
const BASES_LEN_MAX: usize = 16 << 20;
/// Places in the earlier version that are tried as one region if they are this close, in bytes.
const NEAR: u64 = 1 << 20;
/// A delta is kept if the blob is at least this many times as long: what is left in it compresses less.
const GAIN_MIN: usize = 4;
/// The same for a blob whose earlier version was a delta already. Each night's delta holds all that has changed since its
/// base; to store the blob anew when that has become this much is, in the long run, the cheapest.
const GAIN_MIN_AGAIN: usize = 8;

#[derive(Clone, Copy, Debug)]
struct EarlierPart {
    offset: u64,
    len: u32,
    id: BlobId,
}

impl EarlierPart {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// A chunk of the new version.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewChunk {
    pub offset: u64,
    pub len: u32,
    pub id: BlobId,
}

/// The earlier version of a file.
pub(super) struct Earlier {
    /// Its data parts in order.
    parts: Vec<EarlierPart>,
    /// Numbers of parts, in the order of their ids.
    by_id: Vec<u32>,
    /// Numbers of parts but the last, in the order of their and the next part's length.
    by_len: Vec<u32>,
    /// What is added to an offset of the new version to find the same content in the earlier one, as known last.
    drift: i64,
}

/// Where in the earlier version to look for the content of a chunk: consecutive parts, and where among their bytes the chunk
/// is expected to begin.
#[derive(Clone, Debug)]
pub(super) struct Region {
    parts: Vec<(BlobId, u32)>,
    at: i64,
}

impl Earlier {
    /// The earlier version that `node` says; `None` if there is nothing in it to make deltas of. What cannot be read of it
    /// is not there.
    pub(super) fn new(repo: &Repository, node: &Node<'_>) -> Option<Earlier> {
        let Kind::File { size, content } = node.kind else { return None };
        let mut parts = Vec::new();
        for part in browse::parts(repo, size, content).map_while(Result::ok).take(PARTS_MAX) {
            if let (offset, Part::Data { id, len }) = part {
                parts.push(EarlierPart { offset, len, id });
            }
        }
        if parts.is_empty() {
            return None;
        }
        let mut by_id: Vec<u32> = (0..parts.len() as u32).collect();
        by_id.sort_unstable_by_key(|number| (parts[*number as usize].id, *number));
        let mut by_len: Vec<u32> = (0..parts.len() as u32 - 1).collect();
        by_len.sort_unstable_by_key(|number| (lens(&parts, *number), *number));
        Some(Earlier { parts, by_id, by_len, drift: 0 })
    }

    /// Where to look for the content of each of `chunks`, which follow one another, the likeliest first. Must be asked in
    /// the order of the new version. Only those that `is_wanted` says, by their numbers, get an answer.
    pub(super) fn align(&mut self, chunks: &[NewChunk], is_wanted: impl Fn(usize) -> bool) -> Vec<Vec<Region>> {
        let mut drift = self.drift;
        let mut before = Vec::with_capacity(chunks.len());
        let mut anchored = Vec::with_capacity(chunks.len());
        for (number, chunk) in chunks.iter().enumerate() {
            let anchor = self.anchor(chunk, chunks.get(number + 1), drift);
            let anchor = anchor.or_else(|| self.alike(&chunks[number..], drift));
            drift = anchor.unwrap_or(drift);
            before.push(drift);
            anchored.push(anchor);
        }
        self.drift = drift;
        let mut regions = vec![Vec::new(); chunks.len()];
        let mut after = drift;
        for number in (0..chunks.len()).rev() {
            after = anchored[number].unwrap_or(after);
            if is_wanted(number) {
                regions[number] = self.regions(&chunks[number], before[number], after);
            }
        }
        regions
    }

    /// The drift at `chunk`, which `next` follows, if something says it.
    fn anchor(&self, chunk: &NewChunk, next: Option<&NewChunk>, drift: i64) -> Option<i64> {
        let distance = |number: &u32| {
            let found = self.parts[*number as usize].offset as i64 - chunk.offset as i64;
            ((found - drift).unsigned_abs(), found)
        };
        let nearest = |numbers: &[u32]| numbers.iter().map(distance).min().map(|(_, found)| found);
        let from = self.by_id.partition_point(|number| self.parts[*number as usize].id < chunk.id);
        // Of what occurs very often, some will do.
        let same = self.by_id[from..].iter().take(SAME_MAX);
        let same = same.take_while(|number| self.parts[**number as usize].id == chunk.id).count();
        if same > 0 {
            return nearest(&self.by_id[from..from + same]);
        }
        let wanted = (chunk.len, next?.len);
        let from = self.by_len.partition_point(|number| lens(&self.parts, *number) < wanted);
        let twins = self.by_len[from..].iter().take(TWINS_MAX + 1);
        let twins = twins.take_while(|number| lens(&self.parts, **number) == wanted).count();
        if (1..=TWINS_MAX).contains(&twins) { nearest(&self.by_len[from..from + twins]) } else { None }
    }

    /// The drift at the first of `chunks`, if about as long ones follow one another in the earlier version. Chance is no
    /// danger: one length in some 30 is about another.
    fn alike(&self, chunks: &[NewChunk], drift: i64) -> Option<i64> {
        let first = chunks.first()?;
        let place = |number: usize| self.parts[number].offset as i64 - first.offset as i64;
        let nearest = |numbers: &mut dyn Iterator<Item = usize>, count: usize| {
            let new = chunks.get(..count)?;
            let is_alike = |number: &usize| {
                let old = self.parts.get(*number..number + count);
                old.is_some_and(|old| new.iter().zip(old).all(|(new, old)| is_about(new.len, old.len)))
            };
            numbers.filter(is_alike).map(place).min_by_key(|found| (found - drift).unsigned_abs())
        };
        let expected = u64::try_from((first.offset as i64).saturating_add(drift)).unwrap_or(0);
        let expected = self.parts.partition_point(|part| part.end() <= expected);
        let near = expected.saturating_sub(LIKE_NEAR_PARTS)..self.parts.len().min(expected + LIKE_NEAR_PARTS);
        nearest(&mut near.into_iter(), LIKE_NEAR).or_else(|| {
            let slack = first.len / LIKE_ONE_IN;
            let len = |number: &u32| lens(&self.parts, *number).0;
            let from = self.by_len.partition_point(|number| len(number) < first.len - slack);
            let to = self.by_len.partition_point(|number| len(number) <= first.len + slack);
            let far = &self.by_len[from..to];
            if far.len() > LIKE_FAR_PARTS {
                None
            } else {
                nearest(&mut far.iter().map(|number| *number as usize), LIKE_FAR)
            }
        })
    }

    fn regions(&self, chunk: &NewChunk, before: i64, after: i64) -> Vec<Region> {
        let place = |drift: i64| {
            let start = (chunk.offset as i64).saturating_add(drift);
            (start, start.saturating_add(i64::from(chunk.len)))
        };
        let (one, other) = (place(before), place(after));
        let near = before.abs_diff(after) <= NEAR;
        let mut regions = Vec::new();
        if near {
            regions.extend(self.region(one.0.min(other.0), one.1.max(other.1), one.0));
        } else {
            regions.extend(self.region(one.0, one.1, one.0));
            regions.extend(self.region(other.0, other.1, other.0));
        }
        regions
    }

    /// The parts with bytes from `start` to `end`. If they begin or end elsewhere, what lies beside them comes with them.
    fn region(&self, start: i64, end: i64, expected: i64) -> Option<Region> {
        let (from, to) = (u64::try_from(start).unwrap_or(0), u64::try_from(end).ok()?);
        let first = self.parts.partition_point(|part| part.end() <= from);
        let last = self.parts.partition_point(|part| part.offset < to);
        // Nothing was there: what lies beside it is other content.
        if first >= last {
            return None;
        }
        let mut range = first..last;
        let (begin, over) = (self.parts[first], self.parts[last - 1]);
        if (begin.offset as i64, over.end() as i64) != (start, end) {
            range = first.saturating_sub(1)..(last + 1).min(self.parts.len());
        }
        let mut len = 0;
        let within = |part: &&EarlierPart| {
            len += u64::from(part.len);
            len <= REGION_LEN_MAX || len == u64::from(part.len)
        };
        let parts: Vec<&EarlierPart> = self.parts[range].iter().take(REGION_PARTS_MAX).take_while(within).collect();
        // Between them there may be holes: what is expected counts from the part that it is in.
        let mut at = 0;
        let mut laid = 0i64;
        for part in &parts {
            if part.offset as i64 <= expected {
                at = laid + (expected - part.offset as i64).min(i64::from(part.len));
            }
            laid += i64::from(part.len);
        }
        let parts: Vec<_> = parts.iter().map(|part| (part.id, part.len)).collect();
        (!parts.is_empty()).then_some(Region { parts, at })
    }
}

/// Whether an edit may have made one length of the other.
fn is_about(new: u32, old: u32) -> bool {
    new.abs_diff(old) <= new / LIKE_ONE_IN
}

fn lens(parts: &[EarlierPart], number: u32) -> (u32, u32) {
    (parts[number as usize].len, parts[number as usize + 1].len)
}

/// What a region is stored as.
#[derive(Default)]
struct Plain {
    bases: Vec<(Base, Blob)>,
    /// The bases laid end to end.
    bytes: Vec<u8>,
    /// Where the chunk is expected to begin.
    at: usize,
    /// Some of it is stored as deltas.
    again: bool,
}

impl Plain {
    /// `None` if too much of the region cannot be read.
    fn of(repo: &Repository, region: &Region) -> Option<Plain> {
        let mut plain = Plain::default();
        let mut laid = 0;
        let mut at = 0;
        for (id, len) in &region.parts {
            let delta = repo.delta(id).ok()?;
            let is_in = (laid..laid + i64::from(*len)).contains(&region.at);
            let within = region.at - laid;
            laid += i64::from(*len);
            let (bases, start) = match delta {
                None => (vec![Base { id: *id, len: *len }], 0),
                Some(delta) => {
                    plain.again = true;
                    (delta.bases, delta.start)
                }
            };
            // A base that two neighbours share is laid once.
            let shared = plain.bases.last().is_some_and(|(last, _)| last == &bases[0]);
            let mut from = plain.bytes.len();
            if shared {
                from -= bases[0].len as usize;
            }
            for base in &bases[usize::from(shared)..] {
                if plain.bytes.len() + base.len as usize > BASES_LEN_MAX {
                    return None;
                }
                let blob = repo.plain_blob(&base.id).ok().filter(|blob| blob.len() == base.len as usize)?;
                plain.bytes.extend_from_slice(&blob);
                plain.bases.push((*base, blob));
            }
            if is_in {
                at = from as i64 + start + within;
            }
        }
        plain.at = at.clamp(0, plain.bytes.len() as i64) as usize;
        Some(plain)
    }

    /// The bases that `commands` copy from, with the commands as they are without the others.
    fn used(&self, mut commands: Vec<Command>) -> (Vec<Base>, Vec<Command>) {
        let mut starts = Vec::with_capacity(self.bases.len());
        let mut laid = 0u32;
        for (base, _) in &self.bases {
            starts.push(laid);
            laid += base.len;
        }
        let of = |at: u32| starts.partition_point(|start| *start <= at) - 1;
        let mut used = vec![false; self.bases.len()];
        for command in commands.iter().filter(|command| command.copy > 0) {
            used[of(command.from)..=of(command.from + command.copy - 1)].fill(true);
        }
        let mut left_out = vec![0; self.bases.len()];
        let mut sum = 0;
        let mut bases = Vec::new();
        for (number, (base, _)) in self.bases.iter().enumerate() {
            left_out[number] = sum;
            if used[number] {
                bases.push(*base);
            } else {
                sum += base.len;
            }
        }
        for command in commands.iter_mut().filter(|command| command.copy > 0) {
            command.from -= left_out[of(command.from)];
        }
        (bases, commands)
    }

    /// Whether the stored delta makes `chunk` of these bases.
    fn makes(&self, stored: &[u8], chunk: &[u8]) -> bool {
        let Ok(delta) = Delta::decode(stored) else { return false };
        let mut bytes = Vec::new();
        for base in &delta.bases {
            match self.bases.iter().find(|(other, _)| other == base) {
                Some((_, blob)) => bytes.extend_from_slice(blob),
                None => return false,
            }
        }
        let mut rest = chunk;
        for step in delta.steps() {
            let made = match step {
                Ok(Step::Literal(made)) => made,
                Ok(Step::Copy { from, len }) => &bytes[from as usize..(from + len) as usize],
                Err(_) => return false,
            };
            match rest.strip_prefix(made) {
                Some(left) => rest = left,
                None => return false,
            }
        }
        rest.is_empty() && delta.plain_len as usize == chunk.len()
    }
}

thread_local! {
    static DIFFER: RefCell<Differ> = RefCell::new(Differ::default());
}

/// A delta that makes `chunk` of the first of `regions` that serves, if it is so short that it is worth having.
pub(super) fn encode(repo: &Repository, chunk: &[u8], regions: &[Region]) -> Option<Box<[u8]>> {
    regions.iter().find_map(|region| {
        let plain = Plain::of(repo, region)?;
        let len_max = chunk.len() / if plain.again { GAIN_MIN_AGAIN } else { GAIN_MIN };
        let commands = DIFFER.with_borrow_mut(|differ| differ.commands(&plain.bytes, chunk, plain.at, len_max))?;
        let (bases, commands) = plain.used(commands);
        if !(1..=DELTA_BASES_MAX).contains(&bases.len()) {
            return None;
        }
        let stored = delta::encode(chunk, &bases, &commands);
        (stored.len() <= len_max && plain.makes(&stored, chunk)).then(|| stored.into_boxed_slice())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::browse::sample::{Sample, metadata, node};
    use crate::format::content::{Content, ListPage, Parts};
    use crate::id::{BlobKind, ContentHash};
    use std::sync::Arc;

    fn id(n: u64) -> BlobId {
        BlobId::from_bytes(&blake3::hash(&n.to_le_bytes()).as_bytes()[..20]).expect("20 bytes")
    }

    fn len(n: u64) -> u32 {
        20_000 + (n * 7919 % 50_000) as u32
    }

    /// The chunks called `names`, one after the other; their lengths follow from their names less what `edited` adds.
    fn chunks(names: &[u64]) -> Vec<NewChunk> {
        let mut offset = 0;
        let chunk = |name: &u64| {
            let chunk = NewChunk { offset, len: len(*name % 1_000_000), id: id(*name) };
            offset += u64::from(chunk.len);
            chunk
        };
        names.iter().map(chunk).collect()
    }

    /// An earlier version of the chunks `names`.
    fn earlier(names: &[u64]) -> Earlier {
        earlier_of(chunks(names).iter().map(|chunk| Part::Data { id: chunk.id, len: chunk.len }).collect())
    }

    fn earlier_of(parts: Vec<Part>) -> Earlier {
        let mut sample = Sample::new();
        let size = parts.iter().map(Part::len).sum();
        let root = sample.blob(BlobKind::List, &ListPage::Parts(parts).encode());
        let tree = sample.tree(&[]);
        let (repo, _) = sample.snapshot(tree);
        let content = Content::List { hash: None, level: 0, root, data: size };
        Earlier::new(&repo, &node(b"f", metadata(0o644), Kind::File { size, content }).node()).expect("it has parts")
    }

    /// The earlier chunk that each new one is looked for in first, if it is one alone.
    fn places(earlier: &mut Earlier, new: &[u64], per_run: usize) -> Vec<Option<BlobId>> {
        let chunks = chunks(new);
        let mut places = Vec::new();
        for run in chunks.chunks(per_run) {
            for regions in earlier.align(run, |_| true) {
                places.push(regions.first().filter(|region| region.parts.len() == 1).map(|region| region.parts[0].0));
            }
        }
        places
    }

    /// An edited version of a chunk: another id, the same length.
    const EDITED: u64 = 1_000_000;

    #[test]
    fn edited_chunks_are_looked_for_where_they_were_also_after_insertions_and_deletions() {
        let old: Vec<u64> = (0..400).collect();
        let shifts: [(&str, Vec<u64>); 4] = [
            ("as it was", old.clone()),
            ("chunks before all", (9000..9100).chain(old.clone()).collect()),
            ("chunks in the middle", (0..200).chain(9000..9300).chain(200..400).collect()),
            ("chunks that are gone", (0..50).chain(250..400).collect()),
        ];
        for (what, names) in shifts {
            for keep_one_in in [1, 10, u64::MAX] {
                let edit = |name: &u64| if name.is_multiple_of(keep_one_in) { *name } else { *name + EDITED };
                let new: Vec<u64> = names.iter().map(edit).collect();
                let places = places(&mut earlier(&old), &new, 64);
                let wrong =
                    names.iter().zip(&places).filter(|(name, place)| **name < 400 && **place != Some(id(**name)));
                // The last chunk before a change has no neighbour of the same length.
                let wrong = wrong.count();
                assert!(wrong <= 2 * 8, "{what}, one in {keep_one_in} kept: {wrong} are looked for elsewhere");
            }
        }
    }

    #[test]
    fn chunks_whose_lengths_all_changed_a_little_are_looked_for_where_they_were() {
        // Lengths without any order, as cut points make them.
        let len = |name: u64| {
            20_000
                + blake3::hash(&name.to_le_bytes()).as_bytes()[0..2]
                    .iter()
                    .fold(0, |sum, byte| sum * 256 + u32::from(*byte))
                    % 50_000
        };
        let old: Vec<u64> = (0..2000).collect();
        let before: Vec<Part> = old.iter().map(|name| Part::Data { id: id(*name), len: len(*name) }).collect();
        for (what, names) in [
            ("as it was", old.clone()),
            ("chunks before all", (9000..9020).chain(old.clone()).collect()),
            ("chunks that are gone at the beginning", (15..2000).collect::<Vec<u64>>()),
            ("and in the middle", (15..700).chain(750..2000).collect()),
            ("a part that is far from where it was", (1500..2000).chain(0..1500).collect()),
        ] {
            let mut offset = 0;
            let chunk = |name: &u64| {
                let chunk = NewChunk { offset, len: len(*name) + 20 + (name % 7) as u32, id: id(name + EDITED) };
                offset += u64::from(chunk.len);
                chunk
            };
            let new: Vec<NewChunk> = names.iter().map(chunk).collect();
            let mut earlier = earlier_of(before.clone());
            let mut wrong = 0;
            for (names, run) in names.chunks(64).zip(new.chunks(64)) {
                for (name, regions) in names.iter().zip(earlier.align(run, |_| true)) {
                    let is_in = |region: &Region| region.parts.iter().any(|(part, _)| *part == id(*name));
                    wrong += usize::from(*name < 2000 && !regions.iter().any(is_in));
                }
            }
            assert!(wrong <= 8, "{what}: {wrong} are looked for elsewhere");
        }
    }

    #[test]
    fn nothing_is_looked_for_beyond_the_end_or_in_holes() {
        let mut earlier = earlier(&(0..10).collect::<Vec<_>>());
        let far = [NewChunk { offset: 1 << 40, len: 5, id: id(77) }];
        assert!(earlier.align(&far, |_| true)[0].is_empty());
        assert!(earlier.align(&chunks(&[3]), |_| false)[0].is_empty(), "not wanted");
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_delta_is_made_only_where_it_is_worth_it_and_of_what_is_used_only() {
        let mut sample = Sample::new();
        let parts: Vec<Vec<u8>> = (0..3).map(|n| noise(n, 50_000)).collect();
        let ids: Vec<BlobId> = parts.iter().map(|part| sample.blob(BlobKind::Data, part)).collect();
        let tree = sample.tree(&[]);
        let (repo, _) = sample.snapshot(tree);
        let region = |parts: &[usize], at| Region { parts: parts.iter().map(|n| (ids[*n], 50_000)).collect(), at };
        let mut new = parts[1].clone();
        new[20_000..20_100].copy_from_slice(&noise(9, 100));
        let stored = encode(&repo, &new, &[region(&[0, 1, 2], 50_000)]).expect("it is much like the second");
        let delta = Delta::decode(&stored).expect("decodes");
        assert_eq!(delta.bases, [Base { id: ids[1], len: 50_000 }], "the others are not used");
        assert!(stored.len() < 200, "{}", stored.len());
        assert_eq!(encode(&repo, &new, &[]), None);
        assert_eq!(encode(&repo, &new, &[region(&[0, 2], 0)]), None, "nothing in common");
        let second = encode(&repo, &new, &[region(&[0, 2], 0), region(&[1], 0)]);
        assert_eq!(second.as_deref(), Some(&*stored), "the second region serves");
        new[..20_000].copy_from_slice(&noise(10, 20_000));
        assert_eq!(encode(&repo, &new, &[region(&[1], 0)]), None, "too much is new");
        let moved = [&parts[0][30_000..], &parts[2][..10_000]].concat();
        let stored = encode(&repo, &moved, &[region(&[0, 1, 2], 0)]).expect("made of two");
        let bases = Delta::decode(&stored).expect("decodes").bases;
        assert_eq!(bases.iter().map(|base| base.id).collect::<Vec<_>>(), [ids[0], ids[2]]);
        let missing = Region { parts: vec![(id(1), 5)], at: 0 };
        assert_eq!(encode(&repo, &new, &[missing]), None, "a region that cannot be read serves nothing");
    }

    #[test]
    fn a_delta_of_a_delta_is_made_of_its_bases_and_ends_when_it_has_grown() {
        let mut sample = Sample::new();
        let first = noise(1, 60_000);
        let base = sample.blob(BlobKind::Data, &first);
        let tree = sample.tree(&[]);
        let (repo, _) = sample.snapshot(tree);
        let pool = Arc::new(crate::pool::Pool::new("test", 1).expect("a thread"));
        let mut at = Region { parts: vec![(base, 60_000)], at: 0 };
        let mut now = first;
        let mut nights = 0;
        loop {
            let from = nights * 500;
            now[from..from + 300].copy_from_slice(&noise(100 + nights as u64, 300));
            let Some(stored) = encode(&repo, &now, std::slice::from_ref(&at)) else { break };
            assert_eq!(Delta::decode(&stored).expect("decodes").bases, [Base { id: base, len: 60_000 }]);
            let mut writer =
                crate::repo::writer::Writer::new(repo.clone(), pool.clone(), Default::default()).expect("writer");
            let next = repo.blob_id(BlobKind::Data, &ContentHash::of(&now));
            assert!(writer.store_delta(next, &stored, now.len()).expect("stores"));
            writer.finish().expect("finishes");
            assert_eq!(&*repo.blob(BlobKind::Data, &next).expect("reads"), &now[..]);
            at = Region { parts: vec![(next, 60_000)], at: 0 };
            nights += 1;
        }
        assert!((20..30).contains(&nights), "after {nights} nights of 300 bytes it is stored anew");
    }

    #[test]
    fn parts_of_a_short_list_and_a_whole_file_are_versions_too() {
        let mut sample = Sample::new();
        let whole = sample.whole(b"whole", &noise(1, 5000));
        let mut encoded = Vec::new();
        for part in [Part::Data { id: id(1), len: 10 }, Part::Hole { len: 1000 }, Part::Data { id: id(2), len: 20 }] {
            part.encode(&mut encoded);
        }
        let content = Content::Parts { hash: None, parts: Parts::new(3, &encoded) };
        let parts = node(b"parts", metadata(0o644), Kind::File { size: 1030, content });
        let inline = crate::browse::sample::inline(b"inline", b"bytes");
        let tree = sample.tree(&[]);
        let (repo, _) = sample.snapshot(tree);
        let count =
            |node: &crate::browse::OwnedNode| Earlier::new(&repo, &node.node()).map(|earlier| earlier.parts.len());
        assert_eq!((count(&whole), count(&parts), count(&inline)), (Some(1), Some(2), None));
    }
}
