//! What is near of a store that is far away: windows of packs in memory, fetched ahead and shared by whoever waits for
//! them, and on the local disk, sealed as stored, what later runs want again. All of it can be lost at any time.
//!
//! Packs are read in aligned windows, so that neighbours cost one request and a store learns little from what is asked.
//! Memory and disk are bounded by bytes. Bytes from the disk are compared with a sum before they are believed.

mod disk;

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use lru::LruCache;

use self::disk::Disk;
use super::{Backend, Error, ErrorKind, Listed, ObjectKind, ObjectName, Result, Reuse};
use crate::id::ObjectId;

/// Bytes of a window.
const WINDOW_LEN: u64 = 512 << 10;
/// Bytes of windows in memory.
const MEMORY_LEN_MAX: usize = 48 << 20;
/// Windows that wait to be fetched ahead; what is asked for beyond that is forgotten.
const QUEUE_LEN_MAX: usize = 64;
/// Windows that one request fetches at most: a store works for each request, and long reads should not need many.
const RUN_MAX: usize = 4;

/// Packs whose readers are followed.
const STREAMS_MAX: usize = 256;
/// Windows ahead of a reader that goes on, at most.
const AHEAD_MAX: u64 = 16;

/// How far from the expected window a reader may be: several threads decode for it, in no order.
const SLACK: u64 = 3;

/// A window of a pack.
type Window = (ObjectId, u64);
type Bytes = Arc<Vec<u8>>;

/// A backend whose reads are kept near.
pub struct Near {
    shared: Arc<Shared>,
    /// Threads that fetch ahead.
    threads: Mutex<usize>,
}

struct Shared {
    inner: Arc<dyn Backend>,
    disk: Option<Disk>,
    state: Mutex<State>,
    /// A window has arrived, or will not.
    landed: Condvar,
    /// There is something to fetch, or no more ever.
    wanted: Condvar,
}

struct State {
    windows: LruCache<Window, Held>,
    len: usize,
    /// Windows that somebody fetches right now.
    flying: HashSet<Window>,
    /// What to fetch ahead, in order.
    queue: VecDeque<(Window, Reuse)>,
    /// Small objects to fetch ahead, and the most bytes that each may have.
    early: VecDeque<(ObjectName, u64)>,
    /// Small objects that are being fetched ahead.
    early_flying: HashSet<ObjectName>,
    /// Small objects that were fetched ahead and not yet asked for.
    early_here: HashMap<ObjectName, Vec<u8>>,
    idle: usize,
    closed: bool,
    streams: LruCache<ObjectId, Stream>,
    /// How far ahead the reader was that last came to the end of its pack: who reads pack after pack keeps its pace.
    pace: u64,
}

/// Small objects that are fetched before they are asked for, at most.
const EARLY_MAX: usize = 64;

/// A reader of a pack.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The window after the one it was in last.
    next: u64,
    /// The window after the last one that was asked for ahead of it.
    until: u64,
    /// Windows to be ahead of it.
    ahead: u64,
    /// The furthest window that was read: the object has at least as many.
    last: u64,
}

impl Stream {
    /// The reader is in window `at`; returns which windows to fetch ahead now.
    fn advance(&mut self, at: u64) -> std::ops::Range<u64> {
        self.last = self.last.max(at);
        if at < self.next && at + SLACK >= self.next {
            return 0..0;
        }
        if at < self.next || at >= self.next + SLACK {
            // The tables at the end are read first, and are no reason to lose a place.
            if at != self.last {
                *self = Stream { next: at + 1, until: at + 1, ahead: 0, last: self.last };
            }
            return 0..0;
        }
        self.next = at + 1;
        self.ahead = (2 * self.ahead).clamp(1, AHEAD_MAX);
        let from = self.until.max(self.next);
        self.until = (self.next + self.ahead).min(self.last + 1).max(from);
        from..self.until
    }
}

struct Held {
    bytes: Bytes,
    on_disk: bool,
}

impl Near {
    /// Keeps reads of `inner` in memory and, if `directory` is given, on the disk, where they take at most `disk_len_max`
    /// bytes.
    pub fn new(inner: Arc<dyn Backend>, directory: Option<&Path>, disk_len_max: u64) -> Near {
        let disk = directory.and_then(|directory| Disk::open(directory, disk_len_max));
        let state = State {
            windows: LruCache::unbounded(),
            len: 0,
            flying: HashSet::new(),
            queue: VecDeque::new(),
            early: VecDeque::new(),
            early_flying: HashSet::new(),
            early_here: HashMap::new(),
            idle: 0,
            closed: false,
            pace: 0,
            streams: LruCache::new(NonZeroUsize::new(STREAMS_MAX).expect("not zero")),
        };
        let shared = Shared { inner, disk, state: Mutex::new(state), landed: Condvar::new(), wanted: Condvar::new() };
        Near { shared: Arc::new(shared), threads: Mutex::default() }
    }

    /// Lets `windows` of the pack be fetched soon.
    fn enqueue(&self, id: ObjectId, windows: std::ops::Range<u64>, reuse: Reuse) {
        let mut state = self.shared.lock();
        let mut added = 0;
        for index in windows {
            let window = (id, index);
            if state.queue.len() < QUEUE_LEN_MAX
                && !state.has(&window)
                && !state.queue.iter().any(|(queued, _)| *queued == window)
            {
                state.queue.push_back((window, reuse));
                added += 1;
            }
        }
        let short = state.queue.len().min(added).saturating_sub(state.idle);
        drop(state);
        self.wake(added, short);
    }

    /// There are `added` more things to fetch, for which `short` threads are missing.
    fn wake(&self, added: usize, short: usize) {
        if added > 0 {
            self.shared.wanted.notify_all();
            (0..short).for_each(|_| self.reinforce());
        }
    }

    /// Forgets the copies of whole objects of `kind` that are not among `present`.
    pub fn forget_all_but(&self, kind: ObjectKind, mut present: Vec<ObjectName>) {
        if let Some(disk) = self.shared.disk.as_ref().filter(|_| is_kept_whole(kind)) {
            present.sort_unstable();
            disk.retain(kind, &present);
        }
    }

    /// One more thread that fetches ahead, if all of them are busy.
    fn reinforce(&self) {
        let mut threads = self.threads.lock().expect("no panic while held");
        if *threads >= self.shared.inner.parallel() {
            return;
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("fetch".to_owned()).spawn(move || shared.fetch_ahead());
        // Without it, readers fetch for themselves.
        *threads += usize::from(thread.is_ok());
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        // The threads end by themselves; what they wait for may take its time, and nobody needs it any more.
        let mut state = self.shared.lock();
        state.closed = true;
        state.queue.clear();
        state.early.clear();
        self.shared.wanted.notify_all();
    }
}

impl State {
    /// Notes that `len` bytes from `offset` of the pack are read; returns which windows to fetch ahead.
    fn follow(&mut self, id: ObjectId, offset: u64, len: usize) -> std::ops::Range<u64> {
        let at = (offset + (len as u64).max(1) - 1) / WINDOW_LEN;
        let pace = self.pace;
        let stream = self.streams.get_or_insert_mut(id, || Stream { ahead: pace / 2, ..Stream::default() });
        let ahead = stream.advance(at);
        if stream.ahead == 0 {
            self.pace = 0;
        } else if stream.until > stream.last {
            self.pace = stream.ahead;
        }
        ahead
    }

    fn insert(&mut self, window: Window, held: Held) {
        self.len += held.bytes.len();
        if let Some((_, old)) = self.windows.push(window, held) {
            self.len -= old.bytes.len();
        }
        while self.len > MEMORY_LEN_MAX && self.windows.len() > 1 {
            let Some((_, old)) = self.windows.pop_lru() else { break };
            self.len -= old.bytes.len();
        }
    }

    fn has(&self, window: &Window) -> bool {
        self.windows.contains(window) || self.flying.contains(window)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn fetch_ahead(&self) {
        let mut state = self.lock();
        loop {
            if state.closed {
                return;
            }
            if let Some((name, len_max)) = state.early.pop_front() {
                state.early_flying.insert(name);
                drop(state);
                // As below: whoever needs it meets the failure again.
                let got = self.get(name, len_max);
                state = self.lock();
                state.early_flying.remove(&name);
                state.early_here.extend(got.ok().map(|bytes| (name, bytes)));
                self.landed.notify_all();
                continue;
            }
            let Some((window, reuse)) = state.queue.pop_front() else {
                state.idle += 1;
                state = self.wanted.wait(state).expect("no panic while held");
                state.idle -= 1;
                continue;
            };
            if state.has(&window) {
                continue;
            }
            let mut run = 1;
            // What follows in the queue and in the pack comes with the same request.
            while run < RUN_MAX
                && state.queue.front().is_some_and(|(next, _)| *next == (window.0, window.1 + run as u64))
                && !state.has(&(window.0, window.1 + run as u64))
            {
                state.queue.pop_front();
                run += 1;
            }
            state.flying.extend((0..run as u64).map(|at| (window.0, window.1 + at)));
            drop(state);
            // A failure is met again by whoever needs the bytes.
            let _ = self.fetch(window, run, reuse);
            state = self.lock();
        }
    }

    /// Fetches `count` windows that are marked as flying, from the disk or the store, and keeps them. Returns the first,
    /// which may be gone again a moment later; `None` if the object ends before it.
    fn fetch(&self, first: Window, count: usize, reuse: Reuse) -> Result<Option<Bytes>> {
        let mut failed = None;
        let mut at = 0;
        let mut found: Vec<(Window, Held)> = Vec::with_capacity(count);
        while at < count {
            let window = (first.0, first.1 + at as u64);
            let near = self.disk.as_ref().filter(|_| reuse == Reuse::Often).and_then(|disk| disk.window(&window));
            if let Some(bytes) = near {
                found.push((window, Held { bytes: Arc::new(bytes), on_disk: true }));
                at += 1;
                continue;
            }
            let name = ObjectName::new(ObjectKind::Pack, first.0);
            match self.inner.get_part(name, window.1 * WINDOW_LEN, (count - at) * WINDOW_LEN as usize) {
                Ok(bytes) => {
                    for (index, piece) in bytes.chunks(WINDOW_LEN as usize).enumerate() {
                        let window = (first.0, window.1 + index as u64);
                        if let Some(disk) = self.disk.as_ref().filter(|_| reuse == Reuse::Often) {
                            disk.keep_window(&window, piece);
                        }
                        found.push((window, Held { bytes: Arc::new(piece.to_vec()), on_disk: reuse == Reuse::Often }));
                    }
                }
                Err(error) if error.kind == ErrorKind::Truncated => {}
                // What came before it is good.
                Err(error) => failed = Some(error).filter(|_| at == 0),
            }
            break;
        }
        let bytes = found.first().map(|(_, held)| held.bytes.clone());
        let mut state = self.lock();
        state.flying.retain(|window| window.0 != first.0 || !(first.1..first.1 + count as u64).contains(&window.1));
        found.into_iter().for_each(|(window, held)| state.insert(window, held));
        drop(state);
        self.landed.notify_all();
        failed.map_or(Ok(bytes), Err)
    }

    /// The window; `None` if the object ends before it.
    fn window(&self, window: Window, more: usize, reuse: Reuse) -> Result<Option<Bytes>> {
        let mut state = self.lock();
        loop {
            if let Some(held) = state.windows.get_mut(&window) {
                let bytes = held.bytes.clone();
                let is_new = reuse == Reuse::Often && !std::mem::replace(&mut held.on_disk, true);
                drop(state);
                if let Some(disk) = self.disk.as_ref().filter(|_| is_new) {
                    disk.keep_window(&window, &bytes);
                }
                return Ok(Some(bytes));
            }
            if state.flying.contains(&window) {
                state = self.landed.wait(state).expect("no panic while held");
                continue;
            }
            let mut run = 1;
            while run < more.min(RUN_MAX) && !state.has(&(window.0, window.1 + run as u64)) {
                run += 1;
            }
            state.flying.extend((0..run as u64).map(|at| (window.0, window.1 + at)));
            drop(state);
            return self.fetch(window, run, reuse);
        }
    }

    fn get_range(&self, name: ObjectName, offset: u64, mut out: &mut [u8], reuse: Reuse) -> Result<()> {
        let mut at = offset;
        while !out.is_empty() {
            let index = at / WINDOW_LEN;
            let from = (at % WINDOW_LEN) as usize;
            let more = (from + out.len()).div_ceil(WINDOW_LEN as usize);
            let window = self.window((name.id, index), more, reuse)?;
            let held = window.as_ref().and_then(|bytes| bytes.get(from..)).unwrap_or_default();
            let len = held.len().min(out.len());
            if len == 0 {
                return Err(self.truncated(name, at));
            }
            let (head, tail) = out.split_at_mut(len);
            head.copy_from_slice(&held[..len]);
            out = tail;
            at += len as u64;
        }
        Ok(())
    }

    /// A whole object, from the disk or the store.
    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        let disk = self.disk.as_ref().filter(|_| is_kept_whole(name.kind));
        if let Some(bytes) = disk.and_then(|disk| disk.get(name, len_max)) {
            return Ok(bytes);
        }
        let is_right = |bytes: &[u8]| name.kind == ObjectKind::Config || ObjectId::of(bytes) == name.id;
        let mut bytes = self.inner.get(name, len_max)?;
        if !is_right(&bytes) {
            // Perhaps only on its way: not every store says a sum that could have told.
            bytes = self.inner.get(name, len_max)?;
        }
        if let Some(disk) = disk.filter(|_| is_right(&bytes)) {
            disk.keep(name, &bytes);
        }
        Ok(bytes)
    }

    /// A small object that was fetched ahead; waits for it if it is on its way.
    fn take_early(&self, name: ObjectName) -> Option<Vec<u8>> {
        let mut state = self.lock();
        // Nobody has begun yet: whoever asks fetches it.
        state.early.retain(|(queued, _)| *queued != name);
        while state.early_flying.contains(&name) {
            state = self.landed.wait(state).expect("no panic while held");
        }
        state.early_here.remove(&name)
    }

    fn truncated(&self, name: ObjectName, at: u64) -> Error {
        let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, format!("it ends before byte {at}"));
        let (object, location) = (name.to_string(), self.inner.location());
        Error { op: "read", object, location, kind: ErrorKind::Truncated, source }
    }

    fn forget(&self, id: &ObjectId, windows: std::ops::RangeInclusive<u64>) {
        let mut state = self.lock();
        for index in windows {
            if let Some(old) = state.windows.pop(&(*id, index)) {
                state.len -= old.bytes.len();
            }
            if let Some(disk) = &self.disk {
                disk.forget_window(&(*id, index));
            }
        }
    }
}

/// Whether objects of this kind are small, wanted by every run, and named by their bytes.
fn is_kept_whole(kind: ObjectKind) -> bool {
    matches!(kind, ObjectKind::Key | ObjectKind::Snapshot)
}

impl Backend for Near {
    fn location(&self) -> String {
        self.shared.inner.location()
    }

    fn is_remote(&self) -> bool {
        self.shared.inner.is_remote()
    }

    fn parallel(&self) -> usize {
        self.shared.inner.parallel()
    }

    fn create(&self) -> Result<()> {
        self.shared.inner.create()
    }

    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        self.shared.inner.put(name, bytes)?;
        if let Some(disk) = self.shared.disk.as_ref().filter(|_| is_kept_whole(name.kind)) {
            disk.keep(name, bytes);
        }
        Ok(())
    }

    fn put_vec(&self, name: ObjectName, bytes: Vec<u8>, reuse: Reuse) -> Result<()> {
        let Some(disk) = self.shared.disk.as_ref().filter(|_| name.kind == ObjectKind::Pack && reuse == Reuse::Often)
        else {
            return self.shared.inner.put_vec(name, bytes, reuse);
        };
        self.shared.inner.put(name, &bytes)?;
        for (index, piece) in bytes.chunks(WINDOW_LEN as usize).enumerate() {
            disk.keep_window(&(name.id, index as u64), piece);
        }
        Ok(())
    }

    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        match self.shared.take_early(name) {
            Some(bytes) if bytes.len() as u64 <= len_max => Ok(bytes),
            _ => self.shared.get(name, len_max),
        }
    }

    fn will_get(&self, names: &[ObjectName], len_max: u64) {
        let mut state = self.shared.lock();
        let room = EARLY_MAX.saturating_sub(state.early.len() + state.early_flying.len() + state.early_here.len());
        let added = names.len().min(room);
        state.early.extend(names[..added].iter().map(|name| (*name, len_max)));
        let short = added.saturating_sub(state.idle);
        drop(state);
        self.wake(added, short);
    }

    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        self.get_range_for(name, offset, out, Reuse::Seldom)
    }

    fn get_part(&self, name: ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.shared.inner.get_part(name, offset, len)
    }

    fn get_range_for(&self, name: ObjectName, offset: u64, out: &mut [u8], reuse: Reuse) -> Result<()> {
        match name.kind {
            ObjectKind::Pack => {
                let ahead = self.shared.lock().follow(name.id, offset, out.len());
                if !ahead.is_empty() {
                    self.enqueue(name.id, ahead, reuse);
                }
                self.shared.get_range(name, offset, out, reuse)
            }
            _ => self.shared.inner.get_range(name, offset, out),
        }
    }

    fn get_range_again(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        let last = offset.saturating_add(out.len() as u64).saturating_sub(1);
        self.shared.forget(&name.id, offset / WINDOW_LEN..=last / WINDOW_LEN);
        self.shared.inner.get_range(name, offset, out)
    }

    fn will_read(&self, name: ObjectName, offset: u64, len: u64, reuse: Reuse) {
        if len > 0 && name.kind == ObjectKind::Pack {
            self.enqueue(name.id, offset / WINDOW_LEN..(offset + len - 1) / WINDOW_LEN + 1, reuse);
        }
    }

    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
        self.list_kinds(&[kind], &mut |_, listed| found(listed))
    }

    fn list_kinds(&self, kinds: &[ObjectKind], found: &mut dyn FnMut(ObjectKind, Listed)) -> Result<()> {
        let mut present = Vec::new();
        self.shared.inner.list_kinds(kinds, &mut |kind, listed| {
            if self.shared.disk.is_some() && is_kept_whole(kind) {
                present.push(ObjectName::new(kind, listed.id));
            }
            found(kind, listed);
        })?;
        if let Some(disk) = &self.shared.disk {
            present.sort_unstable();
            for kind in kinds.iter().filter(|kind| is_kept_whole(**kind)) {
                disk.retain(*kind, &present);
            }
        }
        Ok(())
    }

    fn len(&self, name: ObjectName) -> Result<u64> {
        self.shared.inner.len(name)
    }

    fn delete(&self, name: ObjectName) -> Result<()> {
        if let Some(disk) = &self.shared.disk {
            disk.forget(name);
        }
        self.shared.inner.delete(name)
    }

    fn clean(&self, age_min_s: u64) -> Result<u64> {
        self.shared.inner.clean(age_min_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::count::{Count, Request, Requests};
    use crate::backend::mem::Memory;

    const LEN: usize = 3 * WINDOW_LEN as usize + 1000;

    fn store() -> (Arc<dyn Backend>, Arc<Requests>, ObjectName, Vec<u8>) {
        let mut bytes = vec![0; LEN];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let name = ObjectName::new(ObjectKind::Pack, ObjectId::of(&bytes));
        let requests = Arc::new(Requests::default());
        let memory = Count::new(Memory::new(), requests.clone());
        memory.put(name, &bytes).expect("puts");
        (Arc::new(memory), requests, name, bytes)
    }

    fn range(near: &Near, name: ObjectName, from: usize, len: usize, reuse: Reuse) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        near.get_range_for(name, from as u64, &mut out, reuse).map(|()| out)
    }

    #[test]
    fn any_range_is_what_the_store_has_and_neighbours_cost_nothing() {
        let (store, requests, name, bytes) = store();
        let near = Near::new(store, None, 0);
        let edge = WINDOW_LEN as usize;
        for (from, len) in [(0, 1), (edge - 1, 2), (edge + 5, edge), (LEN - 1, 1), (0, LEN), (LEN - 3000, 3000)] {
            assert_eq!(range(&near, name, from, len, Reuse::Seldom).expect("reads"), bytes[from..from + len]);
        }
        // Each window once: the counting store asks for the length before each.
        assert!(requests.count(Request::Get) <= 4, "{requests}");
        for (from, len) in [(LEN, 1), (LEN - 1, 2), (LEN + 10 * edge, 1)] {
            let error = range(&near, name, from, len, Reuse::Seldom).expect_err("beyond the end");
            assert_eq!(error.kind, ErrorKind::Truncated);
        }
    }

    #[test]
    fn a_reader_that_goes_on_is_followed_faster_and_faster_to_the_end_and_no_further() {
        let mut stream = Stream::default();
        assert!(stream.advance(31).is_empty(), "the tables");
        let mut covered = 0;
        for at in 0..32 {
            assert!(stream.advance(at).is_empty() || stream.until > covered);
            covered = stream.until;
            assert!(covered <= 32, "beyond the end");
        }
        assert_eq!((covered, stream.ahead), (32, AHEAD_MAX));
        let mut swapped = Stream::default();
        swapped.advance(31);
        for pair in (0..30).step_by(2) {
            swapped.advance(pair + 1);
            assert!(swapped.advance(pair).is_empty(), "taken care of already");
        }
        assert_eq!(swapped.ahead, AHEAD_MAX, "requests out of order are one reader");
        let mut random = Stream::default();
        assert!(
            [31, 9, 3, 20, 5].into_iter().all(|at| random.advance(at).is_empty()),
            "random reads fetch nothing ahead"
        );
    }

    #[test]
    fn what_is_fetched_ahead_is_not_fetched_again() {
        let (store, requests, name, bytes) = store();
        let near = Near::new(store, None, 0);
        near.will_read(name, 0, LEN as u64, Reuse::Seldom);
        assert_eq!(range(&near, name, 0, LEN, Reuse::Seldom).expect("reads"), bytes);
        drop(near);
        assert!(requests.count(Request::Get) <= 4, "{requests}");
    }

    #[test]
    fn small_objects_that_are_fetched_ahead_are_fetched_once_and_given_once() {
        let (store, requests, pack, bytes) = store();
        let names: Vec<_> = (0..5u8).map(|n| ObjectName::new(ObjectKind::Index, ObjectId::of(&[n]))).collect();
        names[..4].iter().zip(0u8..).for_each(|(name, n)| store.put(*name, &[n]).expect("puts"));
        let near = Near::new(store.clone(), None, 0);
        near.will_get(&names, 10);
        for (name, n) in names[..4].iter().zip(0u8..) {
            assert_eq!(near.get(*name, 10).expect("gets"), [n]);
        }
        assert_eq!(near.get(names[4], 10).expect_err("never stored").kind, ErrorKind::NotFound);
        // Only the failure is met twice, and only if it was quicker than its reader.
        assert!((5..=6).contains(&requests.count(Request::Get)), "{requests}");
        store.delete(names[0]).expect("deletes");
        assert_eq!(near.get(names[0], 10).expect_err("given once").kind, ErrorKind::NotFound);
        near.will_get(&[pack], 10);
        assert!(near.get(pack, 10).is_err(), "longer than allowed");
        assert_eq!(near.get(pack, LEN as u64).expect("gets"), bytes);
    }

    #[test]
    fn who_reads_pack_after_pack_keeps_its_pace_and_who_jumps_about_has_none() {
        let mut state = Near::new(Arc::new(Memory::new()), None, 0);
        let state = Arc::get_mut(&mut state.shared).expect("no thread yet").state.get_mut().expect("no panic");
        let window = |at: u64| at * WINDOW_LEN;
        let [first, second, third] = [b"1", b"2", b"3"].map(|name| ObjectId::of(name));
        let begin = |state: &mut State, id| {
            assert!(state.follow(id, window(31), 10).is_empty(), "the tables at its end");
            state.follow(id, 0, 10)
        };
        assert_eq!(begin(state, first), 1..2, "one window for who is new");
        (0..32).for_each(|at| {
            state.follow(first, window(at), 10);
        });
        assert_eq!(begin(state, second), 1..1 + AHEAD_MAX);
        assert!(state.follow(second, window(25), 10).is_empty());
        assert_eq!(begin(state, third), 1..2, "it has jumped");
    }

    #[test]
    fn the_next_run_finds_on_the_disk_what_is_wanted_often() {
        let (store, requests, name, bytes) = store();
        let directory = tempfile::tempdir().expect("temporary directory");
        let open = || Near::new(store.clone(), Some(directory.path()), 1 << 30);
        range(&open(), name, 10, 20, Reuse::Seldom).expect("reads");
        range(&open(), name, 10, 20, Reuse::Often).expect("reads");
        let before = requests.total();
        assert_eq!(range(&open(), name, 30, 20, Reuse::Often).expect("reads"), bytes[30..50]);
        assert_eq!(requests.total(), before, "the third run asked the store");
    }

    #[test]
    fn a_damaged_or_short_file_on_the_disk_is_fetched_again() {
        let (store, _, name, bytes) = store();
        let directory = tempfile::tempdir().expect("temporary directory");
        let open = || Near::new(store.clone(), Some(directory.path()), 1 << 30);
        for change in [|bytes: &mut Vec<u8>| bytes[7] ^= 1, |bytes: &mut Vec<u8>| bytes.truncate(40)] {
            range(&open(), name, 0, 10, Reuse::Often).expect("reads");
            let mut changed = 0;
            for entry in disk::files(directory.path()) {
                let mut stored = std::fs::read(&entry).expect("reads");
                change(&mut stored);
                std::fs::write(&entry, stored).expect("writes");
                changed += 1;
            }
            assert!(changed > 0);
            assert_eq!(range(&open(), name, 0, 10, Reuse::Often).expect("reads"), bytes[..10]);
        }
    }

    #[test]
    fn keys_and_snapshots_are_kept_whole_until_they_are_listed_no_more() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let requests = Arc::new(Requests::default());
        let store: Arc<dyn Backend> = Arc::new(Count::new(Memory::new(), requests.clone()));
        let near = Near::new(store.clone(), Some(directory.path()), 1 << 30);
        let name = ObjectName::new(ObjectKind::Snapshot, ObjectId::of(b"s"));
        near.put(name, b"s").expect("puts");
        assert_eq!(near.get(name, 10).expect("gets"), b"s");
        assert_eq!(requests.count(Request::Get), 0);
        store.delete(name).expect("deletes");
        near.list(ObjectKind::Snapshot, &mut |_| panic!("it is gone")).expect("lists");
        assert_eq!(near.get(name, 10).expect_err("gone").kind, ErrorKind::NotFound);
    }

    /// Damages what is read first.
    struct Damaging(Memory, std::sync::atomic::AtomicU32);

    impl Backend for Damaging {
        fn location(&self) -> String {
            self.0.location()
        }
        fn create(&self) -> Result<()> {
            self.0.create()
        }
        fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
            self.0.put(name, bytes)
        }
        fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
            let mut bytes = self.0.get(name, len_max)?;
            let left = self.1.load(std::sync::atomic::Ordering::Relaxed);
            if left > 0 {
                self.1.store(left - 1, std::sync::atomic::Ordering::Relaxed);
                bytes[0] ^= 1;
            }
            Ok(bytes)
        }
        fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
            self.0.get_range(name, offset, out)
        }
        fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
            self.0.list(kind, found)
        }
        fn len(&self, name: ObjectName) -> Result<u64> {
            self.0.len(name)
        }
        fn delete(&self, name: ObjectName) -> Result<()> {
            self.0.delete(name)
        }
        fn clean(&self, age_min_s: u64) -> Result<u64> {
            self.0.clean(age_min_s)
        }
    }

    #[test]
    fn bytes_that_are_damaged_on_their_way_are_read_again_and_never_kept() {
        for kind in [ObjectKind::Key, ObjectKind::Index, ObjectKind::Snapshot] {
            let directory = tempfile::tempdir().expect("temporary directory");
            let name = ObjectName::new(kind, ObjectId::of(b"object"));
            let open = |damaged: u32| {
                let store = Damaging(Memory::new(), damaged.into());
                store.put(name, b"object").expect("puts");
                Near::new(Arc::new(store), Some(directory.path()), 1 << 30)
            };
            assert_ne!(open(2).get(name, 10).expect("what the store has"), b"object");
            assert_eq!(open(1).get(name, 10).expect("the second time"), b"object", "{kind:?}");
        }
    }

    #[test]
    fn the_disk_keeps_to_its_bound() {
        let (store, _, name, _) = store();
        let directory = tempfile::tempdir().expect("temporary directory");
        let near = Near::new(store, Some(directory.path()), 2 * WINDOW_LEN);
        range(&near, name, 0, LEN, Reuse::Often).expect("reads");
        let used: u64 = disk::files(directory.path()).iter().map(|file| file.metadata().expect("stat").len()).sum();
        assert!(used > 0 && used <= 2 * WINDOW_LEN, "{used}");
    }
}
