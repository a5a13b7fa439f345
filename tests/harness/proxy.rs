//! A TCP proxy that does to a connection what networks do: cut it, slow it down, slice it, reset it, fall silent.
//! The names are Toxiproxy's (<https://github.com/Shopify/toxiproxy>); the program is not needed.
//!
//! Owns: one listener and its connections. Does not own: what is behind it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::campaign::Chance;

/// How often a thread looks whether the proxy has ended.
const LOOK: Duration = Duration::from_millis(100);

/// What is done to what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toxic {
    /// Nothing.
    Pass,
    /// Connections end, new ones end at once.
    Cut,
    /// Each piece waits up to 300 ms, in each direction.
    Slow,
    /// A few bytes at a time.
    Slice,
    /// Now and then a connection ends in the middle of a piece.
    Reset,
    /// Nothing passes, nothing ends.
    Silent,
}

/// All that do harm.
pub const TOXICS: [Toxic; 5] = [Toxic::Cut, Toxic::Slow, Toxic::Slice, Toxic::Reset, Toxic::Silent];

#[derive(Debug)]
struct State {
    toxic: Toxic,
    upstream: u16,
    ending: bool,
    /// Both ends of every connection.
    open: Vec<TcpStream>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes towards clients.
    answered: AtomicU64,
    /// Connections ended in the middle of a piece.
    reset: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn toxic(&self) -> Toxic {
        self.lock().toxic
    }

    /// Waits for as long, or until something changes.
    fn pause(&self, wait: Duration) {
        drop(self.changed.wait_timeout(self.lock(), wait));
    }

    /// Waits while the proxy is silent.
    fn hold(&self) {
        let held =
            self.changed.wait_while(self.lock(), |state| state.toxic == Toxic::Silent && !state.ending);
        drop(held);
    }
}

/// A proxy; gone with the value, connections included.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy on a port of 127.0.0.1, to port `upstream` there.
    pub fn start(upstream: u16, chance: Chance) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of 127.0.0.1 is free");
        listener.set_nonblocking(true).expect("a listener need not block");
        let port = listener.local_addr().expect("a listener has an address").port();
        let state = State { toxic: Toxic::Pass, upstream, ending: false, open: Vec::new() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            answered: AtomicU64::new(0),
            reset: AtomicU64::new(0),
        });
        let thread = std::thread::Builder::new()
            .name("proxy".into())
            .spawn({
                let shared = shared.clone();
                move || accept(&listener, &shared, &chance)
            })
            .expect("a thread can be started");
        Proxy { port, shared, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that were carried towards clients so far, and connections that were reset meanwhile.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.answered.load(Ordering::Relaxed), self.shared.reset.load(Ordering::Relaxed))
    }

    /// Leads new connections there.
    pub fn lead_to(&self, upstream: u16) {
        self.shared.lock().upstream = upstream;
    }

    /// Does `toxic` from now on.
    pub fn set(&self, toxic: Toxic) {
        let mut state = self.shared.lock();
        state.toxic = toxic;
        if toxic == Toxic::Cut {
            end_all(&mut state);
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ending = true;
        end_all(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn end_all(state: &mut State) {
    for stream in state.open.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, chance: &Chance) {
    let mut pumps = Vec::new();
    loop {
        let accepted = listener.accept();
        let mut state = shared.lock();
        if state.ending {
            break;
        }
        match accepted {
            Ok(_) if state.toxic == Toxic::Cut => {}
            Ok((client, _)) => {
                let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, state.upstream));
                // On refusal the client's end closes too, as it would without a proxy.
                let Ok(server) = TcpStream::connect(upstream) else { continue };
                let _ = client.set_nonblocking(false);
                for (from, to, answers) in [(&client, &server, false), (&server, &client, true)] {
                    let (Ok(from), Ok(to), Ok(kept)) = (from.try_clone(), to.try_clone(), from.try_clone())
                    else {
                        continue;
                    };
                    let _ = from.set_nodelay(true);
                    state.open.push(kept);
                    let (shared, chance) = (shared.clone(), chance.fork());
                    pumps.push(std::thread::spawn(move || {
                        pump(&from, &to, answers, &shared, &chance);
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    }));
                }
            }
            Err(_) => {
                drop(state);
                shared.pause(Duration::from_millis(5));
            }
        }
    }
    for pump in pumps {
        let _ = pump.join();
    }
}

/// Carries bytes one way until either end closes; `answers` is the way to the client.
fn pump(mut from: &TcpStream, mut to: &TcpStream, answers: bool, shared: &Shared, chance: &Chance) {
    let mut buffer = vec![0; 32 << 10];
    let _ = from.set_read_timeout(Some(LOOK));
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.lock().ending {
                    return;
                }
                continue;
            }
            Err(_) => return,
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        shared.hold();
        if answers {
            shared.answered.fetch_add(read as u64, Ordering::Relaxed);
        }
        let written = match shared.toxic() {
            Toxic::Pass | Toxic::Silent => to.write_all(bytes),
            Toxic::Cut => return,
            Toxic::Slow => {
                shared.pause(Duration::from_millis(chance.below(300)));
                to.write_all(bytes)
            }
            Toxic::Slice => bytes.chunks(chance.between(1, 40) as usize).try_for_each(|slice| {
                if chance.one_in(50) {
                    shared.pause(Duration::from_millis(1));
                }
                to.write_all(slice)
            }),
            Toxic::Reset if chance.one_in(10) => {
                shared.reset.fetch_add(1, Ordering::Relaxed);
                let _ = to.write_all(bytes.get(..read / 2).unwrap_or_default());
                return;
            }
            Toxic::Reset => to.write_all(bytes),
        };
        if written.is_err() {
            return;
        }
    }
}
