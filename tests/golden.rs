//! Repositories that each version of the format wrote, and still read; and one that no version wrote yet.

/// Where every object says which format version wrote it: after the magic.
#[allow(dead_code)]
pub const VERSION_AT: usize = 6;
