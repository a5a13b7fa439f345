//! Dead letters, read back: each misfit that was sent must come back once, as it was, and nothing else may.
//!
//! Owns: reading the dead-letter topic, and the account of what is due. Does not own: what makes a record a misfit
//! (`codec/`), or sends its letter (`producer/announce`).

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::format::letter::header;
use crate::kafka::{self, Message, Polled, Poller, Tuning};
use crate::version::Checksum;

/// Letters that are kept to be shown.
const SHOWN: usize = 20;
/// Differences that are named.
const NAMED: usize = 5;
/// What letters may weigh that are due: the embedded broker keeps 5 MB of their topic.
const MAX_DUE: u64 = 2 << 20;
/// What a letter weighs beside the record in it: its headers, with room to spare.
const OVERHEAD: u64 = 2_048;

/// A letter as it came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's value.
    pub value: Option<Vec<u8>>,
    /// The failed stage.
    pub stage: String,
    /// The kind of failure.
    pub class: String,
    /// What was wrong.
    pub reason: String,
    /// Partition and offset of the record in the source topic.
    pub origin: (i32, i64),
    /// The number of its line, if it was one.
    pub line: Option<u64>,
    /// Its value is in a blob, since it is too large for the topic.
    elsewhere: bool,
}

/// The account.
#[derive(Debug, Default)]
pub struct Account {
    due: HashMap<(i32, i64), Due>,
    due_bytes: u64,
    /// Letters that came back.
    pub total: u64,
    /// The first of them.
    pub shown: Vec<Letter>,
    /// Letters that are not as they must be.
    pub wrong: u64,
    /// What is wrong with the first of those.
    pub named: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    line: Option<u64>,
    weight: u64,
    key: Option<Checksum>,
    value: Option<Checksum>,
}

fn checksum(part: &Option<Vec<u8>>) -> Option<Checksum> {
    part.as_deref().map(Checksum::of)
}

impl Account {
    /// A misfit goes out at this partition and offset: its letter is due.
    pub fn expect(
        &mut self,
        origin: (i32, i64),
        key: &Option<Vec<u8>>,
        value: &Option<Vec<u8>>,
        line: Option<u64>,
    ) {
        let bytes = [key, value].into_iter().flatten().map(|part| part.len() as u64).sum::<u64>();
        let due = Due { line, weight: bytes + OVERHEAD, key: checksum(key), value: checksum(value) };
        self.due_bytes += due.weight;
        self.due.insert(origin, due);
    }

    /// Whether no more misfits may be sent until letters have come back.
    pub fn is_full(&self) -> bool {
        self.due_bytes > MAX_DUE
    }

    /// Letters that have not come back yet.
    pub fn due(&self) -> u64 {
        self.due.len() as u64
    }

    /// A letter has come back.
    pub fn arrived(&mut self, mut letter: Letter) {
        self.total += 1;
        let (partition, offset) = letter.origin;
        let wrong = match self.due.remove(&letter.origin) {
            None => Some("nothing was due for it"),
            Some(due) => {
                self.due_bytes = self.due_bytes.saturating_sub(due.weight);
                letter.line = due.line;
                match &letter {
                    letter if checksum(&letter.key) != due.key => Some("its key is not the record's"),
                    letter if !letter.elsewhere && checksum(&letter.value) != due.value => {
                        Some("its value is not the record's")
                    }
                    letter if letter.stage.is_empty() || letter.reason.is_empty() => {
                        Some("it does not say what was wrong")
                    }
                    _ => None,
                }
            }
        };
        if let Some(wrong) = wrong {
            self.wrong += 1;
            if self.named.len() < NAMED {
                self.named.push(format!("the letter for partition {partition}, offset {offset}: {wrong}"));
            }
        }
        if self.shown.len() < SHOWN {
            self.shown.push(letter);
        }
    }
}

impl Letter {
    fn of(message: &Message<'_>) -> Letter {
        let headers: HashMap<&str, &[u8]> =
            message.headers().filter_map(|(name, value)| Some((name, value?))).collect();
        let text = |name: &str| {
            headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
        };
        Letter {
            key: message.key().map(<[u8]>::to_vec),
            value: message.value().map(<[u8]>::to_vec),
            stage: text(header::STAGE),
            class: text(header::EXCEPTION_CLASS_NAME),
            reason: text(header::EXCEPTION_MESSAGE),
            origin: (
                text(header::PARTITION).parse().unwrap_or(-1),
                text(header::OFFSET).parse().unwrap_or(-1),
            ),
            line: None,
            elsewhere: [header::VALUE_BLOB, header::LETTER_BLOB]
                .iter()
                .any(|name| headers.contains_key(name)),
        }
    }
}

/// Reads the topic from its beginning until `stop`. Blocks: for a thread of its own.
///
/// # Errors
/// Kafka's, and a letter that the embedded broker forgot before it was read.
pub fn read(
    options: &kafka::Options,
    topic: &str,
    out: &mpsc::Sender<Letter>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let failed = |source| Error::Kafka { doing: format!("reading {topic}"), source };
    let tuning = Tuning {
        role: "letters",
        group: "stillwell.demo.letters".to_owned(),
        fetch_wait: Duration::from_millis(100),
        fetch_ahead: 4 << 20,
    };
    let mut poller = Poller::new(options, &tuning).map_err(failed)?;
    poller.assign(&[(topic, 0, 0)]).map_err(failed)?;
    while !stop.is_cancelled() {
        match poller.poll(Duration::from_millis(100)) {
            Some(Polled::Record { message, .. }) => {
                if out.blocking_send(Letter::of(&message)).is_err() {
                    return Ok(());
                }
            }
            Some(Polled::Lost { detail, .. }) => {
                return Err(Error::Stuck(format!("letters were forgotten by the embedded broker: {detail}")));
            }
            Some(Polled::Error(error)) if !error.is_transient() => return Err(failed(error)),
            Some(Polled::End { .. } | Polled::Error(_)) | None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(offset: i64, value: &str) -> Letter {
        Letter {
            key: None,
            value: Some(value.as_bytes().to_vec()),
            stage: "VALUE_CONVERTER".to_owned(),
            class: "Json".to_owned(),
            reason: "the text ends too early".to_owned(),
            origin: (0, offset),
            line: None,
            elsewhere: false,
        }
    }

    #[test]
    fn a_letter_comes_back_once_and_as_it_was() {
        let mut account = Account::default();
        for offset in 0..4 {
            account.expect((0, offset), &None, &Some(b"{".to_vec()), Some(offset as u64 + 10));
        }
        account.arrived(letter(0, "{"));
        assert_eq!((account.due(), account.wrong, account.shown[0].line), (3, 0, Some(10)));
        account.arrived(letter(0, "{"));
        account.arrived(letter(1, "["));
        account.arrived(Letter { reason: String::new(), ..letter(2, "{") });
        account.arrived(Letter { key: Some(b"k".to_vec()), ..letter(3, "{") });
        assert_eq!((account.due(), account.wrong, account.total), (0, 4, 5));
        for (said, expected) in account.named.iter().zip(["nothing was due", "value", "does not say", "key"])
        {
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn what_is_due_is_bounded() {
        let mut account = Account::default();
        let mut sent = 0;
        while !account.is_full() {
            account.expect((0, sent), &None, &Some(vec![b'x'; 100]), None);
            sent += 1;
        }
        assert!((500..2_000).contains(&sent), "{sent}");
        account.arrived(letter(0, "y"));
        assert!(!account.is_full() && account.due_bytes < MAX_DUE + 4_096);
    }
}
