//! Limits on bytes per second, where they are exact: at the connections, all of which share one bucket for each direction.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tower_service::Service;

use super::flow::Clock;

/// Most bytes moved in one go under a limit, so that slow ones flow evenly.
const PIECE_LEN_MAX: usize = 64 << 10;

/// Most bytes per second in each direction; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Towards the store.
    pub upload: Option<u64>,
    /// From the store.
    pub download: Option<u64>,
}

/// A bucket that fills at a steady rate and may go into debt by one piece.
struct Bucket {
    /// Bytes per second.
    rate: f64,
    /// When the debt is paid.
    free_at: Mutex<Instant>,
}

impl Bucket {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, free_at: Mutex::new(Instant::now()) }
    }

    fn piece_len(&self) -> usize {
        ((self.rate / 20.0) as usize).clamp(1, PIECE_LEN_MAX)
    }

    /// Takes `len` bytes out; returns how long whoever moved them must wait before the next ones.
    fn take(&self, len: usize, now: Instant) -> Duration {
        let mut free_at = self.free_at.lock().expect("no panic while held");
        *free_at = (*free_at).max(now) + Duration::from_secs_f64(len as f64 / self.rate);
        free_at.saturating_duration_since(now)
    }
}

/// One direction of a connection.
struct Valve {
    bucket: Option<Arc<Bucket>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Valve {
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(context));
            self.sleep = None;
        }
        Poll::Ready(self.bucket.as_ref().map_or(usize::MAX, |bucket| bucket.piece_len()))
    }

    fn moved(&mut self, len: usize) {
        if let Some(bucket) = &self.bucket {
            let wait = bucket.take(len, Instant::now());
            self.sleep = (!wait.is_zero()).then(|| Box::pin(tokio::time::sleep(wait)));
        }
    }
}

/// Makes connections that keep to the limits.
#[derive(Clone)]
pub(super) struct Connector {
    inner: HttpConnector,
    up: Option<Arc<Bucket>>,
    down: Option<Arc<Bucket>>,
}

impl Connector {
    pub(super) fn new(inner: HttpConnector, limits: Limits) -> Self {
        let bucket = |rate: Option<u64>| rate.map(|rate| Arc::new(Bucket::new(rate)));
        Self { inner, up: bucket(limits.upload), down: bucket(limits.download) }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Limited>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let valve = |bucket: &Option<Arc<Bucket>>| Valve { bucket: bucket.clone(), sleep: None };
        let (up, down) = (valve(&self.up), valve(&self.down));
        Box::pin(async move {
            Ok(TokioIo::new(Limited { stream: connecting.await?.into_inner(), up, down, clock: Clock::new() }))
        })
    }
}

/// A connection that keeps to the limits.
pub(super) struct Limited {
    stream: TcpStream,
    up: Valve,
    down: Valve,
    clock: Clock,
}

impl Connection for Limited {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.clock.clone())
    }
}

impl AsyncRead for Limited {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let len_max = ready!(this.down.poll_open(context));
        if len_max >= out.remaining() {
            let before = out.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, out))?;
            this.down.moved(out.filled().len() - before);
            this.clock.touch();
            return Poll::Ready(Ok(()));
        }
        let mut piece = [0; PIECE_LEN_MAX];
        let mut part = ReadBuf::new(&mut piece[..len_max]);
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
        out.put_slice(part.filled());
        this.down.moved(part.filled().len());
        this.clock.touch();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Limited {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let len_max = ready!(this.up.poll_open(context));
        let len = ready!(Pin::new(&mut this.stream).poll_write(context, &bytes[..bytes.len().min(len_max)]))?;
        this.up.moved(len);
        this.clock.touch();
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.up.bucket.is_none() {
            let this = self.get_mut();
            let len = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, parts))?;
            this.clock.touch();
            return Poll::Ready(Ok(len));
        }
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        self.poll_write(context, first)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_through_its_rate_and_no_more_after_a_pause() {
        let bucket = Bucket::new(1000);
        let start = Instant::now();
        assert_eq!(bucket.take(500, start).as_millis(), 500);
        assert_eq!(bucket.take(500, start).as_millis(), 1000, "several connections share it");
        let later = start + Duration::from_secs(60);
        assert_eq!(bucket.take(100, later).as_millis(), 100, "what was not used is not saved up");
    }
}
