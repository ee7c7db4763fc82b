//! `ls`: the entries of a snapshot.

use std::io::{BufWriter, Write};

use anyhow::{Result, bail};
use serde::Serialize;

use super::entry::{self, JsonNode};
use super::exit::Exit;
use super::output::{self, quote};
use super::{Global, SnapshotFilter, json};
use crate::browse::{self, Event, Walk};
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Node};
use crate::id::ObjectId;
use crate::progress::Progress;
use crate::repo::Repository;

/// Lists the entries of a snapshot.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The snapshot: `latest`, an id or its beginning, with `:PATH` a directory in it
    snapshot: String,
    /// Directories to list, absolute; what is below them is not shown unless --recursive is given
    dirs: Vec<String>,
    /// Show permissions, owner, size and time
    #[arg(short, long)]
    long: bool,
    /// Show what is below the directories as well
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Show sizes in units
    #[arg(long)]
    human_readable: bool,
    /// End names with a NUL and do not quote them
    #[arg(short = '0', long)]
    null: bool,
    #[command(flatten)]
    filter: SnapshotFilter,
}

#[derive(Serialize)]
struct JsonSnapshot {
    time: String,
    tree: String,
    paths: Vec<String>,
    hostname: String,
    username: String,
    tags: Vec<String>,
    id: String,
    short_id: String,
    message_type: &'static str,
    struct_type: &'static str,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    #[serde(flatten)]
    node: JsonNode,
    message_type: &'a str,
    struct_type: &'a str,
}

struct Listing<'a, W: Write> {
    repo: &'a Repository,
    snapshot: &'a Snapshot,
    args: &'a Args,
    json: bool,
    progress: Progress,
    out: W,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let repo = global.open_snapshots()?;
    let (id, snapshot, start) = global.select_snapshot(&repo, &args.filter, &args.snapshot)?;
    let out = BufWriter::new(output::stdout());
    let mut listing =
        Listing { repo: &repo, snapshot: &snapshot, args, json: global.json, progress: Progress::new(), out };
    let mut found = Vec::new();
    for dir in args.dirs.iter().map(String::as_bytes).chain(args.dirs.is_empty().then_some(b"".as_slice())) {
        let Some(path) = entry::absolute(&start, dir) else { bail!("`{}`: `..` has no meaning here", quote(dir)) };
        let Some(node) = browse::resolve(&repo, &snapshot, &path)? else {
            bail!("snapshot {} has no `{}`", id.short(), quote(&path));
        };
        found.push((path, node));
    }
    listing.head(&id, global.quiet)?;
    for (path, node) in &found {
        listing.list(path, &node.node(), args.recursive || args.dirs.is_empty())?;
    }
    listing.out.flush()?;
    Ok(output::report_errors(&listing.progress, global.json))
}

impl<W: Write> Listing<'_, W> {
    fn head(&mut self, id: &ObjectId, quiet: bool) -> Result<()> {
        if self.json {
            let Kind::Directory { tree, .. } = self.snapshot.root().kind else { bail!("the snapshot has no tree") };
            let head = JsonSnapshot {
                time: entry::rfc3339(self.snapshot.time),
                tree: tree.to_hex(),
                paths: self.snapshot.paths.iter().map(|path| entry::text(path)).collect(),
                hostname: self.snapshot.host.clone(),
                username: self.snapshot.user.clone(),
                tags: self.snapshot.tags.clone(),
                id: id.to_hex(),
                short_id: id.short(),
                message_type: "snapshot",
                struct_type: "snapshot",
            };
            json::write_line(&mut self.out, &head)?;
        } else if !quiet && !self.args.null {
            let paths: Vec<_> = self.snapshot.paths.iter().map(|path| quote(path)).collect();
            let (user, host) = (quote(self.snapshot.user.as_bytes()), quote(self.snapshot.host.as_bytes()));
            let time = entry::local_time(self.snapshot.time);
            writeln!(self.out, "snapshot {} of [{}] at {time} by {user}@{host}:", id.short(), paths.join(" "))?;
        }
        Ok(())
    }

    /// Lists the entry `node` at `path` and, if it is a directory, what is in it or below it.
    fn list(&mut self, path: &[u8], node: &Node<'_>, below: bool) -> Result<()> {
        if !path.is_empty() {
            self.show(path, node)?;
        }
        let Kind::Directory { tree, .. } = node.kind else { return Ok(()) };
        let mut walk = Walk::new(self.repo, tree, path);
        while let Some(event) = walk.next() {
            match event {
                Event::Entry { path, entry } => {
                    self.show(path, &entry.node)?;
                    if !below {
                        walk.skip();
                    }
                }
                Event::Leave { .. } => {}
                Event::Damage { path, error } => self.progress.error(path, "read the directory", error),
            }
        }
        Ok(())
    }

    fn show(&mut self, path: &[u8], node: &Node<'_>) -> Result<()> {
        if self.json {
            let node = JsonNode::new(node, path, self.snapshot);
            json::write_line(&mut self.out, &JsonLine { node, message_type: "node", struct_type: "node" })?;
        } else if self.args.null {
            self.out.write_all(path)?;
            self.out.write_all(b"\0")?;
        } else if self.args.long {
            let target = if let Kind::Symlink { target } = node.kind { Some(quote(target)) } else { None };
            let line = entry::long_line(node, &quote(path), target.as_deref(), self.args.human_readable);
            writeln!(self.out, "{line}")?;
        } else {
            writeln!(self.out, "{}", quote(path))?;
        }
        Ok(())
    }
}
