//! Asking a store for a blob, where it may be a folder that hangs: a thread that opens a file of it cannot be called back.
//!
//! Owns: how many threads wait for a folder, also after nobody waits for them. Does not own: how long it is waited for (`fetch`).

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AT_A_TIME;
use crate::blob::{Content, Error, Store};

/// A runtime has some hundreds of threads for blocking work, which all datasets of a process share: one reader's folder may not take
/// them all, try after try. One that never answers again, since another was mounted in its place, keeps its threads and their places.
#[derive(Clone, Debug)]
pub(super) struct Asking(Arc<Semaphore>);

impl Asking {
    pub fn new() -> Asking {
        Asking(Arc::new(Semaphore::new(AT_A_TIME)))
    }

    /// A place for one that asks, until it is dropped; `None`: all are waiting for an answer.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_owned().ok()
    }

    /// Asks for a blob. Who does not wait any more leaves its place taken until the answer comes.
    ///
    /// # Errors
    /// The store's.
    pub async fn get(&self, store: &Store, name: &str) -> Result<Content, Error> {
        let place = self.0.clone().acquire_owned().await;
        let (of, blob) = (store.clone(), name.to_owned());
        let mut asked = Asked(Some(Box::pin(async move {
            let content = of.get(&blob).await;
            drop(place);
            content
        })));
        let content = poll_fn(|context| match &mut asked.0 {
            Some(asked) => asked.as_mut().poll(context),
            None => Poll::Pending,
        });
        let content = content.await;
        asked.0 = None;
        content
    }
}

/// On its way. Where nobody waits for it any more it goes on as a task; until then by who waits, who may be on a thread that no
/// busy runtime holds up.
struct Asked(Option<BoxFuture<'static, Result<Content, Error>>>);

impl Drop for Asked {
    fn drop(&mut self) {
        if let (Some(rest), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            drop(runtime.spawn(rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::future::BoxFuture;
    use tokio::sync::watch;

    use super::*;
    use crate::blob::{self, BlobStore, Body, Listed};

    /// A folder that answers once it is told to.
    #[derive(Debug)]
    struct Hung {
        inner: Store,
        asked: Arc<AtomicUsize>,
        answers: watch::Receiver<bool>,
    }

    impl BlobStore for Hung {
        fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), blob::Error>> {
            Box::pin(self.inner.put(name, body))
        }

        fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, blob::Error>> {
            Box::pin(async move {
                self.asked.fetch_add(1, Ordering::AcqRel);
                let mut answers = self.answers.clone();
                answers.wait_for(|answers| *answers).await.expect("the test goes on");
                self.inner.get(name).await
            })
        }

        fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, blob::Error>> {
            Box::pin(self.inner.head(name))
        }

        fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, blob::Error>> {
            Box::pin(self.inner.list(prefix))
        }

        fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), blob::Error>> {
            Box::pin(self.inner.delete(name))
        }
    }

    #[tokio::test]
    async fn one_that_hangs_takes_as_many_threads_as_it_has_places_however_often_it_is_asked() {
        let inner = Store::open("memory://").unwrap();
        inner.put("blob", b"bytes".to_vec()).await.unwrap();
        let (answer, answers) = watch::channel(false);
        let asked = Arc::new(AtomicUsize::new(0));
        let store = Store::new("hung://", Arc::new(Hung { inner, asked: asked.clone(), answers }));
        let asking = Asking::new();
        for _ in 0..5 * AT_A_TIME {
            let patience = Duration::from_millis(2);
            assert!(tokio::time::timeout(patience, asking.get(&store, "blob")).await.is_err());
        }
        assert!(asking.place().is_none());
        answer.send(true).unwrap();
        let content = tokio::time::timeout(Duration::from_secs(60), asking.get(&store, "blob")).await;
        assert!(content.expect("it answers again").is_ok());
        let all = AT_A_TIME + 1;
        assert_eq!(asked.load(Ordering::Acquire), all, "those that were not waited for, and the last one");
        assert!(asking.place().is_some());
    }
}
