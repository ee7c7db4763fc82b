//! Where an open file has bytes and where it has holes.
//!
//! The file system is asked only about files that take less space than their length; one that cannot answer is taken to
//! have no holes. Runs cover the file from its start to its size without a gap, whatever happens to it meanwhile.

use crate::source::directory::OpenFile;
use rustix::fs::{self, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;

/// A run of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Bytes to read, from and to these offsets.
    Data(Range<u64>),
    /// Zeros that take no space.
    Hole(Range<u64>),
}

/// The runs of a file in order. Moves the file's offset: read with offsets of your own.
pub struct Extents<'a> {
    file: &'a File,
    at: u64,
    size: u64,
    may_have_holes: bool,
}

impl<'a> Extents<'a> {
    /// The runs of `open`, up to the size that it had when it was opened.
    pub fn new(open: &'a OpenFile) -> Self {
        let may_have_holes = open.stat.blocks.saturating_mul(512) < open.size;
        Self { file: &open.file, at: 0, size: open.size, may_have_holes }
    }

    fn take_rest(&mut self) -> Range<u64> {
        std::mem::replace(&mut self.at, self.size)..self.size
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if self.at >= self.size {
            return None;
        }
        if !self.may_have_holes {
            return Some(Extent::Data(self.take_rest()));
        }
        let at = self.at;
        let data = match fs::seek(self.file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, self.size),
            // Nothing but a hole follows, or the file is shorter by now.
            Err(Errno::NXIO) => self.size,
            Err(_) => {
                self.may_have_holes = false;
                at
            }
        };
        if data > at {
            self.at = data;
            return Some(Extent::Hole(at..data));
        }
        match fs::seek(self.file, SeekFrom::Hole(at)) {
            Ok(hole) if hole > at => self.at = hole.min(self.size),
            _ => self.at = self.size,
        }
        Some(Extent::Data(at..self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::metadata::Stat;
    use std::os::unix::fs::FileExt;

    fn open(file: &File) -> OpenFile {
        let stat = Stat::of(file).unwrap();
        OpenFile { file: file.try_clone().unwrap(), stat, size: file.metadata().unwrap().len() }
    }

    fn cover(extents: &[Extent], size: u64) {
        let mut at = 0;
        for Extent::Data(range) | Extent::Hole(range) in extents {
            assert!(range.start == at && range.end > at, "{extents:?}");
            at = range.end;
        }
        assert_eq!(at, size);
    }

    #[test]
    fn a_full_file_is_one_run() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 100_000], 0).unwrap();
        assert_eq!(Extents::new(&open(&file)).collect::<Vec<_>>(), [Extent::Data(0..100_000)]);
        assert_eq!(Extents::new(&open(&tempfile::tempfile().unwrap())).next(), None);
    }

    #[test]
    fn holes_of_a_sparse_file_are_found_without_reading_them() {
        let file = tempfile::tempfile().unwrap();
        let size = 1 << 40;
        file.set_len(size).unwrap();
        if let Err(error) = file.write_all_at(&[1; 4096], 1 << 30) {
            panic!("{error}");
        }
        let extents: Vec<_> = Extents::new(&open(&file)).collect();
        cover(&extents, size);
        if extents.len() == 1 {
            eprintln!("SKIPPED: the file system does not report holes");
            return;
        }
        let data: u64 = extents.iter().map(|e| if let Extent::Data(r) = e { r.end - r.start } else { 0 }).sum();
        assert!((4096..4 << 20).contains(&data), "{extents:?}");
        let Extent::Hole(first) = &extents[0] else { panic!("{extents:?}") };
        assert!(first.end <= 1 << 30, "{extents:?}");
        let Extent::Hole(last) = &extents[2] else { panic!("{extents:?}") };
        assert_eq!(last.end, size);
    }

    #[test]
    fn a_file_that_shrinks_is_still_covered_to_its_size() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let open = open(&file);
        file.set_len(10).unwrap();
        let extents: Vec<_> = Extents::new(&open).collect();
        cover(&extents, 1 << 20);
    }
}
