//! The little-endian codec that every stored structure is written with: fixed integers, varints, counted bytes.
//!
//! A [`Decoder`] never reads past its input and never allocates from a length that the input cannot hold.

use std::fmt;

/// Stored bytes that are not what the format says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What was expected, e.g. "node name".
    pub what: &'static str,
    /// Where in the input, in bytes.
    pub offset: usize,
    /// It is well formed as far as can be told, and of a sort that only later versions know.
    pub newer: bool,
}

impl DecodeError {
    /// Bytes at `offset` that cannot be what the format says.
    pub fn new(what: &'static str, offset: usize) -> Self {
        Self { what, offset, newer: false }
    }

    /// Bytes at `offset` that a later version may have written.
    pub fn newer(what: &'static str, offset: usize) -> Self {
        Self { what, offset, newer: true }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, offset, newer } = self;
        write!(f, "{} {what} at byte {offset}", if *newer { "unknown" } else { "bad" })
    }
}

impl std::error::Error for DecodeError {}

/// Result of decoding.
pub type Result<T> = std::result::Result<T, DecodeError>;

/// Reads the codec's values one after the other from a byte slice.
#[derive(Clone)]
pub struct Decoder<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// A decoder at the start of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.input.len() - self.at
    }

    /// An error here, about `what`.
    pub fn error(&self, what: &'static str) -> DecodeError {
        DecodeError::new(what, self.at)
    }

    /// An error here, about `what` that a later version may have written.
    pub fn newer(&self, what: &'static str) -> DecodeError {
        DecodeError::newer(what, self.at)
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8]> {
        if len > self.remaining() {
            return Err(self.error(what));
        }
        let bytes = &self.input[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    /// The next `N` bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        Ok(bytes.try_into().expect("take returns exactly N bytes"))
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self, what: &'static str) -> Result<u8> {
        Ok(self.take(1, what)?[0])
    }

    /// A 16-bit little-endian integer.
    #[inline]
    pub fn u16(&mut self, what: &'static str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// A 32-bit little-endian integer.
    #[inline]
    pub fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A 64-bit little-endian integer.
    #[inline]
    pub fn u64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// An unsigned LEB128 integer in its shortest form (longer forms are refused, so that a value has one encoding).
    #[inline]
    pub fn varint(&mut self, what: &'static str) -> Result<u64> {
        let first = self.u8(what)?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.u8(what)?;
            if shift == 63 && byte > 1 || byte == 0 {
                return Err(self.error(what));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.error(what))
    }

    /// A varint that must fit in 32 bits.
    #[inline]
    pub fn varint_u32(&mut self, what: &'static str) -> Result<u32> {
        let value = self.varint(what)?;
        u32::try_from(value).map_err(|_| self.error(what))
    }

    /// A signed integer stored as a zigzag varint.
    #[inline]
    pub fn signed(&mut self, what: &'static str) -> Result<i64> {
        let value = self.varint(what)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A count of items that take at least `item_len_min` bytes each, so a lying count is refused before it allocates.
    pub fn count(&mut self, item_len_min: usize, what: &'static str) -> Result<usize> {
        let count = self.varint(what)?;
        if count > (self.remaining() / item_len_min.max(1)) as u64 {
            return Err(self.error(what));
        }
        Ok(count as usize)
    }

    /// Bytes with their length before them, at most `len_max`.
    #[inline]
    pub fn bytes(&mut self, len_max: usize, what: &'static str) -> Result<&'a [u8]> {
        let len = self.varint(what)?;
        if len > len_max as u64 {
            return Err(self.error(what));
        }
        self.take(len as usize, what)
    }

    /// UTF-8 text with its length before it, at most `len_max` bytes.
    pub fn text(&mut self, len_max: usize, what: &'static str) -> Result<String> {
        let bytes = self.bytes(len_max, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.error(what))
    }

    /// Checks that nothing is left.
    pub fn finish(&self, what: &'static str) -> Result<()> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.error(what)) }
    }
}

/// The fields of a record that later versions may extend: ascending tags, each with a counted value.
pub struct Fields<'a> {
    input: Decoder<'a>,
    last: u64,
    once: &'static [u64],
}

impl<'a> Fields<'a> {
    /// The fields in `stored`, of which those with the tags `once` may not repeat.
    pub fn new(stored: &'a [u8], once: &'static [u64]) -> Self {
        Self { input: Decoder::new(stored), last: 0, once }
    }

    /// The next field's tag and value; `None` at the end.
    #[allow(clippy::should_implement_trait, reason = "an iterator would have to go on after an error")]
    pub fn next(&mut self) -> Result<Option<(u64, &'a [u8])>> {
        if self.input.remaining() == 0 {
            return Ok(None);
        }
        let tag = self.input.varint("field")?;
        if tag < self.last || tag == self.last && self.once.contains(&tag) {
            return Err(self.input.error("order of fields"));
        }
        self.last = tag;
        Ok(Some((tag, self.input.bytes(usize::MAX, "field")?)))
    }

    /// What a field that is not known means: odd tags are for readers that know them, even ones for all.
    pub fn unknown(&self, tag: u64) -> Result<()> {
        if tag.is_multiple_of(2) { Err(self.input.newer("field")) } else { Ok(()) }
    }
}

/// Appends the codec's values to a byte vector.
pub trait Encode {
    /// Appends a varint.
    fn put_varint(&mut self, value: u64);
    /// Appends a zigzag varint.
    fn put_signed(&mut self, value: i64);
    /// Appends bytes with their length before them.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// Appends a field of a record; tags must not descend.
    fn put_field(&mut self, tag: u64, value: &[u8]);
}

impl Encode for Vec<u8> {
    #[inline]
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    #[inline]
    fn put_signed(&mut self, value: i64) {
        self.put_varint((value << 1 ^ value >> 63) as u64);
    }

    #[inline]
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }

    fn put_field(&mut self, tag: u64, value: &[u8]) {
        self.put_varint(tag);
        self.put_bytes(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_survive_a_round_trip() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX, 1 << 63] {
            let mut out = Vec::new();
            out.put_varint(value);
            assert_eq!(Decoder::new(&out).varint("v"), Ok(value));
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            out.put_signed(value);
            assert_eq!(Decoder::new(&out).signed("v"), Ok(value));
        }
    }

    #[test]
    fn overlong_and_overflowing_varints_are_refused() {
        for bad in [&[0x80, 0x00][..], &[0xff; 10], &[0x80], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert!(Decoder::new(bad).varint("v").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_count_larger_than_the_input_is_refused() {
        let mut out = Vec::new();
        out.put_varint(1 << 40);
        assert!(Decoder::new(&out).count(1, "n").is_err());
    }
}
