//! What cannot work: each cause has its own message, which names what to set, and no secret.

use crate::support::sandbox::Sandbox;
use crate::support::services::{Services, container};

/// Runs `init` in `repository` with these variables, some changed; it must fail. Returns what it said.
fn refused(
    variables: &[(String, String)],
    changed: &[(&str, &str)],
    repository: &str,
    command: &str,
) -> (Option<i32>, String) {
    let sandbox = Sandbox::empty();
    let mut program = sandbox.command(args![command, "-r", repository, "-o", option(repository)]);
    program.envs(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    program.envs(changed.iter().copied());
    let output = program.output().unwrap();
    assert!(!output.status.success(), "{repository} with {changed:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for secret in ["wrong-secret", "testing", "demo-secret"] {
        assert!(!said.contains(secret), "a secret is told: {said}");
    }
    (output.status.code(), said)
}

fn option(repository: &str) -> &'static str {
    if repository.starts_with("s3:") { "s3.retry-seconds=10" } else { "swift.retry-seconds=10" }
}

fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
}

#[test]
fn what_keystone_and_its_catalog_refuse_names_what_to_set() {
    let Some(services) = Services::shared(&["swift", "keystone"]) else { return };
    let way = services.way("keystone");
    let repository = format!("swift:{}:/", container());
    for (changed, words) in [
        (("OS_PASSWORD", "wrong-secret"), &["OS_PASSWORD", "demo"][..]),
        (("OS_USERNAME", "nobody"), &["OS_USERNAME", "nobody"]),
        (("OS_PROJECT_NAME", "elsewhere"), &["OS_PROJECT_NAME", "elsewhere"]),
        (("OS_REGION_NAME", "Mars"), &["OS_REGION_NAME", "Mars", "RegionOne"]),
        (("OS_INTERFACE", "secret-door"), &["OS_INTERFACE", "public"]),
        (("OS_AUTH_URL", "http://127.0.0.1:1/v3"), &["OS_AUTH_URL", "127.0.0.1:1", "refused"]),
        (("OS_AUTH_URL", "http://no-such-host.invalid/v3"), &["OS_AUTH_URL", "no-such-host.invalid"]),
        (("OS_AUTH_URL", services.fact("/swift/url")), &["OS_AUTH_URL"]),
        (("OS_CLOUD", "mine"), &["OS_CLOUD", "clouds.yaml"]),
    ] {
        let (code, said) = refused(&way, &[changed], &repository, "init");
        assert_eq!(code, Some(1), "{said}");
        says(&said, words);
    }
    let credential = services.way("application-credential");
    let changed = ("OS_APPLICATION_CREDENTIAL_SECRET", "wrong-secret");
    says(&refused(&credential, &[changed], &repository, "init").1, &["OS_APPLICATION_CREDENTIAL_SECRET"]);
    let (code, said) = refused(&way, &[], &repository, "snapshots");
    assert_eq!(code, Some(10), "{said}");
    says(&said, &["container", "does not exist", "init"]);
}

#[test]
fn what_swift_refuses_names_what_to_set() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let way = services.way("tempauth");
    let repository = format!("swift:{}:/", container());
    says(&refused(&way, &[("ST_KEY", "wrong-secret")], &repository, "init").1, &["ST_KEY"]);
    says(&refused(&way, &[("ST_USER", "test:nobody")], &repository, "init").1, &["ST_USER", "test:nobody"]);
    says(&refused(&way, &[("ST_AUTH", "http://127.0.0.1:1/auth")], &repository, "init").1, &["ST_AUTH", "refused"]);
    says(&refused(&[], &[], &repository, "init").1, &["OS_AUTH_URL", "OS_CLOUD", "ST_AUTH"]);
}

#[test]
fn what_s3_refuses_names_what_to_set() {
    let Some(services) = Services::shared(&["swift"]) else { return };
    let way = services.way("s3");
    let repository = format!("s3:{}", container());
    for (changed, words) in [
        (("AWS_SECRET_ACCESS_KEY", "wrong-secret"), &["AWS_SECRET_ACCESS_KEY"][..]),
        (("AWS_ACCESS_KEY_ID", "nobody:x"), &["AWS_ACCESS_KEY_ID"]),
        (("AWS_REGION", "mars-1"), &["AWS_REGION", "us-east-1"]),
        (("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), &["AWS_ENDPOINT_URL", "refused"]),
    ] {
        let (code, said) = refused(&way, &[changed], &repository, "init");
        assert_eq!(code, Some(1), "{said}");
        says(&said, words);
    }
    let (code, said) = refused(&way, &[], &repository, "snapshots");
    assert_eq!(code, Some(10), "{said}");
    says(&said, &["bucket", "does not exist", "init"]);
    let nothing: Vec<(String, String)> = way.iter().filter(|(name, _)| !name.contains("KEY")).cloned().collect();
    let metadata = [("AWS_EC2_METADATA_DISABLED", "true")];
    says(&refused(&nothing, &metadata, &repository, "init").1, &["credentials", "AWS_ACCESS_KEY_ID"]);
}
