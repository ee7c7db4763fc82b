//! The command line: one file a command, each with its arguments and its `run`. Errors become text and an exit code here.

pub mod archive;
pub mod backup;
pub mod cache;
pub mod cat;
pub mod check;
pub mod completions;
pub mod diff;
pub mod dump;
pub mod entry;
pub mod exit;
pub mod find;
pub mod init;
pub mod json;
pub mod key;
pub mod ls;
#[cfg(feature = "mount")]
pub mod mount;
pub mod output;
pub mod restore;
pub mod secret;
pub mod select;
pub mod snapshots;
pub mod stats;
pub mod tag;
#[cfg(feature = "mount")]
pub mod umount;
pub mod version;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use self::exit::Exit;
use self::output::Watch;
use self::secret::{Password, PasswordArgs};
pub use self::select::SnapshotFilter;
use crate::backend::Backend;
use crate::backend::local::Local;
use crate::format::snapshot::Snapshot;
use crate::id::ObjectId;
use crate::progress::Progress;
use crate::repo::{OpenOptions, Repository};

/// Backups that are directories: deduplicated, compressed, encrypted restore points, each a tree to browse and copy from.
#[derive(Parser, Debug)]
#[command(name = "bygone", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_long_help = EXIT_CODES)]
pub struct Cli {
    /// Options that every command knows.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    everything was done
  1    the command failed
  3    some files could not be read or written; the rest was done
  10   there is no repository
  12   wrong password
  130  interrupted by a signal";

const HEADING: &str = "Global options";

/// Options that every command knows.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Global {
    /// Directory of the repository
    #[arg(short, long = "repo", global = true, value_name = "REPOSITORY", env = "BYGONE_REPOSITORY", help_heading = HEADING)]
    pub repository: Option<String>,
    /// File whose first line is the repository
    #[arg(long, global = true, value_name = "FILE", env = "BYGONE_REPOSITORY_FILE", help_heading = HEADING)]
    pub repository_file: Option<PathBuf>,
    /// Where the password is.
    #[command(flatten)]
    pub password: PasswordArgs,
    /// Directory of local indexes and caches; all of it can be deleted at any time
    #[arg(long, global = true, value_name = "DIRECTORY", env = "BYGONE_CACHE_DIR", help_heading = HEADING)]
    pub cache_dir: Option<PathBuf>,
    /// Keep nothing on the local disk
    #[arg(long, global = true, help_heading = HEADING)]
    pub no_cache: bool,
    /// Print JSON, one object a line, for programs
    #[arg(long, global = true, help_heading = HEADING)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long, global = true, help_heading = HEADING)]
    pub quiet: bool,
    /// Say more; twice, even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = HEADING)]
    pub verbose: u8,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a repository
    Init(init::Args),
    /// Back up files, directories and streams into a new snapshot
    Backup(backup::Args),
    /// List the snapshots
    Snapshots(snapshots::Args),
    /// List what is in a snapshot
    Ls(ls::Args),
    /// Find files in all snapshots
    Find(find::Args),
    /// Print an object of the repository
    Cat(cat::Args),
    /// Print a file of a snapshot, or a directory as an archive
    Dump(dump::Args),
    /// Show what differs between two snapshots
    Diff(diff::Args),
    /// Restore files from a snapshot
    Restore(restore::Args),
    /// Show the snapshots as directories
    #[cfg(feature = "mount")]
    Mount(mount::Args),
    /// End a mount
    #[cfg(feature = "mount")]
    Umount(umount::Args),
    /// Count what snapshots hold and take
    Stats(stats::Args),
    /// Verify that the repository is whole
    Check(check::Args),
    /// List, add, remove and change passwords
    Key(key::Args),
    /// Change the tags of snapshots
    Tag(tag::Args),
    /// Show or clear the local caches
    Cache(cache::Args),
    /// Print completions for a shell, or write the manual pages
    Completions(completions::Args),
    /// Print the version
    Version(version::Args),
}

/// Runs the program; returns how it ends.
pub fn main() -> Exit {
    harden();
    #[cfg(feature = "mount")]
    let arguments = match mount::arguments(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return finish(Err(error)),
    };
    #[cfg(not(feature = "mount"))]
    let arguments = std::env::args_os();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Failure } else { Exit::Success };
        }
    };
    finish(cli.command.run(&cli.global))
}

/// Prints an error with its causes and what helps against it; returns the exit code.
pub fn finish(result: Result<Exit>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(error) => {
            if is_broken_pipe(&error) {
                return Exit::Success;
            }
            eprintln!("error: {}", output::quote_lines(&format!("{error:#}")));
            if let Some(hint) = exit::hint(&error) {
                eprintln!("hint: {hint}");
            }
            Exit::of_error(&error)
        }
    }
}

/// A reader that has seen enough (`| head`) is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.chain().any(is)
}

/// Keys in memory must not reach a core file; buffers that come and go must not be given back to the kernel each time,
/// which costs a tenth of a restore.
fn harden() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, 8 << 20), (libc::M_TRIM_THRESHOLD, 32 << 20), (libc::M_TOP_PAD, 4 << 20)]
    {
        // SAFETY: `mallopt` only changes numbers of the allocator, and no other thread runs yet.
        unsafe { libc::mallopt(parameter, value) };
    }
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
}

impl Command {
    fn run(&self, global: &Global) -> Result<Exit> {
        match self {
            Command::Init(args) => init::run(args, global),
            Command::Backup(args) => backup::run(args, global),
            Command::Snapshots(args) => snapshots::run(args, global),
            Command::Ls(args) => ls::run(args, global),
            Command::Find(args) => find::run(args, global),
            Command::Cat(args) => cat::run(args, global),
            Command::Dump(args) => dump::run(args, global),
            Command::Diff(args) => diff::run(args, global),
            Command::Restore(args) => restore::run(args, global),
            #[cfg(feature = "mount")]
            Command::Mount(args) => mount::run(args, global),
            #[cfg(feature = "mount")]
            Command::Umount(args) => umount::run(args, global),
            Command::Stats(args) => stats::run(args, global),
            Command::Check(args) => check::run(args, global),
            Command::Key(args) => key::run(args, global),
            Command::Tag(args) => tag::run(args, global),
            Command::Cache(args) => cache::run(args, global),
            Command::Completions(args) => completions::run(args, global),
            Command::Version(args) => version::run(args, global),
        }
    }
}

impl Global {
    /// The repository as the user named it.
    pub fn repository_name(&self) -> Result<String> {
        if let Some(name) = &self.repository {
            return Ok(name.clone());
        }
        let file =
            self.repository_file.clone().or_else(|| std::env::var_os("RESTIC_REPOSITORY_FILE").map(PathBuf::from));
        if let Some(file) = file {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read the repository file `{}`", file.display()))?;
            return Ok(text.lines().next().unwrap_or_default().trim().to_owned());
        }
        match std::env::var("RESTIC_REPOSITORY") {
            Ok(name) => {
                if !self.quiet {
                    eprintln!("note: no repository given; using $RESTIC_REPOSITORY");
                }
                Ok(name)
            }
            Err(_) => bail!("no repository given: use `-r DIRECTORY` or $BYGONE_REPOSITORY"),
        }
    }

    /// The store that the repository lies in.
    pub fn backend(&self) -> Result<Arc<dyn Backend>> {
        let name = self.repository_name()?;
        if name.is_empty() {
            bail!("the repository's name is empty");
        }
        let schemes = ["s3", "swift", "sftp", "rest", "rclone", "b2", "gs", "azure", "opendal"];
        match name.split_once(':') {
            Some(("local", path)) => Ok(Arc::new(Local::new(path))),
            Some((scheme, _)) if schemes.contains(&scheme) => {
                bail!("this version keeps repositories in local directories only, not in `{scheme}:`")
            }
            _ => Ok(Arc::new(Local::new(name))),
        }
    }

    /// Where local indexes and caches live; `None` with `--no-cache` or if there is no place.
    pub fn cache_directory(&self) -> Option<PathBuf> {
        if self.no_cache {
            return None;
        }
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.cache_dir
            .clone()
            .or_else(|| from("XDG_CACHE_HOME").map(|directory| directory.join("bygone")))
            .or_else(|| from("HOME").map(|home| home.join(".cache/bygone")))
    }

    /// How to open the repository.
    pub fn open_options(&self) -> OpenOptions {
        OpenOptions { cache_dir: self.cache_directory(), segment_cache_len: 0 }
    }

    /// The password of the repository.
    pub fn read_password(&self) -> Result<Password> {
        self.password.read(&format!("password of {}", self.repository_name()?), false)
    }

    /// Opens the repository.
    pub fn open_repository(&self) -> Result<Arc<Repository>> {
        let backend = self.backend()?;
        // Without a repository there is no need to ask for a password.
        Repository::probe(&*backend)?;
        Ok(Repository::open(backend, &self.read_password()?, &self.open_options())?)
    }

    /// The one snapshot that `selector` means, and the path behind its colon.
    pub fn select_snapshot(
        &self,
        repo: &Repository,
        filter: &SnapshotFilter,
        selector: &str,
    ) -> Result<(ObjectId, Snapshot, Vec<u8>)> {
        select::one(repo, filter, selector)
    }

    /// The snapshots that `selectors` mean, oldest first; all that pass the filter if there are none.
    pub fn select_snapshots(
        &self,
        repo: &Repository,
        filter: &SnapshotFilter,
        selectors: &[String],
    ) -> Result<Vec<(ObjectId, Snapshot)>> {
        select::several(repo, filter, selectors)
    }

    /// Shows `progress` until the result is dropped, and lets a signal cancel it.
    pub fn watch(&self, progress: &Arc<Progress>, what: &'static str) -> Watch {
        cancel_on_signal(progress);
        Watch::new(progress, what, self.quiet, self.json)
    }
}

/// The first signal asks the operation to end, the second one ends the process.
fn cancel_on_signal(progress: &Arc<Progress>) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    let progress = progress.clone();
    let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            if progress.is_cancelled() {
                std::process::exit(Exit::Interrupted as i32);
            }
            progress.cancel();
        }
    });
}
