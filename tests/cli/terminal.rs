//! What a terminal gets to see, through a real one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::support::sandbox::{Sandbox, program};

/// What a terminal would show of the program run with `args`.
fn on_terminal(sandbox: &Sandbox, args: &str) -> String {
    let line = format!("{} {args}", program().display());
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env_clear()
        .envs(sandbox.environment())
        .env("TERM", "xterm-256color")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("script runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Escape sequences that only move the cursor, colour or erase, as a progress bar does.
fn without_styling(shown: &str) -> String {
    let mut out = String::new();
    let mut rest = shown;
    while let Some(at) = rest.find("\x1b[") {
        out.push_str(&rest[..at]);
        let sequence = &rest[at + 2..];
        let end = sequence.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(sequence.len().saturating_sub(1));
        // A red name would be a name that colours.
        if sequence[..=end].contains("31;45") {
            out.push_str("<raw>");
        }
        rest = &sequence[end + 1..];
    }
    out + rest
}

#[test]
fn control_characters_of_names_never_reach_a_terminal() {
    needs_program!("script");
    let sandbox = Sandbox::new();
    let name = b"x\x1b]0;owned\x07\x1b[31;45mred\x08\r\x9b1m\xe2\x80\xae.txt\n";
    let path = sandbox.source().join(OsStr::from_bytes(name));
    std::fs::write(&path, "x").unwrap();
    sandbox.backup();
    std::fs::write(&path, "y").unwrap();
    std::fs::write(sandbox.source().join(OsStr::from_bytes(b"new\x1b[31;45m")), "y").unwrap();
    sandbox.backup();
    let source = sandbox.source();
    let source = source.display();
    for args in [
        "ls --recursive latest".to_owned(),
        "ls -l --recursive latest".to_owned(),
        "find 'x*'".to_owned(),
        "find -l 'x*'".to_owned(),
        "diff latest~1 latest".to_owned(),
        format!("backup -vv --force {source}"),
        format!("restore latest:{source} --target {} -vv", sandbox.path("copy").display()),
        format!("ls latest '{source}/no such \x1b[31;45m name'"),
        "ls --json --recursive latest".to_owned(),
    ] {
        let shown = on_terminal(&sandbox, &args);
        assert!(!shown.is_empty(), "{args} shows nothing");
        let plain = without_styling(&shown);
        let mut raws = vec!["<raw>", "\x1b]", "\x07", "\u{9b}", "\x08"];
        // JSON is for programs, which want text that is not control characters as it is.
        raws.extend((!args.contains("--json")).then_some("\u{202e}"));
        for raw in raws {
            assert!(!plain.contains(raw), "{args} shows {raw:?} raw: {plain:?}");
        }
    }
}

#[test]
fn names_are_raw_where_nobody_looks_only_if_asked() {
    let sandbox = Sandbox::new();
    sandbox.write("tab\tname", "x");
    sandbox.backup();
    let out = sandbox.ok(args!["ls", "--recursive", "latest"]).out();
    assert!(!out.contains('\t'), "{out:?}");
}

#[test]
fn progress_is_for_terminals_only() {
    needs_program!("script");
    let sandbox = Sandbox::new();
    sandbox.write("file", vec![7; 60 << 20]);
    let piped = sandbox.backup();
    assert!(!piped.out().contains('\r') && piped.stderr.is_empty(), "{piped:?}");
    let shown = on_terminal(&sandbox, &format!("backup --force {}", sandbox.source().display()));
    assert!(shown.contains("snapshot"), "{shown:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let sandbox = Sandbox::new();
    for n in 0..3000 {
        sandbox.write(&format!("a-rather-long-name-to-fill-the-pipe-{n}"), "");
    }
    sandbox.backup();
    let line = format!("{} ls --recursive latest | head -n 1; echo status ${{PIPESTATUS[0]}}", program().display());
    let mut bash = Command::new("bash");
    let output = bash.args(["-c", &line]).env_clear().envs(sandbox.environment()).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.ends_with("status 0\n") || out.ends_with("status 141\n"), "{out}");
}
