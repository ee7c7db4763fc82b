//! Jobs on their way to the workers, held back a little where the store is far away: what the next of them read is fetched
//! meanwhile, so that nobody waits for a round trip.

use std::collections::VecDeque;

use super::file::Job;
use super::queue::Queue;
use crate::id::BlobId;
use crate::repo::Repository;

/// Bytes of content that are fetched together: a store works for each request, and many batches are small.
const TOGETHER_LEN: u64 = 8 << 20;
/// Jobs that are known before the first of them is queued: what opening their packs takes is on its way meanwhile, so that
/// no pack begins with a round trip that everything waits for.
const AHEAD_FAR: usize = 16;

/// Blobs that a job reads, mostly one after the other in a pack.
pub(super) struct Run {
    first: BlobId,
    last: BlobId,
    /// Bytes of all.
    len: u64,
    /// Bytes that are fetched for it.
    fetched: u64,
}

impl Run {
    /// `len` bytes of blobs from `first` to `last`.
    pub(super) fn new(first: BlobId, last: BlobId, len: u64) -> Self {
        Self { first, last, len, fetched: 0 }
    }
}

/// The jobs that are held back, before the queue.
pub(super) struct Ahead<'c> {
    repo: &'c Repository,
    queue: &'c Queue<Job>,
    held: VecDeque<(Job, Option<Run>)>,
    held_max: usize,
    /// Of these, the first so many, whose blobs are on their way.
    together: usize,
}

impl<'c> Ahead<'c> {
    /// Before `queue`.
    pub(super) fn new(repo: &'c Repository, queue: &'c Queue<Job>) -> Self {
        let held_max = if repo.backend().is_remote() { AHEAD_FAR } else { 0 };
        Self { repo, queue, held: VecDeque::new(), held_max, together: 0 }
    }

    /// Whether it matters what a job reads.
    pub(super) fn holds_back(&self) -> bool {
        self.held_max > 0
    }

    /// Whether every job up to `number` was handed in and is finished.
    pub(super) fn is_finished(&self, number: u64) -> bool {
        self.queue.is_finished(number)
    }

    /// Hands in a job that reads `run`: at once, or behind those that are held back.
    pub(super) fn hand_in(&mut self, job: Job, run: Option<Run>) {
        if let Some(run) = &run {
            self.repo.will_read_blob(&run.last);
        }
        self.held.push_back((job, run));
        while self.held.len() > self.held_max {
            self.queue_oldest();
        }
    }

    /// Hands the first of the jobs that are held back to the workers.
    fn queue_oldest(&mut self) {
        if self.together == 0 {
            self.fetch_ahead();
        }
        let Some((job, run)) = self.held.pop_front() else { return };
        self.together = self.together.saturating_sub(1);
        self.queue.push(job, run.map_or(0, |run| run.fetched));
    }

    /// Lets be fetched what the next jobs read, as many as have it in one place.
    fn fetch_ahead(&mut self) {
        let mut len = 0;
        let fits = |(_, run): &&(Job, Option<Run>)| {
            len += run.as_ref().map_or(0, |run| run.len);
            len <= TOGETHER_LEN
        };
        let count = self.held.iter().take_while(fits).count().max(1);
        for count in (1..=count.min(self.held.len())).rev() {
            let mut runs = self.held.iter_mut().take(count).filter_map(|(_, run)| run.as_mut());
            let Some(first) = runs.next() else { continue };
            let (mut last, mut len) = (first.last, first.len);
            for run in runs {
                (last, len) = (run.last, len + run.len);
            }
            if let Some(fetched) = self.repo.will_read_run(&first.first, &last, len) {
                let runs = self.held.iter_mut().take(count).filter_map(|(_, run)| run.as_mut());
                runs.for_each(|run| run.fetched = fetched / count as u64);
                self.together = count;
                return;
            }
        }
    }

    pub(super) fn queue_all(&mut self) {
        while !self.held.is_empty() {
            self.queue_oldest();
        }
    }

    /// Number that the next job will have.
    pub(super) fn next_number(&self) -> u64 {
        self.queue.next_number() + self.held.len() as u64
    }

    /// Waits until every job up to `number` is finished.
    pub(super) fn wait_for(&mut self, number: u64) {
        while self.queue.next_number() <= number {
            self.queue_oldest();
        }
        self.queue.wait_for(number);
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.queue_all();
    }
}
