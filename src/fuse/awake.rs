//! Keeps idle processors from sleeping while requests come one after the other: waking one takes longer than most answers.
//!
//! The kernel's own means (Linux, "PM Quality of Service Interface"): who holds /dev/cpu_dma_latency open says how long
//! a processor may take to wake up. Only root may; the wish ends with the process, however that ends.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::pool::cores;

const DEVICE: &str = "/dev/cpu_dma_latency";
/// How often to look whether requests still come quickly.
const LOOK: Duration = Duration::from_millis(10);
/// Requests in that time that are worth it: their wake-ups, of some 20 us each, are a tenth of the time.
const REQUESTS_MIN: u64 = 50;
/// Up to so many processors may be kept from sleeping at all; of more, most have no part in it.
const CORES_MAX: usize = 8;
/// Microseconds that the others may take: the lightest sleep of most processors.
const LATENCY_US: i32 = 2;

/// Counts requests, and holds the wish while there are many.
pub struct Awake {
    shared: Arc<Shared>,
    wake: SyncSender<()>,
}

#[derive(Default)]
struct Shared {
    requests: AtomicU64,
    /// Whether the wish is being held, or can never be.
    held: AtomicBool,
}

/// When the last [`REQUESTS_MIN`] requests began; for the one thread that counts them.
#[derive(Default)]
pub struct Pace {
    from: Option<Instant>,
}

impl Awake {
    /// Starts the thread that holds the wish; none if it could not be started.
    pub fn new() -> Option<Awake> {
        let shared = Arc::new(Shared::default());
        let (wake, woken) = sync_channel(1);
        let kept = shared.clone();
        std::thread::Builder::new().name("awake".into()).spawn(move || keep(&kept, &woken)).ok()?;
        Some(Awake { shared, wake })
    }

    /// Counts one request; costs no system call unless the pace rises.
    pub fn count(&self, pace: &mut Pace) {
        let count = self.shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if !count.is_multiple_of(REQUESTS_MIN) || self.shared.held.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        if pace.from.replace(now).is_some_and(|from| now - from < LOOK) {
            // If it is full, the thread is about to look.
            let _ = self.wake.try_send(());
        }
    }
}

/// Holds the wish while requests come quickly, and sleeps until they do again.
fn keep(shared: &Shared, woken: &Receiver<()>) {
    let latency_us = if cores() <= CORES_MAX { 0 } else { LATENCY_US };
    while woken.recv().is_ok() {
        shared.held.store(true, Ordering::Relaxed);
        let Ok(mut device) = File::options().write(true).open(DEVICE) else { return };
        if device.write_all(&latency_us.to_ne_bytes()).is_err() {
            return;
        }
        let mut seen = shared.requests.load(Ordering::Relaxed);
        loop {
            std::thread::sleep(LOOK);
            let now = shared.requests.load(Ordering::Relaxed);
            if now - seen < REQUESTS_MIN {
                break;
            }
            seen = now;
        }
        drop(device);
        shared.held.store(false, Ordering::Relaxed);
    }
}
