//! The intake: whether anything is taken from Kafka at the moment, and if not, why not.
//!
//! ```text
//!  shut at        pressure_high  (past max_log_size by a tenth, where a shed strategy makes room)
//!                 ^
//!                 |   hysteresis: open again at three quarters (below max_log_size)
//!                 v
//!  bytes of the log against max_log_size; what its disk must keep free against what is free
//! ```
//!
//! Besides, it is shut while too many records fail for one reason (`storm`), which only people end.
//!
//! Only what lies before the log's end counts: Kafka can wait, and what goes out badly slows the pace instead
//! (`docs/decisions/0005-pressure.md`). A shut intake costs nothing but lag; the source goes on polling, and membership is
//! another client's, so that however long it lasts nobody in the group sees anything of it.
//!
//! Owns: the decision, and telling it. Does not own: the partitions (`source`), the room in the log (`log`, `shed`).

use std::sync::Arc;

use bytesize::ByteSize;
use tokio::sync::watch;

use super::log::{Fill, Log};
use super::pace::Pace;
use super::storm::{Storm, Window};
use super::{Status, shed};
use crate::codec::Misfit;
use crate::gauge::{Pressure, Strain};
use crate::telemetry::ProducerMetrics;

/// The intake opens again below this share of what shut it, so that it does not flap.
const HYSTERESIS: f64 = 0.75;

/// What is to be done with the partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Stay,
    /// Pause them.
    Shut,
    /// Resume them.
    Open,
}

/// The intake of one life. Dropped, it is told to be open: what else is wrong then is for others to say.
pub struct Intake {
    log: Log,
    pressure: Pressure,
    pace: Pace,
    status: watch::Sender<Status>,
    metrics: Arc<ProducerMetrics>,
    window: Window,
    shut: bool,
    spills: bool,
}

impl Intake {
    /// An open intake before `log`. `pace` holds `pressure_high`; `status` hears why it is shut.
    pub fn new(
        (log, storm): (Log, Storm),
        pressure: Pressure,
        pace: Pace,
        status: watch::Sender<Status>,
        metrics: Arc<ProducerMetrics>,
    ) -> Intake {
        metrics.source_paused.set(0);
        let window = storm.window();
        Intake { log, pressure, pace, status, metrics, window, shut: false, spills: false }
    }

    /// Counts a record that was taken. True: too many fail for one reason, and the next turn shuts the intake.
    pub fn is_a_storm(&mut self, taken: Result<(), Misfit>) -> bool {
        match taken {
            Ok(()) => {
                self.window.fits();
                false
            }
            Err(misfit) => self.window.fails(&misfit),
        }
    }

    /// Looks at the log and its disk, and decides.
    pub fn turn(&mut self) -> Turn {
        let fill = self.log.fill();
        self.pressure.set(Strain::Log, fill.log());
        self.pressure.set(Strain::Disk, fill.disk());
        self.spills = fill.spills;
        if fill.sheds && fill.log() > 1.0 {
            self.log.make_room();
        }
        let storm = self.window.raging();
        let why = storm.or_else(|| reason(&fill, self.pace.pacing().pressure_high, self.shut));
        match (self.shut, why) {
            (false, Some(why)) => {
                // Where room is made it waits for that again and again, chunk by chunk: the ledger says what that costs.
                if fill.sheds && fill.log() >= shed::OVERFLOW {
                    tracing::debug!(log_bytes = fill.bytes, why, "source paused while room is made");
                } else {
                    tracing::warn!(
                        log_bytes = fill.bytes,
                        free = fill.free,
                        "source paused, {why}; it goes on by itself, and Kafka holds what comes until then"
                    );
                }
                self.shut = true;
                self.tell(Some(why));
                Turn::Shut
            }
            (true, None) => {
                if fill.sheds {
                    tracing::debug!(log_bytes = fill.bytes, "source resumed");
                } else {
                    tracing::info!(log_bytes = fill.bytes, free = fill.free, "source resumed");
                }
                self.shut = false;
                self.tell(None);
                Turn::Open
            }
            _ => Turn::Stay,
        }
    }

    /// Whether it is shut.
    pub fn is_shut(&self) -> bool {
        self.shut
    }

    /// Whether what comes goes to the disk only, as seen when it last looked.
    pub fn spills(&self) -> bool {
        self.spills
    }

    fn tell(&self, why: Option<String>) {
        self.metrics.source_paused.set(i64::from(why.is_some()));
        self.status.send_modify(|status| status.paused = why);
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if self.shut {
            self.tell(None);
        }
    }
}

/// Why the intake is shut, or is to be; `None`: it is open, or is to be.
fn reason(fill: &Fill, high: f64, shut: bool) -> Option<String> {
    let least = |limit: f64, again: f64| if shut { again } else { limit };
    if fill.disk() >= least(high, high * HYSTERESIS) {
        let (free, reserve) = (size(fill.free.unwrap_or(0)), size(fill.reserve));
        return Some(format!(
            "the disk of the log has {free} left, and the log needs {reserve} to spare: make room there"
        ));
    }
    let limit = if fill.sheds { least(shed::OVERFLOW, 1.0) } else { least(high, high * HYSTERESIS) };
    (fill.log() >= limit).then(|| {
        let (bytes, most) = (size(fill.bytes), size(fill.most));
        format!("the log holds {bytes} of at most {most} (max_log_size) that are not announced yet")
    })
}

/// Bytes as the configuration writes them.
fn size(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(bytes: u64, free: u64, sheds: bool) -> Fill {
        Fill { bytes, most: 1_000, free: Some(free), reserve: 100, sheds, spills: false }
    }

    /// Whether the intake is shut after each of these.
    fn shut(fills: impl IntoIterator<Item = Fill>) -> Vec<bool> {
        let mut shut = false;
        fills
            .into_iter()
            .map(|fill| {
                shut = reason(&fill, 0.8, shut).is_some();
                shut
            })
            .collect()
    }

    #[test]
    fn it_shuts_at_the_limit_and_opens_well_below_it() {
        let plenty = 1 << 40;
        let bytes = [799, 800, 799, 601, 599, 799];
        let found = shut(bytes.map(|bytes| fill(bytes, plenty, false)));
        assert_eq!(found, [false, true, true, true, false, false]);
        // Where something makes room it waits until that is not enough.
        let bytes = [1_000, 1_099, 1_100, 1_000, 999, 1_000];
        let found = shut(bytes.map(|bytes| fill(bytes, plenty, true)));
        assert_eq!(found, [false, false, true, true, false, false]);
    }

    #[test]
    fn a_disk_without_room_shuts_it_whatever_the_strategy() {
        for sheds in [false, true] {
            let free = [126, 125, 126, 166, 167, 0];
            let found = shut(free.map(|free| fill(0, free, sheds)));
            assert_eq!(found, [false, true, true, true, false, true], "sheds: {sheds}");
        }
        let why = reason(&fill(0, 0, false), 0.8, false).unwrap();
        assert!(why.contains("0 B left") && why.contains("100 B to spare"), "{why}");
        let why = reason(&fill(1_000, 1 << 40, false), 0.8, false).unwrap();
        assert!(why.contains("max_log_size"), "{why}");
    }

    #[test]
    fn a_system_that_does_not_say_what_is_free_stops_nothing() {
        let unknown = Fill { free: None, ..fill(0, 0, false) };
        assert_eq!((reason(&unknown, 0.8, false), unknown.disk()), (None, 0.0));
    }
}
