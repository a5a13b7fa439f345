//! What was measured, and the verdicts.

use std::hint::black_box;
use std::time::Duration;

use super::Error;
use super::comparison::Differences;
use super::feed::Counts;
use super::letters::Letter;
use super::measure::Latencies;
use crate::clock::{Clock, Entropy};
use crate::producer::Farewell;
use crate::view::View;

/// Keys that the reads are spread over, at most.
const READ_KEYS: u64 = 100_000;
/// How long to read.
const READ_FOR: Duration = Duration::from_millis(300);

/// Everything that the demo found out.
#[derive(Debug)]
pub struct Report {
    /// Records sent.
    pub counts: Counts,
    /// Whether it was told to end before its time.
    pub stopped: bool,
    /// First record out to last record announced.
    pub took: Duration,
    /// The catalogue, or the lines, as fast as they went.
    pub load: Option<Load>,
    /// Versions announced.
    pub versions: u64,
    /// Records overwritten by a later one of their key within their batch.
    pub coalesced: u64,
    /// Records that changed nothing.
    pub unchanged: u64,
    /// What lies in the store.
    pub blobs: Blobs,
    /// Sent to announced: under load, then at the steady rate.
    pub publish: [Latencies; 2],
    /// Sent to readable in the first consumer: under load, then at the steady rate.
    pub readable: [Latencies; 2],
    /// How long the second consumer took from its start to its first version, and the keys in that.
    pub late: Option<(Duration, u64)>,
    /// Reads of the first consumer's view.
    pub reads: Option<Reads>,
    /// Letters that came back.
    pub letters: u64,
    /// The first of them.
    pub shown: Vec<Letter>,
    /// Letters that were mended and replayed, where there was something to mend them by.
    pub replayed: Option<u64>,
    /// What is wrong with letters; nothing, if each misfit came back as it was.
    pub wrong_letters: Vec<String>,
    /// By consumer.
    pub verdicts: Vec<Verdict>,
    /// How the producer ended.
    pub farewell: Option<Farewell>,
}

/// Sending as fast as there is room.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Records.
    pub records: u64,
    /// Key and value bytes.
    pub bytes: u64,
    /// First one out to last one announced.
    pub took: Duration,
}

/// What lies in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blobs {
    /// Deltas.
    pub deltas: u64,
    /// Their bytes.
    pub delta_bytes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Their bytes and those of their indexes.
    pub snapshot_bytes: u64,
}

/// Reads of keys in random order, one thread.
#[derive(Clone, Copy, Debug)]
pub struct Reads {
    /// How many.
    pub reads: u64,
    /// How long one took.
    pub each: Duration,
    /// Over how many keys.
    pub keys: u64,
}

/// What a consumer held in the end.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which consumer.
    pub consumer: &'static str,
    /// Its version.
    pub version: u64,
    /// Keys in it, as its announcement says.
    pub records: u64,
    /// How it differs from the model.
    pub differences: Differences,
}

impl Report {
    /// Whether both consumers hold exactly what was written, each misfit came back as a letter, and the poison is where it
    /// belongs once it was mended.
    pub fn holds(&self) -> bool {
        self.wrong_letters.is_empty()
            && self.letters == self.counts.misfits
            && self.replayed.is_none_or(|replayed| replayed == self.letters)
            && self.verdicts.len() == super::system::CONSUMERS.len()
            && self.verdicts.iter().all(Verdict::holds)
    }

    /// Records a second under load.
    pub fn records_per_second(&self) -> Option<f64> {
        let load = self.load.filter(|load| !load.took.is_zero())?;
        Some(load.records as f64 / load.took.as_secs_f64())
    }
}

impl Verdict {
    /// Whether it holds what was written.
    pub fn holds(&self) -> bool {
        self.differences.none() && self.records == self.differences.compared
    }
}

/// Reads keys of `view` in random order for a while.
///
/// # Errors
/// The view's.
pub(super) fn reads(view: &View, clock: &Clock, entropy: &Entropy) -> Result<Option<Reads>, Error> {
    let every = (view.records() / READ_KEYS).max(1);
    let mut keys = Vec::new();
    for (place, value) in view.iter().enumerate() {
        let value = value.map_err(Error::Read)?;
        if (place as u64).is_multiple_of(every) {
            keys.push(value.key().to_vec());
        }
    }
    for place in (1..keys.len()).rev() {
        keys.swap(place, (entropy.next_u64() % (place as u64 + 1)) as usize);
    }
    if keys.is_empty() {
        return Ok(None);
    }
    let (began, mut reads) = (clock.now(), 0u64);
    loop {
        for key in &keys {
            let value = view.get(key).map_err(Error::Read)?;
            black_box(value.as_ref().map(|value| value.bytes().len()));
        }
        reads += keys.len() as u64;
        let took = clock.now() - began;
        if took >= READ_FOR {
            let each = Duration::from_nanos((took.as_nanos() / u128::from(reads)) as u64);
            return Ok(Some(Reads { reads, each, keys: keys.len() as u64 }));
        }
    }
}
