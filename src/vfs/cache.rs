//! A cache bounded by bytes: the least recently used value leaves first.
//!
//! Each value is charged what its owner says it holds plus a flat cost for the cache's own bookkeeping.

use std::hash::Hash;
use std::sync::Mutex;

use lru::LruCache;

/// Bytes charged for each entry on top of what it holds: key, pointers, hash table.
const ENTRY_COST: usize = 128;

/// Values by key, at most so many bytes of them. Shared between threads.
pub(super) struct Cache<K, V> {
    inner: Mutex<Inner<K, V>>,
    len_max: usize,
}

struct Inner<K, V> {
    entries: LruCache<K, (V, usize)>,
    len: usize,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// An empty cache of at most `len_max` bytes.
    pub fn new(len_max: usize) -> Self {
        Self { inner: Mutex::new(Inner { entries: LruCache::unbounded(), len: 0 }), len_max }
    }

    /// The value of `key`, now the most recently used.
    pub fn get(&self, key: &K) -> Option<V> {
        self.inner.lock().expect("no panic while held").entries.get(key).map(|(value, _)| value.clone())
    }

    /// The value of `key`, which is kept no longer.
    pub fn take(&self, key: &K) -> Option<V> {
        let mut inner = self.inner.lock().expect("no panic while held");
        let (value, len) = inner.entries.pop(key)?;
        inner.len -= len;
        Some(value)
    }

    /// Keeps `value`, which holds `len` bytes.
    pub fn put(&self, key: K, value: V, len: usize) {
        let len = len + ENTRY_COST;
        let mut inner = self.inner.lock().expect("no panic while held");
        if let Some((_, replaced)) = inner.entries.put(key, (value, len)) {
            inner.len -= replaced;
        }
        inner.len += len;
        while inner.len > self.len_max
            && inner.entries.len() > 1
            && let Some((_, (_, dropped))) = inner.entries.pop_lru()
        {
            inner.len -= dropped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_leaves_when_bytes_run_out() {
        let cache = Cache::new(3 * (ENTRY_COST + 100));
        for key in 0..3 {
            cache.put(key, key, 100);
        }
        assert_eq!(cache.get(&0), Some(0));
        cache.put(3, 3, 100);
        assert_eq!((cache.get(&0), cache.get(&1), cache.get(&3)), (Some(0), None, Some(3)));
        cache.put(4, 4, 10_000);
        assert_eq!((cache.get(&0), cache.get(&4)), (None, Some(4)), "a large value stays alone");
        cache.put(4, 5, 1);
        cache.put(0, 0, 1);
        assert_eq!((cache.get(&4), cache.get(&0)), (Some(5), Some(0)), "replacing gives the bytes back");
        assert_eq!((cache.take(&4), cache.take(&4), cache.get(&4)), (Some(5), None, None));
        cache.put(1, 1, 200);
        assert_eq!((cache.get(&0), cache.get(&1)), (Some(0), Some(1)), "so does taking");
    }
}
