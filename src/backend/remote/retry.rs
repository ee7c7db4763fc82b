//! When a failed request is sent again, and when one that is stuck is sent a second time.
//!
//! Only failures that may pass are retried, with growing, random pauses, until a deadline; every request that bygone sends
//! may be repeated, because an object's name stands for its bytes. A store that was never reached is given up on soon:
//! its address is wrong more often than it is down.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::flow::Attempt;
use super::{Failure, FailureKind};
use crate::backend::count::Requests;
use crate::progress::Cancel;

/// First pause; each next one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause of our own choosing.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Longest pause that a store may ask for.
const PAUSE_ASKED_MAX: Duration = Duration::from_secs(120);
/// A store that never answered is given up on after this.
const UNREACHED_MAX: Duration = Duration::from_secs(4);
/// A read is stuck when no byte of it moves for this many times as long as others take.
const SLOW_FACTOR: u32 = 8;
/// None is stuck before this, and every one is after that.
const SLOW_MIN: Duration = Duration::from_millis(400);
const SLOW_MAX: Duration = Duration::from_secs(8);

/// Once a run is to end, an attempt of which no byte has moved for this long is given up.
const INTERRUPTED_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether the run is to end.
const INTERRUPTED_CHECK: Duration = Duration::from_millis(100);

/// How long failed requests are repeated when the user does not say.
pub const RETRY_FOR: Duration = Duration::from_secs(5 * 60);

/// Repeats requests.
pub(super) struct Retry {
    requests: Arc<Requests>,
    /// From the first attempt on.
    deadline: Duration,
    /// Whether slow reads are repeated; under a limit they are meant to be slow.
    hedges: bool,
    cancel: Cancel,
    /// Whether the store has ever answered.
    reached: AtomicBool,
    /// Running mean of the time that reads take, in microseconds.
    read_us: AtomicU64,
}

impl Retry {
    pub(super) fn new(requests: Arc<Requests>, deadline: Duration, hedges: bool, cancel: Cancel) -> Self {
        Self { requests, deadline, hedges, cancel, reached: AtomicBool::new(false), read_us: AtomicU64::new(0) }
    }

    /// Runs `attempt` until it succeeds, fails for good, time is up, or the run is to end.
    pub(super) async fn run<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        // An attempt may take long because there is much to send: only what comes after it counts.
        let mut failing_since = None;
        let mut pause = PAUSE_MIN;
        let mut attempts = 1u32;
        loop {
            let failure = match self.unless_interrupted(attempt()).await {
                Ok(value) => {
                    self.reached.store(true, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            let deadline = match failure.kind {
                FailureKind::Transient => self.deadline,
                FailureKind::Unreachable if self.reached.load(Ordering::Relaxed) => self.deadline,
                FailureKind::Unreachable => UNREACHED_MAX.min(self.deadline),
                _ => return Err(failure),
            };
            if failure.kind == FailureKind::Transient {
                self.reached.store(true, Ordering::Relaxed);
            }
            let wait = failure.retry_after.map_or_else(|| jitter(pause), |asked| asked.min(PAUSE_ASKED_MAX));
            let since = *failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() + wait > deadline {
                let times = if attempts == 1 { "1 attempt" } else { &format!("{attempts} attempts") };
                let what = format!("{}; given up after {times}", failure.what);
                return Err(Failure { what, ..failure });
            }
            if tokio::time::timeout(wait, self.cancelled()).await.is_ok() {
                return Err(interrupted());
            }
            pause = (pause * 2).min(PAUSE_MAX);
            attempts += 1;
            self.requests.add_retry();
        }
    }

    /// Runs one attempt. When the run is to end it goes on as long as bytes move: what it has done by then is of use, and
    /// there is not much left of it.
    async fn unless_interrupted<T>(&self, attempt: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let flow = Attempt::new();
        let mut attempt = pin!(flow.run(attempt));
        let mut given_up = pin!(async {
            self.cancelled().await;
            tokio::time::sleep(INTERRUPTED_MAX).await;
            while flow.idle() < INTERRUPTED_MAX {
                tokio::time::sleep(INTERRUPTED_CHECK).await;
            }
        });
        std::future::poll_fn(|context| match attempt.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => given_up.as_mut().poll(context).map(|()| Err(interrupted())),
        })
        .await
    }

    /// Comes back when the run is to end.
    async fn cancelled(&self) {
        while !self.cancel.is_cancelled() {
            tokio::time::sleep(INTERRUPTED_CHECK).await;
        }
    }

    /// Runs the read `attempt`, and once more beside it if no byte moves for long; the first success counts. While bytes
    /// move a second one would only take the link from the first.
    pub(super) async fn hedged<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let start = Instant::now();
        let flow = Attempt::new();
        let mut first = pin!(flow.run(attempt()));
        let outcome = loop {
            if !self.hedges {
                break first.await;
            }
            let left = self.slow_after().saturating_sub(flow.idle());
            if left.is_zero() {
                self.requests.add_hedge();
                break first_success(first, pin!(Attempt::new().run(attempt()))).await;
            }
            if let Ok(outcome) = tokio::time::timeout(left, first.as_mut()).await {
                break outcome;
            }
        };
        if outcome.is_ok() {
            let took = start.elapsed().as_micros() as u64;
            let mean = self.read_us.load(Ordering::Relaxed);
            // Two threads at once lose one sample: nothing hangs on it.
            self.read_us.store(if mean == 0 { took } else { (7 * mean + took) / 8 }, Ordering::Relaxed);
        }
        outcome
    }

    fn slow_after(&self) -> Duration {
        match self.read_us.load(Ordering::Relaxed) {
            0 => SLOW_MAX,
            mean => (SLOW_FACTOR * Duration::from_micros(mean)).clamp(SLOW_MIN, SLOW_MAX),
        }
    }
}

fn interrupted() -> Failure {
    Failure::new(FailureKind::Interrupted, "interrupted")
}

/// Between half of `pause` and all of it, so that many hosts do not come back at one moment.
fn jitter(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// The first of two to succeed; if both fail, the failure of the second to end.
async fn first_success<T, F>(mut first: std::pin::Pin<&mut F>, mut second: std::pin::Pin<&mut F>) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut running = [true, true];
    std::future::poll_fn(|context| {
        let mut failed = None;
        for (future, running) in [first.as_mut(), second.as_mut()].into_iter().zip(&mut running) {
            if *running {
                match future.poll(context) {
                    Poll::Ready(Ok(value)) => return Poll::Ready(Ok(value)),
                    Poll::Ready(Err(failure)) => {
                        *running = false;
                        failed = Some(failure);
                    }
                    Poll::Pending => {}
                }
            }
        }
        match failed {
            Some(failure) if running == [false, false] => Poll::Ready(Err(failure)),
            _ => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
    }

    fn retry(deadline: Duration) -> (Retry, Arc<Requests>) {
        let requests = Arc::new(Requests::default());
        (Retry::new(requests.clone(), deadline, true, Cancel::default()), requests)
    }

    #[test]
    fn what_may_pass_is_repeated_and_counted() {
        let (retry, requests) = retry(Duration::from_secs(60));
        let attempts = Cell::new(0);
        let outcome = block_on(retry.run(async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 3 { Err(Failure::new(FailureKind::Transient, "busy")) } else { Ok(7) }
        }));
        assert_eq!((outcome.expect("succeeds"), requests.retries()), (7, 2));
    }

    #[test]
    fn a_refusal_is_not_repeated() {
        let (retry, requests) = retry(Duration::from_secs(60));
        for kind in [FailureKind::Denied, FailureKind::NotFound, FailureKind::Full, FailureKind::Other] {
            let outcome = block_on(retry.run(async || Err::<(), _>(Failure::new(kind, "no"))));
            assert_eq!(outcome.expect_err("fails").kind, kind);
        }
        assert_eq!(requests.retries(), 0);
    }

    #[test]
    fn a_pause_that_would_end_after_the_deadline_is_not_begun() {
        let (retry, _) = retry(Duration::from_secs(5));
        let start = Instant::now();
        let busy =
            || Failure { retry_after: Some(Duration::from_secs(60)), ..Failure::new(FailureKind::Transient, "busy") };
        let failure = block_on(retry.run(async || Err::<(), _>(busy()))).expect_err("fails");
        assert!(
            start.elapsed() < Duration::from_secs(5) && failure.what.contains("after 1 attempt"),
            "{}",
            failure.what
        );
    }

    #[test]
    fn an_attempt_may_take_longer_than_the_time_for_repeating_it() {
        let (retry, _) = retry(Duration::from_secs(1));
        let attempts = Cell::new(0);
        let result = block_on(retry.run(async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 1 {
                tokio::time::sleep(Duration::from_millis(1100)).await;
                return Err(Failure::new(FailureKind::Transient, "the reply was lost"));
            }
            Ok(())
        }));
        assert!(result.is_ok() && attempts.get() == 2);
    }

    /// How long an operation goes on after it was cancelled a moment after its start.
    fn time_to_end<F: Future<Output = Result<(), Failure>>>(attempt: impl FnMut() -> F) -> Duration {
        let cancel = Cancel::default();
        let retry = Retry::new(Arc::default(), Duration::from_secs(60), true, cancel.clone());
        block_on(async {
            let start = Instant::now();
            let canceller = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                cancel.cancel();
            });
            let failure = retry.run(attempt).await.expect_err("it never succeeds");
            canceller.await.expect("no panic");
            assert_eq!(failure.kind, FailureKind::Interrupted);
            start.elapsed() - Duration::from_millis(300)
        })
    }

    #[test]
    fn what_is_cancelled_is_not_repeated_and_its_pause_ends() {
        let busy =
            || Failure { retry_after: Some(Duration::from_secs(30)), ..Failure::new(FailureKind::Transient, "busy") };
        let took = time_to_end(async || Err(busy()));
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn an_attempt_that_is_stuck_ends_when_it_is_cancelled() {
        let took = time_to_end(async || std::future::pending().await);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn a_slow_read_is_overtaken_by_a_second_one() {
        let (retry, requests) = retry(Duration::from_secs(60));
        let attempts = Cell::new(0);
        let read = async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 2 {
                std::future::pending::<()>().await;
            }
            Ok(attempts.get())
        };
        let (first, second) = block_on(async { (retry.hedged(read).await, retry.hedged(read).await) });
        assert_eq!((first.expect("quick"), second.expect("the third attempt")), (1, 3));
        assert_eq!(requests.hedges(), 1);
    }

    #[test]
    fn when_the_second_read_fails_the_slow_one_still_counts() {
        let (retry, _) = retry(Duration::from_secs(60));
        let attempts = Cell::new(0);
        let read = async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 3 {
                return Err(Failure::new(FailureKind::Transient, "cut"));
            }
            if attempts.get() == 2 {
                tokio::time::sleep(SLOW_MIN * 2).await;
            }
            Ok(())
        };
        block_on(async { (retry.hedged(read).await, retry.hedged(read).await) }).1.expect("the slow one");
    }
}
