//! Backups of what programs print.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::generate;
use crate::support::mount::within;
use crate::support::sandbox::{Run, Sandbox, program};

#[test]
fn standard_input_becomes_a_file() {
    let sandbox = Sandbox::new();
    let dump = generate::text(1, 3_000_000);
    let mut command = sandbox.command(args!["backup", "--stdin", "--stdin-filename", "openstack.sql"]);
    Run::of(command.write_stdin(dump.clone())).expect_code(0);
    assert_eq!(sandbox.ok(args!["dump", "latest", "/openstack.sql"]).stdout, dump);
    sandbox.ok(args!["ls", "latest"]).shows("/openstack.sql");
}

#[test]
fn an_empty_stream_is_an_empty_file() {
    let sandbox = Sandbox::new();
    Run::of(sandbox.command(args!["backup", "--stdin"]).write_stdin("")).expect_code(0);
    assert_eq!(sandbox.ok(args!["dump", "latest", "/stdin"]).stdout, b"");
}

#[test]
fn the_same_dump_a_day_later_costs_little() {
    let sandbox = Sandbox::new();
    let mut dump = generate::noise(1, 8 << 20);
    let backup = |dump: &[u8]| {
        let mut command = sandbox.command(args!["backup", "--stdin", "--stdin-filename", "dump", "--json"]);
        Run::of(command.write_stdin(dump)).expect_code(0).summary()["data_added"].as_u64().unwrap()
    };
    let first = backup(&dump);
    assert!(first >= 8 << 20, "{first}");
    dump.splice(1_000_000..1_000_000, *b"a row that is new today");
    let second = backup(&dump);
    assert!(second < 3 << 20, "a row of 23 bytes cost {second} bytes");
}

#[test]
fn the_output_of_a_command_becomes_a_file() {
    let sandbox = Sandbox::new();
    let args =
        args!["backup", "--stdin-from-command", "--stdin-filename", "db.sql", "--", "printf", "%s-%s", "a b", "c"];
    sandbox.ok(args);
    assert_eq!(sandbox.ok(args!["dump", "latest", "/db.sql"]).stdout, b"a b-c");
}

#[test]
fn a_command_that_fails_makes_no_snapshot() {
    let sandbox = Sandbox::new();
    for script in ["echo half of it; exit 3", "kill -9 $$", "exit 1"] {
        let run = sandbox.run(args![
            "backup",
            "--stdin-from-command",
            "--stdin-filename",
            "db.sql",
            "--",
            "sh",
            "-c",
            script
        ]);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(!run.err().is_empty());
    }
    let run = sandbox.run(args!["backup", "--stdin-from-command", "--", "/no/such/program"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    run.says("/no/such/program");
    assert_eq!(sandbox.snapshots().len(), 0);
    sandbox.ok(args!["check"]);
}

#[test]
fn what_a_command_complains_about_is_seen() {
    let sandbox = Sandbox::new();
    let script = "echo data; echo a warning >&2";
    let run = sandbox.ok(args!["backup", "--stdin-from-command", "--stdin-filename", "x", "--", "sh", "-c", script]);
    run.says("a warning");
}

#[test]
fn several_commands_and_paths_make_one_snapshot() {
    let sandbox = Sandbox::new();
    sandbox.write("etc", "config");
    sandbox.ok(args![
        "backup",
        "--command",
        "nova.sql=printf nova",
        "--command",
        "glance.sql=echo glance | tr a-z A-Z",
        sandbox.source()
    ]);
    assert_eq!(sandbox.snapshots().len(), 1);
    assert_eq!(sandbox.ok(args!["dump", "latest", "/nova.sql"]).stdout, b"nova");
    assert_eq!(sandbox.ok(args!["dump", "latest", "/glance.sql"]).stdout, b"GLANCE\n");
    let etc = sandbox.source().join("etc");
    assert_eq!(sandbox.ok(args!["dump", "latest", etc]).stdout, b"config");
}

#[test]
fn one_failing_command_of_several_makes_no_snapshot() {
    let sandbox = Sandbox::new();
    let run = sandbox.run(args!["backup", "--command", "good=echo good", "--command", "bad=exit 7"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.err().contains("bad"), "{run:?}");
    assert_eq!(sandbox.snapshots().len(), 0);
}

#[test]
fn a_stream_name_cannot_leave_the_snapshot() {
    let sandbox = Sandbox::new();
    for name in ["../evil", "a/../../evil", "a/b", "", ".", ".."] {
        let run = Run::of(sandbox.command(args!["backup", "--stdin", "--stdin-filename", name]).write_stdin("x"));
        assert!(matches!(run.code, Some(1 | 2)), "{name:?}: {run:?}");
    }
}

#[test]
fn a_stream_is_compared_with_that_of_the_parent_by_its_content() {
    let sandbox = Sandbox::new();
    let counts = |text: &str, bytes: usize| {
        let command = format!("dump=yes {text} | head -c {bytes}");
        let summary = sandbox.ok(args!["backup", "--json", "--command", command]).summary();
        ["files_new", "files_changed", "files_unmodified"].map(|name| summary[name].as_u64().unwrap())
    };
    assert_eq!(counts("a", 3_000_000), [1, 0, 0]);
    assert_eq!(counts("a", 3_000_000), [0, 0, 1]);
    assert_eq!(counts("b", 3_000_000), [0, 1, 0]);
    assert_eq!(counts("b", 7), [0, 1, 0]);
    assert_eq!(counts("b", 7), [0, 0, 1]);
    assert_eq!(counts("b", 0), [0, 1, 0]);
    assert_eq!(counts("b", 0), [0, 0, 1]);
}

#[test]
fn what_a_command_has_started_ends_with_the_backup() {
    let sandbox = Sandbox::new();
    let started = sandbox.path("started");
    let command = format!("x=touch {}; sleep 60 | cat; echo", started.display());
    let mut backup = std::process::Command::new(program());
    backup.args(args!["backup", "--command", command]).env_clear().envs(sandbox.environment());
    // Not in the foreground of a terminal, wherever the tests run.
    backup.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped());
    let backup = backup.spawn().unwrap();
    assert!(within(Duration::from_secs(20), || started.exists()), "the command does not start");
    let from = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&backup), rustix::process::Signal::INT).unwrap();
    // Whoever is left holds standard error open.
    let output = backup.wait_with_output().unwrap();
    assert!(from.elapsed() < Duration::from_secs(20), "{:?}", from.elapsed());
    assert_eq!((output.status.code(), &*output.stderr), (Some(130), &b"error: interrupted\n"[..]));
    assert_eq!(sandbox.snapshots().len(), 0);
}
