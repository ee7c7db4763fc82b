//! Reads what a snapshot holds: directories entry by entry, paths, whole subtrees, the bytes of files.
//!
//! Shared by every command that looks into snapshots. Memory is bounded by pages, never by directories or files: at any
//! moment a cursor holds one page of a directory and one page of each level of a content list. Stored structures are
//! checked against what names them (names across pages, lengths of parts), so that callers need not. Follows no links.

mod content;
mod directory;
mod walk;

pub(crate) use content::data_blob;
pub use content::{ContentReader, Parts, parts, write_content};
pub use directory::{Entries, Entry, OwnedNode};
pub use walk::{Event, Walk};

use crate::format::snapshot::Snapshot;
use crate::format::tree::Kind;
use crate::repo::{Repository, Result};

/// The names in `path`, which may start and end with slashes; `None` if one of them is `..`.
pub fn components(path: &[u8]) -> Option<impl DoubleEndedIterator<Item = &[u8]>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    if names.clone().any(|name| name == b"..") { None } else { Some(names) }
}

/// The node at `path` below the snapshot's root; `None` if there is none. The root itself is the empty path or `/`.
pub fn resolve(repo: &Repository, snapshot: &Snapshot, path: &[u8]) -> Result<Option<OwnedNode>> {
    let Some(names) = components(path) else { return Ok(None) };
    let mut at = OwnedNode::of(&snapshot.root());
    for name in names {
        let Kind::Directory { tree, .. } = at.node().kind else { return Ok(None) };
        match directory::lookup(repo, &tree, name)? {
            Some(node) => at = node,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}
