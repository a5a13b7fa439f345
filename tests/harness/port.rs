//! Ports for processes that are told where to listen, and come back there after a restart.

use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use stillwell::clock::Entropy;

/// First of the ports that are given here, and how many: below those that Linux gives by itself (32768 to 60999), to
/// connections and to who asks for port 0. One of those may be somebody else's by the time that its process listens,
/// or while that is being restarted.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// A port of 127.0.0.1 that nobody listens on, not given before by this process; another begins elsewhere by chance.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU32> =
        LazyLock::new(|| AtomicU32::new((Entropy::system().next_u64() % u64::from(COUNT)) as u32));
    for _ in 0..COUNT {
        let port = (FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {FIRST} to {} is free", FIRST + COUNT);
}
