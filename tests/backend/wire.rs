//! What S3 is asked, byte for byte: a server of the test's own that keeps objects and remembers every request.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::support::http::read_head;
use crate::support::sandbox::{Run, Sandbox};

type Headers = Vec<(String, String)>;

/// A request: its first line and its headers.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: Headers,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Access key and region that it is signed with.
    fn signed_by(&self) -> Option<(&str, &str)> {
        let mut scope = self.header("authorization")?.split_once("Credential=")?.1.split('/');
        let (key, _date) = (scope.next()?, scope.next()?);
        Some((key, scope.next()?))
    }
}

/// An S3 with one bucket, which also tells credentials as containers and instances do.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// The bucket is in `region`; requests that are signed for another one are sent there.
    fn start(region: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Asked>>>::default());
        let (log, objects) = (asked.clone(), Arc::<Mutex<BTreeMap<String, Vec<u8>>>>::default());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, objects) = (log.clone(), objects.clone());
                std::thread::spawn(move || serve(stream.unwrap(), region, &log, &objects));
            }
        });
        Self { address, asked }
    }

    fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(stream: TcpStream, region: Option<&str>, log: &Mutex<Vec<Asked>>, objects: &Mutex<BTreeMap<String, Vec<u8>>>) {
    let mut from = BufReader::new(stream.try_clone().unwrap());
    let mut to = stream;
    while let Ok((line, headers)) = read_head(&mut from) {
        let asked = Asked { line, headers };
        let mut body = vec![0; asked.header("content-length").map_or(0, |len| len.parse().unwrap())];
        if from.read_exact(&mut body).is_err() {
            return;
        }
        log.lock().unwrap().push(asked.clone());
        let (status, headers, answer) = answer(&asked, body, region, objects);
        let head = format!("HTTP/1.1 {status} Said\r\n{headers}Content-Length: {}\r\n\r\n", answer.len());
        let answer = if asked.line.starts_with("HEAD") { Vec::new() } else { answer };
        if to.write_all(&[head.as_bytes(), &answer].concat()).is_err() {
            return;
        }
    }
}

fn answer(
    asked: &Asked,
    body: Vec<u8>,
    region: Option<&str>,
    objects: &Mutex<BTreeMap<String, Vec<u8>>>,
) -> (u16, String, Vec<u8>) {
    let mut words = asked.line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let told = |text: &str| (200, String::new(), text.as_bytes().to_vec());
    let credentials = |id: &str| {
        told(&format!(
            r#"{{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"{id}","SecretAccessKey":"secret","Token":"{id}-token",
                "Expiration":"2099-01-01T00:00:00Z","LastUpdated":"2020-01-01T00:00:00Z"}}"#
        ))
    };
    match (method, path) {
        ("GET", "/container") => return credentials("container-id"),
        ("PUT", "/latest/api/token") => {
            return (200, "x-aws-ec2-metadata-token-ttl-seconds: 600\r\n".to_owned(), b"imds".to_vec());
        }
        ("GET", path) if path.starts_with("/latest/meta-data/iam/security-credentials") => {
            let role = path.trim_end_matches('/').ends_with("credentials");
            return if role { told("role") } else { credentials("instance-id") };
        }
        ("GET", "/latest/meta-data/placement/region") => return told("us-east-1"),
        _ => {}
    }
    let error = |status: u16, code: &str, headers: &str| {
        (status, headers.to_owned(), format!("<Error><Code>{code}</Code></Error>").into_bytes())
    };
    if let (Some(region), Some((_, signed))) = (region, asked.signed_by())
        && region != signed
    {
        return error(301, "PermanentRedirect", &format!("x-amz-bucket-region: {region}\r\n"));
    }
    let key = path.strip_prefix("/bucket").unwrap_or(path).trim_start_matches('/').to_owned();
    let mut objects = objects.lock().unwrap();
    match method {
        "GET" if key.is_empty() => {
            let value = |name: &str| {
                let pair = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
                pair.unwrap_or_default().replace("%2F", "/")
            };
            let (prefix, after) = (value("prefix"), value("start-after"));
            let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
            let entry = |(key, bytes): (&String, &Vec<u8>)| {
                format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", bytes.len())
            };
            let entries: String = found.map(entry).collect();
            told(&format!("<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"))
        }
        "PUT" => {
            objects.insert(key, body);
            (200, String::new(), Vec::new())
        }
        _ => match objects.get(&key) {
            None => error(404, "NoSuchKey", ""),
            Some(bytes) => {
                let range = asked.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
                let Some((first, last)) = range else { return (200, String::new(), bytes.clone()) };
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                let part = bytes[first..=last.min(bytes.len() - 1)].to_vec();
                let told = format!("Content-Range: bytes {first}-{}/{}\r\n", first + part.len() - 1, bytes.len());
                (206, told, part)
            }
        },
    }
}

/// Runs the program on the bucket with these variables and no others that matter to S3.
fn run(sandbox: &Sandbox, server: &Server, variables: &[(&str, String)], args: &[&str]) -> Run {
    let repository = format!("s3:{}/bucket", server.url());
    let mut command = sandbox.command(args.iter().map(Into::into).collect());
    // Nothing must ask the machine's own instance, if it is one.
    command.env("BYGONE_REPOSITORY", repository).env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Run::of(&mut command)
}

fn keys() -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ACCESS_KEY_ID", "environment-id".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ]
}

#[test]
fn credentials_are_found_wherever_aws_keeps_them() {
    let server = Server::start(None);
    let sandbox = Sandbox::empty();
    let home = sandbox.path("home");
    std::fs::create_dir(home.join(".aws")).unwrap();
    let process = r#"{"Version":1,"AccessKeyId":"process-id","SecretAccessKey":"s","SessionToken":"process-id-token"}"#;
    let script = sandbox.path("tell");
    std::fs::write(&script, format!("#!/bin/sh\necho '{process}'\n")).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(
        home.join(".aws/credentials"),
        "[default]\naws_access_key_id = default-id\naws_secret_access_key = s\n[other]\naws_access_key_id = other-id\n\
         aws_secret_access_key = s\naws_session_token = other-id-token\n",
    )
    .unwrap();
    let config = format!("[profile asks]\ncredential_process = {}\nregion = eu-north-7\n", script.display());
    std::fs::write(home.join(".aws/config"), config).unwrap();
    let elsewhere = sandbox.path("elsewhere");
    std::fs::write(&elsewhere, "[default]\naws_access_key_id = elsewhere-id\naws_secret_access_key = s\n").unwrap();
    let elsewhere = elsewhere.display().to_string();
    let file = format!("s3.credentials-file={elsewhere}");

    let one = |name: &'static str, value: &str| vec![(name, value.to_owned())];
    let with_token = [keys(), one("AWS_SESSION_TOKEN", "environment-id-token")].concat();
    let nowhere = [
        one("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"),
        one("AWS_CONFIG_FILE", "/nowhere"),
        one("AWS_REGION", "us-east-1"),
    ]
    .concat();
    let in_container =
        [nowhere.clone(), one("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/container", server.url()))].concat();
    let in_instance =
        [nowhere, one("AWS_EC2_METADATA_DISABLED", "false"), one("AWS_EC2_METADATA_SERVICE_ENDPOINT", &server.url())]
            .concat();
    for (variables, options, key, token, region) in [
        (keys(), &[][..], "environment-id", false, "us-east-1"),
        (with_token, &[], "environment-id", true, "us-east-1"),
        (vec![], &[], "default-id", false, "us-east-1"),
        (one("AWS_PROFILE", "other"), &[], "other-id", true, "us-east-1"),
        (vec![], &["-o", "s3.profile=other"], "other-id", true, "us-east-1"),
        (one("AWS_PROFILE", "asks"), &[], "process-id", true, "eu-north-7"),
        (vec![], &["-o", "s3.profile=asks", "-o", "s3.region=eu-west-9"], "process-id", true, "eu-west-9"),
        (one("AWS_SHARED_CREDENTIALS_FILE", &elsewhere), &[], "elsewhere-id", false, "us-east-1"),
        // Said on the command line, it goes before the environment.
        (keys(), &["-o", &file], "elsewhere-id", false, "us-east-1"),
        (in_container, &[], "container-id", true, "us-east-1"),
        (in_instance, &[], "instance-id", true, "us-east-1"),
    ] {
        let run = run(&sandbox, &server, &variables, &[options, &["snapshots"]].concat());
        assert_eq!(run.code, Some(10), "there is no repository: {run:?}");
        let asked = server.take_asked();
        let config = asked.iter().find(|asked| asked.line.starts_with("GET /bucket/config"));
        let config = config.unwrap_or_else(|| panic!("{key}: nothing asked in {asked:?}"));
        assert_eq!(config.signed_by(), Some((key, region)));
        let sent = config.header("x-amz-security-token");
        assert_eq!(sent, token.then(|| format!("{key}-token")).as_deref(), "{key}");
    }
    run(&sandbox, &server, &[], &["-o", "s3.unsafe-anonymous-auth=true", "snapshots"]).expect_code(10);
    assert!(server.take_asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn packs_have_their_storage_class_and_nothing_is_asked_that_other_servers_refuse() {
    let server = Server::start(None);
    let sandbox = Sandbox::empty();
    sandbox.write("file", crate::support::generate::noise(1, 100_000));
    let options = ["-o", "s3.storage-class=STANDARD_IA", "-o", "s3.sse=aws:kms", "-o", "s3.sse-kms-key-id=my-key"];
    run(&sandbox, &server, &keys(), &[&options[..], &["init"]].concat()).expect_code(0);
    let source = sandbox.source().display().to_string();
    run(&sandbox, &server, &keys(), &[&options[..], &["backup", &source]].concat()).expect_code(0);
    let asked = server.take_asked();
    let puts: Vec<&Asked> = asked.iter().filter(|asked| asked.line.starts_with("PUT ")).collect();
    let of = |kind: &str| puts.iter().filter(|put| put.line.starts_with(&format!("PUT /bucket/{kind}"))).count();
    assert!(of("packs/") >= 2 && of("index/") == 1 && of("snapshots/") == 1 && of("config") == 1, "{puts:?}");
    for put in &puts {
        let class = put.header("x-amz-storage-class");
        assert_eq!(class, put.line.contains("/packs/").then_some("STANDARD_IA"), "{put:?}");
        assert_eq!(put.header("x-amz-server-side-encryption"), Some("aws:kms"), "{put:?}");
        assert_eq!(put.header("x-amz-server-side-encryption-aws-kms-key-id"), Some("my-key"), "{put:?}");
        assert!(put.header("content-md5").is_some(), "{put:?}");
    }
    for asked in &asked {
        for (name, value) in &asked.headers {
            let odd = name.starts_with("x-amz-checksum")
                || matches!(&name[..], "x-amz-sdk-checksum-algorithm" | "x-amz-trailer" | "if-none-match" | "if-match")
                || value.contains("aws-chunked")
                || value.contains("STREAMING");
            assert!(!odd, "{name}: {value} in {asked:?}");
        }
    }
    let target = sandbox.path("copy").display().to_string();
    let args = ["restore", &format!("latest:{source}"), "--target", &target];
    run(&sandbox, &server, &keys(), &args).expect_code(0);
    crate::support::compare::assert_same(&sandbox.source(), &sandbox.path("copy"));
}

#[test]
fn the_buckets_own_region_is_found_out_unless_one_was_said() {
    let server = Server::start(Some("eu-central-5"));
    let sandbox = Sandbox::empty();
    let mut no_region = keys();
    no_region.last_mut().expect("the region is the last").1.clear();
    run(&sandbox, &server, &no_region, &["init"]).expect_code(0);
    let asked = server.take_asked();
    let last = asked.last().unwrap().signed_by();
    assert_eq!(last, Some(("environment-id", "eu-central-5")));
    assert_eq!(asked.iter().filter(|asked| asked.signed_by().unwrap().1 == "us-east-1").count(), 1, "{asked:?}");
    let refused = run(&sandbox, &server, &keys(), &["snapshots"]).expect_code(1);
    refused.says("eu-central-5").says("AWS_REGION");
}

#[test]
fn the_bucket_is_named_in_the_path_or_in_the_host() {
    let sandbox = Sandbox::empty();
    for (options, host) in [
        (&[][..], "no-such-host.invalid"),
        (&["-o", "s3.bucket-lookup=path"], "no-such-host.invalid"),
        (&["-o", "s3.bucket-lookup=dns"], "bucket.no-such-host.invalid"),
    ] {
        let repository = ["-r", "s3:http://no-such-host.invalid/bucket"];
        let words = [&repository[..], options, &["-o", "s3.retry-seconds=0", "snapshots"]].concat();
        let mut command = sandbox.command(words.iter().map(Into::into).collect());
        command.envs(keys());
        Run::of(&mut command).expect_code(1).says(&format!("cannot connect to {host}"));
    }
}
