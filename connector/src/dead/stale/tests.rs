use std::cell::Cell;

use proptest::prelude::*;

use super::*;

fn slot() -> Slot {
    Slot {
        topic: "orders".to_owned(),
        partition: 0,
        from: 0,
        low: 0,
        end: 0,
        forgets_before: i64::MIN,
        letters: Vec::new(),
        passed: 0,
        foreign: None,
        next: 0,
        ours: false,
        open: false,
    }
}

fn is_behind(slot: &mut Slot, stable: i64, high: i64) -> bool {
    slot.reach(stable, high).is_some()
}

#[test]
fn a_transaction_of_ours_alone_is_not_read_and_any_other_record_is() {
    let mut slot = slot();
    assert!(slot.is_next((0, 9), 10), "right behind what was looked at");
    assert!(!is_behind(&mut slot, 5, 10), "its marker is not there yet");
    assert!(!is_behind(&mut slot, 11, 11), "and here it is");
    assert_eq!(slot.next, 11);
    assert!(slot.is_next((11, 14), 4));
    assert!(slot.is_next((16, 16), 1), "between them is the marker");
    assert!(is_behind(&mut slot, 19, 19), "the marker, and another record");
    assert_eq!(slot.next, 17);
    assert!(!slot.is_next((20, 29), 9), "one between them is not ours");
    assert!(!slot.is_next((18, 27), 10), "one before them is not ours");
    assert!(slot.is_next((17, 17), 1));
    assert!(is_behind(&mut slot, 19, 21), "the marker may lie behind an open transaction");
}

#[test]
fn what_stands_in_an_open_transaction_of_others_is_not_known() {
    let mut slot = slot();
    let mut open = |stable, high| (slot.reach(stable, high), slot.open);
    assert_eq!(open(0, 0), (None, false), "nothing is there");
    assert_eq!(open(0, 3), (None, true), "something that nobody sees yet");
    assert_eq!(open(2, 3), (Some(2), true));
    assert_eq!(open(4, 3), (Some(4), false), "all that was there is decided");
    slot.next = 4;
    assert!(slot.is_next((4, 9), 6));
    let mut open = |stable, high| (slot.reach(stable, high), slot.open);
    assert_eq!(open(4, 10), (None, false), "ours alone, and its marker is not there yet");
    assert_eq!(open(4, 11), (None, true), "its marker, or somebody's record");
}

/// Until it has ended, and where it does not, once for as long as is said.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_is_waited_for_once() {
    let settle = |mut slot: Slot, wait: Duration, ends_after: usize| {
        let asked = std::cell::Cell::new(0);
        let ask = || {
            asked.set(asked.get() + 1);
            Ok((if asked.get() > ends_after { 12 } else { 5 }, 10))
        };
        let clock = Clock::system();
        let stable =
            settled(&mut slot, (&clock, wait), &CancellationToken::new(), ask).expect("no error is made up");
        (stable, slot, asked.get())
    };
    let done = tokio::task::spawn_blocking(move || {
        let (stable, slot, asked) = settle(slot(), Duration::from_secs(60), 3);
        assert_eq!((stable, slot.open, asked), (Some(12), false, 4));
        let (stable, slot, _) = settle(slot, Duration::from_millis(20), usize::MAX);
        assert_eq!((stable, slot.open), (Some(5), true));
        let (_, slot, asked) = settle(slot, Duration::from_secs(600), usize::MAX);
        assert_eq!((slot.open, asked), (true, 1), "it was waited for");
    });
    done.await.expect("it does not panic");
}

/// Of a compacted source what was deleted is known only for as long as it says; a letter may have been announced long after its
/// record was written.
#[test]
fn a_letter_is_as_old_as_its_record() {
    let standing = |timestamp, failed_at| {
        let keys = Keys { codec: None, schemas: Schemas::new(None) };
        let mut sources = Sources::new(keys, Clock::system(), Duration::ZERO);
        sources.slots.push(Slot { end: 9, forgets_before: 1_000, ..slot() });
        sources.latest.insert((0, hash(b"k")), Latest { offset: 3, copy: None });
        let source = Source { topic: "orders", partition: 0, offset: 3 };
        sources.judge(source, Encoded { key: Some(b"k"), ..Encoded::default() }, (timestamp, failed_at, 0))
    };
    assert_eq!(standing(1_000, 1_001), Standing::Fresh);
    assert!(matches!(standing(999, 5_000), Standing::Unknown(why) if why.contains("forgets deletes")));
    assert!(matches!(standing(5_000, 999), Standing::Unknown(_)));
}

/// One late answer does not end a replay; what will not change does, and what does not come for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn where_a_source_ends_is_asked_until_it_is_answered() {
    let late = || kafka::Error::Unavailable { doing: "asking".to_owned(), detail: "timed out".to_owned() };
    let (clock, stop) = (Clock::manual(0), CancellationToken::new());
    let asked = Cell::new(0);
    let ask = |answer: &dyn Fn(u32) -> Result<i64, kafka::Error>, stop: &CancellationToken| {
        asked.set(0);
        let ask = || {
            asked.set(asked.get() + 1);
            answer(asked.get())
        };
        tokio::task::block_in_place(|| answered(&clock, stop, ask))
    };
    let third = ask(&|nth| if nth < 3 { Err(late()) } else { Ok(7) }, &stop);
    assert_eq!((third.ok(), asked.get()), (Some(7), 3));
    let no_time = |_| {
        clock.advance(PATIENCE / 2);
        Err(late())
    };
    let never = ask(&no_time, &stop);
    assert!(matches!(never, Err(Error::Kafka { source: kafka::Error::Unavailable { .. }, .. })), "{never:?}");
    assert_eq!(asked.get(), 2);
    let denied =
        ask(&|_| Err(kafka::Error::Denied { doing: "asking".to_owned(), detail: String::new() }), &stop);
    assert!(matches!(denied, Err(Error::Kafka { source: kafka::Error::Denied { .. }, .. })), "{denied:?}");
    assert_eq!(asked.get(), 1, "that does not change");
    stop.cancel();
    assert!(matches!(ask(&|_| Err(late()), &stop), Err(Error::Stopped)));
}

/// What stands at an offset.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Theirs,
    Ours,
    Marker,
}

proptest! {
    /// Whatever others write between, before and behind our records, in transactions or not: each of theirs is looked
    /// at.
    #[test]
    fn no_record_of_others_is_passed_over(turns in proptest::collection::vec(
        (0usize..3, proptest::collection::vec(any::<bool>(), 0..6), 0usize..3, any::<[bool; 4]>()), 1..12,
    )) {
        let (mut slot, mut log, mut looked) = (slot(), Vec::new(), Vec::new());
        // Where transactions begin that are not ended.
        let (mut theirs, mut ours): (Option<usize>, Option<usize>) = (None, None);
        let mut look = |slot: &mut Slot, log: &[At], open: [Option<usize>; 2]| {
            let stable = open.into_iter().flatten().chain([log.len()]).min().unwrap_or(0) as i64;
            if is_behind(slot, stable, log.len() as i64) {
                looked.extend(slot.next..stable);
                slot.next = stable;
            }
        };
        for (before, mixed, behind, [opens, early, seen, ends]) in turns {
            log.extend(std::iter::repeat_n(At::Theirs, before));
            look(&mut slot, &log, [theirs, ours]);
            let open = |log: &mut Vec<At>, theirs: &mut Option<usize>| {
                theirs.get_or_insert(log.len());
                log.push(At::Theirs);
            };
            if opens && early {
                open(&mut log, &mut theirs);
            }
            let begins = log.len();
            log.extend(mixed.iter().map(|ours| if *ours { At::Ours } else { At::Theirs }));
            let sent: Vec<i64> =
                (begins..log.len()).filter(|at| log[*at] == At::Ours).map(|at| at as i64).collect();
            log.extend(std::iter::repeat_n(At::Theirs, behind));
            if opens && !early {
                open(&mut log, &mut theirs);
            }
            if let (Some(first), Some(last)) = (sent.first(), sent.last()) {
                ours = Some(*first as usize);
                slot.is_next((*first, *last), sent.len() as i64);
                if seen {
                    look(&mut slot, &log, [theirs, ours]);
                }
                log.push(At::Marker);
                ours = None;
            }
            if ends && theirs.take().is_some() {
                log.push(At::Marker);
            }
        }
        look(&mut slot, &log, [None, None]);
        for (at, what) in log.iter().enumerate() {
            let looked_at = looked.contains(&(at as i64));
            prop_assert!(*what != At::Theirs || looked_at, "{at} of {log:?}: {looked:?}");
        }
    }
}
