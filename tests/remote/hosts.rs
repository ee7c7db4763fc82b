//! Many hosts, one container; networks that are cut, credentials that expire, quotas that are reached, requests that fail.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::compare::assert_same;
use crate::support::generate::{noise, text};
use crate::support::mount::within;
use crate::support::proxy::{Fault, Network, Proxy, Rule};
use crate::support::remote::{Host, Store};
use crate::support::services::Services;

const MIB: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// What every host of a cloud has.
fn write_common(host: &Host) {
    host.sandbox.write("common/image", noise(1, 6 * MIB));
    for n in 0..80 {
        host.sandbox.write(&format!("common/etc/{n}.conf"), text(n, 3000));
    }
}

fn added(summary: &serde_json::Value) -> u64 {
    summary["data_added"].as_u64().unwrap_or_else(|| panic!("{summary}"))
}

/// Names that are neither objects of the format nor a directory of them.
fn strangers(store: &Store) -> Vec<String> {
    let kinds = ["config", "keys/", "packs/", "index/", "snapshots/"];
    store.objects().into_iter().filter(|name| !kinds.iter().any(|kind| name.starts_with(kind))).collect()
}

#[test]
fn eight_hosts_back_up_into_one_container_while_others_read_and_check() {
    needs_fuse!();
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let store = Store::swift(&services, services.fact("/swift/url"));
    let hosts: Vec<Host> = (0..8).map(|n| Host::new(&format!("compute-{n}"), &store)).collect();
    for (n, host) in hosts.iter().enumerate() {
        write_common(host);
        host.sandbox.write("own", noise(100 + n as u64, 2 * MIB));
    }
    hosts[0].ok(args!["init"]);
    let readers = [Host::new("reader-0", &store), Host::new("reader-1", &store), Host::new("checker", &store)];
    let one = Host::new("first", &store);
    write_common(&one);
    one.backup();
    let first = one.snapshots()[0].clone();

    let (mounts, done) = ([readers[0].mount(vec![]), readers[1].mount(vec![])], AtomicBool::new(false));
    for round in 0..2_u64 {
        done.store(false, Ordering::SeqCst);
        // What all get at one moment, as from a package mirror.
        for host in &hosts {
            host.sandbox.write(&format!("shared-{round}"), noise(5000 + round, 2 * MIB));
        }
        let summaries: Vec<_> = std::thread::scope(|scope| {
            for mount in &mounts {
                let shown =
                    mount.dir.join("ids").join(&first[..8]).join(one.sandbox.source().strip_prefix("/").unwrap());
                let (done, source) = (&done, one.sandbox.source());
                scope.spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        assert_same(&source, &shown);
                    }
                });
            }
            let running: Vec<_> = hosts.iter().map(|host| scope.spawn(|| host.backup())).collect();
            let check = scope.spawn(|| readers[2].run(args!["check"]));
            let summaries = running.into_iter().map(|host| host.join().unwrap()).collect();
            done.store(true, Ordering::SeqCst);
            check.join().unwrap().expect_code(0);
            summaries
        });
        for (host, summary) in hosts.iter().zip(&summaries) {
            // What all have is there since the first host, its own is stored once, and what all got now by whoever did not
            // see the others do it; what all got in the round before is found.
            let limit = if round == 0 { 5 * MIB } else { 3 * MIB } as u64;
            assert!(added(summary) < limit, "{} added too much in round {round}: {summary}", host.name);
        }
        for (n, host) in hosts.iter().enumerate() {
            host.sandbox.write(&format!("new-{round}"), text(1000 * round + n as u64, 200_000));
        }
    }
    let last: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = hosts.iter().map(|host| scope.spawn(|| host.backup())).collect();
        running.into_iter().map(|host| host.join().unwrap()).collect()
    });
    for (host, summary) in hosts.iter().zip(&last) {
        assert!(added(summary) < MIB as u64, "{} stores again what is there: {summary}", host.name);
    }

    assert_eq!(strangers(&store), Vec::<String>::new());
    let fresh = Host::new("fresh", &store);
    assert_eq!(fresh.snapshots().len(), 1 + 3 * 8);
    for host in &hosts {
        let target = fresh.restore(&host.name, &host.sandbox.source(), &host.name);
        assert_same(&host.sandbox.source(), &target);
        for mount in &mounts {
            let seen = || {
                let shown = mount.dir.join("hosts").join(&host.name).join("latest");
                shown.join(host.sandbox.source().strip_prefix("/").unwrap()).join("new-1").exists()
            };
            assert!(within(LIMIT, seen), "hosts/{} does not show its latest snapshot", host.name);
        }
    }
    write_common(&fresh);
    let summary = fresh.backup();
    assert!(added(&summary) < MIB as u64, "what all have is stored again: {summary}");
    fresh.ok(args!["check", "--read-data"]);
}

/// A host with a few packs' worth of data, behind a proxy, and an empty repository.
fn behind_a_proxy(services: &Services) -> (Proxy, Store, Host) {
    let proxy = Proxy::start(services.fact("/swift/url")).unwrap();
    let store = Store::swift(services, &proxy.url());
    let host = Host::new("host", &store);
    host.ok(args!["init"]);
    for n in 0..12 {
        host.sandbox.write(&format!("file-{n}"), noise(n, 8 * MIB));
    }
    (proxy, store, host)
}

fn packs(store: &Store) -> u64 {
    store.objects().iter().filter(|name| name.starts_with("packs/")).count() as u64
}

/// After a failure: no snapshot, a sound repository, and a next run that sends only what is missing.
fn goes_on(proxy: &Proxy, host: &Host) {
    assert_eq!(host.snapshots().len(), 0);
    host.ok(args!["check"]);
    proxy.take_counts();
    host.backup();
    let sent = proxy.take_counts().sent;
    assert!(sent < 78 << 20, "{} of 96 MiB are sent again", sent >> 20);
    assert_same(&host.sandbox.source(), &host.restore("host", &host.sandbox.source(), "copy"));
    host.ok(args!["check"]);
}

#[test]
fn an_interrupted_backup_is_gone_on_with_by_the_next_one() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let (proxy, store, host) = behind_a_proxy(&services);
    proxy.add(Rule::new("PUT */packs/*", Fault::Delay(300)));
    let mut backup = host.command(args!["backup", "-q", host.sandbox.source()]).spawn().unwrap();
    assert!(within(LIMIT, || packs(&store) >= 3), "no packs arrive");
    kill_process(Pid::from_child(&backup), Signal::INT).unwrap();
    assert_eq!(backup.wait().unwrap().code(), Some(130));
    goes_on(&proxy, &host);
}

/// A backup during which the network is cut for so long.
fn backup_through_a_cut(services: &Services, network: Network, time: Duration) {
    let (proxy, store, host) = behind_a_proxy(services);
    let args = args!["backup", "--json", "--host", host.name, host.sandbox.source()];
    let mut backup = host.command(args).stdout(std::process::Stdio::null()).spawn().unwrap();
    assert!(within(LIMIT, || packs(&store) > 0), "no pack arrives");
    proxy.set_network(network);
    std::thread::sleep(time);
    proxy.set_network(Network::Up);
    assert_eq!(backup.wait().unwrap().code(), Some(0), "{network:?}");
    assert_same(&host.sandbox.source(), &host.restore("host", &host.sandbox.source(), "copy"));
}

#[test]
fn a_network_that_is_cut_for_a_while_costs_a_backup_only_time() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    for network in [Network::Silent, Network::Down] {
        backup_through_a_cut(&services, network, Duration::from_secs(4));
    }
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_a_network_that_is_cut_for_more_than_a_minute_costs_a_backup_only_time() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    for network in [Network::Silent, Network::Down] {
        backup_through_a_cut(&services, network, Duration::from_secs(75));
    }
}

#[test]
fn a_network_that_stays_cut_is_an_error_and_the_next_run_goes_on() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let (proxy, store, host) = behind_a_proxy(&services);
    let args = args!["-o", "swift.retry-seconds=2", "backup", host.sandbox.source()];
    let backup = host.command(args).stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn();
    let backup = backup.unwrap();
    assert!(within(LIMIT, || packs(&store) >= 2), "no packs arrive");
    proxy.set_network(Network::Down);
    let from = Instant::now();
    let output = backup.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(from.elapsed() < Duration::from_secs(40), "it took {:?} to give up", from.elapsed());
    assert!(said.contains("swift") && said.contains("packs/"), "the error names nothing: {said}");
    proxy.set_network(Network::Up);
    goes_on(&proxy, &host);
}

#[test]
fn a_killed_backup_is_gone_on_with_by_the_next_one() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let (proxy, store, host) = behind_a_proxy(&services);
    proxy.add(Rule::new("PUT */packs/*", Fault::Delay(300)));
    let mut backup = host.command(args!["backup", "-q", host.sandbox.source()]).spawn().unwrap();
    assert!(within(LIMIT, || packs(&store) >= 3), "no packs arrive");
    backup.kill().unwrap();
    backup.wait().unwrap();
    goes_on(&proxy, &host);
}

#[test]
fn a_quota_that_is_reached_is_named_and_the_next_run_goes_on() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let (proxy, store, host) = behind_a_proxy(&services);
    proxy.add(Rule::new("PUT */packs/*", Fault::Delay(300)));
    let mut backup = host.command(args!["backup", host.sandbox.source()]);
    let backup = backup.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    assert!(within(LIMIT, || packs(&store) >= 2), "no packs arrive");
    // Swift looks at how much a container holds when its settings change, and then not for a while.
    store.set_quota(20 << 20);
    let output = backup.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("quota"), "{said}");
    store.set_quota(1 << 30);
    goes_on(&proxy, &host);
}

#[test]
fn credentials_that_are_revoked_in_the_middle_are_an_error_that_says_so() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let (proxy, store, host) = behind_a_proxy(&services);
    let refuse = |request: &str| {
        Rule::new(request, Fault::Status { code: 401, headers: vec![], body: "Unauthorized".to_owned() })
    };
    let mut backup = host.command(args!["backup", host.sandbox.source()]);
    let backup = backup.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    assert!(within(LIMIT, || packs(&store) >= 2), "no packs arrive");
    proxy.add(refuse("*"));
    let output = backup.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ST_KEY") || said.contains("ST_USER"), "no word of what to set: {said}");
    proxy.clear();
    goes_on(&proxy, &host);
}

/// 2 % of all requests fail, each way equally often.
fn fail_some(proxy: &Proxy) {
    let failures = [
        Fault::Status { code: 500, headers: vec![], body: String::new() },
        Fault::CutReply(100),
        Fault::CutRequest(3000),
        Fault::LoseReply,
    ];
    for fault in failures {
        proxy.add(Rule::new("*", fault).chance(0.005));
    }
}

fn silent(said: &str) -> bool {
    said.lines().all(|line| line.is_empty() || line.contains("requests") || line.contains("repeated"))
}

#[test]
fn two_thousand_requests_of_which_some_fail_end_in_the_same_bytes() {
    needs_fuse!();
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let proxy = Proxy::start(services.fact("/swift/url")).unwrap();
    let store = Store::swift(&services, &proxy.url());
    let host = Host::new("host", &store);
    host.ok(args!["init"]);
    fail_some(&proxy);
    proxy.take_counts();
    let (mut requests, mut harmed, mut round) = (0, 0, 0);
    while requests < 2000 {
        host.sandbox.write(&format!("file-{}", round % 4), noise(round, 12 * MIB));
        host.sandbox.write(&format!("text-{round}"), text(round, 40_000));
        let run = host.ok(args!["backup", "-q", "--host", host.name, host.sandbox.source()]);
        assert!(silent(&run.err()), "{run:?}");
        let target = host.restore("host", &host.sandbox.source(), "copy");
        assert_same(&host.sandbox.source(), &target);
        fs::remove_dir_all(target).unwrap();
        random_reads(&host, 150);
        let counts = proxy.take_counts();
        requests += counts.total();
        harmed += counts.harmed;
        round += 1;
    }
    eprintln!("{harmed} of {requests} requests failed in {round} rounds");
    assert!(harmed > requests / 100, "only {harmed} of {requests} requests failed");
    proxy.clear();
    host.ok(args!["check", "--read-data"]);
}

/// Small reads all over the files of the latest snapshot, off a mount that has nothing cached.
fn random_reads(host: &Host, count: u64) {
    use std::os::unix::fs::FileExt;
    let mount = host.mount(args!["--no-cache"]);
    let shown = mount.dir.join("snapshots/latest").join(host.sandbox.source().strip_prefix("/").unwrap());
    let names: Vec<_> = fs::read_dir(host.sandbox.source()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut state = count;
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = &names[(state >> 33) as usize % names.len()];
        let read = |dir: &Path| {
            let file = fs::File::open(dir.join(name)).unwrap();
            let mut bytes = [0; 4096];
            let offset = (state >> 20) % file.metadata().unwrap().len();
            let len = file.read_at(&mut bytes, offset).unwrap();
            bytes[..len].to_vec()
        };
        assert_eq!(read(&shown), read(&host.sandbox.source()), "{name:?}");
    }
}
