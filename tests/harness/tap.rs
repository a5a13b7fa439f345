//! A tap on the line to a broker: it sees every request that a client sends, and may hold, change or lose it at a
//! chosen moment. So a fault of the network happens exactly where a test wants it.
//!
//! ```text
//! client --> Tap --> broker        the client finds the broker by the tap: addresses in the broker's answers are
//!            watch(|request| ...)  replaced by the tap's own
//! ```
//!
//! A frame is a length (4 bytes) and that many bytes. A request begins with its key, its version (2 bytes each), a
//! number that its answer repeats (4 bytes) and the client's id; see <https://kafka.apache.org/protocol>.
//!
//! Owns: its threads, which end with the sockets. Does not own: what a request means ([`crate::protocol`]).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A request as it was sent, without its length.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it asks, by Kafka's numbers (`protocol::key`).
    pub key: i16,
    /// The version of its form.
    pub version: i16,
    /// All of it.
    pub frame: Vec<u8>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It goes on, and so does its answer.
    Forward,
    /// It goes on, and its answer is lost.
    LoseTheAnswer,
    /// It is lost itself.
    Lose,
}

type Hook = Box<dyn FnMut(&Request) -> Then + Send>;

/// A tap, listening on a port of 127.0.0.1.
pub struct Tap {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    broker: SocketAddr,
    port: u16,
    hook: Mutex<Hook>,
    closing: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
}

/// Requests whose answers name brokers: Metadata, FindCoordinator, DescribeCluster.
const NAMING: [i16; 3] = [3, 10, 60];

impl Tap {
    /// A tap on the line to `bootstrap`, through which all passes until [`Tap::watch`] says otherwise.
    pub fn on(bootstrap: &str) -> Tap {
        let broker = bootstrap.parse().expect("the harness's brokers are at 127.0.0.1:PORT");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            broker,
            port: address.port(),
            hook: Mutex::new(Box::new(|_| Then::Forward)),
            closing: AtomicBool::new(false),
            sockets: Mutex::default(),
        });
        let listening = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for client in listener.incoming() {
                    if shared.closing.load(Ordering::Acquire) {
                        break;
                    }
                    if let (Ok(client), Ok(broker)) = (client, TcpStream::connect(shared.broker)) {
                        pass(client, broker, &shared);
                    }
                }
            }
        });
        Tap { address, shared, listening: Some(listening) }
    }

    /// `bootstrap.servers` of who is to be tapped.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// From now on `hook` sees every request before it goes on, one at a time, and says what becomes of it. While it
    /// thinks, all clients of this tap wait.
    pub fn watch(&self, hook: impl FnMut(&Request) -> Then + Send + 'static) {
        *self.shared.hook() = Box::new(hook);
    }
}

impl Shared {
    fn hook(&self) -> MutexGuard<'_, Hook> {
        // A hook that panics has failed its test already; what is left of the line goes on.
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        for socket in self.shared.sockets().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        // Wakes who waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

/// What is known of a connection's requests whose answers are to come, by number.
type Awaited = Arc<Mutex<HashMap<i32, (i16, Then)>>>;

/// Passes frames both ways until one side closes; each way has a thread, which ends with the connection.
fn pass(client: TcpStream, broker: TcpStream, shared: &Arc<Shared>) {
    let awaited = Awaited::default();
    let Ok([from_client, to_client]) = both(client, shared) else { return };
    let Ok([from_broker, to_broker]) = both(broker, shared) else { return };
    std::thread::spawn({
        let (awaited, shared) = (Arc::clone(&awaited), Arc::clone(shared));
        move || {
            let _ = requests(from_client, &to_broker, &awaited, &shared);
            let _ = to_broker.shutdown(Shutdown::Both);
        }
    });
    std::thread::spawn({
        let shared = Arc::clone(shared);
        move || {
            let _ = answers(from_broker, &to_client, &awaited, &shared);
            let _ = to_client.shutdown(Shutdown::Both);
        }
    });
}

fn both(socket: TcpStream, shared: &Shared) -> std::io::Result<[TcpStream; 2]> {
    socket.set_nodelay(true)?;
    let other = socket.try_clone()?;
    shared.sockets().push(socket.try_clone()?);
    Ok([socket, other])
}

fn requests(
    mut from: TcpStream,
    mut to: &TcpStream,
    awaited: &Awaited,
    shared: &Shared,
) -> std::io::Result<()> {
    loop {
        let frame = read_frame(&mut from)?;
        let (Some(key), Some(version), Some(number)) =
            (number16(&frame, 0), number16(&frame, 2), number32(&frame, 4))
        else {
            return Ok(());
        };
        let request = Request { key, version, frame };
        let then = (*shared.hook())(&request);
        if then == Then::Lose {
            continue;
        }
        awaited.lock().unwrap_or_else(PoisonError::into_inner).insert(number, (key, then));
        write_frame(&mut to, &request.frame)?;
    }
}

fn answers(
    mut from: TcpStream,
    mut to: &TcpStream,
    awaited: &Awaited,
    shared: &Shared,
) -> std::io::Result<()> {
    loop {
        let mut frame = read_frame(&mut from)?;
        let number = number32(&frame, 0).unwrap_or_default();
        let asked = awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        match asked {
            Some((_, Then::LoseTheAnswer)) => continue,
            Some((key, _)) if NAMING.contains(&key) => {
                // A host is followed by its port, four bytes, whatever the version.
                let port = u32::from(shared.broker.port()).to_be_bytes();
                for host in [&b"127.0.0.1"[..], b"localhost"] {
                    replace(&mut frame, &[host, &port].concat(), u32::from(shared.port).to_be_bytes());
                }
            }
            _ => {}
        }
        write_frame(&mut to, &frame)?;
    }
}

/// Replaces the last four bytes of every `found`.
fn replace(frame: &mut [u8], found: &[u8], port: [u8; 4]) {
    let places: Vec<usize> = frame
        .windows(found.len())
        .enumerate()
        .filter(|(_, window)| *window == found)
        .map(|(at, _)| at + found.len() - port.len())
        .collect();
    for at in places {
        if let Some(place) = frame.get_mut(at..at + port.len()) {
            place.copy_from_slice(&port);
        }
    }
}

/// Reads one frame, without its length.
pub(crate) fn read_frame(from: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

/// Writes one frame behind its length.
pub(crate) fn write_frame(to: &mut impl Write, frame: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(frame.len()).expect("a frame has less than 4 GiB").to_be_bytes();
    to.write_all(&[&length[..], frame].concat())
}

pub(crate) fn number16(bytes: &[u8], at: usize) -> Option<i16> {
    Some(i16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn number32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
