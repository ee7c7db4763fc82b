//! `snapshots`, `tag`, `stats`, and how a snapshot is named on every command line.

use std::fs;

use serde_json::{Value, json};

use crate::support::sandbox::Sandbox;

/// Three snapshots: of two hosts, with different tags and times, the last one of another path.
fn with_three() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("file", "one");
    let backup = |host: &str, tags: &str, time: &str, path: &str| {
        sandbox.ok(args!["backup", "--host", host, "--tag", tags, "--time", time, sandbox.path(path)]);
    };
    backup("web", "daily", "2026-01-01 10:00:00", "source");
    sandbox.write("file", "second");
    backup("db", "daily,sql", "2026-02-01 10:00:00", "source");
    fs::create_dir(sandbox.path("other")).unwrap();
    fs::write(sandbox.path("other/file"), "other").unwrap();
    backup("web", "weekly", "2026-03-01 10:00:00", "other");
    sandbox
}

fn times(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|s| s["time"].as_str().unwrap()[..7].to_owned()).collect()
}

#[test]
fn snapshots_are_listed_oldest_first_with_all_their_fields() {
    let sandbox = with_three();
    let list = sandbox.json(args!["snapshots", "--json"]);
    assert_eq!(times(&list), ["2026-01", "2026-02", "2026-03"]);
    let second = &list[1];
    assert_eq!(second["hostname"], "db");
    assert_eq!(second["tags"], json!(["daily", "sql"]));
    assert_eq!(second["paths"], json!([sandbox.source()]));
    assert_eq!(second["id"].as_str().unwrap().len(), 64);
    assert_eq!(second["short_id"], second["id"].as_str().unwrap()[..8]);
    assert!(second["username"].is_string());
    assert!(second["tree"].is_string());
    assert!(second["program_version"].as_str().unwrap().contains(env!("CARGO_PKG_VERSION")));
    let table = sandbox.ok(args!["snapshots"]).out();
    for text in [second["short_id"].as_str().unwrap(), "2026-02-01 10:00:00", "db", "daily", "sql", "3 snapshots"] {
        assert!(table.contains(text), "{text} is not in the table:\n{table}");
    }
}

#[test]
fn filters_choose_by_host_tag_and_path() {
    let sandbox = with_three();
    let other = sandbox.path("other");
    let chosen = |more: Vec<std::ffi::OsString>| {
        let mut args = args!["snapshots", "--json"];
        args.extend(more);
        times(&sandbox.json(args))
    };
    assert_eq!(chosen(args!["--host", "web"]), ["2026-01", "2026-03"]);
    assert_eq!(chosen(args!["-H", "db"]), ["2026-02"]);
    assert_eq!(chosen(args!["--tag", "daily"]), ["2026-01", "2026-02"]);
    assert_eq!(chosen(args!["--tag", "daily,sql"]), ["2026-02"]);
    assert_eq!(chosen(args!["--tag", "sql", "--tag", "weekly"]), ["2026-02", "2026-03"]);
    assert_eq!(chosen(args!["--path", other]), ["2026-03"]);
    assert_eq!(chosen(args!["--host", "web", "--tag", "daily"]), ["2026-01"]);
    assert_eq!(chosen(args!["--latest", "1"]).last().unwrap(), "2026-03");
    let empty: [&str; 0] = [];
    assert_eq!(chosen(args!["--host", "nobody"]), empty);
}

#[test]
fn a_snapshot_is_named_by_prefix_id_latest_and_the_ones_before() {
    let sandbox = with_three();
    let ids = sandbox.snapshots();
    let content = |name: &str, path: &str| {
        let run = sandbox.ok(args!["dump", name, sandbox.path(path)]);
        run.out()
    };
    assert_eq!(content(&ids[0], "source/file"), "one");
    assert_eq!(content(&ids[1][..8], "source/file"), "second");
    assert_eq!(content("latest", "other/file"), "other");
    assert_eq!(content("latest~1", "source/file"), "second");
    assert_eq!(content("latest~2", "source/file"), "one");
    let filtered = sandbox.ok(args!["dump", "--host", "db", "latest", sandbox.source().join("file")]);
    assert_eq!(filtered.out(), "second");
    sandbox.exits(1, args!["dump", "latest~3", "/x"]).says("snapshot");
}

#[test]
fn a_snapshot_that_is_not_there_is_named() {
    let sandbox = with_three();
    for name in ["0123456789abcdef", "zzz", "latest~9"] {
        for args in
            [args!["ls", name], args!["restore", name, "--target", sandbox.path("t")], args!["dump", name, "/x"]]
        {
            let run = sandbox.exits(1, args);
            assert!(run.err().contains(name), "{run:?}");
        }
    }
    Sandbox::new().exits(1, args!["ls", "latest"]).says("no snapshot");
}

#[test]
fn a_prefix_of_several_snapshots_is_refused() {
    let sandbox = Sandbox::new();
    // With seventeen, two of them begin with the same digit.
    for n in 0..17 {
        sandbox.write("file", n.to_string());
        sandbox.backup();
    }
    let ids = sandbox.snapshots();
    let ambiguous = ids.iter().map(|id| &id[..1]).find(|p| ids.iter().filter(|id| id.starts_with(p)).count() > 1);
    let run = sandbox.exits(1, args!["ls", ambiguous.unwrap()]);
    assert!(run.err().contains("give more digits"), "{run:?}");
}

#[test]
fn tags_are_added_removed_and_set() {
    let sandbox = with_three();
    let tags = || sandbox.json(args!["snapshots", "--json"])[0]["tags"].clone();
    let first = sandbox.snapshots()[0].clone();
    sandbox.ok(args!["tag", "--add", "keep,forever", first]);
    assert_eq!(tags(), json!(["daily", "forever", "keep"]));
    sandbox.ok(args!["tag", "--remove", "daily", sandbox.snapshots()[0]]);
    assert_eq!(tags(), json!(["forever", "keep"]));
    sandbox.ok(args!["tag", "--set", "only", sandbox.snapshots()[0]]);
    assert_eq!(tags(), json!(["only"]));
    assert_eq!(sandbox.snapshots().len(), 3);
    let content = sandbox.ok(args!["dump", "latest~2", sandbox.source().join("file")]);
    assert_eq!(content.out(), "one");
    sandbox.ok(args!["check"]);
}

#[test]
fn tags_of_all_snapshots_of_a_host_change_at_once() {
    let sandbox = with_three();
    sandbox.ok(args!["tag", "--add", "new", "--host", "web"]);
    let list = sandbox.json(args!["snapshots", "--json", "--tag", "new"]);
    assert_eq!(times(&list), ["2026-01", "2026-03"]);
}

#[test]
fn stats_count_what_a_restore_would_bring_and_what_is_stored() {
    let sandbox = Sandbox::new();
    sandbox.write("a", vec![1; 1000]);
    sandbox.write("d/b", vec![2; 500]);
    sandbox.backup();
    let stats = sandbox.json(args!["stats", "--json", "latest"]);
    assert_eq!(stats["total_size"], 1500, "{stats}");
    assert!(stats["total_file_count"].as_u64().unwrap() >= 2, "{stats}");
    sandbox.backup();
    let all = sandbox.json(args!["stats", "--json"]);
    assert_eq!(all["snapshots_count"], 2, "{all}");
    let raw = sandbox.json(args!["stats", "--json", "--mode", "raw-data"]);
    assert!(raw["total_size"].as_u64().unwrap() > 0, "{raw}");
    sandbox.ok(args!["stats", "latest"]).shows("1.465 KiB");
}
