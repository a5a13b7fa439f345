//! A reader's reader: asks an instance for all records over HTTP, again and again, and keeps what it was told, for
//! the oracle to compare with the fold at the version's positions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::instance::{Address, Size, ask};
use super::row::Row;

/// Between two questions.
const STEP: Duration = Duration::from_millis(30);

/// All records of one version, as a reader gave them.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Which reader, and which of its processes.
    pub reader: String,
    /// The version.
    pub version: i64,
    /// Its records.
    pub rows: BTreeMap<Vec<u8>, Row>,
}

/// Watches one instance until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    seen: Arc<Mutex<Vec<Scan>>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the dataset `dataset` of the instance `name` at `address`.
    pub fn start(name: &str, address: Address, dataset: &str) -> Watcher {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = channel();
        let path = format!("/v1/datasets/{dataset}/records?limit=10000");
        let thread = std::thread::Builder::new()
            .name("watcher".into())
            .spawn({
                let (seen, name) = (seen.clone(), name.to_owned());
                move || watch(&name, &address, &path, &seen, &stopped)
            })
            .expect("a thread can be started");
        Watcher { seen, stop: Some(stop), thread: Some(thread) }
    }

    /// What was seen since this was asked last.
    pub fn seen(&self) -> Vec<Scan> {
        std::mem::take(&mut *lock(&self.seen))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Looks all the time at how large an instance's log and queue are, and keeps the largest; until it is dropped.
#[derive(Debug)]
pub struct Sampler {
    most: Arc<Mutex<Size>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Looks at the instance at `address`.
    pub fn start(address: Address) -> Sampler {
        let most: Arc<Mutex<Size>> = Arc::default();
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("sampler".into())
            .spawn({
                let most = most.clone();
                move || {
                    while stopped.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                        let Some(address) = *lock(&address) else { continue };
                        let Ok(metrics) = ask(address, "/metrics", "") else { continue };
                        let now = Size::told(&metrics.body);
                        let mut most = lock(&most);
                        (most.log, most.pending) = (most.log.max(now.log), most.pending.max(now.pending));
                    }
                }
            })
            .expect("a thread can be started");
        Sampler { most, stop: Some(stop), thread: Some(thread) }
    }

    /// The largest since this was asked last.
    pub fn most(&self) -> Size {
        std::mem::take(&mut *lock(&self.most))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(name: &str, address: &Address, path: &str, seen: &Mutex<Vec<Scan>>, stopped: &Receiver<()>) {
    let (mut last, mut tag) = ((None, -1), String::new());
    while stopped.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
        let Some(address) = *lock(address) else { continue };
        if last.0 != Some(address) {
            tag.clear();
        }
        if let Some((version, rows)) = scan(address, path, &mut tag)
            && (Some(address), version) != last
        {
            last = (Some(address), version);
            lock(seen).push(Scan { reader: format!("{name} at {address}"), version, rows });
        }
    }
}

/// All records of the version that is readable there, unless that is the one of `tag`, which becomes that one's; `None` where they cannot be had, as
/// while the process is starting or dying, or when the version moves on between two pages.
pub fn scan(address: SocketAddr, path: &str, tag: &mut String) -> Option<(i64, BTreeMap<Vec<u8>, Row>)> {
    let mut rows = BTreeMap::new();
    let (mut version, mut next, mut first) = (None, String::new(), String::new());
    loop {
        let pinned = version.map(|version: i64| format!("&version={version}")).unwrap_or_default();
        let headers = match version {
            None => format!("if-none-match: {tag}\r\n"),
            Some(_) => String::new(),
        };
        let answer = ask(address, &format!("{path}{pinned}{next}"), &headers).ok()?;
        if answer.status != 200 {
            return None;
        }
        if version.is_none() {
            first = answer.head.lines().find_map(|line| line.strip_prefix("etag: "))?.to_owned();
        }
        let page: Value = serde_json::from_str(&answer.body).ok()?;
        version = Some(page.get("version")?.as_i64()?);
        for record in page.get("records")?.as_array()? {
            let key = record.get("key")?.as_str()?.as_bytes().to_vec();
            rows.insert(key, serde_json::from_value(record.get("value")?.clone()).ok()?);
        }
        match page.get("next")?.as_str() {
            Some(more) => next = format!("&next={more}"),
            None => {
                *tag = first;
                return Some((version?, rows));
            }
        }
    }
}
