//! Reads what a snapshot holds: directories entry by entry, paths, whole subtrees, the bytes of files.
//!
//! Shared by every command that looks into snapshots. Memory is bounded by pages, never by directories or files: at any
//! moment a cursor holds one page of a directory and one page of each level of a content list. Stored structures are
//! checked against what names them (names across pages, lengths of parts), so that callers need not. Follows no links.

mod content;
mod directory;
#[cfg(test)]
pub(crate) mod sample;
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

#[cfg(test)]
mod tests {
    use super::sample::*;
    use super::*;
    use crate::format::content::{Content, ListChild, ListPage, Part};
    use crate::format::limits::TREE_DEPTH_MAX;
    use crate::id::{BlobId, BlobKind, ContentHash};
    use crate::repo::Error;

    fn names(repo: &Repository, tree: BlobId) -> (Vec<Vec<u8>>, usize) {
        let (mut names, mut errors) = (Vec::new(), 0);
        let mut entries = Entries::new(repo, tree);
        loop {
            match entries.next() {
                Ok(Some(entry)) => names.push(entry.node.name.to_vec()),
                Ok(None) => return (names, errors),
                Err(_) => errors += 1,
            }
        }
    }

    fn numbered(count: usize) -> Vec<OwnedNode> {
        (0..count).map(|n| inline(format!("{n:05}").as_bytes(), b"x")).collect()
    }

    #[test]
    fn entries_come_in_order_through_pages_and_are_found_by_name() {
        let mut sample = Sample::new();
        let (tree, entries, _) = sample.paged(&numbered(1000), 7);
        let top = node(b"d", metadata(0o755), Kind::Directory { tree, entries });
        let root = sample.tree(&[top]);
        let (repo, snapshot) = sample.snapshot(root);
        let expected: Vec<_> = (0..1000).map(|n| format!("{n:05}").into_bytes()).collect();
        assert_eq!(names(&repo, tree), (expected, 0));
        for n in [0, 6, 7, 500, 999] {
            let path = format!("//d/./{n:05}/");
            assert!(resolve(&repo, &snapshot, path.as_bytes()).unwrap().is_some(), "{path}");
        }
        for path in ["/d/00000x", "/d/", "/d/0", "/d/01000", "/e", "/d/../d", "/d/00001/x"] {
            let found = resolve(&repo, &snapshot, path.as_bytes()).unwrap();
            assert_eq!(found.is_some(), path == "/d/", "{path}");
        }
        assert!(resolve(&repo, &snapshot, b"/").unwrap().unwrap().node().name.is_empty());
    }

    #[test]
    fn a_page_out_of_place_is_reported_and_the_others_are_given() {
        let mut sample = Sample::new();
        let nodes = numbered(30);
        let (_, _, pages) = sample.paged(&nodes, 10);
        // The index says that the second page is where the third is.
        use crate::format::tree::{Page, Tree};
        let page = |first: &'static [u8], id: BlobId| Page { first, id, count: 10, ranks: 10 };
        let stored = Tree::encode_index(
            [page(b"00000", pages[0]), page(b"00010", pages[2]), page(b"00020", pages[2])].into_iter(),
        );
        let tree = sample.blob(BlobKind::Tree, &stored);
        let (repo, _) = sample.snapshot((tree, 30));
        let (names, errors) = names(&repo, tree);
        assert_eq!((names.len(), errors), (20, 1));
        assert_eq!(names[10], b"00020");
    }

    #[test]
    fn a_walk_gives_parents_first_and_finds_its_way_back_from_great_depth() {
        let mut sample = Sample::new();
        let mut below = sample.tree(&[inline(b"bottom", b"x")]);
        for n in 0..3000 {
            let (tree, entries) = below;
            let directory = node(b"d", metadata(0o755), Kind::Directory { tree, entries });
            below = sample.tree(&[directory, inline(format!("e{n}").as_bytes(), b"x")]);
        }
        let (repo, snapshot) = sample.snapshot(below);
        let Kind::Directory { tree, .. } = snapshot.root().kind else { unreachable!() };
        let mut walk = Walk::new(&repo, tree, b"/top");
        let (mut files, mut left) = (Vec::new(), 0);
        while let Some(event) = walk.next() {
            match event {
                Event::Entry { path, entry } if matches!(entry.node.kind, Kind::File { .. }) => {
                    assert_eq!(path.iter().filter(|byte| **byte == b'/').count(), walk_depth(path));
                    files.push(entry.node.name.to_vec());
                }
                Event::Entry { .. } => {}
                Event::Leave { .. } => left += 1,
                Event::Damage { error, .. } => panic!("{error}"),
            }
        }
        assert_eq!((files.len(), left), (3001, 3001));
        assert_eq!(files[0], b"bottom");
        assert_eq!(files[1], b"e0");
        assert_eq!(files[3000], b"e2999");
    }

    /// Slashes that a path made of `/top`, directories called `d` and one name must have.
    fn walk_depth(path: &[u8]) -> usize {
        2 + path.windows(2).filter(|pair| pair == b"/d").count()
    }

    #[test]
    fn a_hostile_depth_ends_in_damage_and_everything_entered_is_left() {
        let mut sample = Sample::new();
        let mut below = sample.tree(&[]);
        for _ in 0..TREE_DEPTH_MAX + 10 {
            let directory = node(b"d", metadata(0o755), Kind::Directory { tree: below.0, entries: below.1 });
            below = sample.tree(&[directory]);
        }
        let (repo, _) = sample.snapshot(below);
        let mut walk = Walk::new(&repo, below.0, b"");
        let (mut entered, mut left, mut damage) = (1, 0, 0);
        while let Some(event) = walk.next() {
            match event {
                Event::Entry { .. } => entered += 1,
                Event::Leave { .. } => left += 1,
                Event::Damage { .. } => damage += 1,
            }
        }
        assert_eq!((damage, entered), (1, left));
        assert_eq!(left, TREE_DEPTH_MAX + 1);
    }

    #[test]
    fn a_file_is_read_through_pages_with_its_holes() {
        let mut sample = Sample::new();
        let data: Vec<Vec<u8>> = (0..6u8).map(|n| vec![n + 1; 1000 + usize::from(n)]).collect();
        let mut expected = Vec::new();
        let mut pages = Vec::new();
        for pair in data.chunks(2) {
            let mut parts = Vec::new();
            for bytes in pair {
                parts.push(Part::Data { id: sample.blob(BlobKind::Data, bytes), len: bytes.len() as u32 });
                parts.push(Part::Hole { len: 500 });
                expected.extend_from_slice(bytes);
                expected.extend_from_slice(&[0; 500]);
            }
            let len = parts.iter().map(Part::len).sum();
            pages.push(ListChild { len, id: sample.blob(BlobKind::List, &ListPage::Parts(parts).encode()) });
        }
        let size = expected.len() as u64;
        let root = ListPage::Children { level: 1, children: pages.clone() }.encode();
        let root = sample.blob(BlobKind::List, &root);
        let mut hollow = pages;
        hollow.push(ListChild { len: 0, id: hollow[0].id });
        let hollow = sample.blob(BlobKind::List, &ListPage::Children { level: 1, children: hollow }.encode());
        let tree = sample.tree(&[]);
        let (repo, _) = sample.snapshot(tree);
        let content = Content::List { hash: None, level: 1, root, data: size };

        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut ContentReader::new(&repo, size, content), &mut read).unwrap();
        assert!(read == expected);
        let mut written = Vec::new();
        write_content(&repo, size, content, &mut written).unwrap().unwrap();
        assert!(written == expected);
        let offsets: Vec<u64> = parts(&repo, size, content).map(|part| part.unwrap().0).collect();
        assert_eq!(offsets[..4], [0, 1000, 1500, 2501]);

        for wrong in [size - 1, size + 1] {
            assert!(parts(&repo, wrong, content).any(|part| part.is_err()), "{wrong}");
        }
        let content = Content::List { hash: None, level: 1, root: hollow, data: size };
        assert!(matches!(parts(&repo, size, content).last(), Some(Err(Error::Corrupt { .. }))));
    }

    #[test]
    fn a_blob_of_another_length_than_its_part_is_refused() {
        let mut sample = Sample::new();
        sample.blob(BlobKind::Data, b"seven b");
        let tree = sample.tree(&[]);
        let (repo, _) = sample.snapshot(tree);
        let content = Content::Whole(ContentHash::of(b"seven b"));
        let mut out = Vec::new();
        assert!(write_content(&repo, 7, content, &mut out).is_ok());
        assert!(matches!(write_content(&repo, 8, content, &mut out), Err(Error::Corrupt { .. })));
    }
}
