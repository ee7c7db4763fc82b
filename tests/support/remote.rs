//! A host that keeps its backups in a container: its own home, cache and source, and how it reaches the store.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::http::request;
use super::mount::is_mounted;
use super::sandbox::{Run, Sandbox, program};
use super::services::Services;

/// A container of Swift and how to get there.
#[derive(Clone)]
pub struct Store {
    /// `BYGONE_REPOSITORY` and the variables of the way.
    variables: Vec<(String, OsString)>,
    /// Account and container, and a token that is good for both.
    url: String,
    token: String,
}

/// One host.
pub struct Host {
    /// Where it lives.
    pub sandbox: Sandbox,
    /// Its name.
    pub name: String,
    store: Store,
}

impl Store {
    /// A new container in Swift's first account, reached at `url`: the proxy of Swift itself, or one in front of it.
    pub fn swift(services: &Services, url: &str) -> Self {
        let name = super::services::container();
        let auth = services.fact("/swift/auth").replacen(services.fact("/swift/url"), url, 1);
        let user = [("X-Auth-User", services.fact("/swift/user")), ("X-Auth-Key", services.fact("/swift/key"))];
        // What the test itself asks, it asks the server, not the proxy.
        let login = request("GET", services.fact("/swift/auth"), &user, b"").unwrap();
        let variables = vec![
            ("BYGONE_REPOSITORY".to_owned(), format!("swift:{name}:/").into()),
            ("ST_AUTH".to_owned(), auth.into()),
            ("ST_USER".to_owned(), services.fact("/swift/user").into()),
            ("ST_KEY".to_owned(), services.fact("/swift/key").into()),
        ];
        let url = format!("{}/{name}", login.header("x-storage-url").unwrap());
        Self { variables, url, token: login.header("x-auth-token").unwrap().to_owned() }
    }

    /// Names of all objects.
    pub fn objects(&self) -> Vec<String> {
        self.ask("GET", &[]).lines().map(str::to_owned).collect()
    }

    /// Sets the most bytes that the container may hold.
    pub fn set_quota(&self, bytes: u64) {
        self.ask("POST", &[("X-Container-Meta-Quota-Bytes", &bytes.to_string())]);
    }

    fn ask(&self, method: &str, headers: &[(&str, &str)]) -> String {
        let headers = [headers, &[("X-Auth-Token", self.token.as_str())]].concat();
        let reply = request(method, &self.url, &headers, b"").unwrap();
        assert!(reply.status < 300, "{method} {}: {reply:?}", self.url);
        reply.text()
    }
}

impl Host {
    /// A host with an empty source and an empty cache.
    pub fn new(name: &str, store: &Store) -> Self {
        Self { sandbox: Sandbox::below(&std::env::temp_dir()), name: name.to_owned(), store: store.clone() }
    }

    /// The program, ready to run here.
    pub fn command(&self, args: Vec<OsString>) -> Command {
        let mut command = Command::new(program());
        command.args(args).env_clear().envs(self.sandbox.environment()).envs(self.store.variables.iter().cloned());
        command.current_dir(self.sandbox.path("")).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end, whatever that is.
    pub fn run(&self, args: Vec<OsString>) -> Run {
        let mut command = assert_cmd::Command::from_std(self.command(args));
        Run::of(command.timeout(std::time::Duration::from_secs(300)))
    }

    /// Runs the program, which must succeed.
    pub fn ok(&self, args: Vec<OsString>) -> Run {
        self.run(args).expect_code(0)
    }

    /// Backs up the source; returns what was done.
    pub fn backup(&self) -> Value {
        self.ok(args!["backup", "--json", "--host", self.name, self.sandbox.source()]).summary()
    }

    /// Ids of all snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        let listed: Value = serde_json::from_slice(&self.ok(args!["snapshots", "--json"]).stdout).unwrap();
        listed.as_array().unwrap().iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Restores the latest snapshot of `source`, as `host` backed it up, into a new directory.
    pub fn restore(&self, host: &str, source: &Path, name: &str) -> PathBuf {
        let target = self.sandbox.path(name);
        let selector = format!("latest:{}", source.display());
        self.ok(args!["restore", "--host", host, selector, "--target", target]);
        target
    }

    /// Mounts the repository on a new directory.
    pub fn mount(&self, more: Vec<OsString>) -> HostMount<'_> {
        let dir = self.sandbox.path("mnt");
        std::fs::create_dir_all(&dir).unwrap();
        let mount = HostMount { host: self, dir };
        self.ok([args!["mount"], more, args![mount.dir]].concat());
        mount
    }
}

/// A mounted repository, until it is dropped.
pub struct HostMount<'a> {
    host: &'a Host,
    /// Where it is.
    pub dir: PathBuf,
}

impl Drop for HostMount<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            let mut command = self.host.command(args!["umount", "--lazy", self.dir]);
            let _ = command.stderr(Stdio::null()).status();
        }
    }
}
