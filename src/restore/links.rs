//! The first names of entries that have several, for the others to become links to.
//!
//! How many names an entry has is known, not how many of them come: some may lie outside of what was backed up or what is
//! restored. So only so many are remembered, those that came up last; further names of the others become files of their
//! own, with the same content.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use lru::LruCache;

use super::metadata::file_type;
use super::place::Place;
use crate::format::content::Content;
use crate::format::tree::{Kind, Node};

/// Entries whose first name is remembered at most: a few hundred MiB in names of usual length.
pub(super) const LINKS_MAX: usize = 1 << 21;

/// What became of a first name. Set once, by whoever restores it.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate(Arc<AtomicU8>);

impl Fate {
    const THERE: u8 = 1;
    const MADE: u8 = 2;

    /// It has the content, because it was `made` or because it was there.
    pub(super) fn set(&self, made: bool) {
        self.0.store(if made { Self::MADE } else { Self::THERE }, Ordering::Release);
    }

    /// Whether it has the content, so that others may be links to it.
    pub(super) fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// Whether it was there and stayed.
    pub(super) fn was_there(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::THERE
    }
}

/// The first name of an entry that has several.
#[derive(Clone)]
pub(super) struct FirstName {
    pub(super) place: Arc<Place>,
    pub(super) name: Box<[u8]>,
    pub(super) fate: Fate,
    /// Names to come.
    left: u32,
}

/// Device, inode and a hash of the content: a file that changed while it was backed up has different names' contents.
type Key = (u64, u64, u64);

/// First names by entry.
pub(super) struct Links {
    names: LruCache<Key, FirstName>,
    max: usize,
}

impl Links {
    pub(super) fn new(max: usize) -> Self {
        Self { names: LruCache::unbounded(), max }
    }

    /// The first name of the entry that `node` is another name of.
    pub(super) fn first(&mut self, node: &Node<'_>) -> Option<FirstName> {
        if node.metadata.nlink <= 1 || self.names.is_empty() {
            return None;
        }
        let key = key(node);
        let first = self.names.get_mut(&key)?;
        first.left -= 1;
        if first.left == 0 { self.names.pop(&key) } else { Some(first.clone()) }
    }

    /// A name went by that is not restored.
    pub(super) fn pass(&mut self, node: &Node<'_>) {
        let _ = self.first(node);
    }

    /// Remembers `node` in `place` as a first name, if others may come. Returns what is to be set when it has its content.
    pub(super) fn remember(&mut self, node: &Node<'_>, place: &Arc<Place>) -> Option<Fate> {
        let left = node.metadata.nlink.checked_sub(1).filter(|left| *left > 0)?;
        let fate = Fate::default();
        let first = FirstName { place: place.clone(), name: node.name.into(), fate: fate.clone(), left };
        self.names.push(key(node), first);
        while self.names.len() > self.max {
            self.names.pop_lru();
        }
        Some(fate)
    }
}

fn key(node: &Node<'_>) -> Key {
    let mut hasher = DefaultHasher::new();
    file_type(&node.kind).as_raw_mode().hash(&mut hasher);
    match node.kind {
        Kind::File { size, content } => {
            size.hash(&mut hasher);
            match content {
                Content::Empty => {}
                Content::Inline(bytes) => bytes.hash(&mut hasher),
                Content::Whole(hash) => hash.hash(&mut hasher),
                Content::Parts { parts, .. } => parts.encoded().hash(&mut hasher),
                Content::List { root, .. } => root.hash(&mut hasher),
            }
        }
        Kind::Symlink { target } => target.hash(&mut hasher),
        Kind::BlockDevice { rdev } | Kind::CharDevice { rdev } => rdev.hash(&mut hasher),
        Kind::Directory { .. } | Kind::Fifo | Kind::Socket => {}
    }
    (node.metadata.dev, node.metadata.inode, hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::{Metadata, Xattrs};

    fn named(inode: u64, nlink: u32) -> Node<'static> {
        let metadata = Metadata { dev: 1, inode, nlink, ..Metadata::default() };
        Node { name: b"name", metadata, kind: Kind::Fifo, xattrs: Xattrs::default() }
    }

    #[test]
    fn a_first_name_is_kept_while_others_may_come_and_while_there_is_room() {
        let mut links = Links::new(2);
        let place = Place::nowhere();
        assert!(links.remember(&named(1, 1), &place).is_none());
        assert!(links.names.is_empty(), "nothing comes after the only name");
        for inode in 1..=3 {
            assert!(links.first(&named(inode, 3)).is_none());
            assert!(links.remember(&named(inode, 3), &place).is_some());
        }
        assert!(links.first(&named(1, 3)).is_none(), "the oldest has made room");
        assert!(links.first(&named(2, 3)).is_some());
        links.pass(&named(2, 3));
        assert_eq!(links.names.len(), 1, "all names have gone by, though one is not restored");
        assert!(links.first(&named(3, 3)).is_some());
        assert!(links.first(&named(3, 3)).is_some());
        assert!(links.names.is_empty());
    }
}
