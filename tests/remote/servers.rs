//! The servers that tests use do what tests take for granted, and go away with whoever wanted them.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::http::request;
use crate::support::mount::within;
use crate::support::proxy::Proxy;
use crate::support::sandbox::tools;
use crate::support::services::{Services, container};

/// A container of an account: takes an object and gives it back.
fn works(storage: &str, token: &str) {
    let auth = [("X-Auth-Token", token)];
    let container = format!("{storage}/{}", container());
    let object = format!("{container}/packs/00");
    assert_eq!(request("PUT", &container, &auth, b"").unwrap().status, 201);
    assert_eq!(request("PUT", &object, &auth, b"content").unwrap().status, 201);
    let reply = request("GET", &object, &auth, b"").unwrap();
    assert_eq!((reply.status, &reply.body[..]), (200, &b"content"[..]));
    assert_eq!(request("GET", &container, &auth, b"").unwrap().text(), "packs/00\n");
    assert_eq!(request("GET", &object, &[], b"").unwrap().status, 401);
}

/// Storage URL and token of the first account that Swift itself knows.
fn log_in(services: &Services) -> (String, String) {
    let variables: BTreeMap<String, String> = services.way("tempauth").into_iter().collect();
    let user = [("X-Auth-User", variables["ST_USER"].as_str()), ("X-Auth-Key", &variables["ST_KEY"])];
    let reply = request("GET", &variables["ST_AUTH"], &user, b"").unwrap();
    let header = |name| reply.header(name).unwrap().to_owned();
    (header("x-storage-url"), header("x-auth-token"))
}

#[test]
fn swift_takes_objects_from_accounts_of_its_own_and_of_keystone() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let (storage, token) = log_in(&services);
    works(&storage, &token);
    // Through a proxy the account is where the proxy is.
    let proxy = Proxy::start(services.fact("/swift/url")).unwrap();
    works(&proxy.through(&storage), &token);
    assert_eq!(proxy.take_counts().requests["PUT"], 2);

    let id = services.fact("/keystone/application_credential_id");
    let secret = services.fact("/keystone/application_credential_secret");
    let who = serde_json::json!({"auth": {"identity": {
        "methods": ["application_credential"], "application_credential": {"id": id, "secret": secret}}}});
    let url = format!("{}/auth/tokens", services.fact("/keystone/url"));
    let json = [("Content-Type", "application/json")];
    let reply = request("POST", &url, &json, who.to_string().as_bytes()).unwrap();
    let token: Value = serde_json::from_slice(&reply.body).unwrap();
    let catalog = token["token"]["catalog"].as_array().unwrap();
    let swift = catalog.iter().find(|entry| entry["type"] == "object-store").unwrap();
    works(swift["endpoints"][0]["url"].as_str().unwrap(), reply.header("x-subject-token").unwrap());
}

#[test]
fn a_listing_is_stale_while_the_container_server_is_away_and_right_after_catching_up() {
    let Some(services) = Services::start("harmed", &["swift"], &[]) else { return };
    let (storage, token) = log_in(&services);
    let auth = [("X-Auth-Token", token.as_str())];
    let container = format!("{storage}/{}", container());
    assert_eq!(request("PUT", &container, &auth, b"").unwrap().status, 201);
    // The proxy asks for the container once and remembers it for a minute.
    assert_eq!(request("PUT", &format!("{container}/early"), &auth, b"content").unwrap().status, 201);
    services.signal("KILL", "container");
    assert_eq!(request("PUT", &format!("{container}/new"), &auth, b"content").unwrap().status, 201);
    services.restart("container");
    assert_eq!(request("GET", &container, &auth, b"").unwrap().text(), "early\n");
    assert_eq!(request("GET", &format!("{container}/new"), &auth, b"").unwrap().body, b"content");
    services.catch_up();
    assert_eq!(request("GET", &container, &auth, b"").unwrap().text(), "early\nnew\n");
}

#[test]
fn servers_end_with_their_owner_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let services = |args: &[&str]| {
        let output = Command::new(tools().join("services")).arg("--state").arg(&state).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, _) = services(&["start", "mariadb", "--owner", &owner.id().to_string()]);
    let status = services(&["status"]).1;
    owner.kill().unwrap();
    owner.wait().unwrap();
    if code == Some(77) {
        crate::support::skipped("needs MariaDB");
        return;
    }
    assert_eq!(code, Some(0));
    let server = status.lines().find(|line| line.starts_with("mariadb ")).unwrap();
    let pid: u32 = server.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(server.contains("(sleeping)"), "{status}");
    assert!(within(Duration::from_secs(30), || !state.exists()), "{} stays", state.display());
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(words.is_empty(), "process {pid} stays: {}", words.escape_ascii());
}
