//! Repositories in S3 and whatever speaks its protocol, through the SDK of AWS.
//!
//! The SDK signs, finds credentials and knows the protocol; connections, retries and counting are those of `remote`.
//! Nothing is asked of a server beyond plain PUT, GET, HEAD, LIST and DELETE: others of its answers cannot be trusted.

mod error;
mod transport;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
// The aliases are marked as moved to a crate that is not meant to be used from outside.
#[allow(deprecated)]
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketLocationConstraint, CompletedMultipartUpload, CompletedPart, CreateBucketConfiguration, EncodingType,
    ServerSideEncryption, StorageClass,
};
use bytes::Bytes;
use md5::{Digest, Md5};
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use self::error::{Context, failure};
use self::transport::Transport;
use super::remote::http::{Hints, Http, whole_range};
use super::remote::options::Options;
use super::remote::{Failure, FailureKind, Outcome, Page, Remote, RemoteOptions, Store, in_this_attempt};
use super::{Backend, ObjectKind};

/// Objects that are longer go in parts.
const MULTIPART_FROM: u64 = 64 << 20;
/// Length of a part, unless there would be too many.
const PART_LEN: usize = 16 << 20;
/// Most parts that every server takes.
const PARTS_MAX: usize = 1000;
/// Parts in flight at once.
const PARTS_IN_FLIGHT: usize = 4;
/// Attempts at one part.
const PART_ATTEMPTS: u32 = 6;
/// A region that every server knows when none is said.
const REGION_DEFAULT: &str = "us-east-1";

const HINTS: Hints = Hints {
    address: "check the repository's address or $AWS_ENDPOINT_URL, and the network",
    authority: "$AWS_CA_BUNDLE or `-o s3.cacert=FILE`",
};

/// Where a repository lies in S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address of the server; `None` for AWS, or what its configuration says.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// What comes before every name, without a slash at either end.
    pub prefix: String,
}

impl Place {
    /// Parses what comes after `s3:`: `https://host/bucket/prefix`, `bucket/prefix`, `//bucket/prefix`, or restic's
    /// `host/bucket/prefix` where the host is one of AWS or has a port.
    pub fn parse(text: &str) -> Result<Place, String> {
        let (endpoint, rest) = if let Some((scheme, rest)) = text.split_once("://") {
            if !matches!(scheme, "http" | "https") {
                return Err(format!(
                    "`s3:{text}`: the address must start with https:// or http://, as in `s3:https://HOST/BUCKET/PREFIX`"
                ));
            }
            let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
            if host.contains('@') {
                return Err("credentials do not belong into the repository's address: set AWS_ACCESS_KEY_ID and \
                            AWS_SECRET_ACCESS_KEY, or `-o s3.profile`"
                    .to_owned());
            }
            (Some(format!("{scheme}://{host}")).filter(|_| host != "s3.amazonaws.com"), rest)
        } else {
            let rest = text.trim_start_matches('/');
            match rest.split_once('/') {
                Some(("s3.amazonaws.com", rest)) => (None, rest),
                Some((host, rest)) if host.ends_with(".amazonaws.com") || host.contains(':') => {
                    (Some(format!("https://{host}")), rest)
                }
                _ => (None, rest),
            }
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(format!(
                "`s3:{text}` names no bucket: write `s3:https://HOST/BUCKET/PREFIX` or `s3:BUCKET/PREFIX`"
            ));
        }
        Ok(Place { endpoint, bucket: bucket.to_owned(), prefix: super::remote::prefix(prefix)? })
    }
}

/// What the user set.
#[derive(Clone, Debug, Default)]
struct Settings {
    region: Option<String>,
    profile: Option<String>,
    credentials_file: Option<String>,
    path_style: Option<bool>,
    storage_class: Option<String>,
    sse: Option<String>,
    sse_key_id: Option<String>,
    anonymous: bool,
    list_v1: bool,
    multipart_from: u64,
}

/// Every option of `-o` that [`open`] knows, and what it is for.
pub const OPTIONS: &[(&str, &str)] = &[
    ("s3.region", "region of the bucket (default: $AWS_REGION, the profile, else found out)"),
    ("s3.profile", "profile in ~/.aws/config and ~/.aws/credentials (default: $AWS_PROFILE)"),
    ("s3.credentials-file", "file of credentials to use whatever the environment says"),
    ("s3.bucket-lookup", "`path` or `dns`: where requests name the bucket (default `auto`: dns on AWS, else path)"),
    ("s3.storage-class", "storage class of packs; everything else is small and stays in the standard one"),
    ("s3.sse", "encryption by the server: `AES256` or `aws:kms`"),
    ("s3.sse-kms-key-id", "key of `aws:kms`"),
    ("s3.unsafe-anonymous-auth", "`true` sends requests without a signature"),
    ("s3.list-objects-v1", "`true` lists with the first version of the call"),
    ("s3.multipart-from", "bytes from which on an object is stored in parts"),
    ("s3.cacert", "file of certificate authorities (default: $AWS_CA_BUNDLE, else the system's)"),
    ("s3.insecure-tls", "`true` trusts every certificate"),
    ("s3.connections", "requests in flight at once"),
    ("s3.retry-seconds", "how long failed requests are repeated"),
];

/// The backend at `place`, with the settings in `options` and in the environment.
pub fn open(
    place: Place,
    options: &mut Options,
    mut remote: RemoteOptions,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn Backend>, String> {
    let path_style = match options.choice("s3.bucket-lookup", &["auto", "path", "dns"])? {
        Some("path") => Some(true),
        Some("dns") => Some(false),
        _ => None,
    };
    let settings = Settings {
        region: options.text("s3.region"),
        profile: options.text("s3.profile"),
        credentials_file: options.text("s3.credentials-file"),
        path_style,
        storage_class: options.text("s3.storage-class"),
        sse: options.choice("s3.sse", &["AES256", "aws:kms"])?.map(str::to_owned),
        sse_key_id: options.text("s3.sse-kms-key-id"),
        anonymous: options.switch("s3.unsafe-anonymous-auth")?,
        list_v1: options.switch("s3.list-objects-v1")?,
        multipart_from: options.number("s3.multipart-from")?.unwrap_or(MULTIPART_FROM).max(5 << 20),
    };
    remote.http.ca_file = options.text("s3.cacert").or_else(|| env("AWS_CA_BUNDLE")).map(PathBuf::from);
    remote.http.insecure = options.switch("s3.insecure-tls")?;
    remote.read_options("s3", options)?;
    let http = Http::new(&remote.http, remote.requests.clone(), HINTS)?;
    let store = S3 { place, settings, http, client: RwLock::new(None) };
    Ok(Arc::new(Remote::new(store, &remote)))
}

/// A client and how it came to its region.
#[derive(Clone)]
struct Signed {
    client: Client,
    region: String,
    /// The user said so, in whatever way.
    region_is_set: bool,
}

/// A bucket, or what is below a prefix in it.
struct S3 {
    place: Place,
    settings: Settings,
    http: Http,
    client: RwLock<Option<Signed>>,
}

impl S3 {
    async fn client(&self) -> Outcome<Signed> {
        if let Some(signed) = &*self.client.read().await {
            return Ok(signed.clone());
        }
        let mut client = self.client.write().await;
        if let Some(signed) = &*client {
            return Ok(signed.clone());
        }
        let signed = self.make_client(None).await;
        *client = Some(signed.clone());
        Ok(signed)
    }

    async fn make_client(&self, found: Option<String>) -> Signed {
        let settings = &self.settings;
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(Transport::new(self.http.clone()));
        if let Some(profile) = &settings.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        // Given as options they count more than $AWS_ACCESS_KEY_ID, which is asked first otherwise.
        if settings.credentials_file.is_some() || settings.profile.is_some() {
            let http = ProviderConfig::empty().with_http_client(Transport::new(self.http.clone()));
            let mut provider = ProfileFileCredentialsProvider::builder().configure(&http);
            if let Some(file) = &settings.credentials_file {
                #[allow(deprecated)]
                let files = ProfileFiles::builder().with_file(ProfileFileKind::Credentials, file).build();
                provider = provider.profile_files(files);
            }
            if let Some(profile) = &settings.profile {
                provider = provider.profile_name(profile);
            }
            loader = loader.credentials_provider(provider.build());
        }
        if settings.anonymous {
            loader = loader.no_credentials();
        }
        let shared = loader.load().await;
        // A variable that is empty says nothing.
        let said = shared.region().map(ToString::to_string).filter(|region| !region.is_empty());
        let region = found.or_else(|| said.clone()).unwrap_or_else(|| REGION_DEFAULT.to_owned());
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .region(Region::new(region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // Sums that newer SDKs add on their own are refused by many servers; we send Content-MD5.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        let mut is_aws = shared.endpoint_url().is_none();
        if let Some(endpoint) = &self.place.endpoint {
            is_aws = endpoint.ends_with(".amazonaws.com");
            config = config.endpoint_url(endpoint);
        }
        if settings.anonymous {
            config = config.allow_no_auth();
        }
        config = config.force_path_style(settings.path_style.unwrap_or(!is_aws));
        Signed { client: Client::from_conf(config.build()), region, region_is_set: said.is_some() }
    }

    /// Runs `request`; in another region if the store says that the bucket is there and the user said nothing.
    async fn run<T, F>(&self, request: impl Fn(Client) -> F) -> Outcome<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let signed = self.client().await?;
        let failure = match request(signed.client.clone()).await {
            Err(failure) => failure,
            done => return done,
        };
        let Some(region) = error::other_region(&failure).map(str::to_owned) else { return Err(failure) };
        if region == signed.region {
            return Err(failure);
        }
        if signed.region_is_set {
            let bucket = &self.place.bucket;
            let what = format!(
                "the bucket `{bucket}` is in region `{region}`, not in `{}`: set AWS_REGION or `-o s3.region`",
                signed.region
            );
            return Err(Failure::new(FailureKind::Other, what));
        }
        let signed = self.make_client(Some(region)).await;
        *self.client.write().await = Some(signed.clone());
        request(signed.client).await
    }

    fn context(&self) -> Context<'_> {
        Context { bucket: &self.place.bucket }
    }

    async fn put_whole(&self, client: Client, key: &str, bytes: Bytes, kind: ObjectKind) -> Outcome<()> {
        let mut request = client
            .put_object()
            .bucket(&self.place.bucket)
            .key(key)
            .content_type("application/octet-stream")
            .content_md5(md5(&bytes))
            .body(ByteStream::from(bytes));
        request = request.set_storage_class(self.storage_class(kind));
        if let Some(sse) = &self.settings.sse {
            request = request
                .server_side_encryption(ServerSideEncryption::from(sse.as_str()))
                .set_ssekms_key_id(self.settings.sse_key_id.clone());
        }
        request.send().await.map(|_| ()).map_err(|error| failure(error, self.context()))
    }

    fn storage_class(&self, kind: ObjectKind) -> Option<StorageClass> {
        self.settings.storage_class.as_deref().filter(|_| kind == ObjectKind::Pack).map(StorageClass::from)
    }

    async fn put_parts(&self, client: Client, key: &str, bytes: Bytes, kind: ObjectKind) -> Outcome<()> {
        let bucket = &self.place.bucket;
        let mut create = client
            .create_multipart_upload()
            .bucket(bucket)
            .key(key)
            .content_type("application/octet-stream")
            .set_storage_class(self.storage_class(kind));
        if let Some(sse) = &self.settings.sse {
            create = create
                .server_side_encryption(ServerSideEncryption::from(sse.as_str()))
                .set_ssekms_key_id(self.settings.sse_key_id.clone());
        }
        let created = create.send().await.map_err(|error| failure(error, self.context()))?;
        let Some(upload) = created.upload_id else {
            return Err(Failure::new(FailureKind::Other, "the store began no upload in parts"));
        };
        let done = match self.upload_parts(&client, key, &upload, bytes).await {
            Err(failure) => Err(failure),
            Ok(parts) => {
                let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
                let complete = client
                    .complete_multipart_upload()
                    .bucket(bucket)
                    .key(key)
                    .upload_id(&upload)
                    .multipart_upload(parts);
                complete.send().await.map(|_| ()).map_err(|error| failure(error, self.context()))
            }
        };
        if done.is_err() {
            let _ = client.abort_multipart_upload().bucket(bucket).key(key).upload_id(&upload).send().await;
        }
        done
    }

    async fn upload_parts(
        &self,
        client: &Client,
        key: &str,
        upload: &str,
        bytes: Bytes,
    ) -> Outcome<Vec<CompletedPart>> {
        let part_len = PART_LEN.max(bytes.len().div_ceil(PARTS_MAX));
        let mut rest = bytes;
        let mut flying = JoinSet::new();
        let mut parts = Vec::new();
        let mut number = 0;
        loop {
            while flying.len() < PARTS_IN_FLIGHT && !rest.is_empty() {
                number += 1;
                let part = rest.split_to(part_len.min(rest.len()));
                let (client, key, upload) = (client.clone(), key.to_owned(), upload.to_owned());
                let (bucket, requests) = (self.place.bucket.clone(), self.http.requests().clone());
                flying.spawn(in_this_attempt(async move {
                    let sum = md5(&part);
                    let mut pause = Duration::from_millis(200);
                    let mut attempts = 0;
                    loop {
                        let request = client.upload_part().bucket(&bucket).key(&key).upload_id(&upload);
                        let request =
                            request.part_number(number).content_md5(&sum).body(ByteStream::from(part.clone()));
                        attempts += 1;
                        match request.send().await {
                            Ok(sent) => {
                                let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build();
                                return Ok(part);
                            }
                            Err(error) => {
                                let failure = failure(error, Context { bucket: &bucket });
                                if failure.kind != FailureKind::Transient || attempts == PART_ATTEMPTS {
                                    return Err(failure);
                                }
                            }
                        }
                        requests.add_retry();
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                }));
            }
            match flying.join_next().await {
                None => break,
                Some(Ok(part)) => parts.push(part?),
                Some(Err(_)) => return Err(Failure::new(FailureKind::Other, "the upload was interrupted")),
            }
        }
        parts.sort_by_key(CompletedPart::part_number);
        Ok(parts)
    }

    async fn read(&self, mut body: ByteStream, declared: Option<i64>, len_max: u64) -> Outcome<Vec<u8>> {
        let declared = declared.and_then(|len| u64::try_from(len).ok());
        let too_long = || Failure::new(FailureKind::Other, format!("the answer is longer than {len_max} bytes"));
        if declared.is_some_and(|len| len > len_max) {
            return Err(too_long());
        }
        let mut bytes = Vec::with_capacity(declared.unwrap_or(0) as usize);
        while let Some(data) = body.next().await {
            let data = data.map_err(|error| {
                let what = format!("the answer was cut short: {}", super::remote::http::chain(&error));
                Failure::new(FailureKind::Transient, what)
            })?;
            if (bytes.len() + data.len()) as u64 > len_max {
                return Err(too_long());
            }
            self.http.requests().add_received(data.len() as u64);
            bytes.extend_from_slice(&data);
        }
        if declared.is_some_and(|len| len != bytes.len() as u64) {
            return Err(Failure::new(FailureKind::Transient, "the answer was cut short"));
        }
        Ok(bytes)
    }
}

fn md5(bytes: &[u8]) -> String {
    aws_smithy_types::base64::encode(Md5::digest(bytes))
}

/// A key of a listing that asked for escapes.
fn unescape(key: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl Store for S3 {
    fn location(&self) -> String {
        let Place { endpoint, bucket, prefix } = &self.place;
        let endpoint = endpoint.as_ref().map_or_else(String::new, |endpoint| format!("{endpoint}/"));
        let slash = if prefix.is_empty() { "" } else { "/" };
        format!("s3:{endpoint}{bucket}{slash}{prefix}")
    }

    fn prefix(&self) -> &str {
        &self.place.prefix
    }

    async fn prepare(&self) -> Outcome<()> {
        let bucket = &self.place.bucket;
        // Not HEAD: an answer without a body cannot say what is wrong.
        let look = async |client: Client| match client.list_objects_v2().bucket(bucket).max_keys(1).send().await {
            Ok(_) => Ok(true),
            // Whoever may only use objects may use the bucket all the same.
            Err(error) if error.code() == Some("AccessDenied") => Ok(true),
            Err(error) => match failure(error, self.context()) {
                failure if failure.kind == FailureKind::NotFound => Ok(false),
                failure => Err(failure),
            },
        };
        if self.run(look).await? {
            return Ok(());
        }
        let signed = self.client().await?;
        let constraint = (signed.region != REGION_DEFAULT).then(|| {
            let constraint = BucketLocationConstraint::from(signed.region.as_str());
            CreateBucketConfiguration::builder().location_constraint(constraint).build()
        });
        let create = signed.client.create_bucket().bucket(bucket).set_create_bucket_configuration(constraint);
        match create.send().await {
            Ok(_) => Ok(()),
            Err(error) => match failure(error, self.context()) {
                failure if failure.kind == FailureKind::Exists => Ok(()),
                failure => Err(failure),
            },
        }
    }

    async fn put(&self, key: &str, bytes: Bytes, kind: ObjectKind) -> Outcome<()> {
        let in_parts = bytes.len() as u64 > self.settings.multipart_from;
        self.run(async |client| {
            if in_parts {
                self.put_parts(client, key, bytes.clone(), kind).await
            } else {
                self.put_whole(client, key, bytes.clone(), kind).await
            }
        })
        .await
    }

    async fn get(&self, key: &str, len_max: u64) -> Outcome<Vec<u8>> {
        self.run(async |client| {
            let got = client.get_object().bucket(&self.place.bucket).key(key).send().await;
            let got = got.map_err(|error| failure(error, self.context()))?;
            self.read(got.body, got.content_length, len_max).await
        })
        .await
    }

    async fn get_part(&self, key: &str, range: Range<u64>) -> Outcome<Vec<u8>> {
        self.run(async |client| {
            let wanted = format!("bytes={}-{}", range.start, range.end - 1);
            let got = client.get_object().bucket(&self.place.bucket).key(key).range(wanted).send().await;
            let got = got.map_err(|error| failure(error, self.context()))?;
            if got.content_range.is_none() {
                return Err(Failure::new(FailureKind::Other, "the store cannot read ranges"));
            }
            let bytes = self.read(got.body, got.content_length, range.end - range.start).await?;
            whole_range(bytes, got.content_range.as_deref())
        })
        .await
    }

    async fn page(&self, prefix: &str, after: &str, _before: &str) -> Outcome<Page> {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let object = |object: &aws_sdk_s3::types::Object, escaped: bool| {
            let key = object.key()?;
            let key = if escaped { unescape(key)? } else { key.to_owned() };
            Some((key, u64::try_from(object.size()?).ok()?))
        };
        self.run(async |client| {
            let bucket = &self.place.bucket;
            let page = if self.settings.list_v1 {
                let request = client.list_objects().bucket(bucket).set_prefix(some(prefix)).set_marker(some(after));
                let listed = request.encoding_type(EncodingType::Url).send().await;
                let listed = listed.map_err(|error| failure(error, self.context()))?;
                let escaped = listed.encoding_type().is_some();
                let objects = listed.contents().iter().map(|found| object(found, escaped)).collect::<Option<_>>();
                objects.map(|objects| Page { objects, more: listed.is_truncated().unwrap_or(false) })
            } else {
                let request =
                    client.list_objects_v2().bucket(bucket).set_prefix(some(prefix)).set_start_after(some(after));
                let listed = request.encoding_type(EncodingType::Url).send().await;
                let listed = listed.map_err(|error| failure(error, self.context()))?;
                let escaped = listed.encoding_type().is_some();
                let objects = listed.contents().iter().map(|found| object(found, escaped)).collect::<Option<_>>();
                objects.map(|objects| Page { objects, more: listed.is_truncated().unwrap_or(false) })
            };
            page.ok_or_else(|| Failure::new(FailureKind::Other, "the store's listing cannot be understood"))
        })
        .await
    }

    async fn head(&self, key: &str) -> Outcome<u64> {
        self.run(async |client| {
            let head = client.head_object().bucket(&self.place.bucket).key(key).send().await;
            let head = head.map_err(|error| failure(error, self.context()))?;
            let len = head.content_length().and_then(|len| u64::try_from(len).ok());
            len.ok_or_else(|| Failure::new(FailureKind::Other, "the store does not tell the object's length"))
        })
        .await
    }

    async fn delete(&self, key: &str) -> Outcome<()> {
        self.run(async |client| {
            let deleted = client.delete_object().bucket(&self.place.bucket).key(key).send().await;
            deleted.map(|_| ()).map_err(|error| failure(error, self.context()))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_name_a_place_are_those_that_restic_knows() {
        let place = |endpoint: Option<&str>, bucket: &str, prefix: &str| Place {
            endpoint: endpoint.map(str::to_owned),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        for (text, expected) in [
            ("https://host:9000/b/p/q/", place(Some("https://host:9000"), "b", "p/q")),
            ("http://host/b", place(Some("http://host"), "b", "")),
            ("https://s3.amazonaws.com/b/p", place(None, "b", "p")),
            ("s3.amazonaws.com/b/p", place(None, "b", "p")),
            ("s3.eu-central-1.amazonaws.com/b", place(Some("https://s3.eu-central-1.amazonaws.com"), "b", "")),
            ("localhost:9000/b", place(Some("https://localhost:9000"), "b", "")),
            ("my.bucket/p", place(None, "my.bucket", "p")),
            ("//b/p", place(None, "b", "p")),
            ("b", place(None, "b", "")),
        ] {
            assert_eq!(Place::parse(text), Ok(expected), "{text}");
        }
        for text in ["", "https://host", "https://host/", "ftp://host/b", "https://key:secret@host/b", "b/../x"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
        assert!(!Place::parse("https://key:secret@host/b").expect_err("refused").contains("secret"));
    }

    #[test]
    fn every_option_is_listed() {
        let mut options = Options::default();
        let place = Place::parse("b").expect("parses");
        open(place, &mut options, RemoteOptions::default(), &|_| None).expect("opens without a request");
        let listed: Vec<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
        assert!(options.asked().all(|name| listed.contains(&name)));
        assert_eq!(options.asked().count(), listed.len());
    }

    #[test]
    fn a_file_of_authorities_that_cannot_be_read_is_named_with_what_names_it() {
        let env = |name: &str| (name == "AWS_CA_BUNDLE").then(|| "/no/such/file".to_owned());
        let place = Place::parse("b").expect("parses");
        let opened = open(place, &mut Options::default(), RemoteOptions::default(), &env);
        let message = opened.err().expect("there is no such file");
        assert!(message.contains("/no/such/file") && message.contains("AWS_CA_BUNDLE"), "{message}");
    }

    #[test]
    fn escaped_keys_are_read_and_broken_ones_refused() {
        assert_eq!(unescape("a%2Fb+c%C3%A4").as_deref(), Some("a/b c\u{e4}"));
        assert_eq!((unescape("a%2"), unescape("%zz"), unescape("%ff")), (None, None, None));
    }
}
