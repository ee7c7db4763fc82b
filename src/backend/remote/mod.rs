//! What all stores behind a network have in common: names become keys, pages become listings, failures are retried.
//!
//! A [`Store`] sends single requests; [`Remote`] makes a [`Backend`] of it. Everything asynchronous lives on one small
//! runtime in here; the rest of the program blocks. No decision rests on a conditional request: servers ignore them.

mod flow;
pub(in crate::backend) mod http;
mod limit;
pub mod options;
mod retry;

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;

#[cfg(feature = "s3")]
pub(in crate::backend) use self::flow::in_this_attempt;
pub use self::http::HttpOptions;
pub use self::limit::Limits;
pub use self::retry::RETRY_FOR;
use self::retry::Retry;
use super::count::Requests;
use super::{Backend, Error, ErrorKind, Listed, ObjectKind, ObjectName, Result, Reuse};
use crate::id::ObjectId;
use crate::progress::Cancel;

/// Reads of at most this many bytes are sent again when they are slow.
const HEDGED_LEN_MAX: usize = 2 << 20;
/// Requests in flight at once when the user does not say.
pub const CONNECTIONS: usize = 12;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) enum FailureKind {
    /// There is no such object.
    NotFound,
    /// There is one already.
    Exists,
    /// The store refused for good.
    Denied,
    /// No room left, or over quota.
    Full,
    /// The range lies beyond the object's end.
    Truncated,
    /// Busy, broken or cut: may pass.
    Transient,
    /// There was no connection at all.
    Unreachable,
    /// The run was asked to end before the request was through.
    Interrupted,
    /// Anything else.
    Other,
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub(in crate::backend) struct Failure {
    pub(in crate::backend) kind: FailureKind,
    pub(in crate::backend) what: String,
    /// How long the store asks to wait.
    pub(in crate::backend) retry_after: Option<Duration>,
}

impl Failure {
    pub(in crate::backend) fn new(kind: FailureKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), retry_after: None }
    }
}

/// What a request yields.
pub(in crate::backend) type Outcome<T> = std::result::Result<T, Failure>;

/// One page of a listing.
#[derive(Debug, Default)]
pub(in crate::backend) struct Page {
    /// Keys and lengths in bytes, in ascending order of keys.
    pub(in crate::backend) objects: Vec<(String, u64)>,
    /// Whether there are more.
    pub(in crate::backend) more: bool,
}

/// A store of objects under textual keys. Each call is one attempt, nothing is repeated here.
pub(in crate::backend) trait Store: Send + Sync + 'static {
    /// The store, as the user named it.
    fn location(&self) -> String;

    /// What comes before every key, without a slash at either end.
    fn prefix(&self) -> &str;

    /// Makes the container if it is not there.
    fn prepare(&self) -> impl Future<Output = Outcome<()>> + Send;

    /// Stores an object; `kind` decides on its storage class.
    fn put(&self, key: &str, bytes: Bytes, kind: ObjectKind) -> impl Future<Output = Outcome<()>> + Send;

    /// The whole object.
    fn get(&self, key: &str, len_max: u64) -> impl Future<Output = Outcome<Vec<u8>>> + Send;

    /// What the object has of `range`, which is not empty; less only at its end.
    fn get_part(&self, key: &str, range: Range<u64>) -> impl Future<Output = Outcome<Vec<u8>>> + Send;

    /// Objects with keys that start with `prefix`, come after `after` and, where the store can tell, before `before`.
    fn page(&self, prefix: &str, after: &str, before: &str) -> impl Future<Output = Outcome<Page>> + Send;

    /// Length of the object in bytes.
    fn head(&self, key: &str) -> impl Future<Output = Outcome<u64>> + Send;

    /// Deletes the object.
    fn delete(&self, key: &str) -> impl Future<Output = Outcome<()>> + Send;
}

/// How to use a store.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// Requests in flight at once.
    pub connections: usize,
    /// How long failed requests are repeated.
    pub retry_for: Duration,
    /// Connections.
    pub http: HttpOptions,
    /// Where requests are counted.
    pub requests: Arc<Requests>,
    /// Once it is cancelled, requests that get nowhere are given up and none is repeated.
    pub cancel: Cancel,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        let (http, requests, cancel) = (HttpOptions::default(), Arc::default(), Cancel::default());
        Self { connections: CONNECTIONS, retry_for: RETRY_FOR, http, requests, cancel }
    }
}

impl RemoteOptions {
    /// Takes in the options that all remote backends have under their own scheme.
    pub(in crate::backend) fn read_options(
        &mut self,
        scheme: &str,
        options: &mut options::Options,
    ) -> std::result::Result<(), String> {
        if let Some(connections) = options.number(&format!("{scheme}.connections"))? {
            self.connections = connections.clamp(1, 256) as usize;
        }
        if let Some(seconds) = options.seconds(&format!("{scheme}.retry-seconds"))? {
            self.retry_for = seconds;
        }
        Ok(())
    }
}

/// What comes before every key, from what the user wrote; without slashes at its ends.
pub(in crate::backend) fn prefix(text: &str) -> std::result::Result<String, String> {
    let prefix = text.trim_matches('/');
    if prefix.split('/').any(|part| matches!(part, "." | "..") || (part.is_empty() && !prefix.is_empty())) {
        return Err(format!("`{text}` cannot be a prefix: it has an empty part, `.` or `..` in it"));
    }
    Ok(prefix.to_owned())
}

/// `text` as part of an address; slashes stay.
#[cfg(feature = "swift")]
pub(in crate::backend) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The runtime of all remote backends of this process.
pub(in crate::backend) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("remote").enable_all();
        builder.build().expect("a process that can start no thread can do nothing here")
    })
}

/// A backend on a remote store.
pub(in crate::backend) struct Remote<S> {
    store: S,
    retry: Retry,
    connections: usize,
}

impl<S: Store> Remote<S> {
    pub(in crate::backend) fn new(store: S, options: &RemoteOptions) -> Self {
        let hedges = options.http.limits.download.is_none();
        let retry = Retry::new(options.requests.clone(), options.retry_for, hedges, options.cancel.clone());
        Self { store, retry, connections: options.connections.max(1) }
    }

    fn key(&self, path: &str) -> String {
        match self.store.prefix() {
            "" => path.to_owned(),
            prefix => format!("{prefix}/{path}"),
        }
    }

    fn error(&self, op: &'static str, object: impl ToString, failure: Failure) -> Error {
        let (kind, io) = match failure.kind {
            FailureKind::NotFound => (ErrorKind::NotFound, io::ErrorKind::NotFound),
            FailureKind::Exists => (ErrorKind::Other, io::ErrorKind::AlreadyExists),
            FailureKind::Denied => (ErrorKind::Denied, io::ErrorKind::PermissionDenied),
            FailureKind::Full => (ErrorKind::Full, io::ErrorKind::StorageFull),
            FailureKind::Truncated => (ErrorKind::Truncated, io::ErrorKind::UnexpectedEof),
            FailureKind::Transient | FailureKind::Unreachable => (ErrorKind::Transient, io::ErrorKind::Other),
            FailureKind::Interrupted => (ErrorKind::Interrupted, io::ErrorKind::Other),
            FailureKind::Other => (ErrorKind::Unanswered, io::ErrorKind::Other),
        };
        let source = io::Error::new(io, failure.what);
        Error { op, object: object.to_string(), location: self.location(), kind, source }
    }

    fn put_bytes(&self, name: ObjectName, bytes: Bytes) -> Result<()> {
        let key = self.key(&name.path());
        let put = async || self.store.put(&key, bytes.clone(), name.kind).await;
        let done = runtime().block_on(async {
            if name.kind != ObjectKind::Config {
                return self.retry.run(put).await;
            }
            // The one object whose name is not the hash of its bytes: it must not be replaced. No store refuses that
            // reliably, so whoever writes it looks before and after.
            match self.retry.run(async || self.store.head(&key).await).await {
                Err(failure) if failure.kind == FailureKind::NotFound => {}
                other => return other.map(|_| ()),
            }
            self.retry.run(put).await?;
            let stored = self.retry.run(async || self.store.get(&key, bytes.len() as u64).await).await?;
            if stored == bytes[..] {
                return Ok(());
            }
            let what = "someone else created a repository here at the same moment";
            Err(Failure::new(FailureKind::Exists, what))
        });
        done.map_err(|failure| self.error("write", name, failure))
    }

    /// Calls `found` for the objects of `kinds`, which are neighbours in the order of their directories.
    fn list_neighbours(&self, kinds: &[ObjectKind], found: &mut dyn FnMut(ObjectKind, Listed)) -> Outcome<()> {
        let (Some(first), Some(last)) = (kinds.first(), kinds.last()) else { return Ok(()) };
        let prefix = match kinds {
            [one] => self.key(&format!("{}/", one.directory())),
            _ if self.store.prefix().is_empty() => String::new(),
            _ => self.key(""),
        };
        // `0` is the character after `/`.
        let before = self.key(&format!("{}0", last.directory()));
        let mut after = self.key(&format!("{}/", first.directory()));
        let skip = self.key("").len();
        loop {
            let listing = self.retry.run(async || self.store.page(&prefix, &after, &before).await);
            let page = runtime().block_on(listing)?;
            for (key, len) in &page.objects {
                let named = key.get(skip..).and_then(parse_path).filter(|name| kinds.contains(&name.kind));
                if let Some(name) = named {
                    found(name.kind, Listed { id: name.id, len: *len });
                }
            }
            match page.objects.into_iter().next_back() {
                // A store that goes back would be listed for ever.
                Some((last, _)) if page.more && last > after && last < before => after = last,
                Some((last, _)) if page.more && last <= after => {
                    return Err(Failure::new(FailureKind::Other, "the store's listing is not in order"));
                }
                _ => return Ok(()),
            }
        }
    }
}

/// The name of the object whose path below the repository's root is `path`; everything else there is not ours.
fn parse_path(path: &str) -> Option<ObjectName> {
    let (directory, file) = path.split_once('/')?;
    let kind = ObjectKind::ALL.into_iter().find(|kind| kind.directory() == directory)?;
    let name = ObjectName::new(kind, ObjectId::from_hex(file.rsplit('/').next()?)?);
    (name.path() == path).then_some(name)
}

impl<S: Store> Backend for Remote<S> {
    fn location(&self) -> String {
        self.store.location()
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn parallel(&self) -> usize {
        self.connections
    }

    fn create(&self) -> Result<()> {
        let config = self.key(&ObjectName::config().path());
        let created = runtime().block_on(async {
            self.retry.run(async || self.store.prepare().await).await?;
            match self.retry.run(async || self.store.head(&config).await).await {
                Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
                Err(failure) => Err(failure),
                Ok(_) => Err(Failure::new(FailureKind::Exists, "there is a repository already")),
            }
        });
        created.map_err(|failure| self.error("create", "the repository", failure))
    }

    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        self.put_bytes(name, Bytes::copy_from_slice(bytes))
    }

    fn put_vec(&self, name: ObjectName, bytes: Vec<u8>, _reuse: Reuse) -> Result<()> {
        self.put_bytes(name, Bytes::from(bytes))
    }

    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        let key = self.key(&name.path());
        let got = runtime().block_on(self.retry.run(async || self.store.get(&key, len_max).await));
        got.map_err(|failure| self.error("read", name, failure))
    }

    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        let part = self.get_part(name, offset, out.len())?;
        if part.len() < out.len() {
            let what = format!("it has only {} bytes from {offset}, not {}", part.len(), out.len());
            return Err(self.error("read", name, Failure::new(FailureKind::Truncated, what)));
        }
        out.copy_from_slice(&part);
        Ok(())
    }

    fn get_part(&self, name: ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let key = self.key(&name.path());
        let failed = |failure| self.error("read", name, failure);
        let Some(end) = offset.checked_add(len as u64) else {
            return Err(failed(Failure::new(FailureKind::Truncated, "no object is that long")));
        };
        let attempt = async || self.store.get_part(&key, offset..end).await;
        let got = runtime().block_on(async {
            if len <= HEDGED_LEN_MAX {
                self.retry.run(async || self.retry.hedged(attempt).await).await
            } else {
                self.retry.run(attempt).await
            }
        });
        got.map_err(failed)
    }

    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
        self.list_kinds(&[kind], &mut |_, listed| found(listed))
    }

    fn list_kinds(&self, kinds: &[ObjectKind], found: &mut dyn FnMut(ObjectKind, Listed)) -> Result<()> {
        let mut order = ObjectKind::ALL.to_vec();
        order.sort_by_key(|kind| kind.directory());
        let wanted = |kind: &ObjectKind| *kind != ObjectKind::Config && kinds.contains(kind);
        order
            .chunk_by(|one, next| wanted(one) && wanted(next))
            .filter(|neighbours| neighbours.iter().all(wanted))
            .try_for_each(|neighbours| {
                let shown = neighbours.iter().map(|kind| kind.directory()).collect::<Vec<_>>().join("`, `");
                self.list_neighbours(neighbours, found).map_err(|failure| self.error("list", shown, failure))
            })
    }

    fn len(&self, name: ObjectName) -> Result<u64> {
        let key = self.key(&name.path());
        let len = runtime().block_on(self.retry.run(async || self.store.head(&key).await));
        len.map_err(|failure| self.error("stat", name, failure))
    }

    fn delete(&self, name: ObjectName) -> Result<()> {
        let key = self.key(&name.path());
        match runtime().block_on(self.retry.run(async || self.store.delete(&key).await)) {
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
            other => other.map_err(|failure| self.error("delete", name, failure)),
        }
    }

    fn clean(&self, _age_min_s: u64) -> Result<u64> {
        // A put is there whole or not at all.
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_path_of_an_object_is_its_name() {
        let id = ObjectId::of(b"x");
        for kind in [ObjectKind::Key, ObjectKind::Pack, ObjectKind::Index, ObjectKind::Snapshot] {
            let name = ObjectName::new(kind, id);
            assert_eq!(parse_path(&name.path()), Some(name));
        }
        let hex = id.to_hex();
        for path in
            [format!("packs/{hex}"), format!("packs/zz/{hex}"), format!("index/a/{hex}"), format!("keys/{hex}~")]
        {
            assert_eq!(parse_path(&path), None, "{path}");
        }
        assert_eq!(parse_path("config"), None);
    }
}
