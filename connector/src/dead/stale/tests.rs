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
    }
}

fn is_behind(slot: &mut Slot, stable: i64, high: i64) -> bool {
    let Ok(behind) = slot.is_behind(stable, || Ok::<_, std::convert::Infallible>(high));
    behind
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
