//! Inode numbers: what each of the 64 bits says, so that a number leads to its node without a table.
//!
//! A node of a snapshot is `instance << 32 | rank`: rank is its place in a preorder walk, instance the place where the
//! snapshot appears. Numbers depend on names and content only, so a later mount of the same repository has the same.

use crate::format::tree::Metadata;
use crate::id::ObjectId;

/// The mount's root, as the kernel demands.
pub const ROOT: u64 = 1;

const RANK_BITS: u32 = 32;
const INSTANCE_BITS: u32 = 28;
const INSTANCE_MAX: u32 = (1 << INSTANCE_BITS) - 1;
const LINK: u64 = 1 << (RANK_BITS + INSTANCE_BITS);
const VIRTUAL: u64 = LINK << 1;
const HASH_MASK: u64 = LINK - 1;

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inode {
    /// A directory or link of the views, or the mount's root.
    Virtual(u64),
    /// A node of a snapshot.
    Node(NodeAt),
    /// A file with several names in a snapshot.
    Link(u64),
}

/// A node by where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeAt {
    /// The place where its snapshot appears.
    pub instance: u32,
    /// Its place in a preorder walk of the snapshot; the root is 0.
    pub rank: u32,
}

impl NodeAt {
    /// Its inode number, if it has one name only.
    pub fn number(self) -> u64 {
        u64::from(self.instance) << RANK_BITS | u64::from(self.rank)
    }
}

impl Inode {
    /// What `number` stands for.
    pub fn from_number(number: u64) -> Inode {
        if number == ROOT || number & VIRTUAL != 0 {
            Inode::Virtual(number)
        } else if number & LINK != 0 {
            Inode::Link(number)
        } else {
            Inode::Node(NodeAt { instance: (number >> RANK_BITS) as u32, rank: number as u32 })
        }
    }
}

fn hash(domain: &str, parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(domain.as_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let digest = hasher.finalize();
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest is longer"))
}

/// The number of the view directory or link at `path`; `target` is what a link points to, so that a changed link is
/// another inode and nothing cached of the old one is shown.
pub(super) fn of_virtual(path: &[u8], target: &[u8]) -> u64 {
    VIRTUAL | hash("view", &[path, target]) & HASH_MASK
}

/// The number shared by all names of one source inode within an instance. Names saved at different times, while the
/// file changed, are told apart.
pub(super) fn of_link(instance: u32, metadata: &Metadata, size: u64) -> u64 {
    let words = [
        u64::from(instance),
        metadata.dev,
        metadata.inode,
        metadata.ctime.sec as u64,
        u64::from(metadata.ctime.nsec),
        metadata.mtime.sec as u64,
        u64::from(metadata.mtime.nsec),
        size,
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    LINK | hash("link", &[&bytes]) & HASH_MASK
}

/// The instance number of `snapshot` in the directory `path`, other than those for which `taken` is true.
pub(super) fn instance(path: &[u8], snapshot: &ObjectId, taken: impl Fn(u32) -> bool) -> u32 {
    let first = (hash("instance", &[path, &snapshot.0]) & u64::from(INSTANCE_MAX)) as u32;
    let mut instance = first.max(1);
    while taken(instance) {
        instance = if instance == INSTANCE_MAX { 1 } else { instance + 1 };
    }
    instance
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::Time;

    #[test]
    fn each_sort_of_number_is_told_from_the_others() {
        let at = NodeAt { instance: INSTANCE_MAX, rank: u32::MAX };
        assert_eq!(Inode::from_number(at.number()), Inode::Node(at));
        assert_eq!(Inode::from_number(ROOT), Inode::Virtual(ROOT));
        let view = of_virtual(b"ids", b"");
        assert_eq!(Inode::from_number(view), Inode::Virtual(view));
        let link = of_link(3, &Metadata::default(), 0);
        assert_eq!(Inode::from_number(link), Inode::Link(link));
    }

    #[test]
    fn an_instance_number_is_the_same_each_time_and_steps_over_taken_ones() {
        let id = ObjectId([7; 32]);
        let first = instance(b"snapshots", &id, |_| false);
        assert_eq!(first, instance(b"snapshots", &id, |_| false));
        assert_ne!(first, instance(b"hosts", &id, |_| false));
        let second = instance(b"snapshots", &id, |n| n == first);
        assert_ne!(first, second);
        assert!((1..=INSTANCE_MAX).contains(&second));
    }

    #[test]
    fn names_of_one_inode_share_a_number_unless_the_file_changed_between_them() {
        let metadata = Metadata { dev: 1, inode: 2, nlink: 2, ..Metadata::default() };
        let changed = Metadata { ctime: Time { sec: 1, nsec: 0 }, ..metadata };
        assert_eq!(of_link(1, &metadata, 5), of_link(1, &metadata, 5));
        assert_ne!(of_link(1, &metadata, 5), of_link(2, &metadata, 5));
        assert_ne!(of_link(1, &metadata, 5), of_link(1, &changed, 5));
    }
}
