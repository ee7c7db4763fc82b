//! The entries of one directory, in order, through the pages of a large one.
//!
//! Holds one page at a time and can let go even of that, to be read again when it is needed. A page that cannot be read
//! or does not fit its place is reported once; the pages after it are still given.

use std::ops::Range;

use crate::format::codec::DecodeError;
use crate::format::tree::{Base, Kind, Node, Tree};
use crate::id::{BlobId, BlobKind};
use crate::repo::{Blob, Error, Repository, Result};

/// A node that owns its bytes.
#[derive(Clone, Debug)]
pub struct OwnedNode {
    record: Box<[u8]>,
    base: Base,
}

impl OwnedNode {
    /// A copy of `node`.
    pub fn of(node: &Node<'_>) -> Self {
        let base = Base::near(&node.metadata);
        let mut record = Vec::new();
        node.encode(&base, &mut record);
        Self { record: record.into(), base }
    }

    /// The node.
    pub fn node(&self) -> Node<'_> {
        Node::decode(&self.record, &self.base).expect("decoded or encoded when it was made")
    }

    /// Bytes of memory it takes.
    pub fn len(&self) -> usize {
        self.record.len() + size_of::<Self>()
    }

    /// Never true: a node has fields.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// A node within a page.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The node.
    pub node: Node<'a>,
    record: &'a [u8],
    base: Base,
}

impl Entry<'_> {
    /// A copy that lives on its own.
    pub fn to_owned(&self) -> OwnedNode {
        OwnedNode { record: self.record.into(), base: self.base }
    }
}

/// A leaf blob with the places of its records.
struct Leaf {
    blob: Blob,
    base: Base,
    records: Vec<Range<u32>>,
}

/// A page of a large directory, as its index names it.
#[derive(Clone)]
struct PageRef {
    first: Range<u32>,
    id: BlobId,
    count: u64,
}

enum Pages {
    /// The directory is one leaf.
    One,
    /// The index blob and what it says.
    Many(Blob, Vec<PageRef>),
}

/// A cursor over a directory's entries.
pub struct Entries<'r> {
    repo: &'r Repository,
    tree: BlobId,
    pages: Option<Pages>,
    leaf: Option<Leaf>,
    /// Page at hand.
    page: usize,
    /// Entry of it that comes next.
    position: usize,
    failed: bool,
}

/// Where `part` lies within `whole`, of which it is a slice.
fn range_within(whole: &[u8], part: &[u8]) -> Range<u32> {
    let from = part.as_ptr() as usize - whole.as_ptr() as usize;
    from as u32..(from + part.len()) as u32
}

fn slice<'a>(blob: &'a Blob, range: &Range<u32>) -> &'a [u8] {
    &blob[range.start as usize..range.end as usize]
}

fn corrupt(id: &BlobId, error: DecodeError) -> Error {
    Error::decode(format_args!("tree {id}"), error)
}

fn mismatch(id: &BlobId, what: &str) -> Error {
    Error::Corrupt { object: format!("tree {id}"), what: what.to_owned() }
}

/// A decoded tree blob that owns its bytes.
enum Loaded {
    Leaf(Leaf),
    Index(Blob, Vec<PageRef>),
}

fn load(repo: &Repository, id: &BlobId) -> Result<Loaded> {
    let blob = repo.blob(BlobKind::Tree, id)?;
    let (base, records) = match Tree::decode(&blob).map_err(|error| corrupt(id, error))? {
        Tree::Leaf(leaf) => (leaf.base, leaf.records().map(|record| range_within(&blob, record)).collect()),
        Tree::Index(pages) => {
            let pages = pages
                .iter()
                .map(|page| PageRef { first: range_within(&blob, page.first), id: page.id, count: page.count })
                .collect();
            return Ok(Loaded::Index(blob, pages));
        }
    };
    Ok(Loaded::Leaf(Leaf { blob, base, records }))
}

impl Leaf {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn entry(&self, position: usize) -> Entry<'_> {
        let record = slice(&self.blob, &self.records[position]);
        let node = Node::decode(record, &self.base).expect("decoding the tree has checked every node");
        Entry { node, record, base: self.base }
    }

    /// Position of the entry called `name`.
    fn find(&self, name: &[u8]) -> Option<usize> {
        let at = self.records.partition_point(|record| {
            Node::decode(slice(&self.blob, record), &self.base).is_ok_and(|node| node.name < name)
        });
        (at < self.len() && self.entry(at).node.name == name).then_some(at)
    }
}

/// The page `at` of the index `pages`, checked against what the index says of it.
fn load_page(repo: &Repository, index: &Blob, pages: &[PageRef], at: usize) -> Result<Leaf> {
    let page = &pages[at];
    let Loaded::Leaf(leaf) = load(repo, &page.id)? else {
        return Err(mismatch(&page.id, "a page of a directory must hold its nodes"));
    };
    let names_fit = leaf.len() > 0
        && leaf.entry(0).node.name == slice(index, &page.first)
        && pages.get(at + 1).is_none_or(|next| leaf.entry(leaf.len() - 1).node.name < slice(index, &next.first));
    if leaf.len() as u64 != page.count || !names_fit {
        return Err(mismatch(&page.id, "the page is not what the directory's index says"));
    }
    Ok(leaf)
}

/// The entry called `name` of the directory `tree`.
pub(super) fn lookup(repo: &Repository, tree: &BlobId, name: &[u8]) -> Result<Option<OwnedNode>> {
    let leaf = match load(repo, tree)? {
        Loaded::Leaf(leaf) => leaf,
        Loaded::Index(index, pages) => {
            match pages.partition_point(|page| slice(&index, &page.first) <= name).checked_sub(1) {
                Some(at) => load_page(repo, &index, &pages, at)?,
                None => return Ok(None),
            }
        }
    };
    Ok(leaf.find(name).map(|at| leaf.entry(at).to_owned()))
}

impl<'r> Entries<'r> {
    /// A cursor at the first entry of the directory `tree`. Nothing is read yet.
    pub fn new(repo: &'r Repository, tree: BlobId) -> Self {
        Self { repo, tree, pages: None, leaf: None, page: 0, position: 0, failed: false }
    }

    /// The next entry. After an error the entries of later pages follow, if there are any.
    #[allow(clippy::should_implement_trait, reason = "the entry borrows from the cursor")]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>> {
        Ok(if self.advance()? { Some(self.entry()) } else { None })
    }

    /// Steps to the next entry; false at the end.
    pub(super) fn advance(&mut self) -> Result<bool> {
        loop {
            if self.failed {
                return Ok(false);
            }
            if self.leaf.is_none() {
                match self.load() {
                    Ok(true) => {}
                    Ok(false) => return Ok(false),
                    Err(error) => {
                        // Without the index there is nothing to go on with; after a bad page there is.
                        self.failed = self.pages.is_none();
                        self.page += 1;
                        self.position = 0;
                        return Err(error);
                    }
                }
            }
            if self.position < self.leaf.as_ref().map_or(0, Leaf::len) {
                self.position += 1;
                return Ok(true);
            }
            self.leaf = None;
            self.page += 1;
            self.position = 0;
        }
    }

    /// The trees of directories on the page at hand, if its first entry is the one at hand.
    pub(super) fn trees_of_new_page(&self) -> impl Iterator<Item = BlobId> {
        let leaf = self.leaf.as_ref().filter(|_| self.position == 1);
        leaf.into_iter()
            .flat_map(|leaf| (0..leaf.len()).map(|at| leaf.entry(at)))
            .filter_map(|entry| if let Kind::Directory { tree, .. } = entry.node.kind { Some(tree) } else { None })
    }

    /// The entry that [`Entries::advance`] stepped to.
    pub(super) fn entry(&self) -> Entry<'_> {
        self.leaf.as_ref().expect("advance found an entry").entry(self.position - 1)
    }

    /// Loads the page at hand; false when there is none left.
    fn load(&mut self) -> Result<bool> {
        if self.pages.is_none() {
            match load(self.repo, &self.tree)? {
                Loaded::Leaf(leaf) => {
                    self.pages = Some(Pages::One);
                    if self.page == 0 {
                        self.leaf = Some(leaf);
                        return Ok(true);
                    }
                }
                Loaded::Index(index, pages) => self.pages = Some(Pages::Many(index, pages)),
            }
        }
        match self.pages.as_ref().expect("loaded above") {
            Pages::Many(index, pages) if self.page < pages.len() => {
                self.leaf = Some(load_page(self.repo, index, pages, self.page)?);
                Ok(true)
            }
            Pages::Many(..) | Pages::One => Ok(false),
        }
    }

    /// Makes this the end.
    pub(super) fn end(&mut self) {
        self.failed = true;
    }

    /// Lets go of everything that can be read again.
    pub(super) fn suspend(&mut self) {
        self.pages = None;
        self.leaf = None;
    }

    /// Bytes of memory that [`Entries::suspend`] would give back.
    pub(super) fn held(&self) -> usize {
        let leaf = self.leaf.as_ref().map_or(0, |leaf| leaf.blob.len() + leaf.len() * size_of::<Range<u32>>());
        let pages = match &self.pages {
            Some(Pages::Many(index, pages)) => index.len() + pages.len() * size_of::<PageRef>(),
            _ => 0,
        };
        leaf + pages
    }
}
