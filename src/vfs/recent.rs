//! The directory pages that nodes were found in last, by the ranks of what they hold.
//!
//! Most requests are about the neighbour of the file before, and need not descend from the snapshot's root to find it.

use std::sync::{Arc, Mutex};

use super::directory::{Directory, Place};
use super::inode::NodeAt;
use super::{Found, Source};

/// Pages remembered: a few readers, each with the directories that it is in.
const LEAVES_MAX: usize = 16;

/// The most recently used last.
#[derive(Default)]
pub(super) struct Leaves {
    list: Mutex<Vec<Leaf>>,
}

/// One page of a directory, or all of it.
struct Leaf {
    instance: u32,
    /// Rank of its first entry.
    first: u32,
    parent: NodeAt,
    page: Arc<Directory>,
}

impl Leaves {
    /// The node at `at`, if it is an entry of a remembered page.
    pub fn find(&self, at: NodeAt) -> Option<Found> {
        let mut list = self.list.lock().expect("no panic while held");
        let (index, position) = list.iter().enumerate().rev().find_map(|(index, leaf)| {
            let sought = at.rank.checked_sub(leaf.first).filter(|_| leaf.instance == at.instance)?;
            match leaf.page.find_rank(sought)? {
                // Otherwise it lies in the directory at this position.
                Place::Here(position) => (leaf.page.ranks_before(position) == sought).then_some((index, position)),
                Place::Page(_) => None,
            }
        })?;
        list[index..].rotate_left(1);
        let leaf = list.last().expect("one was found");
        Some(Found { at, parent: leaf.parent, source: Source::Entry(leaf.page.clone(), position) })
    }

    /// Remembers the page that a node was found in.
    pub fn remember(&self, found: &Found) {
        let Source::Entry(page, position) = &found.source else { return };
        // Where a damaged tree makes ranks wrap, nothing is remembered.
        let Some(first) = found.at.rank.checked_sub(page.ranks_before(*position)) else { return };
        let mut list = self.list.lock().expect("no panic while held");
        let instance = found.at.instance;
        let is_same = |leaf: &Leaf| leaf.instance == instance && leaf.first == first && Arc::ptr_eq(&leaf.page, page);
        // Another thread may have descended to it meanwhile.
        if list.iter().any(is_same) {
            return;
        }
        if list.len() == LEAVES_MAX {
            list.remove(0);
        }
        list.push(Leaf { instance, first, parent: found.parent, page: page.clone() });
    }
}
