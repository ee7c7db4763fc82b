//! `bygone tag`: change the tags of snapshots. A changed snapshot is a new object; the old one is removed after it.

use std::io::Write;

use anyhow::{Result, bail};

use super::exit::Exit;
use super::output::{self, quote};
use super::{Global, SnapshotFilter, json};
use crate::format::limits::NAME_LEN_MAX;

/// Arguments of `tag`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Snapshots to change; all that pass the filter if none is given
    #[arg(value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// Which snapshots.
    #[command(flatten)]
    pub filter: SnapshotFilter,
    /// Replace all tags by these
    #[arg(long, value_name = "TAG[,TAG]", conflicts_with_all = ["add", "remove"])]
    pub set: Vec<String>,
    /// Add these tags
    #[arg(long, value_name = "TAG[,TAG]")]
    pub add: Vec<String>,
    /// Remove these tags
    #[arg(long, value_name = "TAG[,TAG]")]
    pub remove: Vec<String>,
}

/// Splits lists at their commas; spaces around a tag are not of it.
pub fn split(lists: &[String]) -> Vec<String> {
    let tags = lists.iter().flat_map(|list| list.split(',')).map(str::trim);
    tags.filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

/// Refuses what would be trouble as the name of a host or a tag. What a file name cannot be is no trouble: the mount
/// shows `a/b` as `a_b`.
pub fn check_name(name: &str) -> Result<()> {
    if name.len() > NAME_LEN_MAX {
        bail!("the host or tag `{}` is longer than {NAME_LEN_MAX} bytes", quote(name.as_bytes()));
    }
    if !name.chars().all(output::is_printable) {
        bail!("the host or tag {} has characters that cannot be shown", quote(name.as_bytes()));
    }
    Ok(())
}

/// Changes the tags.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    if args.set.is_empty() && args.add.is_empty() && args.remove.is_empty() {
        bail!("nothing to do: give `--set`, `--add` or `--remove`");
    }
    split(&args.set).iter().chain(&split(&args.add)).try_for_each(|tag| check_name(tag))?;
    let repo = global.open_snapshots()?;
    let mut out = output::stdout();
    let mut changed = 0;
    for (id, snapshot) in global.select_snapshots(&repo, &args.filter, &args.snapshots)? {
        let mut tags = if args.set.is_empty() { snapshot.tags.clone() } else { split(&args.set) };
        tags.extend(split(&args.add));
        let removed = split(&args.remove);
        tags.retain(|tag| !removed.contains(tag));
        tags.sort();
        tags.dedup();
        if tags == snapshot.tags {
            continue;
        }
        let mut new = snapshot;
        new.tags = tags;
        new.original = Some(new.original.unwrap_or(id));
        let new_id = repo.put_snapshot(&new)?;
        repo.delete_snapshot(&id)?;
        changed += 1;
        if global.json {
            let message = serde_json::json!({
                "message_type": "changed", "old_snapshot_id": id.to_hex(), "new_snapshot_id": new_id.to_hex()
            });
            json::write_line(&mut out, &message)?;
        } else if !global.quiet {
            let tags: Vec<_> = new.tags.iter().map(|tag| quote(tag.as_bytes())).collect();
            let tags =
                if tags.is_empty() { "without tags".to_owned() } else { format!("with tags: {}", tags.join(" ")) };
            writeln!(out, "snapshot {} is now {} {tags}", id.short(), new_id.short())?;
        }
    }
    if global.json {
        let line = serde_json::json!({"message_type": "summary", "changed_snapshots": changed});
        json::write_line(&mut out, &line)?;
    } else if changed == 0 && !global.quiet {
        writeln!(out, "no snapshot had to be changed")?;
    }
    Ok(Exit::Success)
}
