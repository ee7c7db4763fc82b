//! Keeps the thread that answers on the processor of whoever asks, while the other processor has work of its own.
//!
//! A reader and the thread that answers take turns, so that sharing a processor costs them nothing, and waking each other
//! on the same one takes half as long as across two; above all, the other processor is left to decode what comes next. The
//! kernel moves a reader that is woken to an idle processor if there is one: with more than two there nearly always is,
//! so this is for machines of two.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// So many processors this is for.
const PROCESSORS: u32 = 2;
/// The reader is looked for again after so many requests: it takes as long as one of them.
const REQUESTS: u32 = 64;

/// Where the thread that answers may run, and where it is kept.
pub struct Companion {
    allowed: CpuSet,
    kept: Option<usize>,
    requests: u32,
}

impl Companion {
    /// For a thread that may run where the calling thread may; `None` if that is not on two processors.
    pub fn new() -> Option<Companion> {
        let allowed = sched_getaffinity(None).ok()?;
        (allowed.count() == PROCESSORS).then_some(Companion { allowed, kept: None, requests: 0 })
    }

    /// The thread `client` has asked: the calling thread is to run where that runs. Returns whether it does, as far as is
    /// known; it stays where it is if that cannot be told, as of a process of another pid namespace.
    pub fn follow(&mut self, client: u32) -> bool {
        self.requests += 1;
        if self.kept.is_some() && self.requests < REQUESTS {
            return true;
        }
        self.requests = 0;
        let Some(processor) = processor_of(client) else { return self.kept.is_some() };
        if self.kept == Some(processor) {
            return true;
        }
        if processor < CpuSet::MAX_CPU && self.allowed.is_set(processor) {
            let mut only = CpuSet::new();
            only.set(processor);
            self.kept = sched_setaffinity(None, &only).is_ok().then_some(processor);
        }
        self.kept.is_some()
    }

    /// The calling thread runs wherever it may.
    pub fn leave(&mut self) {
        if self.kept.take().is_some() {
            let _ = sched_setaffinity(None, &self.allowed);
        }
    }
}

/// The processor that a thread ran on last: field 39 of its line, see proc_pid_stat(5).
fn processor_of(thread: u32) -> Option<usize> {
    let line = fs::read_to_string(format!("/proc/{thread}/task/{thread}/stat")).ok()?;
    // The second field is its name in parentheses, which may hold anything.
    line.rsplit(')').next()?.split_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_where_another_runs_and_let_go_again() {
        let before = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|processor| before.is_set(*processor)).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let (done, ended) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(first);
            sched_setaffinity(None, &only).unwrap();
            sender.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            let _ = ended.recv();
        });
        let reader_id = receiver.recv().unwrap();
        let mut companion = Companion { allowed: before, kept: None, requests: 0 };
        assert!(!companion.follow(0) && !companion.follow(u32::MAX), "nobody to follow");
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        assert!(companion.follow(reader_id));
        let kept = sched_getaffinity(None).unwrap();
        assert!(kept.is_set(first) && kept.count() == 1, "{kept:?}");
        assert!((0..2 * REQUESTS).all(|_| companion.follow(0)), "it stays where it is");
        companion.leave();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        drop(done);
        reader.join().unwrap();
    }

    #[test]
    fn a_thread_is_followed_only_where_this_one_may_run() {
        let reader = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let before = sched_getaffinity(None).unwrap();
        let mut companion = Companion { allowed: CpuSet::new(), kept: None, requests: 0 };
        assert!(!companion.follow(reader));
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
