//! `diff`: what differs between two snapshots.
//!
//! Equal subtrees are passed over by their ids, so that the work grows with the differences.

use std::collections::HashSet;
use std::io::{BufWriter, Write};

use anyhow::{Result, bail};
use serde::Serialize;

use super::exit::Exit;
use super::output::{self, human_size, quote, report_errors};
use super::{Global, SnapshotFilter, entry, json};
use crate::browse::{self, Entries, Event, OwnedNode, Walk};
use crate::format::content::{Content, Part};
use crate::format::limits::TREE_DEPTH_MAX;
use crate::format::tree::{Kind, Node};
use crate::id::BlobId;
use crate::progress::Progress;
use crate::repo::{Error, Repository};

/// Shows what differs between two snapshots.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The first snapshot: `latest~1`, an id or its beginning; with `:PATH` a directory in it
    first: String,
    /// The second one
    second: String,
    /// Show entries of which only mode, owner, time or attributes changed
    #[arg(long)]
    metadata: bool,
    #[command(flatten)]
    filter: SnapshotFilter,
}

/// What one side has and the other does not.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Side {
    files: u64,
    dirs: u64,
    others: u64,
    data_blobs: u64,
    tree_blobs: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct JsonChange<'a> {
    message_type: &'a str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    modifier: &'a str,
}

#[derive(Serialize)]
struct JsonStatistics<'a> {
    message_type: &'a str,
    source_snapshot: String,
    target_snapshot: String,
    changed_files: u64,
    added: Side,
    removed: Side,
}

/// Blobs met on one side within what differs, by the first bytes of their ids, with their lengths.
#[derive(Default)]
struct Blobs {
    data: HashSet<(u64, u32)>,
    trees: HashSet<u64>,
}

fn short(id: &BlobId) -> u64 {
    u64::from_le_bytes(id.0[..8].try_into().expect("an id has more than 8 bytes"))
}

struct Comparison<'a, W: Write> {
    repo: &'a Repository,
    metadata: bool,
    json: bool,
    changed_files: u64,
    removed: Side,
    added: Side,
    /// Of the first snapshot and of the second.
    blobs: [Blobs; 2],
    progress: Progress,
    out: W,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let repo = global.open_snapshots()?;
    let (first_id, first, first_path) = global.select_snapshot(&repo, &args.filter, &args.first)?;
    let (second_id, second, second_path) = global.select_snapshot(&repo, &args.filter, &args.second)?;
    let mut trees = Vec::new();
    for (id, snapshot, path) in [(&first_id, &first, &first_path), (&second_id, &second, &second_path)] {
        let Some(found) = browse::resolve(&repo, snapshot, path)? else {
            bail!("snapshot {} has no `{}`", id.short(), quote(path));
        };
        let Kind::Directory { tree, .. } = found.node().kind else {
            bail!("`{}` in snapshot {} is not a directory", quote(path), id.short());
        };
        trees.push(tree);
    }
    let mut comparison = Comparison {
        repo: &repo,
        metadata: args.metadata,
        json: global.json,
        changed_files: 0,
        removed: Side::default(),
        added: Side::default(),
        blobs: Default::default(),
        progress: Progress::new(),
        out: BufWriter::new(output::stdout()),
    };
    if !global.json && !global.quiet {
        writeln!(comparison.out, "comparing snapshot {} to {}:\n", first_id.short(), second_id.short())?;
    }
    comparison.trees(trees[0], trees[1])?;
    let [first_blobs, second_blobs] = &comparison.blobs;
    count_blobs(&mut comparison.removed, first_blobs, second_blobs);
    count_blobs(&mut comparison.added, second_blobs, first_blobs);
    let (added, removed) = (comparison.added, comparison.removed);
    if global.json {
        let statistics = JsonStatistics {
            message_type: "statistics",
            source_snapshot: first_id.to_hex(),
            target_snapshot: second_id.to_hex(),
            changed_files: comparison.changed_files,
            added,
            removed,
        };
        json::write_line(&mut comparison.out, &statistics)?;
    } else if !global.quiet {
        let out = &mut comparison.out;
        let changed = comparison.changed_files;
        writeln!(out)?;
        writeln!(out, "Files:       {:>5} new, {:>5} removed, {changed:>5} changed", added.files, removed.files)?;
        writeln!(out, "Dirs:        {:>5} new, {:>5} removed", added.dirs, removed.dirs)?;
        writeln!(out, "Others:      {:>5} new, {:>5} removed", added.others, removed.others)?;
        writeln!(out, "Data Blobs:  {:>5} new, {:>5} removed", added.data_blobs, removed.data_blobs)?;
        writeln!(out, "Tree Blobs:  {:>5} new, {:>5} removed", added.tree_blobs, removed.tree_blobs)?;
        writeln!(out, "  Added:   {}", human_size(added.bytes))?;
        writeln!(out, "  Removed: {}", human_size(removed.bytes))?;
    }
    comparison.out.flush()?;
    Ok(report_errors(&comparison.progress, global.json))
}

/// Counts in `side` the blobs of `own` that `other` does not have.
fn count_blobs(side: &mut Side, own: &Blobs, other: &Blobs) {
    for (id, len) in own.data.difference(&other.data) {
        let _ = id;
        side.data_blobs += 1;
        side.bytes += u64::from(*len);
    }
    side.tree_blobs = own.trees.difference(&other.trees).count() as u64;
}

/// Whether two files have the same bytes; `None` if that cannot be told without reading them.
fn same_content(a: &Node<'_>, b: &Node<'_>) -> Option<bool> {
    let (Kind::File { size: a_size, content: a }, Kind::File { size: b_size, content: b }) = (&a.kind, &b.kind) else {
        return Some(false);
    };
    if a_size != b_size {
        return Some(false);
    }
    if a == b {
        return Some(true);
    }
    let hash = |content: &Content<'_>| match *content {
        Content::Whole(hash) => Some(hash),
        Content::Parts { hash, .. } | Content::List { hash, .. } => hash,
        Content::Inline(bytes) => Some(crate::id::ContentHash::of(bytes)),
        Content::Empty => Some(crate::id::ContentHash::of(b"")),
    };
    Some(hash(a)? == hash(b)?)
}

/// Whether everything but content, place in the source and change time is the same.
fn same_metadata(a: &Node<'_>, b: &Node<'_>) -> bool {
    let of = |node: &Node<'_>| {
        let metadata = &node.metadata;
        (metadata.mode, metadata.uid, metadata.gid, metadata.mtime)
    };
    of(a) == of(b) && a.xattrs == b.xattrs
}

/// A pair of directories being compared.
struct Level<'r> {
    sides: [Entries<'r>; 2],
    /// The entries at hand; `None` at the end.
    heads: [Option<OwnedNode>; 2],
    path_len: usize,
}

impl<'a, W: Write> Comparison<'a, W> {
    fn trees(&mut self, first: BlobId, second: BlobId) -> Result<()> {
        let mut path = Vec::new();
        let mut levels: Vec<Level<'a>> = Vec::new();
        if first != second {
            levels.push(self.level(first, second, &path));
        }
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_len);
            let order = match (&level.heads[0], &level.heads[1]) {
                (None, None) => {
                    levels.pop();
                    continue;
                }
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.node().name.cmp(b.node().name),
            };
            let mut take = |side: usize| {
                let next = next_head(&mut level.sides[side], &self.progress, &path);
                std::mem::replace(&mut level.heads[side], next).expect("the order says it is there")
            };
            match order {
                std::cmp::Ordering::Less => {
                    let gone = take(0);
                    self.one_sided(&mut path, &gone, 0)?;
                }
                std::cmp::Ordering::Greater => {
                    let new = take(1);
                    self.one_sided(&mut path, &new, 1)?;
                }
                std::cmp::Ordering::Equal => {
                    let (a, b) = (take(0), take(1));
                    if let Some((a, b)) = self.pair(&mut path, &a, &b)? {
                        if levels.len() >= TREE_DEPTH_MAX {
                            let what = format!("directories are nested deeper than {TREE_DEPTH_MAX}");
                            return Err(Error::Corrupt { object: format!("tree {a}"), what }.into());
                        }
                        let level = self.level(a, b, &path);
                        levels.push(level);
                    }
                }
            }
        }
        Ok(())
    }

    fn level(&mut self, first: BlobId, second: BlobId, path: &[u8]) -> Level<'a> {
        self.blobs[0].trees.insert(short(&first));
        self.blobs[1].trees.insert(short(&second));
        let mut sides = [Entries::new(self.repo, first), Entries::new(self.repo, second)];
        let heads = [0, 1].map(|side| next_head(&mut sides[side], &self.progress, path));
        Level { sides, heads, path_len: path.len() }
    }

    /// Compares two entries of the same name. Returns their trees if those have to be compared as well.
    fn pair(&mut self, path: &mut Vec<u8>, a: &OwnedNode, b: &OwnedNode) -> Result<Option<(BlobId, BlobId)>> {
        let (a_node, b_node) = (a.node(), b.node());
        let directories = [&a_node, &b_node].map(|node| matches!(node.kind, Kind::Directory { .. }));
        if std::mem::discriminant(&a_node.kind) != std::mem::discriminant(&b_node.kind) {
            let len = path.len();
            push_name(path, &b_node);
            self.show(path, directories[1], "T")?;
            for (side, node) in [(0, &a_node), (1, &b_node)] {
                self.collect(path, node, side)?;
            }
            // What is below a directory that came or went is shown, the entry itself was.
            for (side, node) in [(0, &a_node), (1, &b_node)] {
                if let Kind::Directory { tree, .. } = node.kind {
                    self.below(path, tree, side)?;
                }
            }
            path.truncate(len);
            return Ok(None);
        }
        push_name(path, &b_node);
        match (a_node.kind, b_node.kind) {
            (Kind::Directory { tree: a_tree, .. }, Kind::Directory { tree: b_tree, .. }) => {
                if self.metadata && !same_metadata(&a_node, &b_node) {
                    self.show(path, true, "U")?;
                }
                return Ok((a_tree != b_tree).then_some((a_tree, b_tree)));
            }
            (Kind::File { .. }, Kind::File { .. }) => {
                if same_content(&a_node, &b_node).unwrap_or(false) {
                    if self.metadata && !same_metadata(&a_node, &b_node) {
                        self.show(path, false, "U")?;
                    }
                } else {
                    self.changed_files += 1;
                    self.collect(path, &a_node, 0)?;
                    self.collect(path, &b_node, 1)?;
                    let unexpected = entry::size(&a_node) == entry::size(&b_node)
                        && a_node.metadata.mtime == b_node.metadata.mtime
                        && a_node.metadata.ctime == b_node.metadata.ctime;
                    self.show(path, false, if unexpected { "M?" } else { "M" })?;
                }
            }
            _ => {
                if a_node.kind != b_node.kind {
                    self.show(path, false, "M")?;
                } else if self.metadata && !same_metadata(&a_node, &b_node) {
                    self.show(path, false, "U")?;
                }
            }
        }
        Ok(None)
    }

    /// Takes in an entry that only one side has, and everything below it.
    fn one_sided(&mut self, path: &mut Vec<u8>, node: &OwnedNode, side: usize) -> Result<()> {
        let len = path.len();
        let node = node.node();
        push_name(path, &node);
        self.lone(path, &node, side)?;
        if let Kind::Directory { tree, .. } = node.kind {
            self.below(path, tree, side)?;
        }
        path.truncate(len);
        Ok(())
    }

    fn below(&mut self, path: &[u8], tree: BlobId, side: usize) -> Result<()> {
        let mut walk = Walk::new(self.repo, tree, path);
        while let Some(event) = walk.next() {
            match event {
                Event::Entry { path, entry } => self.lone(path, &entry.node, side)?,
                Event::Leave { .. } => {}
                Event::Damage { path, error } => self.progress.error(path, "read the directory", error),
            }
        }
        Ok(())
    }

    fn lone(&mut self, path: &[u8], node: &Node<'_>, side: usize) -> Result<()> {
        let totals = if side == 0 { &mut self.removed } else { &mut self.added };
        match node.kind {
            Kind::File { .. } => totals.files += 1,
            Kind::Directory { .. } => totals.dirs += 1,
            _ => totals.others += 1,
        }
        self.collect(path, node, side)?;
        self.show(path, matches!(node.kind, Kind::Directory { .. }), if side == 0 { "-" } else { "+" })
    }

    /// Notes the blobs of an entry that differs.
    fn collect(&mut self, path: &[u8], node: &Node<'_>, side: usize) -> Result<()> {
        match node.kind {
            Kind::Directory { tree, .. } => {
                self.blobs[side].trees.insert(short(&tree));
            }
            Kind::File { size, content } => {
                for part in browse::parts(self.repo, size, content) {
                    match part {
                        Ok((_, Part::Data { id, len })) => {
                            self.blobs[side].data.insert((short(&id), len));
                        }
                        Ok(_) => {}
                        Err(error) => self.progress.error(path, "read the content list", error),
                    }
                }
                if let Content::Inline(bytes) = content {
                    let totals = if side == 0 { &mut self.removed } else { &mut self.added };
                    totals.bytes += bytes.len() as u64;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn show(&mut self, path: &[u8], is_directory: bool, modifier: &str) -> Result<()> {
        let slash: &[u8] = if is_directory { b"/" } else { b"" };
        let path = [path, slash].concat();
        if self.json {
            let change = JsonChange {
                message_type: "change",
                path: entry::text(&path),
                path_hex: entry::hex_unless_text(&path),
                modifier,
            };
            json::write_line(&mut self.out, &change)?;
        } else {
            writeln!(self.out, "{modifier:<5}{}", quote(&path))?;
        }
        Ok(())
    }
}

fn push_name(path: &mut Vec<u8>, node: &Node<'_>) {
    path.push(b'/');
    path.extend_from_slice(node.name);
}

/// The next entry of a side; damage is reported and passed over.
fn next_head(entries: &mut Entries<'_>, progress: &Progress, path: &[u8]) -> Option<OwnedNode> {
    loop {
        match entries.next() {
            Ok(entry) => return entry.map(|entry| entry.to_owned()),
            Err(error) => progress.error(path, "read the directory", error),
        }
    }
}
