//! Directories and content lists grow here, entry by entry, and leave as blobs in pages of bounded size.
//!
//! Where a page ends depends on what is near its end, not on what came before, so that an insertion changes one page.

use crate::format::content::{Content, ListChild, ListPage, Part, Parts};
use crate::format::limits::BLOB_LEN_MAX;
use crate::format::tree::{LeafBuilder, Node, Page, Tree};
use crate::id::{BLOB_ID_LEN, BlobId, ContentHash};
use crate::repo::{Error, Result};

use super::scan::Directory;

/// A leaf ends at the first name whose hash says so after this many bytes of records.
const LEAF_LEN_MIN: usize = 64 << 10;
/// Or here in any case.
const LEAF_LEN_MAX: usize = 256 << 10;
/// One name in this many ends a leaf.
const LEAF_END_ONE_IN: u64 = 64;
/// Most bytes of a directory's index: it is one blob.
const INDEX_LEN_MAX: usize = BLOB_LEN_MAX;
/// Bytes that the index says of a page besides its name: the name's length, id, and two counts; and before all pages.
const INDEX_ENTRY_LEN_MAX: usize = 2 + BLOB_ID_LEN + 10 + 10;
const INDEX_HEAD_LEN: usize = 16;
/// Lists of up to this many parts stay in their node.
const PARTS_IN_NODE_MAX: usize = 64;
/// A page of a list ends at the first id that says so after this many entries.
const LIST_LEN_MIN: usize = 256;
/// Or here in any case.
const LIST_LEN_MAX: usize = 2048;
/// One id in this many ends a page.
const LIST_END_ONE_IN: u16 = 512;

/// Stores a page, returns its id.
type Store<'a> = &'a mut dyn FnMut(&[u8]) -> Result<BlobId>;

struct Finished {
    first: Vec<u8>,
    id: BlobId,
    count: u64,
    ranks: u64,
}

/// A directory being filled.
pub(super) struct TreeBuilder {
    directory: Directory,
    leaf: LeafBuilder,
    pages: Vec<Finished>,
    /// Bytes that the index of all pages may still take.
    pub(super) index_left: usize,
    /// An entry was turned away.
    is_full: bool,
}

fn ends_leaf(name: &[u8]) -> bool {
    let hash = blake3::hash(name);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes")).is_multiple_of(LEAF_END_ONE_IN)
}

impl TreeBuilder {
    pub(super) fn new(directory: Directory) -> Self {
        let index_left = INDEX_LEN_MAX - INDEX_HEAD_LEN;
        Self { directory, leaf: LeafBuilder::new(), pages: Vec::new(), index_left, is_full: false }
    }

    /// Path of the directory.
    pub(super) fn path(&self) -> &[u8] {
        &self.directory.path
    }

    /// Whether an entry was turned away.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Adds an entry; false if the directory has no room for it, nor for any after it.
    pub(super) fn push(&mut self, node: &Node<'_>, store: Store<'_>) -> Result<bool> {
        if self.leaf.is_empty() {
            let needed = node.name.len() + INDEX_ENTRY_LEN_MAX;
            match self.index_left.checked_sub(needed) {
                Some(left) if !self.is_full => self.index_left = left,
                _ => {
                    self.is_full = true;
                    return Ok(false);
                }
            }
        }
        self.leaf.push(node);
        if self.leaf.len() >= LEAF_LEN_MAX || self.leaf.len() >= LEAF_LEN_MIN && ends_leaf(node.name) {
            self.end_page(store)?;
        }
        Ok(true)
    }

    fn end_page(&mut self, store: Store<'_>) -> Result<()> {
        let (first, count, ranks) = (self.leaf.first().to_vec(), self.leaf.count(), self.leaf.ranks());
        let leaf = self.leaf.finish();
        // What no reader would accept must not be stored: one bad entry would take hundreds with it.
        Tree::decode(&leaf).map_err(|error| {
            Error::decode(format!("the new tree of {}", String::from_utf8_lossy(&self.directory.path)), error)
        })?;
        let id = store(&leaf)?;
        self.pages.push(Finished { first, id, count, ranks });
        Ok(())
    }

    /// The directory, its tree, and the number of entries below it.
    pub(super) fn finish(mut self, store: Store<'_>) -> Result<(Directory, BlobId, u64)> {
        if !self.leaf.is_empty() || self.pages.is_empty() {
            self.end_page(store)?;
        }
        let entries = self.pages.iter().map(|page| page.ranks).sum();
        let tree = match &self.pages[..] {
            [only] => only.id,
            pages => {
                let pages = pages.iter().map(|page| Page {
                    first: &page.first,
                    id: page.id,
                    count: page.count,
                    ranks: page.ranks,
                });
                store(&Tree::encode_index(pages))?
            }
        };
        Ok((self.directory, tree, entries))
    }
}

/// The content list of a file being filled.
pub(super) struct ListBuilder {
    parts: Vec<Part>,
    /// Pages that are finished, by level; the first holds pages of parts.
    levels: Vec<Vec<ListChild>>,
    /// Bytes that are not in holes.
    data: u64,
}

/// A finished content list.
pub(super) enum FinishedList {
    Parts(Vec<u8>, usize),
    /// Level and id of the root page, and how many bytes are data.
    Root(u8, BlobId, u64),
    Empty,
}

impl ListBuilder {
    pub(super) fn new() -> Self {
        Self { parts: Vec::new(), levels: Vec::new(), data: 0 }
    }

    pub(super) fn push(&mut self, part: Part, store: Store<'_>) -> Result<()> {
        // Runs of a hole that were told apart are one hole.
        if let (Some(Part::Hole { len: last }), Part::Hole { len }) = (self.parts.last_mut(), part) {
            *last += len;
            return Ok(());
        }
        if let Part::Data { len, .. } = part {
            self.data += u64::from(len);
        }
        self.parts.push(part);
        let ends = matches!(part, Part::Data { id, .. } if ends_list(&id));
        if self.parts.len() >= LIST_LEN_MAX || self.parts.len() >= LIST_LEN_MIN && ends {
            self.end_parts(store)?;
        }
        Ok(())
    }

    fn end_parts(&mut self, store: Store<'_>) -> Result<()> {
        let parts = std::mem::take(&mut self.parts);
        let len = parts.iter().map(Part::len).sum();
        let id = store(&ListPage::Parts(parts).encode())?;
        self.add_child(0, ListChild { len, id }, store)
    }

    fn add_child(&mut self, level: usize, child: ListChild, store: Store<'_>) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        let children = &mut self.levels[level];
        children.push(child);
        if children.len() >= LIST_LEN_MAX || children.len() >= LIST_LEN_MIN && ends_list(&child.id) {
            return self.end_children(level, store);
        }
        Ok(())
    }

    fn end_children(&mut self, level: usize, store: Store<'_>) -> Result<()> {
        let children = std::mem::take(&mut self.levels[level]);
        let len = children.iter().map(|child| child.len).sum();
        let id = store(&ListPage::Children { level: level as u8 + 1, children }.encode())?;
        self.add_child(level + 1, ListChild { len, id }, store)
    }

    pub(super) fn finish(mut self, store: Store<'_>) -> Result<FinishedList> {
        if self.levels.is_empty() {
            if self.parts.is_empty() {
                return Ok(FinishedList::Empty);
            }
            if self.parts.len() <= PARTS_IN_NODE_MAX {
                let mut encoded = Vec::new();
                self.parts.iter().for_each(|part| part.encode(&mut encoded));
                return Ok(FinishedList::Parts(encoded, self.parts.len()));
            }
        }
        if !self.parts.is_empty() {
            self.end_parts(store)?;
        }
        // Close level after level until one page is left on top of everything.
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.levels.len();
            match &self.levels[level][..] {
                [only] if is_top => return Ok(FinishedList::Root(level as u8, only.id, self.data)),
                [] => {}
                _ => self.end_children(level, store)?,
            }
            level += 1;
        }
    }
}

fn ends_list(id: &BlobId) -> bool {
    u16::from_le_bytes([id.0[0], id.0[1]]).is_multiple_of(LIST_END_ONE_IN)
}

impl FinishedList {
    /// The content of the file of `size` bytes, with the hash of all of it if that was computed.
    pub(super) fn content(&self, size: u64, hash: Option<ContentHash>) -> Content<'_> {
        match self {
            FinishedList::Empty => {
                debug_assert_eq!(size, 0);
                Content::Empty
            }
            FinishedList::Parts(encoded, count) => {
                let parts = Parts::new(*count, encoded);
                match (hash, parts.iter().next()) {
                    // One chunk: its id follows from the hash.
                    (Some(hash), Some(Ok(Part::Data { .. }))) if *count == 1 => Content::Whole(hash),
                    _ => Content::Parts { hash, parts },
                }
            }
            FinishedList::Root(level, root, data) => Content::List { hash, level: *level, root: *root, data: *data },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::{Kind, Metadata, Xattrs};
    use std::collections::HashMap;

    #[test]
    fn a_directory_takes_entries_until_its_index_is_full_and_then_no_more() {
        let directory = Directory {
            name: b"d".to_vec(),
            path: b"/d".to_vec(),
            metadata: Metadata::default(),
            xattrs: Vec::new(),
            parent_tree: None,
        };
        let mut tree = TreeBuilder::new(directory);
        // Room for three pages.
        tree.index_left = 3 * (INDEX_ENTRY_LEN_MAX + 100) + INDEX_ENTRY_LEN_MAX + 50;
        let mut longest = 0;
        let mut store = |blob: &[u8]| {
            longest = longest.max(blob.len());
            Ok(BlobId::from_bytes(&blake3::hash(blob).as_bytes()[..20]).expect("20 bytes"))
        };
        let mut taken = 0;
        for n in 0..20_000 {
            let name = format!("{n:0100}");
            let kind = Kind::File { size: 1, content: Content::Inline(b"x") };
            let node = Node { name: name.as_bytes(), metadata: Metadata::default(), kind, xattrs: Xattrs::default() };
            if tree.push(&node, &mut store).expect("stores") {
                assert_eq!(taken, n, "none is taken after one that was not");
                taken += 1;
            }
        }
        let kind = Kind::Fifo;
        let short = Node { name: b"z", metadata: Metadata::default(), kind, xattrs: Xattrs::default() };
        assert!(!tree.push(&short, &mut store).expect("stores"), "not even one that would fit");
        assert_eq!(tree.pages.len(), 3);
        let (_, _, entries) = tree.finish(&mut store).expect("finishes");
        assert_eq!(entries, taken);
        assert!(taken > 1000 && longest > LEAF_LEN_MIN, "{taken}, {longest}");
    }

    fn part(n: u32) -> Part {
        let hash = blake3::hash(&n.to_le_bytes());
        Part::Data { id: BlobId::from_bytes(&hash.as_bytes()[..20]).expect("20 bytes"), len: 1 + n % 1000 }
    }

    #[test]
    fn a_long_list_is_found_again_page_by_page() {
        for count in [1u32, 64, 65, 5000, 1_200_000] {
            let mut pages = HashMap::new();
            let mut store = |page: &[u8]| {
                let id = BlobId::from_bytes(&blake3::hash(page).as_bytes()[..20]).expect("20 bytes");
                pages.insert(id, page.to_vec());
                Ok(id)
            };
            let mut list = ListBuilder::new();
            let mut size = 0;
            for n in 0..count {
                size += part(n).len();
                list.push(part(n), &mut store).expect("stores");
            }
            let list = list.finish(&mut store).expect("finishes");
            let mut found = Vec::new();
            match list.content(size, None) {
                Content::Parts { parts, .. } => found.extend(parts.iter().map(|part| part.expect("decodes"))),
                Content::List { level, root, data, .. } => {
                    assert_eq!(data, size, "no part is a hole");
                    collect(&pages, level, size, root, &mut found);
                }
                other => panic!("{other:?}"),
            }
            assert!(found.into_iter().eq((0..count).map(part)), "{count}");
        }
    }

    fn collect(pages: &HashMap<BlobId, Vec<u8>>, level: u8, len: u64, id: BlobId, found: &mut Vec<Part>) {
        match ListPage::decode(&pages[&id], level, len).expect("decodes") {
            ListPage::Parts(parts) => found.extend(parts),
            ListPage::Children { children, .. } => {
                children.iter().for_each(|child| collect(pages, level - 1, child.len, child.id, found));
            }
        }
    }
}
