//! The faulty network does what its rules say, and nothing else.

use std::io::{BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::generate::noise;
use crate::support::http::{Reply, read_head, request};
use crate::support::proxy::{Fault, Network, Proxy, Rule};

type Headers = Vec<(String, String)>;

/// A server that gives every path the same body, keeps connections open, and remembers the requests it carried out.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Headers>>>,
}

const ADDRESS: &str = "127.0.0.1:12345";

fn body() -> Vec<u8> {
    let mut body = noise(1, 200_000);
    body[70_000..70_000 + ADDRESS.len()].copy_from_slice(ADDRESS.as_bytes());
    body
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let log = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, log) = (stream.unwrap(), log.clone());
                std::thread::spawn(move || {
                    let mut from = BufReader::new(stream.try_clone().unwrap());
                    while let Ok((first, headers)) = read_head(&mut from) {
                        let length = headers.iter().find(|(name, _)| name == "content-length");
                        let mut sent = vec![0; length.map_or(0, |(_, len)| len.parse().unwrap())];
                        if std::io::Read::read_exact(&mut from, &mut sent).is_err() {
                            return;
                        }
                        let chunked = first.contains("/chunked");
                        log.lock().unwrap().push(headers);
                        let body = body();
                        let head = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
                        let sent = if chunked {
                            stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
                            let (one, two) = body.split_at(70_000);
                            let chunk =
                                |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
                            stream.write_all(&[chunk(one), chunk(two), chunk(b"")].concat())
                        } else {
                            let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
                            stream.write_all(&[head.as_bytes(), &body].concat())
                        };
                        if sent.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn set_up(rule: Rule) -> (Server, Proxy) {
    let server = Server::start();
    let proxy = Proxy::start(&server.address.to_string()).unwrap();
    proxy.add(rule);
    (server, proxy)
}

fn get(proxy: &Proxy, path: &str) -> std::io::Result<Reply> {
    request("GET", &format!("{}{path}", proxy.url()), &[("If-None-Match", "*")], b"")
}

#[test]
fn what_no_rule_picks_passes_unharmed() {
    let (server, proxy) = set_up(Rule::new("PUT *", Fault::Status { code: 500, headers: vec![], body: String::new() }));
    for path in ["/plain", "/chunked"] {
        assert!(get(&proxy, path).unwrap().body == body(), "{path}");
    }
    let headers = server.seen.lock().unwrap()[0].clone();
    let host = headers.iter().find(|(name, _)| name == "host").unwrap().1.clone();
    assert_eq!(format!("http://{host}"), proxy.url());
    let large = noise(2, 3_000_000);
    proxy.clear();
    assert_eq!(request("PUT", &proxy.url(), &[], &large).unwrap().status, 200);
    let counts = proxy.take_counts();
    assert_eq!((counts.total(), counts.requests["PUT"], counts.harmed), (3, 1, 0));
    assert_eq!((counts.sent, counts.received), (3_000_000, 600_000));
    assert_eq!(proxy.take_counts().total(), 0);
}

#[test]
fn a_rule_picks_by_pattern_order_and_number() {
    let status = |code| Fault::Status { code, headers: vec![("Retry-After".into(), "7".into())], body: "why".into() };
    let (server, proxy) = set_up(Rule::new("GET */packs/*", status(429)).skip(1).every(2).times(2));
    proxy.add(Rule::new("* *", status(503)).chance(0.5));
    let codes: Vec<u16> = (0..8).map(|_| get(&proxy, "/r/packs/00").unwrap().status).collect();
    assert_eq!((codes[2], codes[4]), (429, 429), "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 429).count(), 2, "{codes:?}");
    assert_eq!(proxy.hits()[0], 2);
    let many = (0..200).filter(|_| get(&proxy, "/other").unwrap().status == 503).count();
    assert!((60..140).contains(&many), "{many} of 200 with a chance of one half");
    let harmed = proxy.take_counts().harmed as usize;
    assert_eq!(server.seen() + harmed, 208);
    proxy.clear();
    proxy.add(Rule::new("*", status(429)));
    let reply = request("PUT", &proxy.url(), &[], &noise(2, 1_000_000)).unwrap();
    assert_eq!((reply.status, reply.header("retry-after"), reply.text().as_str()), (429, Some("7"), "why"));
}

#[test]
fn connections_are_cut_where_the_rule_says() {
    let (server, proxy) = set_up(Rule::new("PUT *", Fault::CutRequest(500_000)));
    let error = request("PUT", &proxy.url(), &[], &noise(2, 1_000_000)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error:?}");
    assert_eq!(server.seen(), 0, "the server has carried out a request that was cut");
    for (fault, carried_out) in [(Fault::CutReply(10), 1), (Fault::CutReply(100_000), 2), (Fault::LoseReply, 3)] {
        proxy.clear();
        proxy.add(Rule::new("*", fault.clone()));
        let error = get(&proxy, "/plain").unwrap_err();
        let kind = error.kind();
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{fault:?}: {error:?}");
        assert_eq!(server.seen(), carried_out, "{fault:?}");
    }
}

#[test]
fn answers_are_harmed_where_the_rule_says() {
    let (server, proxy) = set_up(Rule::new("*", Fault::Truncate(1234)));
    for path in ["/plain", "/chunked"] {
        if path == "/plain" {
            assert!(get(&proxy, path).unwrap().body == body()[..1234]);
        }
        proxy.clear();
        proxy.add(Rule::new("*", Fault::Corrupt(150_000)));
        let mut wrong = get(&proxy, path).unwrap().body;
        assert_eq!(wrong[150_000], body()[150_000] ^ 1);
        wrong[150_000] ^= 1;
        assert!(wrong == body(), "more than one byte is wrong");
    }
    proxy.clear();
    proxy.add(Rule::new("*", Fault::Date("Fri, 02 Jan 1970 00:00:00 GMT".into())));
    assert_eq!(get(&proxy, "/plain").unwrap().header("date"), Some("Fri, 02 Jan 1970 00:00:00 GMT"));
    proxy.clear();
    proxy.add(Rule::new("*", Fault::Replace(ADDRESS.into(), "127.0.0.1:54321".into())));
    let (got, expected) = (get(&proxy, "/plain").unwrap().body, body());
    assert_eq!(&got[70_000..70_000 + ADDRESS.len()], b"127.0.0.1:54321");
    assert!(got[..70_000] == expected[..70_000] && got[70_100..] == expected[70_100..]);
    proxy.clear();
    proxy.add(Rule::new("*", Fault::IgnoreConditions));
    get(&proxy, "/plain").unwrap();
    let seen = server.seen.lock().unwrap();
    let conditional = |n: usize| seen[n].iter().any(|(name, _)| name == "if-none-match");
    assert!(conditional(0) && !conditional(seen.len() - 1));
}

#[test]
fn time_passes_where_the_rule_says() {
    let (_server, proxy) = set_up(Rule::new("*", Fault::Delay(150)));
    proxy.add(Rule::new("*", Fault::Stall(1000, 150)));
    let from = Instant::now();
    assert!(get(&proxy, "/plain").unwrap().body == body());
    assert!(from.elapsed() >= Duration::from_millis(300), "{:?}", from.elapsed());
    assert_eq!(proxy.hits(), [1, 1]);

    proxy.clear();
    proxy.set_network(Network::Silent);
    let url = proxy.url();
    let waiting = std::thread::spawn(move || request("GET", &url, &[], b"").unwrap().body == body());
    std::thread::sleep(Duration::from_millis(200));
    assert!(!waiting.is_finished(), "an answer came through a silent network");
    proxy.set_network(Network::Up);
    assert!(waiting.join().unwrap());
    proxy.set_network(Network::Down);
    assert!(get(&proxy, "/plain").is_err());
    proxy.set_network(Network::Up);
    assert!(get(&proxy, "/plain").is_ok());
}
