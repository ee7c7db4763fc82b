//! `mount`: shows the snapshots as directories until it is unmounted. Comes back when they can be read and serves on in
//! the background.
//!
//! The process that serves is forked off before anything is opened, so that it asks for the password itself and no
//! secret is handed over. Until it is ready it has the terminal; its errors and its exit code are the command's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::tz::TimeZone;

use super::exit::Exit;
use super::{Global, SnapshotFilter, output, store};
use crate::browse;
use crate::format::snapshot::Snapshot;
use crate::fuse::mount::Allowed;
use crate::fuse::stats::STATS_XATTR;
use crate::fuse::{self, Mounted, POLL_DEFAULT};
use crate::repo::Repository;
use crate::source::exclude::parse_size;
use crate::vfs::{self, PATH_TEMPLATES, TIME_TEMPLATE, Templates, Vfs, View};

/// Shows the snapshots as directories.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// An empty directory to mount on; before it, to show one snapshot only, which one: `latest`, an id or its
    /// beginning, with `:PATH` a directory in it
    #[arg(required_unless_present = "statistics", num_args = 1..=2, value_name = "[SNAPSHOT[:PATH]] DIRECTORY")]
    what: Vec<OsString>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Let other users in, as far as the permissions and ACLs of the files allow
    #[arg(long)]
    allow_other: bool,
    /// Let no program on it be run
    #[arg(long)]
    no_exec: bool,
    /// Show everything as owned by root
    #[arg(long)]
    owner_root: bool,
    /// Where a snapshot is shown, can be given several times; %i short id, %I id, %u user, %h host, %t tag, %T time
    #[arg(long, value_name = "TEMPLATE", default_values = PATH_TEMPLATES)]
    path_template: Vec<String>,
    /// How times are shown: in the letters of strftime(3), or as restic has it, like 2006-01-02T15:04:05
    #[arg(long, value_name = "TEMPLATE", default_value = TIME_TEMPLATE)]
    time_template: String,
    /// Microseconds to watch for the next request before sleeping. On a machine of two processors, requests are answered
    /// on the reader's while the other decodes; if run by root, idle ones are kept from sleeping while requests come
    /// quickly. 0 for none of it: saves power and makes small files slower
    #[arg(long, value_name = "TIME", default_value_t = POLL_DEFAULT.as_micros() as u64)]
    poll_us: u64,
    /// Show no extended attributes and no ACLs: copies of many small files are faster, since the kernel need not ask for
    /// them; not together with --allow-other, which needs the ACLs
    #[arg(long, conflicts_with = "allow_other")]
    no_xattrs: bool,
    /// Seconds after which a repository in a directory whose file system does not answer, such as one on a server that is
    /// gone, is an I/O error to who reads
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Bytes of decoded data to keep in memory, at most
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    cache_size: String,
    #[command(flatten)]
    filter: SnapshotFilter,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    // Nothing to mount: `--stats DIRECTORY` asks a running mount what it has done.
    if let Some(directory) = global.store.mount_directory() {
        if !args.what.is_empty() {
            bail!("`mount --stats` takes the directory of a running mount and nothing else");
        }
        return print_stats(directory);
    }
    let (selector, directory) = match &args.what[..] {
        [directory] => (None, Path::new(directory)),
        [selector, directory] => {
            (Some(selector.to_str().context("the snapshot is not valid UTF-8")?), directory.as_ref())
        }
        [] => bail!("which directory is to be mounted on?"),
        _ => unreachable!("the parser takes at most two"),
    };
    let cache_len = parse_size(&args.cache_size).with_context(|| format!("--cache-size {}", args.cache_size))?;
    let background = match args.foreground {
        true => None,
        false => match fork()? {
            Side::Waiting(exit) => return Ok(exit),
            Side::Serving(background) => Some(background),
        },
    };
    let absolute;
    let global = match background {
        Some(_) => {
            absolute = independent(global)?;
            &absolute
        }
        None => global,
    };
    let zone = TimeZone::system();
    let templates = Templates::new(&args.path_template, &args.time_template, zone)?;
    let repo = global.open_to_serve(cache_len, Duration::from_secs(args.timeout))?;
    check_directory(&repo, directory)?;
    let mounted = mount(args, global, &repo, templates, selector, directory, background.is_some())?;
    end_on_signal(&mounted)?;
    if let Some(background) = background {
        background.detach()?;
    }
    mounted.wait().context("the mount ended")?;
    Ok(Exit::Success)
}

/// The options without relative paths: the process will leave the working directory.
fn independent(global: &Global) -> Result<Global> {
    let mut global = global.clone();
    global.repository = Some(store::absolute(&global.repository_name()?)?);
    if let Some(directory) = global.cache_directory() {
        global.cache_dir = Some(std::path::absolute(directory).context("cannot find the cache directory")?);
    }
    Ok(global)
}

fn mount(
    args: &Args,
    global: &Global,
    repo: &Arc<Repository>,
    templates: Templates,
    selector: Option<&str>,
    directory: &Path,
    in_background: bool,
) -> Result<Mounted> {
    let view = match selector {
        None => View::Snapshots(templates),
        Some(selector) => {
            let (snapshot, _, path) = global.select_snapshot(repo, &args.filter, selector)?;
            let names = browse::components(&path).context("the path has a `..` in it")?;
            View::Subtree { snapshot, path: names.map(<[u8]>::to_vec).collect() }
        }
    };
    let filter = args.filter.clone();
    let mut options = vfs::Options::new(view);
    options.filter = Box::new(move |_, snapshot: &Snapshot| filter.matches(snapshot));
    options.view_owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    options.owner = args.owner_root.then_some((0, 0));
    let vfs = Vfs::new(repo.clone(), options).map_err(|error| match error {
        vfs::Error::Repository(error) => anyhow::Error::from(error),
        error => anyhow::Error::from(error).context(format!("cannot show `{}`", selector.unwrap_or_default())),
    })?;
    let journal = Journal { in_background, last: Mutex::default() };
    let options = fuse::Options {
        source: format!("bygone:{}", repo.location()),
        allowed: Allowed { others: args.allow_other, exec: !args.no_exec },
        poll: Duration::from_micros(args.poll_us),
        xattrs: !args.no_xattrs,
        remote: repo.backend().is_remote(),
        on_error: Box::new(move |error| journal.tell(error)),
    };
    Ok(fuse::mount(Arc::new(vfs), directory, options)?)
}

/// Prints what the mount on `directory` tells of itself.
fn print_stats(directory: &Path) -> Result<Exit> {
    let mut json = vec![0; 64 << 10];
    let name = OsStr::from_bytes(STATS_XATTR);
    let len = rustix::fs::getxattr(directory, name, &mut json).with_context(|| {
        let directory = directory.display();
        format!("`{directory}` is not the directory that a repository is mounted on, or that with --no-xattrs")
    })?;
    json.truncate(len);
    json.push(b'\n');
    output::stdout().write_all(&json)?;
    Ok(Exit::Success)
}

/// Refuses directories that a mount would do harm to: the repository's own, and those with files that snapshots were made
/// of, which it would hide from the next backup.
fn check_directory(repo: &Repository, directory: &Path) -> Result<()> {
    let shown = directory.display();
    let path = fs::canonicalize(directory).with_context(|| format!("cannot mount on `{shown}`"))?;
    if let Ok(repository) = fs::canonicalize(repo.location())
        && (path.starts_with(&repository) || repository.starts_with(&path))
    {
        bail!("cannot mount on `{shown}`: the repository is there");
    }
    // What is in the directory would not be in the next backup. An empty one inside a source hides nothing, and backups
    // leave mounts of repositories out.
    let hides = |snapshot: &Snapshot| {
        let mut sources = snapshot.paths.iter().map(|source| Path::new(OsStr::from_bytes(source)));
        sources.any(|source| source.starts_with(&path) || path.starts_with(source))
    };
    if !is_empty(&path) && repo.snapshots()?.iter().any(|(_, snapshot)| hides(snapshot)) {
        bail!(
            "cannot mount on `{shown}`: it has files that backups are made of, and that the mount would hide from them"
        );
    }
    Ok(())
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// The first signal unmounts; the process then ends when the last user of the mount is gone. The second one ends it now.
fn end_on_signal(mounted: &Mounted) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    let point = mounted.point().clone();
    let wait = move || {
        for (count, _) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(Exit::Interrupted as i32);
            }
            if let Err(error) = point.detach() {
                output::tell(format_args!("error: {}", output::error_text(&error.into())));
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// Tells of failures that readers see as I/O errors: on standard error or, in the background, in the system's log.
struct Journal {
    in_background: bool,
    /// The last message and when it was told.
    last: Mutex<Option<(String, Instant)>>,
}

impl Journal {
    /// How long a message is not repeated: programs ask again and again.
    const QUIET: Duration = Duration::from_secs(30);
    /// Facility "daemon", severity "error": see syslog(3).
    const PRIORITY: u32 = 3 << 3 | 3;

    fn tell(&self, error: &vfs::Error) {
        let message = output::quote_lines(&error.to_string());
        let mut last = self.last.lock().expect("no panic while held");
        if last.as_ref().is_some_and(|(told, at)| *told == message && at.elapsed() < Self::QUIET) {
            return;
        }
        if self.in_background {
            let line = format!("<{}>bygone[{}]: {message}", Self::PRIORITY, std::process::id());
            let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(line.as_bytes(), "/dev/log"));
        } else {
            output::tell(format_args!("error: {message}"));
        }
        *last = Some((message, Instant::now()));
    }
}

/// Which of the two processes this is.
enum Side {
    /// The one that was called; the other is ready, or ended with this exit code.
    Waiting(Exit),
    /// The one that serves.
    Serving(Background),
}

/// The way of the serving process to say that it is ready.
struct Background {
    ready: File,
}

fn fork() -> Result<Side> {
    let (wait, ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if threads.is_ok_and(|threads| threads != 1) {
        bail!("cannot go to the background with threads running; use --foreground");
    }
    let command = rustix::process::getpid();
    // SAFETY: the process has one thread, so that no lock is held by another one and the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("cannot start a process"),
        0 => {
            // A command that is ended before it came back must not leave a mount behind.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
            if rustix::process::getppid() != Some(command) {
                bail!("interrupted");
            }
            Ok(Side::Serving(Background { ready: ready.into() }))
        }
        child => {
            drop(ready);
            Ok(Side::Waiting(wait_until_ready(wait, child)?))
        }
    }
}

fn wait_until_ready(wait: OwnedFd, child: libc::pid_t) -> Result<Exit> {
    if File::from(wait).read(&mut [0]).is_ok_and(|len| len == 1) {
        return Ok(Exit::Success);
    }
    let pid = rustix::process::Pid::from_raw(child).context("a process without number")?;
    let status = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    let code = status.ok().flatten().and_then(|(_, status)| status.exit_status()).unwrap_or(Exit::Failure as i32);
    // The other process has said why.
    std::process::exit(if code == 0 { Exit::Failure as i32 } else { code })
}

impl Background {
    /// Leaves the terminal and the working directory, whose file system could not be unmounted otherwise, and lets the
    /// command come back.
    fn detach(mut self) -> Result<()> {
        let _ = rustix::process::set_parent_process_death_signal(None);
        let _ = rustix::process::setsid();
        rustix::process::chdir("/").context("cannot leave the working directory")?;
        let null = File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
        rustix::stdio::dup2_stdin(&null).context("cannot leave the terminal")?;
        rustix::stdio::dup2_stdout(&null).context("cannot leave the terminal")?;
        rustix::stdio::dup2_stderr(&null).context("cannot leave the terminal")?;
        // If the command is gone already, nobody waits.
        let _ = self.ready.write_all(b"\n");
        Ok(())
    }
}

/// Options of `mount -o` that become options of the command, and whether they have a value. mount.bygone(8) has them all.
pub const HELPER_OPTIONS: [(&str, bool); 16] = [
    ("password_file", true),
    ("password_command", true),
    ("cache_dir", true),
    ("no_cache", false),
    ("allow_other", false),
    ("noexec", false),
    ("owner_root", false),
    ("path_template", true),
    ("time_template", true),
    ("poll_us", true),
    ("no_xattrs", false),
    ("cache_size", true),
    ("timeout", true),
    ("host", true),
    ("tag", true),
    ("path", true),
];

/// Options of `mount -o` for others than file systems, or that hold anyway. mount.bygone(8) has them, too.
pub const HELPER_IGNORED: [&str; 23] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "ro",
    "rw",
    "noatime",
    "relatime",
    "norelatime",
    "nodiratime",
    "nodev",
    "nosuid",
    "exec",
    "async",
    "loud",
    "silent",
];

/// The arguments to parse: those given, or, called as `mount.bygone REPOSITORY DIRECTORY [-o OPTIONS]` as mount(8) does
/// for fstab(5), the same said in the program's own way.
pub fn arguments(given: Vec<OsString>) -> Result<Vec<OsString>> {
    let called_as = given.first().and_then(|name| Path::new(name).file_name());
    if called_as != Some(OsStr::new("mount.bygone")) {
        return Ok(given);
    }
    let mut positional = Vec::new();
    let mut options: Vec<Vec<u8>> = Vec::new();
    let mut rest = given.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.as_bytes() {
            b"-o" => options.extend(split_options(rest.next().context("-o needs a value")?.as_bytes())),
            b"-t" => drop(rest.next()),
            b"-s" | b"-n" | b"-v" => {}
            bytes if bytes.starts_with(b"-") => bail!("`{}` is not known here", argument.display()),
            _ => positional.push(argument),
        }
    }
    let [repository, directory] = <[OsString; 2]>::try_from(positional)
        .map_err(|_| anyhow::anyhow!("usage: mount.bygone REPOSITORY DIRECTORY [-o OPTIONS]"))?;
    let mut arguments: Vec<OsString> = vec!["bygone".into(), "mount".into(), "--repo".into(), repository];
    let mut snapshot = None;
    for option in options {
        let at = option.iter().position(|byte| *byte == b'=');
        let (name, value) = at.map_or((&option[..], None), |at| (&option[..at], Some(&option[at + 1..])));
        let name = std::str::from_utf8(name).context("an option is not valid UTF-8")?;
        let known = HELPER_OPTIONS.iter().find(|(known, has_value)| *known == name && *has_value == value.is_some());
        match (known, value) {
            (Some(_), Some(value)) => {
                let dashed = [format!("--{}=", name.replace('_', "-")).as_bytes(), value].concat();
                arguments.push(OsString::from_vec(dashed));
            }
            (Some(_), None) if name == "noexec" => arguments.push("--no-exec".into()),
            (Some(_), None) => arguments.push(format!("--{}", name.replace('_', "-")).into()),
            (None, Some(value)) if name == "snapshot" => snapshot = Some(OsString::from_vec(value.to_vec())),
            (None, _) if name.starts_with("x-") || name == "comment" || HELPER_IGNORED.contains(&name) => {}
            (None, _) => bail!("the mount option `{name}` is not known"),
        }
    }
    arguments.push("--".into());
    arguments.extend(snapshot);
    arguments.push(PathBuf::from(directory).into());
    Ok(arguments)
}

/// Splits at commas; `\,` is a comma in a value.
fn split_options(text: &[u8]) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        let last = options.last_mut().expect("never empty");
        match byte {
            b'\\' => last.extend(bytes.next()),
            b',' => options.push(Vec::new()),
            _ => last.push(byte),
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate(line: &[&str]) -> Result<Vec<String>> {
        let arguments = arguments(line.iter().map(OsString::from).collect())?;
        Ok(arguments.into_iter().map(|argument| argument.into_string().expect("text")).collect())
    }

    #[test]
    fn a_line_of_fstab_becomes_a_command() {
        let options =
            "rw,noauto,x-systemd.automount,_netdev,password_file=/etc/a\\,b=c,allow_other,noexec,snapshot=latest:/etc";
        let line = ["/sbin/mount.bygone", "/srv/b", "/mnt", "-n", "-o", options, "-t", "bygone"];
        let expected = [
            "bygone",
            "mount",
            "--repo",
            "/srv/b",
            "--password-file=/etc/a,b=c",
            "--allow-other",
            "--no-exec",
            "--",
            "latest:/etc",
            "/mnt",
        ];
        assert_eq!(translate(&line).expect("known options"), expected);
        assert_eq!(translate(&["bygone", "mount", "-o"]).expect("not called by mount"), ["bygone", "mount", "-o"]);
    }

    #[test]
    fn an_option_that_would_be_ignored_is_refused() {
        for options in ["noexec=1", "password_file", "allow_other=1", "dev"] {
            assert!(translate(&["mount.bygone", "/srv/b", "/mnt", "-o", options]).is_err(), "{options}");
        }
        assert!(translate(&["mount.bygone", "/srv/b"]).is_err());
        assert!(translate(&["mount.bygone", "/srv/b", "/mnt", "-f"]).is_err());
    }
}
