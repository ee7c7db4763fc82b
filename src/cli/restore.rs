//! `restore`: a snapshot, or a part of it, into a directory.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::exit::Exit;
use super::output::{self, counted, human_size, quote, report_errors};
use super::{Global, SnapshotFilter, entry, json};
use crate::progress::Progress;
use crate::restore::{self, Action, Options, Overwrite, Select, Selection};
use crate::source::exclude::read_patterns;
use crate::source::pattern::{Case, Patterns};

/// Restores a snapshot, or a part of it, into a directory.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The snapshot: `latest`, an id or its beginning; with `:PATH` what is in that directory, without what is above it
    snapshot: String,
    /// The directory to restore into; made if it is missing
    #[arg(short, long, value_name = "DIR")]
    target: PathBuf,
    /// What happens to files that are there already
    #[arg(long, value_enum, default_value_t)]
    overwrite: How,
    /// Remove what the snapshot does not have from the directories that are restored
    #[arg(long)]
    delete: bool,
    /// Only show what would be done; each entry with -v
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Restore only what matches (can be given several times)
    #[arg(short, long, value_name = "PATTERN", conflicts_with_all = ["exclude", "iexclude", "exclude_file"])]
    include: Vec<String>,
    /// As --include, ignoring case
    #[arg(long, value_name = "PATTERN", conflicts_with_all = ["exclude", "iexclude", "exclude_file"])]
    iinclude: Vec<String>,
    /// Read patterns to include from a file, one a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["exclude", "iexclude", "exclude_file"])]
    include_file: Vec<PathBuf>,
    /// Do not restore what matches (can be given several times)
    #[arg(short, long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// As --exclude, ignoring case
    #[arg(long, value_name = "PATTERN")]
    iexclude: Vec<String>,
    /// Read patterns to exclude from a file, one a line
    #[arg(long, value_name = "FILE")]
    exclude_file: Vec<PathBuf>,
    /// Read every written file back and compare it
    #[arg(long)]
    verify: bool,
    /// Make holes of zeros; holes of the source are restored as holes anyway
    #[arg(long)]
    sparse: bool,
    /// Give files to the users and groups of the same name instead of the same number
    #[arg(long)]
    ownership_by_name: bool,
    #[command(flatten)]
    filter: SnapshotFilter,
}

/// What happens to files that are there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// They are made equal to the snapshot's, whatever their times
    #[default]
    Always,
    /// Those whose size or modification time differs are made equal
    IfChanged,
    /// Those that the snapshot has a newer version of are made equal, the others stay
    IfNewer,
    /// All of them stay
    Never,
}

/// Patterns that include, or patterns that exclude.
struct Chosen {
    includes: bool,
    lists: Vec<Patterns>,
}

impl Select for Chosen {
    fn select(&self, path: &[u8], is_directory: bool) -> Selection {
        let matches = self.lists.iter().any(|list| list.matches(path));
        if !self.includes {
            return Selection { entry: !matches, below: !matches && is_directory };
        }
        let below = is_directory && (matches || self.lists.iter().any(|list| list.may_match_below(path)));
        Selection { entry: matches, below }
    }
}

impl Args {
    fn chosen(&self) -> Result<Option<Chosen>> {
        let includes = !(self.include.is_empty() && self.iinclude.is_empty() && self.include_file.is_empty());
        let (plain, folded, files) = if includes {
            (&self.include, &self.iinclude, &self.include_file)
        } else {
            (&self.exclude, &self.iexclude, &self.exclude_file)
        };
        let mut lists = vec![Patterns::new(plain, Case::Sensitive)?, Patterns::new(folded, Case::Insensitive)?];
        for path in files {
            let shown = || quote(path.as_os_str().as_encoded_bytes()).into_owned();
            let file =
                std::fs::File::open(path).with_context(|| format!("cannot open the pattern file {}", shown()))?;
            let patterns = read_patterns(std::io::BufReader::new(file))
                .with_context(|| format!("cannot read the pattern file {}", shown()))?;
            lists.push(Patterns::new(patterns, Case::Sensitive)?);
        }
        lists.retain(|list| !list.is_empty());
        Ok((!lists.is_empty()).then_some(Chosen { includes, lists }))
    }
}

#[derive(Serialize)]
struct JsonSummary<'a> {
    message_type: &'a str,
    seconds_elapsed: f64,
    #[serde(flatten)]
    summary: restore::Summary,
}

#[derive(Serialize)]
struct JsonStatus {
    message_type: &'static str,
    action: &'static str,
    item: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_hex: Option<String>,
    size: u64,
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Restored => "restored",
        Action::Updated => "updated",
        Action::Unchanged => "unchanged",
        Action::Kept => "kept",
        Action::Deleted => "deleted",
    }
}

/// What is said of an action that has not been taken.
fn would(action: Action) -> &'static str {
    match action {
        Action::Restored => "would restore",
        Action::Updated => "would update",
        Action::Unchanged => "unchanged",
        Action::Kept => "would keep",
        Action::Deleted => "would delete",
    }
}

/// A restore must not write into the repository it reads, nor delete from it.
fn refuse_repository(target: &Path, location: &str) -> Result<()> {
    let Ok(repository) = std::fs::canonicalize(location) else { return Ok(()) };
    // The target may not exist yet; what exists of its path says where it will be.
    let absolute = std::path::absolute(target)?;
    let existing = absolute.ancestors().find_map(|path| std::fs::canonicalize(path).ok());
    if existing.is_some_and(|path| path.starts_with(&repository)) {
        bail!("the target `{}` lies in the repository; restore into another directory", target.display());
    }
    Ok(())
}

/// Bytes of decoded data that a restore keeps: what is in a pack is written in its order, so that little is needed again,
/// and what stays in the processor's caches is written sooner.
const CACHE_LEN: u64 = 16 << 20;

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let started = std::time::Instant::now();
    let chosen = args.chosen()?;
    if args.delete && args.target == std::path::Path::new("/") && !chosen.as_ref().is_some_and(|chosen| chosen.includes)
    {
        bail!("`--delete` with the target `/` would remove what the snapshot does not have; add `--include`");
    }
    let repo = global.open_snapshots_with_cache(CACHE_LEN)?;
    let (id, snapshot, path) = global.select_snapshot(&repo, &args.filter, &args.snapshot)?;
    let location = repo.location();
    refuse_repository(&args.target, &location)?;
    // A repository that lies within the target is not surplus.
    let protected = std::fs::metadata(&location).map(|found| (found.dev(), found.ino()));
    let on_terminal = std::io::stdout().is_terminal();
    // A reader that has gone away does not end a restore.
    let report = |path: &[u8], action: Action, size: u64| {
        let detail = match action {
            Action::Restored | Action::Updated | Action::Deleted => 1,
            Action::Unchanged | Action::Kept => 2,
        };
        if global.verbose < detail {
            return;
        }
        if global.json {
            let status = JsonStatus {
                message_type: "verbose_status",
                action: name(action),
                item: entry::text(path),
                item_hex: entry::hex_unless_text(path),
                size,
            };
            let _ = json::write_line(&mut output::stdout(), &status);
        } else {
            let (what, width) = if args.dry_run { (would(action), 13) } else { (name(action), 9) };
            let print = || drop(writeln!(output::stdout(), "{what:<width$} {} {}", quote(path), human_size(size)));
            if on_terminal { output::beside_bar(print) } else { print() }
        }
    };
    let options = Options {
        overwrite: match args.overwrite {
            How::Always => Overwrite::Always,
            How::IfChanged => Overwrite::IfChanged,
            How::IfNewer => Overwrite::IfNewer,
            How::Never => Overwrite::Never,
        },
        delete: args.delete,
        dry_run: args.dry_run,
        verify: args.verify,
        sparse: args.sparse,
        ownership_by_name: args.ownership_by_name,
        select: chosen.as_ref().map(|chosen| chosen as &dyn Select),
        report: (global.verbose > 0).then_some(&report),
        protected: protected.into_iter().collect(),
    };
    let progress = Arc::new(Progress::new());
    if chosen.is_none() && path.is_empty() {
        progress.bytes_total.store(snapshot.summary.total_bytes_processed, std::sync::atomic::Ordering::Relaxed);
    }
    let watch = global.watch(&progress, "restore");
    let result = restore::run(&repo, &snapshot, &path, &args.target, &options, &progress);
    drop(watch);
    let summary = match result {
        // The exit code follows from the repository's own error.
        Err(restore::Error::Repository(error)) => return Err(error.into()),
        result => result?,
    };
    let exit = report_errors(&progress, global.json);
    let seconds_elapsed = started.elapsed().as_secs_f64();
    if global.json {
        let line = JsonSummary { message_type: "summary", seconds_elapsed, summary };
        json::write_line(&mut output::stdout(), &line)?;
    } else if !global.quiet {
        let verb = if args.dry_run { "would restore" } else { "restored" };
        let mut line = format!(
            "{verb} {} of {}, {} of {}, from snapshot {} in {seconds_elapsed:.2} s",
            summary.files_restored,
            counted(summary.total_files, "entry"),
            human_size(summary.bytes_restored),
            human_size(summary.total_bytes),
            id.short(),
        );
        if summary.files_skipped > 0 {
            let were = if summary.files_skipped == 1 { "was" } else { "were" };
            line += &format!("; {} {were} there already", summary.files_skipped);
        }
        let would = if args.dry_run { "would be " } else { "" };
        for (count, what) in [(summary.files_kept, "kept"), (summary.files_deleted, "deleted")] {
            if count > 0 {
                line += &format!("; {count} {would}{what}");
            }
        }
        writeln!(output::stdout(), "{line}")?;
    }
    Ok(exit)
}
