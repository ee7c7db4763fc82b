//! Every function that decodes bytes which someone else may have written. Each takes any bytes and may refuse them; it
//! may not panic, loop, or allocate what a length claims without looking whether that much can be there.
//!
//! The same list is run by the mutation test on every machine and by the fuzzer in `tools/fuzz`.

use std::sync::OnceLock;

use bygone::difference::Differ;
use bygone::format::codec::Decoder;
use bygone::format::content::{Content, ListPage};
use bygone::format::delta::{self, Base, Delta, Piece, Step};
use bygone::format::header::{Header, StoredKind};
use bygone::format::object::{self, Config};
use bygone::format::pack::{Footer, SegmentTable, decode_blob_table};
use bygone::format::snapshot::Snapshot;
use bygone::format::tree::{Kind, Tree};
use bygone::format::{index, limits};
use bygone::id::{BLOB_ID_LEN, BlobId, RepositoryId};
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
    ("delta", delta),
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

/// A blob stored as its difference from others; and the input's second half made of its first one.
pub fn delta(input: &[u8]) {
    if let Ok(delta) = Delta::decode(input) {
        delta_keeps_within_its_bases(&delta);
    }
    let Some((at, rest)) = input.split_first() else { return };
    let (base, new) = rest.split_at(rest.len() / 2);
    if base.is_empty() || new.is_empty() {
        return;
    }
    let mut differ = Differ::default();
    let commands = differ.commands(base, new, usize::from(*at), usize::MAX).expect("no limit");
    let bases = [Base { id: BlobId([1; BLOB_ID_LEN]), len: base.len() as u32 }];
    let stored = delta::encode(new, &bases, &commands);
    let delta = Delta::decode(&stored).expect("what was encoded decodes");
    assert_eq!((delta.plain_len as usize, &delta.bases[..]), (new.len(), &bases[..]));
    let mut made = Vec::new();
    for step in delta.steps() {
        match step.expect("what was encoded can be followed") {
            Step::Literal(bytes) => made.extend_from_slice(bytes),
            Step::Copy { from, len } => made.extend_from_slice(&base[from as usize..(from + len) as usize]),
        }
    }
    assert!(made == new, "the delta makes something else");
    let insert_max = usize::from(*at);
    if let Some(commands) = differ.commands(base, new, 0, insert_max) {
        assert!(commands.iter().map(|command| command.insert as usize).sum::<usize>() <= insert_max);
    }
}

fn delta_keeps_within_its_bases(delta: &Delta<'_>) {
    assert!((1..=limits::BLOB_LEN_MAX).contains(&(delta.plain_len as usize)));
    assert!((1..=limits::DELTA_BASES_MAX).contains(&delta.bases.len()));
    let base_len: u32 = delta.bases.iter().map(|base| base.len).sum();
    let (mut len, mut is_whole) = (0, true);
    for step in delta.steps() {
        match step {
            Ok(Step::Literal(bytes)) => len += bytes.len() as u32,
            Ok(Step::Copy { from, len: copied }) => {
                assert!(copied > 0 && from.checked_add(copied).is_some_and(|end| end <= base_len));
                len += copied;
            }
            Err(_) => is_whole = false,
        }
    }
    assert!(if is_whole { len == delta.plain_len } else { len <= delta.plain_len });
    for (start, wanted) in [(0, delta.plain_len), (delta.plain_len / 2, 4096), (delta.plain_len - 1, 1)] {
        let mut len = 0;
        for piece in delta.pieces(start, wanted) {
            match piece {
                Ok(Piece::Literal(bytes)) => len += bytes.len() as u32,
                Ok(Piece::Base { index, offset, len: copied }) => {
                    assert!(copied > 0 && offset.checked_add(copied).is_some_and(|end| end <= delta.bases[index].len));
                    len += copied;
                }
                Err(_) => is_whole &= start + wanted > delta.plain_len,
            }
        }
        assert!(len <= wanted && (!is_whole || len == wanted.min(delta.plain_len - start)));
    }
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
