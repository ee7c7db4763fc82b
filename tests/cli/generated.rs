//! Completions and man pages come from the same definition as the command line.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::sandbox::Sandbox;

#[test]
fn completions_are_valid_for_every_shell() {
    let sandbox = Sandbox::empty();
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox.ok(args!["completions", shell]).stdout;
        assert!(script.len() > 1000, "{shell}: {} bytes", script.len());
        let path = sandbox.path(shell);
        fs::write(&path, script).unwrap();
        if crate::support::has_program(shell) {
            let checked = Command::new(shell).arg("-n").arg(&path).output().unwrap();
            assert!(checked.status.success(), "{shell}: {}", checked.stderr.escape_ascii());
        }
    }
}

#[test]
fn every_command_explains_itself() {
    let sandbox = Sandbox::empty();
    let help = sandbox.ok(args!["--help"]).out();
    let commands = "init backup snapshots ls find cat dump diff restore mount umount stats check key tag cache completions version";
    for command in commands.split(' ') {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{command} "))),
            "{command} is not in --help"
        );
        let own = sandbox.ok(args![command, "--help"]).out();
        assert!(own.contains("Usage:"), "{own}");
    }
}

#[test]
fn no_option_takes_a_password() {
    let sandbox = Sandbox::empty();
    let all = ["--help", "init --help", "key add --help", "key passwd --help", "backup --help"];
    for line in all {
        let help = sandbox.ok(line.split(' ').map(Into::into).collect()).out();
        for word in help.split_whitespace().filter(|word| word.contains("password")) {
            assert!(!matches!(word, "--password" | "--password=" | "--new-password"), "{line}: {word}");
        }
    }
}

#[test]
fn man_pages_are_what_the_program_would_write_now() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let sandbox = Sandbox::empty();
    let fresh = sandbox.path("man");
    fs::create_dir(&fresh).unwrap();
    sandbox.ok(args!["completions", "--man", fresh]);
    let pages = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name.to_str().unwrap().ends_with(".1"));
        names.sort();
        names
    };
    assert!(pages(&fresh).len() > 15);
    assert_eq!(pages(&kept), pages(&fresh));
    for name in pages(&fresh) {
        let same = fs::read(kept.join(&name)).unwrap() == fs::read(fresh.join(&name)).unwrap();
        assert!(same, "man/{} is stale: write the pages again with `bygone completions --man man`", name.display());
    }
}
