//! The reading end of a consumer: what is handed to whoever reads or serves the dataset.
//!
//! Owns: the way to the newest view, and whether it may be served. Does not own: the tasks that bring it (`consumer`).

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::earlier::Earlier;
use super::follow::Readable;
use super::listen::{Report, Told};
use super::pin::PinStatus;
use super::recent::Recent;
use super::tail::{self, TailStatus};
use super::{Options, Status, nothing};
use crate::error::{Error, ErrorKind, Result};
use crate::version::Version;
use crate::view::View;

/// Reads one dataset from anywhere in the process. Cheap to clone. It outlives the consumer: the last view stays.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dataset: String,
    recent: Recent,
    listeners: Vec<Report>,
    empty: View,
    readable: watch::Receiver<Readable>,
    tail: watch::Receiver<TailStatus>,
    pin: watch::Receiver<PinStatus>,
    ready_when_any: bool,
    serve_stale: bool,
    /// `None`: the view stands still.
    earlier: Option<Earlier>,
}

impl Reader {
    pub(super) fn new(
        options: &Options,
        (recent, listeners): (Recent, Vec<Report>),
        readable: watch::Receiver<Readable>,
        tail: watch::Receiver<TailStatus>,
        pin: watch::Receiver<PinStatus>,
        earlier: Earlier,
    ) -> Reader {
        Reader(Arc::new(Inner {
            dataset: options.dataset.clone(),
            recent,
            listeners,
            empty: nothing(&options.dataset),
            readable,
            tail,
            pin,
            ready_when_any: options.ready_when_any,
            serve_stale: options.serve_stale,
            earlier: Some(earlier),
        }))
    }

    /// A reader of one view that stands still: for who serves a version without following the dataset.
    pub fn of(view: View) -> Reader {
        let readable = Readable {
            version: view.version(),
            announced: view.version(),
            announced_at_ms: view.announced_at_ms(),
            caught_up: view.caught_up(),
            stale: view.is_stale(),
            newest: true,
            ..Readable::default()
        };
        let tail = tail::good();
        let dataset = view.identity().dataset.to_string();
        let slot = Arc::new(ArcSwapOption::new((view.version() > Version(0)).then(|| Arc::new(view))));
        Reader(Arc::new(Inner {
            empty: nothing(&dataset),
            dataset,
            recent: Recent::new(slot, None, false, CancellationToken::new()),
            listeners: Vec::new(),
            readable: watch::channel(readable).1,
            tail: watch::channel(tail).1,
            pin: watch::channel(PinStatus::default()).1,
            ready_when_any: false,
            serve_stale: false,
            earlier: None,
        }))
    }

    /// A reader of what a test publishes.
    #[cfg(test)]
    pub(crate) fn over(recent: Recent, view: View) -> Reader {
        let Reader(inner) = Reader::of(view);
        let mut inner = Arc::into_inner(inner).expect("nobody else has it");
        inner.recent = recent;
        Reader(Arc::new(inner))
    }

    /// The same, which also finds versions before the newest.
    #[cfg(test)]
    pub(super) fn finding(self, earlier: Earlier) -> Reader {
        let Reader(inner) = self;
        let mut inner = Arc::into_inner(inner).expect("nobody else has it");
        inner.earlier = Some(earlier);
        Reader(Arc::new(inner))
    }

    /// Name of the dataset.
    pub fn dataset(&self) -> &str {
        &self.0.dataset
    }

    /// The newest readable view, borrowed out of its slot: neither a lock nor a count that other readers share. For
    /// one read; what is held longer is better taken by [`Reader::view`]. `None`: no version is readable yet.
    pub fn load(&self) -> Guard<Option<Arc<View>>> {
        self.0.recent.slot().load()
    }

    /// The newest readable version: immutable, never locks, stays readable as long as it is held. Before the first
    /// one is readable, version 0, which is empty.
    pub fn view(&self) -> View {
        self.load().as_deref().cloned().unwrap_or_else(|| self.0.empty.clone())
    }

    /// The view of a version: the newest, or one before it back to the newest snapshot, which is opened out of the cache
    /// (a pass over its deltas; a few stay open for a minute). One that a caller holds already is found by nobody else.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] with the versions that can be had; what opening it says.
    pub async fn at(&self, version: Version) -> Result<View> {
        let newest = self.view();
        if newest.version() == version && version > Version(0) {
            return Ok(newest);
        }
        let earlier = match &self.0.earlier {
            Some(earlier) => earlier.at(version).await.map_err(Error::from)?,
            None => None,
        };
        earlier.ok_or_else(|| self.not_held(version, newest.version()))
    }

    #[cold]
    fn not_held(&self, version: Version, newest: Version) -> Error {
        let announced = self.0.readable.borrow().announced;
        let oldest = self.0.earlier.as_ref().map_or(newest, Earlier::oldest);
        let why = match version {
            Version(0) => "versions count from 1".to_owned(),
            version if version < oldest => format!("{oldest} is the oldest that is"),
            version if version < newest => "it has just been replaced".to_owned(),
            version if version <= announced => "it is announced, and not readable here yet".to_owned(),
            _ => format!("the newest announced is {announced}"),
        };
        let dataset = &self.0.dataset;
        let what = format!("version {version} of dataset {dataset} is not held here, {newest} is: {why}");
        Error::new(ErrorKind::Rejected, what)
    }

    /// Follows what is readable.
    pub fn watch(&self) -> watch::Receiver<Readable> {
        self.0.readable.clone()
    }

    /// What the consumer is doing.
    pub fn status(&self) -> Status {
        Status {
            readable: self.0.readable.borrow().clone(),
            tail: self.0.tail.borrow().clone(),
            pin: self.0.pin.borrow().clone(),
        }
    }

    /// The newest versions one by one, for who acts on each.
    pub fn recent(&self) -> &Recent {
        &self.0.recent
    }

    /// How the listeners are doing.
    pub fn listeners(&self) -> Vec<Told> {
        self.0.listeners.iter().map(Report::told).collect()
    }

    /// How one of them is doing, and the way to let it on where it is held.
    pub fn listener(&self, name: &str) -> Option<&Report> {
        self.0.listeners.iter().find(|report| report.name() == name)
    }

    /// Waits until a version is readable that may be served: a caught-up one confirmed by the tail, or what the
    /// options `ready_when_any` and `serve_stale` allow.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if the consumer is shut down meanwhile.
    pub async fn ready(&self) -> Result<()> {
        let mut readable = self.watch();
        let ready = readable.wait_for(|readable| self.withheld(readable).is_none()).await;
        ready.map(|_| ()).map_err(|_| {
            Error::new(ErrorKind::Closed, format!("the consumer of {} has ended", self.0.dataset))
        })
    }

    /// What keeps the newest view from being served; `None`: nothing. The answer of `/ready`.
    pub fn not_ready(&self) -> Option<String> {
        let Status { readable, tail, pin } = self.status();
        if tail.reachable != Some(true) && !self.0.serve_stale {
            return Some(match tail.error {
                // It says itself what is missing.
                Some(why) if tail.answered => why,
                Some(why) => format!("Kafka is not reached: {why}"),
                None => "Kafka is not reached: it has not answered yet".to_owned(),
            });
        }
        let withheld = self.withheld(&readable)?;
        let refused = readable.refused.map(|refusal| {
            format!("version {} is refused by this reader's guard: {}", refusal.version, refusal.reason)
        });
        let pinned = pin.error.map(|error| match &pin.pinned {
            Some(pinned) if !pinned.versions.0.is_empty() => {
                format!("it is pinned to version {}: {error}", pinned.versions)
            }
            _ => format!("it is pinned: {error}"),
        });
        let control = pin.control.map(|error| format!("the control topic cannot be read: {error}"));
        Some(match readable.error.or(refused).or(pinned).or(control) {
            Some(error) => format!("{withheld}: {error}"),
            None => withheld,
        })
    }

    fn withheld(&self, readable: &Readable) -> Option<String> {
        let version = readable.version;
        if version == Version(0) {
            return Some("no version is readable yet".to_owned());
        }
        if readable.stale && !self.0.serve_stale {
            return Some(format!("version {version} comes from the cache and Kafka has not confirmed it"));
        }
        if !readable.caught_up && !self.0.ready_when_any {
            return Some(format!(
                "version {version} does not hold yet all that the sources held at the beginning"
            ));
        }
        None
    }
}
