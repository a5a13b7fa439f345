//! A store that breaks its answers off, and what is made of them.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use futures::future::BoxFuture;

use super::*;
use crate::blob::faulty::{Faults, Faulty};
use crate::blob::{BlobStore, Body, Content, Listed, Part};
use crate::version::Checksum;

const NAME: &str = "products/snapshot";

fn blob(content: &Bytes) -> BlobRef {
    let (bytes, checksum) = (content.len() as u64, Checksum::of(content));
    let name = NAME.to_owned();
    BlobRef { name, bytes, checksum, plain_bytes: bytes, plain_checksum: checksum, location: None }
}

fn content(length: usize, seed: u64) -> Bytes {
    let entropy = Entropy::seeded(seed);
    (0..length.div_ceil(8)).flat_map(|_| entropy.next_u64().to_le_bytes()).take(length).collect()
}

async fn all(store: &Store, blob: &BlobRef) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = read(store, blob, &Room::default()).try_collect().await?;
    assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
    Ok(pieces.concat())
}

/// Gives no more than `at_most` bytes of a range and then breaks; writes down what was asked for, and how many waited for an
/// answer at a time.
#[derive(Debug)]
struct Cutting {
    inner: Store,
    at_most: u64,
    asked: Mutex<Vec<(Range<u64>, bool)>>,
    waiting: AtomicUsize,
    most_waiting: AtomicUsize,
}

impl BlobStore for Cutting {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), blob::Error>> {
        Box::pin(self.inner.put(name, body))
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, blob::Error>> {
        Box::pin(self.inner.get(name))
    }

    fn get_range<'a>(
        &'a self,
        name: &'a str,
        range: Range<u64>,
        same: Option<&'a Tag>,
    ) -> BoxFuture<'a, Result<Part, blob::Error>> {
        Box::pin(async move {
            self.asked.lock().unwrap().push((range.clone(), same.is_some()));
            let waiting = 1 + self.waiting.fetch_add(1, Ordering::Relaxed);
            self.most_waiting.fetch_max(waiting, Ordering::Relaxed);
            // No store answers at once: whatever else is to be asked is asked meanwhile.
            tokio::task::yield_now().await;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let end = range.end.min(range.start + self.at_most);
            let mut part = self.inner.get_range(name, range.start..end, same).await?;
            if end < range.end {
                let broke = blob::Error::Unavailable {
                    doing: "reading",
                    url: name.to_owned(),
                    problem: "cut".to_owned(),
                };
                part.content = part.content.chain(stream::iter([Err(broke)])).boxed();
            }
            Ok(part)
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
async fn each_part_goes_on_at_the_byte_where_it_broke() {
    let content = content((3 * PART + 5) as usize, 1);
    let inner = Store::open("memory://").unwrap();
    inner.put(NAME, content.clone()).await.unwrap();
    let (waiting, most_waiting) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let cutting =
        Arc::new(Cutting { inner, at_most: 1_500_000, asked: Mutex::default(), waiting, most_waiting });
    let store = Store::new("cut://", cutting.clone());
    assert!(all(&store, &blob(&content)).await.unwrap() == content);
    let mut asked = std::mem::take(&mut *cutting.asked.lock().unwrap());
    asked.sort_by_key(|(range, _)| range.start);
    // 3 x (0, 1.5 MB, 3 MB) and the rest: each from where the last one of that part ended.
    let starts: Vec<u64> = asked.iter().map(|(range, _)| range.start).collect();
    let part = |n: u64| [0, 1_500_000, 3_000_000].map(|at| n * PART + at);
    assert_eq!(
        starts,
        [part(0), part(1), part(2)].concat().into_iter().chain([3 * PART]).collect::<Vec<_>>()
    );
    let tagged = asked.iter().filter(|(_, tagged)| *tagged).count();
    assert!(tagged >= 6, "every question after the first answer names what it is about: {tagged}");
    assert_eq!(cutting.most_waiting.load(Ordering::Relaxed), AT_A_TIME, "asked for at a time");
}

#[tokio::test]
async fn whatever_breaks_what_comes_is_the_blob_or_an_error() {
    let (mut whole, mut failed) = (0, 0);
    for (seed, length) in [0, 1, 1000, PART as usize, PART as usize + 1, 2 * PART as usize + 77]
        .into_iter()
        .cycle()
        .take(30)
        .enumerate()
    {
        let content = content(length, 2);
        let inner = Store::open("memory://").unwrap();
        inner.put(NAME, content.clone()).await.unwrap();
        let faults =
            Faults { get_breaks: 0.3, get_truncates: 0.2, get_fails: 0.1, far: true, ..Faults::default() };
        let (store, _) = Faulty::wrap(inner, faults, Entropy::seeded(seed as u64));
        match all(&store, &blob(&content)).await {
            Ok(came) => {
                assert!(came == content, "seed {seed}");
                whole += 1;
            }
            // Only what broke before its first byte is given up.
            Err(Error::Store(error)) if error.is_transient() => failed += 1,
            Err(error) => panic!("seed {seed}: {error:?}"),
        }
    }
    assert!(whole > 10 && failed > 0, "{whole} came whole, {failed} did not begin");
}

#[tokio::test]
async fn what_is_not_the_blob_that_was_announced_is_told_from_a_break() {
    let (one, other) = (content(2 * PART as usize, 3), content(2 * PART as usize, 4));
    let store = Store::open("memory://").unwrap();
    store.put(NAME, one.clone()).await.unwrap();
    let longer = BlobRef { bytes: one.len() as u64 + 1, ..blob(&one) };
    let shorter = BlobRef { bytes: one.len() as u64 - 1, ..blob(&one) };
    for wrong in [longer, shorter] {
        let error = all(&store, &wrong).await.unwrap_err();
        assert!(
            matches!(&error, Error::CorruptBlob { detail, .. } if detail.contains("announced")),
            "{error}"
        );
    }
    let missing = BlobRef { name: "products/none".into(), ..blob(&one) };
    assert!(matches!(all(&store, &missing).await, Err(Error::Missing(_))));
    // Replaced between two parts: the second question names the first answer's tag.
    let mut pieces = Box::pin(read(
        &store,
        &BlobRef { bytes: one.len() as u64, ..blob(&one) },
        &Room(Arc::new(Semaphore::new(1))),
    ));
    assert!(pieces.next().await.unwrap().unwrap() == one[..PIECE]);
    store.put(NAME, other).await.unwrap();
    let rest: Result<Vec<Bytes>, Error> = pieces.try_collect().await;
    assert!(matches!(rest, Err(Error::CorruptBlob { detail, .. }) if detail == REPLACED));
}
