//! Every function that decodes bytes which someone else may have written. Each takes any bytes and may refuse them; it
//! may not panic, loop, or allocate what a length claims without looking whether that much can be there.
//!
//! The same list is run by the mutation test on every machine and by the fuzzer in `tools/fuzz`.

use std::sync::OnceLock;

use bygone::format::codec::Decoder;
use bygone::format::content::{Content, ListPage};
use bygone::format::header::{Header, StoredKind};
use bygone::format::object::{self, Config};
use bygone::format::pack::{Footer, SegmentTable, decode_blob_table};
use bygone::format::snapshot::Snapshot;
use bygone::format::tree::{Kind, Tree};
use bygone::format::{index, limits};
use bygone::id::RepositoryId;
use bygone::key::{KeyObject, Keys, MasterKey};

/// A parser by its name.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them.
pub const PARSERS: &[Parser] = &[
    ("tree", tree),
    ("list_page", list_page),
    ("snapshot", snapshot),
    ("index", index),
    ("pack", pack),
    ("key", key),
    ("config", config),
    ("sealed", sealed),
    ("unsealed", unsealed),
];

/// Keys that are the same for the length of the process.
pub fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| Keys::new(MasterKey::random().expect("the system has randomness")))
}

/// The repository that [`keys`] are of.
pub const REPOSITORY: RepositoryId = RepositoryId([7; 32]);

/// A directory or a page of one.
pub fn tree(input: &[u8]) {
    let Ok(tree) = Tree::decode(input) else { return };
    let leaf = match tree {
        Tree::Leaf(leaf) => leaf,
        Tree::Index(pages) => return assert!(!pages.is_empty()),
    };
    assert_eq!(leaf.nodes().count(), leaf.count, "a tree that decoded has every node that it says");
    for node in leaf.nodes() {
        assert!(!node.name.is_empty() && !node.name.contains(&b'/') && !node.name.contains(&0));
        node.xattrs.iter().for_each(drop);
        let Kind::File { size, content: Content::Parts { parts, .. } } = node.kind else { continue };
        let sum: u64 = parts.iter().map(|part| part.expect("parts were checked").len()).sum();
        assert_eq!(sum, size);
    }
}

/// A page of a content list; its level and length come first.
pub fn list_page(input: &[u8]) {
    let Some((parameters, page)) = input.split_first_chunk::<9>() else { return };
    let len = u64::from_le_bytes(parameters[1..].try_into().expect("eight bytes"));
    match ListPage::decode(page, parameters[0], len) {
        Ok(ListPage::Parts(parts)) => assert!(!parts.is_empty()),
        Ok(ListPage::Children { children, .. }) => {
            assert!(!children.is_empty() && children.iter().all(|child| child.len > 0));
        }
        Err(_) => {}
    }
}

/// A snapshot.
pub fn snapshot(input: &[u8]) {
    if let Ok(snapshot) = Snapshot::decode(input) {
        snapshot.root();
        assert_eq!(Snapshot::decode(&snapshot.encode()), Ok(snapshot));
    }
}

/// An index object.
pub fn index(input: &[u8]) {
    if let Ok(packs) = index::decode(input) {
        assert!(packs.iter().all(|pack| !pack.blobs.is_empty()));
        assert_eq!(index::decode(&index::encode(&packs)), Ok(packs));
    }
}

/// Footer and tables of a pack.
pub fn pack(input: &[u8]) {
    let _ = Header::decode(input, StoredKind::Pack);
    let _ = Footer::decode(input, input.len() as u64);
    let _ = Footer::decode(input, limits::PACK_LEN_MAX);
    if let Ok(table) = SegmentTable::decode(input, 1 << 29) {
        let sum: usize = (0..table.count()).map(|segment| table.segment_plain_len(segment)).sum();
        assert_eq!(sum, table.plain_len as usize);
    }
    let _ = decode_blob_table(input, u32::MAX);
    let _ = index::decode_blobs(&mut Decoder::new(input));
}

/// A key object.
pub fn key(input: &[u8]) {
    if let Ok(key) = KeyObject::decode(input) {
        assert_eq!(KeyObject::decode(&key.encode()), Ok(key));
    }
}

/// The configuration object.
pub fn config(input: &[u8]) {
    let _ = Config::repository_id(input);
    let _ = Config::decode(input, keys());
    let _ = Config::decode_fields(input);
}

/// Bytes as they lie in the store.
pub fn sealed(input: &[u8]) {
    for kind in [StoredKind::Config, StoredKind::Index, StoredKind::Snapshot] {
        let _ = object::open(keys(), &REPOSITORY, kind, input.to_vec());
    }
}

/// Bytes that someone with the key has sealed.
pub fn unsealed(input: &[u8]) {
    if input.len() > limits::OBJECT_PLAIN_LEN_MAX {
        return;
    }
    let stored = object::seal(keys(), &REPOSITORY, StoredKind::Index, input).expect("sealing works");
    let opened = object::open(keys(), &REPOSITORY, StoredKind::Index, stored);
    assert_eq!(opened.as_deref(), Ok(input));
}
