//! Where the bytes of a file are: extents in order, found by offset in O(log n), pages of large files fetched as needed.
//!
//! Knows lengths and blob ids only; reading the blobs is up to the caller.

use crate::format::codec::DecodeError;
use crate::format::content::{Content, ListPage, Part};
use crate::id::{BlobId, BlobKind};

use super::cache::Cache;
use super::{Error, Result, Wait, blob};
use crate::repo::Repository;

use std::sync::Arc;

/// A regular file ready for reading.
pub(super) struct File {
    /// Length in bytes.
    pub size: u64,
    layout: Layout,
}

enum Layout {
    Inline(Box<[u8]>),
    Extents(Extents),
    List { level: u8, root: BlobId },
}

/// Consecutive runs, by where each begins; the last entry only marks the end.
pub(super) struct Extents(Box<[(u64, Option<BlobId>)]>);

/// A run of a file's bytes that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where in the file it begins.
    pub start: u64,
    /// Where in the file it ends.
    pub end: u64,
    /// The data blob that holds exactly these bytes; `None` for a hole.
    pub blob: Option<BlobId>,
}

impl Extents {
    fn new(runs: impl Iterator<Item = (u64, Option<BlobId>)>) -> Self {
        let mut at = 0;
        let mut starts: Vec<_> = runs
            .map(|(len, blob)| {
                at += len;
                (at - len, blob)
            })
            .collect();
        starts.push((at, None));
        Self(starts.into())
    }

    fn of_parts(parts: impl Iterator<Item = Part>) -> Self {
        Self::new(parts.map(|part| match part {
            Part::Data { id, len } => (u64::from(len), Some(id)),
            Part::Hole { len } => (len, None),
        }))
    }

    /// The extent at `offset`, which lies before the end.
    fn at(&self, offset: u64) -> Extent {
        let next = self.0.partition_point(|(start, _)| *start <= offset);
        let (start, blob) = self.0[next - 1];
        Extent { start, end: self.0[next].0, blob }
    }

    fn len(&self) -> usize {
        std::mem::size_of_val(&*self.0)
    }
}

impl File {
    /// The file of `size` bytes whose node says `content`.
    pub fn new(size: u64, content: &Content<'_>, repo: &Repository) -> std::result::Result<File, DecodeError> {
        let layout = match *content {
            Content::Empty => Layout::Inline(Box::default()),
            Content::Inline(bytes) => Layout::Inline(bytes.into()),
            Content::Whole(hash) => {
                Layout::Extents(Extents::new([(size, Some(repo.blob_id(BlobKind::Data, &hash)))].into_iter()))
            }
            Content::Parts { parts, .. } => {
                let parts = parts.iter().collect::<std::result::Result<Vec<_>, _>>()?;
                Layout::Extents(Extents::of_parts(parts.into_iter()))
            }
            Content::List { level, root, .. } => Layout::List { level, root },
        };
        Ok(File { size, layout })
    }

    /// Bytes it holds in memory.
    pub fn len(&self) -> usize {
        match &self.layout {
            Layout::Inline(bytes) => bytes.len(),
            Layout::Extents(extents) => extents.len(),
            Layout::List { .. } => 0,
        }
    }

    /// The blob that is the whole content, if it is one.
    pub fn single_blob(&self) -> Option<BlobId> {
        match &self.layout {
            Layout::Extents(Extents(starts)) if starts.len() == 2 => starts[0].1,
            _ => None,
        }
    }

    /// The content itself, if it is stored in the node.
    pub fn inline(&self) -> Option<&[u8]> {
        match &self.layout {
            Layout::Inline(bytes) => Some(bytes),
            Layout::Extents(_) | Layout::List { .. } => None,
        }
    }
}

/// Finds extents of files. Keeps the pages of long lists, bounded by bytes.
pub(super) struct Lists {
    pages: Cache<BlobId, Arc<Extents>>,
}

impl Lists {
    /// Keeps at most `len_max` bytes of pages.
    pub fn new(len_max: usize) -> Self {
        Self { pages: Cache::new(len_max) }
    }

    /// The extent of `file` at `offset`, which must be below its size.
    pub fn extent_at(&self, repo: &Repository, file: &File, offset: u64, wait: Wait) -> Result<Extent> {
        let (mut level, mut id) = match &file.layout {
            Layout::Inline(bytes) => return Ok(Extent { start: 0, end: bytes.len() as u64, blob: None }),
            Layout::Extents(extents) => return Ok(extents.at(offset)),
            Layout::List { level, root } => (*level, *root),
        };
        let (mut base, mut len) = (0, file.size);
        loop {
            let page = self.page(repo, id, level, len, wait)?;
            let found = page.at(offset - base);
            let extent = Extent { start: base + found.start, end: base + found.end, blob: found.blob };
            if level == 0 {
                return Ok(extent);
            }
            level -= 1;
            id = extent.blob.expect("entries of upper pages are pages");
            (base, len) = (extent.start, extent.end - extent.start);
        }
    }

    fn page(&self, repo: &Repository, id: BlobId, level: u8, len: u64, wait: Wait) -> Result<Arc<Extents>> {
        if let Some(page) = self.pages.get(&id) {
            return Ok(page);
        }
        let stored = blob(repo, BlobKind::List, &id, wait)?;
        let decoded =
            ListPage::decode(&stored, level, len).map_err(|error| Error::corrupt("content list", id, error))?;
        let page = Arc::new(match decoded {
            ListPage::Parts(parts) => Extents::of_parts(parts.into_iter()),
            ListPage::Children { children, .. } => Extents::new(children.iter().map(|c| (c.len, Some(c.id)))),
        });
        self.pages.put(id, page.clone(), page.len());
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::content::ListChild;
    use crate::vfs::tests::Store;

    #[test]
    fn an_extent_is_found_at_every_offset_of_a_list_in_pages() {
        let mut store = Store::new();
        let mut children = Vec::new();
        let mut expected = Vec::new();
        let mut at = 0;
        for page in 0..3u8 {
            let parts = [
                Part::Data { id: BlobId([page; 20]), len: 10 + u32::from(page) },
                Part::Hole { len: 5 },
                Part::Data { id: BlobId([page | 0x80; 20]), len: 1 },
            ];
            for part in &parts {
                let blob = if let Part::Data { id, .. } = part { Some(*id) } else { None };
                expected.push(Extent { start: at, end: at + part.len(), blob });
                at += part.len();
            }
            let len = parts.iter().map(Part::len).sum();
            let id = store.put(BlobKind::List, &ListPage::Parts(parts.to_vec()).encode());
            children.push(ListChild { len, id });
        }
        let root = store.put(BlobKind::List, &ListPage::Children { level: 1, children }.encode());
        let repo = store.flush();
        let file = File::new(at, &Content::List { hash: None, level: 1, root, data: 0 }, &repo).unwrap();
        let lists = Lists::new(1 << 20);
        assert!(matches!(lists.extent_at(&repo, &file, 0, Wait::No), Err(Error::WouldBlock)));
        for extent in expected {
            for offset in extent.start..extent.end {
                assert_eq!(lists.extent_at(&repo, &file, offset, Wait::Yes).unwrap(), extent);
            }
        }
        assert!(lists.extent_at(&repo, &file, 0, Wait::No).is_ok(), "pages are kept");
    }
}
