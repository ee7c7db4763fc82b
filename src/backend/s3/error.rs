//! What S3's answers mean, and what the user should set. Secrets are in none of them.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error;
use std::time::Duration;

use crate::backend::remote::http::chain;
use crate::backend::remote::{Failure, FailureKind};

/// What messages name.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) bucket: &'a str,
}

/// Before the name of the region that a bucket is in.
const OTHER_REGION: &str = "the bucket is in region ";

/// The region that the bucket is in, if that is what the failure says.
pub(super) fn other_region(failure: &Failure) -> Option<&str> {
    failure.what.strip_prefix(OTHER_REGION)
}

/// What a request that failed means.
pub(super) fn failure<E>(error: SdkError<E, HttpResponse>, context: Context<'_>) -> Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match &error {
        SdkError::ServiceError(service) => {
            answer(service.raw(), service.err().code(), service.err().message(), context)
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            if status >= 300 {
                return answer(response.raw(), None, None, context);
            }
            Failure::new(FailureKind::Transient, format!("the answer cannot be understood: {}", chain(&error)))
        }
        SdkError::TimeoutError(_) => Failure::new(FailureKind::Transient, "the store did not answer in time"),
        _ => not_sent(&error),
    }
}

/// What an answer means.
fn answer(raw: &HttpResponse, code: Option<&str>, message: Option<&str>, context: Context<'_>) -> Failure {
    let status = raw.status().as_u16();
    let bucket = context.bucket;
    let code = code.unwrap_or_default();
    let said = match (code, message) {
        ("", _) => format!("{status}"),
        (code, None | Some("")) => format!("{status} {code}"),
        (code, Some(message)) => format!("{status} {code}: {}", message.trim_end_matches('.')),
    };
    let region = raw.headers().get("x-amz-bucket-region").map(str::to_owned).or_else(|| region_in(raw));
    let wrong_region = matches!(
        code,
        "PermanentRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException"
            | "TemporaryRedirect"
    ) || matches!(status, 301 | 307)
        || (status == 400 && code.is_empty());
    if let Some(region) = region.filter(|_| wrong_region) {
        return Failure::new(FailureKind::Other, format!("{OTHER_REGION}{region}"));
    }
    let new = |kind, what: String| Failure::new(kind, what);
    match (status, code) {
        (_, "NoSuchBucket") => {
            new(FailureKind::NotFound, format!("the bucket `{bucket}` does not exist: `bygone init` creates it"))
        }
        (_, "BucketAlreadyOwnedByYou") => new(FailureKind::Exists, "the bucket is there".to_owned()),
        (_, "BucketAlreadyExists") => {
            let what = format!("the bucket `{bucket}` belongs to someone else: choose another name ({said})");
            new(FailureKind::Denied, what)
        }
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidSecurity" | "InvalidToken") | (401, _) => {
            let what = format!(
                "the store does not know these credentials ({said}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile (AWS_PROFILE, `-o s3.profile`)"
            );
            new(FailureKind::Denied, what)
        }
        (_, "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException") => {
            new(FailureKind::Denied, format!("the credentials have expired ({said}): get a new AWS_SESSION_TOKEN"))
        }
        (_, "RequestTimeTooSkewed" | "RequestExpired") => {
            new(FailureKind::Denied, format!("the clocks of this host and of the store differ ({said}): set the clock"))
        }
        _ if wrong_region => {
            let what = format!(
                "the bucket `{bucket}` seems to be in another region ({said}): set AWS_REGION or `-o s3.region`"
            );
            new(FailureKind::Other, what)
        }
        (_, "InvalidStorageClass") => new(FailureKind::Other, format!("{said}: check `-o s3.storage-class`")),
        (400, code) if code.starts_with("KMS.") => {
            new(FailureKind::Other, format!("{said}: check `-o s3.sse-kms-key-id`"))
        }
        (_, "QuotaExceeded" | "EntityTooLarge" | "XMinioStorageFull" | "NoSpaceLeft" | "StorageFull") => {
            new(FailureKind::Full, format!("the quota is used up or the store is full ({said})"))
        }
        (_, "RequestTimeout" | "SlowDown" | "BadDigest" | "OperationAborted" | "IncompleteBody")
        | (408 | 429 | 498 | 499, _) => {
            waiting(raw, new(FailureKind::Transient, format!("the store is busy ({said})")))
        }
        (404, _) => new(FailureKind::NotFound, "there is no such object".to_owned()),
        (403, _) => {
            let what = format!(
                "the store refuses ({said}): these credentials may not do this in the bucket `{bucket}`; it needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
            );
            new(FailureKind::Denied, what)
        }
        (416, _) => new(FailureKind::Truncated, "the object ends before the range (416)".to_owned()),
        (500.., "NotImplemented") => new(FailureKind::Other, format!("the store cannot do this ({said})")),
        (409 | 500.., _) => waiting(raw, new(FailureKind::Transient, format!("the store is busy or broken ({said})"))),
        _ => new(FailureKind::Other, format!("the store answered {said}")),
    }
}

fn waiting(raw: &HttpResponse, failure: Failure) -> Failure {
    let seconds = raw.headers().get("retry-after").and_then(|seconds| seconds.trim().parse().ok());
    Failure { retry_after: seconds.map(Duration::from_secs), ..failure }
}

/// The region that the text of an answer names.
fn region_in(raw: &HttpResponse) -> Option<String> {
    let text = std::str::from_utf8(raw.body().bytes()?).ok()?;
    let region = text.split_once("<Region>")?.1.split_once("</Region>")?.0;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (!region.is_empty() && region.len() <= 64 && region.bytes().all(good)).then(|| region.to_owned())
}

/// Nothing was sent, or nothing came back.
fn not_sent(error: &(dyn Error + 'static)) -> Failure {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return failure.clone();
        }
        cause = error.source();
    }
    let text = chain(error);
    if text.contains("redential") || text.contains("profile") {
        let what = format!(
            "there are no usable credentials ({text}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, `-o s3.profile` or `-o s3.credentials-file`"
        );
        return Failure::new(FailureKind::Denied, what);
    }
    if text.contains("ndpoint") || text.contains("URI") {
        let what = format!("{text}: check the repository's address, or $AWS_ENDPOINT_URL");
        return Failure::new(FailureKind::Other, what);
    }
    Failure::new(FailureKind::Other, text)
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;

    use super::*;

    #[test]
    fn what_to_set_is_named() {
        let no_cause = |status: u16, code: &str| {
            let status = StatusCode::try_from(status).expect("a status");
            let raw = HttpResponse::new(status, SdkBody::empty());
            answer(&raw, Some(code), None, Context { bucket: "b" }).what
        };
        for (status, code, named) in [
            (301, "PermanentRedirect", "`-o s3.region`"),
            (400, "AuthorizationHeaderMalformed", "`-o s3.region`"),
            (400, "", "`-o s3.region`"),
            (403, "InvalidAccessKeyId", "`-o s3.profile`"),
            (400, "InvalidStorageClass", "`-o s3.storage-class`"),
            (400, "KMS.NotFoundException", "`-o s3.sse-kms-key-id`"),
        ] {
            let what = no_cause(status, code);
            assert!(what.contains(named), "{what}");
        }
        let not_sent = |text: &str| not_sent(&std::io::Error::other(text)).what;
        assert!(not_sent("no credentials were found").contains("AWS_SECRET_ACCESS_KEY"));
        assert!(not_sent("the endpoint cannot be used").contains("$AWS_ENDPOINT_URL"));
    }
}
