//! Making a repository, finding it, opening it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::sandbox::{PASSWORD, Run, Sandbox};

#[test]
fn init_makes_a_repository_that_opens() {
    let sandbox = Sandbox::empty();
    let run = sandbox.ok(args!["init", "--json"]);
    let said = &run.json_lines()[0];
    assert_eq!(said["message_type"], "initialized");
    assert_eq!(said["repository"], sandbox.repository().to_str().unwrap());
    assert!(said["id"].as_str().unwrap().len() >= 16);
    assert_eq!(sandbox.snapshots(), Vec::<String>::new());
}

#[test]
fn init_does_not_touch_a_repository_that_is_there() {
    let sandbox = Sandbox::new();
    let before = sandbox.objects("");
    sandbox.exits(1, args!["init"]).says("already");
    assert_eq!(sandbox.objects(""), before);
}

#[test]
fn only_the_owner_can_look_into_repository_and_cache() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode(sandbox.repository()), 0);
    for entry in fs::read_dir(sandbox.cache()).unwrap() {
        assert_eq!(mode(entry.unwrap().path()), 0);
    }
}

#[test]
fn a_missing_repository_is_exit_10_for_every_command() {
    let sandbox = Sandbox::empty();
    let source = sandbox.source();
    for args in [
        args!["snapshots"],
        args!["backup", source],
        args!["ls", "latest"],
        args!["restore", "latest", "--target", sandbox.path("target")],
        args!["check"],
        args!["key", "list"],
        args!["mount", source],
        args!["stats"],
    ] {
        sandbox.exits(10, args).says("no repository at").says(sandbox.repository().to_str().unwrap());
    }
}

#[test]
fn a_wrong_password_is_exit_12() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(args!["snapshots"]);
    Run::of(command.env("BYGONE_PASSWORD", "wrong")).expect_code(12).says("wrong password");
}

#[test]
fn no_repository_named_is_a_hint_how_to_name_one() {
    let sandbox = Sandbox::empty();
    let mut command = sandbox.command(args!["snapshots"]);
    Run::of(command.env_remove("BYGONE_REPOSITORY")).expect_code(1).says("BYGONE_REPOSITORY");
}

#[test]
fn no_password_and_no_terminal_is_a_hint_how_to_give_one() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(args!["snapshots"]);
    let run = Run::of(command.env_remove("BYGONE_PASSWORD").write_stdin(""));
    assert!(matches!(run.code, Some(1 | 12)), "{run:?}");
    run.says("BYGONE_PASSWORD");
}

#[test]
fn the_password_comes_from_a_file_a_command_or_a_credential() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("password");
    // One line end belongs to the editor, not to the password.
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let print = format!("cat {}", file.display());
    let variables: [(&str, &std::ffi::OsStr); 2] =
        [("BYGONE_PASSWORD_FILE", file.as_os_str()), ("BYGONE_PASSWORD_COMMAND", print.as_ref())];
    for (name, value) in variables {
        let mut command = sandbox.command(args!["snapshots"]);
        Run::of(command.env_remove("BYGONE_PASSWORD").env(name, value)).expect_code(0);
    }
    for args in [
        args!["--password-file", file, "snapshots"],
        args!["--password-command", print, "snapshots"],
        args!["snapshots", "--password-file", file],
        args!["-r", sandbox.repository(), "-p", file, "snapshots"],
    ] {
        Run::of(sandbox.command(args).env_remove("BYGONE_PASSWORD")).expect_code(0);
    }
    let credentials = sandbox.path("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::copy(&file, credentials.join("bygone-password")).unwrap();
    let mut command = sandbox.command(args!["snapshots"]);
    Run::of(command.env_remove("BYGONE_PASSWORD").env("CREDENTIALS_DIRECTORY", &credentials)).expect_code(0);
}

#[test]
fn the_option_wins_over_the_environment() {
    let sandbox = Sandbox::new();
    sandbox.exits(10, args!["-r", sandbox.path("elsewhere"), "snapshots"]).says("elsewhere");
    sandbox.exits(10, args!["snapshots", "--repo", sandbox.path("elsewhere")]).says("elsewhere");
    let file = sandbox.path("where");
    fs::write(&file, format!("{}\n", sandbox.repository().display())).unwrap();
    let mut command = sandbox.command(args!["--repository-file", file, "snapshots"]);
    Run::of(command.env_remove("BYGONE_REPOSITORY")).expect_code(0);
}

#[test]
fn a_repository_from_the_future_is_refused_by_its_version() {
    let sandbox = Sandbox::new();
    let config = sandbox.repository().join("config");
    let bytes = fs::read(&config).unwrap();
    fs::remove_file(&config).unwrap();
    // The version stands in the clear, so that every version of the program can read it.
    let at = crate::golden::VERSION_AT;
    let mut future = bytes.clone();
    future[at] += 1;
    fs::write(&config, future).unwrap();
    for args in [args!["snapshots"], args!["backup", sandbox.source()], args!["check"]] {
        let run = sandbox.exits(1, args);
        assert!(run.err().contains("version"), "{run:?}");
    }
}

#[test]
fn secrets_do_not_reach_child_processes() {
    let sandbox = Sandbox::new();
    sandbox.ok(args!["backup", "--stdin-from-command", "--stdin-filename", "env", "--", "env"]);
    let seen = sandbox.ok(args!["dump", "latest", "/env"]).out();
    assert!(seen.contains("PATH="), "{seen}");
    assert!(!seen.contains(PASSWORD), "{seen}");
}

#[test]
fn usage_errors_are_not_success() {
    let sandbox = Sandbox::new();
    for args in [args!["no-such-command"], args!["backup", "--no-such-option"], args!["restore"], args!["mount"]] {
        let run = sandbox.run(args);
        assert!(matches!(run.code, Some(1 | 2)) && !run.err().is_empty(), "{run:?}");
    }
    sandbox.ok(args!["--help"]).shows("backup");
    sandbox.ok(args!["version"]).shows(env!("CARGO_PKG_VERSION"));
    sandbox.ok(args!["--version"]).shows(env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_file_is_no_repository_and_no_place_for_one() {
    let sandbox = Sandbox::empty();
    let file = sandbox.write("file", "x");
    sandbox.exits(10, args!["snapshots", "--repo", file]).says("no repository at");
    sandbox.exits(1, args!["init", "--repo", file]).says("there is a file of that name");
}

#[test]
fn with_json_errors_are_json_with_the_exit_code() {
    let sandbox = Sandbox::empty();
    let last = |args| -> serde_json::Value {
        let run: Run = sandbox.run(args);
        let line = run.err().lines().last().unwrap_or_default().to_owned();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {run:?}"));
        assert_eq!(said["message_type"], "exit_error", "{run:?}");
        assert_eq!(said["code"], run.code.unwrap(), "{run:?}");
        said
    };
    assert_eq!(last(args!["snapshots", "--json"])["code"], 10);
    sandbox.ok(args!["init"]);
    assert_eq!(last(args!["ls", "latest", "--json"])["code"], 1);
    let source = sandbox.write("file", "x");
    let run = sandbox.exits(3, args!["backup", "--json", source, "/no/such/file"]);
    let said: serde_json::Value = serde_json::from_str(run.err().trim()).unwrap();
    assert_eq!((&said["message_type"], &said["item"]), (&"error".into(), &"/no/such/file".into()));
    assert!(said["error"]["message"].as_str().unwrap().contains("No such file"), "{said}");
}

#[test]
fn a_repository_may_have_a_relative_name_of_one_part() {
    let sandbox = Sandbox::empty();
    sandbox.write("file", "content");
    for name in ["name", "local:other", "above/name"] {
        sandbox.ok(args!["-r", name, "init"]).shows("created repository");
        sandbox.ok(args!["-r", name, "backup", "source"]);
        assert_eq!(sandbox.ok(args!["-r", name, "dump", "latest", sandbox.path("source/file")]).out(), "content");
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    let repository = sandbox.repository();
    let empty =
        ["REPOSITORY", "REPOSITORY_FILE", "CACHE_DIR", "CACHE_DIR_SIZE", "PASSWORD_FILE", "PASSWORD_COMMAND", "HOST"]
            .into_iter()
            .chain(["COMPRESSION", "PACK_SIZE", "READ_CONCURRENCY"])
            .map(|name| format!("BYGONE_{name}"))
            .chain(["RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE", "RESTIC_PASSWORD_FILE"].map(str::to_owned))
            .chain(["CREDENTIALS_DIRECTORY".to_owned()]);
    let mut command = sandbox.command(args!["-r", repository, "backup", sandbox.source()]);
    command.current_dir(sandbox.path(""));
    command.envs(empty.map(|name| (name, "")));
    Run::of(&mut command).expect_code(0);
    let mut command = sandbox.command(args!["snapshots"]);
    Run::of(command.env("BYGONE_REPOSITORY", "").env("RESTIC_REPOSITORY", repository)).expect_code(0);
    let mut command = sandbox.command(args!["snapshots"]);
    Run::of(command.env("BYGONE_REPOSITORY", "")).expect_code(1).says("no repository given");
    let mut command = sandbox.command(args!["snapshots"]);
    Run::of(command.env("BYGONE_PASSWORD", "").write_stdin("")).expect_code(1).says("no password given");
}

#[test]
fn a_wrong_name_of_a_repository_is_told_what_it_may_be() {
    let sandbox = Sandbox::empty();
    for (code, name) in [(1, "https://host/bucket"), (1, "sftp:host:/x"), (10, "backups"), (10, "s4:bucket")] {
        for args in [args!["-r", name, "snapshots"], args!["-r", name, "--json", "snapshots"]] {
            let run = Run::of(sandbox.command(args).current_dir(sandbox.path("")));
            run.expect_code(code).says(name).says("s3:https://HOST/BUCKET/PREFIX").says("swift:CONTAINER:/PREFIX");
        }
    }
}
