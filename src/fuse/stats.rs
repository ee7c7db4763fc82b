//! What a running mount has done: requests by kind with their latencies, and what was read and decoded for them.
//!
//! Anyone who may enter the mount can read it, as JSON, from an attribute of the mount's root that is never listed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::repo::reader::ReadCounts;

/// Name of the attribute of the mount's root.
pub const STATS_XATTR: &[u8] = b"user.bygone.stats";

/// Bounds of the latency classes in microseconds: each but the last counts what took less than its bound.
const BOUNDS_US: [u64; 11] = [5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000, 1_000_000];

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name in a directory.
    Lookup,
    /// Attributes.
    Attr,
    /// A listing.
    List,
    /// The target of a link.
    Link,
    /// Bytes of a file.
    Read,
    /// Data or hole.
    Seek,
    /// Extended attributes.
    Xattr,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Lookup, "lookup"),
    (Kind::Attr, "attr"),
    (Kind::List, "list"),
    (Kind::Link, "link"),
    (Kind::Read, "read"),
    (Kind::Seek, "seek"),
    (Kind::Xattr, "xattr"),
];

/// Counters of a mount.
pub struct Stats {
    since: Instant,
    requests: [Requests; KINDS.len()],
    /// Bytes of answers to reads.
    read_bytes: AtomicU64,
    prefilled: AtomicU64,
    prefilled_bytes: AtomicU64,
}

#[derive(Default)]
struct Requests {
    count: AtomicU64,
    failed: AtomicU64,
    waited: AtomicU64,
    total_ns: AtomicU64,
    classes: [AtomicU64; BOUNDS_US.len() + 1],
}

impl Default for Stats {
    /// Nothing done yet.
    fn default() -> Self {
        Self {
            since: Instant::now(),
            requests: Default::default(),
            read_bytes: AtomicU64::new(0),
            prefilled: AtomicU64::new(0),
            prefilled_bytes: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// A request was answered after `took`, out of memory or not, with success or not.
    pub fn answered(&self, kind: Kind, took: Duration, waited: bool, failed: bool) {
        let requests = &self.requests[kind as usize];
        let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        let class = BOUNDS_US.partition_point(|bound| *bound <= took.as_micros() as u64);
        add(&requests.count, 1);
        add(&requests.waited, waited.into());
        add(&requests.failed, failed.into());
        add(&requests.total_ns, took.as_nanos() as u64);
        add(&requests.classes[class], 1);
    }

    /// A read was answered with `len` bytes.
    pub fn read(&self, len: usize) {
        self.read_bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    /// `len` bytes were handed to the page cache unasked.
    pub fn prefilled(&self, len: usize) {
        self.prefilled.fetch_add(1, Ordering::Relaxed);
        self.prefilled_bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    /// As JSON; `counts` is what the repository did meanwhile.
    pub fn to_json(&self, counts: ReadCounts) -> String {
        let requests = KINDS.iter().map(|(kind, name)| {
            let of = &self.requests[*kind as usize];
            let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let count = get(&of.count);
            let latency = of.classes.iter().enumerate().map(|(class, counter)| {
                (BOUNDS_US.get(class).map_or_else(|| "more".to_owned(), |bound| format!("<{bound}us")), get(counter))
            });
            let mean_us = if count == 0 { 0.0 } else { get(&of.total_ns) as f64 / count as f64 / 1000.0 };
            let shown = RequestsJson {
                count,
                waited: get(&of.waited),
                failed: get(&of.failed),
                mean_us: (mean_us * 10.0).round() / 10.0,
                latency: latency.filter(|(_, count)| *count > 0).map(|(class, count)| (class, count.into())).collect(),
            };
            ((*name).to_owned(), serde_json::to_value(shown).expect("numbers and plain names"))
        });
        let shown = StatsJson {
            seconds: self.since.elapsed().as_secs(),
            requests: requests.collect(),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            prefilled: self.prefilled.load(Ordering::Relaxed),
            prefilled_bytes: self.prefilled_bytes.load(Ordering::Relaxed),
            segment_hits: counts.hits,
            segment_misses: counts.misses,
            stored_bytes_read: counts.stored_bytes,
            decoded_bytes: counts.decoded_bytes,
            cached_bytes: counts.cached_bytes,
        };
        serde_json::to_string(&shown).expect("numbers and plain names")
    }
}

#[derive(Serialize)]
struct StatsJson {
    /// Since the mount began.
    seconds: u64,
    requests: serde_json::Map<String, serde_json::Value>,
    read_bytes: u64,
    prefilled: u64,
    prefilled_bytes: u64,
    segment_hits: u64,
    segment_misses: u64,
    stored_bytes_read: u64,
    decoded_bytes: u64,
    cached_bytes: u64,
}

#[derive(Serialize)]
struct RequestsJson {
    count: u64,
    /// Not answered out of memory.
    waited: u64,
    failed: u64,
    mean_us: f64,
    latency: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_counted_in_its_latency_class() {
        let stats = Stats::default();
        stats.answered(Kind::Read, Duration::from_micros(4), false, false);
        stats.answered(Kind::Read, Duration::from_micros(5), true, false);
        stats.answered(Kind::Read, Duration::from_secs(5), true, true);
        stats.read(4096);
        stats.prefilled(100);
        let counts = ReadCounts { hits: 7, ..ReadCounts::default() };
        let shown: serde_json::Value = serde_json::from_str(&stats.to_json(counts)).unwrap();
        let read = &shown["requests"]["read"];
        assert_eq!((&read["count"], &read["waited"], &read["failed"]), (&3.into(), &2.into(), &1.into()));
        assert_eq!(read["latency"], serde_json::json!({ "<5us": 1, "<10us": 1, "more": 1 }));
        assert_eq!(shown["requests"]["lookup"]["count"], 0);
        assert_eq!((&shown["read_bytes"], &shown["prefilled_bytes"]), (&4096.into(), &100.into()));
        assert_eq!(shown["segment_hits"], 7);
    }
}
