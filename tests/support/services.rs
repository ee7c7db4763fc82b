//! Real servers for tests, as `tools/services` starts them: one set for a whole test run, more where a test harms its own.
//!
//! Whoever is first starts them, the others wait; they end with the runner (under nextest) or with the test binary, however
//! that ends. Tests share servers, so each works in containers of its own.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::sandbox::tools;

/// Servers that run.
pub struct Services {
    state: PathBuf,
    facts: Value,
}

impl Services {
    /// The test run's own servers; `None`, said loudly, where they are not installed.
    pub fn shared(names: &[&str]) -> Option<Self> {
        Self::start("shared", names, &[])
    }

    /// Servers that only those tests use that say the same `set`; `more` are arguments of `tools/services start`.
    pub fn start(set: &str, names: &[&str], more: &[&str]) -> Option<Self> {
        let owner = if std::env::var_os("NEXTEST").is_some() {
            rustix::process::getppid().expect("a test has a parent").as_raw_pid()
        } else {
            rustix::process::getpid().as_raw_pid()
        };
        let user = rustix::process::getuid().as_raw();
        let state = std::env::temp_dir().join(format!("bygone-services-{user}-{owner}-{set}"));
        let services = Self { state, facts: Value::Null };
        let owner = owner.to_string();
        services.run_if_installed(&[&["start", "--owner", &owner], more, names].concat())?;
        let facts = services.run(&["facts"]);
        Some(Self { facts: serde_json::from_str(&facts).unwrap(), ..services })
    }

    /// Makes OpenStack's databases in the set's MariaDB, unless they are there; `None`, said loudly, where what makes
    /// them is not installed.
    pub fn make_schemas(&self) -> Option<()> {
        self.run_if_installed(&["schemas"]).map(drop)
    }

    /// What is known of a service, e.g. `/swift/url`.
    pub fn fact(&self, pointer: &str) -> &str {
        self.facts.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {}", self.facts))
    }

    /// The variables that a client needs to go a way: `tempauth`, `s3`, `keystone`, `application-credential`, `ec2`.
    pub fn way(&self, way: &str) -> Vec<(String, String)> {
        let variables = self.facts["ways"][way].as_object().unwrap_or_else(|| panic!("no way `{way}`"));
        variables.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
    }

    /// Sends a signal to one server: `STOP` makes it hang, `CONT` lets it go on, `KILL` is a crash.
    pub fn signal(&self, signal: &str, process: &str) {
        self.run(&["signal", signal, process]);
    }

    /// Starts a server again that ended.
    pub fn restart(&self, process: &str) {
        self.run(&["restart", process]);
    }

    /// Swift does at once what it could not do while one of its servers was away: listings are right afterwards.
    pub fn catch_up(&self) {
        self.run(&["catch-up"]);
    }

    /// Ends them before their owner does; what they kept stays until [`Services::remove`].
    pub fn stop(&self) {
        self.run(&["stop"]);
    }

    /// Removes what servers that were stopped have left: whoever would have done it ended with them.
    pub fn remove(self) {
        std::fs::remove_dir_all(&self.state).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tools().join("services"));
        command.arg("--state").arg(&self.state).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> String {
        self.run_if_installed(args).unwrap_or_else(|| panic!("tools/services {args:?}: something is not installed"))
    }

    /// What a verb prints; `None`, said loudly, where packages are missing that it needs.
    fn run_if_installed(&self, args: &[&str]) -> Option<String> {
        let output = self.command(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(77) {
            super::skipped(said.trim());
            return None;
        }
        assert!(output.status.success(), "tools/services {args:?}: {said}");
        eprint!("{said}");
        Some(String::from_utf8(output.stdout).unwrap())
    }
}

/// A name for a container or bucket that no other test has.
pub fn container() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("bygone-test-{}-{count}", rustix::process::getpid().as_raw_pid())
}
