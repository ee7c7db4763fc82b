//! `key`: several passwords for one repository.

use std::fs;
use std::path::PathBuf;

use crate::support::sandbox::{PASSWORD, Run, Sandbox};

fn file(sandbox: &Sandbox, name: &str, password: &str) -> PathBuf {
    let path = sandbox.path(name);
    fs::write(&path, format!("{password}\n")).unwrap();
    path
}

/// Exit code of opening the repository with `password`.
fn opens(sandbox: &Sandbox, password: &str) -> Option<i32> {
    Run::of(sandbox.command(args!["snapshots"]).env("BYGONE_PASSWORD", password)).code
}

fn ids(sandbox: &Sandbox) -> Vec<(String, bool)> {
    let list = sandbox.json(args!["key", "list", "--json"]);
    let one = |key: &serde_json::Value| (key["id"].as_str().unwrap().to_owned(), key["current"].as_bool().unwrap());
    list.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn a_second_password_opens_until_it_is_removed() {
    let sandbox = Sandbox::new();
    assert_eq!(ids(&sandbox).len(), 1);
    sandbox.ok(args!["key", "add", "--new-password-file", file(&sandbox, "new", "second")]);
    assert_eq!((opens(&sandbox, PASSWORD), opens(&sandbox, "second")), (Some(0), Some(0)));
    let added = ids(&sandbox).into_iter().find(|(_, current)| !current).unwrap().0;
    sandbox.ok(args!["key", "remove", added]);
    assert_eq!((opens(&sandbox, PASSWORD), opens(&sandbox, "second")), (Some(0), Some(12)));
    sandbox.ok(args!["key", "list"]).shows(&ids(&sandbox)[0].0[..8]);
}

#[test]
fn passwd_replaces_the_password() {
    let sandbox = Sandbox::new();
    sandbox.ok(args!["key", "passwd", "--new-password-file", file(&sandbox, "new", "changed")]);
    assert_eq!((opens(&sandbox, PASSWORD), opens(&sandbox, "changed")), (Some(12), Some(0)));
}

#[test]
fn the_key_in_use_and_the_last_key_cannot_be_removed() {
    let sandbox = Sandbox::new();
    let only = ids(&sandbox)[0].0.clone();
    sandbox.exits(1, args!["key", "remove", only]);
    sandbox.ok(args!["key", "add", "--new-password-file", file(&sandbox, "new", "second")]);
    sandbox.exits(1, args!["key", "remove", only]);
    sandbox.exits(1, args!["key", "remove", "0123456789abcdef"]).says("0123456789abcdef");
    assert_eq!((opens(&sandbox, PASSWORD), opens(&sandbox, "second")), (Some(0), Some(0)));
}

#[test]
fn an_empty_password_is_refused() {
    let sandbox = Sandbox::new();
    let run = sandbox.run(args!["key", "add", "--new-password-file", file(&sandbox, "empty", "")]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(ids(&sandbox).len(), 1);
}

#[test]
fn keys_from_different_passwords_share_nothing_but_the_repository() {
    let sandbox = Sandbox::new();
    sandbox.ok(args!["key", "add", "--new-password-file", file(&sandbox, "same", PASSWORD)]);
    let keys: Vec<Vec<u8>> = sandbox.objects("keys").iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(keys.len(), 2);
    assert_ne!(keys[0], keys[1], "the same password twice makes the same object");
}
