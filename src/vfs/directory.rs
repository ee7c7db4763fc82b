//! A decoded directory in compact form: the stored bytes, where each record begins, and ranks summed up.
//!
//! Built once per tree blob and shared; finding an entry by name, by position or by rank is a binary search.

use crate::format::codec::{DecodeError, Decoder};
use crate::format::tree::{Base, Kind, Node, Tree};
use crate::id::BlobId;

/// A tree blob ready for searching.
pub(super) struct Directory {
    bytes: Box<[u8]>,
    ranks: u64,
    table: Table,
}

enum Table {
    Leaf(LeafTable),
    Pages(Box<[Page]>),
}

struct LeafTable {
    base: Base,
    /// Where each record's length begins, and the end of the last record.
    frames: Box<[u32]>,
    /// Ranks before each entry and, last, all ranks; absent when no entry is a directory, for then rank is position.
    ranks: Option<Box<[u32]>>,
}

/// One page of a large directory.
pub(super) struct Page {
    first: std::ops::Range<u32>,
    /// The page's tree blob.
    pub id: BlobId,
    /// Entries in the pages before it.
    pub entries_before: u64,
    /// Ranks in the pages before it.
    pub ranks_before: u32,
    /// Ranks in it.
    pub ranks: u32,
}

/// Where in a directory an entry is.
pub(super) enum Place<'d> {
    /// At this position of this very blob.
    Here(usize),
    /// Within this page.
    Page(&'d Page),
}

impl Directory {
    /// Decodes the tree blob `stored`, which must hold `ranks` ranks.
    pub fn decode(stored: &[u8], ranks: u64) -> Result<Directory, DecodeError> {
        let bytes: Box<[u8]> = stored.into();
        let wrong = |what| DecodeError::new(what, 0);
        let (table, sum) = match Tree::decode(&bytes)? {
            Tree::Leaf(leaf) => {
                let origin = bytes.as_ptr() as usize;
                let mut frames = Vec::with_capacity(leaf.count + 1);
                let mut before = Vec::with_capacity(leaf.count + 1);
                let mut sum = 0u64;
                let mut flat = true;
                for (record, node) in leaf.records().zip(leaf.nodes()) {
                    let start = record.as_ptr() as usize - origin;
                    if frames.is_empty() {
                        frames.push((start - varint_len(record.len())) as u32);
                    }
                    frames.push((start + record.len()) as u32);
                    before.push(u32::try_from(sum).map_err(|_| wrong("rank"))?);
                    sum = sum.checked_add(node.ranks()).ok_or_else(|| wrong("rank"))?;
                    flat &= !matches!(node.kind, Kind::Directory { .. });
                }
                before.push(u32::try_from(sum).map_err(|_| wrong("rank"))?);
                let ranks = if flat { None } else { Some(before.into()) };
                (Table::Leaf(LeafTable { base: leaf.base, frames: frames.into(), ranks }), sum)
            }
            Tree::Index(stored) => {
                let origin = bytes.as_ptr() as usize;
                let mut pages = Vec::with_capacity(stored.len());
                let (mut entries_before, mut sum) = (0u64, 0u64);
                for page in stored {
                    let start = (page.first.as_ptr() as usize - origin) as u32;
                    pages.push(Page {
                        first: start..start + page.first.len() as u32,
                        id: page.id,
                        entries_before,
                        ranks_before: u32::try_from(sum).map_err(|_| wrong("rank"))?,
                        ranks: u32::try_from(page.ranks).map_err(|_| wrong("rank"))?,
                    });
                    entries_before = entries_before.checked_add(page.count).ok_or_else(|| wrong("node count"))?;
                    sum = sum.checked_add(page.ranks).ok_or_else(|| wrong("rank"))?;
                }
                (Table::Pages(pages.into()), sum)
            }
        };
        if sum != ranks || sum > u64::from(u32::MAX) {
            return Err(Self::wrong_ranks());
        }
        Ok(Directory { bytes, ranks, table })
    }

    /// What to say of a directory that holds another number of ranks than it should.
    pub fn wrong_ranks() -> DecodeError {
        DecodeError::new("number of entries", 0)
    }

    /// Ranks that it holds.
    pub fn ranks(&self) -> u64 {
        self.ranks
    }

    /// Bytes it holds.
    pub fn len(&self) -> usize {
        self.bytes.len()
            + match &self.table {
                Table::Leaf(leaf) => leaf.frames.len() * 4 + leaf.ranks.as_ref().map_or(0, |ranks| ranks.len() * 4),
                Table::Pages(pages) => std::mem::size_of_val(&**pages),
            }
    }

    /// Whether it is a list of pages; a page must not be one.
    pub fn is_paged(&self) -> bool {
        matches!(self.table, Table::Pages(_))
    }

    /// The pages, none unless [`Directory::is_paged`].
    pub fn pages(&self) -> &[Page] {
        match &self.table {
            Table::Leaf(_) => &[],
            Table::Pages(pages) => pages,
        }
    }

    /// Entries in this blob itself, 0 for a list of pages.
    pub fn count(&self) -> usize {
        match &self.table {
            Table::Leaf(leaf) => leaf.frames.len().saturating_sub(1),
            Table::Pages(_) => 0,
        }
    }

    /// The entry at `position`, below [`Directory::count`].
    pub fn node(&self, position: usize) -> Node<'_> {
        let Table::Leaf(leaf) = &self.table else { unreachable!("a list of pages has no entries of its own") };
        Node::decode(self.record(leaf, position), &leaf.base).expect("checked when the blob was decoded")
    }

    /// Whether the entry at `position` has extended attributes.
    pub fn has_xattrs(&self, position: usize) -> bool {
        match &self.table {
            Table::Leaf(leaf) => Node::has_xattrs(self.record(leaf, position)),
            Table::Pages(_) => unreachable!("a list of pages has no entries of its own"),
        }
    }

    /// Ranks of the entries before the one at `position`.
    pub fn ranks_before(&self, position: usize) -> u32 {
        match &self.table {
            Table::Leaf(LeafTable { ranks: Some(ranks), .. }) => ranks[position],
            Table::Leaf(_) | Table::Pages(_) => position as u32,
        }
    }

    /// Where the entry called `name` is or would be.
    pub fn find(&self, name: &[u8]) -> Option<Place<'_>> {
        match &self.table {
            Table::Leaf(leaf) => {
                let (mut low, mut high) = (0, self.count());
                while low < high {
                    let middle = low + (high - low) / 2;
                    match name_of(self.record(leaf, middle)).cmp(name) {
                        std::cmp::Ordering::Less => low = middle + 1,
                        std::cmp::Ordering::Equal => return Some(Place::Here(middle)),
                        std::cmp::Ordering::Greater => high = middle,
                    }
                }
                None
            }
            Table::Pages(pages) => {
                let after = pages.partition_point(|page| self.first_name(page) <= name);
                Some(Place::Page(&pages[after.checked_sub(1)?]))
            }
        }
    }

    /// Where the entry that `rank` belongs to is: the entry itself or a directory above it.
    pub fn find_rank(&self, rank: u32) -> Option<Place<'_>> {
        match &self.table {
            Table::Leaf(LeafTable { ranks: Some(ranks), .. }) => {
                let entries = &ranks[..ranks.len() - 1];
                if rank >= ranks[entries.len()] {
                    return None;
                }
                Some(Place::Here(entries.partition_point(|before| *before <= rank) - 1))
            }
            Table::Leaf(_) => ((rank as usize) < self.count()).then_some(Place::Here(rank as usize)),
            Table::Pages(pages) => {
                let after = pages.partition_point(|page| page.ranks_before <= rank);
                Some(Place::Page(&pages[after.checked_sub(1)?]))
            }
        }
    }

    fn first_name(&self, page: &Page) -> &[u8] {
        &self.bytes[page.first.start as usize..page.first.end as usize]
    }

    fn record(&self, leaf: &LeafTable, position: usize) -> &[u8] {
        let frame = &self.bytes[leaf.frames[position] as usize..leaf.frames[position + 1] as usize];
        Decoder::new(frame).bytes(usize::MAX, "node").expect("checked when the blob was decoded")
    }
}

/// The name in a record, which follows its flags.
fn name_of(record: &[u8]) -> &[u8] {
    let mut input = Decoder::new(record);
    input.varint("node flags").and_then(|_| input.bytes(usize::MAX, "node name")).expect("checked when decoded")
}

fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::{LeafBuilder, Metadata, Page as StoredPage, Xattrs};
    use crate::id::BLOB_ID_LEN;

    fn node<'a>(name: &'a [u8], kind: Kind<'static>) -> Node<'a> {
        Node { name, metadata: Metadata::default(), kind, xattrs: Xattrs::default() }
    }

    #[test]
    fn entries_are_found_by_name_and_by_rank() {
        let tree = BlobId([1; BLOB_ID_LEN]);
        let long = vec![b'd'; 200];
        let mut leaf = LeafBuilder::new();
        leaf.push(&node(b"a", Kind::Fifo));
        leaf.push(&node(b"b", Kind::Directory { tree, entries: 10 }));
        leaf.push(&node(b"c", Kind::Directory { tree, entries: 0 }));
        leaf.push(&node(&long, Kind::Fifo));
        let ranks = leaf.ranks();
        let stored = leaf.finish();
        let directory = Directory::decode(&stored, ranks).unwrap();
        assert!(Directory::decode(&stored, ranks + 1).is_err(), "a count that does not add up");
        let position = |place: Option<Place<'_>>| match place {
            Some(Place::Here(position)) => Some(position),
            _ => None,
        };
        assert_eq!(position(directory.find(b"b")), Some(1));
        assert_eq!(position(directory.find(&long)), Some(3));
        assert_eq!(position(directory.find(b"aa")), None);
        assert_eq!((0..4).map(|i| directory.ranks_before(i)).collect::<Vec<_>>(), [0, 1, 12, 13]);
        let owners: Vec<_> = (0..15).map(|rank| position(directory.find_rank(rank))).collect();
        assert_eq!(owners[0], Some(0));
        assert_eq!(owners[1..12], [Some(1); 11]);
        assert_eq!(owners[12..], [Some(2), Some(3), None]);
        assert_eq!(directory.node(3).name, long);
    }

    #[test]
    fn pages_are_found_by_name_and_by_rank() {
        let page = |first, count, ranks| StoredPage { first, id: BlobId([count as u8; BLOB_ID_LEN]), count, ranks };
        let stored = Tree::encode_index([page(b"b", 1, 5), page(b"m", 2, 2)].into_iter());
        let directory = Directory::decode(&stored, 7).unwrap();
        let id = |place: Option<Place<'_>>| match place {
            Some(Place::Page(page)) => Some(page.id.0[0]),
            _ => None,
        };
        assert_eq!(
            [b"a", b"b", b"l", b"m", b"z"].map(|name| id(directory.find(name))),
            [None, Some(1), Some(1), Some(2), Some(2)]
        );
        assert_eq!([0, 4, 5, 6].map(|rank| id(directory.find_rank(rank))), [Some(1), Some(1), Some(2), Some(2)]);
        assert_eq!(directory.pages()[1].entries_before, 1);
    }

    #[test]
    fn an_empty_directory_has_nothing_to_find() {
        let directory = Directory::decode(&LeafBuilder::new().finish(), 0).unwrap();
        assert_eq!(directory.count(), 0);
        assert!(directory.find(b"a").is_none() && directory.find_rank(0).is_none());
    }
}
