//! `check` on repositories that are in order; damage is the business of `faults`.

use std::fs;

use crate::support::generate;
use crate::support::sandbox::{Run, Sandbox};

fn with_data() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("large", generate::noise(1, 4 << 20));
    sandbox.write("text", generate::text(1, 100_000));
    sandbox.backup();
    sandbox
}

#[test]
fn a_repository_in_order_is_found_in_order() {
    let sandbox = with_data();
    sandbox.ok(args!["check"]).shows("no errors");
    sandbox.ok(args!["check", "--read-data"]).shows("no errors");
    sandbox.ok(args!["check", "--read-data-subset", "50%"]);
    sandbox.ok(args!["check", "--read-data-subset", "1/2"]);
    sandbox.ok(args!["check", "--read-data-subset", "2M"]);
    let summary = sandbox.ok(args!["check", "--json"]).summary();
    assert_eq!(summary["num_errors"], 0);
    Sandbox::new().ok(args!["check"]);
}

#[test]
fn check_without_a_key_needs_no_password() {
    let sandbox = with_data();
    let mut command = sandbox.command(args!["check", "--keyless"]);
    Run::of(command.env_remove("BYGONE_PASSWORD")).expect_code(0);
    let pack = sandbox.objects("packs").remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    let mut command = sandbox.command(args!["check", "--keyless"]);
    let run = Run::of(command.env_remove("BYGONE_PASSWORD")).expect_code(1);
    run.says(pack.file_name().unwrap().to_str().unwrap());
}

#[test]
fn one_fault_is_one_error_and_the_paths_it_affects_are_told() {
    let sandbox = with_data();
    sandbox.backup();
    let pack = sandbox.objects("packs").into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[1 << 20] ^= 1;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();

    let run = sandbox.exits(1, args!["check", "--read-data"]);
    let said = run.err();
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
    let affected: Vec<_> = said.lines().filter(|line| line.starts_with("  affects ")).collect();
    let path = sandbox.source().join("large").display().to_string();
    assert_eq!(affected.len(), 2, "{said}");
    for id in sandbox.snapshots() {
        let line = format!("  affects {}:{path}", &id[..8]);
        assert!(affected.iter().any(|affected| **affected == line), "no {line} in {said}");
    }
    run.says(pack.file_name().unwrap().to_str().unwrap()).shows("1 error was found");

    let summary = sandbox.exits(1, args!["check", "--read-data", "--json"]).summary();
    assert_eq!(summary["num_errors"], 1);
    assert_eq!(summary["errors"][0]["paths"].as_array().unwrap().len(), 2);

    let objects = sandbox.objects("").len();
    let run = sandbox.exits(1, args!["check", "--keyless"]);
    assert_eq!(run.err().lines().count(), 1);
    run.shows(&format!("{objects} objects read"));
}

#[test]
fn check_changes_nothing() {
    let sandbox = with_data();
    let before = sandbox.objects("");
    sandbox.ok(args!["check", "--read-data"]);
    assert_eq!(sandbox.objects(""), before);
}

#[test]
fn a_subset_that_makes_no_sense_is_refused() {
    let sandbox = with_data();
    for subset in ["0/2", "3/2", "0%", "101%", "x", ""] {
        let run = sandbox.run(args!["check", "--read-data-subset", subset]);
        assert!(matches!(run.code, Some(1 | 2)), "{subset:?}: {run:?}");
    }
}
