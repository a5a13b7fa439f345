//! Stores that are far away, each on a server of its own: the contract of all stores (`stores`), and what distance adds: who
//! may, what is there, and a network that fails.

#![expect(clippy::unwrap_used, reason = "what a store does not do fails the test, with its error")]

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use stillwell::blob::{Body, Error, Put, Store};
use stillwell::version::{BlobRef, Checksum, SnapshotRef};
use stillwell::view::{Cache, Fetcher, Identity};
use stillwell::{Shard, TopicId, Version};
use stillwell_tests::campaign::Chance;
use stillwell_tests::{Cloud, Proxy, Toxic, scratch, wait_until_async, workspace};

use crate::stores::{NAME, bytes, contract};

/// All of it for one cloud.
macro_rules! cloud {
    ($name:ident) => {
        mod $name {
            use stillwell_tests::Cloud;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn the_contract_is_kept() {
                super::the_contract_is_kept(Cloud::$name()).await;
            }

            #[tokio::test]
            async fn prefixes_are_apart() {
                super::prefixes_are_apart(Cloud::$name()).await;
            }

            #[tokio::test]
            async fn many_are_listed_in_order() {
                super::many_are_listed_in_order(Cloud::$name()).await;
            }

            #[tokio::test]
            async fn who_may_not_is_told_what_to_do_and_no_secret() {
                super::who_may_not_is_told_what_to_do_and_no_secret(Cloud::$name()).await;
            }

            #[tokio::test]
            async fn a_place_that_is_missing_is_told_from_a_blob_that_is() {
                super::a_place_that_is_missing_is_told_from_a_blob_that_is(Cloud::$name()).await;
            }

            #[tokio::test]
            async fn an_endpoint_that_is_away_is_worth_trying_again() {
                super::an_endpoint_that_is_away_is_worth_trying_again(Cloud::$name()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn an_upload_that_is_cut_off_is_never_seen() {
                super::an_upload_that_is_cut_off_is_never_seen(Cloud::$name()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_download_comes_whole_over_a_network_that_breaks_it() {
                super::a_download_comes_whole_over_a_network_that_breaks_it(Cloud::$name()).await;
            }
        }
    };
}

cloud!(s3);
cloud!(azure);
cloud!(google);

/// The rights that docs/operations.md names are enough.
#[tokio::test]
async fn a_shared_access_signature_may_do_what_a_key_may() {
    let azure = Cloud::azure();
    let store = Store::open_with(&azure.url(), &azure.signed(azure.port())).unwrap();
    let folder = scratch();
    let path = folder.path().join("snapshot");
    let content = bytes(20 << 20, 1);
    std::fs::write(&path, &content).unwrap();
    store.put("a/1", Body::File(path)).await.unwrap();
    assert!(store.get_bytes("a/1").await.unwrap() == content);
    assert_eq!(store.put_new("a/2", Bytes::from_static(b"two")).await.unwrap(), Put::Stored);
    assert_eq!(store.put_new("a/2", Bytes::from_static(b"other")).await.unwrap(), Put::Found);
    assert_eq!(store.list("a").await.unwrap().len(), 2);
    for _ in 0..2 {
        store.delete("a/1").await.unwrap();
    }
    assert_eq!(store.list("a").await.unwrap().len(), 1);
}

async fn the_contract_is_kept(cloud: &Cloud) {
    let store = cloud.store(cloud.port());
    assert!(store.is_far());
    contract(&store).await;
}

/// Two stores under prefixes of one bucket, of which one begins as the other is called, do not see each other.
async fn prefixes_are_apart(cloud: &Cloud) {
    let url = cloud.url();
    let (one, other) =
        (cloud.store_at(&url, cloud.port()), cloud.store_at(&format!("{url}er"), cloud.port()));
    one.put("a/1", Bytes::from_static(b"one")).await.unwrap();
    other.put("a/2", Bytes::from_static(b"other")).await.unwrap();
    for (store, name) in [(&one, "a/1"), (&other, "a/2")] {
        let listed = store.list("").await.unwrap();
        assert_eq!(listed.iter().map(|blob| blob.name.as_str()).collect::<Vec<_>>(), [name]);
        assert_eq!(store.absolute_url(name), format!("{}/{name}", store.url()));
    }
}

/// Every call to a store that cannot be reached as it is configured.
async fn refused(store: &Store) -> Vec<(&'static str, Error)> {
    let body = || Bytes::from_static(b"body");
    vec![
        ("put", store.put("a/1", body()).await.unwrap_err()),
        ("put_new", store.put_new("a/1", body()).await.unwrap_err()),
        ("get", store.get_bytes("a/1").await.unwrap_err()),
        ("get_range", store.get_range("a/1", 0..1, None).await.unwrap_err()),
        ("head", store.head("a/1").await.unwrap_err()),
        ("list", store.list("a").await.unwrap_err()),
        ("delete", store.delete("a/1").await.unwrap_err()),
    ]
}

async fn who_may_not_is_told_what_to_do_and_no_secret(cloud: &Cloud) {
    let url = cloud.url();
    for options in cloud.strangers() {
        let store = Store::open_with(&url, &options).unwrap();
        for (call, error) in refused(&store).await {
            let said = error.to_string();
            assert!(matches!(error, Error::Refused { .. }) && error.is_transient(), "{call}: {error:?}");
            assert_eq!(error.kind(), stillwell::ErrorKind::Unavailable);
            // The answer to HEAD has a status and no words.
            assert!(call == "head" || said.contains(cloud.credentials), "{call}: {said}");
            for secret in cloud.secrets() {
                assert!(
                    !format!("{said} {error:?} {store:?} {options:?}").contains(secret),
                    "{call}: {said}"
                );
            }
        }
    }
    // One who may read, and not write.
    let reader = Store::open_with(&url, &cloud.reader(cloud.port())).unwrap();
    cloud.store_at(&url, cloud.port()).put("a/1", Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(reader.get_bytes("a/1").await.unwrap(), "one");
    assert_eq!(reader.list("a").await.unwrap().len(), 1);
    for error in [
        reader.put("a/2", Bytes::from_static(b"two")).await.unwrap_err(),
        reader.put_new("a/2", Bytes::from_static(b"two")).await.unwrap_err(),
        reader.delete("a/1").await.unwrap_err(),
    ] {
        let said = error.to_string();
        assert!(
            matches!(error, Error::Refused { .. }) && said.contains("right to list, read, write"),
            "{said}"
        );
        assert!(!cloud.secrets().iter().any(|secret| said.contains(secret)), "{said}");
    }
    assert_eq!(reader.head("a/2").await.unwrap(), None);
}

async fn a_place_that_is_missing_is_told_from_a_blob_that_is(cloud: &Cloud) {
    let store = cloud.store_at(&format!("{}://no-such-place/a", cloud.scheme), cloud.port());
    for (call, error) in refused(&store).await {
        let said = error.to_string();
        assert!(matches!(error, Error::Refused { .. }) && error.is_transient(), "{call}: {error:?}");
        let expected = format!("the {} no-such-place does not exist; create it", cloud.kind);
        assert!(said.contains(&expected), "{call}: {said}");
    }
}

async fn an_endpoint_that_is_away_is_worth_trying_again(cloud: &Cloud) {
    // The discard port of this machine, where nobody listens.
    let store = cloud.store(9);
    for (call, error) in refused(&store).await {
        let said = error.to_string();
        assert!(matches!(error, Error::Unavailable { .. }) && error.is_transient(), "{call}: {error:?}");
        assert!(said.contains("refused") && said.contains(cloud.endpoint), "{call}: {said}");
    }
    // In the clear only where that is meant.
    let mut options = cloud.writer(cloud.port());
    options.0.remove(cloud.in_the_clear).unwrap();
    let error = match Store::open_with(&cloud.url(), &options) {
        Ok(store) => store.list("").await.unwrap_err(),
        // Of S3 it is known before anything is sent.
        Err(error) => error,
    };
    let refused = matches!(error, Error::Refused { .. } | Error::Url { .. });
    assert!(refused && error.to_string().contains("allow_http"), "{error}");
}

/// Several pages of a listing: the servers' have 100.
const COUNT: usize = 230;

/// More than one page of a listing comes whole, in the order of names and not of what was put first.
async fn many_are_listed_in_order(cloud: &Cloud) {
    let store = cloud.store(cloud.port());
    let name = |n: usize| format!("a/{:05}", (n * 7_919) % 100_003);
    let puts = (0..COUNT).map(|n| {
        let store = store.clone();
        async move { store.put_new(&name(n), Bytes::from_static(b"x")).await }
    });
    let put: Vec<Put> = futures::stream::iter(puts).buffer_unordered(16).try_collect().await.unwrap();
    assert!(put.iter().all(|put| *put == Put::Stored));
    let mut expected: Vec<String> = (0..COUNT).map(name).collect();
    expected.sort_unstable();
    let listed: Vec<String> = store.list("a").await.unwrap().into_iter().map(|blob| blob.name).collect();
    assert!(listed == expected, "{} of {}", listed.len(), expected.len());
}

/// A blob of several parts whose upload is cut off, again and again: what is seen is the blob that was there, whole.
async fn an_upload_that_is_cut_off_is_never_seen(cloud: &Cloud) {
    let url = cloud.url();
    let proxy = Proxy::start(cloud.port(), Chance::seeded(3));
    let (direct, store) = (cloud.store_at(&url, cloud.port()), cloud.store_at(&url, proxy.port()));
    let folder = scratch();
    let path = folder.path().join("snapshot");
    let content = bytes(20 << 20, 1);
    std::fs::write(&path, &content).unwrap();

    for toxic in [Toxic::Reset, Toxic::Cut] {
        proxy.set(toxic);
        // Of some 600 pieces one in ten ends its connection: it cannot get through.
        let error = store.put(NAME, Body::File(path.clone())).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }) && error.is_transient(), "{error:?}");
        assert_eq!(direct.list("").await.unwrap(), [], "{toxic:?}");
        assert_eq!(direct.head(NAME).await.unwrap(), None);
    }
    for toxic in [Toxic::Pass, Toxic::Slow] {
        proxy.set(toxic);
        let small = bytes(100_000, 2);
        store.put("products/small", small.clone()).await.unwrap();
        assert!(store.get_bytes("products/small").await.unwrap() == small, "{toxic:?}");
    }
    proxy.set(Toxic::Pass);
    store.put(NAME, Body::File(path)).await.unwrap();
    assert!(direct.get_bytes(NAME).await.unwrap() == content);
    proxy.set(Toxic::Cut);
    direct.put("products/small", Bytes::from_static(b"new")).await.unwrap();
    store.put("products/small", bytes(100_000, 3)).await.unwrap_err();
    assert_eq!(direct.get_bytes("products/small").await.unwrap(), "new");
}

/// What a reader fetches of a store behind a network that resets connections, or is slow: parts that go on where they broke,
/// and in the end the very bytes.
async fn a_download_comes_whole_over_a_network_that_breaks_it(cloud: &Cloud) {
    let url = cloud.url();
    let proxy = Proxy::start(cloud.port(), Chance::seeded(5));
    let (direct, store) = (cloud.store_at(&url, cloud.port()), cloud.store_at(&url, proxy.port()));
    let golden = |name: &str| {
        Bytes::from(std::fs::read(workspace().join("tests/golden/snapshot/v1").join(name)).unwrap())
    };
    let put = async |name: &str, stored: &Bytes, plain: &Bytes| {
        direct.put(name, stored.clone()).await.unwrap();
        BlobRef {
            name: name.to_owned(),
            bytes: stored.len() as u64,
            checksum: Checksum::of(stored),
            plain_bytes: plain.len() as u64,
            plain_checksum: Checksum::of(plain),
            location: None,
        }
    };
    let plain = golden("plain.avro");
    let snapshot = put("products/snapshot", &golden("stored.avro"), &plain).await;
    let identity =
        Identity { dataset: "products".into(), topic_id: TopicId([7; 16]), shard: Shard(0), shards: 1 };
    // Of several parts; and, where each piece waits, of one.
    for (toxic, length) in [(Toxic::Reset, 9 << 20), (Toxic::Slow, 1 << 20)] {
        // What is fetched as an index is, as far as the way is concerned, just bytes.
        let content = bytes(length, 6);
        let index = put("products/index", &content, &content).await;
        let chain = SnapshotRef { version: Version(1), epoch: 1, blob: snapshot.clone(), index, records: 0 };
        let cache = scratch();
        let fetcher = Fetcher::new(store.clone(), Cache::open(cache.path(), u64::MAX).unwrap());
        let (_, before) = proxy.counts();
        proxy.set(toxic);
        // An attempt of which nothing has come yet ends with the first reset, and is for the caller to repeat.
        let fetched = wait_until_async("it is fetched", Duration::from_secs(120), || {
            fetcher.snapshot(&identity, &chain)
        })
        .await;
        proxy.set(Toxic::Pass);
        assert!(std::fs::read(fetched.index.path()).unwrap() == content, "{toxic:?}");
        assert!(std::fs::read(fetched.snapshot.path()).unwrap() == plain, "{toxic:?}");
        let (_, resets) = proxy.counts();
        assert_eq!(resets > before, toxic == Toxic::Reset, "{toxic:?}: {before} resets, then {resets}");
    }
}
