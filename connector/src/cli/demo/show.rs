//! The demo as it goes: a few lines that stay in place on a terminal, a log line now and then elsewhere.

use std::time::Duration;

use super::table::number;
use crate::cli::progress::{Caption, Screen};
use crate::demo::{Options, Phase, Progress};

/// Between two log lines.
const EVERY: Duration = Duration::from_secs(2);
/// Characters of the bar.
const BAR: usize = 30;

/// What is shown.
pub struct Show {
    /// One line each: the phase, what is under way, the producer, each consumer, the last word.
    captions: Option<[Caption; 5]>,
    time: Option<Duration>,
    records: Option<u64>,
    logged: Option<(Phase, Duration)>,
    trouble: Option<String>,
    served: bool,
}

impl Show {
    /// Nothing yet.
    pub fn new(screen: &Screen, options: &Options) -> Show {
        let captions = screen.is_drawn().then(|| std::array::from_fn(|_| screen.caption()));
        let (time, records) = (options.time, options.records);
        Show { captions, time, records, logged: None, trouble: None, served: false }
    }

    /// Says something about the run as a whole.
    pub fn say(&self, text: &str) {
        match &self.captions {
            Some([.., last]) => last.say(text.to_owned()),
            None => tracing::info!("{text}"),
        }
    }

    /// Shows where it stands.
    pub fn draw(&mut self, progress: &Progress) {
        if progress.trouble != self.trouble {
            self.trouble.clone_from(&progress.trouble);
            if let Some(trouble) = &self.trouble {
                tracing::warn!("the producer: {trouble}");
            }
        }
        if let (Some(address), false) = (progress.serving, self.served) {
            self.served = true;
            self.say(&format!("serving http://{address}/v1/datasets/products"));
        }
        match &self.captions {
            Some([phase, flow, early, late, _]) => {
                phase.say(format!("{} {}", self.bar(progress), words(progress.phase)));
                flow.say(format!(
                    "  sent {}   announced {} in {} versions   dead letters {}",
                    number(progress.sent),
                    number(progress.announced),
                    number(progress.version),
                    progress.letters,
                ));
                for (at, (name, caption)) in [("early", early), ("late", late)].into_iter().enumerate() {
                    caption.say(match progress.readers.get(at) {
                        Some((version, records)) => {
                            format!(
                                "  consumer {name:5}  version {}   {} records",
                                number(*version),
                                number(*records)
                            )
                        }
                        None => format!("  consumer {name:5}  joins once the load is sent"),
                    });
                }
            }
            None => self.log(progress),
        }
    }

    fn log(&mut self, progress: &Progress) {
        let due = self.logged.is_none_or(|(phase, elapsed)| {
            phase != progress.phase || progress.elapsed.saturating_sub(elapsed) >= EVERY
        });
        if !due {
            return;
        }
        self.logged = Some((progress.phase, progress.elapsed));
        let reader = |at: usize| progress.readers.get(at).map_or(0, |(version, _)| *version);
        tracing::info!(
            elapsed = ?Duration::from_millis(progress.elapsed.as_millis() as u64),
            sent = progress.sent, announced = progress.announced, version = progress.version,
            early = reader(0), late = reader(1), letters = progress.letters,
            "{}", words(progress.phase)
        );
    }

    /// How much of its time or of its records has passed.
    fn bar(&self, progress: &Progress) -> String {
        let share = |done: f64, all: f64| (done / all.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        let time = self.time.map(|time| share(progress.elapsed.as_secs_f64(), time.as_secs_f64()));
        let records = self.records.map(|records| share(progress.sent as f64, records as f64));
        let seconds = progress.elapsed.as_secs_f64();
        match time.into_iter().chain(records).reduce(f64::max) {
            Some(done) => {
                let full = (done * BAR as f64) as usize;
                format!("[{}{}] {seconds:.0} s", "=".repeat(full), " ".repeat(BAR - full))
            }
            None => format!("{seconds:.0} s"),
        }
    }
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting the embedded broker, the producer and a consumer",
        Phase::Loading => "sending as fast as it is taken",
        Phase::Changing => "sending changes at a steady rate",
        Phase::Landing => "waiting until all that was sent is readable everywhere",
        Phase::Comparing => "comparing both consumers with what was sent, key by key",
    }
}
