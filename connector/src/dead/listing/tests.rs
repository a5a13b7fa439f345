use super::*;
use crate::dead::found::Raw;
use crate::format::letter::header;

/// A letter of a dead-letter topic.
#[derive(Clone, Copy)]
struct Letter {
    /// Partition of the topic; offsets are given as they are read.
    partition: i32,
    key: Option<&'static str>,
    /// Offset in the source.
    source: i64,
    timestamp: i64,
    replays: u32,
    origin: Option<&'static str>,
    failed_at: i64,
    stage: &'static str,
    listener: &'static str,
    is_meant: bool,
}

/// Of the record at this offset of the source.
fn of(source: i64) -> Letter {
    Letter {
        partition: 0,
        key: Some("a"),
        source,
        timestamp: 1,
        replays: 0,
        origin: None,
        failed_at: 5,
        stage: "VALUE_CONVERTER",
        listener: "",
        is_meant: true,
    }
}

/// Of the record that stood at offset 7 first, as it was replayed.
fn again(source: i64, replays: u32) -> Letter {
    Letter { replays, origin: Some("orders/0/7@1"), ..of(source) }
}

fn with<T>(offset: usize, letter: &Letter, take: impl FnOnce(&Found<'_>) -> T) -> T {
    let raw = Raw {
        partition: letter.partition,
        offset: offset as i64,
        timestamp: 3,
        key: letter.key.map(str::as_bytes),
        value: Some(b"{"),
    };
    let numbers = [letter.source, letter.replays.into(), letter.failed_at, letter.timestamp];
    let [source, replays, failed_at, timestamp] = numbers.map(|number| number.to_string());
    let headers = [
        (header::LISTENER, letter.listener),
        (header::ORIGIN, letter.origin.unwrap_or("none")),
        (header::TOPIC, "orders"),
        (header::PARTITION, "0"),
        (header::OFFSET, &source),
        (header::STAGE, letter.stage),
        (header::REPLAYS, &replays),
        (header::FAILED_AT, &failed_at),
        (header::ORIGINAL_TIMESTAMP, &timestamp),
    ];
    take(&Found::read(raw, headers.iter().map(|(name, value)| (*name, Some(value.as_bytes())))))
}

fn listing(letters: &[Letter]) -> Listing {
    let mut listing = Listing::default();
    for (offset, letter) in letters.iter().enumerate() {
        with(offset, letter, |found| listing.take(found, letter.is_meant)).unwrap();
    }
    listing
}

/// Of each line: the letter, and how many there are of its record.
fn shown(letters: &[Letter]) -> Vec<(i64, u32)> {
    let mut chosen = listing(letters).chosen(usize::MAX);
    for (offset, letter) in letters.iter().enumerate() {
        with(offset, letter, |found| chosen.take(found));
    }
    chosen.lines().iter().map(|line| (line.offset, line.failures)).collect()
}

#[test]
fn a_record_that_fails_again_is_still_one() {
    let b = Letter { key: Some("b"), ..of(8) };
    assert_eq!(shown(&[of(7), b, again(100, 1), of(9), again(180, 2)]), [(1, 1), (3, 1), (4, 3)]);
    // Where the topic writes the time of arrival, a replay has another than the record.
    let late = |source, replays| Letter { timestamp: 50 + source, ..again(source, replays) };
    assert_eq!(shown(&[of(7), late(100, 1), late(180, 2)]), [(2, 3)]);
}

/// A transaction of the dataset was made again, or the source read anew; a listener died before it noted what it had done.
#[test]
fn two_letters_of_one_position_are_one_record() {
    assert_eq!(shown(&[of(7), of(8), of(7)]), [(1, 1), (2, 2)]);
    let keyless = Letter { key: None, ..of(7) };
    assert_eq!(shown(&[keyless, keyless, Letter { source: 8, ..keyless }]), [(1, 2), (2, 1)]);
    // Another schema by now, so another reason.
    assert_eq!(shown(&[of(7), Letter { stage: "TRANSFORMATION", ..of(7) }]), [(1, 2)]);
    let hook = Letter { stage: "webhook", listener: "hook", ..of(7) };
    assert_eq!(shown(&[hook, hook, Letter { listener: "other", ..hook }, of(7)]), [(1, 2), (2, 1), (3, 1)]);
    // A topic made anew has the same offsets.
    assert_eq!(shown(&[of(7), Letter { timestamp: 2, ..of(7) }]), [(0, 1), (1, 1)]);
}

#[test]
fn records_that_look_the_same_are_not_one() {
    let keyless = |letter| Letter { key: None, ..letter };
    let letters = [of(6), of(7), of(8), again(100, 1)].map(keyless);
    assert_eq!(shown(&letters), [(0, 1), (2, 1), (3, 2)], "the one that was replayed");
    // What says no origin is none's replay.
    assert_eq!(shown(&[of(7), Letter { origin: None, ..again(100, 1) }]), [(0, 1), (1, 1)]);
}

#[test]
fn the_last_letter_is_found_in_any_order_of_partitions() {
    let at = |partition, letter| Letter { partition, ..letter };
    assert_eq!(shown(&[at(0, again(180, 2)), at(1, of(7)), at(2, again(100, 1))]), [(0, 3)]);
    // The record was read anew after it had been replayed: its letter says the later time, and is not the last.
    let anew = Letter { failed_at: 9, ..of(7) };
    assert_eq!(shown(&[at(0, again(100, 1)), at(1, anew)]), [(0, 2)]);
    let early = Letter { failed_at: 4, ..of(7) };
    assert_eq!(shown(&[at(0, of(7)), at(1, early)]), [(0, 2)]);
    assert_eq!(shown(&[at(0, early), at(1, of(7))]), [(1, 2)]);
    assert_eq!(shown(&[of(7), early]), [(1, 2)], "a partition is in order, and a clock may be wrong");
}

#[test]
fn a_last_letter_that_is_not_meant_hides_the_earlier_ones() {
    let other = Letter { key: Some("b"), ..of(8) };
    assert_eq!(shown(&[of(7), Letter { is_meant: false, ..again(100, 1) }, other]), [(2, 1)]);
}

#[test]
fn all_of_them_say_how_many_there_are_and_which_is_the_last() {
    let unmeant = Letter { is_meant: false, ..of(9) };
    let letters = [again(180, 2), of(7), of(8), unmeant, again(100, 1), of(7), again(260, 3)];
    let all = |most| {
        let mut chosen = listing(&letters).all(most);
        let mut all = Vec::new();
        for (offset, letter) in letters.iter().enumerate() {
            if let (Some(among), _) = with(offset, letter, |found| chosen.meet(found)) {
                all.push((offset, among.failures, among.is_last));
            }
        }
        all
    };
    let expected = [(0, 5, false), (1, 5, false), (2, 1, true), (4, 5, false), (5, 5, false), (6, 5, true)];
    assert_eq!(all(usize::MAX), expected);
    assert_eq!(all(3), expected[..3]);
}

#[test]
fn of_a_long_topic_only_what_is_shown_is_held() {
    assert!(size_of::<Row>() <= 32);
    let letters: Vec<Letter> = (0..100).map(of).collect();
    let mut chosen = listing(&letters).chosen(2);
    assert_eq!((chosen.rows.len(), chosen.next()), (2, Some((0, 0))));
    assert!(with(0, &letters[0], |found| chosen.take(found)));
    assert!(!with(1, &letters[1], |found| chosen.take(found)), "no more has to be read");
    assert_eq!((chosen.next(), chosen.lines().len()), (None, 2));

    let mut listing = Listing::within(2);
    for (offset, letter) in letters.iter().take(2).enumerate() {
        with(offset, letter, |found| listing.take(found, true)).unwrap();
    }
    let error = with(2, &letters[2], |found| listing.take(found, true)).unwrap_err();
    assert!(matches!(error, Error::TooManyLetters(2)) && error.to_string().contains("dlq list"), "{error}");
}

#[test]
fn what_retention_takes_between_the_readings_is_left_out() {
    let letters: Vec<Letter> = (0..4).map(of).collect();
    let mut chosen = listing(&letters).chosen(usize::MAX);
    assert!(with(2, &letters[2], |found| chosen.take(found)));
    chosen.leave(0);
    assert_eq!(chosen.next(), None);
    assert_eq!(chosen.lines().iter().map(|line| line.offset).collect::<Vec<_>>(), [2]);
}
