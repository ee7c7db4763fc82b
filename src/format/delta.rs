//! A data blob stored as its difference from others: which bytes to copy from them, and the bytes that they lack.
//!
//! ```text
//! varint             number of bases, then for each: varint length | 20 bytes id
//! signed             plain length of the blob less that of the bases
//! varint             length of the commands in bytes
//! commands           each: varint bytes to insert | varint bytes to copy | signed distance of the copy
//! literals           all bytes to insert, in order
//! ```
//!
//! The bases laid end to end are what is copied from. The distance counts from where the copy would begin if the bytes
//! inserted before it stood in the place of as many of the base's: an edit that keeps its length has distance 0. A command
//! that copies nothing has no distance and is the last. Any range of the blob can be made without the rest.

use crate::format::codec::{DecodeError, Decoder, Encode, Result};
use crate::format::limits::{BLOB_LEN_MAX, DELTA_BASES_MAX};
use crate::id::{BLOB_ID_LEN, BlobId};

/// A blob that a delta copies from; it must itself be stored plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its id.
    pub id: BlobId,
    /// Its length in bytes.
    pub len: u32,
}

/// Bytes to insert, then bytes to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Bytes that no base has.
    pub insert: u32,
    /// Bytes that follow them and that the bases have; 0 only at the end.
    pub copy: u32,
    /// Where in the bases the copy begins.
    pub from: u32,
}

/// A delta whose header was decoded. Its commands are checked as they are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<'a> {
    /// Length in bytes of the blob that it makes.
    pub plain_len: u32,
    /// What it copies from.
    pub bases: Vec<Base>,
    commands: &'a [u8],
    literals: &'a [u8],
}

/// A run of the blob's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// These bytes.
    Literal(&'a [u8]),
    /// `len` bytes from `from` of the bases laid end to end.
    Copy {
        /// Where they begin.
        from: u32,
        /// How many, at least 1.
        len: u32,
    },
}

/// The delta by which `commands` make `plain` of `bases`, as stored. The commands' lengths must add up to that of `plain`.
pub fn encode(plain: &[u8], bases: &[Base], commands: &[Command]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + 4 * commands.len());
    out.put_varint(bases.len() as u64);
    for base in bases {
        out.put_varint(u64::from(base.len));
        out.extend_from_slice(&base.id.0);
    }
    let base_len: i64 = bases.iter().map(|base| i64::from(base.len)).sum();
    out.put_signed(plain.len() as i64 - base_len);
    let mut encoded = Vec::with_capacity(4 * commands.len());
    let mut literals = Vec::new();
    let (mut at, mut expected) = (0, 0i64);
    for Command { insert, copy, from } in commands {
        let (start, end) = (at, at + *insert as usize);
        literals.extend_from_slice(&plain[start..end]);
        at = end + *copy as usize;
        encoded.put_varint(u64::from(*insert));
        encoded.put_varint(u64::from(*copy));
        if *copy > 0 {
            encoded.put_signed(i64::from(*from) - (expected + i64::from(*insert)));
            expected = i64::from(*from) + i64::from(*copy);
        }
    }
    assert_eq!(at, plain.len(), "the commands make the whole blob");
    out.put_bytes(&encoded);
    out.extend_from_slice(&literals);
    out
}

impl<'a> Delta<'a> {
    /// Decodes the header of a stored delta.
    pub fn decode(stored: &'a [u8]) -> Result<Delta<'a>> {
        let mut input = Decoder::new(stored);
        let count = input.count(1 + BLOB_ID_LEN, "count of bases")?;
        if !(1..=DELTA_BASES_MAX).contains(&count) {
            return Err(input.error("count of bases"));
        }
        let mut bases = Vec::with_capacity(count);
        for _ in 0..count {
            let len = input.varint_u32("length of a base")?;
            if !(1..=BLOB_LEN_MAX).contains(&(len as usize)) {
                return Err(input.error("length of a base"));
            }
            bases.push(Base { id: BlobId(input.array("id of a base")?), len });
        }
        let base_len: i64 = bases.iter().map(|base: &Base| i64::from(base.len)).sum();
        let plain_len = input.signed("length of a delta's blob")?.checked_add(base_len);
        let plain_len = plain_len.filter(|len| (1..=BLOB_LEN_MAX as i64).contains(len));
        let plain_len = plain_len.ok_or_else(|| input.error("length of a delta's blob"))? as u32;
        let commands = input.bytes(usize::MAX, "commands of a delta")?;
        let literals = input.take(input.remaining(), "literals of a delta")?;
        Ok(Delta { plain_len, bases, commands, literals })
    }

    /// What the `len` bytes from `start` of the blob are made of, in order; fails where they are beyond its end.
    pub fn pieces(&self, start: u32, len: u32) -> Pieces<'_, 'a> {
        let ended = len == 0;
        Pieces {
            bases: &self.bases,
            steps: self.steps(),
            at: 0,
            start: start.into(),
            end: u64::from(start) + u64::from(len),
            step: None,
            ended,
        }
    }

    /// The runs of the blob in order. They add up to its length, or one is an error, after which there is no other.
    pub fn steps(&self) -> Steps<'a> {
        // Bounded by the count and length of bases, so it fits.
        let base_len = self.bases.iter().map(|base| base.len).sum();
        let commands = Decoder::new(self.commands);
        Steps {
            commands,
            literals: self.literals,
            base_len,
            expected: 0,
            left: self.plain_len,
            copy: None,
            ended: false,
        }
    }
}

/// See [`Delta::steps`].
pub struct Steps<'a> {
    commands: Decoder<'a>,
    literals: &'a [u8],
    base_len: u32,
    /// Where a copy without a distance begins.
    expected: i64,
    /// Bytes of the blob that are still to be made.
    left: u32,
    /// The copy that follows the literals just given.
    copy: Option<(u32, u32)>,
    ended: bool,
}

impl<'a> Steps<'a> {
    fn step(&mut self) -> Result<Option<Step<'a>>> {
        loop {
            if let Some((from, len)) = self.copy.take() {
                return Ok(Some(Step::Copy { from, len }));
            }
            if self.commands.remaining() == 0 {
                let whole = self.left == 0 && self.literals.is_empty();
                return if whole { Ok(None) } else { Err(self.commands.error("end of a delta")) };
            }
            let insert = self.commands.varint_u32("insertion of a delta")?;
            let copy = self.commands.varint_u32("copy of a delta")?;
            let rest = self.left.checked_sub(insert).and_then(|left| left.checked_sub(copy));
            let (Some(left), true) = (rest, insert as usize <= self.literals.len()) else {
                return Err(self.commands.error("length in a delta"));
            };
            self.left = left;
            if copy > 0 {
                let distance = self.commands.signed("distance in a delta")?;
                let from = (self.expected + i64::from(insert)).checked_add(distance);
                let from = from.filter(|from| (0..=i64::from(self.base_len) - i64::from(copy)).contains(from));
                let from = from.ok_or_else(|| self.commands.error("distance in a delta"))?;
                self.expected = from + i64::from(copy);
                self.copy = Some((from as u32, copy));
            } else if self.commands.remaining() > 0 || insert == 0 {
                return Err(self.commands.error("copy of a delta"));
            }
            if insert > 0 {
                let (literal, rest) = self.literals.split_at(insert as usize);
                self.literals = rest;
                return Ok(Some(Step::Literal(literal)));
            }
        }
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Result<Step<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step().transpose();
        self.ended = !matches!(step, Some(Ok(_)));
        step
    }
}

/// What a piece of a blob is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// These bytes.
    Literal(&'a [u8]),
    /// Bytes of one base.
    Base {
        /// Which, in the order of the delta.
        index: usize,
        /// Where in it they begin.
        offset: u32,
        /// How many, at least 1.
        len: u32,
    },
}

/// See [`Delta::pieces`].
pub struct Pieces<'d, 'a> {
    bases: &'d [Base],
    steps: Steps<'a>,
    /// Where in the blob the step at hand begins.
    at: u64,
    start: u64,
    end: u64,
    step: Option<Step<'a>>,
    ended: bool,
}

impl<'a> Pieces<'_, 'a> {
    fn piece(&mut self) -> Result<Option<Piece<'a>>> {
        while self.start < self.end {
            let step = match self.step {
                Some(step) => step,
                None => match self.steps.next().transpose()? {
                    Some(step) => *self.step.insert(step),
                    None => return Err(DecodeError::new("end of a delta's blob", self.start as usize)),
                },
            };
            let len = match step {
                Step::Literal(bytes) => bytes.len() as u64,
                Step::Copy { len, .. } => len.into(),
            };
            if self.at + len <= self.start {
                self.at += len;
                self.step = None;
                continue;
            }
            let skip = (self.start - self.at) as usize;
            let wanted = (self.end.min(self.at + len) - self.start) as usize;
            let piece = match step {
                Step::Literal(bytes) => Piece::Literal(&bytes[skip..skip + wanted]),
                Step::Copy { from, .. } => {
                    let mut offset = from + skip as u32;
                    let mut index = 0;
                    while offset >= self.bases[index].len {
                        offset -= self.bases[index].len;
                        index += 1;
                    }
                    Piece::Base { index, offset, len: (wanted as u32).min(self.bases[index].len - offset) }
                }
            };
            self.start += match piece {
                Piece::Literal(bytes) => bytes.len() as u64,
                Piece::Base { len, .. } => len.into(),
            };
            return Ok(Some(piece));
        }
        Ok(None)
    }
}

impl<'a> Iterator for Pieces<'_, 'a> {
    type Item = Result<Piece<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let piece = self.piece().transpose();
        self.ended = !matches!(piece, Some(Ok(_)));
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(n: u8, len: u32) -> Base {
        Base { id: BlobId([n; BLOB_ID_LEN]), len }
    }

    /// What a stored delta makes of the bases' bytes.
    fn apply(stored: &[u8], bases: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for step in Delta::decode(stored)?.steps() {
            match step? {
                Step::Literal(bytes) => out.extend_from_slice(bytes),
                Step::Copy { from, len } => out.extend_from_slice(&bases[from as usize..(from + len) as usize]),
            }
        }
        Ok(out)
    }

    const BASES: &[u8] = b"the quick brown fox jumps over the lazy dog";

    fn sample() -> (Vec<u8>, Vec<u8>) {
        let plain = b"A quick red fox jumps, the lazy dog sleeps".to_vec();
        let commands = [
            Command { insert: 1, copy: 7, from: 3 },
            Command { insert: 3, copy: 10, from: 15 },
            Command { insert: 1, copy: 13, from: 30 },
            Command { insert: 7, copy: 0, from: 0 },
        ];
        let stored = encode(&plain, &[base(1, 20), base(2, 23)], &commands);
        (plain, stored)
    }

    #[test]
    fn a_delta_makes_the_blob_that_it_was_made_of() {
        let (plain, stored) = sample();
        let delta = Delta::decode(&stored).expect("decodes");
        assert_eq!((delta.plain_len, delta.bases.len()), (plain.len() as u32, 2));
        assert_eq!(apply(&stored, BASES), Ok(plain));
    }

    #[test]
    fn any_range_is_made_of_what_it_needs() {
        let (plain, stored) = sample();
        let delta = Delta::decode(&stored).expect("decodes");
        for start in 0..=plain.len() {
            for end in start..=plain.len() {
                let mut made = Vec::new();
                for piece in delta.pieces(start as u32, (end - start) as u32) {
                    match piece.expect("it is whole") {
                        Piece::Literal(bytes) => made.extend_from_slice(bytes),
                        Piece::Base { index, offset, len } => {
                            let base = if index == 0 { &BASES[..20] } else { &BASES[20..] };
                            made.extend_from_slice(&base[offset as usize..(offset + len) as usize]);
                        }
                    }
                }
                assert_eq!(made, plain[start..end]);
            }
        }
        assert!(delta.pieces(plain.len() as u32, 1).any(|piece| piece.is_err()));
        assert!(delta.pieces(0, u32::MAX).any(|piece| piece.is_err()));
    }

    #[test]
    fn an_edit_that_keeps_its_length_has_no_distance() {
        let plain = b"the quick green fox jumps over the lazy dog";
        let commands = [Command { insert: 0, copy: 10, from: 0 }, Command { insert: 5, copy: 28, from: 15 }];
        let stored = encode(plain, &[base(1, 43)], &commands);
        assert!(stored.windows(6).any(|bytes| bytes == [0, 10, 0, 5, 28, 0]), "{stored:?}");
        assert_eq!(apply(&stored, BASES), Ok(plain.to_vec()));
    }

    #[test]
    fn no_mutation_reads_beyond_the_bases_or_makes_more_than_the_blob() {
        let (plain, stored) = sample();
        for at in 0..stored.len() {
            for flip in 1..=255 {
                let mut bad = stored.clone();
                bad[at] ^= flip;
                let Ok(delta) = Delta::decode(&bad) else { continue };
                let base_len: u32 = delta.bases.iter().map(|base| base.len).sum();
                let (mut len, mut whole) = (0, true);
                for step in delta.steps() {
                    match step {
                        Ok(Step::Literal(bytes)) => len += bytes.len() as u32,
                        Ok(Step::Copy { from, len: copied }) => {
                            assert!(copied > 0 && from.checked_add(copied).is_some_and(|end| end <= base_len));
                            len += copied;
                        }
                        Err(_) => whole = false,
                    }
                }
                assert!(if whole { len == delta.plain_len } else { len <= delta.plain_len }, "byte {at}");
            }
            assert!(apply(&stored[..at], BASES).is_err(), "cut at {at}");
        }
        assert!(plain.len() > 10);
    }

    #[test]
    fn what_no_writer_makes_is_refused() {
        let made = |commands: &[u8], literals: &[u8], bases: usize| {
            let mut out = Vec::new();
            out.put_varint(bases as u64);
            for n in 0..bases {
                out.put_varint(10);
                out.extend_from_slice(&[n as u8; BLOB_ID_LEN]);
            }
            out.put_signed(8 - 10 * bases as i64);
            out.put_bytes(commands);
            out.extend_from_slice(literals);
            apply(&out, &[7; 1000]).is_ok()
        };
        assert!(made(&[0, 8, 0], b"", 1));
        assert!(made(&[1, 7, 0], b"x", 1));
        assert!(made(&[8, 0], b"12345678", 1));
        assert!(!made(&[0, 8, 0], b"", 0), "no base");
        assert!(!made(&[0, 8, 0], b"", DELTA_BASES_MAX + 1), "too many bases");
        assert!(!made(&[0, 8, 6], b"", 1), "beyond the bases");
        assert!(!made(&[0, 8, 1], b"", 1), "before the bases");
        assert!(!made(&[0, 0, 0, 8, 0], b"", 1), "a command of nothing");
        assert!(!made(&[4, 0, 4, 0], b"12345678", 1), "a copy of nothing before the end");
        assert!(!made(&[0, 8, 0], b"x", 1), "literals left over");
        assert!(!made(&[0, 7, 0], b"", 1), "too short");
        assert!(!made(&[0, 9, 0], b"", 1), "too long");
    }
}
