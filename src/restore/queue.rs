//! Jobs handed from one planner to many workers, few at a time, numbered so that the planner can wait for all up to one.
//!
//! A job has a weight: what is fetched for it while it waits. Jobs that are not finished weigh no more than a fixed sum,
//! but a single one may be as heavy as it likes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};

struct State<J> {
    waiting: VecDeque<(u64, J)>,
    /// Numbers and weights of jobs that are waiting or being worked on.
    unfinished: BTreeMap<u64, u64>,
    /// Sum of these.
    weight: u64,
    /// Number of the last job handed in; the first is 1.
    last: u64,
    closed: bool,
}

/// The queue. Holds at most a fixed number of waiting jobs.
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    waiting_max: usize,
    weight_max: u64,
    arrived: Condvar,
    taken: Condvar,
    finished: Condvar,
}

/// A job that counts as finished when this is dropped.
pub(super) struct Taken<'q, J> {
    queue: &'q Queue<J>,
    number: u64,
}

impl<J> Queue<J> {
    pub(super) fn new(waiting_max: usize, weight_max: u64) -> Self {
        let state = State { waiting: VecDeque::new(), unfinished: BTreeMap::new(), weight: 0, last: 0, closed: false };
        let state = Mutex::new(state);
        Self {
            state,
            waiting_max,
            weight_max,
            arrived: Condvar::new(),
            taken: Condvar::new(),
            finished: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().expect("no panic while held")
    }

    /// Number that the next job will have.
    pub(super) fn next_number(&self) -> u64 {
        self.lock().last + 1
    }

    /// Hands in a job; waits for room.
    pub(super) fn push(&self, job: J, weight: u64) {
        let mut state = self.lock();
        while state.waiting.len() >= self.waiting_max
            || state.weight > 0 && state.weight.saturating_add(weight) > self.weight_max
        {
            state = self.taken.wait(state).expect("no panic while held");
        }
        state.last += 1;
        let number = state.last;
        state.unfinished.insert(number, weight);
        state.weight = state.weight.saturating_add(weight);
        state.waiting.push_back((number, job));
        self.arrived.notify_one();
    }

    /// Takes the oldest job; waits for one; `None` when the queue is closed and empty.
    pub(super) fn take(&self) -> Option<(Taken<'_, J>, J)> {
        let mut state = self.lock();
        loop {
            if let Some((number, job)) = state.waiting.pop_front() {
                self.taken.notify_one();
                return Some((Taken { queue: self, number }, job));
            }
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).expect("no panic while held");
        }
    }

    /// Whether every job up to `number` was handed in and is finished.
    pub(super) fn is_finished(&self, number: u64) -> bool {
        let state = self.lock();
        number <= state.last && state.unfinished.first_key_value().is_none_or(|(first, _)| *first > number)
    }

    /// Waits until every job up to `number`, which must have been handed in, is finished.
    pub(super) fn wait_for(&self, number: u64) {
        let mut state = self.lock();
        while state.unfinished.first_key_value().is_some_and(|(first, _)| *first <= number) {
            state = self.finished.wait(state).expect("no panic while held");
        }
    }

    /// Lets the workers end once nothing is left.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }
}

impl<J> Drop for Taken<'_, J> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        let weight = state.unfinished.remove(&self.number).unwrap_or(0);
        state.weight -= weight;
        drop(state);
        self.queue.finished.notify_all();
        if weight > 0 {
            self.queue.taken.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_number_waits_for_slower_jobs_before_it() {
        let queue = Queue::new(8, 0);
        queue.push("slow", 0);
        queue.push("fast", 0);
        let (slow, job) = queue.take().unwrap();
        assert_eq!(job, "slow");
        drop(queue.take().unwrap().0);
        assert!(!queue.is_finished(2));
        assert!(queue.is_finished(0));
        assert!(!queue.is_finished(3), "not handed in yet");
        drop(slow);
        assert!(queue.is_finished(2));
        queue.wait_for(2);
        queue.close();
        assert!(queue.take().is_none());
    }

    #[test]
    fn jobs_that_are_heavy_together_wait_for_each_other_and_one_that_is_alone_does_not() {
        let queue = Queue::new(8, 10);
        let done = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            let worker = || {
                while let Some((_taken, weight)) = queue.take() {
                    let under_way = queue.lock().weight;
                    assert!(under_way <= 10 || under_way == 20 && weight == 20, "{under_way}");
                    done.fetch_add(weight, std::sync::atomic::Ordering::Relaxed);
                }
            };
            (0..3).for_each(|_| drop(scope.spawn(worker)));
            for weight in [4, 6, 20, 5, 0, 6, 4, 1] {
                queue.push(weight, weight);
            }
            queue.wait_for(8);
            assert_eq!(done.load(std::sync::atomic::Ordering::Relaxed), 46);
            queue.close();
        });
    }

    #[test]
    fn jobs_of_many_workers_are_all_done_once_waited_for() {
        let queue = Queue::new(2, 0);
        let done = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some((_taken, add)) = queue.take() {
                        done.fetch_add(add, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
            (1..=100).for_each(|add| queue.push(add, 0));
            queue.wait_for(100);
            assert_eq!(done.load(std::sync::atomic::Ordering::Relaxed), 5050);
            queue.close();
        });
    }
}
