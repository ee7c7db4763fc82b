//! Builds small repositories in memory for tests: any nodes, any trees, blobs left out at will.

use std::sync::Arc;

use super::OwnedNode;
use crate::backend::mem::Memory;
use crate::format::content::Content;
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, LeafBuilder, Metadata, Node, Page, Time, Tree, Xattrs};
use crate::id::{BlobId, BlobKind, ContentHash};
use crate::pool::Pool;
use crate::repo::writer::{WriteOptions, Writer};
use crate::repo::{OpenOptions, Repository};

/// A repository being filled.
pub(crate) struct Sample {
    pub(crate) repo: Arc<Repository>,
    writer: Writer,
}

/// Metadata of this process's own files.
pub(crate) fn metadata(mode: u32) -> Metadata {
    Metadata {
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Time { sec: 1_700_000_000, nsec: 123_456_789 },
        nlink: 1,
        ..Metadata::default()
    }
}

/// A node without attributes.
pub(crate) fn node(name: &[u8], metadata: Metadata, kind: Kind<'_>) -> OwnedNode {
    OwnedNode::of(&Node { name, metadata, kind, xattrs: Xattrs::default() })
}

/// A file whose content is in its node.
pub(crate) fn inline(name: &[u8], bytes: &[u8]) -> OwnedNode {
    let content = if bytes.is_empty() { Content::Empty } else { Content::Inline(bytes) };
    node(name, metadata(0o644), Kind::File { size: bytes.len() as u64, content })
}

impl Sample {
    pub(crate) fn new() -> Self {
        let repo = Repository::init(Arc::new(Memory::new()), b"password", &OpenOptions::default()).unwrap();
        let pool = Arc::new(Pool::new("test", 1).unwrap());
        let writer = Writer::new(repo.clone(), pool, WriteOptions::default()).unwrap();
        Self { repo, writer }
    }

    /// Stores a blob.
    pub(crate) fn blob(&mut self, kind: BlobKind, bytes: &[u8]) -> BlobId {
        let id = self.repo.blob_id(kind, &ContentHash::of(bytes));
        self.writer.store(kind, id, bytes).unwrap();
        id
    }

    /// A directory of one leaf; sorts the nodes.
    pub(crate) fn tree(&mut self, nodes: &[OwnedNode]) -> (BlobId, u64) {
        let mut nodes: Vec<_> = nodes.iter().map(OwnedNode::node).collect();
        nodes.sort_by_key(|node| node.name);
        let mut leaf = LeafBuilder::new();
        nodes.iter().for_each(|node| leaf.push(node));
        let entries = leaf.ranks();
        let stored = leaf.finish();
        (self.blob(BlobKind::Tree, &stored), entries)
    }

    /// A directory in pages of `per_page` nodes, which must be sorted.
    pub(crate) fn paged(&mut self, nodes: &[OwnedNode], per_page: usize) -> (BlobId, u64, Vec<BlobId>) {
        let mut pages = Vec::new();
        for nodes in nodes.chunks(per_page) {
            let (id, ranks) = self.tree(nodes);
            pages.push((nodes[0].node().name.to_vec(), id, nodes.len() as u64, ranks));
        }
        let index = pages.iter().map(|(first, id, count, ranks)| Page { first, id: *id, count: *count, ranks: *ranks });
        let stored = Tree::encode_index(index.collect::<Vec<_>>().into_iter());
        let entries = pages.iter().map(|page| page.3).sum();
        (self.blob(BlobKind::Tree, &stored), entries, pages.iter().map(|page| page.1).collect())
    }

    /// A directory node.
    pub(crate) fn directory(&mut self, name: &[u8], nodes: &[OwnedNode]) -> OwnedNode {
        let (tree, entries) = self.tree(nodes);
        node(name, metadata(0o755), Kind::Directory { tree, entries })
    }

    /// A file of one blob, which is stored.
    pub(crate) fn whole(&mut self, name: &[u8], bytes: &[u8]) -> OwnedNode {
        self.blob(BlobKind::Data, bytes);
        missing(name, bytes)
    }

    /// Everything stored, and a snapshot of the directory `tree`.
    pub(crate) fn snapshot(self, (tree, entries): (BlobId, u64)) -> (Arc<Repository>, Snapshot) {
        self.writer.finish().unwrap();
        let mut snapshot = Snapshot::default();
        let root = node(b"", metadata(0o755), Kind::Directory { tree, entries });
        snapshot.set_root(&root.node());
        (self.repo, snapshot)
    }
}

/// A file of one blob, which is not stored.
pub(crate) fn missing(name: &[u8], bytes: &[u8]) -> OwnedNode {
    let content = Content::Whole(ContentHash::of(bytes));
    node(name, metadata(0o644), Kind::File { size: bytes.len() as u64, content })
}
