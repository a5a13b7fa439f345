//! What single stores add to the contract, which `tests/flow/stores.rs` runs against all of them.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::faulty::{Faults, Faulty};
use super::name::{Folder, Kind, LetterPart, Name};
use super::*;
use crate::clock::Entropy;
use crate::record::{SourcePartition, TopicId};
use crate::version::{Checksum, Shard, Version};

const NAME: &str = "products/AAAAAAAAAAAAAAAAAAAAAQ/0/00000000000000000007-3-00000000deadbeef.delta.avro";

fn file_store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}/made/by it", folder.path().display())).unwrap();
    (folder, store)
}

fn bytes(length: usize, seed: u64) -> Bytes {
    let entropy = Entropy::seeded(seed);
    (0..length).map(|_| entropy.next_u64() as u8).collect()
}

#[tokio::test]
async fn a_folder_is_plain_files_that_outlive_the_store() {
    let (folder, store) = file_store();
    store.put(NAME, Bytes::from_static(b"content")).await.unwrap();
    let url = store.absolute_url(NAME);
    let path = url.strip_prefix("file://").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"content", "the URL ends in the plain path");
    let again = Store::open(store.url()).unwrap();
    assert_eq!(again.get_bytes(NAME).await.unwrap(), "content");
    // What a crash in the middle of a put leaves is not listed, and is no blob.
    std::fs::write(format!("{path}#1"), b"torn").unwrap();
    assert_eq!(again.list("").await.unwrap().len(), 1);
    // It goes once it is old, and nothing else does.
    let now = std::fs::metadata(format!("{path}#1")).unwrap().modified().unwrap();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    std::fs::write(format!("{path}#x"), b"somebody's").unwrap();
    let prefix = NAME.split('/').next().unwrap();
    assert_eq!(again.sweep(prefix, now - 60_000).await.unwrap(), 0, "it may be under way");
    assert_eq!(again.sweep("elsewhere", now + 60_000).await.unwrap(), 0);
    assert_eq!(again.sweep(prefix, now + 60_000).await.unwrap(), 1);
    assert!(!std::fs::exists(format!("{path}#1")).unwrap() && std::fs::exists(format!("{path}#x")).unwrap());
    assert_eq!(again.get_bytes(NAME).await.unwrap(), "content");
    std::fs::remove_file(format!("{path}#x")).unwrap();
    // The folder gone from below: an error that says where, and a put makes it anew.
    std::fs::remove_dir_all(folder.path().join("made")).unwrap();
    assert!(matches!(again.get_bytes(NAME).await, Err(Error::Missing { .. })));
    again.put(NAME, Bytes::from_static(b"anew")).await.unwrap();
    assert_eq!(again.get_bytes(NAME).await.unwrap(), "anew");
}

#[tokio::test]
async fn each_memory_store_is_its_own_and_clones_are_the_same() {
    let (one, other) = (Store::open("memory://").unwrap(), Store::open("memory://").unwrap());
    one.clone().put(NAME, Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(one.head(NAME).await.unwrap(), Some(1));
    assert_eq!(other.head(NAME).await.unwrap(), None);
}

#[test]
fn a_url_that_cannot_be_a_store_says_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for (url, said) in [
        ("s3://", "s3://BUCKET/PREFIX"),
        ("gs:///products", "names no bucket"),
        ("az://container//products", "empty part"),
        ("kafka://blobs", "Kafka's clients"),
        ("http://host/", "unknown"),
        ("blobs", "file:///DIR"),
        ("/var/lib/blobs", "file:///DIR"),
        ("file://blobs", "file:///blobs"),
        (&format!("file://{}/below", file.display()), "cannot be made"),
    ] {
        let error = Store::open(url).unwrap_err();
        assert!(matches!(error, Error::Url { .. }) && !error.is_transient(), "{error:?}");
        assert!(error.to_string().contains(url) && error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_store_that_refuses_says_where_and_what_to_do() {
    let (_folder, store) = file_store();
    store.put("products/a", Bytes::from_static(b"a file")).await.unwrap();
    let error = store.put("products/a/0/1", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && error.is_transient(), "{error:?}");
    assert!(error.to_string().contains("products/a/0/1") && error.to_string().contains("move it"), "{error}");
}

#[tokio::test]
async fn faults_are_seeded_counted_and_switched() {
    let content = bytes(100_000, 1);
    let run = async |faults: Faults, seed| {
        let plain = Store::open("memory://").unwrap();
        let (store, control) = Faulty::wrap(plain.clone(), faults, Entropy::seeded(seed));
        let mut story = Vec::new();
        for n in 0..20 {
            let name = format!("products/{n}");
            let put = store.put(&name, content.clone()).await;
            let there = plain.head(&name).await.unwrap().is_some();
            let got = if there { Some(store.get_bytes(&name).await.map(|got| got == content)) } else { None };
            story.push(format!("{} {there} {got:?}", put.is_ok()));
        }
        control.set(false);
        store.put(NAME, content.clone()).await.unwrap();
        assert!(store.get_bytes(NAME).await.unwrap() == content, "switched off");
        (story, control.injected())
    };
    let all = Faults {
        put_fails: 0.2,
        put_unknown: 0.2,
        get_fails: 0.2,
        get_breaks: 0.2,
        get_truncates: 0.2,
        get_flips: 0.2,
        other_fails: 0.0,
        delay: Duration::from_millis(1),
        far: false,
    };
    let (story, injected) = run(all.clone(), 7).await;
    assert_eq!((story.clone(), injected), run(all.clone(), 7).await, "the same seed tells the same story");
    assert_ne!(story, run(all, 8).await.0);
    assert!(injected > 10, "{injected}");

    for (faults, expected) in [
        (Faults { put_fails: 1.0, ..Faults::default() }, "false false None"),
        (Faults { put_unknown: 1.0, ..Faults::default() }, "false true Some(Ok(true))"),
        (Faults { get_truncates: 1.0, ..Faults::default() }, "true true Some(Ok(false))"),
        (Faults { get_flips: 1.0, ..Faults::default() }, "true true Some(Ok(false))"),
    ] {
        let (story, _) = run(faults.clone(), 3).await;
        assert!(story.iter().all(|line| line == expected), "{faults:?}: {story:?}");
    }
    for faults in
        [Faults { get_fails: 1.0, ..Faults::default() }, Faults { get_breaks: 1.0, ..Faults::default() }]
    {
        let (story, _) = run(faults, 3).await;
        assert!(story.iter().all(|line| line.starts_with("true true Some(Err(Unavailable")), "{story:?}");
    }
}

#[test]
fn who_writes_a_password_into_a_url_does_not_read_it_in_the_error() {
    for url in ["s3://id:s3cret@bucket/products", "ftp://id:s3cret@host/"] {
        let error = Store::open(url).unwrap_err().to_string();
        assert!(error.contains("://***@") && !error.contains("s3cret"), "{error}");
    }
    let options = Options([("aws_region".to_owned(), "eu-west-1".to_owned())].into());
    let error = Store::open_with("memory://", &options).unwrap_err().to_string();
    assert!(error.contains("aws_region") && error.contains("memory://"), "{error}");
}

/// A conflict that is none with a blob of that name must not pass for one: what was put is not there.
#[tokio::test]
async fn a_conflict_is_no_blob_that_was_found() {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = [
        ("azure_storage_account_name", "me".to_owned()),
        ("azure_storage_account_key", "a2V5".to_owned()),
        ("azure_storage_endpoint", format!("http://{}/me", socket.local_addr().unwrap())),
        ("allow_http", "true".to_owned()),
    ];
    let options = Options(options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    let store = Store::open_with("az://shop/blobs", &options).unwrap();
    let server = async {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let body = match request.get(..read) {
                Some(b"") | None => continue,
                Some(asked) if asked.starts_with(b"HEAD") => "",
                Some(_) => {
                    "<?xml?><Error><Code>ContainerBeingDeleted</Code><Message>Try later.</Message></Error>"
                }
            };
            let status = if body.is_empty() { "404 Not Found" } else { "409 Conflict" };
            let answer = format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let error = tokio::select! {
        put = store.put_new(NAME, Bytes::from_static(b"new")) => put.unwrap_err(),
        () = server => unreachable!(),
    };
    let text = error.to_string();
    assert!(
        matches!(error, Error::Refused { .. }) && text.contains("the container shop does not exist"),
        "{text}"
    );
}

/// A store of somebody's own, that knows no more than it must.
#[derive(Debug)]
struct Plain(Store);

impl BlobStore for Plain {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.0.put(name, body))
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, Error>> {
        Box::pin(async move {
            // Pieces of seven, so that ranges begin and end within some.
            let whole = self.0.get_bytes(name).await?;
            let pieces: Vec<_> = whole.chunks(7).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            Ok(futures::stream::iter(pieces).boxed())
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(self.0.head(name))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, Error>> {
        Box::pin(self.0.list(prefix))
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.0.delete(name))
    }
}

#[tokio::test]
async fn a_store_that_has_no_ranges_is_read_up_to_there() {
    let store = Store::new("plain://", Arc::new(Plain(Store::open("memory://").unwrap())));
    let content = bytes(100, 5);
    assert_eq!(store.put_new(NAME, content.clone()).await.unwrap(), Put::Stored);
    assert_eq!(store.put_new(NAME, Bytes::new()).await.unwrap(), Put::Found);
    for (start, end) in [(0, 100), (0, 7), (3, 11), (7, 14), (98, 200), (100, 200), (150, 160), (5, 5)] {
        let part = store.get_range(NAME, start..end, None).await.unwrap();
        assert_eq!(part.total, 100);
        let pieces: Vec<Bytes> = part.content.map(Result::unwrap).collect().await;
        let wanted = &content[(start as usize).min(100)..(end as usize).min(100)];
        assert!(pieces.concat() == wanted && pieces.iter().all(|piece| !piece.is_empty()), "{start}..{end}");
    }
}

#[test]
fn a_name_is_spelled_as_documented() {
    let folder = Folder { dataset: "products".into(), topic_id: TopicId([1; 16]), shard: Shard(3) };
    let name =
        Name { folder, version: Version(7), epoch: 2, checksum: Checksum(0xdead_beef), kind: Kind::Snapshot };
    assert_eq!(
        name.to_string(),
        "products/AQEBAQEBAQEBAQEBAQEBAQ/3/00000000000000000007-2-00000000deadbeef.snapshot.avro"
    );
    for wrong in [
        "products/AQEBAQEBAQEBAQEBAQEBAQ/3/7-2-00000000deadbeef.snapshot.avro",
        "products/AQEBAQEBAQEBAQEBAQEBAQ/3/00000000000000000007-2-00000000DEADBEEF.snapshot.avro",
        "products/AQEBAQEBAQEBAQEBAQEBAQ/3/00000000000000000007-+2-00000000deadbeef.snapshot.avro",
        "products/AQEBAQEBAQEBAQEBAQEBAQ/3/00000000000000000007-2-00000000deadbeef.parquet",
        "products/AQ/3/00000000000000000007-2-00000000deadbeef.index",
        "a/products/AQEBAQEBAQEBAQEBAQEBAQ/3/00000000000000000007-2-00000000deadbeef.index",
        "00000000000000000007-2-00000000deadbeef.index",
        "",
    ] {
        assert!(wrong.parse::<Name>().is_err(), "{wrong}");
    }
    let source =
        |topic: &str, id| SourcePartition { topic: topic.into(), topic_id: TopicId([id; 16]), partition: 2 };
    let letter = |source: &SourcePartition, part| super::name::letter(&name.folder, source, 17, part);
    let ours = source("shop.products", 2);
    assert_eq!(
        letter(&ours, LetterPart::Value),
        "products/AQEBAQEBAQEBAQEBAQEBAQ/3/shop.products-AgICAgICAgICAgICAgICAg-2-17.letter"
    );
    assert_eq!(
        letter(&ours, LetterPart::Whole),
        "products/AQEBAQEBAQEBAQEBAQEBAQ/3/shop.products-AgICAgICAgICAgICAgICAg-2-17.whole.letter"
    );
    let long = letter(&source(&"t".repeat(249), 0xfb), LetterPart::Whole);
    let file = long.rsplit('/').next().unwrap();
    assert!(file.len() < 255 && super::name::check(&long).is_ok(), "{file}");
}

proptest! {
    #[test]
    fn names_come_back_as_they_were_and_every_store_takes_them(
        dataset in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,30}", id: [u8; 16], shard: u32, version: u64, epoch: u64, checksum: u64,
        kind in prop_oneof![Just(Kind::Delta), Just(Kind::Snapshot), Just(Kind::Index)],
    ) {
        let folder = Folder { dataset, topic_id: TopicId(id), shard: Shard(shard) };
        let checksum = Checksum(checksum);
        let name = Name { folder, version: Version(version), epoch, checksum, kind };
        let text = name.to_string();
        prop_assert!(super::name::check(&text).is_ok(), "{text}");
        prop_assert_eq!(text.parse::<Name>().unwrap(), name);
    }

    #[test]
    fn names_sort_as_versions_do(a: u64, b: u64) {
        let folder = Folder { dataset: "d".into(), topic_id: TopicId::default(), shard: Shard(0) };
        let name = |version| Name {
            folder: folder.clone(), version: Version(version), epoch: 1, checksum: Checksum(0), kind: Kind::Delta,
        }.to_string();
        prop_assert_eq!(a.cmp(&b), name(a).cmp(&name(b)));
    }

    #[test]
    fn no_text_is_a_name_by_accident(text in "\\PC{0,80}") {
        prop_assert!(text.parse::<Name>().is_err());
    }
}
