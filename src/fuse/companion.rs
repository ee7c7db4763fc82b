//! Keeps the thread that answers on the processor of whoever asks, while the other processor has work of its own.
//!
//! A reader and the thread that answers take turns, so that sharing a processor costs them nothing, and waking each other
//! on the same one takes half as long as across two; above all, the other processor is left to decode what comes next. The
//! kernel moves a reader that is woken to an idle processor if there is one: with more than two there nearly always is,
//! so this is for machines of two.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What the system says of its processors where this is of use.
const ONLINE: &str = "/sys/devices/system/cpu/online";
const TWO: &str = "0-1";
/// The reader is looked for again after so many requests: it takes as long as one of them.
const REQUESTS: u32 = 64;

/// Where the thread that answers is kept.
pub struct Companion {
    kept: Option<Kept>,
    /// Requests until the reader is looked for again.
    left: u32,
}

struct Kept {
    processor: usize,
    /// Where the thread might run before.
    before: CpuSet,
}

impl Companion {
    /// `None` unless this is a machine of two processors.
    pub fn new() -> Option<Companion> {
        let is_of_two = fs::read_to_string(ONLINE).is_ok_and(|online| online.trim() == TWO);
        is_of_two.then_some(Companion { kept: None, left: 0 })
    }

    /// The thread `client` has asked: the calling thread is to run where that runs. Returns whether it does, as far as is
    /// known; false if that cannot be told, as of a process of another pid namespace, or is not allowed.
    pub fn follow(&mut self, client: u32) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return self.kept.is_some();
        }
        self.left = REQUESTS;
        let Some(processor) = processor_of(client).filter(|processor| *processor < CpuSet::MAX_CPU) else {
            return false;
        };
        let before = match &self.kept {
            Some(kept) if kept.processor == processor => return true,
            Some(kept) => kept.before,
            None => match sched_getaffinity(None) {
                Ok(before) => before,
                Err(_) => return false,
            },
        };
        let mut only = CpuSet::new();
        only.set(processor);
        if !before.is_set(processor) || sched_setaffinity(None, &only).is_err() {
            return false;
        }
        self.kept = Some(Kept { processor, before });
        true
    }

    /// The calling thread runs wherever it might before.
    pub fn leave(&mut self) {
        if let Some(kept) = &self.kept
            && sched_setaffinity(None, &kept.before).is_ok()
        {
            self.kept = None;
        }
    }
}

/// The processor that a thread ran on last: field 39 of its line, see proc_pid_stat(5).
fn processor_of(thread: u32) -> Option<usize> {
    let line = fs::read(format!("/proc/{thread}/task/{thread}/stat")).ok()?;
    // The second field is its name in parentheses, which may hold anything.
    let after = line.rsplit(|byte| *byte == b')').next()?;
    str::from_utf8(after).ok()?.split_whitespace().nth(39 - 3)?.parse().ok()
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
        let mut companion = Companion { kept: None, left: 0 };
        assert!(!companion.follow(0), "nobody to follow");
        companion.left = 0;
        assert!(!companion.follow(u32::MAX), "nobody, either");
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        companion.left = 0;
        assert!(companion.follow(reader_id));
        let kept = sched_getaffinity(None).unwrap();
        assert!(kept.is_set(first) && kept.count() == 1, "{kept:?}");
        assert!((0..REQUESTS).all(|_| companion.follow(0)), "the reader is not looked for at each request");
        assert!(!companion.follow(0), "it has gone");
        companion.leave();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        drop(done);
        reader.join().unwrap();
    }

    #[test]
    fn a_thread_is_followed_only_where_this_one_may_run() {
        let mut companion = Companion { kept: None, left: 0 };
        let here = sched_getaffinity(None).unwrap();
        let reader = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        assert!(companion.follow(reader));
        // As if it might run nowhere.
        companion.kept = Some(Kept { processor: usize::MAX, before: CpuSet::new() });
        companion.left = 0;
        assert!(!companion.follow(reader));
        sched_setaffinity(None, &here).unwrap();
    }

    #[test]
    fn whatever_a_thread_is_called_its_processor_is_found() {
        std::thread::spawn(|| {
            rustix::thread::set_name(c") R 1 \xff\xfe").unwrap();
            let id = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            assert!(processor_of(id).is_some());
        })
        .join()
        .unwrap();
    }
}
