//! The parent snapshot, walked beside the source: an entry that did not change is taken over with its content unread.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::browse::{self, Entries, OwnedNode};
use crate::format::content::{Content, Part};
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Node, Xattrs};
use crate::id::{BlobId, ObjectId};
use crate::repo::Repository;
use crate::source::{Entry, EntryKind};

use super::Compare;

/// The newest snapshot of `host` and `paths`.
pub(super) fn newest<'s>(
    snapshots: &'s [(ObjectId, Snapshot)],
    host: &str,
    paths: &[Vec<u8>],
) -> Option<&'s (ObjectId, Snapshot)> {
    snapshots.iter().rev().find(|(_, snapshot)| snapshot.host == host && snapshot.paths == paths)
}

/// Why some of the parent could not be read: the first reason.
pub(super) type Unread = Arc<OnceLock<String>>;

/// One directory of the parent, read in step with the source's.
pub(super) struct ParentDirectory<'r> {
    repo: &'r Repository,
    unread: Unread,
    /// `None` for a directory that the parent does not have or that cannot be read: then everything in it is new.
    entries: Option<Entries<'r>>,
    next: Option<OwnedNode>,
}

impl<'r> ParentDirectory<'r> {
    /// The directory whose tree is `tree`.
    pub(super) fn new(repo: &'r Repository, tree: Option<BlobId>, unread: &Unread) -> Self {
        let mut directory =
            Self { repo, unread: unread.clone(), entries: tree.map(|tree| Entries::new(repo, tree)), next: None };
        directory.advance();
        directory
    }

    fn advance(&mut self) {
        self.next = None;
        if let Some(entries) = &mut self.entries {
            match entries.next() {
                Ok(entry) => self.next = entry.map(|entry| entry.to_owned()),
                // A damaged parent costs reading the files again, nothing else.
                Err(error) => {
                    let _ = self.unread.set(error.to_string());
                    self.entries = None;
                }
            }
        }
    }

    /// The node called `name`, if there is one. Names must be asked for in ascending order.
    pub(super) fn take(&mut self, name: &[u8]) -> Option<OwnedNode> {
        loop {
            let next = self.next.as_ref()?.node().name;
            match next.cmp(name) {
                std::cmp::Ordering::Less => self.advance(),
                std::cmp::Ordering::Greater => return None,
                std::cmp::Ordering::Equal => {
                    let node = self.next.take();
                    self.advance();
                    return node;
                }
            }
        }
    }

    /// The parent's `node` with the entry's metadata, if the entry did not change and all of its content is stored; else as
    /// it was.
    pub(super) fn unchanged(
        &self,
        node: OwnedNode,
        entry: &Entry,
        compare: Compare,
        failed: impl FnMut(io::Error),
    ) -> Result<OwnedNode, OwnedNode> {
        let old = node.node();
        let new = entry.metadata();
        let same = old.metadata.mtime == new.mtime
            && (compare.ignore_ctime || old.metadata.ctime == new.ctime)
            && (compare.ignore_inode || old.metadata.inode == new.inode);
        // Nothing but the content of a file is taken over from an inode that has changed, or is another one.
        let same_inode = old.metadata.ctime == new.ctime && old.metadata.inode == new.inode;
        let same_kind = match (old.kind, entry.kind()) {
            (Kind::File { size, content }, EntryKind::File { size: now }) => {
                size == now && self.is_stored(size, content)
            }
            _ if !same_inode => false,
            (Kind::Symlink { .. }, EntryKind::Symlink) => true,
            (Kind::BlockDevice { rdev }, EntryKind::BlockDevice { rdev: now }) => rdev == now,
            (Kind::CharDevice { rdev }, EntryKind::CharDevice { rdev: now }) => rdev == now,
            (Kind::Fifo, EntryKind::Fifo) | (Kind::Socket, EntryKind::Socket) => true,
            _ => false,
        };
        if !(same && same_kind) {
            return Err(node);
        }
        if old.metadata == *new {
            return Ok(node);
        }
        if !same_inode {
            let xattrs = entry.xattrs(failed);
            return Ok(OwnedNode::of(&Node { metadata: *new, xattrs: Xattrs::new(&xattrs), ..old }));
        }
        Ok(OwnedNode::of(&Node { metadata: *new, ..old }))
    }

    fn is_stored(&self, size: u64, content: Content<'_>) -> bool {
        browse::parts(self.repo, size, content).all(|part| match part {
            Ok((_, Part::Data { id, .. })) => self.repo.has(&id),
            Ok((_, Part::Hole { .. })) => true,
            Err(_) => false,
        })
    }
}
