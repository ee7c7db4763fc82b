//! What every backend promises, held against each of them: memory, a directory, Swift as its own accounts and Keystone's
//! see it, and its S3 interface.

mod refusals;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bygone::backend::count::{Count, Request, Requests};
use bygone::backend::local::Local;
use bygone::backend::mem::Memory;
use bygone::backend::near::Near;
use bygone::backend::remote::options::Options;
use bygone::backend::remote::{Limits, RemoteOptions};
use bygone::backend::{Backend, ErrorKind, Listed, ObjectKind, ObjectName, Reuse, s3, swift};
use bygone::id::ObjectId;

use crate::support::generate::noise;
use crate::support::http::request;
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::services::{Services, container};

const KINDS: [ObjectKind; 4] = [ObjectKind::Key, ObjectKind::Pack, ObjectKind::Index, ObjectKind::Snapshot];

/// A name for `bytes`, as the program would give it.
fn name_of(kind: ObjectKind, bytes: &[u8]) -> ObjectName {
    ObjectName::new(kind, ObjectId::of(bytes))
}

fn listed(store: &dyn Backend, kind: ObjectKind) -> BTreeSet<(ObjectId, u64)> {
    let mut found = BTreeSet::new();
    let mut take = |listed: Listed| assert!(found.insert((listed.id, listed.len)), "{} is listed twice", listed.id);
    store.list(kind, &mut take).unwrap();
    found
}

/// Everything that is promised, on a store that nobody has touched.
fn contract(store: &dyn Backend) {
    store.create().unwrap();
    for kind in KINDS {
        assert!(listed(store, kind).is_empty());
    }
    ranges(store);
    kinds_are_apart(store);
    configuration(store);
    empty_and_absent(store);
    many_at_once(store);
}

fn ranges(store: &dyn Backend) {
    let bytes = noise(1, 300_000);
    let name = name_of(ObjectKind::Pack, &bytes);
    store.put(name, &bytes).unwrap();
    store.put(name, &bytes).unwrap();
    store.put_vec(name, bytes.clone(), Reuse::Often).unwrap();
    assert_eq!(store.get(name, 300_000).unwrap(), bytes);
    assert!(store.get(name, 299_999).is_err(), "longer than allowed");
    assert_eq!(store.len(name).unwrap(), 300_000);
    for (from, len) in [(0, 1), (0, 300_000), (1, 299_999), (299_999, 1), (131_072, 65_536)] {
        let mut out = vec![0; len];
        store.get_range(name, from as u64, &mut out).unwrap();
        assert_eq!(out, bytes[from..from + len]);
        assert_eq!(store.get_part(name, from as u64, len + 10).unwrap(), bytes[from..(from + len + 10).min(300_000)]);
    }
    for (from, len) in [(300_000, 1), (299_999, 2), (1 << 40, 5)] {
        let error = store.get_range(name, from, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Truncated, "{from} {len}: {error}");
        assert!(error.to_string().contains(&name.path()), "{error}");
    }
}

fn kinds_are_apart(store: &dyn Backend) {
    let bytes = b"the same bytes under every kind";
    for kind in KINDS {
        store.put(name_of(kind, bytes), bytes).unwrap();
    }
    let entry = (ObjectId::of(bytes), bytes.len() as u64);
    for kind in KINDS {
        assert!(listed(store, kind).contains(&entry), "{kind:?}");
    }
    let mut together = BTreeSet::new();
    store
        .list_kinds(&[ObjectKind::Snapshot, ObjectKind::Index, ObjectKind::Key], &mut |kind, found| {
            assert!(together.insert((kind, found.id)), "twice");
        })
        .unwrap();
    assert_eq!(together.len(), 3, "{together:?}");
    store.delete(name_of(ObjectKind::Index, bytes)).unwrap();
    store.delete(name_of(ObjectKind::Index, bytes)).unwrap();
    assert!(listed(store, ObjectKind::Index).is_empty());
    assert_eq!(store.get(name_of(ObjectKind::Snapshot, bytes), 100).unwrap(), bytes);
}

fn configuration(store: &dyn Backend) {
    let name = ObjectName::config();
    assert_eq!(store.get(name, 100).unwrap_err().kind, ErrorKind::NotFound);
    store.put(name, b"first").unwrap();
    // Its name is not the hash of its bytes: the first one stays.
    store.put(name, b"other").unwrap();
    assert_eq!(store.get(name, 100).unwrap(), b"first");
    let error = store.create().unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
    for kind in ObjectKind::ALL {
        store.list(kind, &mut |found| assert_ne!(found.id, name.id)).unwrap();
    }
}

fn empty_and_absent(store: &dyn Backend) {
    let empty = name_of(ObjectKind::Index, b"");
    store.put(empty, b"").unwrap();
    assert_eq!((store.len(empty).unwrap(), store.get(empty, 0).unwrap()), (0, Vec::new()));
    assert_eq!(listed(store, ObjectKind::Index), BTreeSet::from([(empty.id, 0)]));
    assert_eq!(store.get_range(empty, 0, &mut [0]).unwrap_err().kind, ErrorKind::Truncated);
    for kind in KINDS {
        let absent = name_of(kind, b"absent");
        for error in [
            store.get(absent, 10).unwrap_err(),
            store.get_range(absent, 0, &mut [0]).unwrap_err(),
            store.len(absent).unwrap_err(),
        ] {
            assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
            assert!(error.to_string().contains(&absent.path()), "{error}");
        }
        store.delete(absent).unwrap();
    }
}

fn many_at_once(store: &dyn Backend) {
    let shared = noise(2, 100_000);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let shared = &shared;
            scope.spawn(move || {
                store.put(name_of(ObjectKind::Pack, shared), shared).unwrap();
                for at in 0..4 {
                    let own = [thread, at];
                    store.put(name_of(ObjectKind::Snapshot, &own), &own).unwrap();
                    assert_eq!(store.get(name_of(ObjectKind::Snapshot, &own), 2).unwrap(), own);
                }
            });
        }
    });
    assert_eq!(store.get(name_of(ObjectKind::Pack, &shared), 1 << 20).unwrap(), shared);
    assert!(listed(store, ObjectKind::Snapshot).len() >= 32);
}

/// Stores `count` objects and finds all of them.
fn crowd(store: &dyn Backend, count: usize) {
    store.create().unwrap();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let bytes = (at as u64).to_le_bytes();
                    store.put(name_of(ObjectKind::Pack, &bytes), &bytes).unwrap();
                }
            });
        }
    });
    let expected: BTreeSet<_> = (0..count).map(|at| (ObjectId::of(&(at as u64).to_le_bytes()), 8)).collect();
    assert!(listed(store, ObjectKind::Pack) == expected, "all of {count}, each once");
}

/// Stores an object of a gibibyte and reads parts of it.
fn giant(store: &dyn Backend) {
    store.create().unwrap();
    let mut bytes = vec![0; 1 << 30];
    for (at, chunk) in bytes.chunks_mut(1 << 20).enumerate() {
        chunk[..8].copy_from_slice(&(at as u64).to_le_bytes());
    }
    let name = name_of(ObjectKind::Pack, &bytes);
    store.put(name, &bytes).unwrap();
    assert_eq!(store.len(name).unwrap(), 1 << 30);
    for at in [0u64, 511, 1023] {
        let mut out = [0; 8];
        store.get_range(name, at << 20, &mut out).unwrap();
        assert_eq!(u64::from_le_bytes(out), at);
    }
    assert!(store.get(name, 1 << 30).unwrap() == bytes);
}

fn remote_options() -> RemoteOptions {
    RemoteOptions { retry_for: Duration::from_secs(20), ..RemoteOptions::default() }
}

/// A container of Swift, `way` being how to sign in, with `change`d variables.
fn swift_in(
    services: &Services,
    way: &str,
    container: &str,
    remote: RemoteOptions,
    change: impl Fn(&str, String) -> String,
) -> Arc<dyn Backend> {
    let variables = services.way(way);
    let env = |name: &str| {
        let value = variables.iter().find(|(key, _)| key == name)?.1.clone();
        Some(change(name, value))
    };
    let place = swift::Place::parse(&format!("{container}:/pre fix/ünd+%41")).unwrap();
    swift::open(place, &mut Options::default(), remote, &env).unwrap()
}

/// A bucket, through the server at `endpoint`, `way` being whose keys are used.
fn s3_at(
    endpoint: &str,
    services: &Services,
    way: &str,
    bucket: &str,
    remote: RemoteOptions,
    more: &[&str],
) -> Arc<dyn Backend> {
    let variables = services.way(way);
    let value = |name: &str| &variables.iter().find(|(key, _)| key == name).unwrap().1;
    // Not through the environment, which all tests of a process share.
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        value("AWS_ACCESS_KEY_ID"),
        value("AWS_SECRET_ACCESS_KEY")
    );
    std::fs::write(file.path(), text).unwrap();
    let (_, path) = file.keep().unwrap();
    let credentials = format!("s3.credentials-file={}", path.display());
    let region = format!("s3.region={}", value("AWS_REGION"));
    let mut options = Options::parse([credentials.as_str(), &region].into_iter().chain(more.iter().copied())).unwrap();
    let place = s3::Place::parse(&format!("{endpoint}/{bucket}/pre fix/ünd+%41")).unwrap();
    let store = s3::open(place, &mut options, remote, &|_| None).unwrap();
    options.finish().unwrap();
    // The file is read with the first request.
    let _ = store.len(ObjectName::config());
    std::fs::remove_file(path).unwrap();
    store
}

#[test]
fn memory_keeps_the_contract() {
    contract(&Memory::new());
}

#[test]
fn a_directory_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    contract(&Local::new(directory.path().join("repo")));
    let large = Local::new(directory.path().join("large"));
    crowd(&large, 1500);
}

#[test]
fn what_wraps_a_store_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    contract(&Count::new(Memory::new(), Arc::default()));
    contract(&Near::new(Arc::new(Memory::new()), None, 0));
    contract(&Near::new(Arc::new(Memory::new()), Some(directory.path()), 1 << 30));
}

#[test]
fn swift_keeps_the_contract_for_its_own_accounts() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    contract(&*swift_in(&services, "tempauth", &container(), remote_options(), |_, value| value));
}

#[test]
fn swift_keeps_the_contract_for_accounts_of_keystone() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    for way in ["keystone", "application-credential"] {
        contract(&*swift_in(&services, way, &container(), remote_options(), |_, value| value));
    }
}

#[test]
fn s3_keeps_the_contract() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let endpoint = services.fact("/swift/url").to_owned();
    contract(&*s3_at(&endpoint, &services, "s3", &container(), remote_options(), &[]));
    contract(&*s3_at(&endpoint, &services, "s3", &container(), remote_options(), &["s3.list-objects-v1=true"]));
}

#[test]
fn s3_keeps_the_contract_for_keys_of_keystone() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let endpoint = services.fact("/swift/url").to_owned();
    contract(&*s3_at(&endpoint, &services, "ec2", &container(), remote_options(), &[]));
}

#[test]
fn a_listing_of_several_pages_has_each_object_once() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let endpoint = services.fact("/swift/url").to_owned();
    // A page of S3 has a thousand; the second container shows the same to Swift.
    let bucket = container();
    crowd(&*s3_at(&endpoint, &services, "s3", &bucket, remote_options(), &[]), 1001);
    let swift = swift_in(&services, "tempauth", &bucket, remote_options(), |_, value| value);
    assert_eq!(listed(&*swift, ObjectKind::Pack).len(), 1001, "one store under two protocols");
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_ten_thousand_objects_and_one_more_are_all_listed() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let endpoint = services.fact("/swift/url").to_owned();
    let bucket = container();
    crowd(&*swift_in(&services, "tempauth", &bucket, remote_options(), |_, value| value), 10_001);
    let s3 = s3_at(&endpoint, &services, "s3", &bucket, remote_options(), &[]);
    assert_eq!(listed(&*s3, ObjectKind::Pack).len(), 10_001);
    crowd(&Memory::new(), 10_001);
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_an_object_of_a_gibibyte_comes_back() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let endpoint = services.fact("/swift/url").to_owned();
    giant(&*swift_in(&services, "tempauth", &container(), remote_options(), |_, value| value));
    giant(&*s3_at(&endpoint, &services, "s3", &container(), remote_options(), &[]));
    giant(&Local::new(tempfile::tempdir().unwrap().path().join("repo")));
}

#[test]
fn an_object_in_parts_is_one_object() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let proxy = Proxy::start(services.fact("/swift/url")).unwrap();
    let remote = remote_options();
    let requests = remote.requests.clone();
    let store = s3_at(&proxy.url(), &services, "s3", &container(), remote, &["s3.multipart-from=5242880"]);
    store.create().unwrap();
    let bytes = noise(3, 40 << 20);
    let name = name_of(ObjectKind::Pack, &bytes);
    // One part fails on its way, and only that part is sent again.
    proxy.add(
        Rule::new("PUT *partNumber=2*", Fault::Status { code: 500, headers: vec![], body: String::new() }).times(1),
    );
    store.put(name, &bytes).unwrap();
    assert_eq!(proxy.hits(), [1]);
    assert!(store.get(name, 1 << 30).unwrap() == bytes);
    assert_eq!(listed(&*store, ObjectKind::Pack), BTreeSet::from([(name.id, 40 << 20)]));
    assert_eq!((requests.count(Request::Put), requests.retries()), (4, 1), "{requests}");
}

#[test]
fn names_that_are_not_ours_are_not_listed() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let bucket = container();
    let swift = swift_in(&services, "tempauth", &bucket, remote_options(), |_, value| value);
    swift.create().unwrap();
    let bytes = b"ours";
    swift.put(name_of(ObjectKind::Pack, bytes), bytes).unwrap();
    let variables = services.way("tempauth");
    let value = |name: &str| variables.iter().find(|(key, _)| key == name).unwrap().1.clone();
    let (user, key) = (value("ST_USER"), value("ST_KEY"));
    let reply = request("GET", &value("ST_AUTH"), &[("X-Auth-User", &user), ("X-Auth-Key", &key)], b"").unwrap();
    let (url, token) = (reply.header("x-storage-url").unwrap(), reply.header("x-auth-token").unwrap());
    let hex = ObjectId::of(b"theirs").to_hex();
    let root = "pre%20fix/%C3%BCnd%2B%2541";
    for name in [
        format!("{root}/packs/{hex}"),
        format!("{root}/packs/00/readme"),
        format!("{root}/packs/00/%0A%22%26%3C%C3%A4%20%25"),
        format!("{root}/packs/../{hex}"),
        format!("{root}/packs0"),
        format!("{root}/packs/"),
        format!("{root}2/packs/{}/{hex}", &hex[..2]),
        format!("packs/{}/{hex}", &hex[..2]),
    ] {
        let put = request("PUT", &format!("{url}/{bucket}/{name}"), &[("X-Auth-Token", token)], b"x").unwrap();
        assert_eq!(put.status, 201, "{name}");
    }
    let endpoint = services.fact("/swift/url").to_owned();
    let s3 = s3_at(&endpoint, &services, "s3", &bucket, remote_options(), &[]);
    for store in [&swift, &s3] {
        assert_eq!(listed(&**store, ObjectKind::Pack), BTreeSet::from([(ObjectId::of(bytes), 4)]));
    }
}

#[test]
fn a_put_that_breaks_off_leaves_nothing_and_one_that_is_repeated_leaves_one() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let proxy = Proxy::start(services.fact("/swift/url")).unwrap();
    let through = |name: &str, value: String| if name == "ST_AUTH" { proxy.through(&value) } else { value };
    let once = RemoteOptions { retry_for: Duration::ZERO, ..RemoteOptions::default() };
    let bucket = container();
    let stores = [
        (swift_in(&services, "tempauth", &bucket, once.clone(), through), remote_options()),
        (s3_at(&proxy.url(), &services, "s3", &bucket, once, &[]), remote_options()),
    ];
    for (at, (store, _)) in stores.iter().enumerate() {
        if at == 0 {
            store.create().unwrap();
        }
        let bytes = noise(10 + at as u64, 3 << 20);
        let name = name_of(ObjectKind::Pack, &bytes);
        proxy.add(Rule::new("PUT *", Fault::CutRequest(1 << 20)).times(1));
        let error = store.put(name, &bytes).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Transient, "{error}");
        assert_eq!(store.get(name, 1 << 30).unwrap_err().kind, ErrorKind::NotFound);
        proxy.clear();
    }
    let patient = [
        swift_in(&services, "tempauth", &bucket, stores[0].1.clone(), through),
        s3_at(&proxy.url(), &services, "s3", &bucket, stores[1].1.clone(), &[]),
    ];
    for (at, store) in patient.iter().enumerate() {
        let faults = [
            Fault::CutRequest(1 << 20),
            Fault::LoseReply,
            Fault::Status { code: 503, headers: vec![("Retry-After".to_owned(), "1".to_owned())], body: String::new() },
            Fault::Status { code: 429, headers: vec![], body: String::new() },
            Fault::Status { code: 409, headers: vec![], body: String::new() },
            Fault::Status { code: 498, headers: vec![], body: String::new() },
        ];
        for (number, fault) in faults.into_iter().enumerate() {
            let bytes = noise(20 + 10 * at as u64 + number as u64, 2 << 20);
            let name = name_of(ObjectKind::Pack, &bytes);
            proxy.clear();
            proxy.add(Rule::new("PUT *", fault).times(1));
            store.put(name, &bytes).unwrap();
            assert_eq!(proxy.hits(), [1]);
            assert!(store.get(name, 1 << 30).unwrap() == bytes);
        }
        for fault in [Fault::CutReply(100_000), Fault::Truncate(1000), Fault::CutReply(10)] {
            let bytes = noise(20 + 10 * at as u64, 2 << 20);
            let name = name_of(ObjectKind::Pack, &bytes);
            proxy.clear();
            proxy.add(Rule::new("GET *", fault).times(1));
            let mut out = vec![0; 1 << 20];
            store.get_range(name, 5, &mut out).unwrap();
            assert!(out == bytes[5..5 + (1 << 20)]);
            assert_eq!(proxy.hits(), [1]);
        }
    }
    // Swift says a sum with every whole object.
    let bytes = noise(20, 2 << 20);
    proxy.clear();
    proxy.add(Rule::new("GET *", Fault::Corrupt(1000)).times(1));
    assert!(patient[0].get(name_of(ObjectKind::Pack, &bytes), 1 << 30).unwrap() == bytes);
    assert_eq!(proxy.hits(), [1]);
}

#[test]
fn an_upload_keeps_to_its_limit() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let mut remote = remote_options();
    remote.http.limits = Limits { upload: Some(1 << 20), download: None };
    let store = swift_in(&services, "tempauth", &container(), remote, |_, value| value);
    store.create().unwrap();
    let bytes = noise(5, 2 << 20);
    let start = std::time::Instant::now();
    store.put(name_of(ObjectKind::Pack, &bytes), &bytes).unwrap();
    assert!(start.elapsed() > Duration::from_millis(1800), "2 MiB at 1 MiB/s took {:?}", start.elapsed());
    assert!(store.get(name_of(ObjectKind::Pack, &bytes), 1 << 30).unwrap() == bytes);
}

#[test]
fn a_download_keeps_to_its_limit_and_is_not_sent_twice_for_being_slow() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let mut remote = remote_options();
    remote.http.limits = Limits { upload: None, download: Some(512 << 10) };
    let requests = remote.requests.clone();
    let store = swift_in(&services, "tempauth", &container(), remote, |_, value| value);
    store.create().unwrap();
    let bytes = noise(6, 1 << 20);
    let name = name_of(ObjectKind::Pack, &bytes);
    store.put(name, &bytes).unwrap();
    let start = std::time::Instant::now();
    assert!(store.get_part(name, 0, 1 << 20).unwrap() == bytes);
    assert!(start.elapsed() > Duration::from_millis(1800), "1 MiB at 512 KiB/s took {:?}", start.elapsed());
    assert_eq!((requests.count(Request::Get), requests.hedges()), (1, 0), "{requests}");
}

#[test]
fn a_token_that_has_expired_is_renewed_once_for_all_requests() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let proxy = Proxy::start(services.fact("/swift/url")).unwrap();
    let through = |name: &str, value: String| if name == "ST_AUTH" { proxy.through(&value) } else { value };
    let remote = remote_options();
    let requests: Arc<Requests> = remote.requests.clone();
    let store = swift_in(&services, "tempauth", &container(), remote, through);
    store.create().unwrap();
    let before = requests.count(Request::Other);
    proxy.add(Rule::new("PUT *", Fault::Status { code: 401, headers: vec![], body: String::new() }).times(1));
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let store = &store;
            scope.spawn(move || store.put(name_of(ObjectKind::Snapshot, &[thread]), &[thread]).unwrap());
        }
    });
    assert_eq!(listed(&*store, ObjectKind::Snapshot).len(), 8);
    let renewed = requests.count(Request::Other) - before;
    assert_eq!(renewed, 1, "signed in {renewed} times");
}
