//! Reading and hashing the files of one batch: runs on the pool, touches nothing but the source and the batch.

use std::io::{self, Read, Seek};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::chunk::{Chunker, Scale};
use crate::format::tree::{Kind, Metadata};
use crate::id::{BlobId, BlobKind, ContentHash};
use crate::progress::Progress;
use crate::repo::Repository;
use crate::source::read::{Extent, Extents};
use crate::source::{Entry, EntryKind, OpenFile};

use super::INLINE_LEN;
use super::scan::{Batch, Item, Was};

/// An entry that has to be read.
pub(super) struct ToRead {
    pub entry: Entry,
    pub path: Vec<u8>,
    pub was: Was,
    pub is_linked: bool,
}

/// An entry that was read.
pub(super) struct Done {
    pub name: Vec<u8>,
    pub metadata: Metadata,
    pub xattrs: Vec<u8>,
    pub was: Was,
    pub is_linked: bool,
    pub kind: OwnedKind,
}

/// What an entry is, with its content.
pub(super) enum OwnedKind {
    File { size: u64, content: OwnedContent },
    Other(OwnedOther),
}

/// What an entry that is not a file is.
pub(super) enum OwnedOther {
    Symlink(Vec<u8>),
    BlockDevice(u64),
    CharDevice(u64),
    Fifo,
    Socket,
}

impl OwnedOther {
    pub(super) fn as_kind(&self) -> Kind<'_> {
        match self {
            OwnedOther::Symlink(target) => Kind::Symlink { target },
            OwnedOther::BlockDevice(rdev) => Kind::BlockDevice { rdev: *rdev },
            OwnedOther::CharDevice(rdev) => Kind::CharDevice { rdev: *rdev },
            OwnedOther::Fifo => Kind::Fifo,
            OwnedOther::Socket => Kind::Socket,
        }
    }
}

/// Where a small file's content is in its batch.
pub(super) enum OwnedContent {
    Empty,
    Inline(Range<usize>),
    Whole(ContentHash, Range<usize>),
    Pieces(ContentHash, Vec<OwnedPiece>),
}

/// A piece of a small file.
pub(super) enum OwnedPiece {
    Chunk(BlobId, Range<usize>),
    Hole(u64),
}

/// What reading needs to know.
pub(super) struct Reader {
    pub chunker: Chunker,
    pub progress: std::sync::Arc<Progress>,
    pub repo: std::sync::Arc<Repository>,
}

/// Files up to this length, in bytes, are one chunk: to cut them would cost more ids than it saves.
const WHOLE_LEN: usize = 32 << 10;
/// Times that a file which changes while it is read is read again before it is reported.
const RETRIES: usize = 1;

impl Reader {
    /// Turns what is to be read in the batch into what was read; entries that cannot be read are reported and dropped.
    pub(super) fn process(&self, batch: &mut Batch) {
        let items = std::mem::take(&mut batch.items);
        batch.items.reserve(items.len());
        for item in items {
            match item {
                Item::ToRead(to_read) => {
                    if let Some(done) = self.read(to_read, &mut batch.content) {
                        batch.items.push(Item::Done(done));
                    }
                }
                other => batch.items.push(other),
            }
        }
    }

    fn read(&self, to_read: ToRead, content: &mut Vec<u8>) -> Option<Done> {
        let ToRead { entry, path, was, is_linked } = to_read;
        let failed = |during| {
            let path = &path;
            move |error: io::Error| self.progress.error(path, during, error)
        };
        let other = match entry.kind() {
            EntryKind::File { .. } => {
                let start = content.len();
                return match self.read_file(&entry, &path, content) {
                    Ok((open, kind)) => {
                        let xattrs = open.xattrs(failed("read an extended attribute of"));
                        Some(Done {
                            name: entry.name().to_vec(),
                            metadata: *entry.metadata(),
                            xattrs,
                            was,
                            is_linked,
                            kind,
                        })
                    }
                    Err(error) => {
                        content.truncate(start);
                        failed("read")(error);
                        None
                    }
                };
            }
            EntryKind::Symlink => match entry.link_target() {
                Ok(target) => OwnedOther::Symlink(target),
                Err(error) => {
                    failed("read the target of")(error);
                    return None;
                }
            },
            EntryKind::BlockDevice { rdev } => OwnedOther::BlockDevice(rdev),
            EntryKind::CharDevice { rdev } => OwnedOther::CharDevice(rdev),
            EntryKind::Fifo => OwnedOther::Fifo,
            EntryKind::Socket => OwnedOther::Socket,
            EntryKind::Directory | EntryKind::Volume { .. } => unreachable!("the scan handles these itself"),
        };
        let xattrs = entry.xattrs(failed("read an extended attribute of"));
        let kind = OwnedKind::Other(other);
        Some(Done { name: entry.name().to_vec(), metadata: *entry.metadata(), xattrs, was, is_linked, kind })
    }

    fn read_file(&self, entry: &Entry, path: &[u8], content: &mut Vec<u8>) -> io::Result<(OpenFile, OwnedKind)> {
        let start = content.len();
        for attempt in 0.. {
            content.truncate(start);
            let open = entry.open()?;
            let extents = read_extents(&open, content)?;
            let is_short = (content.len() - start) as u64 != extents.iter().map(data_len).sum::<u64>();
            if is_short || open.has_changed()? {
                if attempt < RETRIES {
                    continue;
                }
                self.progress.error(path, "read", "the file changed while it was read; what was read is kept");
            }
            let kind = self.file(start, &extents, content);
            return Ok((open, kind));
        }
        unreachable!("the loop returns")
    }

    /// Hashes and cuts what was read of a file from `start` of the batch's content.
    fn file(&self, start: usize, extents: &[Extent], content: &[u8]) -> OwnedKind {
        let end = content.len();
        let has_holes = extents.iter().any(|extent| matches!(extent, Extent::Hole(_)));
        if !has_holes {
            let bytes = &content[start..];
            let size = bytes.len() as u64;
            if bytes.is_empty() {
                return OwnedKind::File { size, content: OwnedContent::Empty };
            }
            if bytes.len() <= INLINE_LEN {
                return OwnedKind::File { size, content: OwnedContent::Inline(start..end) };
            }
            let hash = ContentHash::of(bytes);
            if bytes.len() <= WHOLE_LEN {
                return OwnedKind::File { size, content: OwnedContent::Whole(hash, start..end) };
            }
            let scale = Scale::of(bytes);
            let mut pieces = Vec::new();
            self.cut(content, start..end, scale, 0, &mut pieces);
            if pieces.len() == 1 {
                return OwnedKind::File { size, content: OwnedContent::Whole(hash, start..end) };
            }
            return OwnedKind::File { size, content: OwnedContent::Pieces(hash, pieces) };
        }
        let mut hasher = blake3::Hasher::new();
        let mut pieces = Vec::new();
        let mut size = 0;
        let mut at = start;
        let scale = Scale::of(&content[start..]);
        for extent in extents {
            match extent {
                Extent::Hole(range) => {
                    let len = range.end - range.start;
                    hash_zeros(&mut hasher, len);
                    pieces.push(OwnedPiece::Hole(len));
                    size += len;
                }
                Extent::Data(_) => {
                    // A file that shrank has less than its extents said.
                    let to = end.min(at + data_len(extent) as usize);
                    hasher.update(&content[at..to]);
                    self.cut(content, at..to, scale, size, &mut pieces);
                    size += (to - at) as u64;
                    at = to;
                }
            }
        }
        let hash = ContentHash(*hasher.finalize().as_bytes());
        OwnedKind::File { size, content: OwnedContent::Pieces(hash, pieces) }
    }

    /// Cuts a range of the content that lies at `offset` of its file.
    fn cut(&self, content: &[u8], range: Range<usize>, scale: Scale, offset: u64, pieces: &mut Vec<OwnedPiece>) {
        let mut at = range.start;
        while at < range.end {
            let len = self.chunker.cut(&content[at..range.end], scale, offset + (at - range.start) as u64);
            let id = self.repo.blob_id(BlobKind::Data, &ContentHash::of(&content[at..at + len]));
            pieces.push(OwnedPiece::Chunk(id, at..at + len));
            at += len;
        }
    }
}

/// Feeds `len` zero bytes to a hash.
pub(super) fn hash_zeros(hasher: &mut blake3::Hasher, len: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = len;
    while left > 0 {
        let now = left.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..now as usize]);
        left -= now;
    }
}

fn data_len(extent: &Extent) -> u64 {
    match extent {
        Extent::Data(range) => range.end - range.start,
        Extent::Hole(_) => 0,
    }
}

/// Appends the data of a small file to `content`; less than its extents say if it shrank.
fn read_extents(open: &OpenFile, content: &mut Vec<u8>) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut is_whole = true;
    let asked_for_holes = open.stat.blocks.saturating_mul(512) < open.size;
    for extent in Extents::new(open) {
        if let Extent::Data(range) = &extent
            && is_whole
        {
            let len = range.end - range.start;
            // Asking for holes moves the file's offset.
            if asked_for_holes {
                (&open.file).seek(io::SeekFrom::Start(range.start))?;
            }
            is_whole = (&open.file).take(len).read_to_end(content)? as u64 == len;
        }
        extents.push(extent);
    }
    Ok(extents)
}

/// Fills `out` from `offset`, or as far as the file goes; returns how far.
pub(super) fn read_up_to(file: &std::fs::File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut at = 0;
    while at < out.len() {
        match file.read_at(&mut out[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(len) => at += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}
