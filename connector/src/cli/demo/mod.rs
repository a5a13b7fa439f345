//! `stillwell demo`: the whole system, with nothing installed.

use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::edge::{Answer, Edge, NoInput, open, print};
use super::signals::{LEFT_BEHIND, Signals};
use crate::clock::{Clock, Entropy};
use crate::demo::{self, Options, Progress, Report, Source};
use crate::schema::Schema;
use crate::{Error, ErrorKind, Result};

mod show;
mod table;

/// How long it runs when nothing says otherwise.
const DEFAULT_TIME: Duration = Duration::from_secs(30);
/// The producer's own news of what does not fit names `stillwell dlq list`, which cannot reach the embedded broker. The letters
/// are counted as they come, and each is shown with its reason at the end.
const BUT_MISFITS: &str = "stillwell::producer::validate=error";
/// Products in the catalogue, unless half of `--records` is less.
const CATALOGUE: u64 = 50_000;

const MORE: &str = "\
What it does: on librdkafka's embedded broker, in this process, a generator fills the topic `products` and keeps \
changing it; a producer makes versions of it; one consumer reads from the beginning, another joins when the catalogue is \
loaded. One record is poison: it must end in the dead-letter topic, as it was, and stop nobody; when all else has landed \
it is mended and replayed, as `stillwell dlq replay` does it. At the end every key of \
both consumers is compared with what the generator knows. Blobs are in memory; other files are in a folder below TMPDIR \
that goes at the end. Ctrl-C ends it early, with the same comparison; a second Ctrl-C at once.

With --input the records are your own JSON lines: one object a line, blank lines skipped, the last line of a key wins. \
Lines that do not fit the schema become dead letters, and are listed.

What it cannot show: the embedded broker fences no second writer, forgets the source offsets of a transaction, knows no \
topic ids, and keeps 5 MB of a partition. So nothing here proves that a crash or a takeover loses nothing: the tests do \
that, on a real Kafka (docs/testing.md). Nor do its figures say what your Kafka and your disk will give: `stillwell \
bench` measures that. Lines have at most 1,000,000 bytes, and cannot delete.

Exit codes: 0 both consumers hold exactly what was sent, and each misfit came back as a letter; 1 they do not; 64 wrong \
arguments; 65 a schema or a line that cannot be used; 66 a file that cannot be read; 78 a key that is not in the schema; \
130 ended by a second Ctrl-C.";

/// Shows the whole system on an embedded broker: generator, producer, two consumers, a poison record, a comparison
#[derive(Debug, Args)]
#[command(after_long_help = MORE)]
pub struct Demo {
    /// Send records for so long [default: 30s; until its end with --input; until Ctrl-C with --listen]
    #[arg(long = "for", value_name = "DURATION", value_parser = some_time)]
    time: Option<Duration>,
    /// Send so many records, the poison included; the first half are new products, 50000 at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// Changes a second once the catalogue is loaded; 0: as many as the system takes
    #[arg(long, value_name = "N", default_value_t = 1_000, conflicts_with = "input")]
    rate: u32,
    /// Other numbers give other products and changes
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "input")]
    seed: u64,
    /// Serve the dataset, health and metrics over HTTP meanwhile
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Send these JSON lines in place of generated records; - reads standard input
    #[arg(long, value_name = "FILE", requires_all = ["schema", "key"])]
    input: Option<PathBuf>,
    /// The Avro schema that the lines must fit
    #[arg(long, value_name = "FILE", requires = "input")]
    schema: Option<PathBuf>,
    /// The field that is the key; several, with commas between, make a composite key
    #[arg(long, value_name = "FIELD", value_delimiter = ',', requires = "input")]
    key: Vec<String>,
}

fn some_time(text: &str) -> std::result::Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("it must be longer than nothing".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it as in 30s or 2m")),
    }
}

impl Demo {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        // Where the progress is drawn, only what goes wrong is written besides.
        let level = if edge.screen.is_drawn() { "warn" } else { "info" };
        edge.log_at(&format!("{level},{BUT_MISFITS}"));
        let (source, lines) = self.source()?;
        let time = match (self.time, self.records, &self.listen) {
            (None, None, None) if !lines => Some(DEFAULT_TIME),
            (time, ..) => time,
        };
        let options = Options {
            time,
            records: self.records,
            rate: self.rate,
            listen: self.listen,
            clock: Clock::system(),
            entropy: Entropy::system(),
        };
        let (rate, served) = (options.rate, options.listen.is_some());
        let runtime = edge.runtime()?;
        let ended = runtime.block_on(watched(edge, source, options));
        // By here all has been joined, unless it was ended at once; the input's thread may wait for ever.
        runtime.shutdown_timeout(LEFT_BEHIND);
        let Some(report) = ended? else { return Ok(Answer::Interrupted) };
        let nothing_fits =
            lines && report.counts.records() > 0 && report.counts.misfits == report.counts.records();
        let holds = report.holds();
        print(|out| {
            table::write(out, &report, rate)?;
            if holds && !nothing_fits { table::write_next(out, served) } else { Ok(()) }
        })?;
        if nothing_fits {
            return Err(Error::new(
                ErrorKind::Rejected,
                "no line fits the schema: the reasons are listed above; change the schema or the lines",
            ));
        }
        Ok(if holds { Answer::Yes } else { Answer::No })
    }

    /// What to send, and whether it is lines.
    fn source(&self) -> Result<(Source, bool)> {
        let (Some(input), Some(schema)) = (&self.input, &self.schema) else {
            let catalogue = self.records.map_or(CATALOGUE, |records| (records / 2).clamp(1, CATALOGUE));
            return Ok((Source::Generated { seed: self.seed, catalogue }, false));
        };
        let mut text = String::new();
        open(schema)?
            .read_to_string(&mut text)
            .map_err(|error| NoInput::error("reading the schema", schema, error))?;
        let schema = Schema::dataset(&text).map_err(|error| {
            let doing = format!("the schema in {} cannot be used", schema.display());
            Error::because(ErrorKind::Rejected, doing, error)
        })?;
        let key = self.key.clone();
        let (name, input): (String, Box<dyn Read + Send>) = if input == Path::new("-") {
            if io::stdin().is_terminal() {
                tracing::warn!("reading lines from the terminal; end them with Ctrl-D");
            }
            ("standard input".to_owned(), Box::new(io::stdin()))
        } else {
            (input.display().to_string(), Box::new(open(input)?))
        };
        Ok((Source::Lines { name, input, schema: Arc::new(schema), key }, true))
    }
}

/// Runs the demo, shows where it stands, and hands it the first signal. `None`: there was a second one.
async fn watched(edge: &Edge, source: Source, options: Options) -> Result<Option<Report>> {
    let mut signals = Signals::new()?;
    let mut show = show::Show::new(&edge.screen, &options);
    let (progress, mut seen) = watch::channel(Progress::default());
    let stop = CancellationToken::new();
    let running = demo::run(source, options, &progress, &stop);
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => {
                let failed = |error: demo::Error| Error::because(error.kind(), "the demo has failed", error);
                return ended.map(Some).map_err(failed);
            }
            Ok(()) = seen.changed() => show.draw(&seen.borrow_and_update()),
            () = signals.stop() => {
                if stop.is_cancelled() {
                    show.say("ended at once: nothing was compared");
                    return Ok(None);
                }
                show.say("ending: what was sent is awaited and compared; once more to end at once");
                stop.cancel();
            }
        }
    }
}
