//! The network that does not work, as a program for measurements: `fault-proxy UPSTREAM [RULE...]`.
//!
//! Prints its URL. A rule is JSON: `{"request": "* *", "fault": {"delay": 30}}` adds 30 ms to every request; see
//! `tests/support/proxy.rs` for the others. Each line of standard input prints what was counted since the last one, as
//! JSON; the end of standard input ends the program.

// What only tests use of it is not used here.
#[allow(dead_code, clippy::unwrap_used)]
#[path = "../tests/support/proxy.rs"]
mod proxy;

use std::io::BufRead;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let upstream = args.next().ok_or("usage: fault-proxy HOST:PORT [RULE...]")?;
    let proxy = proxy::Proxy::start(&upstream)?;
    for rule in args {
        proxy.add(serde_json::from_str(&rule).map_err(|error| format!("{rule}: {error}"))?);
    }
    println!("{}", proxy.url());
    for line in std::io::stdin().lock().lines() {
        line?;
        let counts = proxy.take_counts();
        println!(
            "{}",
            serde_json::json!({
                "requests": counts.requests, "harmed": counts.harmed, "sent": counts.sent, "received": counts.received
            })
        );
    }
    Ok(())
}
