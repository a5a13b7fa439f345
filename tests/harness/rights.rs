//! Rights in Kafka (ACLs), given and taken by the requests for it, which rdkafka does not offer.

use std::time::Duration;

use crate::protocol::exchange;
use crate::tap::{number16, number32};
use crate::wait_until;

/// CreateAcls, DeleteAcls, DescribeAcls: all in version 1, the last without compact forms.
const GIVE: i16 = 30;
const TAKE: i16 = 31;
const TELL: i16 = 29;
/// How long a broker may take until it knows of a change.
const KNOWN: Duration = Duration::from_secs(120);

/// What a right is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// A transactional id.
    Transaction,
}

/// One operation allowed on one resource, or on all whose names begin so.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Right {
    /// What kind of thing.
    pub resource: Resource,
    /// Its name.
    pub name: String,
    /// Whether all names that begin so are meant.
    pub prefixed: bool,
    /// `Read`, `Write`, `Create`, `Delete`, `Describe`, `DescribeConfigs`.
    pub operation: String,
}

impl Right {
    fn resource_number(&self) -> u8 {
        match self.resource {
            Resource::Topic => 2,
            Resource::Group => 3,
            Resource::Transaction => 5,
        }
    }

    fn operation_number(&self) -> u8 {
        match self.operation.as_str() {
            "Read" => 3,
            "Write" => 4,
            "Create" => 5,
            "Delete" => 6,
            "Describe" => 8,
            "DescribeConfigs" => 10,
            other => panic!("no operation is called {other}"),
        }
    }

    /// As the three requests have it: kind, name, literal (3) or prefixed (4), principal, host, operation, allow (3).
    fn encode(&self, principal: &str) -> Vec<u8> {
        let mut out = vec![self.resource_number()];
        put(&mut out, &self.name);
        out.push(if self.prefixed { 4 } else { 3 });
        put(&mut out, principal);
        put(&mut out, "*");
        out.extend([self.operation_number(), 3]);
        out
    }
}

/// Gives `principal` (`User:NAME`) all these rights; returns once the broker knows of them.
pub fn give(bootstrap: &str, principal: &str, rights: &[Right]) {
    let before = count(bootstrap, principal);
    change(bootstrap, GIVE, principal, rights);
    wait_for(bootstrap, principal, before + rights.len());
}

/// Takes them away again.
pub fn take(bootstrap: &str, principal: &str, rights: &[Right]) {
    let before = count(bootstrap, principal);
    change(bootstrap, TAKE, principal, rights);
    wait_for(bootstrap, principal, before - rights.len());
}

fn change(bootstrap: &str, request: i16, principal: &str, rights: &[Right]) {
    let mut frame = head(request);
    frame.extend(u32::try_from(rights.len()).expect("few").to_be_bytes());
    for right in rights {
        frame.extend(right.encode(principal));
    }
    let answer = exchange(bootstrap, &frame);
    // Number, time throttled, how many (4 each); of the first its code (2), and words.
    let code = number16(&answer, 12).expect("a code for the first right");
    assert_eq!(code, 0, "{request} of {rights:?} for {principal}: {}", String::from_utf8_lossy(&answer));
}

fn wait_for(bootstrap: &str, principal: &str, expected: usize) {
    wait_until("the broker knows of the rights", KNOWN, || {
        let known = count(bootstrap, principal);
        if known == expected { Ok(()) } else { Err(format!("{known} of {expected}")) }
    });
}

/// How many rights the broker knows of.
fn count(bootstrap: &str, principal: &str) -> usize {
    let mut frame = head(TELL);
    // Of any kind (1), name (null) and pattern (1); by any host, any operation (1), allowing (3).
    frame.extend([1, 0xff, 0xff, 1]);
    put(&mut frame, principal);
    frame.extend([0xff, 0xff, 1, 3]);
    let answer = exchange(bootstrap, &frame);
    // Number, time throttled (4 each), code (2), words.
    assert_eq!(number16(&answer, 8), Some(0), "{}", String::from_utf8_lossy(&answer));
    let mut at = 10;
    let text = |at: &mut usize| {
        let length = number16(&answer, *at).expect("a length");
        *at += 2 + usize::try_from(length).unwrap_or(0);
    };
    text(&mut at);
    let number = |at: &mut usize| {
        *at += 4;
        number32(&answer, *at - 4).expect("a number")
    };
    let mut known = 0;
    for _ in 0..number(&mut at) {
        at += 1;
        text(&mut at);
        at += 1;
        for _ in 0..number(&mut at) {
            text(&mut at);
            text(&mut at);
            at += 2;
            known += 1;
        }
    }
    known
}

/// Key, version 1, number, no client id.
fn head(request: i16) -> Vec<u8> {
    [&request.to_be_bytes()[..], &[0, 1, 0, 0, 0, 1, 0xff, 0xff]].concat()
}

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).expect("a short name").to_be_bytes());
    out.extend(text.as_bytes());
}
