//! Where files are cut: FastCDC with a gear table that only the repository's key gives. Pure: bytes in, lengths out.
//!
//! The table keeps outsiders from predicting cuts of content they know; that chunk lengths never show in stored objects
//! keeps them from observing any (bygone-format(5), "WHAT AN OBSERVER SEES").

use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use zeroize::Zeroizing;

/// Sizes of chunks in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSizes {
    /// No chunk but a file's last is shorter.
    pub min: u32,
    /// The aim.
    pub avg: u32,
    /// No chunk is longer.
    pub max: u32,
}

/// No chunk of any scale is longer, in bytes: large files are read and cut in runs of this length.
pub const CHUNK_LEN_MAX: usize = 4 << 20;
/// Doublings of the sizes at most.
pub const SCALE_MAX: u8 = 6;
/// Content that does not compress is cut in chunks of this scale at least: it does not change a little here and there.
const SCALE_DENSE: u8 = 5;
/// Text, too, is cut larger: where a little of it changes, a delta costs less than small chunks.
const SCALE_TEXT: u8 = 3;
/// Everything else: programs, databases, disks.
const SCALE_BINARY: u8 = 1;
/// From here on, in bytes, each doubling of the offset doubles the chunks, so that a large file has few.
const SCALED_FROM: u64 = 1 << 30;
/// Bytes of a file's beginning that tell whether it compresses.
const SAMPLE_LEN: usize = 8 << 10;
/// Bits a byte, of 8, above which content counts as dense.
const DENSE_BITS: f64 = 7.6;

impl ChunkSizes {
    /// Sizes of new repositories, before they are scaled by what a file is like. Small chunks cost no compression, because
    /// segments are compressed and not chunks. See bygone-format(5), "CHOICES", for measurements.
    pub const DEFAULT: ChunkSizes = ChunkSizes { min: 2 << 10, avg: 8 << 10, max: 32 << 10 };

    /// Whether the chunker can work with these sizes at every scale.
    pub fn are_valid(&self) -> bool {
        let ChunkSizes { min, avg, max } = *self;
        [min, avg, max].iter().all(|size| size.is_power_of_two())
            && (256..=16 << 10).contains(&min)
            && (1024..=64 << 10).contains(&avg)
            && (max as usize) << SCALE_MAX <= CHUNK_LEN_MAX
            && min < avg
            && avg < max
    }
}

/// Finds cut points.
pub struct Chunker {
    sizes: ChunkSizes,
    /// For each scale.
    masks: Vec<(u64, u64)>,
    gear: Zeroizing<[u64; 256]>,
    gear_shifted: Zeroizing<[u64; 256]>,
}

/// What content is like, as far as that decides how to treat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texture {
    /// Hardly a byte that is not of a text.
    Text,
    /// It has been compressed or encrypted.
    Dense,
    /// Anything else.
    Binary,
}

/// Bytes that are looked at in a blob, and in how many places.
const GLANCE_LEN: usize = 64;
const GLANCES: usize = 4;
/// Different values among the bytes of all glances above which content counts as dense: of 256 random ones about 162
/// differ, in programs 60 to 140.
const GLANCE_VALUES_DENSE: u32 = 148;

/// One byte in this many may be no text in a text.
const TEXT_FAULTS_ONE_IN: usize = 64;

fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..)
}

impl Texture {
    /// What `bytes` are like, from a glance at a few of them.
    pub fn of(bytes: &[u8]) -> Texture {
        let mut seen = [0u64; 4];
        let (mut faults, mut count) = (0, 0);
        for glance in 0..GLANCES {
            let start = bytes.len().saturating_sub(GLANCE_LEN) * glance / (GLANCES - 1);
            for byte in &bytes[start..bytes.len().min(start + GLANCE_LEN)] {
                seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
                faults += usize::from(!is_text(*byte));
                count += 1;
            }
        }
        let values: u32 = seen.iter().map(|bits| bits.count_ones()).sum();
        if values > GLANCE_VALUES_DENSE {
            Texture::Dense
        } else if faults * TEXT_FAULTS_ONE_IN <= count {
            Texture::Text
        } else {
            Texture::Binary
        }
    }
}

/// How large the chunks of one file are; found out once, from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale(u8);

impl Scale {
    /// The scale of a file that begins with `bytes`.
    pub fn of(bytes: &[u8]) -> Scale {
        let sample = &bytes[..bytes.len().min(SAMPLE_LEN)];
        // Too little to tell, and too little to matter.
        if sample.len() < 4096 {
            return Scale(0);
        }
        let mut counts = [0u32; 256];
        sample.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        let len = sample.len() as f64;
        let bits = |count: &u32| if *count == 0 { 0.0 } else { f64::from(*count) * (len / f64::from(*count)).log2() };
        let entropy = counts.iter().map(bits).sum::<f64>() / len;
        if entropy > DENSE_BITS {
            return Scale(SCALE_DENSE);
        }
        let faults: u32 = (0..=u8::MAX).filter(|byte| !is_text(*byte)).map(|byte| counts[usize::from(byte)]).sum();
        Scale(if faults as usize * TEXT_FAULTS_ONE_IN <= sample.len() { SCALE_TEXT } else { SCALE_BINARY })
    }

    /// The scale at `offset` of the file.
    fn at(self, offset: u64) -> u8 {
        let doublings = (offset / SCALED_FROM).checked_ilog2().map_or(0, |log| log as u8 + 1);
        self.0.max(doublings).min(SCALE_MAX)
    }
}

impl Chunker {
    /// A chunker with valid `sizes` and a repository's `gear` table.
    pub fn new(sizes: ChunkSizes, gear: Zeroizing<[u64; 256]>) -> Chunker {
        assert!(sizes.are_valid(), "sizes are checked when the configuration is decoded");
        let gear_shifted = Zeroizing::new(gear.map(|value| value << 1));
        let masks =
            (0..=SCALE_MAX).map(|scale| select_masks((sizes.avg as usize) << scale, Normalization::Level2)).collect();
        Chunker { sizes, masks, gear, gear_shifted }
    }

    /// Longest chunk at `offset` of a file, in bytes.
    pub fn len_max(&self, scale: Scale, offset: u64) -> usize {
        (self.sizes.max as usize) << scale.at(offset)
    }

    /// Length of the chunk at the start of `bytes`, which lie at `offset` of the file and must be at least
    /// [`Chunker::len_max`] many unless the content ends with them.
    pub fn cut(&self, bytes: &[u8], scale: Scale, offset: u64) -> usize {
        let ChunkSizes { min, avg, max } = self.sizes;
        let scale = scale.at(offset);
        let (small, large) = self.masks[usize::from(scale)];
        let (_, len) = cut_gear(
            bytes,
            (min as usize) << scale,
            (avg as usize) << scale,
            (max as usize) << scale,
            small,
            large,
            small << 1,
            large << 1,
            &*self.gear,
            &*self.gear_shifted,
        );
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunker() -> Chunker {
        let mut gear = Zeroizing::new([0u64; 256]);
        let mut bytes = [0u8; 2048];
        blake3::Hasher::new().update(b"gear").finalize_xof().fill(&mut bytes);
        gear.iter_mut().zip(bytes.chunks_exact(8)).for_each(|(g, b)| *g = u64::from_le_bytes(b.try_into().expect("8")));
        Chunker::new(ChunkSizes { min: 4 << 10, avg: 16 << 10, max: 64 << 10 }, gear)
    }

    fn content(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"content").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cuts(bytes: &[u8]) -> Vec<usize> {
        let chunker = chunker();
        let mut at = 0;
        let mut lens = Vec::new();
        while at < bytes.len() {
            let len = chunker.cut(&bytes[at..], Scale(0), 0);
            lens.push(len);
            at += len;
        }
        lens
    }

    #[test]
    fn cut_points_are_those_of_the_first_release() {
        assert_eq!(cuts(&content(200_000)), GOLDEN);
    }

    const GOLDEN: &[usize] = &[18080, 6929, 24351, 20551, 9253, 20264, 16941, 18880, 18790, 23561, 18267, 4133];

    #[test]
    fn lengths_keep_the_bounds_and_add_up() {
        let lens = cuts(&content(3 << 20));
        assert_eq!(lens.iter().sum::<usize>(), 3 << 20);
        assert!(lens[..lens.len() - 1].iter().all(|len| (4 << 10..=64 << 10).contains(len)));
        assert_eq!(cuts(&vec![0; 200_000]), [65536, 65536, 65536, 3392]);
    }

    #[test]
    fn what_content_is_like_and_late_offsets_decide_how_large_chunks_are() {
        let text = b"INSERT INTO instances VALUES (17, 'active', NULL);\n".repeat(2000);
        assert_eq!(Scale::of(&text), Scale(SCALE_TEXT));
        assert_eq!(Scale::of(&text[..4000]), Scale(0), "too short to tell");
        assert_eq!(Scale::of(&content(100_000)), Scale(SCALE_DENSE));
        let program: Vec<u8> =
            content(100_000).iter().map(|byte| if byte % 3 == 0 { 0 } else { byte & 0x5f }).collect();
        assert_eq!(Scale::of(&program), Scale(SCALE_BINARY));
        assert_eq!(Scale::of(&[0; 100_000]), Scale(SCALE_BINARY));
        let umlauts = "größer, änderte, Übermut\n".repeat(500);
        for (bytes, texture) in [
            (&text[..], Texture::Text),
            (umlauts.as_bytes(), Texture::Text),
            (&content(100_000), Texture::Dense),
            (&program, Texture::Binary),
            (&[0; 300], Texture::Binary),
            (b"short", Texture::Text),
            (b"", Texture::Text),
        ] {
            assert_eq!(Texture::of(bytes), texture);
        }
        let scales = [0, (1 << 30) - 1, 1 << 30, 1 << 31, 1 << 32, 1 << 50].map(|offset| Scale(0).at(offset));
        assert_eq!(scales, [0, 0, 1, 2, 3, SCALE_MAX]);
        assert!(ChunkSizes::DEFAULT.are_valid());
    }

    #[test]
    fn an_insertion_moves_only_the_cuts_near_it() {
        let mut bytes = content(1 << 20);
        let before = cuts(&bytes);
        bytes.splice(1000..1000, *b"inserted");
        let after = cuts(&bytes);
        let common = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(common + 4 > before.len(), "{common} of {} chunks survive", before.len());
    }
}
