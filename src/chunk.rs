//! Where files are cut: FastCDC with a gear table that only the repository's key gives. Pure: bytes in, lengths out.
//!
//! The table keeps outsiders from predicting cuts of content they know; that chunk lengths never show in stored objects
//! keeps them from observing any (bygone-format(5), "WHAT AN OBSERVER SEES").

use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use zeroize::Zeroizing;

use crate::format::limits::BLOB_LEN_MAX;

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

impl ChunkSizes {
    /// Sizes of new repositories. See the measurements in bygone-format(5), "CHOICES".
    pub const DEFAULT: ChunkSizes = ChunkSizes { min: 64 << 10, avg: 256 << 10, max: 1 << 20 };

    /// Whether the chunker can work with these sizes.
    pub fn are_valid(&self) -> bool {
        let ChunkSizes { min, avg, max } = *self;
        [min, avg, max].iter().all(|size| size.is_power_of_two())
            && (256..=1 << 20).contains(&min)
            && (1024..=4 << 20).contains(&avg)
            && max as usize <= BLOB_LEN_MAX
            && min < avg
            && avg < max
    }
}

/// Finds cut points.
pub struct Chunker {
    sizes: ChunkSizes,
    masks: (u64, u64),
    gear: Zeroizing<[u64; 256]>,
    gear_shifted: Zeroizing<[u64; 256]>,
}

impl Chunker {
    /// A chunker with valid `sizes` and a repository's `gear` table.
    pub fn new(sizes: ChunkSizes, gear: Zeroizing<[u64; 256]>) -> Chunker {
        assert!(sizes.are_valid(), "sizes are checked when the configuration is decoded");
        let gear_shifted = Zeroizing::new(gear.map(|value| value << 1));
        let masks = select_masks(sizes.avg as usize, Normalization::Level2);
        Chunker { sizes, masks, gear, gear_shifted }
    }

    /// The sizes in use.
    pub fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    /// Length of the chunk at the start of `bytes`, which must hold at least `max` bytes unless the content ends with
    /// them. At most `bytes.len()`.
    pub fn cut(&self, bytes: &[u8]) -> usize {
        let ChunkSizes { min, avg, max } = self.sizes;
        let (small, large) = self.masks;
        let (_, len) = cut_gear(
            bytes,
            min as usize,
            avg as usize,
            max as usize,
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
            let len = chunker.cut(&bytes[at..]);
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
    fn an_insertion_moves_only_the_cuts_near_it() {
        let mut bytes = content(1 << 20);
        let before = cuts(&bytes);
        bytes.splice(1000..1000, *b"inserted");
        let after = cuts(&bytes);
        let common = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(common + 4 > before.len(), "{common} of {} chunks survive", before.len());
    }
}
