//! The end of the demo: what was measured, the letters, the verdicts.

use std::io::{self, Write};
use std::str::FromStr as _;
use std::time::Duration;

use bytesize::ByteSize;

use crate::cli::table::{Column, table};
use crate::codec::{Stage, text};
use crate::demo::letters::Letter;
use crate::demo::measure::Latencies;
use crate::demo::{Load, Report};

/// Writes all of it. `rate`: changes a second, as configured.
pub fn write(out: &mut dyn Write, report: &Report, rate: u32) -> io::Result<()> {
    let rows = rows(report, rate).into_iter().map(|(what, value)| vec![what.to_owned(), value]);
    table(out, &[Column::Text("measured"), Column::Text("")], rows)?;
    writeln!(out)?;
    for letter in &report.shown {
        writeln!(out, "dead letter: {}", line_of(letter))?;
    }
    if report.letters > report.shown.len() as u64 {
        writeln!(out, "… and {} more", number(report.letters - report.shown.len() as u64))?;
    }
    if let Some(replayed) = report.replayed {
        let mark = if replayed == report.letters { "" } else { "WRONG: " };
        writeln!(
            out,
            "{mark}{} of them mended and replayed, as `stillwell dlq replay --fix` does",
            number(replayed)
        )?;
    }
    if report.letters > 0 {
        writeln!(out)?;
    }
    for wrong in &report.wrong_letters {
        writeln!(out, "WRONG: {wrong}")?;
    }
    if report.letters != report.counts.misfits {
        let (came, sent) = (number(report.letters), number(report.counts.misfits));
        writeln!(out, "WRONG: {sent} misfits were sent, {came} came back as dead letters")?;
    }
    for verdict in &report.verdicts {
        let mark = if verdict.holds() { "" } else { "WRONG: " };
        writeln!(
            out,
            "{mark}consumer {:5}  version {}: {}",
            verdict.consumer,
            number(verdict.version),
            verdict.differences
        )?;
    }
    let ended = if report.stopped { " (ended before its time)" } else { "" };
    match report.holds() {
        true => writeln!(out, "both consumers hold exactly what was sent{ended}"),
        false => writeln!(out, "NOT what was sent{ended}"),
    }
}

/// Writes what to try next. `served`: it was served over HTTP, so that this is no news.
pub fn write_next(out: &mut dyn Write, served: bool) -> io::Result<()> {
    writeln!(out)?;
    if !served {
        writeln!(
            out,
            "next: `--listen 127.0.0.1:8080 --for 10m` also serves the products over HTTP while it runs, as in\n      \
             make demo ARGS=\"--listen 127.0.0.1:8080 --for 10m\""
        )?;
    }
    writeln!(out, "for your own topics: README.md, \"Beside your Kafka\"")
}

fn rows(report: &Report, rate: u32) -> Vec<(&'static str, String)> {
    let counts = &report.counts;
    let mut kinds =
        vec![format!("{} new", number(counts.inserts)), format!("{} changed", number(counts.updates))];
    for (many, what) in [
        (counts.repeats, "as before"),
        (counts.deletes, "deletes"),
        (counts.misfits, if counts.misfits == 1 { "misfit" } else { "misfits" }),
    ] {
        if many > 0 {
            kinds.push(format!("{} {what}", number(many)));
        }
    }
    let mut rows = vec![(
        "sent",
        format!("{} records, {}: {}", number(counts.records()), bytes(counts.bytes), kinds.join(", ")),
    )];
    if let (Some(rate), Some(load)) = (report.records_per_second(), report.load) {
        let Load { records, bytes: size, took } = load;
        let throughput = size as f64 / took.as_secs_f64();
        rows.push((
            "throughput",
            format!(
                "{} records/s, {}/s, sent to announced, over {} records",
                number(rate as u64),
                bytes(throughput as u64),
                number(records)
            ),
        ));
    }
    rows.push((
        "versions",
        format!(
            "{} announced in {}; {} records overwritten within a batch, {} dropped as unchanged",
            number(report.versions),
            short(report.took),
            number(report.coalesced),
            number(report.unchanged)
        ),
    ));
    let steady =
        if rate == 0 { "while changing".to_owned() } else { format!("at {} records/s", number(rate.into())) };
    let steps = [
        ("publish", "sent to announced", &report.publish),
        ("readable", "sent to readable in the early consumer", &report.readable),
    ];
    for (what, step, [load, changing]) in steps {
        for (when, latencies) in [("under load", load), (steady.as_str(), changing)] {
            if let Some(quantiles) = quantiles(latencies) {
                rows.push((what, format!("{quantiles} {when}, {step}")));
            }
        }
    }
    if let Some((took, records)) = report.late {
        rows.push((
            "late start",
            format!("{} from its start to its first version, {} records", short(took), number(records)),
        ));
    }
    if let Some(reads) = report.reads {
        rows.push((
            "get",
            format!(
                "{} ns, mean of {} random reads of {} keys, one thread",
                number(reads.each.as_nanos() as u64),
                number(reads.reads),
                number(reads.keys)
            ),
        ));
    }
    let blobs = &report.blobs;
    rows.push((
        "blobs",
        format!(
            "{} deltas, {}; {} snapshots with their indexes, {}",
            number(blobs.deltas),
            bytes(blobs.delta_bytes),
            number(blobs.snapshots),
            bytes(blobs.snapshot_bytes)
        ),
    ));
    rows.push(("dead letters", number(report.letters)));
    if let Some(farewell) = &report.farewell {
        rows.push(("at the end", farewell.to_string()));
    }
    rows
}

fn line_of(letter: &Letter) -> String {
    let mut key = String::new();
    match &letter.key {
        Some(bytes) => text::key_to_json(bytes, &mut key),
        None => key.push_str("none"),
    }
    let stage = Stage::from_str(&letter.stage).map_or(letter.stage.as_str(), |stage| stage.label());
    let from = match letter.line {
        Some(line) => format!("line {line}"),
        None => format!("partition {}, offset {}, key {key}", letter.origin.0, letter.origin.1),
    };
    format!("{from}: stage {stage}, {}: {}", letter.class, letter.reason)
}

fn quantiles(latencies: &Latencies) -> Option<String> {
    let (half, most) = (latencies.quantile(0.5)?, latencies.quantile(0.99)?);
    Some(format!("p50 {}, p99 {}", short(half), short(most)))
}

/// With a comma at each thousand.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

/// Three digits, in the unit that suits.
fn short(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    let (value, unit) = match seconds {
        seconds if seconds >= 1.0 => (seconds, "s"),
        seconds if seconds >= 1e-3 => (seconds * 1e3, "ms"),
        seconds => (seconds * 1e6, "µs"),
    };
    let places = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.places$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        let times = [1_500, 12_345, 123_456, 12_345_678].map(|micros| short(Duration::from_micros(micros)));
        assert_eq!(times, ["1.50 ms", "12.3 ms", "123 ms", "12.3 s"]);
        assert_eq!(short(Duration::from_nanos(45_600)), "45.6 µs");
    }
}
