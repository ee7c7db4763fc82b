//! Servers that fail in their own ways: listings that lag, a server that hangs, tokens that are forgotten, a full disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::attach::Attached;
use crate::support::compare::assert_same;
use crate::support::generate::noise;
use crate::support::mount::within;
use crate::support::proxy::{Fault, Network, Proxy, Rule};
use crate::support::remote::{Host, Store};
use crate::support::services::Services;

const LIMIT: Duration = Duration::from_secs(60);

/// Servers to harm, a proxy in front of them, and a host with an empty repository and 48 MiB to back up.
fn set_up(set: &str) -> Option<(Services, Proxy, Store, Host)> {
    let services = Services::start(set, &["swift"], &[])?;
    let proxy = Proxy::start(services.fact("/swift/url")).unwrap();
    let store = Store::swift(&services, &proxy.url());
    let host = Host::new("host", &store);
    host.ok(args!["init"]);
    for n in 0..6 {
        host.sandbox.write(&format!("file-{n}"), noise(n, 8 << 20));
    }
    Some((services, proxy, store, host))
}

fn begin_backup(host: &Host) -> std::process::Child {
    let mut command = host.command(args!["backup", "-q", "--host", host.name, host.sandbox.source()]);
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the proxy has seen a request of this method.
fn seen(proxy: &Proxy, method: &str) {
    let is_there = || proxy.take_counts().requests.get(method).is_some_and(|count| *count > 0);
    assert!(within(LIMIT, is_there), "no {method} arrives");
}

fn succeeds(backup: std::process::Child) {
    let output = backup.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn comes_back(host: &Host) {
    let target = host.restore(&host.name, &host.sandbox.source(), "copy");
    assert_same(&host.sandbox.source(), &target);
    fs::remove_dir_all(target).unwrap();
    host.ok(args!["check"]);
}

#[test]
fn packs_that_a_stale_listing_lacks_are_neither_lost_nor_stored_again() {
    let Some((services, proxy, store, host)) = set_up("harmed") else { return };
    // Packs arrive while nobody can write them down; everything else arrives when somebody can again.
    proxy.add(Rule::new("PUT */packs/*", Fault::Delay(3000)));
    proxy.add(Rule::new("PUT */index/*", Fault::Delay(15_000)));
    proxy.take_counts();
    let backup = begin_backup(&host);
    seen(&proxy, "PUT");
    services.signal("KILL", "container");
    std::thread::sleep(Duration::from_secs(8));
    services.restart("container");
    succeeds(backup);
    proxy.clear();
    let listed = store.objects();
    assert!(listed.iter().any(|name| name.starts_with("snapshots/")), "{listed:?}");
    assert!(!listed.iter().any(|name| name.starts_with("packs/")), "the listing is not stale: {listed:?}");

    comes_back(&host);
    let other = Host::new("other", &store);
    comes_back_as(&host, &other);
    host.sandbox.write("new", noise(77, 100_000));
    let summary = host.backup();
    let added = summary["data_added"].as_u64().unwrap();
    assert!(added < 1 << 20, "{added} bytes: what is there is stored again");
    services.catch_up();
    assert!(store.objects().iter().any(|name| name.starts_with("packs/")));
    comes_back(&host);
}

/// What `host` backed up comes back on `other`, which has nothing cached.
fn comes_back_as(host: &Host, other: &Host) {
    let target = other.restore(&host.name, &host.sandbox.source(), "copy");
    assert_same(&host.sandbox.source(), &target);
    other.ok(args!["check", "--read-data"]);
}

#[test]
fn a_server_that_hangs_for_a_while_costs_a_backup_only_time() {
    let Some((services, proxy, _, host)) = set_up("harmed") else { return };
    proxy.take_counts();
    proxy.add(Rule::new("PUT */packs/*", Fault::Delay(500)));
    let backup = begin_backup(&host);
    seen(&proxy, "PUT");
    for server in ["object", "container"] {
        services.signal("STOP", server);
        std::thread::sleep(Duration::from_secs(4));
        services.signal("CONT", server);
    }
    succeeds(backup);
    services.catch_up();
    comes_back(&host);
}

#[test]
fn a_run_that_is_ended_does_not_wait_for_a_store_that_is_away() {
    let Some((_services, proxy, _, host)) = set_up("harmed") else { return };
    let ends = |args: Vec<std::ffi::OsString>, method: &str, network: Network| {
        proxy.take_counts();
        proxy.add(Rule::new("* */packs/*", Fault::Delay(500)));
        let mut run = host.command(args);
        let run = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        seen(&proxy, method);
        std::thread::sleep(Duration::from_millis(200));
        proxy.set_network(network);
        std::thread::sleep(Duration::from_secs(2));
        let from = Instant::now();
        rustix::process::kill_process(rustix::process::Pid::from_child(&run), rustix::process::Signal::TERM).unwrap();
        let output = run.wait_with_output().unwrap();
        let (took, said) = (from.elapsed(), String::from_utf8_lossy(&output.stderr).into_owned());
        assert!(took < Duration::from_secs(4), "{network:?}: {took:?}");
        assert_eq!((output.status.code(), said.as_str()), (Some(130), "error: interrupted\n"), "{network:?}");
        proxy.set_network(Network::Up);
        proxy.clear();
    };
    for network in [Network::Down, Network::Silent] {
        ends(args!["backup", "-q", "--host", host.name, host.sandbox.source()], "PUT", network);
    }
    host.backup();
    let selector = format!("latest:{}", host.sandbox.source().display());
    for network in [Network::Down, Network::Silent] {
        // Without what the backup has left in the cache.
        let args = args!["--no-cache", "restore", "-q", selector, "--target", host.sandbox.path("ended")];
        ends(args, "GET", network);
    }
    comes_back(&host);
}

#[test]
fn tokens_that_the_store_forgets_during_a_backup_are_renewed() {
    let Some((services, proxy, _, host)) = set_up("harmed") else { return };
    proxy.take_counts();
    proxy.add(Rule::new("PUT */packs/*", Fault::Delay(2000)));
    let backup = begin_backup(&host);
    seen(&proxy, "PUT");
    // Swift keeps the tokens of its own accounts there and nowhere else.
    services.signal("KILL", "memcached");
    services.restart("memcached");
    succeeds(backup);
    proxy.clear();
    comes_back(&host);
}

#[test]
fn a_full_store_is_an_error_and_with_room_the_next_run_goes_on() {
    if !crate::support::is_root() {
        crate::support::skipped("needs root, to mount a small disk");
        return;
    }
    let Some(services) = Services::start("full", &["swift"], &[]) else { return };
    let device = Path::new(services.fact("/swift/devices")).join("d0");
    let disk = Attached::mount(&["-t", "tmpfs", "-o", "size=24m"], Path::new("tmpfs"), device.clone()).unwrap();
    let store = Store::swift(&services, services.fact("/swift/url"));
    let host = Host::new("host", &store);
    host.ok(args!["init"]);
    for n in 0..6 {
        host.sandbox.write(&format!("file-{n}"), noise(n, 8 << 20));
    }
    let failed = host.run(args!["-o", "swift.retry-seconds=3", "backup", host.sandbox.source()]);
    failed.expect_code(1).says("packs/").says("full (503");
    assert_eq!(host.snapshots().len(), 0);
    let status = Command::new("mount").args(["-o", "remount,size=512m"]).arg(&device).status().unwrap();
    assert!(status.success());
    host.backup();
    comes_back(&host);
    services.stop();
    drop(disk);
    services.remove();
}
