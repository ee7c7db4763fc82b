//! What every test of the program stands on: a hermetic place to run it in, a tree with everything a file system can
//! hold, and ways to say whether two trees are the same.
//!
//! Where root or /dev/fuse is missing a test says so and returns; `tools/test` counts those.

/// The arguments of a command, of whatever string types.
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        vec![$(std::convert::AsRef::<std::ffi::OsStr>::as_ref(&$arg).to_owned()),*]
    };
}

/// Returns from the test, loudly, unless it runs as root.
macro_rules! needs_root {
    () => {
        if !crate::support::is_root() {
            crate::support::skipped("needs root");
            return;
        }
    };
}

/// Returns from the test, loudly, unless it can mount.
macro_rules! needs_fuse {
    () => {
        if !crate::support::has_fuse() {
            crate::support::skipped("needs /dev/fuse");
            return;
        }
    };
}

/// Returns from the test, loudly, unless the program is there.
macro_rules! needs_program {
    ($program:expr) => {
        if !crate::support::has_program($program) {
            crate::support::skipped(concat!("needs the program ", $program));
            return;
        }
    };
}

pub mod attach;
pub mod compare;
pub mod generate;
pub mod http;
pub mod mount;
pub mod oracle;
pub mod proxy;
pub mod remote;
pub mod sandbox;
pub mod services;

use std::io::Write;

/// Whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a file system can be mounted: the device opens, and an ordinary user has the set-uid program that mounts.
pub fn has_fuse() -> bool {
    let opens = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    opens && (is_root() || has_program("fusermount3"))
}

/// Whether `program` is in the PATH.
pub fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// Says that the running test is skipped, where people and `tools/test` see it.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {why}\n", thread.name().unwrap_or("a test"));
    eprint!("{line}");
    if let Some(path) = std::env::var_os("BYGONE_TEST_SKIPS")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}
