//! A store that fails on purpose, for tests: a wrapper around any other, driven by a seed, or by what stands beside it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::StreamExt as _;

use crate::clock::Entropy;

use super::{BlobStore, Body, Content, Error, Listed, Part, Put, Store, Tag};

/// How often what goes wrong; chances from 0 (never) to 1 (always).
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A put fails and nothing is stored.
    pub put_fails: f64,
    /// A put stores the blob and then answers with an error, as a time-out does.
    pub put_unknown: f64,
    /// A get fails at once.
    pub get_fails: f64,
    /// A get breaks off with an error in the middle.
    pub get_breaks: f64,
    /// A get ends early without an error, as a truncated file does.
    pub get_truncates: f64,
    /// A get delivers one flipped bit.
    pub get_flips: f64,
    /// Head, list and delete fail.
    pub other_fails: f64,
    /// Every call waits this long first.
    pub delay: Duration,
    /// It says that it is far away, as one on the other side of a network.
    pub far: bool,
}

/// What a store is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// To store a blob.
    Put,
    /// To read one, or a part of it.
    Get,
    /// How long one is.
    Head,
    /// Which there are.
    List,
    /// To delete one.
    Delete,
}

/// Stands beside a store, and says of each call what is to happen: where chance is not enough, since a test has to know which
/// call fails, or waits for which.
pub trait Beside: fmt::Debug + Send + Sync {
    /// Before the store is asked, for as long as that has to wait. An error is the answer then.
    fn before<'a>(&'a self, call: Call, name: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// The store has stored a blob.
    fn stored(&self, name: &str) {
        let _ = name;
    }
}

/// Switches a [`Faulty`] store's faults while it is in use, and counts them. Clones share.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    on: AtomicBool,
    injected: AtomicU64,
}

impl Control {
    /// Switches all faults on or off. They start switched on.
    pub fn set(&self, on: bool) {
        self.0.on.store(on, Ordering::Release);
    }

    /// How many faults were injected.
    pub fn injected(&self) -> u64 {
        self.0.injected.load(Ordering::Acquire)
    }
}

/// The wrapper.
#[derive(Debug)]
pub struct Faulty {
    inner: Store,
    faults: Faults,
    entropy: Entropy,
    control: Control,
    beside: Option<Arc<dyn Beside>>,
}

impl Faulty {
    /// Wraps `store`; the same seed and the same order of calls give the same faults.
    pub fn wrap(store: Store, faults: Faults, entropy: Entropy) -> (Store, Control) {
        Faulty::around(store, faults, entropy, None)
    }

    /// Wraps `store` with no faults of chance, but what `beside` says.
    pub fn beside(store: Store, beside: Arc<dyn Beside>) -> Store {
        Faulty::around(store, Faults::default(), Entropy::seeded(0), Some(beside)).0
    }

    fn around(
        store: Store,
        faults: Faults,
        entropy: Entropy,
        beside: Option<Arc<dyn Beside>>,
    ) -> (Store, Control) {
        let shared = Shared { on: AtomicBool::new(true), injected: AtomicU64::new(0) };
        let control = Control(Arc::new(shared));
        let base = store.url().to_owned();
        let faulty = Faulty { inner: store, faults, entropy, control: control.clone(), beside };
        (Store::new(&base, Arc::new(faulty)), control)
    }

    /// Draws whether a fault of this chance happens now.
    fn happens(&self, chance: f64) -> bool {
        let happens =
            chance > 0.0 && self.control.0.on.load(Ordering::Acquire) && self.entropy.unit() < chance;
        if happens {
            self.control.0.injected.fetch_add(1, Ordering::AcqRel);
        }
        happens
    }

    /// Draws what happens to a get that is under way.
    fn fault(&self) -> Option<Fault> {
        if self.happens(self.faults.get_breaks) {
            Some(Fault::Break)
        } else if self.happens(self.faults.get_truncates) {
            Some(Fault::Truncate)
        } else if self.happens(self.faults.get_flips) {
            Some(Fault::Flip)
        } else {
            None
        }
    }

    async fn begin(&self, call: Call, name: &str) -> Result<(), Error> {
        if !self.faults.delay.is_zero() && self.control.0.on.load(Ordering::Acquire) {
            tokio::time::sleep(self.faults.delay).await;
        }
        match &self.beside {
            Some(beside) => beside.before(call, name).await,
            None => Ok(()),
        }
    }

    fn stored(&self, name: &str) {
        if let Some(beside) = &self.beside {
            beside.stored(name);
        }
    }

    fn fails(&self, doing: &'static str, name: &str) -> Error {
        Error::Unavailable {
            doing,
            url: self.inner.absolute_url(name),
            problem: "an injected failure".to_owned(),
        }
    }

    /// Passes `content` on up to `at` bytes, then does to it what `fault` says.
    fn disturb(&self, name: &str, content: Content, at: u64, fault: Fault) -> Content {
        let error = self.fails("reading", name);
        let bit = (self.entropy.next_u64() % 8) as u32;
        let mut state = Some((content, at, error));
        futures::stream::poll_fn(move |context| {
            use std::task::Poll;
            let Some((content, left, _)) = &mut state else { return Poll::Ready(None) };
            let piece = match content.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(piece))) => piece,
                other => return other,
            };
            if *left >= piece.len() as u64 {
                *left -= piece.len() as u64;
                return Poll::Ready(Some(Ok(piece)));
            }
            let at = *left as usize;
            match fault {
                Fault::Flip => {
                    let mut bytes = piece.to_vec();
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1u8 << bit;
                    }
                    *left = u64::MAX;
                    Poll::Ready(Some(Ok(Bytes::from(bytes))))
                }
                Fault::Truncate => {
                    state = None;
                    Poll::Ready(Some(Ok(piece.slice(..at))))
                }
                Fault::Break => {
                    let error = state.take().map(|(_, _, error)| error);
                    Poll::Ready(error.map(Err))
                }
            }
        })
        .boxed()
    }
}

#[derive(Clone, Copy)]
enum Fault {
    Break,
    Truncate,
    Flip,
}

impl BlobStore for Faulty {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.begin(Call::Put, name).await?;
            if self.happens(self.faults.put_fails) {
                return Err(self.fails("storing", name));
            }
            let unknown = self.happens(self.faults.put_unknown);
            self.inner.put(name, body).await?;
            self.stored(name);
            if unknown { Err(self.fails("storing", name)) } else { Ok(()) }
        })
    }

    fn put_new<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<Put, Error>> {
        Box::pin(async move {
            self.begin(Call::Put, name).await?;
            if self.happens(self.faults.put_fails) {
                return Err(self.fails("storing", name));
            }
            let unknown = self.happens(self.faults.put_unknown);
            let put = self.inner.put_new(name, body).await?;
            self.stored(name);
            if unknown { Err(self.fails("storing", name)) } else { Ok(put) }
        })
    }

    fn get_range<'a>(
        &'a self,
        name: &'a str,
        range: Range<u64>,
        same: Option<&'a Tag>,
    ) -> BoxFuture<'a, Result<Part, Error>> {
        Box::pin(async move {
            self.begin(Call::Get, name).await?;
            if self.happens(self.faults.get_fails) {
                return Err(self.fails("reading", name));
            }
            let fault = self.fault();
            let mut part = self.inner.get_range(name, range.clone(), same).await?;
            if let Some(fault) = fault {
                let bytes = range.end.min(part.total).saturating_sub(range.start);
                let at = self.entropy.next_u64().checked_rem(bytes).unwrap_or(0);
                part.content = self.disturb(name, part.content, at, fault);
            }
            Ok(part)
        })
    }

    fn is_far(&self) -> bool {
        self.faults.far || self.inner.is_far()
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, Error>> {
        Box::pin(async move {
            self.begin(Call::Get, name).await?;
            if self.happens(self.faults.get_fails) {
                return Err(self.fails("reading", name));
            }
            let Some(fault) = self.fault() else {
                return self.inner.get(name).await;
            };
            let bytes = self.inner.head(name).await?.unwrap_or(0);
            let at = self.entropy.next_u64().checked_rem(bytes).unwrap_or(0);
            Ok(self.disturb(name, self.inner.get(name).await?, at, fault))
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async move {
            self.begin(Call::Head, name).await?;
            if self.happens(self.faults.other_fails) {
                return Err(self.fails("reading", name));
            }
            self.inner.head(name).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, Error>> {
        Box::pin(async move {
            self.begin(Call::List, prefix).await?;
            if self.happens(self.faults.other_fails) {
                return Err(self.fails("listing", prefix));
            }
            self.inner.list(prefix).await
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.begin(Call::Delete, name).await?;
            if self.happens(self.faults.other_fails) {
                return Err(self.fails("deleting", name));
            }
            self.inner.delete(name).await
        })
    }
}
