//! The program as an operator uses it: every way to sign in, certificates, rights on one container, storage policies.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::compare::assert_same;
use crate::support::generate::noise;
use crate::support::http::{Reply, request};
use crate::support::mount::within;
use crate::support::proxy::Proxy;
use crate::support::sandbox::{Run, Sandbox};
use crate::support::services::{Services, container};

type Variables = Vec<(String, String)>;

/// Runs the program in `repository` with these variables.
fn run(sandbox: &Sandbox, variables: &Variables, repository: &str, args: &[&str]) -> Run {
    let mut command = sandbox.command(args.iter().map(Into::into).collect());
    command.env("BYGONE_REPOSITORY", repository).env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Run::of(&mut command)
}

/// Makes a repository, backs up, and restores the same bytes.
fn goes_round(variables: &Variables, repository: &str, more: &[&str]) {
    let sandbox = Sandbox::empty();
    sandbox.write("file", noise(7, 50_000));
    let source = sandbox.source().display().to_string();
    let target = sandbox.path("copy").display().to_string();
    let selector = format!("latest:{source}");
    for args in [&["init"][..], &["backup", &source], &["restore", &selector, "--target", &target]] {
        run(&sandbox, variables, repository, &[more, args].concat()).expect_code(0);
    }
    assert_same(&sandbox.source(), &sandbox.path("copy"));
}

fn value<'a>(variables: &'a Variables, name: &str) -> &'a str {
    &variables.iter().find(|(key, _)| key == name).unwrap_or_else(|| panic!("no {name} in {variables:?}")).1
}

/// Signs in at Keystone with the password of `way`; the token and what came with it.
fn keystone_token(services: &Services) -> (String, Value) {
    let way = services.way("keystone");
    let domain = serde_json::json!({ "name": value(&way, "OS_USER_DOMAIN_NAME") });
    let user = serde_json::json!({
        "name": value(&way, "OS_USERNAME"), "password": value(&way, "OS_PASSWORD"), "domain": domain });
    let scope = serde_json::json!({ "project": { "name": value(&way, "OS_PROJECT_NAME"), "domain": domain } });
    let identity = serde_json::json!({ "methods": ["password"], "password": { "user": user } });
    let body = serde_json::json!({ "auth": { "identity": identity, "scope": scope } }).to_string();
    let url = format!("{}/auth/tokens", services.fact("/keystone/url"));
    let reply = request("POST", &url, &[("Content-Type", "application/json")], body.as_bytes()).unwrap();
    let token = reply.header("x-subject-token").unwrap_or_else(|| panic!("{reply:?}")).to_owned();
    (token, serde_json::from_slice(&reply.body).unwrap())
}

#[test]
fn every_way_to_sign_in_works_as_it_is_written() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    for way in ["tempauth", "keystone", "application-credential"] {
        goes_round(&services.way(way), &format!("swift:{}:/a/b", container()), &[]);
    }
    goes_round(&services.way("keystone"), &format!("swift://{}/a", container()), &["-o", "swift.interface=public"]);
    for way in ["s3", "ec2"] {
        goes_round(&services.way(way), &format!("s3:{}/a/b", container()), &[]);
    }
    let mut s3 = services.way("s3");
    s3.retain(|(name, _)| name != "AWS_ENDPOINT_URL");
    goes_round(&s3, &format!("s3:{}/{}", services.fact("/swift/url"), container()), &[]);

    // A token that somebody else got: with Keystone to ask for the catalog, and without.
    let (token, answer) = keystone_token(&services);
    let mut way: Variables = services.way("keystone");
    way.retain(|(name, _)| !matches!(&name[..], "OS_USERNAME" | "OS_PASSWORD"));
    way.push(("OS_TOKEN".to_owned(), token.clone()));
    goes_round(&way, &format!("swift:{}:/", container()), &[]);
    let catalog = answer["token"]["catalog"].as_array().unwrap();
    let swift = catalog.iter().find(|entry| entry["type"] == "object-store").unwrap();
    let url = swift["endpoints"].as_array().unwrap().iter().find(|one| one["interface"] == "public").unwrap()["url"]
        .as_str()
        .unwrap();
    let given = vec![("OS_STORAGE_URL".to_owned(), url.to_owned()), ("OS_AUTH_TOKEN".to_owned(), token)];
    goes_round(&given, &format!("swift:{}:/", container()), &[]);
    let wrong = vec![given[0].clone(), ("OS_AUTH_TOKEN".to_owned(), "no-such-token".to_owned())];
    let sandbox = Sandbox::empty();
    run(&sandbox, &wrong, &format!("swift:{}:/", container()), &["init"]).expect_code(1).says("OS_AUTH_TOKEN");
}

#[test]
fn clouds_yaml_and_secure_yaml_are_read_where_every_client_looks() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let way = services.way("keystone");
    let get = |name: &str| value(&way, name);
    let clouds = format!(
        "clouds:\n  mine:\n    auth:\n      auth_url: {}\n      username: {}\n      project_name: {}\n\
         \x20     user_domain_name: {}\n      project_domain_name: {}\n    region_name: {}\n    interface: public\n",
        get("OS_AUTH_URL"),
        get("OS_USERNAME"),
        get("OS_PROJECT_NAME"),
        get("OS_USER_DOMAIN_NAME"),
        get("OS_PROJECT_DOMAIN_NAME"),
        get("OS_REGION_NAME")
    );
    let secure = format!("clouds:\n  mine:\n    auth:\n      password: {}\n", get("OS_PASSWORD"));
    let sandbox = Sandbox::empty();
    for (directory, cloud) in [("home/.config/openstack", vec!["OS_CLOUD"]), (".", vec![])] {
        let place = sandbox.path(directory);
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("clouds.yaml"), &clouds).unwrap();
        fs::write(place.join("secure.yaml"), &secure).unwrap();
        let variables: Variables = cloud.iter().map(|name| ((*name).to_owned(), "mine".to_owned())).collect();
        let option: &[&str] = if cloud.is_empty() { &["-o", "swift.cloud=mine"] } else { &[] };
        run(&sandbox, &variables, &format!("swift:{}:/", container()), &[option, &["init"]].concat()).expect_code(0);
        fs::remove_file(place.join("secure.yaml")).unwrap();
        let without = run(&sandbox, &variables, &format!("swift:{}:/", container()), &[option, &["init"]].concat());
        without.expect_code(1).says("OS_PASSWORD");
        fs::remove_file(place.join("clouds.yaml")).unwrap();
    }
}

#[test]
fn an_authority_that_nobody_knows_is_named_or_every_certificate_trusted_in_so_many_words() {
    let Some(services) = Services::start("tls", &["swift"], &["--tls"]) else { return };
    let sandbox = Sandbox::empty();
    let authority = services.fact("/swift/authority").to_owned();
    for (way, repository, variable, option, insecure) in [
        ("tempauth", format!("swift:{}:/", container()), "OS_CACERT", "swift.cacert", "swift.insecure=true"),
        ("s3", format!("s3:{}", container()), "AWS_CA_BUNDLE", "s3.cacert", "s3.insecure-tls=true"),
    ] {
        goes_round(&services.way(way), &repository, &[]);
        let mut bare = services.way(way);
        bare.retain(|(name, _)| name != variable);
        // Only the option of that name is heeded.
        bare.push(("OS_INSECURE".to_owned(), "true".to_owned()));
        let refused = run(&sandbox, &bare, &repository, &["snapshots"]).expect_code(1);
        refused.says("certificate").says(variable).says(option);
        let with = format!("{option}={authority}");
        for option in [with.as_str(), insecure] {
            run(&sandbox, &bare, &repository, &["-o", option, "snapshots"]).expect_code(0);
        }
        let with = format!("{option}={}", sandbox.path("home").display());
        run(&sandbox, &bare, &repository, &["-o", &with, "snapshots"]).expect_code(1).says("certificates");
    }
}

/// Asks Swift as the owner of the account.
fn as_owner(services: &Services, method: &str, container: &str, headers: &[(&str, &str)]) -> Reply {
    let user = [("X-Auth-User", services.fact("/swift/user")), ("X-Auth-Key", services.fact("/swift/key"))];
    let login = request("GET", services.fact("/swift/auth"), &user, b"").unwrap();
    let url = format!("{}/{container}", login.header("x-storage-url").unwrap());
    let headers = [&[("X-Auth-Token", login.header("x-auth-token").unwrap())], headers].concat();
    request(method, &url, &headers, b"").unwrap()
}

#[test]
fn an_acl_on_one_container_is_enough_and_without_one_the_user_is_told() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let guest: Variables = [("ST_AUTH", "auth"), ("ST_USER", "guest_user"), ("ST_KEY", "guest_key")]
        .map(|(name, fact)| (name.to_owned(), services.fact(&format!("/swift/{fact}")).to_owned()))
        .into();
    let sandbox = Sandbox::empty();
    let missing = format!("swift:{}:/", container());
    run(&sandbox, &guest, &missing, &["init"]).expect_code(1).says("test:guest").says("ACL");

    let name = container();
    assert_eq!(as_owner(&services, "PUT", &name, &[]).status, 201);
    let repository = format!("swift:{name}:/here");
    let refused = run(&sandbox, &guest, &repository, &["snapshots"]).expect_code(1);
    refused.says("X-Container-Read").says(&name);
    let acl = [("X-Container-Read", "test:guest"), ("X-Container-Write", "test:guest")];
    assert!(as_owner(&services, "POST", &name, &acl).status < 300);
    goes_round(&guest, &repository, &[]);
    // To read, the right to read is enough.
    assert!(as_owner(&services, "POST", &name, &[("X-Container-Write", "")]).status < 300);
    run(&sandbox, &guest, &repository, &["check", "--read-data"]).expect_code(0);
    sandbox.write("file", b"new");
    let source = sandbox.source().display().to_string();
    run(&sandbox, &guest, &repository, &["backup", &source]).expect_code(1).says("X-Container-Write");
}

#[test]
fn a_container_is_made_with_the_storage_policy_that_was_asked_for() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let way = services.way("tempauth");
    let sandbox = Sandbox::empty();
    let name = container();
    let silver = ["-o", "swift.storage-policy=silver", "init"];
    run(&sandbox, &way, &format!("swift:{name}:/a"), &silver).expect_code(0);
    assert_eq!(as_owner(&services, "HEAD", &name, &[]).header("x-storage-policy"), Some("silver"));
    // A container that is there is used as it is.
    run(&sandbox, &way, &format!("swift:{name}:/b"), &["-o", "swift.storage-policy=gold", "init"]).expect_code(0);
    assert_eq!(as_owner(&services, "HEAD", &name, &[]).header("x-storage-policy"), Some("silver"));
    let refused = run(&sandbox, &way, &format!("swift:{}:/", container()), &["-o", "swift.storage-policy=tin", "init"]);
    refused.expect_code(1).says("tin").says("swift.storage-policy");
}

#[test]
fn a_token_of_keystone_that_ends_during_a_backup_is_renewed() {
    let Some(services) = Services::start("brief", &["swift", "keystone"], &["--token-life", "6"]) else { return };
    let keystone = services.fact("/keystone/url");
    let proxy = Proxy::start(keystone).unwrap();
    let mut way = services.way("keystone");
    for (name, value) in &mut way {
        if name == "OS_AUTH_URL" {
            *value = proxy.through(value);
        }
    }
    let sandbox = Sandbox::empty();
    let repository = format!("swift:{}:/", container());
    run(&sandbox, &way, &repository, &["init"]).expect_code(0);
    sandbox.write("file", noise(9, 40 << 20));
    proxy.take_counts();
    let source = sandbox.source().display().to_string();
    let begun = std::time::Instant::now();
    // 40 MiB at 2.5 MiB a second.
    run(&sandbox, &way, &repository, &["--limit-upload", "2560", "backup", &source]).expect_code(0);
    assert!(begun.elapsed().as_secs() > 12, "the tokens did not end in {:?}", begun.elapsed());
    let signed_in = proxy.take_counts().requests["POST"];
    assert!((2..20).contains(&signed_in), "signed in {signed_in} times");
    run(&sandbox, &way, &repository, &["check", "--read-data"]).expect_code(0);
}

/// What the page says of each command: the numbers of PUT, GET, LIST, HEAD and DELETE, as they are written there.
fn told_requests() -> Vec<(String, Vec<String>)> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/bygone-backends.7")).unwrap();
    let table = page.split_once("PUT    GET").expect("the table is there").1.split_once("\n.EE").unwrap().0;
    let rows = table.lines().skip(1).map(|line| {
        let mut cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned);
        (cells.next().unwrap(), cells.collect())
    });
    rows.collect()
}

#[test]
fn the_page_tells_how_many_requests_each_command_sends() {
    needs_fuse!();
    let Some(services) = Services::shared(&["swift"]) else { return };
    let (way, name) = (services.way("tempauth"), container());
    let repository = format!("swift:{name}:/");
    let sandbox = Sandbox::empty();
    sandbox.write("a/b/large", noise(3, 20 << 20));
    sandbox.write("a/small", b"small");
    let source = sandbox.source().display().to_string();
    let mnt = sandbox.path("mnt").display().to_string();
    fs::create_dir(&mnt).unwrap();
    let objects = |kind: &str| {
        let listing = as_owner(&services, "GET", &name, &[]).text();
        listing.lines().filter(|line| line.starts_with(&format!("{kind}/"))).count() as u64
    };
    let (mut round, mut seen) = (0, 0);
    for (command, told) in told_requests() {
        let (words, how) = command.split_once(", ").unwrap_or((&command, ""));
        if how.contains("far") {
            // Not the directory itself: the time of the one above it would be news to a backup.
            for entry in fs::read_dir(sandbox.cache()).unwrap() {
                fs::remove_dir_all(entry.unwrap().path()).unwrap();
            }
        }
        round += 1;
        let copy = sandbox.path(&format!("copy-{round}")).display().to_string();
        let small = format!("{source}/a/small");
        let args = match words {
            "init" | "snapshots" | "check" => vec![words],
            "backup" => {
                if !how.contains("unchanged") {
                    sandbox.write("a/b/new", noise(round, 100_000));
                }
                vec!["backup", &source]
            }
            "ls" => vec!["ls", "latest"],
            "find" => vec!["find", "small"],
            "dump" => vec!["dump", "latest", &small],
            "restore" => vec!["restore", "latest", "--target", &copy],
            "diff" => vec!["diff", "latest~1", "latest"],
            "key list" => vec!["key", "list"],
            "tag" => vec!["tag", "--add", "a", "latest"],
            "mount and ls" => vec!["mount", "--foreground", &mnt],
            other => panic!("the page knows a command `{other}`"),
        };
        let packs = objects("packs");
        let args = [&["--stats", "requests", "--json"], &args[..]].concat();
        let said = if words == "mount and ls" {
            let child = std::process::Command::new(crate::support::sandbox::program())
                .args(&args)
                .env_clear()
                .envs(sandbox.environment())
                .envs(way.iter().cloned())
                .env("BYGONE_REPOSITORY", &repository)
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let shown = Path::new(&mnt).join("snapshots/latest");
            assert!(within(Duration::from_secs(30), || fs::read_dir(&shown).is_ok_and(|found| found.count() == 1)));
            run(&sandbox, &way, &repository, &["umount", &mnt]).expect_code(0);
            String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap()
        } else {
            run(&sandbox, &way, &repository, &args).expect_code(0).err()
        };
        let counted =
            said.lines().find(|line| line.contains("\"requests\"")).unwrap_or_else(|| panic!("{command}: {said}"));
        let counted: Value = serde_json::from_str(counted).unwrap();
        // How many reads a pack takes depends on where things lie in it.
        let value = |cell: &str, reads: u64| -> u64 {
            let terms = cell.split(" + ").map(|term| match term {
                "P" => objects("packs") - packs,
                "I" => objects("index"),
                "S" => objects("snapshots"),
                "W" => reads,
                number => number.parse().unwrap_or_else(|_| panic!("{command}: `{cell}`")),
            });
            terms.sum()
        };
        for (sort, cell) in ["put", "get", "list", "head", "delete"].iter().zip(&told) {
            let count = counted["counts"][sort].as_u64().unwrap();
            // A backup and a tag are told of with what was there before them.
            let own = u64::from(matches!(words, "backup") && cell.contains('S'));
            let reads_max = match words {
                "restore" => 40,
                "backup" => 8,
                _ => 3,
            };
            let range = value(cell, 0) - own..=value(cell, reads_max) - own;
            assert!(range.contains(&count), "{command}: {count} {sort}, but the page says {cell} ({range:?}): {said}");
        }
        seen += 1;
        if how.contains("far") {
            // Near is again what a command may want.
            run(&sandbox, &way, &repository, &["find", "small"]).expect_code(0);
        }
    }
    assert!(seen >= 15, "only {seen} rows");
}
