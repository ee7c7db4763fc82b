//! What a terminal gets to see, through a real one.

use std::ffi::{OsStr, OsString};
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
fn no_line_is_printed_into_the_bar() {
    needs_program!("script");
    let sandbox = Sandbox::new();
    for n in 0..4000 {
        sandbox.write(&format!("file-{n}"), "x");
    }
    sandbox.backup();
    let source = sandbox.source();
    let args = format!("restore latest:{} --target {} -v", source.display(), sandbox.path("copy").display());
    let shown = on_terminal(&sandbox, &args);
    assert!(shown.contains(" passed, "), "no bar was shown: {shown:?}");
    for line in shown.lines().filter(|line| line.contains("restored ")) {
        let after = line.rsplit("\x1b[2K").next().unwrap();
        assert!(!after.contains(" passed, "), "{line:?}");
    }
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

/// Commands that print, each in its plain and its JSON form.
fn printing(sandbox: &Sandbox) -> Vec<Vec<OsString>> {
    let source = sandbox.source();
    let commands = [
        args!["snapshots"],
        args!["ls", "latest"],
        args!["ls", "-l", "latest"],
        args!["find", "file"],
        args!["diff", "latest~1", "latest"],
        args!["stats"],
        args!["stats", "--mode", "raw-data"],
        args!["cat", "config"],
        args!["cat", "snapshot", "latest"],
        args!["dump", "latest", source.join("file")],
        args!["dump", "latest", source],
        args!["dump", "--archive", "zip", "latest", source],
        args!["key", "list"],
        args!["cache"],
        args!["version"],
        args!["completions", "bash"],
        args!["backup", source],
        args!["backup", "-v", "--dry-run", source],
        args!["restore", "latest", "--target", sandbox.path("target")],
        args!["tag", "--add", "x", "latest"],
    ];
    let json = commands.clone().into_iter().map(|mut args| {
        args.insert(1, "--json".into());
        args
    });
    commands.clone().into_iter().chain(json).collect()
}

#[test]
fn a_full_standard_output_is_an_error_of_every_command() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    sandbox.write("file", "xy");
    sandbox.backup();
    for args in printing(&sandbox) {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let is_json = args.contains(&"--json".into());
        let mut command = Command::new(program());
        let output = command.args(&args).env_clear().envs(sandbox.environment()).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("cannot write to standard output") && said.contains("No space left"), "{args:?}: {said}");
        assert_eq!(said.contains("exit_error"), is_json, "{args:?}: {said}");
        assert_eq!(said.matches("No space left").count(), 1, "{args:?}: {said}");
    }
}

#[test]
fn a_reader_that_is_gone_ends_every_command_quietly() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    sandbox.write("file", "xy");
    sandbox.backup();
    for args in printing(&sandbox) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(program());
        let output = command.args(&args).env_clear().envs(sandbox.environment()).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.as_ref()), (Some(141), ""), "{args:?}");
    }
    assert_eq!(sandbox.snapshots().len(), 4, "the snapshots were made before they were told of");
}

#[test]
fn a_full_standard_error_does_no_harm() {
    let sandbox = Sandbox::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(program());
    let status = command.args(["ls", "latest"]).env_clear().envs(sandbox.environment()).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(1));
}
