//! A person's own data: JSON lines of a file or of standard input, and what they must lead to.
//!
//! Each line is tried with the same codec as the producer's, which says beforehand which lines are misfits and what
//! the key of the others is. That cannot find a mistake of the codec itself, so the comparison asks twice: whether a
//! consumer holds the datum that the codec makes of the last line of its key, byte for byte, and whether that datum,
//! printed as JSON and read by other code, says what the line says.
//!
//! Owns: reading lines, the last line of each key. Does not own: where they are sent.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead as _, BufReader, Read};
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value as Json;
use tokio::sync::mpsc;

use super::Error;
use crate::codec::{Codec, ExtraFields, Format, KeyRule};
use crate::schema::Schema;

/// Longest line. The embedded broker keeps 5 MB of a partition, and a letter must fit its topic.
const LONGEST: usize = 1_000_000;
/// Lines that are read ahead at a time.
const AHEAD: usize = 256;

/// A line as it was read, without its end.
type Numbered = (u64, Vec<u8>);
type Ahead = Result<Vec<Numbered>, Error>;

/// The lines of one input.
#[derive(Debug)]
pub struct Lines {
    ahead: mpsc::Receiver<Ahead>,
    ready: VecDeque<Numbered>,
    ended: bool,
    codec: Codec,
    /// By key, the last line.
    held: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// One line.
#[derive(Debug)]
pub struct Line {
    /// Its number, from 1.
    pub number: u64,
    /// Its bytes.
    pub value: Vec<u8>,
    /// Its key; `None`: it does not fit the schema.
    pub key: Option<Vec<u8>>,
    /// Whether its key came before.
    pub again: bool,
}

impl Lines {
    /// Reads `input`, which is called `name`, on a thread of its own. That thread ends with the input, or when nobody
    /// takes its lines; one that waits for a terminal's next line ends with the process.
    ///
    /// # Errors
    /// [`Error::Config`] where the key is not in the schema.
    pub fn new(
        name: &str,
        input: Box<dyn Read + Send>,
        schema: &Arc<Schema>,
        key: &[String],
    ) -> Result<Lines, Error> {
        let codec = codec(schema, key)?;
        let (out, ahead) = mpsc::channel(4);
        let name = name.to_owned();
        std::thread::Builder::new()
            .name("demo-input".to_owned())
            .spawn(move || {
                let failed = read(&name, input, &out).err();
                if let Some(error) = failed {
                    let _ = out.blocking_send(Err(error));
                }
            })
            .map_err(Error::Thread)?;
        Ok(Lines { ahead, ready: VecDeque::new(), ended: false, codec, held: BTreeMap::new() })
    }

    /// Waits until [`Lines::take`] has something, or the input has ended. May be given up at any time.
    ///
    /// # Errors
    /// The input's.
    pub async fn ready(&mut self) -> Result<(), Error> {
        while self.ready.is_empty() && !self.ended {
            match self.ahead.recv().await {
                Some(lines) => self.ready.extend(lines?),
                None => self.ended = true,
            }
        }
        Ok(())
    }

    /// Whether all lines have been taken.
    pub fn is_over(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    /// The next line, if one is there.
    pub fn take(&mut self) -> Option<Line> {
        let (number, value) = self.ready.pop_front()?;
        let key = match self.codec.decode(None, Some(&value)) {
            Ok(decoded) => Some(decoded.key.to_vec()),
            Err(_) => None,
        };
        let again = key.as_ref().is_some_and(|key| self.held.insert(key.clone(), value.clone()).is_some());
        Some(Line { number, value, key, again })
    }

    /// By key, the last line: what must be held.
    pub fn held(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.held
    }
}

/// How the lines are decoded, here and by the producer.
pub fn rules(key: &[String]) -> (Format, KeyRule) {
    (Format::json(ExtraFields::Ignore), KeyRule::Fields(key.to_vec()))
}

/// A codec of the producer's kind.
pub fn codec(schema: &Arc<Schema>, key: &[String]) -> Result<Codec, Error> {
    let (format, rule) = rules(key);
    Codec::new(format, rule, schema.clone()).map_err(Error::Config)
}

fn read(name: &str, input: Box<dyn Read + Send>, out: &mpsc::Sender<Ahead>) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Input { name: name.to_owned(), source };
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut lines = Vec::new();
    let mut number = 0;
    loop {
        let mut line = Vec::new();
        // One byte more than a line may have, and one for its end.
        let taken = (&mut input).take(LONGEST as u64 + 2).read_until(b'\n', &mut line).map_err(failed)?;
        if taken == 0 {
            break;
        }
        number += 1;
        let ended = line.last() == Some(&b'\n');
        if ended {
            line.pop();
        }
        if line.len() > LONGEST {
            let _ = out.blocking_send(Ok(std::mem::take(&mut lines)));
            return Err(Error::LongLine { name: name.to_owned(), number, longest: LONGEST });
        }
        // A mark that editors on Windows put before the first line, and no part of it.
        if number == 1 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            lines.push((number, line));
        }
        // What is typed, or comes through a pipe slowly, goes on at once.
        let slow = input.buffer().is_empty();
        if !lines.is_empty()
            && (slow || lines.len() >= AHEAD)
            && out.blocking_send(Ok(std::mem::take(&mut lines))).is_err()
        {
            return Ok(());
        }
    }
    if !lines.is_empty() {
        let _ = out.blocking_send(Ok(lines));
    }
    Ok(())
}

/// What is wrong with the record held for a line; nothing, if it is what the line says.
pub fn judge(held: &str, line: &[u8]) -> Option<String> {
    let held: Json = match serde_json::from_str(held) {
        Ok(held) => held,
        Err(error) => return Some(format!("what is held does not print as JSON: {error}")),
    };
    match serde_json::from_slice(line) {
        Ok(line) => disagreement(&held, &line, ""),
        Err(error) => Some(format!("held, though its line is not JSON: {error}")),
    }
}

/// Fields that the line lacks have their defaults, fields that the schema lacks are dropped; whatever both have must
/// be the same.
fn disagreement(held: &Json, line: &Json, path: &str) -> Option<String> {
    let agree = match (held, line) {
        (Json::Object(held), Json::Object(line)) => {
            return held
                .iter()
                .filter_map(|(name, value)| Some((name, value, line.get(name)?)))
                .find_map(|(name, value, line)| disagreement(value, line, &format!("{path}.{name}")));
        }
        (Json::Array(held), Json::Array(line)) if held.len() == line.len() => {
            return held
                .iter()
                .zip(line)
                .enumerate()
                .find_map(|(place, (held, line))| disagreement(held, line, &format!("{path}[{place}]")));
        }
        (Json::Number(held), Json::Number(line)) => same_number(held, line),
        (Json::String(held), Json::String(line)) => held == line || same_bytes(held, line),
        (held, line) => held == line,
    };
    (!agree).then(|| format!("{} is not as its line says", if path.is_empty() { "it" } else { path }))
}

/// Integers are exact; what is held as a float may have been rounded to four bytes.
fn same_number(held: &serde_json::Number, line: &serde_json::Number) -> bool {
    if held == line {
        return true;
    }
    match (held.as_f64(), line.as_f64()) {
        (Some(held_as), Some(line)) if held.is_f64() => (held_as - line).abs() <= line.abs() * 1e-6,
        (Some(held), Some(line_as)) if line.is_f64() => held == line_as,
        _ => false,
    }
}

/// Bytes are base64, whose padding is a matter of taste.
fn same_bytes(held: &str, line: &str) -> bool {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    matches!((ENGINE.decode(held), ENGINE.decode(line)), (Ok(held), Ok(line)) if held == line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &'static [u8]) -> (Vec<Numbered>, Option<Error>) {
        let (out, mut ahead) = mpsc::channel(1_000);
        let failed = read("here", Box::new(text), &out).err();
        drop(out);
        let mut lines = Vec::new();
        while let Ok(more) = ahead.try_recv() {
            lines.extend(more.unwrap());
        }
        (lines, failed)
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_are_none() {
        let (lines, failed) = read_all(b"\xef\xbb\xbf{\"a\":1}\r\n\n  \n{\"a\":2}\nlast");
        assert!(failed.is_none());
        let lines: Vec<(u64, &[u8])> = lines.iter().map(|(number, line)| (*number, &line[..])).collect();
        assert_eq!(lines, [(1, &b"{\"a\":1}\r"[..]), (4, b"{\"a\":2}"), (5, b"last")]);
    }

    #[test]
    fn a_line_may_be_long_and_not_too_long() {
        let line: &'static [u8] = vec![b'x'; LONGEST].leak();
        let (lines, failed) = read_all(line);
        assert!(failed.is_none());
        assert_eq!(lines[0].1.len(), LONGEST);
        let mut text = b"first\n".to_vec();
        text.resize(LONGEST + 7, b'x');
        let (lines, failed) = read_all(text.leak());
        assert_eq!(lines.len(), 1, "what comes before it is sent");
        assert!(matches!(failed, Some(Error::LongLine { number: 2, .. })), "{failed:?}");
    }

    #[test]
    fn a_record_agrees_with_its_line_or_is_named() {
        let held = r#"{"id":"a","n":5.0,"list":[1,2],"more":{"x":null,"y":0.1},"raw":"aGk=","default":3}"#;
        let line = r#"{"more":{"y":1e-1,"x":null,"unknown":9},"id":"a","n":5,"list":[1,2],"raw":"aGk"}"#;
        assert_eq!(judge(held, line.as_bytes()), None);
        for (wrong, named) in [
            (line.replace("\"a\"", "\"b\""), ".id"),
            (line.replace("\"n\":5", "\"n\":6"), ".n"),
            (line.replace("[1,2]", "[1]"), ".list"),
            (line.replace("[1,2]", "[1,3]"), ".list[1]"),
            (line.replace("1e-1", "0.2"), ".more.y"),
            (line.replace("aGk", "aGm"), ".raw"),
            ("[]".to_owned(), "it is not"),
            ("{".to_owned(), "not JSON"),
        ] {
            let said = judge(held, wrong.as_bytes()).unwrap_or_default();
            assert!(said.contains(named), "{wrong}: {said}");
        }
        assert!(judge("9007199254740993", b"9007199254740992").is_some(), "integers are exact");
    }
}
