//! What every blob store must do, run against each: a folder, memory, a wrapper, a topic, and in `clouds` those that are far away.

#![expect(clippy::unwrap_used, reason = "what a store does not do fails the test, with its error")]

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::StreamExt as _;
use stillwell::blob::faulty::{Faults, Faulty};
use stillwell::blob::{Body, Error, Put, Store};
use stillwell::clock::Entropy;
use stillwell_tests::{scratch, unique};

pub(crate) const NAME: &str =
    "products/AAAAAAAAAAAAAAAAAAAAAQ/0/00000000000000000007-3-00000000deadbeef.delta.avro";

pub(crate) fn bytes(length: usize, seed: u64) -> Bytes {
    let entropy = Entropy::seeded(seed);
    (0..length.div_ceil(8)).flat_map(|_| entropy.next_u64().to_le_bytes()).take(length).collect()
}

/// What every store must do. A new implementation adds one test that calls this.
pub(crate) async fn contract(store: &Store) {
    // Nothing is there.
    assert_eq!(store.head(NAME).await.unwrap(), None);
    assert_eq!(store.list("").await.unwrap(), []);
    let missing = store.get_bytes(NAME).await.unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }) && !missing.is_transient(), "{missing:?}");
    assert!(missing.to_string().contains(&store.absolute_url(NAME)), "{missing}");
    store.delete(NAME).await.unwrap();

    // Of every size: empty, small, and of several pieces; from memory and from a file.
    let folder = scratch();
    for (seed, length) in [0, 1, 1_000, 1 << 20, (5 << 20) + 17, 11 << 20].into_iter().enumerate() {
        let content = bytes(length, seed as u64);
        store.put(NAME, content.clone()).await.unwrap();
        assert_eq!(store.head(NAME).await.unwrap(), Some(length as u64));
        assert!(store.get_bytes(NAME).await.unwrap() == content, "{length} bytes from memory");
        let content = bytes(length, 100 + seed as u64);
        let path = folder.path().join("blob");
        std::fs::write(&path, &content).unwrap();
        store.put(NAME, Body::File(path)).await.unwrap();
        assert!(store.get_bytes(NAME).await.unwrap() == content, "{length} bytes from a file");
    }

    // Put-if-absent: the first stays, and of many at a time one is the first.
    assert_eq!(store.put_new(NAME, Bytes::from_static(b"other")).await.unwrap(), Put::Found);
    let path = folder.path().join("other");
    std::fs::write(&path, b"other").unwrap();
    assert_eq!(store.put_new(NAME, Body::File(path.clone())).await.unwrap(), Put::Found);
    assert_eq!(store.head(NAME).await.unwrap(), Some(11 << 20), "it is the one that was there");
    let new = "products/a/0/new";
    let putting = (0..8u8).map(|n| store.put_new(new, Bytes::from(vec![n; 1000])));
    let put = futures::future::try_join_all(putting).await.unwrap();
    let first: Vec<usize> = (0..8).filter(|n| put[*n] == Put::Stored).collect();
    assert_eq!(first.len(), 1, "{put:?}");
    assert!(store.get_bytes(new).await.unwrap() == vec![first[0] as u8; 1000]);
    store.delete(new).await.unwrap();
    assert_eq!(store.put_new(new, Body::File(path)).await.unwrap(), Put::Stored);
    assert_eq!(store.get_bytes(new).await.unwrap(), "other");
    store.delete(new).await.unwrap();

    ranges(store).await;

    // A put that fails leaves what was there.
    let before = store.get_bytes(NAME).await.unwrap();
    let gone = Body::File(folder.path().join("no such file"));
    store.put(NAME, gone).await.unwrap_err();
    assert!(store.get_bytes(NAME).await.unwrap() == before);

    // Listings are complete, sorted, and keep to whole parts.
    let names = ["products/a/0/2", "products/a/0/1", "products/ab/0/1", "productsx/a/0/1"];
    for name in names {
        store.put(name, Bytes::from_static(b"12345")).await.unwrap();
    }
    let list = async |prefix: &str| {
        let listed = store.list(prefix).await.unwrap();
        listed.into_iter().map(|listed| listed.name).collect::<Vec<_>>()
    };
    assert_eq!(list("products/a").await, ["products/a/0/1", "products/a/0/2"]);
    assert_eq!(list("products/a/").await, ["products/a/0/1", "products/a/0/2"]);
    assert_eq!(list("nothing").await, [] as [&str; 0]);
    let mut all: Vec<_> = names.into_iter().chain([NAME]).collect();
    all.sort_unstable();
    assert_eq!(list("").await, all);
    assert!(store.list("products/a").await.unwrap().iter().all(|listed| listed.bytes == 5));

    // Deletes are exact and may be repeated.
    store.delete("products/a/0/1").await.unwrap();
    store.delete("products/a/0/1").await.unwrap();
    assert_eq!(list("products/a").await, ["products/a/0/2"]);

    // No name leads out.
    for name in
        ["", "/a", "a//b", "a/", "../a", "a/../b", "a/./b", ".hidden", "a/.b", "a\\b", "a%2Fb", "a\0b", "a#1"]
    {
        let error = store.put(name, Bytes::new()).await.unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{name:?}: {error:?}");
    }

    whole_or_not_at_all(store).await;
}

/// Parts of a blob are what lies there, and never of another one.
async fn ranges(store: &Store) {
    let name = "products/a/0/ranges";
    let content = bytes(1 << 20, 7);
    let missing = store.get_range(name, 0..10, None).await.unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }), "{missing:?}");
    store.put(name, content.clone()).await.unwrap();
    let length = content.len() as u64;
    let mut tag = None;
    for (start, end) in [
        (0, 1),
        (0, length),
        (1, length - 1),
        (500_000, 500_001),
        (length - 1, length),
        (length - 1, length + 100),
        (length, length + 1),
        (length + 10, length + 20),
    ] {
        let part = store.get_range(name, start..end, tag.as_ref()).await.unwrap();
        assert_eq!(part.total, length, "{start}..{end}");
        let pieces: Vec<Bytes> = part.content.map(Result::unwrap).collect().await;
        let wanted = &content[start.min(length) as usize..end.min(length) as usize];
        assert!(pieces.concat() == wanted, "{start}..{end}: {} bytes", pieces.concat().len());
        tag = part.tag.or(tag);
    }
    // Another content of the same name is told from the first, where the store tells them apart.
    store.put(name, bytes(1 << 20, 8)).await.unwrap();
    if let Some(tag) = tag {
        let changed = store.get_range(name, 10..20, Some(&tag)).await.unwrap_err();
        assert!(matches!(changed, Error::Changed { .. }) && changed.is_transient(), "{changed:?}");
    }
    store.delete(name).await.unwrap();
}

/// Readers of a name that is put over and over see one content or another, never a mixture, and never nothing.
async fn whole_or_not_at_all(store: &Store) {
    let name = "products/a/0/again";
    let content = |byte: u8| Bytes::from(vec![byte; 3 << 20]);
    store.put(name, content(0)).await.unwrap();
    let writing = async {
        for byte in 1..=8 {
            store.put(name, content(byte)).await.unwrap();
        }
    };
    let reading = async {
        for _ in 0..16 {
            let read = store.get_bytes(name).await.unwrap();
            assert_eq!(read.len(), 3 << 20);
            let kinds: BTreeSet<u8> = read.iter().copied().collect();
            assert_eq!(kinds.len(), 1, "a mixture");
        }
    };
    tokio::join!(writing, reading);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_keeps_the_contract() {
    let folder = scratch();
    contract(&Store::open(&format!("file://{}/made/by it", folder.path().display())).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_keeps_the_contract() {
    contract(&Store::open("memory://").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrapper_without_faults_keeps_the_contract() {
    let inner = Store::open("memory://").unwrap();
    contract(&Faulty::wrap(inner, Faults::default(), Entropy::seeded(1)).0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_keeps_the_contract() {
    let store = crate::topic::store(&unique("blobs"), true);
    assert!(store.is_far());
    // Who puts first makes it.
    store.put("first", Bytes::from_static(b"first")).await.unwrap();
    store.delete("first").await.unwrap();
    contract(&store).await;
}
