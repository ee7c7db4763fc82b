//! The content of a file: its parts in order, and the pages that hold the parts of a large file.
//!
//! A list of parts is indexed by length at every level, so that the part at any offset is found in O(log n) pages.

use crate::format::codec::{Decoder, Encode, Result};
use crate::format::limits::{BLOB_LEN_MAX, LIST_LEVEL_MAX, PARTS_MAX};
use crate::id::{BLOB_ID_LEN, BlobId, ContentHash};

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `len` bytes that are the data blob `id`.
    Data {
        /// The blob.
        id: BlobId,
        /// Its length in bytes, 1 to [`BLOB_LEN_MAX`].
        len: u32,
    },
    /// `len` zero bytes that take no space, at least 1.
    Hole {
        /// Length in bytes.
        len: u64,
    },
}

impl Part {
    /// Bytes of the file that this part covers.
    pub fn len(&self) -> u64 {
        match *self {
            Part::Data { len, .. } => u64::from(len),
            Part::Hole { len } => len,
        }
    }

    /// Never true: parts are not empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the part as stored.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Part::Data { id, len } => {
                out.put_varint(u64::from(*len) << 1);
                out.extend_from_slice(&id.0);
            }
            Part::Hole { len } => out.put_varint(len << 1 | 1),
        }
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Part> {
        let head = input.varint("part length")?;
        let len = head >> 1;
        if len == 0 {
            return Err(input.error("part length"));
        }
        if head & 1 == 1 {
            return Ok(Part::Hole { len });
        }
        if len > BLOB_LEN_MAX as u64 {
            return Err(input.error("part length"));
        }
        Ok(Part::Data { id: BlobId(input.array("part id")?), len: len as u32 })
    }
}

/// The content of a file, as its node records it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content<'a> {
    /// No bytes at all.
    Empty,
    /// The bytes themselves: small files travel inside their directory.
    Inline(&'a [u8]),
    /// One data blob whose id follows from the file's hash.
    Whole(ContentHash),
    /// A short list of parts.
    Parts {
        /// BLAKE3 of the whole content; absent for very sparse files, whose zeros would take too long to hash.
        hash: Option<ContentHash>,
        /// The parts in order.
        parts: Parts<'a>,
    },
    /// A list of parts in pages.
    List {
        /// As in [`Content::Parts`].
        hash: Option<ContentHash>,
        /// Levels of pages above the parts, at least 0: the root page's level.
        level: u8,
        /// The root page, a blob of kind list.
        root: BlobId,
        /// Bytes that are not in holes, so that a sparse file is known as one without reading its list.
        data: u64,
    },
}

/// Parts as stored, decoded when iterated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts<'a> {
    count: usize,
    encoded: &'a [u8],
}

impl<'a> Parts<'a> {
    /// The `count` parts in `encoded`, which the caller made with [`Part::encode`].
    pub fn new(count: usize, encoded: &'a [u8]) -> Self {
        Self { count, encoded }
    }

    /// How many parts.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The parts as stored.
    pub fn encoded(&self) -> &'a [u8] {
        self.encoded
    }

    /// The parts in order; an error ends the iteration.
    pub fn iter(&self) -> impl Iterator<Item = Result<Part>> + use<'a> {
        let mut input = Decoder::new(self.encoded);
        (0..self.count).map(move |_| Part::decode(&mut input))
    }

    /// Decodes `count` parts from `input` and checks that they add up to `size` bytes.
    pub(crate) fn decode(input: &mut Decoder<'a>, size: u64) -> Result<Parts<'a>> {
        let count = input.count(1, "part count")?;
        if count > PARTS_MAX {
            return Err(input.error("part count"));
        }
        let start = input.clone();
        let from = input.offset();
        let mut sum = 0u64;
        for _ in 0..count {
            let part = Part::decode(input)?;
            sum = sum.checked_add(part.len()).ok_or_else(|| input.error("sum of parts"))?;
        }
        if sum != size {
            return Err(input.error("sum of parts"));
        }
        let len = input.offset() - from;
        let encoded = start.clone().take(len, "parts")?;
        Ok(Parts { count, encoded })
    }
}

/// One entry of a page above the lowest level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListChild {
    /// Bytes of the file below this page.
    pub len: u64,
    /// The page, a blob of kind list, one level lower.
    pub id: BlobId,
}

/// A page of a large file's content list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListPage {
    /// Level 0: parts.
    Parts(Vec<Part>),
    /// Level 1 and above: pages of the level below.
    Children {
        /// This page's level.
        level: u8,
        /// Its pages in order.
        children: Vec<ListChild>,
    },
}

impl ListPage {
    /// The page as stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            ListPage::Parts(parts) => {
                out.push(0);
                out.put_varint(parts.len() as u64);
                parts.iter().for_each(|part| part.encode(&mut out));
            }
            ListPage::Children { level, children } => {
                out.push(*level);
                out.put_varint(children.len() as u64);
                for child in children {
                    out.put_varint(child.len);
                    out.extend_from_slice(&child.id.0);
                }
            }
        }
        out
    }

    /// Decodes a page that must be of `level` and cover `len` bytes, as the entry above it says.
    pub fn decode(stored: &[u8], level: u8, len: u64) -> Result<ListPage> {
        let mut input = Decoder::new(stored);
        if input.u8("list level")? != level || level > LIST_LEVEL_MAX {
            return Err(input.error("list level"));
        }
        let some = |count, input: &Decoder<'_>| match count {
            1..=PARTS_MAX => Ok(count),
            _ => Err(input.error("count of a page")),
        };
        let mut sum = 0u64;
        let mut add = |input: &Decoder<'_>, len: u64| {
            sum = sum.checked_add(len).ok_or_else(|| input.error("list length"))?;
            Ok(())
        };
        let page = if level == 0 {
            let count = some(input.count(1, "part count")?, &input)?;
            let mut parts = Vec::with_capacity(count);
            for _ in 0..count {
                let part = Part::decode(&mut input)?;
                add(&input, part.len())?;
                parts.push(part);
            }
            ListPage::Parts(parts)
        } else {
            let count = some(input.count(1 + BLOB_ID_LEN, "page count")?, &input)?;
            let mut children = Vec::with_capacity(count);
            for _ in 0..count {
                let len = input.varint("page length")?;
                // Pages of nothing could be named again and again without the file growing.
                if len == 0 {
                    return Err(input.error("page length"));
                }
                add(&input, len)?;
                children.push(ListChild { len, id: BlobId(input.array("page id")?) });
            }
            ListPage::Children { level, children }
        };
        input.finish("list page")?;
        if sum != len {
            return Err(input.error("list length"));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_survives_a_round_trip_and_must_add_up() {
        let page =
            ListPage::Parts(vec![Part::Data { id: BlobId([7; BLOB_ID_LEN]), len: 4096 }, Part::Hole { len: 1 << 40 }]);
        let stored = page.encode();
        let len = 4096 + (1 << 40);
        assert_eq!(ListPage::decode(&stored, 0, len), Ok(page));
        assert!(ListPage::decode(&stored, 0, len + 1).is_err());
        assert!(ListPage::decode(&stored, 1, len).is_err());
        let page = ListPage::Children { level: 1, children: vec![ListChild { len, id: BlobId([1; BLOB_ID_LEN]) }] };
        assert_eq!(ListPage::decode(&page.encode(), 1, len), Ok(page));
    }

    #[test]
    fn a_page_of_more_holes_than_memory_should_hold_is_refused() {
        for (count, holds) in [(PARTS_MAX, true), (PARTS_MAX + 1, false)] {
            let stored = ListPage::Parts(vec![Part::Hole { len: 1 }; count]).encode();
            assert_eq!(ListPage::decode(&stored, 0, count as u64).is_ok(), holds);
            assert_eq!(Parts::decode(&mut Decoder::new(&stored[1..]), count as u64).is_ok(), holds);
        }
    }

    #[test]
    fn pages_of_nothing_are_refused() {
        let id = BlobId([1; BLOB_ID_LEN]);
        let children = |lens: &[u64]| ListPage::Children {
            level: 1,
            children: lens.iter().map(|len| ListChild { len: *len, id }).collect(),
        };
        assert!(ListPage::decode(&children(&[5, 6]).encode(), 1, 11).is_ok());
        assert!(ListPage::decode(&children(&[5, 0, 6]).encode(), 1, 11).is_err());
        assert!(ListPage::decode(&children(&[]).encode(), 1, 0).is_err());
        assert!(ListPage::decode(&ListPage::Parts(Vec::new()).encode(), 0, 0).is_err());
    }
}
