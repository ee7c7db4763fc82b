//! Decodes what a reader will want next, on other threads, before it asks.
//!
//! Large files are followed by their own offsets, so that exactly their bytes are decoded wherever they lie. Small files
//! and directories are followed through the packs, where a backup has laid them in the order of its walk. A window
//! grows while a reader goes on and collapses when it jumps. Failures are ignored: the reader meets them itself.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use crate::id::BlobId;
use crate::index::PackNumber;
use crate::pool::{Pool, Urgency};
use crate::repo::Repository;

use super::Wait;
use super::content::{File, Lists};

/// Readers that are followed at once.
const STREAMS_MAX: usize = 64;
/// Bytes one job decodes.
const JOB_LEN: u64 = 512 << 10;
/// Segments one job decodes.
const JOB_SEGMENTS: u64 = 4;

/// Jobs that wait: what readers want in the next tenth of a second, if it is on a disk. They overtake older ones.
const JOBS_MAX: usize = 256;

/// Follows readers. Dropping it waits for the jobs that run.
pub(super) struct ReadAhead {
    repo: Arc<Repository>,
    streams: Mutex<LruCache<Key, Stream>>,
    jobs: Jobs,
}

type Job = Box<dyn FnOnce() + Send>;

/// Does jobs in their order. Beyond so many, the oldest are left undone.
struct Jobs {
    waiting: Arc<Mutex<VecDeque<Job>>>,
    max: usize,
    pool: Pool,
}

impl Jobs {
    fn new(threads: usize, max: usize) -> io::Result<Self> {
        Ok(Self { waiting: Arc::default(), max, pool: Pool::new("ahead", threads)? })
    }

    fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        waiting.push_back(Box::new(job));
        if waiting.len() > self.max {
            // Its turn is that of the next one now.
            waiting.pop_front();
            return;
        }
        drop(waiting);
        let waiting = self.waiting.clone();
        self.pool.submit(Urgency::Normal, move || {
            let job = waiting.lock().expect("no panic while held").pop_front();
            job.into_iter().for_each(|job| job());
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    File(u64),
    Pack(PackNumber),
}

/// How windows grow, in the unit of the stream's positions.
#[derive(Clone, Copy, Debug)]
struct Pace {
    window_min: u64,
    window_max: u64,
    /// How far from the expected position a request may be: the kernel sends several at once, in no order.
    slack: u64,
}

const FILE_PACE: Pace = Pace { window_min: 512 << 10, window_max: 8 << 20, slack: 2 << 20 };
const PACK_PACE: Pace = Pace { window_min: 2, window_max: 16, slack: 1 };

/// One reader: where it is, how far ahead of it is taken care of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stream {
    next: u64,
    until: u64,
    window: u64,
}

impl Stream {
    /// The reader was at `read`; returns what to decode now.
    fn advance(&mut self, read: Range<u64>, pace: Pace) -> Option<Range<u64>> {
        if read.start > self.next.saturating_add(pace.slack) || read.end.saturating_add(pace.slack) < self.next {
            *self = Stream { next: read.end, until: read.end, window: 0 };
            return None;
        }
        if read.end <= self.next {
            return None;
        }
        self.next = read.end;
        self.until = self.until.max(self.next);
        // Half a window is decoded while the reader goes through the other half.
        if self.until - self.next > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).clamp(pace.window_min, pace.window_max);
        let from = std::mem::replace(&mut self.until, self.next + self.window);
        Some(from..self.until)
    }
}

impl ReadAhead {
    /// Decodes blobs of `repo` on `threads` threads.
    pub fn new(repo: Arc<Repository>, threads: usize) -> io::Result<Self> {
        let streams = Mutex::new(LruCache::new(NonZeroUsize::new(STREAMS_MAX).expect("not zero")));
        Ok(Self { repo, streams, jobs: Jobs::new(threads, JOBS_MAX)? })
    }

    fn advance(&self, key: Key, read: Range<u64>, pace: Pace) -> Option<Range<u64>> {
        let mut streams = self.streams.lock().expect("no panic while held");
        streams.get_or_insert_mut(key, Stream::default).advance(read, pace)
    }

    /// `read` of the large file `number` was read.
    pub fn after_file(&self, number: u64, file: &Arc<File>, lists: &Arc<Lists>, read: Range<u64>) {
        let Some(ahead) = self.advance(Key::File(number), read, FILE_PACE) else { return };
        let end = ahead.end.min(file.size);
        for from in (ahead.start..end).step_by(JOB_LEN as usize) {
            let (repo, file, lists) = (self.repo.clone(), file.clone(), lists.clone());
            self.jobs.submit(move || {
                decode_file(&repo, &file, &lists, from..end.min(from + JOB_LEN));
            });
        }
    }

    /// `len` bytes from `offset` of the blob `id`, a directory or small file, were read.
    pub fn after_blob(&self, id: &BlobId, offset: u64, len: usize) {
        let Some(location) = self.repo.locate(id) else { return };
        // A delta has no such offset; all of it is little.
        let (offset, len) = if location.is_delta { (0, location.len) } else { (offset as u32, len as u32) };
        let Ok(segments) = self.repo.segments_at(location.pack, location.offset + offset, len) else { return };
        let read = u64::from(segments.start)..u64::from(segments.end);
        let Some(ahead) = self.advance(Key::Pack(location.pack), read, PACK_PACE) else { return };
        for from in ahead.clone().step_by(JOB_SEGMENTS as usize) {
            let repo = self.repo.clone();
            let end = ahead.end.min(from + JOB_SEGMENTS);
            self.jobs.submit(move || {
                // The pack may end before the window does.
                let _ = (from..end).try_for_each(|segment| decode_segment(&repo, location.pack, segment as u32));
            });
        }
    }
}

fn decode_file(repo: &Repository, file: &File, lists: &Lists, range: Range<u64>) -> Option<()> {
    let mut at = range.start;
    while at < range.end {
        let extent = lists.extent_at(repo, file, at, Wait::Yes).ok()?;
        let end = extent.end.min(range.end);
        if let Some(id) = extent.blob {
            repo.decode_ahead(&id, (at - extent.start) as u32, (end - at) as u32).ok()?;
        }
        at = end;
    }
    Some(())
}

fn decode_segment(repo: &Repository, pack: PackNumber, segment: u32) -> Option<()> {
    if !repo.segment_is_cached(pack, segment) {
        repo.segment(pack, segment).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { window_min: 4, window_max: 16, slack: 1 };

    #[test]
    fn a_window_doubles_while_the_reader_goes_on_and_covers_each_position_once() {
        let mut stream = Stream::default();
        let mut covered = 0;
        for at in 0..100 {
            if let Some(ahead) = stream.advance(at..at + 1, PACE) {
                assert_eq!(ahead.start, covered.max(at + 1));
                covered = ahead.end;
            }
            assert!((at + 2..=at + 18).contains(&covered), "{at} {covered}");
        }
        assert_eq!(stream.window, 16);
    }

    #[test]
    fn of_more_jobs_than_may_wait_the_newest_are_done() {
        let jobs = Jobs::new(1, 3).unwrap();
        let (sender, done) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (started, starts) = std::sync::mpsc::channel();
        jobs.submit(move || {
            started.send(()).unwrap();
            released.recv().unwrap();
        });
        starts.recv().unwrap();
        for n in 0..10 {
            let sender = sender.clone();
            jobs.submit(move || sender.send(n).unwrap());
        }
        drop(sender);
        release.send(()).unwrap();
        assert_eq!(done.iter().collect::<Vec<i32>>(), [7, 8, 9]);
    }

    #[test]
    fn a_jump_collapses_the_window() {
        let mut stream = Stream::default();
        for at in 0..50 {
            let _ = stream.advance(at..at + 1, PACE);
        }
        assert_eq!(stream.advance(1000..1001, PACE), None);
        assert_eq!(stream.advance(5..6, PACE), None);
        assert_eq!(stream.advance(900..901, PACE), None, "random reads decode nothing ahead");
        assert_eq!(stream.advance(901..902, PACE), Some(902..906));
    }

    #[test]
    fn requests_out_of_order_are_one_reader() {
        let mut stream = Stream::default();
        for pair in (0..50).step_by(2) {
            stream.advance(pair + 1..pair + 2, PACE);
            assert_eq!(stream.advance(pair..pair + 1, PACE), None, "taken care of already");
        }
        assert_eq!(stream.window, 16);
    }
}
