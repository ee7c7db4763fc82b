//! `stats`: how much the snapshots hold, and how much of it is the same.
//!
//! Directories met before are not walked again; sets hold eight bytes for each file or blob.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};

use anyhow::{Result, bail};
use serde::Serialize;

use super::exit::Exit;
use super::output::{self, human_size, report_errors};
use super::{Global, SnapshotFilter, json};
use crate::backend::ObjectKind;
use crate::browse::{self, Event, Walk};
use crate::format::content::{Content, Part};
use crate::format::tree::{Kind, Node, Tree};
use crate::id::{BlobId, BlobKind};
use crate::progress::Progress;
use crate::repo::Repository;

/// Counts what snapshots hold.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The snapshots; all if none is given
    snapshots: Vec<String>,
    /// What is counted
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    #[command(flatten)]
    filter: SnapshotFilter,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Files and bytes that restoring each snapshot would write
    #[default]
    RestoreSize,
    /// Files of different content
    FilesByContents,
    /// Different blobs in each path
    BlobsPerFile,
    /// Blobs, each counted once, and what they take in the repository
    RawData,
}

#[derive(Default, Serialize)]
struct Totals {
    total_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_uncompressed_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression_space_saving: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_file_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_blob_count: Option<u64>,
    /// How many of the blobs are stored as deltas, their bytes, and what the deltas take.
    #[serde(skip_serializing_if = "Option::is_none")]
    delta_blob_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta_uncompressed_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta_size: Option<u64>,
    snapshots_count: usize,
}

/// What is below a directory.
#[derive(Clone, Copy, Default)]
struct Below {
    files: u64,
    bytes: u64,
    /// A file has several names, so that the sum is not the directory's alone.
    shared: bool,
}

struct Level {
    tree: BlobId,
    below: Below,
}

struct Count<'a> {
    repo: &'a Repository,
    mode: Mode,
    sums: HashMap<BlobId, Below>,
    seen: HashSet<u64>,
    inodes: HashSet<(u64, u64)>,
    files: u64,
    bytes: u64,
    blobs: u64,
    deltas: Deltas,
    progress: Progress,
}

/// Blobs that are stored as deltas.
#[derive(Clone, Copy, Default)]
struct Deltas {
    blobs: u64,
    /// Bytes that they make.
    bytes: u64,
    /// Bytes of them, before they are compressed.
    len: u64,
}

/// Directories whose sums are remembered.
const SUMS_MAX: usize = 1 << 20;

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let repo = global.open_snapshots()?;
    let snapshots = global.select_snapshots(&repo, &args.filter, &args.snapshots)?;
    let mut count = Count {
        repo: &repo,
        mode: args.mode,
        sums: HashMap::new(),
        seen: HashSet::new(),
        inodes: HashSet::new(),
        files: 0,
        bytes: 0,
        blobs: 0,
        deltas: Deltas::default(),
        progress: Progress::new(),
    };
    for (id, snapshot) in &snapshots {
        let Kind::Directory { tree, .. } = snapshot.root().kind else { bail!("snapshot {id} has no tree") };
        count.snapshot(tree)?;
    }
    let mut totals = Totals { total_size: count.bytes, snapshots_count: snapshots.len(), ..Totals::default() };
    match args.mode {
        Mode::RestoreSize | Mode::FilesByContents => totals.total_file_count = Some(count.files),
        Mode::BlobsPerFile => {
            totals.total_file_count = Some(count.files);
            totals.total_blob_count = Some(count.blobs);
        }
        Mode::RawData => {
            // Blobs share segments, so what one takes is its part of what all of them take. Deltas have packs of their own.
            let [plain, deltas] = ratios(&repo)?;
            let delta_size = (count.deltas.len as f64 / deltas) as u64;
            let uncompressed = count.bytes + count.deltas.bytes;
            let size = (count.bytes as f64 / plain) as u64 + delta_size;
            let ratio = if size == 0 { 1.0 } else { uncompressed as f64 / size as f64 };
            totals.total_blob_count = Some(count.blobs);
            totals.delta_blob_count = Some(count.deltas.blobs);
            totals.delta_uncompressed_size = Some(count.deltas.bytes);
            totals.delta_size = Some(delta_size);
            totals.total_uncompressed_size = Some(uncompressed);
            totals.total_size = size;
            totals.compression_ratio = Some(ratio);
            totals.compression_space_saving = Some((1.0 - 1.0 / ratio) * 100.0);
        }
    }
    if global.json {
        json::write_line(&mut output::stdout(), &totals)?;
    } else {
        print(&mut output::stdout(), &totals, args.mode)?;
    }
    Ok(report_errors(&count.progress, global.json))
}

fn print(out: &mut impl Write, totals: &Totals, mode: Mode) -> io::Result<()> {
    let name = match mode {
        Mode::RestoreSize => "restore-size",
        Mode::FilesByContents => "files-by-contents",
        Mode::BlobsPerFile => "blobs-per-file",
        Mode::RawData => "raw-data",
    };
    writeln!(out, "Stats in {name} mode:")?;
    writeln!(out, "     Snapshots processed:  {}", totals.snapshots_count)?;
    if let Some(files) = totals.total_file_count {
        writeln!(out, "        Total File Count:  {files}")?;
    }
    if let Some(blobs) = totals.total_blob_count {
        writeln!(out, "        Total Blob Count:  {blobs}")?;
    }
    if let (Some(blobs), Some(plain), Some(size)) =
        (totals.delta_blob_count, totals.delta_uncompressed_size, totals.delta_size)
    {
        let (plain, size) = (human_size(plain), human_size(size));
        writeln!(out, "        Stored As Deltas:  {blobs} blobs of {plain}, which take {size}")?;
    }
    if let Some(plain) = totals.total_uncompressed_size {
        writeln!(out, " Total Uncompressed Size:  {}", human_size(plain))?;
    }
    if let (Some(ratio), Some(saving)) = (totals.compression_ratio, totals.compression_space_saving) {
        writeln!(out, "       Compression Ratio:  {ratio:.2}x")?;
        writeln!(out, "Compression Space Saving:  {saving:.2}%")?;
    }
    writeln!(out, "              Total Size:  {}", human_size(totals.total_size))
}

/// Plain bytes in the repository's packs for each stored byte, and the same of packs of deltas.
fn ratios(repo: &Repository) -> Result<[f64; 2]> {
    let mut objects = Vec::new();
    repo.backend().list(ObjectKind::Index, &mut |object| objects.push(object.id))?;
    let mut sums = [(0u64, 0u64); 2];
    for id in objects {
        for pack in repo.readable_index_object(&id)?.unwrap_or_default() {
            let (plain, stored) = &mut sums[usize::from(pack.blobs[0].is_delta)];
            *stored += pack.len;
            *plain += pack.blobs.iter().map(|blob| u64::from(blob.len)).sum::<u64>();
        }
    }
    Ok(sums.map(|(plain, stored)| if stored == 0 { 1.0 } else { plain as f64 / stored as f64 }))
}

impl Count<'_> {
    /// Counts what is below `tree`, the root of a snapshot.
    fn snapshot(&mut self, tree: BlobId) -> Result<()> {
        self.inodes.clear();
        if !self.enter(&tree, b"") {
            return Ok(());
        }
        let mut levels = vec![Level { tree, below: Below::default() }];
        let mut walk = Walk::new(self.repo, tree, b"");
        while let Some(event) = walk.next() {
            match event {
                Event::Entry { path, entry } => {
                    let level = levels.last_mut().expect("the walk is within a directory");
                    let node = entry.node;
                    match node.kind {
                        Kind::Directory { tree, .. } => {
                            if let Some(sum) = self.sums.get(&tree) {
                                level.below.files += sum.files;
                                level.below.bytes += sum.bytes;
                                walk.skip();
                            } else if self.enter(&tree, path) {
                                levels.push(Level { tree, below: Below::default() });
                            } else {
                                walk.skip();
                            }
                        }
                        _ => self.entry(path, &node, &mut level.below),
                    }
                }
                Event::Leave { .. } => {
                    let level = levels.pop().expect("the walk leaves what it entered");
                    let below = level.below;
                    if self.mode == Mode::RestoreSize && !below.shared && self.sums.len() < SUMS_MAX {
                        self.sums.insert(level.tree, below);
                    }
                    match levels.last_mut() {
                        Some(above) => {
                            above.below.files += below.files;
                            above.below.bytes += below.bytes;
                            above.below.shared |= below.shared;
                        }
                        None => {
                            self.files += below.files;
                            self.bytes += below.bytes;
                        }
                    }
                }
                Event::Damage { path, error } => {
                    if let Some(level) = levels.last_mut() {
                        level.below.shared = true;
                    }
                    self.progress.error(path, "read the directory", error);
                }
            }
        }
        Ok(())
    }

    /// Whether a directory must be walked; counts its blob.
    fn enter(&mut self, tree: &BlobId, path: &[u8]) -> bool {
        match self.mode {
            Mode::RestoreSize => {
                if path.is_empty()
                    && let Some(sum) = self.sums.get(tree)
                {
                    self.files += sum.files;
                    self.bytes += sum.bytes;
                    return false;
                }
                true
            }
            Mode::FilesByContents => self.seen.insert(hash(tree.0)),
            Mode::BlobsPerFile => self.seen.insert(hash((tree.0, path))),
            Mode::RawData => {
                if !self.seen.insert(hash(tree.0)) {
                    return false;
                }
                self.count_tree(tree, path);
                true
            }
        }
    }

    /// Counts the blobs that make up the directory `tree` itself.
    fn count_tree(&mut self, tree: &BlobId, path: &[u8]) {
        // What cannot be read is reported when the walk gets there.
        let Ok(blob) = self.repo.blob(BlobKind::Tree, tree) else { return };
        self.blobs += 1;
        self.bytes += blob.len() as u64;
        let Ok(Tree::Index(pages)) = Tree::decode(&blob) else { return };
        for page in pages {
            if self.seen.insert(hash(page.id.0)) {
                match self.repo.locate(&page.id) {
                    Some(location) => {
                        self.blobs += 1;
                        self.bytes += u64::from(location.len);
                    }
                    None => self.progress.error(path, "read the directory", "a page is in no index"),
                }
            }
        }
    }

    fn entry(&mut self, path: &[u8], node: &Node<'_>, below: &mut Below) {
        let Kind::File { size, content } = node.kind else {
            below.files += u64::from(self.mode == Mode::RestoreSize);
            return;
        };
        match self.mode {
            Mode::RestoreSize => {
                if node.metadata.nlink > 1 {
                    below.shared = true;
                    if !self.inodes.insert((node.metadata.dev, node.metadata.inode)) {
                        return;
                    }
                }
                below.files += 1;
                below.bytes += size;
            }
            Mode::FilesByContents => {
                let content = match content {
                    Content::Empty => 0,
                    Content::Inline(bytes) => hash((1, bytes)),
                    Content::Whole(id) => hash((2, id)),
                    Content::Parts { parts, .. } => hash((3, parts.encoded())),
                    Content::List { root, .. } => hash((4, root)),
                };
                if self.seen.insert(content) {
                    below.files += 1;
                    below.bytes += size;
                }
            }
            Mode::BlobsPerFile | Mode::RawData => {
                let by_path = self.mode == Mode::BlobsPerFile;
                let mut new = Vec::new();
                let mut add = |id: &BlobId, len: u64| {
                    let key = if by_path { hash((id.0, path)) } else { hash(id.0) };
                    if self.seen.insert(key) {
                        new.push((*id, len));
                    }
                };
                let mut pages = Vec::new();
                for part in browse::parts(self.repo, size, content).with_pages(|id, len| pages.push((*id, len as u64)))
                {
                    match part {
                        Ok((_, Part::Data { id, len })) => add(&id, u64::from(len)),
                        Ok(_) => {}
                        Err(error) => self.progress.error(path, "read the content list", error),
                    }
                }
                pages.iter().filter(|_| !by_path).for_each(|(id, len)| add(id, *len));
                below.files += u64::from(!new.is_empty());
                for (id, len) in new {
                    self.blobs += 1;
                    if by_path || !self.count_delta(&id, path) {
                        below.bytes += len;
                    }
                }
            }
        }
    }

    /// Counts a blob that is stored as a delta, and its bases, which may be in no snapshot any more; false if it is not.
    fn count_delta(&mut self, id: &BlobId, path: &[u8]) -> bool {
        let Some(location) = self.repo.locate(id).filter(|location| location.is_delta) else { return false };
        let delta = match self.repo.delta(id) {
            Ok(Some(delta)) => delta,
            Ok(None) => return false,
            Err(error) => {
                self.progress.error(path, "read a delta", error);
                return false;
            }
        };
        self.deltas.blobs += 1;
        self.deltas.bytes += u64::from(delta.plain_len);
        self.deltas.len += u64::from(location.len);
        for base in delta.bases {
            if self.seen.insert(hash(base.id.0)) {
                self.blobs += 1;
                self.bytes += u64::from(base.len);
            }
        }
        true
    }
}
