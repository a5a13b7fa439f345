//! Progress: a bar on a terminal, log lines elsewhere.
//!
//! Owns: stderr, which bars and log lines share without tearing each other.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::clock::Clock;

/// Between two log lines about the same work.
const EVERY: Duration = Duration::from_secs(5);

/// stderr. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Screen {
    bars: MultiProgress,
    drawn: bool,
}

impl Screen {
    /// The process's stderr.
    #[expect(clippy::new_without_default, reason = "a process has one stderr")]
    pub fn new() -> Screen {
        let drawn = io::stderr().is_terminal();
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Screen { bars: MultiProgress::with_draw_target(target), drawn }
    }

    /// Whether bars are drawn: stderr is a terminal.
    pub fn is_drawn(&self) -> bool {
        self.drawn
    }

    /// A line of text among the bars, which shows nothing elsewhere than on a terminal.
    pub fn caption(&self) -> Caption {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is right"));
        Caption(bar)
    }

    /// Begins showing some work; `total` where it is known. `unit` is what is counted, as in `records`.
    pub fn work(&self, what: &str, unit: &'static str, total: Option<u64>) -> Work {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        let bar = self.bars.add(bar);
        let template = match total {
            Some(_) => "{msg} [{bar:30}] {human_pos}/{human_len} {prefix} ({per_sec}, {eta} left)",
            None => "{msg} {spinner} {human_pos} {prefix} ({per_sec})",
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the templates above are right"));
        bar.set_message(what.to_owned());
        bar.set_prefix(unit);
        if self.drawn {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        let clock = Clock::system();
        let said = Mutex::new(clock.now());
        Work(Arc::new(Inner { bar, drawn: self.drawn, what: what.to_owned(), unit, total, clock, said }))
    }
}

/// A line of text; gone when dropped.
#[derive(Debug)]
pub struct Caption(ProgressBar);

impl Caption {
    /// Shows this in place of what it showed before.
    pub fn say(&self, text: String) {
        self.0.set_message(text);
    }
}

impl Drop for Caption {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Some work that is shown. Cheap to clone; ends when all clones are dropped.
#[derive(Clone, Debug)]
pub struct Work(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bar: ProgressBar,
    drawn: bool,
    what: String,
    unit: &'static str,
    total: Option<u64>,
    clock: Clock,
    /// When the last log line about it was written.
    said: Mutex<Instant>,
}

impl Work {
    /// Sets how much is done.
    pub fn set(&self, done: u64) {
        self.0.bar.set_position(done);
        if self.0.drawn {
            return;
        }
        let now = self.0.clock.now();
        let mut said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(*said) >= EVERY {
            *said = now;
            let Inner { what, unit, total, .. } = &*self.0;
            match total {
                Some(total) => tracing::info!(done, total, "{what}: {done} of {total} {unit}"),
                None => tracing::info!(done, "{what}: {done} {unit}"),
            }
        }
    }

    /// Says something more beside the bar.
    pub fn say(&self, text: &str) {
        self.0.bar.set_message(format!("{}: {text}", self.0.what));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bars: self.bars.clone(), drawn: self.drawn, text: Vec::new() }
    }
}

/// One log line, written whole when it is complete; bars step aside for it.
#[derive(Debug)]
pub struct Line {
    bars: MultiProgress,
    drawn: bool,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.text);
        if text.is_empty() {
            return Ok(());
        }
        if self.drawn {
            self.bars.suspend(|| io::stderr().lock().write_all(&text))
        } else {
            io::stderr().lock().write_all(&text)
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // A log line that cannot be written has nowhere else to go.
        let _ = self.flush();
    }
}
