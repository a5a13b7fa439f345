//! The second reading of the letters, by a thread of its own: while one chunk is decided over and sent, the next is read;
//! the first ones while the source is looked at.
//!
//! Owns: where a chunk ends, and copying letters out of what the client has fetched. Does not own: what becomes of them
//! (`replay`), how far it came (`progress`).

use std::ops::ControlFlow;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::{Asked, CHUNK, meant};
use crate::clock::Clock;
use crate::dead::Error;
use crate::dead::held::Held;
use crate::dead::progress::Progress;
use crate::dead::select::Verdict;
use crate::dead::topic::Reader;
use crate::format::letter::Elsewhere;

/// Chunks that are read ahead of the one that is sent.
pub(super) const AHEAD: usize = 1;
/// Most bytes of a chunk.
const CHUNK_BYTES: usize = 16 << 20;
/// What a letter counts of which a part lies in a blob: all of a chunk are fetched before it is sent, and how large they are
/// the letter does not say. A chunk has sixteen of them.
const ELSEWHERE_BYTES: usize = CHUNK_BYTES / 16;
/// A chunk is closed after this long: its transaction ends within the second.
const CHUNK_TIME: Duration = Duration::from_millis(400);
/// Records after which it is asked how long the chunk takes already, ours to replay or not. Few, so that where they come slowly
/// it is hardly longer,
const TIME_EVERY: u32 = 4;
/// and a value of so many bytes, which may take as long as all of those, is asked after by itself.
const LARGE: usize = 64 << 10;
/// Entries of a chunk that are no letters of ours to replay, at which it is closed too.
const CHUNK_ENTRIES: usize = 200_000;

/// One entry of a chunk, in the order of offsets.
pub(super) enum Entry {
    /// Handled by a former run.
    Handled(i64),
    /// Not to be seen now.
    NotNow(i64),
    /// To be replayed.
    Letter(Box<Held>),
}

/// What one transaction handles, of one partition.
pub(super) struct Chunk {
    /// Partition of the dead-letter topic.
    pub(super) partition: i32,
    /// In the order of offsets.
    pub(super) entries: Vec<Entry>,
    /// Letters among them.
    pub(super) letters: usize,
    /// All below this offset is decided with it, where the partition is read to its end.
    pub(super) through: Option<i64>,
}

/// What a chunk holds so far.
struct Load {
    letters: usize,
    bytes: usize,
    most_letters: usize,
    began: Instant,
}

impl Load {
    fn new(most_letters: usize, began: Instant) -> Load {
        Load { letters: 0, bytes: 0, most_letters, began }
    }

    fn add(&mut self, held: &Held) {
        self.letters += 1;
        self.bytes += match held.elsewhere {
            Elsewhere::Nothing => held.size(),
            Elsewhere::Value(_) | Elsewhere::Whole(_) => held.size().max(ELSEWHERE_BYTES),
        };
    }

    /// Whether the chunk is closed with it.
    fn is_full(&self, now: Instant) -> bool {
        self.letters >= self.most_letters
            || self.bytes >= CHUNK_BYTES
            || now.saturating_duration_since(self.began) >= CHUNK_TIME
    }
}

/// Why the reading of letters breaks off.
enum Break {
    /// The chunk is closed.
    Closed,
    /// There are as many as were asked for.
    Enough,
}

/// The thread's.
pub(super) struct Reading<'a> {
    /// Stands nowhere in particular.
    pub(super) reader: Reader,
    /// What is meant.
    pub(super) asked: &'a Asked,
    /// Time.
    pub(super) clock: &'a Clock,
    /// By partition, as it was before the first chunk: what is open does not change by what is decided before it.
    pub(super) progress: Vec<Progress>,
    /// Whether any letter has replaced another: else nobody asks what they have in common.
    pub(super) replaced: bool,
    /// As counted: what was not seen then is not judged now.
    pub(super) most: u64,
    /// Letters of a chunk, at most [`CHUNK`].
    pub(super) most_letters: usize,
    /// Where chunks go; when nobody takes them any more, it ends.
    pub(super) chunks: SyncSender<Result<Chunk, Error>>,
}

impl Reading<'_> {
    /// Reads to the end, partition after partition. Blocks.
    pub(super) fn run(mut self) {
        let all = self.all();
        if let Err(error) = all {
            // Nobody asks any more: it was told to end, and is not missed.
            let _ = self.chunks.send(Err(error));
        }
    }

    fn all(&mut self) -> Result<(), Error> {
        let mut taken = 0;
        for partition in 0..self.reader.topic().partitions() {
            if self.partition(partition, &mut taken)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn partition(&mut self, partition: i32, taken: &mut u64) -> Result<ControlFlow<()>, Error> {
        let Reading { reader, asked, clock, progress, replaced, most, most_letters, chunks } = self;
        let Some(progress) = progress.get(partition as usize) else { return Ok(ControlFlow::Continue(())) };
        if !reader.begin_new(partition, progress)? {
            return Ok(ControlFlow::Continue(()));
        }
        let (_, end) = reader.range(partition);
        loop {
            let mut entries = Vec::new();
            let mut now = clock.now();
            let mut load = Load::new((*most_letters).min(CHUNK), now);
            let mut seen = 0u32;
            let broke = reader.read(partition, |found| {
                let offset = found.raw.offset;
                seen += 1;
                let is_large = found.raw.value.is_some_and(|value| value.len() > LARGE);
                if is_large || seen.is_multiple_of(TIME_EVERY) {
                    now = clock.now();
                }
                if !progress.is_open(offset) {
                    // One of them in a row says as much as all.
                    if !matches!(entries.last(), Some(Entry::Handled(_))) {
                        entries.push(Entry::Handled(offset));
                    }
                    return Ok(ControlFlow::Continue(()));
                }
                match meant(asked, &found) {
                    Verdict::Other => return Ok(ControlFlow::Continue(())),
                    Verdict::NotNow => entries.push(Entry::NotNow(offset)),
                    Verdict::Meant if *taken >= *most => return Ok(ControlFlow::Break(Break::Enough)),
                    Verdict::Meant => {
                        *taken += 1;
                        let held = if *replaced { Held::of(&found) } else { Held::alone(&found) };
                        load.add(&held);
                        entries.push(Entry::Letter(Box::new(held)));
                    }
                }
                let closed = load.is_full(now) || entries.len() >= CHUNK_ENTRIES;
                Ok(if closed { ControlFlow::Break(Break::Closed) } else { ControlFlow::Continue(()) })
            })?;
            let through = broke.is_none().then_some(end);
            let chunk = Chunk { partition, entries, letters: load.letters, through };
            if chunks.send(Ok(chunk)).is_err() {
                return Ok(ControlFlow::Break(()));
            }
            match broke {
                Some(Break::Closed) => {}
                Some(Break::Enough) => return Ok(ControlFlow::Break(())),
                None => return Ok(ControlFlow::Continue(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many such letters a chunk takes.
    fn taken(held: &Held, most: usize) -> usize {
        let now = Clock::manual(0).now();
        let mut load = Load::new(most, now);
        while !load.is_full(now) {
            load.add(held);
        }
        load.letters
    }

    #[test]
    fn a_chunk_is_as_large_as_what_is_fetched_for_it() {
        let small = Held { value: Some(vec![7; 1_000].into()), ..Held::default() };
        let large = Held { value: Some(vec![7; 3 << 20].into()), ..Held::default() };
        assert_eq!((taken(&small, 500), taken(&large, 500)), (500, 6));
        assert!((10_000..16_000).contains(&taken(&small, CHUNK)));
        // What lies in a blob is not seen in the letter, and is fetched for all of the chunk.
        for elsewhere in [Elsewhere::Value("a".to_owned()), Elsewhere::Whole("a".to_owned())] {
            assert_eq!(taken(&Held { elsewhere, ..Held::default() }, CHUNK), 16);
        }
        let mut load = Load::new(CHUNK, Clock::manual(0).now());
        load.add(&small);
        assert!(!load.is_full(load.began) && load.is_full(load.began + CHUNK_TIME));
    }
}
