//! `bygone cache`: what lies on the local disk to make things fast. All of it can be deleted at any time.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Global;
use super::exit::Exit;
use super::json;
use super::output::{self, human_size, print_table};
use crate::id::RepositoryId;

/// Arguments of `cache`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Delete the caches of all repositories
    #[arg(long)]
    pub clear: bool,
}

/// Lists or clears the caches.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let Some(directory) = global.cache_directory() else { bail!("there is no cache directory") };
    let mut rows = Vec::new();
    let mut caches = Vec::new();
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other
            .and_then(Iterator::collect)
            .with_context(|| format!("cannot read the cache directory `{}`", directory.display()))?,
    };
    for entry in entries {
        // Only what this program made is listed, and only that is ever deleted.
        let Some(id) = entry.file_name().to_str().and_then(RepositoryId::from_hex) else { continue };
        let size = size_of(&entry.path());
        if args.clear {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot delete the cache `{}`", entry.path().display()))?;
        }
        caches.push(serde_json::json!({"repository": id.to_hex(), "size": size, "cleared": args.clear}));
        rows.push(vec![id.short(), human_size(size)]);
    }
    let mut out = output::stdout();
    if global.json {
        json::write_line(&mut out, &serde_json::json!({"directory": directory, "caches": caches}))?;
    } else if !global.quiet {
        writeln!(out, "{} in {}", if args.clear { "cleared caches" } else { "caches" }, directory.display())?;
        print_table(&mut out, &["Repository", "Size"], &rows)?;
    }
    Ok(Exit::Success)
}

fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
