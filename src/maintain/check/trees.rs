//! Follows trees from every snapshot, and refuses whatever some reader would refuse: what a restore and what the mount
//! compare, this compares.
//!
//! A tree in order is looked at once, however many snapshots share it. One with damage somewhere below it is walked again
//! from each place that it is seen in, so that every path is named that the damage takes down.

use std::collections::{HashMap, HashSet};

use super::{PROBLEMS_MAX, Report, Suspects};
use crate::browse;
use crate::format::content::{Content, Part};
use crate::format::delta::Base;
use crate::format::limits::TREE_DEPTH_MAX;
use crate::format::tree::{Kind, Leaf, Node, Page, Tree};
use crate::id::{BLOB_ID_LEN, BlobId, BlobKind, ObjectId};
use crate::index::Location;
use crate::progress::Progress;
use crate::repo::{Error, Repository, Result};

/// Paths with damage that are looked for; from then on a tree with damage is not walked again.
const PATHS_FOUND_MAX: u64 = 200_000;

/// A directory, or a page of one, and what is said of it where it is named.
struct Named {
    /// Its name; empty for a page, which is the directory's own.
    name: Vec<u8>,
    tree: BlobId,
    /// Entries below it at any depth, itself not among them.
    ranks: u64,
    page: Option<Neighbours>,
}

/// What an index of pages says of a page.
struct Neighbours {
    count: u64,
    first: Vec<u8>,
    /// First name of the page after it.
    next: Option<Vec<u8>>,
}

impl Named {
    /// What has been looked at if this has. A page is looked at again where its neighbours are others.
    fn key(&self) -> BlobId {
        let Some(Neighbours { count, first, next }) = &self.page else { return self.tree };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.tree.0).update(&count.to_le_bytes()).update(&self.ranks.to_le_bytes());
        hasher.update(&(first.len() as u64).to_le_bytes()).update(first);
        hasher.update(&[u8::from(next.is_some())]).update(next.as_deref().unwrap_or_default());
        BlobId::from_bytes(&hasher.finalize().as_bytes()[..BLOB_ID_LEN]).expect("a hash is longer than an id")
    }
}

/// A tree that is in order, with everything below it.
#[derive(Clone, Copy)]
struct Whole {
    ranks: u64,
    /// Levels of directories, its own among them.
    height: usize,
}

/// A directory or page on the way to where the walk is.
struct Level {
    key: BlobId,
    whole: Whole,
    is_page: bool,
    path_len: usize,
    below: std::vec::IntoIter<Named>,
    /// Paths with damage when it was entered.
    found_before: u64,
}

/// The walk through all trees.
pub(super) struct Trees<'a> {
    repo: &'a Repository,
    suspects: &'a Suspects,
    report: &'a mut Report,
    progress: &'a Progress,
    whole: HashMap<BlobId, Whole>,
    damaged: HashSet<BlobId>,
    /// Problems that were found here, by what is wrong.
    problems: HashMap<String, usize>,
    /// Paths with damage so far.
    found: u64,
    snapshot: ObjectId,
    path: Vec<u8>,
}

impl<'a> Trees<'a> {
    pub(super) fn new(
        repo: &'a Repository,
        suspects: &'a Suspects,
        report: &'a mut Report,
        progress: &'a Progress,
    ) -> Self {
        let (whole, damaged, problems) = (HashMap::new(), HashSet::new(), HashMap::new());
        let snapshot = ObjectId([0; 32]);
        Self { repo, suspects, report, progress, whole, damaged, problems, found: 0, snapshot, path: Vec::new() }
    }

    /// Follows the tree `root` of a snapshot, below which `entries` entries are said to be.
    pub(super) fn check(&mut self, snapshot: ObjectId, root: BlobId, entries: u64) -> Result<()> {
        self.snapshot = snapshot;
        self.path.clear();
        let mut levels: Vec<Level> = Vec::new();
        let mut depth = 0;
        let mut next = Some(Named { name: Vec::new(), tree: root, ranks: entries, page: None });
        loop {
            if self.progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if let Some(named) = next.take() {
                let path_len = self.path.len();
                if !named.name.is_empty() {
                    self.path.push(b'/');
                    self.path.extend_from_slice(&named.name);
                }
                let is_page = named.page.is_some();
                let entered = self.enter(&named, depth, path_len);
                match entered {
                    Entered::New(level) => {
                        depth += usize::from(!is_page);
                        levels.push(level);
                    }
                    Entered::Known(height) => {
                        if let Some(above) = levels.last_mut() {
                            above.whole.height = above.whole.height.max(height + usize::from(!above.is_page));
                        }
                        self.path.truncate(path_len);
                    }
                }
            }
            let Some(level) = levels.last_mut() else { return Ok(()) };
            next = level.below.next();
            if next.is_some() {
                continue;
            }
            let Level { key, whole, is_page, path_len, found_before, .. } =
                levels.pop().expect("it was there just now");
            self.path.truncate(path_len);
            depth -= usize::from(!is_page);
            if self.found == found_before {
                self.whole.insert(key, whole);
            } else {
                self.damaged.insert(key);
            }
            if let Some(above) = levels.last_mut() {
                above.whole.height = above.whole.height.max(whole.height + usize::from(!above.is_page));
            }
        }
    }

    /// Looks at a tree itself and at the files in it.
    fn enter(&mut self, named: &Named, depth: usize, path_len: usize) -> Entered {
        let key = named.key();
        let corrupt = |what: String| Error::Corrupt { object: format!("tree {}", named.tree), what };
        let too_deep = || corrupt(format!("directories are nested deeper than {TREE_DEPTH_MAX}"));
        let is_page = named.page.is_some();
        let levels = usize::from(!is_page);
        if let Some(Whole { ranks, height }) = self.whole.get(&key).copied() {
            if ranks != named.ranks {
                self.lost(b"", miscounted(named));
            }
            if depth + height > TREE_DEPTH_MAX {
                self.lost(b"", too_deep());
            }
            return Entered::Known(height);
        }
        if depth + levels > TREE_DEPTH_MAX {
            self.lost(b"", too_deep());
            return Entered::Known(levels);
        }
        if self.damaged.contains(&key) {
            if self.found >= PATHS_FOUND_MAX {
                self.found += 1;
                return Entered::Known(levels);
            }
        } else {
            self.report.trees += 1;
            self.progress.add(0);
        }
        let found_before = self.found;
        let (ranks, below) = match self.tree(named) {
            Ok(found) => found,
            Err(error) => {
                self.blob_lost(&named.tree, b"", error);
                (named.ranks, Vec::new())
            }
        };
        let whole = Whole { ranks, height: levels };
        Entered::New(Level { key, whole, is_page, path_len, below: below.into_iter(), found_before })
    }

    /// Entries in and below a tree, and the directories or pages right below it.
    fn tree(&mut self, named: &Named) -> Result<(u64, Vec<Named>)> {
        let corrupt = |what: &str| Error::Corrupt { object: format!("tree {}", named.tree), what: what.to_owned() };
        let blob = self.repo.blob(BlobKind::Tree, &named.tree)?;
        let decoded = Tree::decode(&blob).map_err(|error| Error::decode(format!("tree {}", named.tree), error))?;
        let (ranks, below) = match &decoded {
            Tree::Index(_) if named.page.is_some() => {
                return Err(corrupt("a page of a directory must hold its nodes"));
            }
            Tree::Index(pages) => {
                (pages.iter().try_fold(0, |sum: u64, page| sum.checked_add(page.ranks)), paged(pages))
            }
            Tree::Leaf(leaf) => {
                if named.page.as_ref().is_some_and(|page| !page.fits(leaf)) {
                    return Err(corrupt("the page is not what the directory's index says"));
                }
                (leaf.nodes().try_fold(0, |sum: u64, node| sum.checked_add(node.ranks())), self.leaf(leaf))
            }
        };
        if ranks != Some(named.ranks) {
            return Err(miscounted(named));
        }
        Ok((named.ranks, below))
    }

    /// Looks at the files of a leaf; returns its directories.
    fn leaf(&mut self, leaf: &Leaf<'_>) -> Vec<Named> {
        let mut below = Vec::new();
        for node in leaf.nodes() {
            match node.kind {
                Kind::Directory { tree, entries } => {
                    below.push(Named { name: node.name.to_vec(), tree, ranks: entries, page: None });
                }
                Kind::File { size, content } => self.file(&node, size, content),
                _ => {}
            }
        }
        below
    }

    fn file(&mut self, node: &Node<'_>, size: u64, content: Content<'_>) {
        let mut data = 0;
        let mut parts = browse::parts(self.repo, size, content);
        while let Some(part) = parts.next() {
            match part {
                Ok((_, Part::Hole { .. })) => {}
                Ok((_, Part::Data { id, len })) => {
                    data += u64::from(len);
                    if let Err((lost, error)) = self.data(&id, len) {
                        return self.blob_lost(&lost, node.name, error);
                    }
                }
                Err(error) => match parts.page() {
                    Some(page) => return self.blob_lost(&page, node.name, error),
                    None => return self.lost(node.name, error),
                },
            }
        }
        if let Content::List { data: said, root, .. } = content
            && said != data
        {
            let what = format!("{data} bytes of data where the file says {said}");
            self.lost(node.name, Error::Corrupt { object: format!("list {root}"), what });
        }
    }

    /// A data blob must be in an index, with the length that the file says, and so must the bases that its delta is made of.
    /// Fails with the blob that is lost.
    fn data(&self, id: &BlobId, len: u32) -> std::result::Result<(), (BlobId, Error)> {
        let lost = |id: &BlobId| {
            let id = *id;
            move |error| (id, error)
        };
        let location = self.repo.locate(id).ok_or_else(|| lost(id)(self.missing(id)))?;
        let found = self.data_at(id, &location, len);
        // Where it is stored plain as well, a reader takes it from there.
        let plain = if location.is_delta && found.is_err() { self.repo.locate_plain(id) } else { None };
        plain.map_or(found, |plain| self.data_at(id, &plain, len))
    }

    fn data_at(&self, id: &BlobId, location: &Location, len: u32) -> std::result::Result<(), (BlobId, Error)> {
        let lost = |id: &BlobId| {
            let id = *id;
            move |error| (id, error)
        };
        self.pack_is_whole(id, location).map_err(lost(id))?;
        let delta = if location.is_delta { self.repo.delta(id).map_err(lost(id))? } else { None };
        let (found, bases) = delta.map_or((location.len, Vec::new()), |delta| (delta.plain_len, delta.bases));
        self.has_len(id, found, "its file", len).map_err(lost(id))?;
        for Base { id, len } in &bases {
            let location = self.repo.locate_plain(id).ok_or_else(|| lost(id)(self.missing(id)))?;
            self.has_len(id, location.len, "a delta that is made of it", *len).map_err(lost(id))?;
            self.pack_is_whole(id, &location).map_err(lost(id))?;
        }
        Ok(())
    }

    fn missing(&self, id: &BlobId) -> Error {
        Error::MissingBlob { kind: BlobKind::Data, id: *id, location: self.repo.location() }
    }

    fn has_len(&self, id: &BlobId, found: u32, who: &str, len: u32) -> Result<()> {
        if found == len {
            return Ok(());
        }
        let what = format!("an index says {found} bytes, {who} {len}");
        Err(Error::Corrupt { object: format!("Data blob {id}"), what })
    }

    fn pack_is_whole(&self, id: &BlobId, location: &Location) -> Result<()> {
        if let Some(problem) = self.suspects.blobs.get(id)
            && self.suspects.packs.get(problem) == Some(&self.repo.index().pack(location.pack).id)
        {
            return Err(Error::Corrupt { object: format!("Data blob {id}"), what: "its pack is damaged".to_owned() });
        }
        Ok(())
    }

    /// Something needs a blob that cannot be read; `name` is empty if it is the directory itself.
    fn blob_lost(&mut self, id: &BlobId, name: &[u8], error: Error) {
        match self.suspects.blobs.get(id) {
            Some(problem) => self.path_lost(*problem, name),
            None => self.lost(name, error),
        }
    }

    fn lost(&mut self, name: &[u8], error: Error) {
        let what = error.to_string();
        let problem = match self.problems.get(&what) {
            Some(problem) => *problem,
            None => {
                let problem = self.report.problem(&what);
                if problem < PROBLEMS_MAX {
                    self.problems.insert(what, problem);
                }
                problem
            }
        };
        self.path_lost(problem, name);
    }

    fn path_lost(&mut self, problem: usize, name: &[u8]) {
        self.found += 1;
        if name.is_empty() {
            self.report.path(problem, &self.snapshot, &self.path);
        } else {
            self.report.path(problem, &self.snapshot, &[&self.path, b"/".as_slice(), name].concat());
        }
    }
}

fn miscounted(named: &Named) -> Error {
    let what = format!("it does not hold the {} entries that are said to be in it", named.ranks);
    Error::Corrupt { object: format!("tree {}", named.tree), what }
}

enum Entered {
    New(Level),
    /// Not entered; so many levels of directories are in it.
    Known(usize),
}

fn paged(pages: &[Page<'_>]) -> Vec<Named> {
    let next = pages.iter().skip(1).map(|page| Some(page.first.to_vec())).chain([None]);
    let named = |(page, next): (&Page<'_>, _)| {
        let page_is = Neighbours { count: page.count, first: page.first.to_vec(), next };
        Named { name: Vec::new(), tree: page.id, ranks: page.ranks, page: Some(page_is) }
    };
    pages.iter().zip(next).map(named).collect()
}

impl Neighbours {
    fn fits(&self, leaf: &Leaf<'_>) -> bool {
        let names = |node: Option<Node<'_>>| node.map(|node| node.name.to_vec());
        let (first, last) = (names(leaf.nodes().next()), names(leaf.nodes().last()));
        leaf.count as u64 == self.count
            && first.as_ref() == Some(&self.first)
            && self.next.as_ref().is_none_or(|next| last.as_ref().is_some_and(|last| last < next))
    }
}
