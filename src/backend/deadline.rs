//! A store that is given up when it does not answer: a network file system whose server is gone must not hang those who
//! read a mount.
//!
//! What would wait for storage is done by threads of this module, which may hang for as long as the system makes them;
//! whoever asked is told so in time. While one hangs, nobody else waits long, so that a store that is gone costs each
//! reader a moment and not the whole time again.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use super::{Backend, Error, ErrorKind, Listed, ObjectKind, ObjectName, Result};

/// Threads that may hang at once.
const THREADS_MAX: usize = 16;
/// Calls that may wait for a thread; beyond that the store counts as not answering.
const WAITING_MAX: usize = 256;
/// How long others are waited for while a call hangs.
const PATIENCE_LEFT: Duration = Duration::from_secs(1);

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(true) };
}

/// Runs `work` without waiting for storage: a read that would have to fails with [`ErrorKind::WouldWait`] on this thread.
pub fn without_waiting<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            MAY_WAIT.set(self.0);
        }
    }
    let _restore = Restore(MAY_WAIT.replace(false));
    work()
}

/// Whether this thread may wait for storage.
pub fn may_wait() -> bool {
    MAY_WAIT.get()
}

type Work = Box<dyn FnOnce(&dyn Backend) + Send>;

/// A call of the store, and whether whoever made it has gone.
struct Call {
    run: Work,
    given_up: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Call>,
    threads: usize,
    idle: usize,
    /// Calls that were given up and have not ended.
    overdue: usize,
    closed: bool,
}

struct Shared {
    inner: Arc<dyn Backend>,
    state: Mutex<State>,
    wanted: Condvar,
}

/// A backend whose reads fail when they take too long.
pub struct Deadline {
    shared: Arc<Shared>,
    patience: Duration,
}

impl Deadline {
    /// Gives up what `inner` does not answer within `patience`.
    pub fn new(inner: Arc<dyn Backend>, patience: Duration) -> Self {
        Self { shared: Arc::new(Shared { inner, state: Mutex::default(), wanted: Condvar::new() }), patience }
    }

    /// Has a thread do `work`, and waits for it as long as it is worth it.
    fn ask<T: Send + 'static>(
        &self,
        op: &'static str,
        object: impl ToString,
        work: impl FnOnce(&dyn Backend) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |kind, source| Error { op, object: object.to_string(), location: self.location(), kind, source };
        if !may_wait() {
            return Err(failed(ErrorKind::WouldWait, io::ErrorKind::WouldBlock.into()));
        }
        let unanswered = || {
            let seconds = self.patience.as_secs();
            let what = format!("the file system that it is on has not answered for {seconds} s");
            failed(ErrorKind::Unanswered, io::Error::new(io::ErrorKind::TimedOut, what))
        };
        let given_up = Arc::new(AtomicBool::new(false));
        let (send, receive) = mpsc::sync_channel(1);
        // Nobody may be there any more who wants it.
        let run = Box::new(move |inner: &dyn Backend| drop(send.send(work(inner))));
        let patience = {
            let mut state = self.shared.lock();
            if state.waiting.len() >= WAITING_MAX {
                return Err(unanswered());
            }
            state.waiting.push_back(Call { run, given_up: given_up.clone() });
            if state.idle < state.waiting.len() && state.threads < THREADS_MAX {
                let shared = self.shared.clone();
                let thread = std::thread::Builder::new().name("storage".to_owned()).spawn(move || shared.serve());
                state.threads += usize::from(thread.is_ok());
            }
            if state.overdue > 0 { PATIENCE_LEFT.min(self.patience) } else { self.patience }
        };
        self.shared.wanted.notify_one();
        if let Ok(answer) = receive.recv_timeout(patience) {
            return answer;
        }
        let mut state = self.shared.lock();
        // It may have come at the last moment; from here on the thread finds the mark.
        receive.try_recv().unwrap_or_else(|_| {
            given_up.store(true, Ordering::Relaxed);
            state.overdue += 1;
            Err(unanswered())
        })
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // The threads end by themselves, whenever they can.
        self.shared.lock().closed = true;
        self.shared.wanted.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            let Some(call) = state.waiting.pop_front() else {
                if state.closed {
                    return;
                }
                state.idle += 1;
                state = self.wanted.wait(state).expect("no panic while held");
                state.idle -= 1;
                continue;
            };
            let is_wanted = !call.given_up.load(Ordering::Relaxed);
            drop(state);
            if is_wanted {
                (call.run)(&*self.inner);
            }
            state = self.lock();
            state.overdue -= usize::from(call.given_up.load(Ordering::Relaxed));
        }
    }
}

impl Backend for Deadline {
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
        self.shared.inner.put(name, bytes)
    }

    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        self.ask("read", name, move |inner| inner.get(name, len_max))
    }

    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        match without_waiting(|| self.shared.inner.get_range(name, offset, out)) {
            Err(error) if error.kind == ErrorKind::WouldWait => {}
            at_once => return at_once,
        }
        let len = out.len();
        let bytes = self.ask("read", name, move |inner| {
            let mut bytes = vec![0; len];
            inner.get_range(name, offset, &mut bytes).map(|()| bytes)
        })?;
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
        let listed = self.ask("list", kind.directory(), move |inner| {
            let mut listed = Vec::new();
            inner.list(kind, &mut |object| listed.push(object)).map(|()| listed)
        })?;
        listed.into_iter().for_each(found);
        Ok(())
    }

    fn len(&self, name: ObjectName) -> Result<u64> {
        self.ask("stat", name, move |inner| inner.len(name))
    }

    fn delete(&self, name: ObjectName) -> Result<()> {
        self.shared.inner.delete(name)
    }

    fn clean(&self, age_min_s: u64) -> Result<u64> {
        self.shared.inner.clean(age_min_s)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::backend::mem::Memory;
    use crate::id::ObjectId;

    /// Does not answer while the gate is shut, and answers nobody who cannot wait.
    struct Hanging(Memory, Arc<(Mutex<bool>, Condvar)>);

    impl Hanging {
        fn wait(&self) -> Result<()> {
            if !may_wait() {
                let (op, object, location) = ("read", String::new(), String::new());
                let source = io::ErrorKind::WouldBlock.into();
                return Err(Error { op, object, location, kind: ErrorKind::WouldWait, source });
            }
            let mut is_shut = self.1.0.lock().unwrap();
            while *is_shut {
                is_shut = self.1.1.wait(is_shut).unwrap();
            }
            Ok(())
        }
    }

    impl Backend for Hanging {
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
            self.wait()?;
            self.0.get(name, len_max)
        }
        fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
            self.wait()?;
            self.0.get_range(name, offset, out)
        }
        fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
            self.wait()?;
            self.0.list(kind, found)
        }
        fn len(&self, name: ObjectName) -> Result<u64> {
            self.wait()?;
            self.0.len(name)
        }
        fn delete(&self, name: ObjectName) -> Result<()> {
            self.0.delete(name)
        }
        fn clean(&self, age_min_s: u64) -> Result<u64> {
            self.0.clean(age_min_s)
        }
    }

    fn shut(gate: &(Mutex<bool>, Condvar), is_shut: bool) {
        *gate.0.lock().unwrap() = is_shut;
        gate.1.notify_all();
    }

    #[test]
    fn who_asks_a_store_that_hangs_is_told_in_time_and_served_when_it_answers_again() {
        let gate = Arc::<(Mutex<bool>, Condvar)>::default();
        let name = ObjectName::new(ObjectKind::Pack, ObjectId::of(b"bytes"));
        let inner = Hanging(Memory::new(), gate.clone());
        inner.put(name, b"bytes").unwrap();
        let store = Deadline::new(Arc::new(inner), Duration::from_millis(300));
        let read = || {
            let mut out = [0; 3];
            store.get_range(name, 1, &mut out).map(|()| out)
        };
        assert_eq!(&read().unwrap(), b"yte");
        shut(&gate, true);
        // More than there are threads, so that the last ones meet a store with nobody left to ask.
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..3 * THREADS_MAX {
                scope.spawn(|| assert_eq!(read().unwrap_err().kind, ErrorKind::Unanswered));
            }
        });
        assert!(begun.elapsed() >= Duration::from_millis(300), "given up too early");
        assert_eq!(store.list(ObjectKind::Pack, &mut |_| {}).unwrap_err().kind, ErrorKind::Unanswered);
        assert_eq!(store.get(name, 10).unwrap_err().kind, ErrorKind::Unanswered);
        let message = store.len(name).unwrap_err().to_string();
        assert!(message.contains("has not answered") && message.contains(&name.to_string()), "{message}");
        shut(&gate, false);
        while store.shared.lock().overdue > 0 {
            std::thread::yield_now();
        }
        assert_eq!(&read().unwrap(), b"yte");
        assert_eq!(store.len(name).unwrap(), 5);
        assert_eq!(store.get(name, 10).unwrap(), b"bytes");
    }

    #[test]
    fn a_thread_that_may_not_wait_is_told_at_once() {
        let gate = Arc::new((Mutex::new(true), Condvar::new()));
        let store = Deadline::new(Arc::new(Hanging(Memory::new(), gate)), Duration::from_secs(3600));
        let name = ObjectName::config();
        without_waiting(|| {
            assert_eq!(store.get_range(name, 0, &mut [0; 3]).unwrap_err().kind, ErrorKind::WouldWait);
            assert_eq!(store.get(name, 3).unwrap_err().kind, ErrorKind::WouldWait);
            assert_eq!(store.len(name).unwrap_err().kind, ErrorKind::WouldWait);
        });
        assert!(may_wait());
    }
}
