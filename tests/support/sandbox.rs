//! A temporary directory with its own home, cache, source and repository, and the program run in it.
//!
//! Nothing of the machine's configuration reaches the program, every run has a time limit, and a panic anywhere in the
//! program fails the test whatever the exit code was.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// The longest that one command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(100);
/// The password of every sandbox's repository.
pub const PASSWORD: &str = "correct horse battery staple";

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("BYGONE_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_bygone")), PathBuf::from)
}

/// The directory that holds `quickstart` and its kin.
pub fn tools() -> PathBuf {
    std::env::var_os("BYGONE_TOOLS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tools"), PathBuf::from)
}

/// A place of its own to run the program in.
pub struct Sandbox {
    dir: tempfile::TempDir,
}

/// What a command did.
pub struct Run {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Sandbox {
    /// A sandbox with an empty source directory and a fresh repository.
    pub fn new() -> Self {
        let sandbox = Self::empty();
        sandbox.ok(args!["init"]);
        sandbox
    }

    /// As [`Sandbox::new`], in memory where there is such a file system: for what takes many runs and no time of its own.
    pub fn fast() -> Self {
        let memory = Path::new("/dev/shm");
        let writable = rustix::fs::access(memory, rustix::fs::Access::WRITE_OK).is_ok();
        let sandbox = if writable { Self::below(memory) } else { Self::empty() };
        sandbox.ok(args!["init"]);
        sandbox
    }

    /// A sandbox without a repository.
    pub fn empty() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// A sandbox without a repository, on the file system of `parent`.
    pub fn below(parent: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("bygone-").tempdir_in(parent).unwrap();
        for name in ["home", "cache", "source", "tmp"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    /// A path in the sandbox; nothing is made.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What is backed up.
    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// Where the repository is.
    pub fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    /// Where the local index and caches are.
    pub fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// Writes a file below the source, with the directories above it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.source().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The program, ready to run in the sandbox.
    pub fn command(&self, args: Vec<OsString>) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::new(program());
        command.args(args).env_clear().envs(self.environment()).current_dir(self.dir.path()).timeout(COMMAND_LIMIT);
        command
    }

    /// The variables that the program sees.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("PATH", std::env::var_os("PATH").unwrap_or_default()),
            ("HOME", self.path("home").into()),
            ("TMPDIR", self.path("tmp").into()),
            ("TZ", "UTC".into()),
            ("LC_ALL", "C.UTF-8".into()),
            ("BYGONE_REPOSITORY", self.repository().into()),
            ("BYGONE_PASSWORD", PASSWORD.into()),
            ("BYGONE_CACHE_DIR", self.cache().into()),
        ]
    }

    /// Runs the program to its end, whatever that is.
    pub fn run(&self, args: Vec<OsString>) -> Run {
        Run::of(&mut self.command(args))
    }

    /// Runs the program, which must exit with `code`.
    pub fn exits(&self, code: i32, args: Vec<OsString>) -> Run {
        self.run(args).expect_code(code)
    }

    /// Runs the program, which must succeed.
    pub fn ok(&self, args: Vec<OsString>) -> Run {
        self.exits(0, args)
    }

    /// Runs the program, which must succeed and print one JSON value.
    pub fn json(&self, args: Vec<OsString>) -> Value {
        let run = self.ok(args);
        serde_json::from_slice(&run.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {run:?}"))
    }

    /// Backs up the source.
    pub fn backup(&self) -> Run {
        self.ok(args!["backup", self.source()])
    }

    /// Ids of all snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<String> {
        let all = self.json(args!["snapshots", "--json"]);
        all.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Restores what `snapshot` has of the source into a new directory `name`, and returns that directory.
    pub fn restore(&self, snapshot: &str, name: &str) -> PathBuf {
        let target = self.path(name);
        self.ok(args!["restore", format!("{snapshot}:{}", self.source().display()), "--target", target]);
        target
    }

    /// Every object of the repository whose path starts with `prefix`, sorted.
    pub fn objects(&self, prefix: &str) -> Vec<PathBuf> {
        let mut found = files_below(&self.repository());
        found.retain(|path| path.strip_prefix(self.repository()).unwrap().starts_with(prefix));
        found
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // What an ordinary user made unreadable could not be deleted by that user.
        if !super::is_root() {
            let _ = std::process::Command::new("chmod").args(["-Rf", "u+rwX"]).arg(self.dir.path()).status();
        }
    }
}

/// Every regular file below `dir`, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

impl Run {
    /// Runs `command` to its end.
    pub fn of(command: &mut assert_cmd::Command) -> Run {
        let line = format!("{command:?}");
        let output = command.output().unwrap_or_else(|e| panic!("{line}: {e}"));
        let run = Run { line, code: output.status.code(), stdout: output.stdout, stderr: output.stderr };
        assert!(!run.err().contains("panicked at"), "the program panicked: {run:?}");
        run
    }

    /// Insists on an exit code.
    pub fn expect_code(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "unexpected exit code: {self:?}");
        self
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Insists that standard error says `text`.
    pub fn says(self, text: &str) -> Run {
        assert!(self.err().contains(text), "standard error does not say {text:?}: {self:?}");
        self
    }

    /// Insists that standard output shows `text`.
    pub fn shows(self, text: &str) -> Run {
        assert!(self.out().contains(text), "standard output does not show {text:?}: {self:?}");
        self
    }

    /// The JSON values printed, one a line.
    pub fn json_lines(&self) -> Vec<Value> {
        let lines = self.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))).collect()
    }

    /// The line of a JSON stream that says what a backup did.
    pub fn summary(&self) -> Value {
        let summary = self.json_lines().into_iter().find(|line| line["message_type"] == "summary");
        summary.unwrap_or_else(|| panic!("no summary: {self:?}"))
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        let code = self.code.map_or("a signal".to_owned(), |code| code.to_string());
        write!(f, "{}\nexit: {code}\nstdout: {}\nstderr: {}", self.line, cut(&self.stdout), cut(&self.stderr))
    }
}

/// Printable form of a name for messages.
pub fn shown(name: &std::ffi::OsStr) -> String {
    name.as_bytes().escape_ascii().to_string()
}
