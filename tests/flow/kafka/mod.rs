//! The room `kafka` on a real broker: what the design takes for granted of librdkafka and Kafka, tried.

mod membership;
mod polling;
mod topics;
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stillwell::clock::Clock;
use stillwell::kafka::{Options, Polled, Poller, Transaction, Tuning};
use stillwell_tests::{bootstrap, unique};

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Members are given up after twelve seconds of silence, twice what ships: no shorter than a stall of a loaded machine's
/// broker, and short enough for who waits for it within [`LONG`].
pub(crate) fn options() -> Options {
    Options {
        bootstrap_servers: bootstrap().to_owned(),
        client_id: "test".to_owned(),
        properties: [("session.timeout.ms".to_owned(), "12000".to_owned())].into(),
        ..Options::default()
    }
}

pub(crate) fn now() -> Instant {
    Clock::system().now()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

pub(crate) fn source() -> Poller {
    Poller::new(&options(), &Tuning::source(&unique("group"), 16 << 20)).expect("a poller")
}

pub(crate) fn transaction(id: &str) -> Transaction {
    let transaction = Transaction::new(&options(), id, Clock::system()).expect("a transactional client");
    transaction.init(LONG).expect("init");
    transaction
}

/// What a poller said until every slot was at its end (or lost), with the ends.
pub(crate) struct Read {
    /// Slot, offset, value.
    pub(crate) records: Vec<(usize, i64, String)>,
    pub(crate) ends: BTreeMap<usize, i64>,
    pub(crate) lost: BTreeSet<usize>,
}

pub(crate) fn read_to_ends(poller: &mut Poller) -> Read {
    let mut read = Read { records: Vec::new(), ends: BTreeMap::new(), lost: BTreeSet::new() };
    let deadline = now() + LONG;
    while !poller.all().all(|slot| read.ends.contains_key(&slot) || read.lost.contains(&slot)) {
        assert!(now() < deadline, "no end: {:?} {:?}", read.records, read.ends);
        match poller.poll(Duration::from_millis(100)) {
            None => {}
            Some(Polled::Record { slot, message }) => {
                let value = String::from_utf8_lossy(message.value().unwrap_or(b"-")).into_owned();
                read.records.push((slot, message.offset(), value));
                read.ends.remove(&slot);
            }
            Some(Polled::End { slot, offset }) => {
                read.ends.insert(slot, offset);
            }
            Some(Polled::Lost { slot, detail }) => {
                assert!(!detail.is_empty());
                read.lost.insert(slot);
            }
            Some(Polled::Error(error)) => panic!("{error}"),
        }
    }
    read
}
