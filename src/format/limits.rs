//! Every bound that a reader of the format enforces before it allocates. bygone-format(5) lists them.

/// Longest plaintext of one blob, in bytes.
pub const BLOB_LEN_MAX: usize = 16 << 20;
/// Longest plaintext of one segment, in bytes; the writer uses [`SEGMENT_LEN`].
pub const SEGMENT_LEN_MAX: usize = 1 << 20;
/// Plaintext bytes that the writer seals as one unit.
pub const SEGMENT_LEN: usize = 128 << 10;
/// Longest stored pack, in bytes.
pub const PACK_LEN_MAX: u64 = 1 << 30;
/// Longest plaintext of a small object (snapshot, index, configuration), in bytes.
pub const OBJECT_PLAIN_LEN_MAX: usize = 64 << 20;
/// Longest file name, in bytes: what Linux file systems allow.
pub const NAME_LEN_MAX: usize = 255;
/// Longest symbolic link target, in bytes.
pub const TARGET_LEN_MAX: usize = 4096;
/// Longest extended attribute value, in bytes: what the kernel allows.
pub const XATTR_VALUE_LEN_MAX: usize = 64 << 10;
/// Most bytes of all extended attributes of one node.
pub const XATTRS_LEN_MAX: usize = 1 << 20;
/// Longest content stored inside a node, in bytes.
pub const INLINE_LEN_MAX: usize = 64 << 10;
/// Most levels of content list pages: 64-bit lengths cannot need more.
pub const LIST_LEVEL_MAX: u8 = 8;
/// Most parts of a file in its node, and most entries of one page of a content list: a hole takes one byte as stored and
/// many times that in memory.
pub const PARTS_MAX: usize = 65_536;
/// Most blobs that one delta copies from.
pub const DELTA_BASES_MAX: usize = 16;
/// Most fields of a snapshot, for the same reason.
pub const SNAPSHOT_FIELDS_MAX: usize = 4_194_304;
/// Most entries of a snapshot, at any depth and without its root: a mount numbers them with 32 bits.
pub const ENTRIES_MAX: u64 = u32::MAX as u64;
/// Deepest directory that a reader follows; a snapshot's root has depth 1.
pub const TREE_DEPTH_MAX: usize = 65_536;
