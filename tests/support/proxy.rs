//! A network that does not work: an HTTP/1.1 proxy in front of a server, which harms the requests that its rules pick.
//!
//! What no rule picks passes through byte for byte, `Host` included, so that signatures hold. Connections are kept open as
//! the two sides want them. No TLS. Tests use it in their own process; `tools/fault-proxy.rs` is the same as a program.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use globset::{Glob, GlobMatcher};
use serde::Deserialize;

/// Longest head of a request or an answer.
const HEAD_MAX: u64 = 1 << 18;
const BUFFER: usize = 1 << 16;

/// What is done to a request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Answered with this status; the server sees nothing of it.
    Status {
        /// The status code.
        code: u16,
        /// More headers, e.g. `Retry-After`.
        #[serde(default)]
        headers: Vec<(String, String)>,
        /// The body.
        #[serde(default)]
        body: String,
    },
    /// Both connections are reset after so many bytes of the request, its head included.
    CutRequest(u64),
    /// Both connections are reset after so many bytes of the answer, its head included.
    CutReply(u64),
    /// The server carries the request out, and the connection is reset before anything of the answer is seen.
    LoseReply,
    /// The answer's body ends after so many bytes, and its head says that this is all.
    Truncate(u64),
    /// One bit of the answer's body is wrong: of this byte, or of the last one if there are fewer.
    Corrupt(u64),
    /// The answer stops after so many bytes, its head included, and goes on so many milliseconds later.
    Stall(u64, u64),
    /// The request is passed on so many milliseconds later. Acts besides the other faults.
    Delay(u64),
    /// `If-Match` and `If-None-Match` of the request are not passed on.
    IgnoreConditions,
    /// The answer's `Date` is this one.
    Date(String),
    /// In the answer's body one text stands for another of the same length: an address in a catalog, say.
    Replace(String, String),
}

/// Which requests a fault is done to: of those whose `METHOD /path` fits the pattern, the first `skip` pass, then each
/// `every`th is harmed with the probability `chance`, at most `times` in all.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    request: String,
    fault: Fault,
    #[serde(default)]
    skip: u64,
    #[serde(default = "one")]
    every: u64,
    #[serde(default = "for_ever")]
    times: u64,
    #[serde(default = "certain")]
    chance: f64,
}

fn one() -> u64 {
    1
}

fn for_ever() -> u64 {
    u64::MAX
}

fn certain() -> f64 {
    1.0
}

impl Rule {
    /// Harms every request that fits `request`, a pattern like `PUT *` or `* */packs/*`.
    pub fn new(request: &str, fault: Fault) -> Self {
        Self { request: request.to_owned(), fault, skip: 0, every: 1, times: u64::MAX, chance: 1.0 }
    }

    /// Lets the first `skip` of them pass.
    pub fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Harms only each `every`th.
    pub fn every(mut self, every: u64) -> Self {
        self.every = every;
        self
    }

    /// Harms at most `times`.
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Harms each with this probability.
    pub fn chance(mut self, chance: f64) -> Self {
        self.chance = chance;
        self
    }
}

/// A rule at work.
#[derive(Debug)]
struct Active {
    rule: Rule,
    pattern: GlobMatcher,
    seen: u64,
    hits: u64,
}

/// How the network is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything passes but what rules harm.
    Up,
    /// Nothing passes, and nobody is told.
    Silent,
    /// Connections are reset, new ones at once.
    Down,
}

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests by method.
    pub requests: BTreeMap<String, u64>,
    /// Requests that a rule harmed; delays do not count.
    pub harmed: u64,
    /// Bytes of bodies that the server was sent.
    pub sent: u64,
    /// Bytes of bodies that clients were sent.
    pub received: u64,
}

impl Counts {
    /// Requests of every method.
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }
}

struct Shared {
    upstream: SocketAddr,
    rules: Mutex<Vec<Active>>,
    /// State of the random numbers that chances are taken from; the same requests in the same order get the same.
    random: Mutex<u64>,
    network: Mutex<Network>,
    counts: Mutex<Counts>,
    ended: AtomicBool,
    connections: Mutex<BTreeMap<u64, TcpStream>>,
    next: AtomicU64,
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// Listens on a free port of loopback, in front of `upstream`, which is `host:port` or a URL that begins so.
    pub fn start(upstream: &str) -> io::Result<Self> {
        Self::listen("127.0.0.1:0", upstream)
    }

    /// Listens on `address`.
    pub fn listen(address: &str, upstream: &str) -> io::Result<Self> {
        let upstream = upstream.strip_prefix("http://").unwrap_or(upstream);
        let upstream = upstream.split('/').next().unwrap_or_default();
        let upstream = upstream.parse().map_err(|_| io::Error::other(format!("`{upstream}` is not ADDRESS:PORT")))?;
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            rules: Mutex::default(),
            random: Mutex::new(0x9e37_79b9_7f4a_7c15),
            network: Mutex::new(Network::Up),
            counts: Mutex::default(),
            ended: AtomicBool::new(false),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(SeqCst) {
                    break;
                }
                let Ok(client) = client else { continue };
                let shared = accepting.clone();
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Ok(Self { shared, address })
    }

    /// `http://host:port` of the proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `url` of the server as it is through the proxy.
    pub fn through(&self, url: &str) -> String {
        url.replacen(&self.shared.upstream.to_string(), &self.address.to_string(), 1)
    }

    /// Adds a rule; of the rules that fit a request the one added first acts, and all that delay.
    pub fn add(&self, rule: Rule) {
        let pattern = Glob::new(&rule.request).expect("a rule's pattern is a glob").compile_matcher();
        self.shared.rules.lock().unwrap().push(Active { rule, pattern, seen: 0, hits: 0 });
    }

    /// Forgets every rule.
    pub fn clear(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// How often each rule has acted, in the order in which they were added.
    pub fn hits(&self) -> Vec<u64> {
        self.shared.rules.lock().unwrap().iter().map(|active| active.hits).collect()
    }

    /// What happened since the start or the last call of this.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut *self.shared.counts.lock().unwrap())
    }

    /// Cuts the network, or mends it.
    pub fn set_network(&self, network: Network) {
        *self.shared.network.lock().unwrap() = network;
        if network == Network::Down {
            self.shared.reset_all();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        self.shared.reset_all();
    }
}

/// One message as it came: its first line, its headers, its bytes.
struct Head {
    raw: Vec<u8>,
    first: String,
}

impl Head {
    /// Reads up to the empty line; `None` if the other side has closed.
    fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut raw = Vec::new();
        let mut limited = from.take(HEAD_MAX);
        while !raw.ends_with(b"\r\n\r\n") {
            if limited.read_until(b'\n', &mut raw)? == 0 {
                return if raw.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        let first = String::from_utf8_lossy(&raw[..raw.iter().position(|b| *b == b'\r').unwrap_or(0)]).into_owned();
        Ok(Some(Self { raw, first }))
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.raw);
        text.trim_end_matches("\r\n").split("\r\n").skip(1).map(str::to_owned).collect()
    }

    fn value(&self, name: &str) -> Option<String> {
        let lines = self.lines();
        let mut pairs = lines.iter().filter_map(|line| line.split_once(':'));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    }

    fn says(&self, name: &str, value: &str) -> bool {
        self.value(name).is_some_and(|given| given.to_ascii_lowercase().contains(value))
    }

    /// Takes a header out, and puts another value in if there is one.
    fn set(&mut self, name: &str, value: Option<&str>) {
        let mut lines = self.lines();
        lines.retain(|line| !line.split_once(':').is_some_and(|(key, _)| key.trim().eq_ignore_ascii_case(name)));
        lines.extend(value.map(|value| format!("{name}: {value}")));
        self.raw = format!("{}\r\n{}\r\n\r\n", self.first, lines.join("\r\n")).into_bytes();
    }

    fn body(&self) -> Body {
        if self.says("transfer-encoding", "chunked") {
            return Body::Chunked;
        }
        self.value("content-length").and_then(|len| len.parse().ok()).map_or(Body::None, Body::Length)
    }
}

/// How long a body is.
#[derive(Clone, Copy)]
enum Body {
    None,
    Length(u64),
    Chunked,
    ToTheEnd,
}

/// Reads a body piece by piece, with the lines that lie between chunks.
struct Pieces<'a> {
    from: &'a mut BufReader<TcpStream>,
    body: Body,
    /// Bytes left of the body or of the chunk with its line end; `None` before a chunk's length is known.
    left: Option<u64>,
}

impl<'a> Pieces<'a> {
    fn new(from: &'a mut BufReader<TcpStream>, body: Body) -> Self {
        let left = match body {
            Body::None => Some(0),
            Body::Length(len) => Some(len),
            Body::Chunked => None,
            Body::ToTheEnd => Some(u64::MAX),
        };
        Self { from, body, left }
    }

    /// The next piece into `out`, and whether it is data of the body; false at the end.
    fn next(&mut self, out: &mut Vec<u8>) -> io::Result<Option<bool>> {
        out.clear();
        let left = match self.left {
            Some(0) if matches!(self.body, Body::Chunked) => {
                // Behind the data of a chunk.
                self.left = None;
                self.from.read_until(b'\n', out)?;
                return Ok(Some(false));
            }
            Some(0) => return Ok(None),
            Some(left) => left,
            None => {
                self.from.by_ref().take(HEAD_MAX).read_until(b'\n', out)?;
                let text = String::from_utf8_lossy(out);
                let len = u64::from_str_radix(text.split(';').next().unwrap_or_default().trim(), 16);
                let len = len.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                self.left = Some(len);
                if len == 0 {
                    // Trailers are not known here; the empty line is.
                    self.from.read_until(b'\n', out)?;
                    self.body = Body::None;
                }
                return Ok(Some(false));
            }
        };
        out.resize(BUFFER.min(left.try_into().unwrap_or(usize::MAX)), 0);
        let count = self.from.read(out)?;
        out.truncate(count);
        if count == 0 {
            return if matches!(self.body, Body::ToTheEnd) {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        self.left = Some(left - count as u64);
        Ok(Some(true))
    }
}

/// Where bytes of one message go, and what happens after so many of them.
struct Wire<'a> {
    shared: &'a Shared,
    to: &'a TcpStream,
    passed: u64,
    cut: Option<u64>,
    stall: Option<(u64, Duration)>,
}

impl Wire<'_> {
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut len = bytes.len() as u64;
            if let Some((at, time)) = self.stall {
                if self.passed >= at {
                    std::thread::sleep(time);
                    self.stall = None;
                } else {
                    len = len.min(at - self.passed);
                }
            }
            if let Some(at) = self.cut {
                if self.passed >= at {
                    return Err(io::Error::other("cut"));
                }
                len = len.min(at - self.passed);
            }
            self.shared.wait_for_the_network()?;
            let (now, later) = bytes.split_at(len as usize);
            self.to.write_all(now)?;
            self.passed += len;
            bytes = later;
        }
        Ok(())
    }
}

impl Shared {
    fn reset_all(&self) {
        for stream in self.connections.lock().unwrap().values() {
            reset(stream);
            // Wakes the thread that reads from it, which then closes it.
            let _ = stream.shutdown(std::net::Shutdown::Read);
        }
    }

    fn remember(&self, stream: &TcpStream) -> io::Result<u64> {
        let id = self.next.fetch_add(1, SeqCst);
        self.connections.lock().unwrap().insert(id, stream.try_clone()?);
        Ok(id)
    }

    fn forget(&self, id: u64) {
        self.connections.lock().unwrap().remove(&id);
    }

    fn wait_for_the_network(&self) -> io::Result<()> {
        loop {
            let network = *self.network.lock().unwrap();
            match network {
                _ if self.ended.load(SeqCst) => return Err(io::ErrorKind::ConnectionReset.into()),
                Network::Up => return Ok(()),
                Network::Down => return Err(io::ErrorKind::ConnectionReset.into()),
                Network::Silent => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn serve(&self, client: TcpStream) {
        let Ok(id) = self.remember(&client) else { return };
        // What one side sent in one piece goes on in one piece at once.
        let _ = client.set_nodelay(true);
        if self.talk(&client).is_err() {
            reset(&client);
        }
        self.forget(id);
    }

    /// All requests of one connection.
    fn talk(&self, client: &TcpStream) -> io::Result<()> {
        let mut from_client = BufReader::with_capacity(BUFFER, client.try_clone()?);
        let mut server: Option<(BufReader<TcpStream>, u64)> = None;
        let mut result = Ok(());
        while let Some(head) = Head::read(&mut from_client).transpose() {
            match head.and_then(|head| self.exchange(head, client, &mut from_client, &mut server)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if let Some((stream, id)) = server {
            if result.is_err() {
                reset(stream.get_ref());
            }
            self.forget(id);
        }
        result
    }

    /// One request and its answer; whether the connection stays open.
    fn exchange(
        &self,
        mut head: Head,
        client: &TcpStream,
        from_client: &mut BufReader<TcpStream>,
        server: &mut Option<(BufReader<TcpStream>, u64)>,
    ) -> io::Result<bool> {
        self.wait_for_the_network()?;
        let mut words = head.first.split(' ');
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
        let (fault, delay) = self.pick(&format!("{method} {path}"));
        *self.counts.lock().unwrap().requests.entry(method.clone()).or_default() += 1;
        let closes = head.says("connection", "close");
        if head.says("expect", "100-continue") {
            head.set("Expect", None);
            let mut client = client;
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let mut piece = Vec::with_capacity(BUFFER);
        if let Some(Fault::Status { code, headers, body }) = &fault {
            let mut pieces = Pieces::new(from_client, head.body());
            while pieces.next(&mut piece)?.is_some() {}
            let mut answer = format!("HTTP/1.1 {code} Injected\r\nContent-Length: {}\r\n", body.len());
            for (name, value) in headers {
                answer += &format!("{name}: {value}\r\n");
            }
            answer += "\r\n";
            answer += if method == "HEAD" { "" } else { body };
            let mut client = client;
            client.write_all(answer.as_bytes())?;
            return Ok(!closes);
        }
        if let Some(Fault::IgnoreConditions) = fault {
            head.set("If-Match", None);
            head.set("If-None-Match", None);
        }

        if server.is_none() {
            let stream = TcpStream::connect(self.upstream)?;
            stream.set_nodelay(true)?;
            let id = self.remember(&stream)?;
            *server = Some((BufReader::with_capacity(BUFFER, stream), id));
        }
        let (from_server, _) = server.as_mut().expect("it was connected just now");
        let to_server = from_server.get_ref().try_clone()?;
        let cut = if let Some(Fault::CutRequest(at)) = fault { Some(at) } else { None };
        let mut wire = Wire { shared: self, to: &to_server, passed: 0, cut, stall: None };
        // A server may answer before it has read everything, and then read no more: its answer counts.
        let mut sent = wire.pass(&head.raw);
        let mut pieces = Pieces::new(from_client, head.body());
        while let Some(data) = pieces.next(&mut piece)? {
            if sent.is_ok() {
                sent = wire.pass(&piece);
                self.counts.lock().unwrap().sent += if data { piece.len() as u64 } else { 0 };
            }
        }
        if let Err(error) = sent
            && (cut.is_some() || !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
        {
            return Err(error);
        }

        let mut answer = loop {
            let answer = Head::read(from_server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if !answer.first.starts_with("HTTP/1.1 1") {
                break answer;
            }
        };
        let status = answer.first.split(' ').nth(1).unwrap_or_default();
        let mut body = match answer.body() {
            _ if method == "HEAD" || matches!(status, "204" | "304") => Body::None,
            Body::None => Body::ToTheEnd,
            body => body,
        };
        let closes = closes || answer.says("connection", "close") || matches!(body, Body::ToTheEnd);
        let mut keep = u64::MAX;
        match (&fault, &mut body) {
            (Some(Fault::Truncate(at)), Body::Length(len)) => {
                keep = (*len).min(*at);
                answer.set("Content-Length", Some(&keep.to_string()));
            }
            (Some(Fault::Truncate(at)), _) => keep = *at,
            (Some(Fault::Date(date)), _) => answer.set("Date", Some(date)),
            _ => {}
        }
        let lost = matches!(fault, Some(Fault::LoseReply));
        let mut wire = Wire { shared: self, to: client, passed: 0, cut: None, stall: None };
        match fault {
            Some(Fault::CutReply(at)) => wire.cut = Some(at),
            Some(Fault::Stall(at, ms)) => wire.stall = Some((at, Duration::from_millis(ms))),
            _ => {}
        }
        if !lost {
            wire.pass(&answer.raw)?;
        }
        if let Some(Fault::Replace(from, to)) = &fault {
            // As a whole: the text may come in two pieces.
            let (mut whole, mut pieces) = (Vec::new(), Pieces::new(from_server, body));
            while pieces.next(&mut piece)?.is_some() {
                whole.extend_from_slice(&piece);
            }
            replace(&mut whole, from.as_bytes(), to.as_bytes());
            wire.pass(&whole)?;
            body = Body::None;
        }
        let end = if let Body::Length(len) = body { len } else { u64::MAX };
        let mut pieces = Pieces::new(from_server, body);
        let mut at = 0;
        while let Some(data) = pieces.next(&mut piece)? {
            if data {
                let len = piece.len() as u64;
                self.counts.lock().unwrap().received += len;
                if let Some(Fault::Corrupt(byte)) = &fault
                    && let Some(byte) = byte.min(&(end - 1)).checked_sub(at).filter(|byte| *byte < len)
                {
                    piece[byte as usize] ^= 1;
                }
                piece.truncate(keep.saturating_sub(at).min(len) as usize);
                at += len;
            }
            if !lost {
                wire.pass(&piece)?;
            }
        }
        if lost {
            return Err(io::Error::other("lost"));
        }
        if closes && let Some((_, id)) = server.take() {
            self.forget(id);
            client.shutdown(std::net::Shutdown::Write)?;
        }
        Ok(!closes)
    }

    /// The fault that a request meets, and how long it waits before.
    fn pick(&self, request: &str) -> (Option<Fault>, Duration) {
        let (mut chosen, mut delay) = (None, Duration::ZERO);
        for active in self.rules.lock().unwrap().iter_mut().filter(|active| active.pattern.is_match(request)) {
            let delays = matches!(active.rule.fault, Fault::Delay(_));
            if chosen.is_some() && !delays {
                continue;
            }
            active.seen += 1;
            let rule = &active.rule;
            let due = active.seen > rule.skip && (active.seen - rule.skip).is_multiple_of(rule.every);
            if !due || active.hits >= rule.times || rule.chance < 1.0 && self.random() >= rule.chance {
                continue;
            }
            active.hits += 1;
            match &rule.fault {
                Fault::Delay(ms) => delay += Duration::from_millis(*ms),
                fault => chosen = Some(fault.clone()),
            }
        }
        self.counts.lock().unwrap().harmed += u64::from(chosen.is_some());
        (chosen, delay)
    }

    /// A number from 0 to 1, by xorshift.
    fn random(&self) -> f64 {
        let mut state = self.random.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Lets a connection end without a word when it is closed: the other side gets an error, not an end.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len(), "a replacement keeps the length");
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            at += to.len();
        } else {
            at += 1;
        }
    }
}
