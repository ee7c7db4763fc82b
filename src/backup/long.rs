//! Long files: read piece by piece, cut as they come, handed over in runs of bounded size.
//!
//! Who takes the runs decides where they are hashed: the scan sends them through the pool, the committer does it itself.

use std::io;
use std::ops::Range;

use crate::chunk::{CHUNK_LEN_MAX, Chunker, Scale};
use crate::format::tree::Metadata;
use crate::id::ContentHash;
use crate::progress::Progress;
use crate::source::read::{Extent, Extents};
use crate::source::{Entry, EntryKind, OpenFile};

use super::read::{ToRead, hash_zeros, read_up_to};
use super::scan::Was;
use crate::browse::OwnedNode;

/// Bytes of a run: enough to cut at least one chunk.
const RUN_LEN: usize = CHUNK_LEN_MAX;
/// Holes up to this many bytes are hashed as zeros; a file with more has no hash of its whole content.
const HOLES_HASHED_MAX: u64 = 256 << 20;

/// Who takes the work is gone, so there is no reason to go on.
pub(super) struct Stopped;

/// Result of a step that goes on unless nobody takes its work.
pub(super) type Go<T = ()> = Result<T, Stopped>;

/// A piece of a run; a chunk with where its bytes are, and the delta that stands for them.
pub(super) enum Piece {
    Hole(u64),
    Chunk(ContentHash, Range<usize>, Option<Box<[u8]>>),
}

/// Consecutive bytes of a long file, cut and hashed.
pub(super) struct Run {
    pub content: Vec<u8>,
    pub pieces: Vec<Piece>,
}

impl Run {
    /// Bytes of the file that it covers.
    pub(super) fn len(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Hole(len) => *len,
                Piece::Chunk(_, range, _) => range.len() as u64,
            })
            .sum()
    }
}

/// What is known of a long file at its end.
pub(super) struct EndedFile {
    pub name: Vec<u8>,
    pub metadata: Metadata,
    pub xattrs: Vec<u8>,
    pub was: Was,
    pub hash: Option<ContentHash>,
    pub is_linked: bool,
    /// It is a stream, and what the parent has of that name.
    pub stream: Option<Option<OwnedNode>>,
}

/// `None` if the file could not be read to its end.
pub(super) type FileEnd = Option<EndedFile>;

/// Consecutive bytes of a long file, cut and not hashed yet.
pub(super) struct CutRun {
    content: Vec<u8>,
    pieces: Vec<UnhashedPiece>,
}

impl CutRun {
    /// Computes what takes the time.
    pub(super) fn hash(self) -> Run {
        let Self { content, pieces } = self;
        let hash = |piece| match piece {
            UnhashedPiece::Hole(len) => Piece::Hole(len),
            UnhashedPiece::Chunk(range) => Piece::Chunk(ContentHash::of(&content[range.clone()]), range, None),
        };
        let pieces = pieces.into_iter().map(hash).collect();
        Run { content, pieces }
    }
}

/// Opens the file `to_read`. If another one has taken its place since the walk, that one is what is to be read from now
/// on; `None` if it is no regular file.
pub(super) fn open(to_read: &mut ToRead) -> io::Result<Option<OpenFile>> {
    let error = match to_read.entry.open() {
        Ok(open) => return Ok(Some(open)),
        Err(error) => error,
    };
    let Some(new) = to_read.entry.look_again()? else { return Err(error) };
    to_read.replace(new);
    let is_file = matches!(to_read.entry.kind(), EntryKind::File { .. });
    if is_file { to_read.entry.open().map(Some) } else { Ok(None) }
}

/// What is stored as the metadata of a file that was read through `open`.
pub(super) fn metadata(entry: &Entry, open: &OpenFile) -> Metadata {
    match entry.kind() {
        // A device's own inode says nothing that its name did not.
        EntryKind::Volume { .. } => *entry.metadata(),
        _ => open.stat.metadata,
    }
}

/// Reads `open` through `cutter`, which has begun nothing else. `None` if it could not be read to its end; what is wrong
/// is told to `progress`.
pub(super) fn read<F: FnMut(CutRun) -> Go>(
    to_read: ToRead,
    open: &OpenFile,
    mut cutter: Cutter<'_, F>,
    progress: &Progress,
) -> Go<Option<EndedFile>> {
    let ToRead { entry, path, was, is_linked, .. } = to_read;
    let mut is_short = false;
    let mut read_error = None;
    for extent in Extents::new(open) {
        match extent {
            Extent::Hole(range) => cutter.hole(range.end - range.start)?,
            Extent::Data(range) => {
                let mut at = range.start;
                let read = cutter.data(|out| {
                    let want = out.len().min((range.end - at) as usize);
                    let len = read_up_to(&open.file, &mut out[..want], at)?;
                    at += len as u64;
                    Ok(len)
                })?;
                if let Err(error) = read {
                    read_error = Some(error);
                    break;
                }
                is_short = at < range.end;
                if is_short {
                    break;
                }
            }
        }
    }
    let hash = cutter.finish()?;
    if let Some(error) = read_error {
        progress.error(&path, "read", error);
        return Ok(None);
    }
    let is_volume = matches!(entry.kind(), EntryKind::Volume { .. });
    match open.has_changed() {
        Ok(false) if !is_short => {}
        // A device's times say nothing.
        Ok(_) if is_volume && !is_short => {}
        Ok(_) => progress.error(&path, "read", "the file changed while it was read; what was read is kept"),
        Err(error) => progress.error(&path, "stat", error),
    }
    let xattrs = open.xattrs(|error| progress.error(&path, "read an extended attribute of", error));
    let (name, metadata) = (entry.name().to_vec(), metadata(&entry, open));
    Ok(Some(EndedFile { name, metadata, xattrs, was, hash, is_linked, stream: None }))
}

/// Cuts the bytes of a long file into chunks and hands them over in runs.
pub(super) struct Cutter<'a, F> {
    hand_over: F,
    chunker: &'a Chunker,
    progress: &'a Progress,
    content: Vec<u8>,
    /// Up to here the content is cut.
    cut: usize,
    /// Where that is in the file.
    offset: u64,
    scale: Option<Scale>,
    pieces: Vec<UnhashedPiece>,
    hasher: Option<blake3::Hasher>,
    holes_len: u64,
}

enum UnhashedPiece {
    Hole(u64),
    Chunk(Range<usize>),
}

impl<'a, F: FnMut(CutRun) -> Go> Cutter<'a, F> {
    /// A cutter that gives its runs to `hand_over`.
    pub(super) fn new(chunker: &'a Chunker, progress: &'a Progress, hand_over: F) -> Self {
        let hasher = Some(blake3::Hasher::new());
        let content = Vec::with_capacity(RUN_LEN);
        Self {
            hand_over,
            chunker,
            progress,
            content,
            cut: 0,
            offset: 0,
            scale: None,
            pieces: Vec::new(),
            hasher,
            holes_len: 0,
        }
    }

    fn hole(&mut self, len: u64) -> Go {
        self.holes_len += len;
        self.offset += len;
        match &mut self.hasher {
            Some(hasher) if self.holes_len <= HOLES_HASHED_MAX => hash_zeros(hasher, len),
            _ => self.hasher = None,
        }
        self.pieces.push(UnhashedPiece::Hole(len));
        Ok(())
    }

    /// Takes in bytes until `read` returns 0; a read error is returned inside.
    pub(super) fn data(&mut self, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Go<io::Result<()>> {
        loop {
            if self.progress.is_cancelled() {
                return Err(Stopped);
            }
            if self.content.len() == RUN_LEN {
                self.send()?;
            }
            let at = self.content.len();
            self.content.resize(RUN_LEN, 0);
            let len = match read(&mut self.content[at..]) {
                Ok(len) => len,
                Err(error) => {
                    self.content.truncate(at);
                    return Ok(Err(error));
                }
            };
            self.content.truncate(at + len);
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&self.content[at..]);
            }
            let is_end = len == 0;
            self.cut_chunks(is_end);
            if is_end {
                return Ok(Ok(()));
            }
        }
    }

    fn cut_chunks(&mut self, is_end: bool) {
        loop {
            let left = &self.content[self.cut..];
            let scale = *self.scale.get_or_insert_with(|| Scale::of(left));
            let is_enough = left.len() >= self.chunker.len_max(scale, self.offset);
            if !(is_enough || is_end && !left.is_empty()) {
                return;
            }
            let len = self.chunker.cut(left, scale, self.offset);
            self.pieces.push(UnhashedPiece::Chunk(self.cut..self.cut + len));
            self.cut += len;
            self.offset += len as u64;
        }
    }

    /// Hands over what is cut and keeps the rest.
    fn send(&mut self) -> Go {
        let mut next = Vec::with_capacity(RUN_LEN);
        next.extend_from_slice(&self.content[self.cut..]);
        let content = std::mem::replace(&mut self.content, next);
        self.cut = 0;
        let pieces = std::mem::take(&mut self.pieces);
        (self.hand_over)(CutRun { content, pieces })
    }

    /// Hands over the rest; returns the hash of the whole content unless its holes are too long.
    pub(super) fn finish(mut self) -> Go<Option<ContentHash>> {
        if !self.pieces.is_empty() {
            self.send()?;
        }
        Ok(self.hasher.map(|hasher| ContentHash(*hasher.finalize().as_bytes())))
    }
}
