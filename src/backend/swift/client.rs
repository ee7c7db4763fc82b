//! Requests to one container. Each answer becomes an outcome; sums are compared in both directions; a token that has
//! expired is renewed once per request.

use std::ops::Range;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, RANGE};
use hyper::{Method, StatusCode};
use md5::{Digest, Md5};
use serde_json::Value;

use super::Place;
use super::auth::{Auth, Session};
use crate::backend::ObjectKind;
use crate::backend::count::Request as Sort;
use crate::backend::remote::http::{self, Hints, Http, Response, TEXT_LEN_MAX, whole_range};
use crate::backend::remote::{Failure, FailureKind, Outcome, Page, RemoteOptions, Store, escape};

/// Names in a page: what Swift gives when nothing else is configured.
const PAGE_LEN: usize = 10_000;
/// Longest page in bytes: names of ours are short, others may be a kilobyte long.
const PAGE_BYTES_MAX: u64 = 64 << 20;

const HINTS: Hints = Hints {
    address: "check the address (OS_AUTH_URL or ST_AUTH, and the endpoints that it leads to) and the network",
    authority: "OS_CACERT or `-o swift.cacert=FILE`",
};

/// A container, or what is below a prefix in it.
pub(super) struct Swift {
    http: Http,
    auth: Auth,
    place: Place,
    policy: Option<String>,
}

impl Swift {
    pub(super) fn new(
        place: Place,
        auth: Auth,
        policy: Option<String>,
        options: &RemoteOptions,
    ) -> Result<Self, String> {
        let http = Http::new(&options.http, options.requests.clone(), HINTS)?;
        Ok(Self { http, auth, place, policy })
    }

    /// Sends one request, with a fresh token if the one in use has expired.
    async fn send(
        &self,
        sort: Sort,
        method: Method,
        path: &str,
        headers: &[(hyper::header::HeaderName, String)],
        bytes: Bytes,
    ) -> Outcome<Response> {
        let mut session = self.auth.session(&self.http, None).await?;
        let mut renewed = false;
        loop {
            let response = self.attempt(&session, sort, &method, path, headers, bytes.clone()).await?;
            if response.status() != StatusCode::UNAUTHORIZED || renewed {
                return Ok(response);
            }
            session = self.auth.session(&self.http, Some(&session)).await?;
            renewed = true;
        }
    }

    async fn attempt(
        &self,
        session: &Session,
        sort: Sort,
        method: &Method,
        path: &str,
        headers: &[(hyper::header::HeaderName, String)],
        bytes: Bytes,
    ) -> Outcome<Response> {
        let url = format!("{}/{}{path}", session.url, escape(&self.place.container));
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(&url)
            .header("X-Auth-Token", session.token.clone())
            .header(CONTENT_LENGTH, bytes.len());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(http::body(bytes)).map_err(|_| {
            Failure::new(
                FailureKind::Other,
                format!("`{url}` is no address: check the catalog, or set OS_STORAGE_URL or `-o swift.storage-url`"),
            )
        })?;
        self.http.send(sort, request).await
    }

    fn object(key: &str) -> String {
        format!("/{}", escape(key))
    }

    /// What a failed answer means.
    async fn failure(&self, response: Response) -> Failure {
        let status = response.status();
        let retry_after = http::retry_after(response.headers());
        let transaction = text(response.headers(), "X-Trans-Id").unwrap_or_default();
        let container = &self.place.container;
        let (kind, what) = match status.as_u16() {
            401 => {
                let what = format!("the token is refused, a new one too (401): {}", self.auth.refused(container));
                (FailureKind::Denied, what)
            }
            403 => (FailureKind::Denied, format!("the store refuses (403): {}", self.auth.refused(container))),
            404 => (FailureKind::NotFound, "there is no such object".to_owned()),
            409 => (FailureKind::Transient, "the store has a newer state (409)".to_owned()),
            413 => {
                let body = self.http.read(response, TEXT_LEN_MAX).await.unwrap_or_default();
                let quota = String::from_utf8_lossy(&body).to_ascii_lowercase().contains("quota");
                let what =
                    if quota { "the quota is used up (413)" } else { "the object is too large for the store (413)" };
                (FailureKind::Full, what.to_owned())
            }
            416 => (FailureKind::Truncated, "the object ends before the range (416)".to_owned()),
            422 => (FailureKind::Transient, "the bytes were damaged on their way (422)".to_owned()),
            408 | 429 | 498 | 499 | 500..=599 => {
                // A proxy does not tell that the disks behind it are full: to it they are just not there.
                let why = match status.as_u16() {
                    503 => "busy, broken or full",
                    507 => "full",
                    _ => "busy or broken",
                };
                (FailureKind::Transient, format!("the store is {why} ({status})"))
            }
            _ => (FailureKind::Other, format!("the store answered {status}")),
        };
        let what = if transaction.is_empty() { what } else { format!("{what}, transaction {transaction}") };
        Failure { kind, what, retry_after }
    }

    /// Why something is not there: the container may be missing, too.
    async fn explain_missing(&self, failure: Failure) -> Failure {
        if failure.kind != FailureKind::NotFound {
            return failure;
        }
        let container = &self.place.container;
        match self.send(Sort::Head, Method::HEAD, "", &[], Bytes::new()).await {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                let what = format!("the container `{container}` does not exist: `bygone init` creates it");
                Failure { what, ..failure }
            }
            _ => failure,
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn sum(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sum that the answer says; objects in parts have another kind of sum.
fn told_sum(headers: &HeaderMap) -> Option<String> {
    if headers.contains_key("X-Static-Large-Object") || headers.contains_key("X-Object-Manifest") {
        return None;
    }
    let told = text(headers, ETAG.as_str())?.trim_matches('"').to_ascii_lowercase();
    (told.len() == 32).then_some(told)
}

/// Whether a page of `len` names may be followed by another one. Stores may give fewer than asked for without saying so,
/// but then a round number of them.
fn may_be_followed(len: usize) -> bool {
    len >= PAGE_LEN || (len >= 250 && (len.is_multiple_of(100) || len.is_multiple_of(128)))
}

impl Store for Swift {
    fn location(&self) -> String {
        format!("swift:{}:/{}", self.place.container, self.place.prefix)
    }

    fn prefix(&self) -> &str {
        &self.place.prefix
    }

    async fn prepare(&self) -> Outcome<()> {
        let response = self.send(Sort::Head, Method::HEAD, "", &[], Bytes::new()).await?;
        match response.status() {
            StatusCode::NOT_FOUND => {}
            // Whoever may only write objects may use the container all the same.
            StatusCode::FORBIDDEN => return Ok(()),
            status if status.is_success() => return Ok(()),
            _ => return Err(self.failure(response).await),
        }
        let policy = self.policy.iter();
        let headers: Vec<_> =
            policy.map(|policy| (hyper::header::HeaderName::from_static("x-storage-policy"), policy.clone())).collect();
        let response = self.send(Sort::Other, Method::PUT, "", &headers, Bytes::new()).await?;
        let container = &self.place.container;
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::FORBIDDEN => Err(Failure::new(
                FailureKind::Denied,
                format!("the container `{container}` does not exist, and this user may not create it: have it created"),
            )),
            StatusCode::BAD_REQUEST if self.policy.is_some() => Err(Failure::new(
                FailureKind::Other,
                format!(
                    "the store has no policy `{}`: check `-o swift.storage-policy`",
                    self.policy.as_deref().unwrap_or("")
                ),
            )),
            _ => Err(self.failure(response).await),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes, _kind: ObjectKind) -> Outcome<()> {
        let sum = sum(&bytes);
        let headers = [(ETAG, sum.clone()), (CONTENT_TYPE, "application/octet-stream".to_owned())];
        let sent = self.send(Sort::Put, Method::PUT, &Self::object(key), &headers, bytes).await;
        if sent.as_ref().is_err_and(|failure| failure.kind == FailureKind::Transient) {
            // A server that refuses a token may hang up before it has read all, and then its answer is lost. This asks
            // without a body, so that the next attempt has a token that is good.
            let _ = self.send(Sort::Head, Method::HEAD, "", &[], Bytes::new()).await;
        }
        let response = sent?;
        if !response.status().is_success() {
            let failure = self.failure(response).await;
            return Err(self.explain_missing(failure).await);
        }
        match told_sum(response.headers()) {
            Some(told) if told != sum => {
                Err(Failure::new(FailureKind::Transient, "the store has taken in other bytes than were sent"))
            }
            _ => Ok(()),
        }
    }

    async fn get(&self, key: &str, len_max: u64) -> Outcome<Vec<u8>> {
        let response = self.send(Sort::Get, Method::GET, &Self::object(key), &[], Bytes::new()).await?;
        if !response.status().is_success() {
            let failure = self.failure(response).await;
            return Err(self.explain_missing(failure).await);
        }
        let told = told_sum(response.headers());
        let bytes = self.http.read(response, len_max).await?;
        if told.is_some_and(|told| told != sum(&bytes)) {
            return Err(Failure::new(FailureKind::Transient, "the bytes do not match the sum that came with them"));
        }
        Ok(bytes)
    }

    async fn get_part(&self, key: &str, range: Range<u64>) -> Outcome<Vec<u8>> {
        let headers = [(RANGE, format!("bytes={}-{}", range.start, range.end - 1))];
        let response = self.send(Sort::Get, Method::GET, &Self::object(key), &headers, Bytes::new()).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let announced = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let announced = announced.map(str::to_owned);
                whole_range(self.http.read(response, range.end - range.start).await?, announced.as_deref())
            }
            StatusCode::OK => Err(Failure::new(FailureKind::Other, "the store cannot read ranges")),
            _ => Err(self.failure(response).await),
        }
    }

    async fn page(&self, prefix: &str, after: &str, before: &str) -> Outcome<Page> {
        let mut query = format!("?format=json&limit={PAGE_LEN}&marker={}", escape(after));
        for (name, value) in [("prefix", prefix), ("end_marker", before)] {
            if !value.is_empty() {
                query.push_str(&format!("&{name}={}", escape(value)));
            }
        }
        let response = self.send(Sort::List, Method::GET, &query, &[], Bytes::new()).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT => return Ok(Page::default()),
            StatusCode::NOT_FOUND => {
                let what = format!("the container `{}` does not exist", self.place.container);
                return Err(Failure::new(FailureKind::NotFound, what));
            }
            _ => return Err(self.failure(response).await),
        }
        let bytes = self.http.read(response, PAGE_BYTES_MAX).await?;
        let odd = || Failure::new(FailureKind::Other, "the store's listing cannot be understood");
        let entries: Vec<Value> = serde_json::from_slice(&bytes).map_err(|_| odd())?;
        let more = may_be_followed(entries.len());
        let objects = entries.iter().map(|entry| Some((entry["name"].as_str()?.to_owned(), entry["bytes"].as_u64()?)));
        Ok(Page { objects: objects.collect::<Option<_>>().ok_or_else(odd)?, more })
    }

    async fn head(&self, key: &str) -> Outcome<u64> {
        let response = self.send(Sort::Head, Method::HEAD, &Self::object(key), &[], Bytes::new()).await?;
        if !response.status().is_success() {
            return Err(self.failure(response).await);
        }
        let len = text(response.headers(), CONTENT_LENGTH.as_str()).and_then(|len| len.parse().ok());
        len.ok_or_else(|| Failure::new(FailureKind::Other, "the store does not tell the object's length"))
    }

    async fn delete(&self, key: &str) -> Outcome<()> {
        let response = self.send(Sort::Delete, Method::DELETE, &Self::object(key), &[], Bytes::new()).await?;
        if response.status().is_success() { Ok(()) } else { Err(self.failure(response).await) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_page_is_followed_by_another_request() {
        assert!(may_be_followed(10_000) && may_be_followed(1000) && may_be_followed(256) && may_be_followed(500));
        assert!(!may_be_followed(0) && !may_be_followed(7) && !may_be_followed(1001) && !may_be_followed(200));
    }
}
