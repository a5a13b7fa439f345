//! Clients that are cut off in the middle of a version, over versions whose blobs are in a store.

use std::collections::BTreeMap;

use super::*;
use crate::clock::{Clock, Entropy};
use crate::consumer::Reader;
use crate::consumer::listen::tests::World;
use crate::consumer::recent::MOST;
use crate::host::{Dataset, Directory, ReadingSide};
use crate::record::TopicId;
use crate::schema::Schema;
use crate::telemetry::{ConsumerMetrics, Metrics};
use crate::view::Hold;

const NAMED: &str = r#"{"type":"record","name":"Product","fields":[{"name":"name","type":"string"}]}"#;

fn world() -> World {
    let mut world = World::new();
    world.schema = Arc::new(Schema::dataset(NAMED).unwrap());
    world
}

fn over(world: &World) -> App {
    let reader = Reader::over(world.recent.clone(), world.versions[0].0.clone());
    let side = ReadingSide::new(reader, ConsumerMetrics::detached(), 10);
    let clock = Clock::manual(1_700_000_000_000);
    let directory = Directory::new([Dataset::new("products", Some(side), None)], clock.clone());
    App::new(directory, Metrics::new(), clock)
}

fn named(name: &str) -> Json {
    json!({ "name": name })
}

/// A client that applies each change as it comes.
struct Follower {
    client: Client,
    has: BTreeMap<String, Json>,
    /// The version that it has, whole; `None`: a part of one, or nobody knows: something comes.
    at: Option<u64>,
}

impl Follower {
    async fn new(app: &App) -> Follower {
        let client = Client::open(app, "?since=0", None).await;
        Follower { client, has: BTreeMap::new(), at: None }
    }

    /// Takes the next event.
    async fn take(&mut self, world: &World) {
        let (_, name, data) = self.client.next().await.expect("the stream goes on");
        let version = data["version"].as_u64().unwrap();
        match name.as_str() {
            "change" => {
                let key = data["key"].as_str().unwrap().to_owned();
                match &data["new"] {
                    Json::Null => self.has.remove(&key),
                    new => self.has.insert(key, new.clone()),
                };
                self.at = None;
            }
            "reset" => (self.has, self.at) = (state(world, version), Some(version)),
            "version" => {
                assert_eq!(self.has, state(world, version), "at its event version {version} is whole");
                self.at = Some(version);
            }
            _ => {}
        }
    }

    /// Takes what comes, up to this version, `most` events.
    async fn reach(&mut self, world: &World, version: u64, most: u64) {
        for _ in 0..most {
            if self.at == Some(version) {
                break;
            }
            self.take(world).await;
        }
    }

    async fn back(&mut self, app: &App) {
        let last = std::mem::take(&mut self.client.last);
        self.client = Client::open(app, "?since=0", Some(&last)).await;
        self.client.last = last;
        self.at = None;
    }
}

/// What a version holds.
fn state(world: &World, version: u64) -> BTreeMap<String, Json> {
    let view = &world.versions[version as usize - 1].0;
    let row = |value: crate::Result<Value<'_>>| {
        let value = value.unwrap();
        let key = String::from_utf8(value.key().to_vec()).unwrap();
        (key, serde_json::from_str(&value.to_json().unwrap()).unwrap())
    };
    view.prefix(b"").map(row).collect()
}

#[tokio::test]
async fn who_was_cut_off_in_a_version_is_rid_of_it_where_readers_are_pinned_below() {
    let mut world = world();
    world.advance(&[("a", Some("1")), ("b", Some("1"))]).await;
    let app = over(&world);
    let mut client = Client::open(&app, "", None).await;
    assert_eq!(client.next().await.unwrap().0, "1");
    world.advance(&[("a", Some("bad")), ("b", None), ("c", Some("bad"))]).await;
    client
        .expect("1+2", "change", json!({"version": 2, "key": "a", "old": named("1"), "new": named("bad")}))
        .await;
    drop(client);
    world.show(1);
    for query in ["?since=1%2B2", "?since=1+2"] {
        let mut client = Client::open(&app, query, None).await;
        for (key, old, new) in
            [("a", named("1"), named("1")), ("b", named("1"), named("1")), ("c", Json::Null, Json::Null)]
        {
            client.expect("1+2", "change", json!({"version": 1, "key": key, "old": old, "new": new})).await;
        }
        let whole = json!({"version": 1, "from": 1, "changes": 3, "rollback": false});
        client.expect("1", "version", whole).await;
    }
    // Who has all of it goes back to it.
    let mut client = Client::open(&app, "", Some("2")).await;
    client.expect("", "rollback", json!({"version": 1, "from": 2})).await;
    client
        .expect("2+1", "change", json!({"version": 1, "key": "a", "old": named("bad"), "new": named("1")}))
        .await;
    // A version that nobody can open any more, or too many of them: all has to be read anew.
    for last in ["1+9", "1+2+3+4+5+6"] {
        assert_eq!(Client::open(&app, "", Some(last)).await.next().await.unwrap().1, "reset", "{last}");
    }
}

#[tokio::test]
async fn what_was_set_back_meanwhile_is_named_where_versions_come_as_one() {
    let mut world = world();
    world.advance(&[("a", Some("1")), ("k", Some("1"))]).await;
    world.advance(&[("k", Some("2")), ("z", Some("2"))]).await;
    let app = over(&world);
    world.write(&[("k", Some("1")), ("z", None)]).await;
    for number in 0..MOST + 5 {
        world.write(&[("a", Some(&number.to_string()))]).await;
    }
    let newest = world.versions.len() as u64;
    world.show(newest);
    let mut changes = BTreeMap::new();
    let mut client = Client::open(&app, "", Some("1+2")).await;
    let end = loop {
        let (id, name, data) = client.next().await.unwrap();
        if name == "version" {
            break data;
        }
        assert_eq!(id, format!("1+2+{newest}"));
        changes.insert(data["key"].as_str().unwrap().to_owned(), data["new"].clone());
    };
    assert_eq!((&end["from"], &end["version"]), (&json!(1), &json!(newest)), "as one");
    assert_eq!((&changes["k"], &changes["z"]), (&named("1"), &Json::Null));
    // Who had nothing, and got a part of version 2.
    let mut client = Client::open(&app, "", Some("0+2")).await;
    let (id, _, gone) = client.next().await.unwrap();
    assert_eq!((id, &gone["key"], &gone["new"]), (format!("0+2+{newest}"), &json!("z"), &Json::Null));
    let mut all: Vec<_> = Vec::new();
    while let Some((_, name, data)) = client.next().await
        && name == "change"
    {
        all.push(data["key"].clone());
    }
    assert_eq!(all, ["a", "k"], "each once");
}

/// Whatever happens to the connection and to the dataset, at a `version` event the client has that version.
#[tokio::test]
async fn a_client_has_each_version_whole_however_often_it_is_cut_off() {
    let seed = Entropy::system().next_u64();
    println!("seed {seed}");
    let chance = Entropy::seeded(seed);
    let below = |most: u64| chance.next_u64() % most;
    let mut world = world();
    world.advance(&[("k0", Some("0"))]).await;
    let app = over(&world);
    let mut follower = Follower::new(&app).await;
    let mut shown = 1;
    let (mut cuts, mut wholes) = (0, 0);
    for _ in 0..80 {
        let newest = world.versions.len() as u64;
        shown = match below(16) {
            0..3 => newest.saturating_sub(below(4)).max(1),
            3 => {
                for _ in 0..MOST + 2 {
                    world.write(&[("k0", Some("0"))]).await;
                }
                world.versions.len() as u64
            }
            4..7 if shown < newest => newest,
            _ => {
                let keys: Vec<String> =
                    (0..8).filter(|_| below(2) == 0).map(|key| format!("k{key}")).collect();
                let value = below(3).to_string();
                let changes: Vec<_> =
                    keys.iter().map(|key| (key.as_str(), (below(3) > 0).then_some(value.as_str()))).collect();
                world.write(&changes).await;
                newest + 1
            }
        };
        world.show(shown);
        match below(3) {
            0 => {
                follower.reach(&world, shown, u64::MAX).await;
                wholes += 1;
            }
            1 => {
                // In the middle, as a rule.
                follower.reach(&world, shown, below(6)).await;
                follower.back(&app).await;
                cuts += 1;
            }
            // Nobody looks.
            _ => {}
        }
    }
    follower.back(&app).await;
    follower.reach(&world, shown, u64::MAX).await;
    assert_eq!(follower.has, state(&world, shown));
    assert!(cuts > 5 && wholes > 5, "{cuts} {wholes}");
}

#[tokio::test]
async fn an_id_of_another_history_or_of_other_fields_is_no_place_to_go_on_from() {
    let mut one = world();
    one.advance(&[("a", Some("1"))]).await;
    one.advance(&[("a", Some("2"))]).await;
    let mut client = Client::open(&over(&one), "?since=1", None).await;
    client.next().await.unwrap();
    let part = client.last.clone();
    client.next().await.unwrap();
    let whole = client.last.clone();
    // Both histories are at version 2; the one topic is made anew, or the one reader holds less.
    let mut other = world();
    other.identity.topic_id = TopicId([8; 16]);
    other.advance(&[("a", Some("1"))]).await;
    other.advance(&[("z", Some("9"))]).await;
    let mut less = world();
    less.hold = Arc::new(Hold::new(None, Some(vec!["name".to_owned()]), Vec::new()));
    less.restart();
    less.advance(&[("a", Some("1"))]).await;
    less.advance(&[("a", Some("2"))]).await;
    for last in [&whole, &part] {
        assert_eq!(
            Client::open(&over(&one), "", Some(last)).await.next().await.unwrap().0,
            if last == &whole { "2" } else { "1+2" }
        );
        for world in [&other, &less] {
            let app = over(world);
            for (query, last) in [(String::new(), Some(last.as_str())), (format!("?since={last}"), None)] {
                let (id, name, data) = Client::open(&app, &query, last).await.next().await.unwrap();
                assert_eq!((id.as_str(), name.as_str()), ("2", "reset"), "{data}");
                assert!(data["reason"].as_str().unwrap().contains("another history"), "{data}");
            }
            // A number by itself is taken at its word.
            assert_eq!(Client::open(&app, "?since=2", None).await.next().await.unwrap().1, "version");
            // From nothing on, an id is of what this reader holds.
            let mut all = Client::open(&app, "?since=0", None).await;
            assert_eq!(all.next().await.unwrap().0, "0+2");
            let again = Client::open(&app, "", Some(&all.last)).await.next().await.unwrap();
            assert_eq!((again.0.as_str(), again.1.as_str()), ("0+2", "change"));
        }
    }
}
