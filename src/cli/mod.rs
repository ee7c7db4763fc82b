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
pub mod store;
pub mod tag;
#[cfg(feature = "mount")]
pub mod umount;
pub mod version;

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use self::exit::Exit;
use self::output::Watch;
use self::secret::{Password, PasswordArgs};
pub use self::select::SnapshotFilter;
use self::store::StoreArgs;
use crate::backend::Backend;
use crate::format::snapshot::Snapshot;
use crate::id::ObjectId;
use crate::progress::{Cancel, Progress};
use crate::repo::{OpenOptions, Repository};

/// Backups that are directories: deduplicated, compressed, encrypted restore points, each a tree to browse and copy from.
#[derive(Parser, Debug)]
#[command(name = "bygone", version, propagate_version = true)]
#[command(after_long_help = MORE)]
pub struct Cli {
    /// Options that every command knows.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const MORE: &str = "\
Snapshots are named by
  latest             the newest, of those that --host, --tag and --path leave
  latest~2           the one two before it
  latest@2026-11-20  the newest made by the end of that day; also latest@2026-11-20T14:00
  1a2b3c4d           the beginning of its id
  latest:/etc        and, behind any of these, a directory in it

Environment:
  BYGONE_REPOSITORY, BYGONE_REPOSITORY_FILE, BYGONE_CACHE_DIR, BYGONE_HOST,
  BYGONE_COMPRESSION, BYGONE_PACK_SIZE, BYGONE_READ_CONCURRENCY
      stand for the options of these names. An empty variable counts as unset.
  BYGONE_PASSWORD, BYGONE_PASSWORD_FILE, BYGONE_PASSWORD_COMMAND
      The password, or where it comes from. Without any of these, and without the
      RESTIC_ variables of the same names, which are read too, the systemd credential
      `bygone-password` is taken, or it is asked for.

Exit codes:
  0    everything was done
  1    the command failed
  3    some files could not be read or written; the rest was done
  10   there is no repository
  12   wrong password
  130  interrupted by a signal
  141  whoever read the output has gone away, as `head` does";

const HEADING: &str = "Global options";

/// Options that every command knows.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Global {
    /// Where the repository is: a directory, `s3:https://HOST/BUCKET/PREFIX` or `swift:CONTAINER:/PREFIX`
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
    /// Most MiB of stored bytes kept in the cache directory for a remote repository
    #[arg(long, global = true, value_name = "MIB", env = "BYGONE_CACHE_DIR_SIZE", help_heading = HEADING)]
    pub cache_dir_size: Option<u64>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print JSON for programs, one value a line; errors too, on standard error
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
    ///
    /// Files that have not changed since the newest snapshot of the same host and paths are not read again.
    ///
    /// Patterns: `*`, `?` and `[...]` match within a name, `**` any number of directories. One that starts with `/` is a
    /// path from the root, any other may match at any depth. A directory that matches is left out with all that is in
    /// it. Later patterns win, and one that starts with `!` takes back in what those before it left out.
    Backup(backup::Args),
    /// List the snapshots
    Snapshots(snapshots::Args),
    /// List what is in a snapshot
    Ls(ls::Args),
    /// Find files in all snapshots
    ///
    /// Patterns are those of `bygone backup --exclude`. What is in a directory that matches is found with it.
    Find(find::Args),
    /// Print an object of the repository
    Cat(cat::Args),
    /// Print a file of a snapshot, or a directory as an archive
    Dump(dump::Args),
    /// Show what differs between two snapshots
    ///
    /// Each line starts with `+` for what only the second has, `-` for what only the first has, `T` for a changed type,
    /// `M` for changed content, `M?` for content that changed though size and times did not, and, with --metadata, `U` for
    /// other metadata.
    Diff(diff::Args),
    /// Restore files from a snapshot
    ///
    /// What is equal already is not written again. Files that the snapshot does not have stay, unless --delete is given,
    /// which spares what patterns leave out and the directories above it. Patterns are those of `bygone backup`, on paths
    /// below what is restored.
    Restore(restore::Args),
    /// Show the snapshots as directories
    ///
    /// Comes back when they can be read; `bygone umount` or `umount` ends it. New snapshots appear by themselves. What of a
    /// host or tag cannot be a file name is shown as `_`.
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
    ///
    /// A snapshot with other tags is another object: its id changes, and the old one is removed.
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
    forget_empty_variables();
    #[cfg(feature = "mount")]
    let arguments = match mount::arguments(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return finish(Err(error), false),
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
    let exit = finish(cli.command.run(&cli.global), cli.global.json);
    cli.global.store.print_statistics(cli.global.json);
    exit
}

/// Prints an error with its causes and what helps against it, or the same as a line of JSON; returns the exit code.
pub fn finish(result: Result<Exit>, json: bool) -> Exit {
    // What standard output still holds may be what cannot be written.
    let result = result.and_then(|exit| output::stdout().flush().map(|()| exit).map_err(Into::into));
    let error = match result {
        Ok(exit) => return exit,
        Err(error) if output::is_broken_pipe(&error) => return Exit::BrokenPipe,
        Err(error) => error,
    };
    let (exit, text, hint) = (Exit::of_error(&error), output::error_text(&error), exit::hint(&error));
    if json {
        let mut line = serde_json::json!({ "message_type": "exit_error", "code": exit as u8, "message": text });
        if let Some(hint) = hint {
            line["hint"] = hint.into();
        }
        output::tell(json::line(&line));
    } else {
        output::tell(format_args!("error: {text}"));
        if let Some(hint) = hint {
            output::tell(format_args!("hint: {hint}"));
        }
    }
    exit
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

/// A variable that is empty says nothing, here as elsewhere: services set those that they have no value for.
fn forget_empty_variables() {
    let ours = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"BYGONE_") || name.starts_with(b"RESTIC_") || name == b"CREDENTIALS_DIRECTORY"
    };
    for (name, _) in std::env::vars_os().filter(|(name, value)| value.is_empty() && ours(name)) {
        // SAFETY: no other thread runs yet that could be reading the environment.
        unsafe { std::env::remove_var(name) };
    }
}

impl Command {
    fn run(&self, global: &Global) -> Result<Exit> {
        #[cfg(feature = "mount")]
        let asks_mount = matches!(self, Command::Mount(_));
        #[cfg(not(feature = "mount"))]
        let asks_mount = false;
        if let Some(what) = global.store.mount_directory().filter(|_| !asks_mount) {
            bail!("`--stats {}` is not known, only `--stats requests`", what.display());
        }
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
    /// Says on standard error what is no error: a `warning` or a `note`. What is not printable is escaped.
    pub fn tell(&self, sort: &str, message: &str) {
        if self.json {
            output::tell(json::line(&serde_json::json!({ "message_type": sort, "message": message })));
        } else {
            output::tell(format_args!("{sort}: {}", output::quote_lines(message)));
        }
    }

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
                static TOLD: std::sync::Once = std::sync::Once::new();
                if !self.quiet {
                    TOLD.call_once(|| self.tell("note", "no repository given; using $RESTIC_REPOSITORY"));
                }
                Ok(name)
            }
            Err(_) => bail!("no repository given: use `-r REPOSITORY` or $BYGONE_REPOSITORY; it is {}", store::FORMS),
        }
    }

    /// The store that the repository lies in.
    pub fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.store.open(&self.repository_name()?)
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
        OpenOptions {
            cache_dir: self.cache_directory(),
            segment_cache_len: 0,
            cache_len_max: self.cache_dir_size.map_or(0, |mib| mib.saturating_mul(1 << 20)),
            patience: None,
            warn: Some(output::warn_of_damage),
        }
    }

    /// The password of the repository.
    pub fn read_password(&self) -> Result<Password> {
        self.password.read(&format!("password of {}", self.repository_name()?), false)
    }

    /// Opens the repository.
    pub fn open_repository(&self) -> Result<Arc<Repository>> {
        self.open_with(&self.open_options(), false)
    }

    /// Opens the repository to look at its snapshots next.
    pub fn open_snapshots(&self) -> Result<Arc<Repository>> {
        self.open_with(&self.open_options(), true)
    }

    /// As [`Global::open_repository`], to keep at most `len` bytes of decoded data in memory.
    pub fn open_repository_with_cache(&self, len: u64) -> Result<Arc<Repository>> {
        self.open_with(&self.options_with_cache(len), false)
    }

    /// As [`Global::open_snapshots`], to keep at most `len` bytes of decoded data in memory.
    pub fn open_snapshots_with_cache(&self, len: u64) -> Result<Arc<Repository>> {
        self.open_with(&self.options_with_cache(len), true)
    }

    /// As [`Global::open_snapshots_with_cache`], to give up what a store in a directory does not answer within
    /// `patience`.
    pub fn open_to_serve(&self, len: u64, patience: Duration) -> Result<Arc<Repository>> {
        let options = OpenOptions { patience: Some(patience), ..self.options_with_cache(len) };
        self.open_with(&options, true)
    }

    fn options_with_cache(&self, len: u64) -> OpenOptions {
        let segment_cache_len = usize::try_from(len).unwrap_or(usize::MAX).max(1);
        OpenOptions { segment_cache_len, ..self.open_options() }
    }

    fn open_with(&self, options: &OpenOptions, snapshots_soon: bool) -> Result<Arc<Repository>> {
        let backend = self.backend()?;
        // Without a repository there is no need to ask for a password.
        let found = Repository::find_for(backend, snapshots_soon)?;
        Ok(found.open(&self.read_password()?, options)?)
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
        cancel_on_signal(progress, &self.store.cancel);
        Watch::new(progress, what, self.quiet, self.json)
    }
}

/// The first signal asks the operation to end, the second one ends the process.
fn cancel_on_signal(progress: &Arc<Progress>, requests: &Cancel) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    let (progress, requests) = (progress.clone(), requests.clone());
    let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            if progress.is_cancelled() {
                std::process::exit(Exit::Interrupted as i32);
            }
            progress.cancel();
            requests.cancel();
        }
    });
}
