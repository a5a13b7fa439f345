//! Letters out of misfits: the whole record, and why it could not be processed.
//!
//! Owns: what of the record a letter keeps (everything, so that it can be replayed). Does not own: the letter's bytes
//! and headers (`format/letter`), when it is sent (`producer/announce`).

use bytes::Bytes;

use crate::codec::Misfit;
use crate::format::letter::{Letter, MAX_MESSAGE, bounded};
use crate::kafka::Message;
use crate::record::SourcePartition;

/// The letter of a record that does not fit.
pub fn of(misfit: &Misfit, source: &SourcePartition, message: &Message<'_>) -> Letter {
    let record = Failed {
        source,
        offset: message.offset(),
        timestamp: message.timestamp_ms(),
        key: message.key(),
        value: message.value(),
    };
    record.letter(misfit, message.headers())
}

/// A record that failed, as it came.
struct Failed<'a> {
    source: &'a SourcePartition,
    offset: i64,
    timestamp: i64,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
}

impl Failed<'_> {
    fn letter<'h>(
        &self,
        misfit: &Misfit,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) -> Letter {
        Letter {
            source: self.source.clone(),
            offset: self.offset,
            timestamp: self.timestamp,
            stage: misfit.stage.to_string(),
            class: misfit.class.to_owned(),
            message: bounded(&misfit.message, MAX_MESSAGE).to_owned(),
            key: self.key.map(Bytes::copy_from_slice),
            value: self.value.map(Bytes::copy_from_slice),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.map(Bytes::copy_from_slice)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Stage;

    #[test]
    fn a_letter_keeps_the_record_as_it_came() {
        let source = SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 1 };
        let failed = Failed { source: &source, offset: 7, timestamp: 8, key: None, value: Some(b"") };
        let misfit = Misfit { stage: Stage::Decode, class: "stillwell.Empty", message: "é".repeat(1_000) };
        let headers = [("a", Some(&b"1"[..])), ("a", None)];
        let letter = failed.letter(&misfit, headers.into_iter());
        assert_eq!((letter.source, letter.offset, letter.timestamp), (source, 7, 8));
        assert_eq!((letter.key, letter.value), (None, Some(Bytes::new())), "null and empty are kept apart");
        assert_eq!(letter.headers, [("a".into(), Some(Bytes::from_static(b"1"))), ("a".into(), None)]);
        assert_eq!((letter.stage.as_str(), letter.message.len()), ("VALUE_CONVERTER", 1024));
    }
}
