//! Whether bytes move: what tells a slow request from one that is stuck.
//!
//! A connection knows when a byte last went through it, an exchange which connection it is on, and an attempt which
//! exchanges it has open. Bytes that our own limits hold back go on moving, so nothing here has to know of limits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use hyper::http::Extensions;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};

/// When a byte last moved. Clones are the same clock.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last_ms: Arc::default() }
    }

    pub(super) fn touch(&self) {
        self.last_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn idle(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}

/// One request and its answer.
pub(super) struct Exchange {
    begun: Instant,
    connection: CaptureConnection,
    attempt: Option<Attempt>,
}

impl Exchange {
    /// Begins one, as part of the attempt that is running.
    pub(super) fn begin<B>(request: &mut hyper::Request<B>) -> Arc<Exchange> {
        let (begun, connection) = (Instant::now(), capture_connection(request));
        let attempt = ATTEMPT.try_with(Clone::clone).ok();
        let exchange = Arc::new(Exchange { begun, connection, attempt });
        if let Some(attempt) = &exchange.attempt {
            let mut exchanges = attempt.exchanges.lock().expect("no panic while held");
            exchanges.retain(|exchange| exchange.strong_count() > 0);
            exchanges.push(Arc::downgrade(&exchange));
        }
        exchange
    }

    /// How long no byte of it has moved.
    pub(super) fn idle(&self) -> Duration {
        let mut extras = Extensions::new();
        if let Some(connected) = &*self.connection.connection_metadata() {
            connected.get_extras(&mut extras);
        }
        let waiting = self.begun.elapsed();
        extras.get::<Clock>().map_or(waiting, |clock| clock.idle().min(waiting))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Between two exchanges an attempt is not stuck.
        if let Some(attempt) = &self.attempt {
            attempt.clock.touch();
        }
    }
}

tokio::task_local! {
    static ATTEMPT: Attempt;
}

/// One attempt at an operation: the exchanges that it has open.
#[derive(Clone)]
pub(super) struct Attempt {
    /// When it began, or when an exchange last ended.
    clock: Clock,
    exchanges: Arc<Mutex<Vec<Weak<Exchange>>>>,
}

impl Attempt {
    pub(super) fn new() -> Self {
        Self { clock: Clock::new(), exchanges: Arc::default() }
    }

    /// Runs `work` as this attempt.
    pub(super) fn run<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        ATTEMPT.scope(self.clone(), work)
    }

    /// How long no byte of any of its exchanges has moved.
    pub(super) fn idle(&self) -> Duration {
        let exchanges = self.exchanges.lock().expect("no panic while held");
        let idle = exchanges.iter().filter_map(Weak::upgrade).map(|exchange| exchange.idle());
        idle.fold(self.clock.idle(), Duration::min)
    }
}

/// `work`, as part of the attempt that is running also where another task runs it.
#[cfg(feature = "s3")]
pub(in crate::backend) fn in_this_attempt<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let attempt = ATTEMPT.try_with(Clone::clone).unwrap_or_else(|_| Attempt::new());
    ATTEMPT.scope(attempt, work)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use bytes::Bytes;

    use super::*;
    use crate::backend::count::{Request as Sort, Requests};
    use crate::backend::remote::http::{Hints, Http, HttpOptions, body};
    use crate::backend::remote::retry::Retry;
    use crate::backend::remote::{Failure, Limits, runtime};
    use crate::progress::Cancel;

    /// The address of a server that treats each connection so.
    fn server(serve: fn(TcpStream)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream));
            }
        });
        url
    }

    fn http(upload: Option<u64>, requests: &Arc<Requests>) -> Http {
        let limits = Limits { upload, download: None };
        let options = HttpOptions { limits, ..HttpOptions::default() };
        Http::new(&options, requests.clone(), Hints { address: "", authority: "" }).expect("a client")
    }

    async fn exchange(http: &Http, url: &str, sent: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let request = hyper::Request::builder().uri(url).body(body(Bytes::from(sent))).expect("a request");
        let answer = http.send(Sort::Other, request).await?;
        http.read(answer, 1 << 20).await
    }

    fn read_request(stream: &mut TcpStream, len: usize) {
        let mut seen = Vec::new();
        let mut piece = [0; 1024];
        while seen.windows(4).position(|four| four == b"\r\n\r\n").is_none_or(|end| seen.len() < end + 4 + len) {
            let read = stream.read(&mut piece).expect("a request");
            seen.extend_from_slice(&piece[..read]);
        }
    }

    #[test]
    fn bytes_that_a_limit_holds_back_move() {
        const LEN: usize = 24 << 10;
        let url = server(|mut stream| {
            read_request(&mut stream, LEN);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("an answer");
        });
        let attempt = Attempt::new();
        let (sends, http) = (attempt.clone(), http(Some(8 << 10), &Arc::default()));
        let sending = runtime().spawn(async move { sends.run(exchange(&http, &url, vec![7; LEN])).await });
        let (start, mut idle_max) = (Instant::now(), Duration::ZERO);
        while !sending.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
            idle_max = idle_max.max(attempt.idle());
        }
        runtime().block_on(sending).expect("no panic").expect("an answer");
        assert!(start.elapsed() > Duration::from_secs(2), "there is no limit");
        assert!(idle_max < Duration::from_secs(1), "{idle_max:?}");
    }

    #[test]
    fn a_read_is_sent_again_when_it_is_stuck_and_not_while_bytes_come() {
        fn answer(stream: &mut TcpStream, pause: Duration) {
            read_request(stream, 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").expect("a head");
            for _ in 0..10 {
                std::thread::sleep(pause);
                // Of two that were sent the slower one is not heard to its end.
                let _ = stream.write_all(b"x");
            }
        }
        let url = server(|mut stream| {
            for pause in [1, 100, 3000] {
                answer(&mut stream, Duration::from_millis(pause));
            }
        });
        let requests = Arc::<Requests>::default();
        let retry = Retry::new(requests.clone(), Duration::ZERO, true, Cancel::default());
        let http = http(None, &requests);
        let read = || runtime().block_on(retry.hedged(|| exchange(&http, &url, Vec::new()))).expect("an answer");
        // The first one says what is usual; the second takes a second, and the third is stuck for that long.
        for hedges in [0, 0, 1] {
            assert_eq!((read(), requests.hedges()), (b"xxxxxxxxxx".to_vec(), hedges));
        }
    }
}
