//! Subsets and indexes against a model of rows, through deltas, merges, restarts and changes of schema.

use proptest::prelude::*;

use super::*;
use crate::codec::Filter;
use crate::schema::wire::put_long;

const ROW: &str = r#"{"type":"record","name":"Row","fields":[
    {"name":"category","type":["null",{"type":"enum","name":"C","symbols":["red","green","blue"]}]},
    {"name":"size","type":"int"},
    {"name":"note","type":"string"}]}"#;

/// Category (0: null), size, note.
type Row = (u8, i64, String);
type Rows = BTreeMap<Vec<u8>, Row>;

fn row_datum((category, size, note): &Row) -> Vec<u8> {
    let mut out = Vec::new();
    put_long(&mut out, i64::from(*category > 0));
    if *category > 0 {
        put_long(&mut out, i64::from(*category - 1));
    }
    put_long(&mut out, *size);
    put_bytes(&mut out, note.as_bytes());
    out
}

fn category(category: u8) -> Option<&'static str> {
    [None, Some("red"), Some("green"), Some("blue")][usize::from(category)]
}

/// Versions of rows, without a store.
struct Table {
    world: World,
    schema: Arc<Schema>,
    version: Version,
    rows: Rows,
}

impl Table {
    fn new() -> Table {
        let schema = Arc::new(Schema::dataset(ROW).unwrap());
        Table { world: World::new(), schema, version: Version(0), rows: Rows::new() }
    }

    fn empty(&self) -> View {
        View::empty(self.world.identity.clone(), self.schema.clone())
    }

    /// The next delta.
    fn write(&mut self, changes: &BTreeMap<Vec<u8>, Option<Row>>) -> (Arc<DeltaFile>, About) {
        let previous = self.version;
        self.version = previous.next();
        let header =
            self.world.identity.header(Kind::Delta, self.version, previous, LIFE, &self.schema, Vec::new());
        let mut writer = Writer::new(Vec::new(), &header).unwrap();
        for (key, row) in changes {
            let value = row.as_ref().map(row_datum);
            let stamp = Stamp { offset: self.version.0 as i64, ..Stamp::default() };
            writer.push(&Entry { key, stamp, value: value.as_deref() }).unwrap();
            match row {
                Some(row) => self.rows.insert(key.clone(), row.clone()),
                None => self.rows.remove(key),
            };
        }
        let plain = writer.finish().unwrap().1;
        let delta = DeltaFile::from_plain(plain, &self.world.identity, &self.schema).unwrap();
        let about = About {
            version: self.version,
            life: LIFE,
            records: self.rows.len() as u64,
            ..About::nothing(self.schema.clone())
        };
        (Arc::new(delta), about)
    }
}

fn rebased(view: &View, cache: &Cache) -> View {
    view.rebase(view.merge_snapshot(LIFE, cache).unwrap().into_base().unwrap()).unwrap()
}

fn check_lookups(view: &View, rows: &Rows) {
    let keys = |matches: Matches<'_>| matches.map(|value| value.unwrap().key().to_vec()).collect::<Vec<_>>();
    let those = |fits: &dyn Fn(&Row) -> bool| {
        rows.iter().filter(|(_, row)| fits(row)).map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    for wanted in 0..4u8 {
        let expected = those(&|row| row.0 == wanted);
        assert_eq!(keys(view.by("category", category(wanted)).unwrap()), expected);
        for size in 0..3i64 {
            let expected = those(&|row| row.0 == wanted && row.1 == size);
            let both = [("size", Term::from(size)), ("category", category(wanted).into())];
            assert_eq!(keys(view.by_all(&both).unwrap()), expected);
            for from in [&b"k03"[..], b"k1", b"zzz"] {
                let later: Vec<_> = expected.iter().filter(|key| key.as_slice() >= from).cloned().collect();
                assert_eq!(keys(view.by_all_from(&both, from).unwrap()), later);
            }
        }
    }
}

fn changes() -> impl Strategy<Value = BTreeMap<Vec<u8>, Option<Row>>> {
    let row = (0..4u8, 0..4i64, "[ab]?");
    let change = (0..24u8, proptest::option::weighted(0.8, row));
    prop::collection::vec(change, 0..12)
        .prop_map(|all| all.into_iter().map(|(key, row)| (format!("k{key:02}").into_bytes(), row)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn what_is_held_and_found_is_what_the_rows_say(deltas in prop::collection::vec((changes(), 0..4u8), 1..14)) {
        let mut table = Table::new();
        let filter = Filter::parse("size < 3 and (category != 'blue' or note = 'a')").unwrap();
        let fits = |row: &&Row| row.1 < 3 && (!matches!(row.0, 0 | 3) || row.2 == "a");
        let indexes = || vec![vec!["category".to_owned()], vec!["category".to_owned(), "size".to_owned()]];
        let fields = vec!["size".to_owned(), "category".to_owned()];
        let whole = Arc::new(Hold::new(None, None, indexes()));
        let part = Arc::new(Hold::new(Some(filter), Some(fields), indexes()));
        let cache = table.world.cache.clone();
        // The same versions: as they are, indexed, and cut down.
        let mut plain = table.empty();
        let mut indexed = table.empty().hold(&whole, &cache).unwrap();
        let mut kept = table.empty().hold(&part, &cache).unwrap();
        for (changes, turn) in &deltas {
            let before = (kept.clone(), table.rows.clone());
            let (delta, about) = table.write(changes);
            plain = plain.apply(delta.clone(), about.clone()).unwrap();
            indexed = indexed.apply(delta.clone(), about.clone()).unwrap();
            kept = kept.apply(delta, about.clone()).unwrap().restate(about).unwrap();
            match turn {
                0 => {
                    plain = rebased(&plain, &cache);
                    indexed = rebased(&indexed, &cache);
                    kept = rebased(&kept, &cache);
                }
                // A restart: held anew out of the whole.
                1 => {
                    indexed = plain.clone().hold(&whole, &cache).unwrap();
                    kept = plain.clone().hold(&part, &cache).unwrap();
                }
                _ => {}
            }
            check_lookups(&indexed, &table.rows);
            let rows: Rows = table.rows.iter().filter(|(_, row)| fits(row)).map(|(key, row)| (key.clone(), row.clone())).collect();
            check_lookups(&kept, &rows);
            prop_assert_eq!((kept.records(), kept.count().unwrap()), (rows.len() as u64, rows.len() as u64));
            let held: Vec<_> = kept.iter().map(|value| {
                let value = value.unwrap();
                assert!(value.is_zero_copy());
                (value.key().to_vec(), value.to_json().unwrap())
            }).collect();
            let json = |row: &Row| match category(row.0) {
                Some(category) => format!(r#"{{"category":"{category}","size":{}}}"#, row.1),
                None => format!(r#"{{"category":null,"size":{}}}"#, row.1),
            };
            let expected: Vec<_> = rows.iter().map(|(key, row)| (key.clone(), json(row))).collect();
            prop_assert_eq!(&held, &expected);
            // What is told of a step is what is seen of it.
            let told: Vec<_> = kept.changes_from(&before.0).map(|change| change.unwrap().key().to_vec()).collect();
            let was: Rows = before.1.into_iter().filter(|(_, row)| fits(&row)).collect();
            let keys: std::collections::BTreeSet<_> = was.keys().chain(rows.keys()).collect();
            let seen: Vec<_> = keys.into_iter().filter(|key| was.get(*key).map(json) != rows.get(*key).map(json)).cloned().collect();
            prop_assert_eq!(told, seen);
        }
    }
}

#[test]
fn an_index_says_what_it_takes_and_what_it_cannot() {
    let mut table = Table::new();
    let rows = |range: std::ops::Range<u32>| {
        range.map(|n| (key(n), Some((n as u8 % 4, i64::from(n), "n".repeat(20))))).collect::<BTreeMap<_, _>>()
    };
    let (delta, about) = table.write(&rows(0..1_000));
    let indexes = [&["category"][..], &["size", "category"], &["colour"], &["note.x"]];
    let indexes =
        indexes.iter().map(|fields| fields.iter().map(|field| (*field).to_owned()).collect()).collect();
    let hold = Arc::new(Hold::new(None, None, indexes));
    let view = table.empty().hold(&hold, &table.world.cache).unwrap().apply(delta, about).unwrap();
    let view = rebased(&view, &table.world.cache);
    assert_eq!(view.index_bytes(), 2 * 1_000 * 8, "8 bytes a record and index");
    let (delta, about) = table.write(&rows(0..10));
    let view = view.apply(delta, about).unwrap();
    assert_eq!(view.index_bytes(), 2 * 1_010 * 8);

    let found = view.by_all(&[("category", "green".into()), ("size", 6.0.into())]).unwrap();
    let found: Vec<_> = found.map(|value| value.unwrap().key().to_vec()).collect();
    assert_eq!(found, [key(6)]);
    assert_eq!(view.by_all(&[("category", "green".into()), ("size", 6.5.into())]).unwrap().count(), 0);
    assert_eq!(view.by("category", "mauve").unwrap().count(), 0);
    let refused = |error: crate::Error, what: &str| {
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(view.by("size", 6).err().unwrap(), "there is: category; size, category");
    refused(view.by("colour", "red").err().unwrap(), "the schema has no field colour");
    refused(view.by("note.x", "red").err().unwrap(), "the schema has no field note.x");
    refused(view.by("category", 7).err().unwrap(), "field category is null or C");
    refused(table.empty().by("category", "red").err().unwrap(), "there is none");
    assert_eq!(view.term("size", b"12").unwrap(), Term::Int(12));
    assert_eq!(view.term("category", b"red").unwrap(), Term::from("red"));
    refused(view.term("size", b"a dozen").unwrap_err(), "field size, which is int");
}

#[test]
fn what_does_not_fit_the_schema_says_so() {
    let table = Table::new();
    for (filter, fields, what) in [
        (Some("weight > 3"), None, "no field weight"),
        (Some("size = 'large'"), None, "not compared with"),
        (None, Some("weight"), "no field \"weight\""),
    ] {
        let filter = filter.map(|filter| Filter::parse(filter).unwrap());
        let hold = Arc::new(Hold::new(filter, fields.map(|field| vec![field.to_owned()]), Vec::new()));
        let error = crate::Error::from(table.empty().hold(&hold, &table.world.cache).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.chain().contains(what), "{}", error.chain());
    }
}

/// The dataset's schema changes under a subset: it is made anew, what is kept of it and what the filter asks are the new one's.
#[test]
fn a_subset_follows_a_change_of_schema() {
    let mut table = Table::new();
    let row = |category, size| Some((category, size, "x".to_owned()));
    let (delta, about) = table.write(&[(key(1), row(1, 1)), (key(2), row(2, 2)), (key(3), row(3, 9))].into());
    let filter = Filter::parse("size < 5").unwrap();
    let fields = Some(vec!["size".to_owned()]);
    let hold = Arc::new(Hold::new(Some(filter), fields, vec![vec!["size".to_owned()]]));
    let whole = table.empty().apply(delta.clone(), about.clone()).unwrap();
    let first = table.empty().hold(&hold, &table.world.cache).unwrap().apply(delta, about).unwrap();
    let first = rebased(&first, &table.world.cache);
    assert_eq!((first.records(), first.schema().json().contains("note")), (2, false));

    table.schema = Arc::new(Schema::dataset(&ROW.replace(r#""type":"int""#, r#""type":"double""#)).unwrap());
    let (_, mut about) = table.write(&BTreeMap::new());
    assert_eq!(about.version, Version(2));
    let header =
        table.world.identity.header(Kind::Delta, Version(2), Version(1), LIFE, &table.schema, Vec::new());
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    let mut datum = vec![0];
    datum.extend(4.5f64.to_le_bytes());
    put_bytes(&mut datum, b"y");
    writer.push(&Entry { key: &key(3), stamp: Stamp::default(), value: Some(&datum) }).unwrap();
    let plain = writer.finish().unwrap().1;
    let delta = Arc::new(DeltaFile::from_plain(plain, &table.world.identity, &table.schema).unwrap());
    about.records = 3;
    let applied = first.apply(delta.clone(), about.clone());
    assert!(matches!(applied, Err(Error::Gap(_))), "{applied:?}");
    let second = whole.apply(delta, about).unwrap().hold(&hold, &table.world.cache).unwrap();
    let sizes: Vec<f64> = second.iter().map(|value| value.unwrap().field("size").unwrap()).collect();
    assert_eq!((second.records(), sizes), (3, vec![1.0, 2.0, 4.5]));
    let of = |view: &View, size: f64| {
        view.by("size", size).unwrap().map(|value| value.unwrap().key().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(
        (of(&second, 2.0), of(&second, 4.5), of(&first, 2.0)),
        (vec![key(2)], vec![key(3)], vec![key(2)])
    );
}
