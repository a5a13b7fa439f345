use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::Entropy;
use crate::disk::rocksdb::tests::{append, change, chunk, copy_dir, file, open};

/// Name, length, time and content of all files.
fn everything(dir: &Path) -> Vec<(String, u64, std::time::SystemTime, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|file| {
            let file = file.unwrap();
            let metadata = file.metadata().unwrap();
            let content = if metadata.is_file() { fs::read(file.path()).unwrap() } else { Vec::new() };
            let name = file.file_name().to_string_lossy().into_owned();
            (name, metadata.len(), metadata.modified().unwrap(), content)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn looking_writes_nothing_and_takes_nothing_from_a_process_that_has_it_open() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let mut database = open(&dir).database;
    append(&database, 0..5, 2_000);
    append(&database, 5..8, 100);
    database.reclaim().unwrap();
    database.forget(0, 2, true).unwrap();
    append(&database, 8..12, 2_000);
    for held in [true, false] {
        let before = (everything(&dir), everything(root.path()));
        let look = Look::at(&dir).unwrap();
        let checked = check(&dir, &mut |_| {}).unwrap();
        assert_eq!((everything(&dir), everything(root.path())), before);
        assert_eq!(look.chunks.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (2..12).collect::<Vec<_>>());
        assert_eq!((look.next, look.refused, look.cut, look.closed), (12, None, None, false));
        assert_eq!(look.held_by, held.then(std::process::id));
        let kinds: std::collections::BTreeSet<_> = look.files.iter().map(|(_, kind, _)| *kind).collect();
        assert_eq!(kinds.len(), 5, "{kinds:?}");
        assert_eq!((checked.chunks, checked.records, checked.damage), (10, 10, vec![]));
        if held {
            append(&database, 12..13, 10); // it can still be written
            database.forget(12, 13, true).unwrap();
            drop(database);
            database = open(&root.path().join("another")).database;
        }
    }
    drop(database);
    let refused = Look::at(root.path()).unwrap_err();
    assert!(matches!(&refused, Error::NoLog { .. }), "{refused}");
    assert!(matches!(check(&dir.join("none"), &mut |_| {}), Err(Error::NoLog { .. })));
    assert!(matches!(Look::at(&dir.join("CURRENT")), Err(Error::NoLog { .. })));
    assert!(!dir.join("none").exists());
}

#[test]
fn a_log_that_is_being_written_and_trimmed_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..1, 2_000);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 1;
            while !done.load(Ordering::Relaxed) {
                append(&database, number..number + 10, 20_000);
                number += 10;
                database.forget(0, number - 5, false).unwrap();
                if number % 100 == 1 {
                    database.reclaim().unwrap();
                }
            }
        });
        for _ in 0..30 {
            let checked = check(&dir, &mut |_| {});
            if !matches!(&checked, Ok(checked) if checked.damage.is_empty()) {
                done.store(true, Ordering::Relaxed);
            }
            assert_eq!(checked.unwrap().damage, []);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Whatever byte is flipped or cut off: a log that is said to be whole gives out all that was written.
#[test]
fn what_is_called_whole_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..4, 2_000);
    append(&database, 4..8, 100);
    database.reclaim().unwrap();
    append(&database, 8..11, 2_000);
    drop(database);
    assert_eq!(check(&dir, &mut |_| {}).unwrap().damage, []);
    let entropy = Entropy::seeded(11);
    let files: Vec<_> =
        listed(&dir).unwrap().into_iter().filter(|(_, kind, _)| *kind != FileKind::Other).collect();
    let (mut damaged, mut kinds) = (0, std::collections::BTreeSet::new());
    for round in 0..120 {
        let (name, _, length) = &files[round % files.len()];
        let copy = root.path().join("copy");
        copy_dir(&dir, &copy);
        let at = (entropy.next_u64() % length) as usize;
        let flip = round % 3 != 0;
        change(
            &copy.join(name),
            |bytes| {
                if flip { bytes[at] ^= 1 << (round % 8) } else { bytes.truncate(at) }
            },
        );
        let checked = check(&copy, &mut |_| {}).unwrap();
        if checked.damage.is_empty() {
            let opened = open(&copy);
            assert_eq!(opened.aside, None, "byte {at} of {name}");
            for number in 0..11 {
                let bytes = if (4..8).contains(&number) { 100 } else { 2_000 };
                let found = opened
                    .database
                    .chunk(number)
                    .unwrap_or_else(|error| panic!("byte {at} of {name}: {error}"));
                assert_eq!(found.encoded(), chunk(number, bytes).encoded());
            }
        } else {
            damaged += 1;
            kinds.extend(checked.damage.iter().map(std::mem::discriminant).map(|kind| format!("{kind:?}")));
            assert!(checked.chunks < 12 && !checked.damage[0].to_string().is_empty());
        }
        fs::remove_dir_all(&copy).unwrap();
    }
    assert!(damaged > 100, "only {damaged} of 120 were found");
    assert!(kinds.len() >= 4, "{kinds:?}");
}

#[test]
fn the_first_damage_is_said_first_and_what_is_behind_it_too() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..8, 2_000);
    database.damage(3, |bytes| bytes[100] ^= 1);
    database.damage(6, Vec::clear);
    database.clean(11, 0);
    drop(database);
    let checked = check(&dir, &mut |_| {}).unwrap();
    let numbers: Vec<_> = checked
        .damage
        .iter()
        .filter_map(|damage| if let Damage::Chunk { number, .. } = damage { Some(*number) } else { None })
        .collect();
    assert_eq!((numbers, checked.chunks), (vec![3, 6], 6));
    assert_eq!(checked.damage.last(), Some(&Damage::Missing(3)));
    fs::remove_file(file(&dir, "log")).unwrap();
    assert!(
        !check(&dir, &mut |_| {}).unwrap().damage.is_empty(),
        "nothing is there that was when it was closed"
    );
}

#[test]
fn the_holder_of_a_lock_is_read_from_the_systems_list() {
    let line = "3: FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF";
    assert_eq!(holds(line, 1234), Some(4711));
    assert_eq!(holds(line, 123), None);
    assert_eq!(holds("3: POSIX  ADVISORY  WRITE 4711 fd:00:1234 0 EOF", 1234), None);
    assert_eq!(holds("", 1), None);
}
