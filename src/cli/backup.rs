//! `bygone backup`: make a snapshot of files, directories and streams.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{BufReader, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};

use super::exit::Exit;
use super::output::{self, counted, human_size, quote, report_errors};
use super::{Global, SnapshotFilter, json, select, tag};
use crate::backup::{self, Compare, Options, Outcome, ParentChoice, Stream, StreamSource};
use crate::browse;
use crate::progress::Progress;
use crate::repo::Repository;
use crate::repo::writer::{PACK_LEN_DEFAULT, WriteOptions};
use crate::source::exclude::{Excludes, Tag, parse_size, read_patterns};
use crate::source::files_from::{read_globs, read_lines, read_raw};
use crate::source::pattern::{Case, Patterns};
use crate::source::{EntryKind, Event, LeftOut, Walk, WalkOptions};

/// Arguments of `backup`.
#[derive(clap::Args, Debug, Default)]
pub struct Args {
    /// Files and directories to back up
    #[arg(value_name = "PATH")]
    pub paths: Vec<OsString>,

    /// Back up standard input as one file
    #[arg(long, conflicts_with = "stdin_from_command", help_heading = "Streams")]
    pub stdin: bool,
    /// Name of that file
    #[arg(long, value_name = "NAME", default_value = "stdin", help_heading = "Streams")]
    pub stdin_filename: String,
    /// Run the command behind `--` and back up what it prints; no snapshot is made if it fails
    #[arg(long, help_heading = "Streams")]
    pub stdin_from_command: bool,
    /// Run a shell command and back up what it prints as the file NAME (can be given several times)
    ///
    /// No snapshot is made if it fails. Of a pipe the shell, `sh`, notices only whether the last command failed; to notice
    /// all, write `NAME=bash -o pipefail -c 'COMMAND | COMMAND'`.
    #[arg(long, value_name = "NAME=COMMAND", help_heading = "Streams")]
    pub command: Vec<String>,

    /// Read paths from a file, one glob pattern a line (`-`: standard input)
    #[arg(long, value_name = "FILE", help_heading = "What to back up")]
    pub files_from: Vec<PathBuf>,
    /// Read paths from a file, one a line, verbatim
    #[arg(long, value_name = "FILE", help_heading = "What to back up")]
    pub files_from_verbatim: Vec<PathBuf>,
    /// Read paths from a file, each ended by a NUL byte
    #[arg(long, value_name = "FILE", help_heading = "What to back up")]
    pub files_from_raw: Vec<PathBuf>,
    /// Read block devices that are given as paths by their content
    #[arg(long, help_heading = "What to back up")]
    pub read_special: bool,
    /// Do not leave the file systems of the paths
    #[arg(short = 'x', long, help_heading = "What to back up")]
    pub one_file_system: bool,

    /// Leave out what matches (can be given several times)
    #[arg(short, long, value_name = "PATTERN", help_heading = "What to leave out")]
    pub exclude: Vec<OsString>,
    /// As --exclude, ignoring case
    #[arg(long, value_name = "PATTERN", help_heading = "What to leave out")]
    pub iexclude: Vec<OsString>,
    /// Read exclude patterns from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "What to leave out")]
    pub exclude_file: Vec<PathBuf>,
    /// As --exclude-file, ignoring case
    #[arg(long, value_name = "FILE", help_heading = "What to leave out")]
    pub iexclude_file: Vec<PathBuf>,
    /// Leave out what is in directories tagged as caches (CACHEDIR.TAG)
    #[arg(long, help_heading = "What to leave out")]
    pub exclude_caches: bool,
    /// Leave out what is in directories that hold this file (and, with a header, if it starts with that)
    #[arg(long, value_name = "FILE[:HEADER]", help_heading = "What to leave out")]
    pub exclude_if_present: Vec<OsString>,
    /// Leave out files longer than this (units K, M, G, T)
    #[arg(long, value_name = "SIZE", help_heading = "What to leave out")]
    pub exclude_larger_than: Option<String>,
    /// Obey .gitignore files
    #[arg(long, help_heading = "What to leave out")]
    pub gitignore: bool,
    /// Obey .bygoneignore files, which look like .gitignore files
    #[arg(long, help_heading = "What to leave out")]
    pub bygoneignore: bool,

    /// Host to record, instead of this one's name
    #[arg(short = 'H', long, value_name = "HOST", env = "BYGONE_HOST", help_heading = "Snapshot")]
    pub host: Option<String>,
    /// Tags to record (can be given several times)
    #[arg(long, value_name = "TAG[,TAG]", help_heading = "Snapshot")]
    pub tag: Vec<String>,
    /// Time to record, instead of now
    #[arg(long, value_name = "TIME", help_heading = "Snapshot")]
    pub time: Option<String>,
    /// Snapshot that unchanged files are taken from, instead of the newest one of this host and these paths
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "force", help_heading = "Snapshot")]
    pub parent: Option<String>,
    /// Read every file, changed or not
    #[arg(short, long, help_heading = "Snapshot")]
    pub force: bool,
    /// Make no snapshot if nothing differs from the parent
    #[arg(long, help_heading = "Snapshot")]
    pub skip_if_unchanged: bool,
    /// Keep access times
    #[arg(long, help_heading = "Snapshot")]
    pub with_atime: bool,
    /// Take over a file's content unread even if its inode change time differs
    #[arg(long, help_heading = "Snapshot")]
    pub ignore_ctime: bool,
    /// Take over a file's content unread even if its inode number differs
    #[arg(long, help_heading = "Snapshot")]
    pub ignore_inode: bool,

    /// Write nothing, only tell what would be done
    #[arg(short = 'n', long, help_heading = "Run")]
    pub dry_run: bool,
    /// How hard to compress: auto, off, fastest, better, max, or a zstd level from 1 to 19
    #[arg(long, value_name = "HOW", default_value = "auto", env = "BYGONE_COMPRESSION", help_heading = "Run")]
    pub compression: Compression,
    /// Store every new chunk whole, even one that is much like the file's earlier version
    #[arg(long, help_heading = "Run")]
    pub no_delta: bool,
    /// Size of packs in MiB
    #[arg(long, value_name = "MIB", default_value_t = (PACK_LEN_DEFAULT >> 20) as u32, env = "BYGONE_PACK_SIZE",
        value_parser = clap::value_parser!(u32).range(4..=512), help_heading = "Run")]
    pub pack_size: u32,
    /// Threads that read and compute; 0 for as many as there are cores
    #[arg(long, value_name = "COUNT", default_value_t = 0, env = "BYGONE_READ_CONCURRENCY",
        value_parser = clap::value_parser!(u32).range(0..=256), help_heading = "Run")]
    pub read_concurrency: u32,
    /// Do not count first what there is to do
    #[arg(long, help_heading = "Run")]
    pub no_scan: bool,

    /// Command of --stdin-from-command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub words: Vec<OsString>,
}

/// Bytes of decoded data that a backup keeps: the parent's trees and what deltas are made of are read in order, once.
const CACHE_LEN: u64 = 16 << 20;

/// How hard to compress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compression(Option<i32>);

impl std::str::FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Compression(match text {
            "auto" => None,
            // zstd's fastest negative level hardly does more than copy.
            "off" => Some(-100),
            "fastest" => Some(1),
            "better" => Some(6),
            "max" => Some(19),
            level => match level.parse() {
                Ok(level @ 1..=19) => Some(level),
                _ => return Err("it is one of auto, off, fastest, better, max, or a level from 1 to 19".to_owned()),
            },
        }))
    }
}

/// Longest exclude pattern in bytes: more than any path, and what a snapshot can hold.
const PATTERN_LEN_MAX: usize = 16 << 10;

/// Makes the snapshot.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let streams = streams(args)?;
    let targets = targets(args, global)?;
    let (host, tags) = (args.host.clone().unwrap_or_default(), tag::split(&args.tag));
    std::iter::once(&host).chain(&tags).try_for_each(|name| tag::check_name(name))?;
    if targets.is_empty() && streams.is_empty() {
        bail!("nothing to back up: give paths, --files-from, --stdin, --stdin-from-command or --command");
    }
    let (excludes, patterns) = excludes(args)?;
    let mut walk = WalkOptions {
        targets,
        excludes,
        one_file_system: args.one_file_system,
        read_special: args.read_special,
        with_atime: args.with_atime,
        left_out: LeftOut::default(),
    };
    check_names(&streams, &walk)?;
    let time = args.time.as_deref().map(select::parse_time).transpose()?;
    let repo = global.open_repository_with_cache(CACHE_LEN)?;
    walk.left_out = LeftOut::new(repo.location().as_ref());
    let parent = match &args.parent {
        _ if args.force => ParentChoice::None,
        None => ParentChoice::Newest,
        Some(selector) => {
            let (id, _, _) = global.select_snapshot(&repo, &SnapshotFilter::default(), selector)?;
            ParentChoice::Snapshot(id)
        }
    };
    let progress = Arc::new(Progress::new());
    // How long streams are nobody knows, and without them a share of the whole would be wrong.
    if !args.no_scan && streams.is_empty() && !global.quiet && std::io::stderr().is_terminal() {
        count(&walk, &progress);
    }
    let options = Options {
        walk,
        streams,
        excludes: patterns,
        host,
        tags,
        time,
        parent,
        compare: Compare { ignore_ctime: args.ignore_ctime, ignore_inode: args.ignore_inode },
        dry_run: args.dry_run,
        skip_if_unchanged: args.skip_if_unchanged,
        write: WriteOptions { level: args.compression.0, pack_len: u64::from(args.pack_size) << 20 },
        threads: args.read_concurrency as usize,
        deltas: !args.no_delta,
    };
    let may_be_empty = !args.leaves_out() || !options.streams.is_empty();
    let watch = global.watch(&progress, "backup");
    let result = backup::run(&repo, options, &progress);
    drop(watch);
    let exit = report_errors(&progress, global.json);
    let outcome = result?;
    outcome.warnings.iter().for_each(|warning| global.tell("warning", warning));
    if exit == Exit::Success && !may_be_empty {
        warn_of_excluded(&repo, &outcome, global)?;
    }
    print(&outcome, args, global)?;
    Ok(exit)
}

/// Excludes that match more than was meant are best noticed on the first day.
fn warn_of_excluded(repo: &Repository, outcome: &Outcome, global: &Global) -> Result<()> {
    let Outcome { snapshot, record, .. } = outcome;
    let mut none = record.summary.total_files_processed + record.summary.others == 0;
    // A dry run has no tree to look into.
    for path in record.paths.iter().filter(|_| snapshot.is_some()) {
        if browse::resolve(repo, record, path)?.is_none() {
            global.tell("warning", &format!("nothing of {} is backed up: it is excluded", quote(path)));
            none = false;
        }
    }
    if none {
        global.tell("warning", "no file is backed up: the directories are empty, or the excludes match everything");
    }
    Ok(())
}

impl Args {
    /// Whether something may be left out.
    fn leaves_out(&self) -> bool {
        let patterns = self.exclude.len() + self.iexclude.len() + self.exclude_file.len() + self.iexclude_file.len();
        patterns + self.exclude_if_present.len() > 0
            || self.exclude_caches
            || self.exclude_larger_than.is_some()
            || self.gitignore
            || self.bygoneignore
    }
}

fn print(outcome: &Outcome, args: &Args, global: &Global) -> Result<()> {
    let Outcome { snapshot, record, .. } = outcome;
    let summary = &record.summary;
    let mut out = output::stdout();
    if global.json {
        let mut line = serde_json::to_value(summary)?;
        line["message_type"] = "summary".into();
        line["dry_run"] = args.dry_run.into();
        line["total_duration"] = (summary.duration_ms as f64 / 1000.0).into();
        line["backup_start"] = super::output::rfc3339(record.time).into();
        if let Some(id) = snapshot {
            line["snapshot_id"] = id.to_hex().into();
        }
        json::write_line(&mut out, &line)?;
        return Ok(());
    }
    if global.quiet {
        return Ok(());
    }
    if global.verbose > 0 {
        let mut row = |what: &str, new, changed, unmodified| {
            writeln!(out, "{what:<6} {new:>8} new, {changed:>8} changed, {unmodified:>8} unmodified")
        };
        row("files:", summary.files_new, summary.files_changed, summary.files_unmodified)?;
        row("dirs:", summary.dirs_new, summary.dirs_changed, summary.dirs_unmodified)?;
        writeln!(
            out,
            "blobs: {} of data, {} of trees, {} plain",
            summary.data_blobs,
            summary.tree_blobs,
            human_size(summary.data_added)
        )?;
    }
    let name = match snapshot {
        Some(id) => format!("snapshot {} saved", id.short()),
        None if args.dry_run => "dry run, nothing saved".to_owned(),
        None => "nothing changed, no snapshot saved".to_owned(),
    };
    writeln!(
        out,
        "{name}: {}, {} ({} new, {} changed), {} added in {:.1} s",
        counted(summary.total_files_processed, "file"),
        human_size(summary.total_bytes_processed),
        summary.files_new,
        summary.files_changed,
        human_size(if args.dry_run { summary.data_added } else { summary.data_added_packed }),
        summary.duration_ms as f64 / 1000.0,
    )?;
    Ok(())
}

/// Counts in the background what there is to do, so that the time left can be told.
fn count(walk: &WalkOptions, progress: &Arc<Progress>) {
    let (walk, progress) = (walk.clone(), progress.clone());
    let _ = std::thread::Builder::new().name("count".to_owned()).spawn(move || {
        let own = Progress::new();
        let Ok(walk) = Walk::new(walk, &own) else { return };
        let (mut files, mut bytes) = (0, 0);
        for event in walk {
            if progress.is_cancelled() {
                return;
            }
            if let Event::Entry(entry) = event {
                files += 1;
                if let EntryKind::File { size } | EntryKind::Volume { size, .. } = entry.kind() {
                    bytes += size;
                }
            }
        }
        progress.files_total.store(files, Ordering::Relaxed);
        progress.bytes_total.store(bytes, Ordering::Relaxed);
    });
}

fn streams(args: &Args) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    let mut add = |name: &str, source| {
        let name = name.trim_start_matches('/');
        if !crate::format::tree::name_is_valid(name.as_bytes()) {
            bail!("`{name}` cannot be the name of a file in the snapshot's root directory");
        }
        streams.push(Stream { name: name.to_owned(), source });
        Ok(())
    };
    if args.stdin {
        add(&args.stdin_filename, StreamSource::Stdin)?;
    }
    if args.stdin_from_command {
        if args.words.is_empty() {
            bail!("--stdin-from-command needs a command behind `--`");
        }
        add(&args.stdin_filename, StreamSource::Command(args.words.clone()))?;
    } else if !args.words.is_empty() {
        bail!("a command behind `--` needs --stdin-from-command");
    }
    for command in &args.command {
        let Some((name, command)) = command.split_once('=') else {
            bail!("--command takes NAME=COMMAND, not `{command}`");
        };
        add(name, StreamSource::Command(["sh", "-c", command].map(OsString::from).to_vec()))?;
    }
    Ok(streams)
}

/// Refuses two files of one name.
fn check_names(streams: &[Stream], walk: &WalkOptions) -> Result<()> {
    let mut names: Vec<&[u8]> = streams.iter().map(|stream| stream.name.as_bytes()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("two streams are named `{}`", quote(twice[0]));
    }
    for target in &walk.targets {
        let absolute = std::path::absolute(Path::new(&OsString::from_vec(target.clone())))?;
        let absolute = absolute.into_os_string().into_vec();
        let first = absolute.split(|byte| *byte == b'/').find(|part| !part.is_empty());
        let clash = match first {
            Some(first) => names.binary_search(&first).is_ok(),
            None => names.iter().any(|name| Path::new("/").join(String::from_utf8_lossy(name).as_ref()).exists()),
        };
        if clash {
            bail!("a stream has the name of a directory that is backed up too: `{}`", quote(first.unwrap_or(b"/")));
        }
    }
    Ok(())
}

/// Opens a list; `-` is standard input.
fn open(path: &Path) -> Result<BufReader<Box<dyn Read>>> {
    let read: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?)
    };
    Ok(BufReader::new(read))
}

fn targets(args: &Args, global: &Global) -> Result<Vec<Vec<u8>>> {
    let mut targets: Vec<Vec<u8>> = args.paths.iter().map(|path| path.clone().into_vec()).collect();
    let in_list = |path: &Path| format!("cannot read the list of paths `{}`", path.display());
    for path in &args.files_from {
        let warn = |pattern: &[u8]| {
            global.tell("warning", &format!("nothing matches `{}` of `{}`", quote(pattern), path.display()));
        };
        targets.extend(read_globs(open(path)?, warn).with_context(|| in_list(path))?);
    }
    for path in &args.files_from_verbatim {
        targets.extend(read_lines(open(path)?).with_context(|| in_list(path))?);
    }
    for path in &args.files_from_raw {
        targets.extend(read_raw(open(path)?).with_context(|| in_list(path))?);
    }
    if targets.iter().any(Vec::is_empty) {
        bail!("a path to back up is empty");
    }
    Ok(targets)
}

fn excludes(args: &Args) -> Result<(Excludes, Vec<String>)> {
    let mut recorded = Vec::new();
    let mut lists = Vec::new();
    for (given, files, case) in
        [(&args.exclude, &args.exclude_file, Case::Sensitive), (&args.iexclude, &args.iexclude_file, Case::Insensitive)]
    {
        let mut patterns: Vec<Vec<u8>> = given.iter().map(|pattern| pattern.clone().into_vec()).collect();
        for file in files {
            patterns.extend(read_patterns(open(file)?).with_context(|| format!("cannot read `{}`", file.display()))?);
        }
        if let Some(long) = patterns.iter().find(|pattern| pattern.len() > PATTERN_LEN_MAX) {
            bail!("an exclude pattern has {} bytes; {PATTERN_LEN_MAX} are the most", long.len());
        }
        recorded.extend(patterns.iter().map(|pattern| String::from_utf8_lossy(pattern).into_owned()));
        if !patterns.is_empty() {
            lists.push(Patterns::new(&patterns, case)?);
        }
    }
    let mut tags = Vec::new();
    if args.exclude_caches {
        tags.push(Tag::cache());
    }
    for tag in &args.exclude_if_present {
        tags.push(Tag::parse(&tag.clone().into_vec())?);
    }
    let mut ignore_files: Vec<CString> = Vec::new();
    if args.gitignore {
        ignore_files.push(c".gitignore".to_owned());
    }
    if args.bygoneignore {
        ignore_files.push(c".bygoneignore".to_owned());
    }
    let larger_than = args.exclude_larger_than.as_deref().map(parse_size).transpose()?;
    Ok((Excludes { patterns: lists, tags, larger_than, ignore_files }, recorded))
}
