//! A subtree in depth-first order, parents before children, names in byte order.
//!
//! Needs no call stack: a hostile depth ends at a limit, not in a crash. Only the deepest levels keep their pages; those
//! above are read again on the way back, so that memory does not grow with depth.

use super::{Entries, Entry};
use crate::format::limits::TREE_DEPTH_MAX;
use crate::format::tree::Kind;
use crate::id::BlobId;
use crate::repo::{Error, Repository};

/// Levels that keep their pages.
const LIVE_LEVELS: usize = 32;
/// Directories that are fetched ahead when the one that they are in is entered, if they are far away.
const TREES_AHEAD: usize = 64;
/// Bytes that the levels above the deepest may keep.
const LIVE_LEN: usize = 32 << 20;

/// What a walk meets.
pub enum Event<'w> {
    /// An entry. If it is a directory, the walk enters it next, unless [`Walk::skip`] is called.
    Entry {
        /// Its path.
        path: &'w [u8],
        /// It.
        entry: Entry<'w>,
    },
    /// All entries of a directory that was entered have been given.
    Leave {
        /// Its path.
        path: &'w [u8],
    },
    /// A part of a directory cannot be read. What is left of it follows.
    Damage {
        /// Path of the directory.
        path: &'w [u8],
        /// Why.
        error: Error,
    },
}

struct Level<'r> {
    entries: Entries<'r>,
    /// Length of the directory's path.
    path_len: usize,
}

/// The walk. The directory that it starts in is not an event itself, leaving it is.
pub struct Walk<'r> {
    repo: &'r Repository,
    levels: Vec<Level<'r>>,
    /// Levels below this one hold no pages.
    live_from: usize,
    path: Vec<u8>,
    /// The directory to enter when the walk goes on.
    pending: Option<BlobId>,
}

impl<'r> Walk<'r> {
    /// A walk of the directory `tree`, whose path is `path`.
    pub fn new(repo: &'r Repository, tree: BlobId, path: &[u8]) -> Self {
        let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        let levels = vec![Level { entries: Entries::new(repo, tree), path_len: path.len() }];
        Self { repo, levels, live_from: 0, path, pending: None }
    }

    /// Keeps out of the directory that was given last.
    pub fn skip(&mut self) {
        self.pending = None;
    }

    /// Directories entered and not yet left, the starting one included.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// What comes next; `None` at the end.
    #[allow(clippy::should_implement_trait, reason = "the event borrows from the walk")]
    pub fn next(&mut self) -> Option<Event<'_>> {
        if let Some(tree) = self.pending.take() {
            let mut entries = Entries::new(self.repo, tree);
            let too_deep = self.levels.len() >= TREE_DEPTH_MAX;
            if too_deep {
                entries.end();
            }
            self.levels.push(Level { entries, path_len: self.path.len() });
            self.thin();
            if too_deep {
                let error = Error::Corrupt {
                    object: format!("tree {tree}"),
                    what: format!("directories are nested deeper than {TREE_DEPTH_MAX}"),
                };
                return Some(Event::Damage { path: &self.path, error });
            }
        }
        let depth = self.levels.len();
        let level = self.levels.last_mut()?;
        self.path.truncate(level.path_len);
        self.live_from = self.live_from.min(depth - 1);
        match level.entries.advance() {
            Err(error) => return Some(Event::Damage { path: &self.path, error }),
            Ok(false) => {
                self.levels.pop();
                return Some(Event::Leave { path: &self.path });
            }
            Ok(true) => {}
        }
        let entries = &self.levels.last()?.entries;
        self.repo.will_read_trees(entries.trees_of_new_page().take(TREES_AHEAD));
        let entry = entries.entry();
        self.path.push(b'/');
        self.path.extend_from_slice(entry.node.name);
        if let Kind::Directory { tree, .. } = entry.node.kind {
            self.pending = Some(tree);
        }
        Some(Event::Entry { path: &self.path, entry })
    }

    /// Lets go of pages, those of the topmost levels first, until the bounds hold.
    fn thin(&mut self) {
        let above = self.levels.len() - 1;
        let mut held: usize = self.levels[self.live_from..above].iter().map(|level| level.entries.held()).sum();
        while self.live_from < above && (above - self.live_from > LIVE_LEVELS || held > LIVE_LEN) {
            held -= self.levels[self.live_from].entries.held();
            self.levels[self.live_from].entries.suspend();
            self.live_from += 1;
        }
    }
}
