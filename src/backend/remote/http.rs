//! The one HTTP client of all remote backends: it verifies certificates, counts, keeps to the limits, and ends what stalls.
//!
//! It knows nothing of what requests mean; every failure says whether it may pass.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{HeaderValue, USER_AGENT};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::Sleep;

use super::flow::Exchange;
use super::limit::{Connector, Limits};
use super::{Failure, FailureKind};
use crate::backend::count::{Request as Sort, Requests};

/// Time for a connection to come about.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A request of which no byte has moved for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(60);
/// An idle connection is kept for this long; servers close theirs after a minute or more.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Bytes of a request's body that are handed to the connection at once.
const PIECE_LEN: usize = 128 << 10;
/// Longest answer that is read where only its text matters.
#[cfg(any(test, feature = "swift"))]
pub(in crate::backend) const TEXT_LEN_MAX: u64 = 64 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of a request.
pub(in crate::backend) type Body = UnsyncBoxBody<Bytes, BoxError>;
/// A request.
pub(in crate::backend) type Request = hyper::Request<Body>;
/// An answer whose body is still to be read.
pub(in crate::backend) type Response = hyper::Response<Answer>;

/// What the user set about connections.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
    /// File with the certificates of authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Trust every certificate.
    pub insecure: bool,
    /// Limits on bytes per second.
    pub limits: Limits,
}

/// What to set when a connection fails, in the words of the backend.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) struct Hints {
    /// Where the address comes from.
    pub(in crate::backend) address: &'static str,
    /// Where the authorities to trust come from.
    pub(in crate::backend) authority: &'static str,
}

/// The client; cheap to clone.
#[derive(Clone)]
pub(in crate::backend) struct Http {
    client: Client<HttpsConnector<Connector>, Pieces>,
    requests: Arc<Requests>,
    hints: Hints,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// A client that counts in `requests`.
    pub(in crate::backend) fn new(
        options: &HttpOptions,
        requests: Arc<Requests>,
        hints: Hints,
    ) -> Result<Http, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_MAX));
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(options, hints)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(tcp, options.limits));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(256 << 10)
            .build(connector);
        Ok(Http { client, requests, hints })
    }

    /// Sends a request and waits for the head of the answer.
    pub(in crate::backend) async fn send(&self, sort: Sort, mut request: Request) -> Result<Response, Failure> {
        self.requests.add(sort);
        request
            .headers_mut()
            .entry(USER_AGENT)
            .or_insert(HeaderValue::from_static(concat!("bygone/", env!("CARGO_PKG_VERSION"))));
        let host = request.uri().authority().map_or_else(String::new, ToString::to_string);
        let exchange = Exchange::begin(&mut request);
        let request = request.map(|body| Pieces { body, rest: Bytes::new(), requests: self.requests.clone() });
        let mut answer = std::pin::pin!(self.client.request(request));
        loop {
            match tokio::time::timeout(STALL_MAX.saturating_sub(exchange.idle()), answer.as_mut()).await {
                Ok(Ok(response)) => return Ok(response.map(|body| Answer { body, exchange, stalls: None })),
                Ok(Err(error)) => return Err(self.failure(&host, &error)),
                Err(_) if exchange.idle() >= STALL_MAX => {
                    let what = format!("{host} did not answer for {} seconds", STALL_MAX.as_secs());
                    return Err(Failure::new(FailureKind::Transient, what));
                }
                Err(_) => {}
            }
        }
    }

    /// Reads the body of an answer of at most `len_max` bytes.
    #[cfg(any(test, feature = "swift"))]
    pub(in crate::backend) async fn read(&self, response: Response, len_max: u64) -> Result<Vec<u8>, Failure> {
        use http_body_util::BodyExt;

        let declared = response.body().size_hint().exact();
        let too_long = || Failure::new(FailureKind::Other, format!("the answer is longer than {len_max} bytes"));
        if declared.is_some_and(|len| len > len_max) {
            return Err(too_long());
        }
        let mut bytes = Vec::with_capacity(declared.unwrap_or(0) as usize);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let what = format!("the answer was cut short: {}", chain(&*error));
                Failure::new(FailureKind::Transient, what)
            })?;
            if let Some(data) = frame.data_ref() {
                if (bytes.len() + data.len()) as u64 > len_max {
                    return Err(too_long());
                }
                self.requests.add_received(data.len() as u64);
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    }

    /// Where requests are counted.
    #[cfg(feature = "s3")]
    pub(in crate::backend) fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    fn failure(&self, host: &str, error: &hyper_util::client::legacy::Error) -> Failure {
        let cause = chain(error);
        if !error.is_connect() {
            return Failure::new(FailureKind::Transient, format!("the connection to {host} broke: {cause}"));
        }
        if cause.contains("certificate") {
            let what = format!(
                "the certificate of {host} is not trusted ({cause}); name its authority with {}",
                self.hints.authority
            );
            return Failure::new(FailureKind::Other, what);
        }
        let what = format!("cannot connect to {host}: {cause}; {}", self.hints.address);
        Failure::new(FailureKind::Unreachable, what)
    }
}

/// How long a store asks to wait; dates are not understood and count as unsaid.
#[cfg(any(test, feature = "swift"))]
pub(in crate::backend) fn retry_after(headers: &hyper::HeaderMap) -> Option<Duration> {
    headers.get(hyper::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// A body that is in memory.
#[cfg(any(test, feature = "swift"))]
pub(in crate::backend) fn body(bytes: Bytes) -> Body {
    use http_body_util::{BodyExt, Full};

    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// The causes of an error, from the outermost on, each said once.
pub(in crate::backend) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// The body of an answer; it ends with an error when no byte moves any more.
pub(in crate::backend) struct Answer {
    body: Incoming,
    exchange: Arc<Exchange>,
    /// When it is to be looked at again.
    stalls: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.stalls = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        loop {
            let stalls = self.stalls.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_MAX)));
            ready!(stalls.as_mut().poll(context));
            let left = STALL_MAX.saturating_sub(self.exchange.idle());
            if left.is_zero() {
                return Poll::Ready(Some(Err(format!("no byte came for {} seconds", STALL_MAX.as_secs()).into())));
            }
            self.stalls = Some(Box::pin(tokio::time::sleep(left)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body in pieces, so that its progress can be seen.
struct Pieces {
    body: Body,
    rest: Bytes,
    requests: Arc<Requests>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        let len = self.rest.len().min(PIECE_LEN);
        let piece = self.rest.split_to(len);
        self.requests.add_sent(len as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

fn tls(options: &HttpOptions, hints: Hints) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?;
    if options.insecure {
        let verifier = Arc::new(TrustAll(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match &options.ca_file {
        Some(file) => add_authorities(&mut roots, file)
            .map_err(|what| format!("{what}; the file comes from {}", hints.authority))?,
        // A system without any is an error only if a certificate has to be verified, and says so then.
        None => {
            let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn add_authorities(roots: &mut RootCertStore, file: &Path) -> Result<(), String> {
    let failed = |why: &dyn std::fmt::Display| format!("cannot read certificates from `{}`: {why}", file.display());
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| failed(&error))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() { Err(failed(&"there are none in it")) } else { Ok(()) }
}

/// Verifies nothing, as the user asked.
#[derive(Debug)]
struct TrustAll(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The bytes of a range, unless they are fewer than the answer's `Content-Range` says: a proxy on the way may cut an answer
/// and make its length fit.
pub(in crate::backend) fn whole_range(bytes: Vec<u8>, content_range: Option<&str>) -> Result<Vec<u8>, Failure> {
    let announced = content_range.and_then(|text| {
        let (first, last) = text.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-')?;
        last.parse::<u64>().ok()?.checked_sub(first.parse::<u64>().ok()?)?.checked_add(1)
    });
    match announced {
        Some(len) if len != bytes.len() as u64 => {
            let what = format!("the answer was cut short: {} bytes of {len}", bytes.len());
            Err(Failure::new(FailureKind::Transient, what))
        }
        _ => Ok(bytes),
    }
}
