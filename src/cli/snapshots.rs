//! `bygone snapshots`: list the snapshots.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::exit::Exit;
use super::output::{self, counted, human_size, local_time, print_table, quote, rfc3339};
use super::{Global, SnapshotFilter, json};
use crate::format::snapshot::{Snapshot, Summary};
use crate::format::tree::Kind;
use crate::id::ObjectId;

/// Arguments of `snapshots`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Snapshots to show; all if none is given
    #[arg(value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
    /// Only the newest COUNT of each host and set of paths
    #[arg(long, value_name = "COUNT")]
    pub latest: Option<usize>,
    /// Leave out tags and sizes
    #[arg(short, long)]
    pub compact: bool,
}

/// A snapshot as JSON shows it; field names are those of restic.
#[derive(Serialize)]
pub struct JsonSnapshot {
    time: String,
    tree: String,
    paths: Vec<String>,
    hostname: String,
    username: String,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    excludes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original: Option<String>,
    program_version: String,
    summary: Summary,
    id: String,
    short_id: String,
}

impl JsonSnapshot {
    /// The JSON form of `snapshot`.
    pub fn new(id: &ObjectId, snapshot: &Snapshot) -> Self {
        let tree = match snapshot.root().kind {
            Kind::Directory { tree, .. } => tree.to_hex(),
            _ => unreachable!("a root is a directory"),
        };
        Self {
            time: rfc3339(snapshot.time),
            tree,
            paths: snapshot.paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect(),
            hostname: snapshot.host.clone(),
            username: snapshot.user.clone(),
            uid: snapshot.uid,
            gid: snapshot.gid,
            tags: snapshot.tags.clone(),
            excludes: snapshot.excludes.clone(),
            parent: snapshot.parent.map(|id| id.to_hex()),
            original: snapshot.original.map(|id| id.to_hex()),
            program_version: snapshot.program.clone(),
            summary: snapshot.summary.clone(),
            id: id.to_hex(),
            short_id: id.short(),
        }
    }
}

/// Lists the snapshots.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let repo = global.open_snapshots()?;
    let mut snapshots = global.select_snapshots(&repo, &args.filter, &args.snapshots)?;
    if let Some(count) = args.latest {
        let mut kept: Vec<(ObjectId, Snapshot)> = Vec::new();
        for found in snapshots.into_iter().rev() {
            let same = |other: &&(ObjectId, Snapshot)| other.1.host == found.1.host && other.1.paths == found.1.paths;
            if kept.iter().filter(same).count() < count {
                kept.push(found);
            }
        }
        kept.reverse();
        snapshots = kept;
    }
    let mut out = output::stdout();
    if global.json {
        let list: Vec<JsonSnapshot> = snapshots.iter().map(|(id, snapshot)| JsonSnapshot::new(id, snapshot)).collect();
        json::write_line(&mut out, &list)?;
        return Ok(Exit::Success);
    }
    let join = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(" ");
    let rows: Vec<Vec<String>> = snapshots
        .iter()
        .map(|(id, snapshot)| {
            let mut row = vec![id.short(), local_time(snapshot.time), quote(snapshot.host.as_bytes()).into_owned()];
            if !args.compact {
                row.push(join(&mut snapshot.tags.iter().map(|tag| quote(tag.as_bytes()).into_owned())));
                row.push(human_size(snapshot.summary.total_bytes_processed));
            }
            let mut paths = join(&mut snapshot.paths.iter().map(|path| quote(path).into_owned()));
            if snapshot.summary.errors > 0 {
                paths.push_str(&format!("  ({} not read whole)", snapshot.summary.errors));
            }
            row.push(paths);
            row
        })
        .collect();
    let heading: &[&str] =
        if args.compact { &["ID", "Time", "Host", "Paths"] } else { &["ID", "Time", "Host", "Tags", "Size", "Paths"] };
    if rows.is_empty() {
        if !global.quiet {
            writeln!(out, "no snapshots")?;
        }
        return Ok(Exit::Success);
    }
    print_table(&mut out, heading, &rows)?;
    if !global.quiet {
        writeln!(out, "{}", counted(rows.len() as u64, "snapshot"))?;
    }
    Ok(Exit::Success)
}
