//! The dataset's schema changes, again and again, back too: a version is the same for whoever reads it, however they came
//! to it.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::format::container::Counts;
use crate::schema::Resolver;
use crate::schema::wire::put_long;

/// Any of them follows any other. The first and the third are encoded alike and differ in a default.
const SCHEMAS: [&str; 4] = [
    r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"},{"name":"x","type":"int","default":1}]}"#,
    r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"}]}"#,
    r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"},{"name":"x","type":"int","default":2}]}"#,
    r#"{"type":"record","name":"n.P","fields":[{"name":"y","type":["long","null"],"default":3,"aliases":["x"]},
        {"name":"id","type":"string"}]}"#,
];

fn schemas() -> [Arc<Schema>; 4] {
    SCHEMAS.map(|json| Arc::new(Schema::dataset(json).unwrap()))
}

/// A datum of one of them; `x` where it has one.
fn datum(of: usize, id: u8, x: i64) -> Vec<u8> {
    let mut out = Vec::new();
    let name = |out: &mut Vec<u8>| put_bytes(out, format!("k{id}").as_bytes());
    match of {
        1 => name(&mut out),
        3 => {
            put_long(&mut out, 0);
            put_long(&mut out, x);
            name(&mut out);
        }
        _ => {
            name(&mut out);
            put_long(&mut out, x);
        }
    }
    out
}

fn json(schema: &Schema, datum: &[u8]) -> Json {
    let mut text = String::new();
    crate::codec::text::to_json(schema, datum, &mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn rows(view: &View) -> BTreeMap<Vec<u8>, Json> {
    let row = |value: Value<'_>| {
        let found = view.get(value.key()).unwrap().unwrap();
        assert_eq!(found.bytes(), value.bytes());
        (value.key().to_vec(), json(view.schema(), value.bytes()))
    };
    view.iter().map(|value| row(value.unwrap())).collect()
}

/// A dataset with a writer that turns from schema to schema.
struct Evolving {
    world: World,
    /// Each life parses its own.
    schema: Arc<Schema>,
    /// By key, in the newest schema.
    model: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Evolving {
    fn new(first: usize) -> Evolving {
        let mut world = World::new();
        let schema = schemas()[first].clone();
        world.view = View::empty(world.identity.clone(), schema.clone());
        Evolving { world, schema, model: BTreeMap::new() }
    }

    /// What becomes of every value when the next version is of this schema.
    fn turn(&mut self, to: usize) {
        let next = schemas()[to].clone();
        if !self.schema.is_same_as(&next) {
            let resolver = Resolver::new(&self.schema, &next).unwrap();
            for value in self.model.values_mut() {
                let mut read = Vec::new();
                resolver.resolve(value, &mut read).unwrap();
                *value = read;
            }
        }
        self.schema = next.clone();
        self.world.view = self.world.view.turned_to(&next).unwrap();
    }

    fn write(&mut self, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> (DeltaRef, About) {
        let world = &mut self.world;
        let previous = world.chain.version();
        let version = previous.next();
        let header =
            world.identity.header(Kind::Delta, version, previous, LIFE, world.view.schema(), Vec::new());
        let header = crate::format::container::Header { former: world.view.former().clone(), ..header };
        let mut writer = Writer::new(Vec::new(), &header).unwrap();
        for (key, value) in changes {
            let stamp = Stamp { timestamp: 1, source: 0, offset: version.0 as i64 };
            writer.push(&Entry { key, stamp, value: value.as_deref() }).unwrap();
            match value {
                Some(value) => self.model.insert(key.clone(), value.clone()),
                None => self.model.remove(key),
            };
        }
        let (summary, plain) = writer.finish().unwrap();
        let blob = world.put(blob::name::Kind::Delta, version, plain);
        let Counts { upserts, deletes } = summary.counts;
        let delta = DeltaRef { version, epoch: LIFE.epoch, blob, upserts, deletes };
        world.chain.deltas.push(delta.clone());
        let schema = Arc::new(Schema::dataset(self.schema.json()).unwrap());
        let records = self.model.len() as u64;
        (delta, About { version, life: LIFE, records, ..About::nothing(schema) })
    }

    fn expected(&self) -> BTreeMap<Vec<u8>, Json> {
        let row = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), json(&self.schema, value));
        self.model.iter().map(row).collect()
    }

    /// As somebody opens it who was not there before.
    fn opened(&self, about: &About) -> View {
        let (fetcher, world) = (self.world.fetcher(), &self.world);
        let opened = fetcher.open(&world.identity, &world.chain, None, about.clone());
        world.runtime.block_on(opened).unwrap()
    }
}

type Step = (usize, BTreeMap<u8, Option<i64>>, u8);

/// Goes through the steps with readers of each kind, and holds all of them against the model after each.
fn play(first: usize, steps: &[Step]) {
    let mut dataset = Evolving::new(first);
    let (cache, fetcher) = (dataset.world.cache.clone(), dataset.world.fetcher());
    let hold = Arc::new(Hold::new(None, None, vec![vec!["x".to_owned()], vec!["y".to_owned()]]));
    // Follows and never merges, with indexes; follows and merges; opens anew each time.
    let mut follower = dataset.world.view.clone().hold(&hold, &cache).unwrap();
    let mut merging = dataset.world.view.clone();
    let mut before: Option<View> = None;
    let mut kept_from = BTreeMap::new();
    for (to, changes, action) in steps {
        dataset.turn(*to);
        let was = dataset.model.clone();
        let changes =
            changes.iter().map(|(id, x)| (format!("k{id}").into_bytes(), x.map(|x| datum(*to, *id, x))));
        let (delta, about) = dataset.write(&changes.collect());
        let apply = |view: &View| {
            let applied = fetcher.apply(view, &delta, None, about.clone());
            dataset.world.runtime.block_on(applied).unwrap().restate(about.clone()).unwrap()
        };
        follower = apply(&follower);
        merging = apply(&merging);
        let written = apply(&dataset.world.view);
        dataset.world.view = written;
        let opened = dataset.opened(&about);
        let expected = dataset.expected();
        for (who, view) in [
            ("writer", &dataset.world.view),
            ("follower", &follower),
            ("merging", &merging),
            ("opened", &opened),
        ] {
            assert_eq!(rows(view), expected, "{who} at version {}", view.version());
            assert!(view.schema().is_same_as(&dataset.schema), "{who}");
            assert_eq!(view.count().unwrap(), expected.len() as u64);
            assert_eq!(view.former(), dataset.world.view.former(), "{who}");
            assert!(view.unreadable().unwrap().is_none());
        }
        let field = if *to == 3 { "y" } else { "x" };
        for x in 0..4 {
            let found = follower.by(field, x);
            if *to == 1 {
                assert!(found.is_err(), "the schema has no such field");
                continue;
            }
            let found: Vec<_> = found.unwrap().map(|value| value.unwrap().key().to_vec()).collect();
            let is = |(key, row): (&Vec<u8>, &Json)| (row[field] == json!(x)).then(|| key.clone());
            assert_eq!(found, expected.iter().filter_map(is).collect::<Vec<_>>(), "{field} = {x}");
        }
        // The change of schema by itself changes no key.
        if let Some(before) = &before {
            let differ: Vec<_> = follower.changes_from(before).map(|it| it.unwrap().key().to_vec()).collect();
            let keys: std::collections::BTreeSet<_> = was.keys().chain(dataset.model.keys()).collect();
            let differs = |key: &&Vec<u8>| was.get(*key) != dataset.model.get(*key);
            assert_eq!(differ, keys.into_iter().filter(differs).cloned().collect::<Vec<_>>());
        }
        match action {
            0 => {
                let base = merging.merge_snapshot(LIFE, &cache).unwrap().into_base().unwrap();
                merging = merging.rebase(base).unwrap();
                assert!(!merging.is_resolved());
            }
            1 => {
                let view = dataset.world.view.clone();
                let snapshot = dataset.world.snapshot(&view);
                let rebased =
                    |view: &View| dataset.world.runtime.block_on(fetcher.rebase(view, &snapshot)).unwrap();
                let (written, merged) = (rebased(&dataset.world.view), rebased(&merging));
                dataset.world.view = written;
                merging = merged;
            }
            // Another process takes over.
            2 => dataset.world.view = opened.clone(),
            _ => {}
        }
        before = Some(follower.clone());
        kept_from.insert(follower.version(), (follower.clone(), expected));
    }
    for (version, (view, expected)) in kept_from {
        assert_eq!(rows(&view), expected, "version {version} stays what it was");
    }
}

#[test]
fn a_schema_that_comes_back_gives_back_no_value() {
    let all = |of: i64| (0..4).map(|id| (id, Some(of))).collect::<BTreeMap<_, _>>();
    // Without `x` for a version: what comes back has the default. By a base of the first, by one of the second.
    for action in [1, 9] {
        play(0, &[(0, all(7), 9), (1, BTreeMap::new(), action), (0, BTreeMap::new(), 9), (0, all(3), 9)]);
    }
    // The default of a text that nothing was written under counts, too.
    play(1, &[(1, all(0), 9), (0, BTreeMap::new(), 9), (2, BTreeMap::new(), 9), (3, BTreeMap::new(), 0)]);
}

#[test]
fn who_was_in_force_before_is_remembered() {
    let mut dataset = Evolving::new(0);
    let hashes = schemas().map(|schema| schema.text_hash());
    for (to, former) in [(0, vec![]), (1, vec![0]), (2, vec![0, 1]), (0, vec![1, 2]), (0, vec![1, 2])] {
        dataset.turn(to);
        let (delta, about) = dataset.write(&BTreeMap::new());
        let fetcher = dataset.world.fetcher();
        let applied = fetcher.apply(&dataset.world.view, &delta, None, about.clone());
        let applied = dataset.world.runtime.block_on(applied).unwrap();
        dataset.world.view = applied;
        let former: Vec<u64> = former.into_iter().map(|at: usize| hashes[at]).collect();
        assert_eq!(dataset.opened(&about).former()[..], former);
    }
}

#[test]
fn a_part_is_made_anew_where_the_schema_changes() {
    let mut dataset = Evolving::new(0);
    let filter = crate::codec::Filter::parse("x >= 5").unwrap();
    let hold = Arc::new(Hold::new(Some(filter), Some(vec!["x".to_owned()]), Vec::new()));
    let fetcher = dataset.world.fetcher().holding(hold);
    dataset.turn(0);
    let changes = [(b"k1".to_vec(), Some(datum(0, 1, 9))), (b"k2".to_vec(), Some(datum(0, 2, 4)))];
    let (delta, about) = dataset.write(&BTreeMap::from(changes));
    let world = &dataset.world;
    let open = |chain: &Chain, about: &About| {
        world.runtime.block_on(fetcher.open(&world.identity, chain, None, about.clone())).unwrap()
    };
    let part = open(&world.chain, &about);
    assert_eq!(rows(&part), BTreeMap::from([(b"k1".to_vec(), json!({"x": 9}))]));
    let applied = world.runtime.block_on(fetcher.apply(&world.view, &delta, None, about)).unwrap();
    dataset.world.view = applied;

    dataset.turn(2);
    let (delta, about) = dataset.write(&BTreeMap::from([(b"k3".to_vec(), Some(datum(2, 3, 6)))]));
    let world = &dataset.world;
    let applied = world.runtime.block_on(fetcher.apply(&part, &delta, None, about.clone()));
    assert!(matches!(applied, Err(Error::Gap(_))), "{applied:?}");
    let part = world.runtime.block_on(fetcher.open(&world.identity, &world.chain, None, about)).unwrap();
    assert_eq!(rows(&part).len(), 2);
}

#[test]
fn a_record_that_the_next_schema_has_nothing_for_is_found() {
    let of = |symbols: &str| {
        let json = format!(
            r#"{{"type":"record","name":"P","fields":[{{"name":"e","type":{{"type":"enum","name":"E","symbols":[{symbols}]}}}}]}}"#
        );
        Arc::new(Schema::dataset(&json).unwrap())
    };
    let (wide, narrow) = (of(r#""A","B""#), of(r#""B""#));
    let mut dataset = Evolving::new(0);
    dataset.schema = wide.clone();
    dataset.world.view = View::empty(dataset.world.identity.clone(), wide);
    let changes =
        [(b"a".to_vec(), Some(vec![2])), (b"b".to_vec(), Some(vec![0])), (b"c".to_vec(), Some(vec![0]))];
    let (delta, about) = dataset.write(&BTreeMap::from(changes));
    let fetcher = dataset.world.fetcher();
    let view = fetcher.apply(&dataset.world.view, &delta, None, about);
    let view = dataset.world.runtime.block_on(view).unwrap();
    assert_eq!(view.unreadable().unwrap(), None);
    let turned = view.turned_to(&narrow).unwrap();
    assert_eq!(turned.unreadable().unwrap(), Some((2, b"b".to_vec())));
    assert!(turned.get("a").unwrap().is_some() && turned.get("b").is_err());
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let changes = prop::collection::btree_map(0..6u8, proptest::option::weighted(0.8, 0..4i64), 0..4);
    prop::collection::vec((0..4usize, changes, 0..5u8), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_version_is_the_same_however_one_came_to_it(first in 0..4usize, steps in steps()) {
        play(first, &steps);
    }
}
