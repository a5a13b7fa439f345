//! As much of Kafka's protocol as it takes to do by hand what no client would: to send again, later, what a client has
//! sent before; to end somebody else's transaction; to ask what the coordinator knows of it.
//!
//! Forms and numbers from <https://kafka.apache.org/protocol>. Requests of a client are taken from the wire
//! ([`crate::Tap`]) and sent again as they were, so that a late duplicate is one to the byte.

use std::net::TcpStream;
use std::time::Duration;

use crate::tap::{Request, number16, number32, read_frame, write_frame};

/// The numbers of requests.
pub mod key {
    /// Produce.
    pub const PRODUCE: i16 = 0;
    /// Fetch.
    pub const FETCH: i16 = 1;
    /// InitProducerId.
    pub const INIT_PRODUCER_ID: i16 = 22;
    /// AddPartitionsToTxn.
    pub const ADD_PARTITIONS: i16 = 24;
    /// AddOffsetsToTxn.
    pub const ADD_OFFSETS: i16 = 25;
    /// EndTxn.
    pub const END: i16 = 26;
    /// TxnOffsetCommit.
    pub const COMMIT_OFFSETS: i16 = 28;
    /// DescribeTransactions.
    pub const DESCRIBE: i16 = 65;
}

/// The error codes that tests look for.
pub mod code {
    /// All is well.
    pub const NONE: i16 = 0;
    /// The producer's epoch is an old one.
    pub const INVALID_PRODUCER_EPOCH: i16 = 47;
    /// The transaction is not in a state for it.
    pub const INVALID_TXN_STATE: i16 = 48;
    /// An earlier end is still being written.
    pub const CONCURRENT_TRANSACTIONS: i16 = 51;
    /// A newer producer has taken the transactional id.
    pub const PRODUCER_FENCED: i16 = 90;
    /// The coordinator knows no such id.
    pub const TRANSACTIONAL_ID_NOT_FOUND: i16 = 105;
}

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The end of a transaction, as a client asked for it.
#[derive(Clone, Debug)]
pub struct End(Request);

impl End {
    /// `None` for another request, or one of a form whose answer would differ.
    pub fn of(request: &Request) -> Option<End> {
        (request.key == key::END && (0..=2).contains(&request.version)).then(|| End(request.clone()))
    }

    /// Whether it commits: the last byte, a boolean.
    pub fn commits(&self) -> bool {
        self.0.frame.last() == Some(&1)
    }

    /// The same with the other outcome: what an abort would have been.
    pub fn aborting(mut self) -> End {
        if let Some(last) = self.0.frame.last_mut() {
            *last = 0;
        }
        self
    }

    /// Sends it by a connection of its own, as a network does that had kept it, and returns the error code.
    pub fn send(&self, bootstrap: &str) -> i16 {
        // Number (4), time throttled (4), code.
        let answer = exchange(bootstrap, &self.0.frame);
        number16(&answer, 8).expect("EndTxn is answered with a code")
    }
}

/// Sends an AddPartitionsToTxn (versions 0 to 2) again; the first partition's error code.
pub fn add_partitions_again(bootstrap: &str, request: &Request) -> i16 {
    assert!(request.key == key::ADD_PARTITIONS && (0..=2).contains(&request.version), "{request:?}");
    let answer = exchange(bootstrap, &request.frame);
    // Number, time throttled, number of topics (4 each); name; number of partitions, partition (4 each); code.
    let name = number16(&answer, 12).map_or(0, |length| length.unsigned_abs() as usize);
    number16(&answer, 14 + name + 8).expect("a code for the partition")
}

/// What the coordinator says of a transactional id: an error code.
pub fn describe_transaction(bootstrap: &str, id: &str) -> i16 {
    let mut frame = Vec::new();
    // Key, version 0, number, no client id; tagged fields (none). Then an array of one string, lengths plus one.
    frame.extend(key::DESCRIBE.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 1, 0xff, 0xff, 0, 2]);
    frame.push(u8::try_from(id.len() + 1).ok().filter(|length| *length < 128).expect("a short id"));
    frame.extend(id.as_bytes());
    frame.push(0);
    // Number (4), tagged fields (1), time throttled (4), length of the array (1), code.
    number16(&exchange(bootstrap, &frame), 10).expect("a state for the id")
}

/// Sends a request to the broker itself, and returns the answer without its length.
pub(crate) fn exchange(bootstrap: &str, frame: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(bootstrap).expect("the broker takes connections");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    write_frame(&mut socket, frame).expect("it can be sent");
    let answer = read_frame(&mut socket).expect("it is answered");
    assert_eq!(number32(&answer, 0), number32(frame, 4), "an answer repeats the request's number");
    answer
}
