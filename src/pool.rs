//! Threads that compute: as many as there are cores, fed closures, urgent ones first.
//!
//! The queue itself is not bounded: whoever submits bounds, in bytes, what it has in flight.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    urgent: VecDeque<Job>,
    normal: VecDeque<Job>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// A set of computing threads; dropping it waits for them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// How soon a job should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Before every normal job: it finishes work in flight.
    Urgent,
    /// In order: it begins new work.
    Normal,
}

/// Number of cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Pool {
    /// A pool of `count` threads whose names start with `name`.
    pub fn new(name: &str, count: usize) -> io::Result<Pool> {
        let shared = Arc::new(Shared { queue: Mutex::new(Queue::default()), filled: Condvar::new() });
        let mut pool = Pool { shared: shared.clone(), threads: Vec::new() };
        for index in 0..count.max(1) {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || shared.work())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Queues a job.
    pub fn submit(&self, urgency: Urgency, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock().expect("jobs run outside the lock");
        match urgency {
            Urgency::Urgent => queue.urgent.push_back(Box::new(job)),
            Urgency::Normal => queue.normal.push_back(Box::new(job)),
        }
        drop(queue);
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let mut queue = self.queue.lock().expect("jobs run outside the lock");
            let job = loop {
                if let Some(job) = queue.urgent.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                if let Some(job) = queue.normal.pop_front() {
                    break job;
                }
                queue = self.filled.wait(queue).expect("jobs run outside the lock");
            };
            drop(queue);
            // A job that panics drops its channels, which its submitter notices; the thread lives on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.queue.lock().expect("jobs run outside the lock");
            queue.closed = true;
            queue.normal.clear();
        }
        self.shared.filled.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What `work` makes of each of `items`, in their order; done by up to `count` threads, for work that waits.
pub fn map<T: Sync, R: Send>(count: usize, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < 2 || count < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let run = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else { return done };
                done.push((at, work(item)));
            }
        };
        let threads: Vec<_> = (0..count.min(items.len())).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("the work does not panic")).collect()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_their_items() {
        let items: Vec<u64> = (0..100).collect();
        let double = |item: &u64| {
            std::thread::sleep(std::time::Duration::from_micros(100 - item));
            2 * item
        };
        assert_eq!(map(8, &items, double), items.iter().map(|item| 2 * item).collect::<Vec<_>>());
        assert_eq!(map(8, &[1], |item| item + 1), [2]);
    }
}
