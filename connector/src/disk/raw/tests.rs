use super::*;
use crate::disk::rocksdb::tests::{append, change, chunk, copy_dir, file, numbers, open};
use crate::disk::{Damage, check};

/// What the write-ahead log in `dir` holds, and where it breaks off.
fn walked(dir: &Path) -> (Vec<u64>, Vec<u64>, Option<Broken>) {
    let (mut reached, mut behind) = (Vec::new(), Vec::new());
    let broken = wal::walk(&file(dir, "log"), &mut |record| {
        for (number, bytes) in chunks(&record) {
            assert!(Chunk::parse_copy(bytes).is_ok());
            if record.reached { &mut reached } else { &mut behind }.push(number);
        }
    });
    (reached, behind, broken.unwrap())
}

#[test]
fn a_write_ahead_log_is_read_as_rocksdb_reads_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    // Records within a block, across the end of one, and over many.
    append(&database, 0..8, 5_000);
    append(&database, 8..9, 200_000);
    append(&database, 9..12, 100);
    database.forget(0, 2, true).unwrap();
    append(&database, 12..14, 3_000);
    drop(database);
    assert_eq!(walked(&dir), ((0..14).collect(), vec![], None));
    assert_eq!(broken(&dir).unwrap(), []);
    let length = std::fs::metadata(file(&dir, "log")).unwrap().len();
    let mut resynced = false;
    for n in 0..60 {
        let at = (length - 1) * n / 59;
        let copy = root.path().join(format!("{n}"));
        copy_dir(&dir, &copy);
        let torn = n % 2 == 0;
        change(&file(&copy, "log"), |bytes| {
            if torn { bytes.truncate(at as usize) } else { bytes[at as usize] ^= 1 << (n % 8) }
        });
        let (reached, behind, broken_at) = walked(&copy);
        assert_eq!(reached, (0..reached.len() as u64).collect::<Vec<_>>());
        match &broken_at {
            Some(broken) => {
                assert!(broken.at <= at, "{broken} after byte {at}");
                assert_eq!(broken.at + broken.rest, if torn { at } else { length });
            }
            // At a record's end, or in the padding of a block, which nobody reads.
            None => assert!(torn || reached.len() == 14, "byte {at}"),
        }
        resynced |= !behind.is_empty();
        assert_eq!(broken(&copy).unwrap(), Vec::from_iter(broken_at));
        let opened = open(&copy);
        let kept: Vec<u64> = reached.into_iter().filter(|number| *number > 1).collect();
        let found: Vec<u64> = numbers(&opened.survey).into_iter().filter(|number| *number > 1).collect();
        assert_eq!(found, kept, "RocksDB reads what is reached, and no more");
    }
    assert!(resynced, "chunks behind damage are found again, in a later block");
}

/// A file that is opened in time: RocksDB, not told of it, would read these for ever.
fn opened_in_time(dir: &Path) -> Vec<u64> {
    let (tell, told) = std::sync::mpsc::channel();
    let dir = dir.to_owned();
    std::thread::spawn(move || tell.send(numbers(&open(&dir).survey)));
    told.recv_timeout(std::time::Duration::from_secs(60)).expect("it comes to an end")
}

#[test]
fn types_of_files_used_again_end_a_log_like_other_damage() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..4, 20_000);
    database.reclaim().unwrap();
    append(&database, 4..8, 20_000);
    drop(database);
    let mut records = Vec::new();
    wal::walk(&file(&dir, "log"), &mut |record| records.push(record.at)).unwrap();
    assert_eq!(endless(&dir).unwrap(), None);
    // The first fragments of a record, 1 or 2, made 5 or 6: the first, in the middle, the last.
    for (n, at) in [(0, records[0]), (1, records[1]), (2, *records.last().unwrap())] {
        let copy = root.path().join(format!("{n}"));
        copy_dir(&dir, &copy);
        change(&file(&copy, "log"), |bytes| bytes[at as usize + 6] ^= 4);
        let name = file(&copy, "log").file_name().unwrap().to_string_lossy().into_owned();
        let found = endless(&copy).unwrap();
        assert_eq!(found, (n > 0).then(|| (name, at + 6)), "the first of all RocksDB gets over");
        let checked = check(&copy, &mut |_| {}).unwrap();
        assert!(!checked.damage.is_empty());
        let (reached, _, broken) = walked(&copy);
        assert_eq!(broken.unwrap().at, at);
        let mut whole: Vec<u64> = (0..4).chain(reached).collect();
        whole.dedup();
        assert_eq!(opened_in_time(&copy), whole);
        assert_eq!(check(&copy, &mut |_| {}).unwrap().damage, []);
    }
    // In the manifest it is a database that RocksDB refuses.
    let manifest = std::fs::read_to_string(dir.join("CURRENT")).unwrap();
    let mut records = Vec::new();
    wal::walk(&dir.join(manifest.trim()), &mut |record| records.push(record.at)).unwrap();
    change(&dir.join(manifest.trim()), |bytes| bytes[records[1] as usize + 6] ^= 4);
    assert!(matches!(&check(&dir, &mut |_| {}).unwrap().damage[..], [Damage::Refused(_), ..]));
    assert_eq!(opened_in_time(&dir), Vec::<u64>::new());
}

#[test]
fn a_manifest_that_is_cut_off_is_seen() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..3, 2_000);
    database.reclaim().unwrap();
    drop(database);
    assert_eq!(broken(&dir).unwrap(), []);
    let current = std::fs::read_to_string(dir.join("CURRENT")).unwrap();
    change(&dir.join(current.trim()), |bytes| bytes.truncate(bytes.len() - 3));
    let broken = broken(&dir).unwrap();
    assert!(matches!(&broken[..], [one] if one.file.starts_with("MANIFEST-")), "{broken:?}");
}

#[test]
fn blobs_are_found_behind_damage_and_around_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..4, 2_000);
    database.reclaim().unwrap();
    drop(database);
    let path = file(&dir, "blob");
    let walked = || {
        let mut found = Vec::new();
        blob::walk(&path, &mut |blob| {
            found.push((
                seq(Kind::Chunk, blob.key),
                blob.whole,
                blob.value == &chunk(found.len() as u64, 2_000).encoded()[..],
            ));
        })
        .unwrap();
        found
    };
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(walked(), (0..4).map(|n| (Some(n), true, true)).collect::<Vec<_>>());
    // a value
    change(&path, |bytes| bytes[30 + 32 + 100] ^= 1);
    assert_eq!(walked()[0], (Some(0), false, false));
    assert_eq!(walked()[1..], (1..4).map(|n| (Some(n), true, true)).collect::<Vec<_>>());
    // the header of a record: from here on by the chunks' own magic, without keys
    std::fs::write(&path, &whole).unwrap();
    change(&path, |bytes| bytes[30 + 3] ^= 1);
    assert_eq!(walked(), [(None, true, true); 4]);
    // cut off, in records and between them
    for length in (0..whole.len()).step_by(61) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(walked().len() <= 4);
    }
}

#[test]
fn salvage_gives_each_whole_chunk_once_wherever_it_lies() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..3, 2_000); // to a blob file
    append(&database, 3..5, 100); // to a sorted file
    database.reclaim().unwrap();
    append(&database, 5..7, 2_000); // in the write-ahead log
    drop(database);
    std::fs::remove_file(dir.join("CURRENT")).unwrap();
    let mut found = Vec::new();
    salvage(&dir, &mut |one| {
        found.push((one.chunk.ranges()[0].from, one.number));
        Ok(())
    })
    .unwrap();
    found.sort();
    let numbered = |n: i64| (n, (!(3..5).contains(&n)).then_some(n as u64));
    assert_eq!(found, (0..7).map(numbered).collect::<Vec<_>>());
}
