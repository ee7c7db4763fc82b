//! `find`: the snapshots and paths that hold what is looked for.
//!
//! A directory in which nothing was found is not searched again in other snapshots, so that a thousand snapshots of one
//! tree take little longer than one.

use std::collections::HashSet;
use std::io::{BufWriter, Write};

use anyhow::{Result, anyhow, bail};
use serde::Serialize;

use super::entry::{self, JsonNode};
use super::exit::Exit;
use super::output::{self, quote, report_errors};
use super::select::parse_time;
use super::{Global, SnapshotFilter, json};
use crate::browse::{self, Event, Walk};
use crate::format::content::Part;
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Node, Time};
use crate::id::{BlobId, ObjectId};
use crate::progress::Progress;
use crate::repo::Repository;
use crate::source::pattern::{Case, Patterns};

/// Directories without a match that are remembered. Each takes about 40 bytes.
const REMEMBERED_MAX: usize = 1 << 20;

/// Finds files by name in all snapshots.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to look for: patterns of names or paths; with --blob or --tree, ids
    #[arg(required = true)]
    patterns: Vec<String>,
    /// Ignore case
    #[arg(short, long)]
    ignore_case: bool,
    /// Only files, directories or symbolic links
    #[arg(long, value_name = "f|d|l", value_parser = ["f", "d", "l"])]
    r#type: Option<String>,
    /// Only entries modified at this time or earlier
    #[arg(short = 'N', long, value_name = "TIME")]
    newest: Option<String>,
    /// Only entries modified at this time or later
    #[arg(short = 'O', long, value_name = "TIME")]
    oldest: Option<String>,
    /// Only files of N bytes; more than N with `+N`, fewer with `-N`; units K, M, G, T
    #[arg(long, value_name = "[+-]N", allow_hyphen_values = true)]
    size: Option<String>,
    /// The patterns are ids of data blobs, or their beginnings
    #[arg(long, conflicts_with = "tree")]
    blob: bool,
    /// The patterns are ids of trees, or their beginnings
    #[arg(long)]
    tree: bool,
    /// Show permissions, owner, size and time
    #[arg(short, long)]
    long: bool,
    /// Show sizes in units
    #[arg(long)]
    human_readable: bool,
    /// Only search this snapshot (can be given several times)
    #[arg(short, long, value_name = "ID")]
    snapshot: Vec<String>,
    /// End names with a NUL, do not quote them, and name no snapshots
    #[arg(short = '0', long)]
    null: bool,
    #[command(flatten)]
    filter: SnapshotFilter,
}

/// What is looked for.
enum Wanted {
    Names(Patterns),
    Blobs(Vec<String>),
    Trees(Vec<String>),
}

#[derive(Clone, Copy)]
enum Size {
    Exactly(u64),
    More(u64),
    Less(u64),
}

impl Size {
    fn parse(text: &str) -> Result<Size> {
        let (number, make): (&str, fn(u64) -> Size) = match text.as_bytes().first() {
            Some(b'+') => (&text[1..], Size::More),
            Some(b'-') => (&text[1..], Size::Less),
            _ => (text, Size::Exactly),
        };
        let digits = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match number[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" | "C" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => bail!("`{text}` is not a size: units are K, M, G and T"),
        };
        let number: u64 = digits.parse().map_err(|_| anyhow!("`{text}` is not a size"))?;
        Ok(make(number.checked_mul(1 << shift).ok_or_else(|| anyhow!("`{text}` is too large"))?))
    }

    fn admits(self, size: u64) -> bool {
        match self {
            Size::Exactly(wanted) => size == wanted,
            Size::More(least) => size > least,
            Size::Less(most) => size < most,
        }
    }
}

struct Search<'a, W: Write> {
    repo: &'a Repository,
    args: &'a Args,
    wanted: Wanted,
    /// Whether the same directory may match at one path and not at another.
    by_path: bool,
    newest: Option<Time>,
    oldest: Option<Time>,
    size: Option<Size>,
    json: bool,
    barren: HashSet<[u8; 16]>,
    progress: Progress,
    matches: u64,
    out: W,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let ids = || -> Result<Vec<String>> {
        let lower: Vec<_> = args.patterns.iter().map(|id| id.to_ascii_lowercase()).collect();
        match lower.iter().find(|id| id.is_empty() || !id.bytes().all(|b| b.is_ascii_hexdigit())) {
            Some(bad) => bail!("`{}` is not an id", quote(bad.as_bytes())),
            None => Ok(lower),
        }
    };
    let wanted = match (args.blob, args.tree) {
        (true, _) => Wanted::Blobs(ids()?),
        (_, true) => Wanted::Trees(ids()?),
        _ => {
            let case = if args.ignore_case { Case::Insensitive } else { Case::Sensitive };
            Wanted::Names(Patterns::new(&args.patterns, case)?)
        }
    };
    let repo = global.open_snapshots()?;
    let snapshots = global.select_snapshots(&repo, &args.filter, &args.snapshot)?;
    let mut search = Search {
        repo: &repo,
        args,
        by_path: matches!(wanted, Wanted::Names(_)) && args.patterns.iter().any(|pattern| pattern.contains('/')),
        wanted,
        newest: args.newest.as_deref().map(parse_time).transpose()?,
        oldest: args.oldest.as_deref().map(parse_time).transpose()?,
        size: args.size.as_deref().map(Size::parse).transpose()?,
        json: global.json,
        barren: HashSet::new(),
        progress: Progress::new(),
        matches: 0,
        out: BufWriter::new(output::stdout()),
    };
    let as_list = global.json && matches!(search.wanted, Wanted::Names(_));
    if as_list {
        write!(search.out, "[")?;
    }
    let mut listed = 0;
    for (id, snapshot) in &snapshots {
        search.matches = 0;
        search.snapshot(id, snapshot, listed)?;
        if as_list && search.matches > 0 {
            write!(search.out, "],\"hits\":{},\"snapshot\":\"{id}\"}}", search.matches)?;
        }
        listed += u64::from(search.matches > 0);
    }
    if as_list {
        writeln!(search.out, "]")?;
    }
    search.out.flush()?;
    Ok(report_errors(&search.progress, global.json))
}

/// A directory being searched.
struct Level {
    key: [u8; 16],
    /// Nothing was found below it, and all of it was read.
    barren: bool,
    /// It or one above it matched, and so does everything below.
    matched: bool,
    tree: BlobId,
}

#[derive(Serialize)]
struct JsonObject<'a> {
    object_type: &'a str,
    id: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    parent_tree: String,
    snapshot: String,
    time: String,
}

impl<W: Write> Search<'_, W> {
    /// What decides whether a directory holds anything: its tree, whether it matches as a whole, and perhaps its path.
    fn key(&self, tree: &BlobId, matched: bool, path: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&tree.0);
        hasher.update(&[u8::from(matched)]);
        if self.by_path {
            hasher.update(path);
        }
        let hash = hasher.finalize();
        hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes")
    }

    fn snapshot(&mut self, id: &ObjectId, snapshot: &Snapshot, listed: u64) -> Result<()> {
        let Kind::Directory { tree, .. } = snapshot.root().kind else { bail!("snapshot {id} has no tree") };
        let mut walk = Walk::new(self.repo, tree, b"");
        let key = self.key(&tree, false, b"");
        if self.barren.contains(&key) {
            return Ok(());
        }
        let mut levels = vec![Level { key, barren: true, matched: false, tree }];
        if self.is_wanted_tree(&tree) {
            self.show_object(id, snapshot, "tree", &tree, b"/", &tree)?;
        }
        while let Some(event) = walk.next() {
            match event {
                Event::Entry { path, entry } => {
                    let node = &entry.node;
                    let level = levels.last_mut().expect("the walk is within a directory");
                    let within = level.matched;
                    let parent = level.tree;
                    let mut named = false;
                    match &self.wanted {
                        Wanted::Names(patterns) => {
                            named = within || patterns.matches(path);
                            if named && self.admits(node) {
                                level.barren = false;
                                self.show(id, snapshot, path, node, listed)?;
                            }
                        }
                        Wanted::Blobs(ids) => {
                            if let Some(blob) = self.find_blob(ids, path, node) {
                                level.barren = false;
                                self.show_object(id, snapshot, "blob", &blob, path, &parent)?;
                            }
                        }
                        Wanted::Trees(_) => {
                            if let Kind::Directory { tree, .. } = node.kind
                                && self.is_wanted_tree(&tree)
                            {
                                level.barren = false;
                                self.show_object(id, snapshot, "tree", &tree, path, &parent)?;
                            }
                        }
                    }
                    if let Kind::Directory { tree, .. } = node.kind {
                        let key = self.key(&tree, named, path);
                        if self.barren.contains(&key) {
                            walk.skip();
                        } else {
                            levels.push(Level { key, barren: true, matched: named, tree });
                        }
                    }
                }
                Event::Leave { .. } => {
                    let level = levels.pop().expect("the walk leaves what it entered");
                    if level.barren && self.barren.len() < REMEMBERED_MAX {
                        self.barren.insert(level.key);
                    }
                    if let Some(above) = levels.last_mut() {
                        above.barren &= level.barren;
                    }
                }
                Event::Damage { path, error } => {
                    if let Some(level) = levels.last_mut() {
                        level.barren = false;
                    }
                    self.progress.error(path, "read the directory", error);
                }
            }
        }
        Ok(())
    }

    fn is_wanted_tree(&self, tree: &BlobId) -> bool {
        matches!(&self.wanted, Wanted::Trees(ids) if ids.iter().any(|id| tree.to_hex().starts_with(id.as_str())))
    }

    /// The first blob of a file that is looked for.
    fn find_blob(&self, ids: &[String], path: &[u8], node: &Node<'_>) -> Option<BlobId> {
        let Kind::File { size, content } = node.kind else { return None };
        for part in browse::parts(self.repo, size, content) {
            match part {
                Ok((_, Part::Data { id, .. })) => {
                    let hex = id.to_hex();
                    if ids.iter().any(|wanted| hex.starts_with(wanted.as_str())) {
                        return Some(id);
                    }
                }
                Ok(_) => {}
                Err(error) => self.progress.error(path, "read the content list", error),
            }
        }
        None
    }

    /// Whether the conditions other than the name hold.
    fn admits(&self, node: &Node<'_>) -> bool {
        let type_fits = match self.args.r#type.as_deref() {
            Some("f") => matches!(node.kind, Kind::File { .. }),
            Some("d") => matches!(node.kind, Kind::Directory { .. }),
            Some("l") => matches!(node.kind, Kind::Symlink { .. }),
            _ => true,
        };
        let mtime = node.metadata.mtime;
        type_fits
            && self.newest.is_none_or(|newest| mtime <= newest)
            && self.oldest.is_none_or(|oldest| mtime >= oldest)
            && self.size.is_none_or(|wanted| entry::size(node).is_some_and(|size| wanted.admits(size)))
    }

    fn show(&mut self, id: &ObjectId, snapshot: &Snapshot, path: &[u8], node: &Node<'_>, listed: u64) -> Result<()> {
        let first = self.matches == 0;
        self.matches += 1;
        if self.json {
            let start = match (first, listed) {
                (true, 0) => "{\"matches\":[",
                (true, _) => ",{\"matches\":[",
                (false, _) => ",",
            };
            write!(self.out, "{start}")?;
            json::write(&mut self.out, &JsonNode::new(node, path, snapshot))?;
        } else if self.args.null {
            self.out.write_all(path)?;
            self.out.write_all(b"\0")?;
        } else {
            if first {
                let gap = if listed > 0 { "\n" } else { "" };
                let time = entry::local_time(snapshot.time);
                writeln!(self.out, "{gap}Found matching entries in snapshot {} from {time}", id.short())?;
            }
            let target = if let Kind::Symlink { target } = node.kind { Some(quote(target)) } else { None };
            if self.args.long {
                let line = entry::long_line(node, &quote(path), target.as_deref(), self.args.human_readable);
                writeln!(self.out, "{line}")?;
            } else {
                writeln!(self.out, "{}", quote(path))?;
            }
        }
        Ok(())
    }

    fn show_object(
        &mut self,
        snapshot_id: &ObjectId,
        snapshot: &Snapshot,
        sort: &str,
        id: &BlobId,
        path: &[u8],
        parent: &BlobId,
    ) -> Result<()> {
        self.matches += 1;
        if self.json {
            let object = JsonObject {
                object_type: sort,
                id: id.to_hex(),
                path: entry::text(path),
                path_hex: entry::hex_unless_text(path),
                parent_tree: parent.to_hex(),
                snapshot: snapshot_id.to_hex(),
                time: entry::rfc3339(snapshot.time),
            };
            json::write_line(&mut self.out, &object)?;
        } else {
            writeln!(self.out, "Found {sort} {id}")?;
            let place = if sort == "tree" { "path" } else { "file" };
            writeln!(self.out, " ... {place} {}", quote(path))?;
            writeln!(self.out, " ... in snapshot {} ({})", snapshot_id.short(), entry::local_time(snapshot.time))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_a_direction() {
        assert!(Size::parse("+1K").unwrap().admits(1025));
        assert!(!Size::parse("+1k").unwrap().admits(1024));
        assert!(Size::parse("-1M").unwrap().admits((1 << 20) - 1));
        assert!(Size::parse("7").unwrap().admits(7));
        for bad in ["", "+", "1X", "99999999T", "1.5M"] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
    }
}
