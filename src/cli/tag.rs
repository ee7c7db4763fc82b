//! `bygone tag`: change the tags of snapshots. A changed snapshot is a new object; the old one is removed after it.

use anyhow::{Result, bail};

use super::exit::Exit;
use super::{Global, SnapshotFilter};

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

/// Splits lists at their commas.
pub fn split(lists: &[String]) -> Vec<String> {
    lists.iter().flat_map(|list| list.split(',')).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

/// Changes the tags.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    if args.set.is_empty() && args.add.is_empty() && args.remove.is_empty() {
        bail!("nothing to do: give `--set`, `--add` or `--remove`");
    }
    let repo = global.open_repository()?;
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
            println!("{message}");
        } else if !global.quiet {
            println!("snapshot {} is now {} with tags: {}", id.short(), new_id.short(), new.tags.join(" "));
        }
    }
    if global.json {
        println!("{}", serde_json::json!({"message_type": "summary", "changed_snapshots": changed}));
    } else if changed == 0 && !global.quiet {
        println!("no snapshot had to be changed");
    }
    Ok(Exit::Success)
}
