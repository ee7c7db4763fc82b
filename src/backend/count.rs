//! How many requests a store was sent, and how many bytes went each way: what `--stats requests` prints.
//!
//! Remote backends count what they send, page by page and attempt by attempt; [`Count`] counts the calls to any other
//! backend.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Backend, Listed, ObjectKind, ObjectName, Result};

/// Sorts of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stores an object or a part of one.
    Put,
    /// Reads an object or a range of one.
    Get,
    /// One page of a listing.
    List,
    /// Asks for the length of an object.
    Head,
    /// Deletes an object.
    Delete,
    /// Everything else: credentials, containers.
    Other,
}

impl Request {
    /// Every sort, in the order in which they are shown.
    pub const ALL: [Request; 6] =
        [Request::Put, Request::Get, Request::List, Request::Head, Request::Delete, Request::Other];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Request::Put => "PUT",
            Request::Get => "GET",
            Request::List => "LIST",
            Request::Head => "HEAD",
            Request::Delete => "DELETE",
            Request::Other => "other",
        }
    }
}

/// Counts of requests; shared by everything that sends them.
#[derive(Debug, Default)]
pub struct Requests {
    counts: [AtomicU64; Request::ALL.len()],
    sent: AtomicU64,
    received: AtomicU64,
    retries: AtomicU64,
    hedges: AtomicU64,
}

impl Requests {
    /// One more request.
    pub fn add(&self, request: Request) {
        self.counts[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of bodies that were sent.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of bodies that were received.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One more request that repeats a failed one.
    pub fn add_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// One more request that repeats a slow one.
    pub fn add_hedge(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of requests of one sort so far.
    pub fn count(&self, request: Request) -> u64 {
        self.counts[request as usize].load(Ordering::Relaxed)
    }

    /// Number of all requests so far.
    pub fn total(&self) -> u64 {
        Request::ALL.into_iter().map(|request| self.count(request)).sum()
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Requests that repeated a failed one.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Requests that repeated a slow one.
    pub fn hedges(&self) -> u64 {
        self.hedges.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests:", self.total())?;
        for request in Request::ALL {
            write!(f, " {} {},", self.count(request), request.name())?;
        }
        write!(f, " {} retries, {} repeated because slow; ", self.retries(), self.hedges())?;
        write!(f, "{} bytes sent, {} bytes received", self.sent(), self.received())
    }
}

/// A backend whose calls are counted.
pub struct Count<B> {
    inner: B,
    requests: Arc<Requests>,
}

impl<B> Count<B> {
    /// Counts the calls to `inner` in `requests`.
    pub fn new(inner: B, requests: Arc<Requests>) -> Self {
        Self { inner, requests }
    }
}

impl<B: Backend> Backend for Count<B> {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn parallel(&self) -> usize {
        self.inner.parallel()
    }

    fn create(&self) -> Result<()> {
        self.requests.add(Request::Other);
        self.inner.create()
    }

    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        self.requests.add(Request::Put);
        self.inner.put(name, bytes)?;
        self.requests.add_sent(bytes.len() as u64);
        Ok(())
    }

    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        self.requests.add(Request::Get);
        let bytes = self.inner.get(name, len_max)?;
        self.requests.add_received(bytes.len() as u64);
        Ok(bytes)
    }

    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        self.requests.add(Request::Get);
        self.inner.get_range(name, offset, out)?;
        self.requests.add_received(out.len() as u64);
        Ok(())
    }

    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
        self.requests.add(Request::List);
        self.inner.list(kind, found)
    }

    fn len(&self, name: ObjectName) -> Result<u64> {
        self.requests.add(Request::Head);
        self.inner.len(name)
    }

    fn delete(&self, name: ObjectName) -> Result<()> {
        self.requests.add(Request::Delete);
        self.inner.delete(name)
    }

    fn clean(&self, age_min_s: u64) -> Result<u64> {
        self.inner.clean(age_min_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::mem::Memory;

    #[test]
    fn calls_and_bytes_are_counted_and_failures_move_no_bytes() {
        let requests = Arc::new(Requests::default());
        let store = Count::new(Memory::new(), requests.clone());
        let name = ObjectName::config();
        store.put(name, b"hello").expect("puts");
        assert!(store.get(name, 3).is_err());
        store.get_range(name, 1, &mut [0; 3]).expect("reads");
        store.list(ObjectKind::Key, &mut |_| {}).expect("lists");
        let counts = [Request::Put, Request::Get, Request::List, Request::Head].map(|request| requests.count(request));
        assert_eq!((counts, requests.sent(), requests.received()), ([1, 2, 1, 0], 5, 3));
        assert_eq!(requests.total(), 4);
    }
}
