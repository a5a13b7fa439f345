//! Bars of what is downloaded: a wrapper around a store that is far away, on a terminal. Elsewhere the log tells
//! (`view/fetch`).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use futures::future::BoxFuture;

use super::progress::{Screen, Work};
use crate::blob::{BlobStore, Body, Content, Error, Listed, Part, Put, Store, Tag};

/// What is smaller is there before anybody has read its bar.
const LEAST: u64 = 1 << 20;

/// `store`, with bars on a terminal where it is far away.
pub fn watched(store: Store, screen: &Screen) -> Store {
    if !screen.is_drawn() || !store.is_far() {
        return store;
    }
    let base = store.url().to_owned();
    Store::new(&base, Arc::new(Watched { inner: store, screen: screen.clone(), bars: Arc::default() }))
}

/// By blob: its bar, and bytes that came of all its parts.
type Bars = Arc<Mutex<HashMap<String, (Work, u64)>>>;

#[derive(Debug)]
struct Watched {
    inner: Store,
    screen: Screen,
    bars: Bars,
}

impl Watched {
    /// Counts what comes of a part.
    fn count(&self, name: &str, mut part: Part) -> Part {
        let total = part.total;
        if total < LEAST {
            return part;
        }
        let what = name.rsplit('/').next().unwrap_or(name);
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        bars.entry(name.to_owned())
            .or_insert_with(|| (self.screen.work(&format!("fetching {what}"), "bytes", Some(total)), 0));
        drop(bars);
        let (bars, name) = (self.bars.clone(), name.to_owned());
        part.content = part
            .content
            .inspect(move |piece| {
                let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
                if let (Ok(piece), Some((bar, came))) = (piece, bars.get_mut(&name)) {
                    *came += piece.len() as u64;
                    bar.set(*came);
                    if *came >= total {
                        bars.remove(&name);
                    }
                }
            })
            .boxed();
        part
    }
}

impl BlobStore for Watched {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.inner.put(name, body))
    }

    fn put_new<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<Put, Error>> {
        Box::pin(self.inner.put_new(name, body))
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, Error>> {
        Box::pin(self.inner.get(name))
    }

    fn get_range<'a>(
        &'a self,
        name: &'a str,
        range: Range<u64>,
        same: Option<&'a Tag>,
    ) -> BoxFuture<'a, Result<Part, Error>> {
        Box::pin(async move { Ok(self.count(name, self.inner.get_range(name, range, same).await?)) })
    }

    fn is_far(&self) -> bool {
        self.inner.is_far()
    }

    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(self.inner.head(name))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, Error>> {
        Box::pin(self.inner.list(prefix))
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.inner.delete(name))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn a_bar_lasts_until_all_parts_have_come() {
        let inner = Store::open("memory://").unwrap();
        let screen = Screen::new();
        let watching = Watched { inner: inner.clone(), screen: screen.clone(), bars: Arc::default() };
        let bars = watching.bars.clone();
        let store = Store::new("memory://", Arc::new(watching));
        let content = Bytes::from(vec![7; 3 << 20]);
        store.put("large", content.clone()).await.unwrap();
        store.put("small", Bytes::from_static(b"small")).await.unwrap();
        let read = async |name: &str, range: Range<u64>| {
            let part = store.get_range(name, range, None).await.unwrap();
            part.content.map(Result::unwrap).collect::<Vec<Bytes>>().await.concat()
        };
        let came = || bars.lock().unwrap().get("large").map(|(_, came)| *came);
        assert_eq!(read("small", 0..5).await, b"small");
        assert_eq!(bars.lock().unwrap().len(), 0);
        assert!(read("large", 1 << 20..3 << 20).await == content[1 << 20..]);
        assert_eq!(came(), Some(2 << 20));
        assert!(read("large", 0..1 << 20).await == content[..1 << 20]);
        assert_eq!(came(), None, "and then it is gone");
        assert!(!watched(inner, &screen).is_far(), "what is near has none");
    }
}
