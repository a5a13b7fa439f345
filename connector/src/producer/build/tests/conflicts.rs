//! Records that lose against one of another partition: which become letters, and that they stop the line where there are many.

use super::*;
use crate::format::chunk::{ChunkRecord, Original};
use crate::producer::Reliability;

/// As [`batch`], with the original of each beside it: the value behind five bytes, and a header.
fn kept(records: &[Written<'_>]) -> Batch {
    let bare = batch(records);
    let mut builder = ChunkBuilder::new();
    let chunk = &bare.chunks[0];
    let slots: Vec<u16> =
        chunk.ranges().iter().map(|range| builder.slot(&range.source, range.from)).collect();
    for ((_, record), (.., key, value)) in chunk.iter().zip(records) {
        let mut noted = Vec::new();
        let value = value.map(original);
        let header = [("h", None), ("h", Some(&b"\xff"[..]))];
        let original =
            Original::note(&mut noted, &record.body, (Some(key), value.as_deref()), header.into_iter());
        let slot = slots[usize::from(record.slot)];
        builder.push_record(ChunkRecord { slot, original: Some(original), ..record });
    }
    let chunk = builder.finish();
    let items = chunk.iter().map(|(cursor, _)| Item { chunk: 0, cursor }).collect();
    Batch { chunks: vec![chunk], items, ..bare }
}

fn original(value: &[u8]) -> Vec<u8> {
    [b"\0\0\0\0\x07", value].concat()
}

fn storm() -> Storm {
    Storm::new(&Reliability { misfit_share: 0.5, misfit_window: 10, ..Reliability::default() })
}

/// Builds one batch after the other; the letters that wait to be said, or were.
fn letters(builder: &mut Builder, ground: &Ground, batches: Vec<Batch>) -> Vec<Letter> {
    let mut letters = Vec::new();
    for batch in batches {
        let built =
            builder.state.step(Input::Batch(batch), ground.clock.now(), &ground.metrics).expect("it builds");
        letters.extend(built.into_iter().flat_map(|built| built.letters));
    }
    letters.append(&mut builder.state.unsaid.letters);
    letters
}

/// Where a letter's record was, and what its message says of who won.
fn place(letter: &Letter) -> (i32, i64, bool) {
    let won = |from: &str| letter.message.starts_with(from);
    (letter.source.partition, letter.offset, won("orders[1] at offset 7, timestamp 20,"))
}

#[test]
fn what_loses_is_a_letter_byte_for_byte_however_batches_are_cut() {
    let (key, ground): (&[u8], _) = (b"key", Ground::new());
    let records: [Written<'_>; 6] = [
        (1, 7, 20, key, Some(b"new")),
        (0, 3, 10, key, Some(b"old")),
        // What says the same loses nothing; a delete that comes too late is a change like any other.
        (0, 4, 11, key, Some(b"new")),
        (0, 5, 12, key, None),
        // Within its partition each is later than the one before, whatever its time; it was there, and has not lost.
        (1, 8, 5, key, Some(b"newer")),
        (0, 6, 30, key, Some(b"newest")),
    ];
    for size in 1..=records.len() {
        let mut builder = ground.builder(false).keeping_losers(Some(storm()), CancellationToken::new());
        let said = letters(&mut builder, &ground, records.chunks(size).map(kept).collect());
        assert_eq!(
            said.iter().map(place).collect::<Vec<_>>(),
            [(0, 3, true), (0, 5, true)],
            "{size} at a time"
        );
        let old = &said[0];
        assert_eq!((old.key.as_deref(), old.value.as_deref()), (Some(key), Some(&original(b"old")[..])));
        assert_eq!(said[1].value, None, "a delete");
        let headers = [("h".to_owned(), None), ("h".to_owned(), Some(Bytes::from_static(b"\xff")))];
        assert_eq!((&old.headers[..], old.timestamp), (&headers[..], 10));
        assert_eq!((old.stage.as_str(), old.class.as_str()), ("conflict", "stillwell.Conflict"));
        assert_eq!(contents(&builder.state.view)[key], b"newest");
        // Nobody asks for them; or the log has them from before that.
        for (mut builder, batch) in [
            (
                ground.builder(false).keeping_losers(None, CancellationToken::new()),
                kept as fn(&[Written<'_>]) -> Batch,
            ),
            (ground.builder(false).keeping_losers(Some(storm()), CancellationToken::new()), batch),
        ] {
            assert_eq!(letters(&mut builder, &ground, records.chunks(size).map(batch).collect()), []);
            assert_eq!(contents(&builder.state.view)[key], b"newest");
        }
    }
}

/// What a batch holds is decided against the view from its first record on: a partition's later record does not lose to what
/// lost to that partition.
#[test]
fn a_loser_beats_nobody() {
    let (key, ground): (&[u8], _) = (b"key", Ground::new());
    let mut builder = ground.builder(false).keeping_losers(Some(storm()), CancellationToken::new());
    let said = letters(
        &mut builder,
        &ground,
        vec![
            kept(&[(1, 7, 20, key, Some(b"new"))]),
            kept(&[(0, 3, 10, key, Some(b"old")), (1, 8, 5, key, Some(b"newer"))]),
        ],
    );
    assert_eq!(said.iter().map(place).collect::<Vec<_>>(), [(0, 3, true)]);
    assert_eq!(contents(&builder.state.view)[key], b"newer");
}

/// A builder over which `storm` watches, and a batch of which all lose.
async fn stormy(ground: &Ground, storm: &Storm, drain: &CancellationToken) -> (Builder, Batch) {
    let mut builder = ground.builder(false).keeping_losers(Some(storm.clone()), drain.clone());
    let of = |n: i64| [b'a' + n as u8];
    let keys: Vec<[u8; 1]> = (0..10).map(of).collect();
    let held: Vec<Written<'_>> =
        (0..10).map(|n| (1, n, 1_000, &keys[n as usize][..], Some(&b"new"[..]))).collect();
    let late: Vec<Written<'_>> =
        (0..10).map(|n| (0, n, 10, &keys[n as usize][..], Some(&b"old"[..]))).collect();
    assert_eq!(letters(&mut builder, ground, vec![kept(&held)]), []);
    assert_eq!(storm.raging(), None);
    (builder, kept(&late))
}

#[tokio::test]
async fn where_too_many_lose_no_more_is_taken_until_somebody_lets_it_through() {
    let (ground, storm, drain) = (Ground::new(), storm(), CancellationToken::new());
    let (builder, late) = stormy(&ground, &storm, &drain).await;
    let (running, mut run) = run(builder);
    let mut running = std::pin::pin!(running);
    let batches = run.batches.take().expect("open");
    batches.send(late).await.expect("it runs");
    let built = meanwhile(&mut running, run.built.recv()).await.expect("what was taken by then");
    assert_eq!(built.letters.len(), 10);
    let said = storm.raging().expect("it is a storm");
    assert!(said.contains("fail at conflict") && said.contains("one key to several partitions"), "{said}");
    batches.send(kept(&[(1, 10, 2_000, b"a", Some(b"newest"))])).await.expect("it runs");
    for _ in 0..3 {
        assert!(poll!(&mut running).is_pending());
    }
    assert_eq!(batches.capacity(), 1, "the batch is not even taken");
    assert!(storm.let_through().is_some());
    let built = meanwhile(&mut running, run.built.recv()).await.expect("it is taken now");
    assert_eq!((built.delta.upserts, built.letters.len()), (1, 0));
}

#[tokio::test]
async fn a_drain_in_a_storm_leaves_what_comes_to_the_next_life() {
    let (ground, storm, drain) = (Ground::new(), storm(), CancellationToken::new());
    let (builder, late) = stormy(&ground, &storm, &drain).await;
    let (running, mut run) = run(builder);
    let mut running = std::pin::pin!(running);
    let batches = run.batches.take().expect("open");
    batches.send(late).await.expect("it runs");
    let built = meanwhile(&mut running, run.built.recv()).await.expect("what was taken by then");
    // More than the channel holds: whoever sends must not wait for an operator.
    drain.cancel();
    for offset in 10..20 {
        let more = kept(&[(1, offset, 2_000, b"a", Some(b"newest"))]);
        meanwhile(&mut running, batches.send(more)).await.expect("it is received");
    }
    // Also where it is let through meanwhile: nothing may be taken behind what was not.
    assert!(storm.let_through().is_some());
    meanwhile(&mut running, batches.send(kept(&[(1, 20, 2_000, b"a", Some(b"last"))])))
        .await
        .expect("received");
    drop(batches);
    let settled = meanwhile(&mut running, &mut run.settled).await.expect("told");
    assert_eq!(settled, built.delta.version);
    drop(run.rebases.take());
    tokio::time::timeout(LONG, running).await.expect("nothing can come any more").expect("it ended well");
    assert!(run.built.recv().await.is_none(), "and none was built of it");
}
