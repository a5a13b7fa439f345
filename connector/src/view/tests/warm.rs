//! A second start of who holds a part, or looks up by fields: it finds what the first one made, reads nothing of the base, and
//! comes to the same. What it finds damaged, cut or foreign it makes anew.

use std::fs;
use std::path::Path;

use super::*;
use crate::codec::Filter;
use crate::gauge::Budget;
use crate::schema::wire::put_long;

const ROW: &str = r#"{"type":"record","name":"Row","fields":[
    {"name":"category","type":"string"},{"name":"size","type":"long"},{"name":"note","type":"string"}]}"#;
const RECORDS: u32 = 3_000;
/// As many, where pages are counted.
const MANY: u32 = 20_000;
/// Pages of a base that a start may read: its header's, and one for each key that a delta changed.
const FEW: u32 = 6;

/// Category and size of a value that [`numbered`] makes.
fn of(value: &[u8]) -> (&'static str, i64) {
    let text = std::str::from_utf8(value).unwrap();
    let number: usize = text.rsplit('-').next().unwrap().parse().unwrap();
    // A value that changes changes its category.
    (["red", "green", "blue"][(number + text.len()) % 3], (number % 7) as i64)
}

fn row(value: &[u8]) -> Vec<u8> {
    let (category, size) = of(value);
    let mut out = Vec::new();
    put_bytes(&mut out, category.as_bytes());
    put_long(&mut out, size);
    put_bytes(&mut out, value);
    out
}

fn row_and_more(value: &[u8]) -> Vec<u8> {
    [row(value), vec![0]].concat()
}

fn fields(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn indexes() -> Vec<Vec<String>> {
    vec![fields(&["category"]), fields(&["category", "size"])]
}

fn whole() -> Arc<Hold> {
    Arc::new(Hold::new(None, None, indexes()))
}

fn part(most: i64, names: &[&str]) -> Arc<Hold> {
    let filter = Filter::parse(&format!("size < {most} and category != 'blue'")).unwrap();
    Arc::new(Hold::new(Some(filter), Some(fields(names)), indexes()))
}

/// A snapshot, and two deltas above it.
fn world() -> World {
    world_of(RECORDS)
}

fn world_of(records: u32) -> World {
    let mut world = World::new();
    world.schema = Arc::new(Schema::dataset(ROW).unwrap());
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    world.encode = row;
    world.advance(&numbered(0..records, &"v".repeat(60)));
    let view = world.view.clone();
    world.snapshot(&view);
    change(&mut world, 1_000);
    change(&mut world, 2_000);
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    world
}

/// The next version: two keys of one page, one of them deleted.
fn change(world: &mut World, at: u32) {
    let mut changes = numbered(at..at + 1, "another");
    changes.insert(key(at + 1), None);
    world.write(&changes);
}

/// Another process on the same directory, in which nothing is held yet.
fn restart(world: &mut World) {
    world.cache = Cache::open(world.dir.path(), u64::MAX).unwrap();
}

fn open(world: &World, hold: &Arc<Hold>) -> View {
    let about = About {
        version: world.chain.version(),
        life: LIFE,
        records: world.model.len() as u64,
        ..About::nothing(world.schema.clone())
    };
    let fetcher = world.fetcher().holding(hold.clone()).keeping();
    world.runtime.block_on(fetcher.open(&world.identity, &world.chain, None, about)).unwrap()
}

/// Equals the model, by scan and by every lookup. `most`: the sizes that are held, without category blue; `None`: all is.
fn check(view: &View, model: &Model, most: Option<i64>) {
    let rows: Vec<_> = model.iter().map(|(key, value)| (key.clone(), of(value))).collect();
    let held = |(category, size): &(&str, i64)| most.is_none_or(|most| *size < most && *category != "blue");
    let rows: Vec<_> = rows.into_iter().filter(|(_, row)| held(row)).collect();
    assert_eq!(view.records(), rows.len() as u64);
    let scanned: Vec<_> = view.iter().map(|value| value.unwrap().key().to_vec()).collect();
    assert!(scanned.iter().eq(rows.iter().map(|(key, _)| key)));
    check_lookups(view, &rows);
}

fn check_lookups(view: &View, rows: &[(Vec<u8>, (&'static str, i64))]) {
    let keys = |matches: Matches<'_>| matches.map(|value| value.unwrap().key().to_vec()).collect::<Vec<_>>();
    let those = |fits: &dyn Fn(&(&str, i64)) -> bool| {
        rows.iter().filter(|(_, row)| fits(row)).map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    for category in ["red", "green", "blue"] {
        let expected = those(&|row| row.0 == category);
        assert_eq!(keys(view.by("category", category).unwrap()), expected);
        assert!(
            expected.is_empty()
                || keys(
                    view.by_all_from(&[("category", category.into())], &expected[expected.len() / 2])
                        .unwrap()
                ) == expected[expected.len() / 2..]
        );
        for size in 0..8 {
            let both = [("size", size.into()), ("category", category.into())];
            assert_eq!(keys(view.by_all(&both).unwrap()), those(&|row| *row == (category, size)));
        }
    }
}

fn touched(view: &View) -> (u32, u64) {
    view.base().unwrap().touched()
}

/// Another file in the place of what may be mapped.
fn put(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_indexed_start_reads_nothing_of_the_base() {
    let mut world = world_of(MANY);
    let first = open(&world, &whole());
    let (read, all) = touched(&first);
    assert!(u64::from(read) == all && all > 3 * u64::from(FEW), "the first one reads all: {read} of {all}");
    check(&first, &world.model, None);
    drop(first);
    restart(&mut world);
    change(&mut world, 500);
    let second = open(&world, &whole());
    assert_eq!(touched(&second).0, 1, "its header");
    // Of the base nothing: of each of three deltas two entries, one of them a delete.
    let (memory, mapped) = second.index_sizes();
    assert_eq!(memory, 2 * 3 * 8);
    assert!(mapped > 2 * 8 * u64::from(MANY));
    check(&second, &world.model, None);
    // What is made of it goes on as ever.
    let merged =
        second.rebase(second.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap()).unwrap();
    check(&merged, &world.model, None);
    drop((second, merged));
    restart(&mut world);
    let third = open(&world, &whole());
    assert_eq!(
        (touched(&third).0, world.files(".lookup").len()),
        (1, 2),
        "a merge of its own changes nothing"
    );
}

#[test]
fn a_part_is_found_as_it_was_kept() {
    let mut world = world_of(MANY);
    let hold = part(5, &["size", "category"]);
    let first = open(&world, &hold);
    check(&first, &world.model, Some(5));
    drop(first);
    restart(&mut world);
    // It is not even there any more.
    let snapshot = world.chain.snapshot.clone().unwrap();
    for name in [&snapshot.blob.name, &snapshot.index.name] {
        world.runtime.block_on(world.store.delete(name)).unwrap();
    }
    for name in [FileName::snapshot(&snapshot), FileName::index(&snapshot)] {
        fs::remove_file(world.cache.path(&world.identity, &name).unwrap()).unwrap();
    }
    change(&mut world, 500);
    change(&mut world, 2_500);
    // Fields are the same in whatever order.
    let second = open(&world, &part(5, &["category", "size"]));
    let (read, all) = touched(&second);
    assert!(read <= FEW && all > u64::from(FEW), "{read} of {all}");
    check(&second, &world.model, Some(5));
    assert_eq!((world.files(".kept").len(), world.files(".lookup").len()), (1, 2));
    assert!(!second.schema().json().contains("note") && second.whole_schema().json().contains("note"));
    // Merged, and then started again: the merge is gone with its process, what was kept is not.
    let merged =
        second.rebase(second.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap()).unwrap();
    world.cache.relieve().unwrap();
    check(&merged, &world.model, Some(5));
    drop((second, merged));
    restart(&mut world);
    let third = open(&world, &hold);
    assert!(touched(&third).0 <= FEW);
    check(&third, &world.model, Some(5));
}

/// A reader that came by deltas past a snapshot that it never fetched.
#[test]
fn a_start_begins_with_what_was_merged_once_a_newer_snapshot_is_announced() {
    let names = ["size", "category"];
    for (hold, most) in [(Arc::default(), None), (whole(), None), (part(5, &names), Some(5))] {
        let mut world = world_of(MANY);
        let view = open(&world, &hold);
        assert!(view.can_begin(&world.chain, &world.cache), "with what it was opened from");
        let all = world.open().unwrap();
        let snapshot = world.snapshot(&all);
        drop(all);
        let (delta, about) = world.write(&numbered(500..501, "another"));
        let next = world.runtime.block_on(world.fetcher().apply(&view, &delta, None, about)).unwrap();
        assert!(!next.can_begin(&world.chain, &world.cache), "the snapshot is in the store alone");
        let merged = next.rebase(next.merge_kept(LIFE, &world.chain, &world.cache).unwrap()).unwrap();
        assert!(merged.can_begin(&world.chain, &world.cache));
        drop((view, next, merged));
        restart(&mut world);
        for name in [&snapshot.blob.name, &snapshot.index.name] {
            world.runtime.block_on(world.store.delete(name)).unwrap();
        }
        change(&mut world, 700);
        let again = open(&world, &hold);
        assert_eq!(again.base().map(|base| base.version()), Some(delta.version));
        let (read, all) = touched(&again);
        assert!(read <= FEW && all > u64::from(FEW), "{read} of {all}");
        if hold.indexes().is_empty() {
            assert_eq!(again.records(), world.model.len() as u64);
            assert!(again.iter().map(|value| value.unwrap().key().to_vec()).eq(world.model.keys().cloned()));
        } else {
            check(&again, &world.model, most);
        }
        // Nobody else's: who only looks takes what is announced.
        let other = world.fetcher().holding(hold.clone());
        let about =
            About { version: world.chain.version(), life: LIFE, ..About::nothing(world.schema.clone()) };
        let opened = world.runtime.block_on(other.open(&world.identity, &world.chain, None, about));
        assert_eq!(opened.is_err(), hold.is_whole());
    }
}

#[test]
fn other_filters_fields_and_indexes_are_made_of_the_whole() {
    let mut world = world();
    drop(open(&world, &part(5, &["category", "size"])));
    for (number, (most, names)) in
        [(4, &["category", "size"][..]), (5, &["category", "size", "note"]), (6, &["size", "category"])]
            .into_iter()
            .enumerate()
    {
        restart(&mut world);
        let view = open(&world, &part(most, names));
        check(&view, &world.model, Some(most));
        assert_eq!(world.files(".kept").len(), number + 2);
    }
    // An index of the same fields in another order has other hashes.
    drop(open(&world, &whole()));
    let before = world.files(".lookup").len();
    restart(&mut world);
    let turned = Arc::new(Hold::new(None, None, vec![fields(&["size", "category"]), fields(&["category"])]));
    let view = open(&world, &turned);
    assert_eq!(world.files(".lookup").len(), before + 1);
    check(&view, &world.model, None);
    // And all that is still there is what it was.
    restart(&mut world);
    let view = open(&world, &part(5, &["category", "size"]));
    check(&view, &world.model, Some(5));
    assert!(touched(&view).0 <= FEW && world.files(".kept").len() == 4);
}

#[test]
fn who_opens_another_version_than_the_newest_keeps_no_part() {
    let world = world();
    let about = About { version: world.chain.version(), life: LIFE, ..About::nothing(world.schema.clone()) };
    let fetcher = world.fetcher().holding(part(5, &["category", "size"]));
    let view = world.runtime.block_on(fetcher.open(&world.identity, &world.chain, None, about)).unwrap();
    check(&view, &world.model, Some(5));
    assert!(world.files(".kept").is_empty());
}

#[test]
fn a_change_of_schema_is_another_thing() {
    let mut world = world();
    let hold = part(5, &["category", "size"]);
    for hold in [&whole(), &hold] {
        drop(open(&world, hold));
    }
    world.schema = Arc::new(
        Schema::dataset(&ROW.replace(
            r#""string"}]"#,
            r#""string"},{"name":"more","type":["null","string"],"default":null}]"#,
        ))
        .unwrap(),
    );
    world.encode = row_and_more;
    change(&mut world, 500);
    restart(&mut world);
    let (kept, tables) = (world.files(".kept").len(), world.files(".lookup").len());
    let view = open(&world, &whole());
    check(&view, &world.model, None);
    assert_eq!(world.files(".lookup").len(), tables + 2, "read by another way");
    check(&open(&world, &hold), &world.model, Some(5));
    assert_eq!(world.files(".kept").len(), kept + 1);
    drop(view);
    restart(&mut world);
    assert_eq!(touched(&open(&world, &whole())).0, 1);
    change(&mut world, 2_700);
    let view = open(&world, &hold);
    assert!(touched(&view).0 <= FEW);
    check(&view, &world.model, Some(5));
}

/// Any byte, any cut, zeros, another's: a start that does not fail, and the truth; and the file is as it was.
#[test]
fn damaged_tables_are_made_anew() {
    let mut world = world();
    drop(open(&world, &whole()));
    let tables = world.files(".lookup");
    let wholes: Vec<_> = tables.iter().map(|path| fs::read(path).unwrap()).collect();
    let rows: Vec<_> = world.model.iter().map(|(key, value)| (key.clone(), of(value))).collect();
    let good = &wholes[0];
    let flips = (0..good.len()).step_by(997).chain((0..64).step_by(8)).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    let cuts = [0, 1, 30, good.len() / 2, good.len() - 1].map(|end| good[..end].to_vec());
    let zeros = [
        good.iter().enumerate().map(|(at, byte)| if at < 16_384 { *byte } else { 0 }).collect(),
        vec![0; good.len()],
    ];
    let others = [wholes[1].clone(), [&good[..], b"x"].concat()];
    for bytes in flips.chain(cuts).chain(zeros).chain(others) {
        put(&tables[0], &bytes);
        restart(&mut world);
        let view = open(&world, &whole());
        check_lookups(&view, &rows);
        assert!(view.damaged().is_none(), "nothing of the base");
        drop(view);
        // What a lookup found damaged is gone, and made by the next start.
        drop(open(&world, &whole()));
        assert!(fs::read(&tables[0]).unwrap() == *good);
    }
}

#[test]
fn a_damaged_table_is_made_anew_for_all_that_share_it() {
    let mut world = world();
    drop(open(&world, &whole()));
    for path in world.files(".lookup") {
        let mut bytes = fs::read(&path).unwrap();
        bytes[16_384..].fill(0xff);
        put(&path, &bytes);
    }
    restart(&mut world);
    let view = open(&world, &whole());
    assert_eq!(touched(&view).0, 1);
    let rows: Vec<_> = world.model.iter().map(|(key, value)| (key.clone(), of(value))).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| check_lookups(&view, &rows));
        }
    });
    assert!(view.index_bytes() >= 2 * 8 * u64::from(RECORDS), "they are in memory now");
    assert!(world.files(".lookup").is_empty());
}

#[test]
fn a_damaged_note_or_part_is_made_anew() {
    let mut world = world();
    let hold = part(5, &["category", "size"]);
    drop(open(&world, &hold));
    let note = world.files(".kept").remove(0);
    let good = fs::read(&note).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        put(&note, &bytes);
        restart(&mut world);
        let view = open(&world, &hold);
        assert_eq!(
            view.records(),
            world.model.values().map(|value| of(value)).filter(|row| row.1 < 5 && row.0 != "blue").count()
                as u64
        );
        drop(view);
        assert!(fs::read(&note).unwrap() == good, "byte {at}");
    }
    for end in (0..good.len()).step_by(9) {
        put(&note, &good[..end]);
        restart(&mut world);
        check(&open(&world, &hold), &world.model, Some(5));
    }
    // The files that it speaks of: their first pages are read at once, and by the keys of deltas.
    change(&mut world, 500);
    let whole_one = FileName::snapshot(world.chain.snapshot.as_ref().unwrap()).checksum.hex();
    for ending in [".snapshot.avro", ".index"] {
        let kept = |path: &PathBuf| {
            let version = path.file_name().unwrap().to_string_lossy().starts_with("00000000000000000003-");
            version && !path.to_string_lossy().contains(&whole_one)
        };
        let path = world.files(ending).into_iter().find(kept).unwrap();
        let good = fs::read(&path).unwrap();
        for damaged in
            [Vec::new(), vec![0; good.len()], vec![0xff; good.len()], good[..good.len() - 1].to_vec()]
        {
            put(&path, &damaged);
            restart(&mut world);
            check(&open(&world, &hold), &world.model, Some(5));
            for newer in world.files(".kept").into_iter().filter(|path| *path != note) {
                fs::remove_file(newer).unwrap();
            }
            put(&path, &good);
        }
    }
}

#[test]
fn what_is_made_counts_and_goes_as_blobs_do() {
    let mut world = world();
    let hold = part(5, &["category", "size"]);
    let (one, two) = (open(&world, &whole()), open(&world, &hold));
    let bytes = |world: &World| -> u64 {
        world
            .files("")
            .iter()
            .filter(|path| !path.to_string_lossy().contains("current"))
            .map(|path| fs::metadata(path).unwrap().len().next_multiple_of(4096))
            .sum()
    };
    assert_eq!(world.cache.used(), bytes(&world));
    world.cache.relieve().unwrap();
    let there = |world: &World| (world.files(".kept").len(), world.files(".lookup").len());
    assert_eq!(there(&world), (1, 4), "they are in use");
    drop((one, two));
    world.cache.relieve().unwrap();
    assert_eq!(
        (there(&world), world.cache.used(), world.files("").len()),
        ((0, 0), 0, 0),
        "nobody holds them"
    );
    // Within a budget that takes no more than one of the two: each start is right, whatever is gone.
    let budget = 600_000;
    for _ in 0..3 {
        world.cache = Cache::open(world.dir.path(), budget).unwrap();
        check(&open(&world, &whole()), &world.model, None);
        world.cache = Cache::open(world.dir.path(), budget).unwrap();
        check(&open(&world, &hold), &world.model, Some(5));
        drop(Cache::open(world.dir.path(), budget).unwrap());
        assert!(bytes(&world) <= budget);
    }
    world.cache = Cache::open(world.dir.path(), u64::MAX).unwrap();
    drop(open(&world, &hold));
    world.cache.trim(&world.identity, world.chain.version().next()).unwrap();
    assert_eq!(there(&world), (0, 0), "nor what is below all that is kept");
}

#[test]
fn two_that_share_a_directory_make_the_same() {
    let world = world();
    let hold = part(5, &["category", "size"]);
    for _ in 0..4 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let cache = Cache::open(world.dir.path(), u64::MAX).unwrap();
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    for (hold, most) in [(&whole(), None), (&hold, Some(5))] {
                        let about = About {
                            version: world.chain.version(),
                            life: LIFE,
                            records: world.model.len() as u64,
                            ..About::nothing(world.schema.clone())
                        };
                        let fetcher =
                            Fetcher::new(world.store.clone(), cache.clone()).holding(hold.clone()).keeping();
                        let view = fetcher.open(&world.identity, &world.chain, None, about);
                        let view = runtime.block_on(view).unwrap();
                        check(&view, &world.model, most);
                        cache.relieve().unwrap();
                    }
                });
            }
        });
    }
}

/// Bytes that a dataset of the test below may take.
const LIMIT: u64 = 4 << 20;

/// A reader with indexes, a small limit, and views before the newest that somebody holds: what is charged is what is taken.
#[test]
#[ignore = "run by another test, as a process of its own"]
fn churns_within_its_memory() {
    let mut world = World::new();
    world.schema = Arc::new(Schema::dataset(ROW).unwrap());
    world.encode = row;
    let memory = Budget::new(LIMIT);
    let empty = View::empty(world.identity.clone(), world.schema.clone());
    world.view = empty.hold(&whole(), &world.cache).unwrap().charged_to(Some(&memory));
    world.advance(&numbered(0..MANY, "version 000"));
    let merge = |world: &mut World| {
        let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
        world.view = world.view.rebase(base).unwrap();
    };
    merge(&mut world);
    let mut held = std::collections::VecDeque::new();
    let (mut merges, mut most, mut least, mut looks) = (0, 0, u64::MAX, Vec::new());
    for version in 0..400u32 {
        let from = version * 211 % (MANY - 150);
        world.advance(&numbered(from..from + 150, &format!("version {version:03}")));
        // Of the chain and the store as much is there as at any time.
        let before = world.chain.deltas.remove(0);
        world.runtime.block_on(world.store.delete(&before.blob.name)).unwrap();
        world.view = world.view.clone().holding_from(world.view.version());
        held.push_back(world.view.clone());
        if held.len() > 8 {
            held.pop_front();
        }
        if world.view.wants_merge(LIMIT) {
            merge(&mut world);
            merges += 1;
        }
        most = most.max(memory.used());
        if version % 10 == 9 {
            least = least.min(memory.used());
            looks.push(heap::held() as i64 - memory.used() as i64);
        }
    }
    check(&world.view, &world.model, None);
    assert!(merges >= 5, "{merges} merges");
    assert!(most > LIMIT / 4 && most <= LIMIT, "{most} bytes were charged at most, after {merges} merges");
    // What is taken beside it stays as it is, while that comes and goes.
    let (low, high) = (looks.iter().min().unwrap(), looks.iter().max().unwrap());
    println!("{least} to {most} bytes charged, {low} to {high} beside");
    assert!((high - low) as u64 * 2 < most - least, "{least} to {most} bytes charged, beside {looks:?}");
    let own = world.view.own_memory();
    held.clear();
    assert_eq!(memory.used(), own, "what is left is the newest version's");
    drop(world);
    assert_eq!(memory.used(), 0);
}

#[test]
fn memory_is_charged_as_it_is_taken() {
    heap::alone("view::tests::warm::churns_within_its_memory");
}

/// A base of this process alone has its tables mapped, too.
#[test]
fn tables_of_a_merged_base_are_no_memory() {
    let mut world = World::new();
    world.schema = Arc::new(Schema::dataset(ROW).unwrap());
    world.encode = row;
    world.view =
        View::empty(world.identity.clone(), world.schema.clone()).hold(&whole(), &world.cache).unwrap();
    world.advance(&numbered(0..40_000, "v"));
    assert_eq!(world.view.index_sizes(), (2 * 40_000 * 8, 0));
    let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    world.view = world.view.rebase(base).unwrap();
    let (memory, mapped) = world.view.index_sizes();
    assert!(memory == 0 && mapped >= 2 * 40_000 * 8);
    check(&world.view, &world.model, None);
    assert_eq!(
        world.files("").iter().filter(|path| !path.to_string_lossy().ends_with(".delta.avro")).count(),
        0
    );
}
