//! Rights: what a user must be allowed, and whether Kafka allows it, as far as that can be asked without doing it.
//!
//! Kafka tells what is allowed on a topic or a group to whom it allows to describe it (KIP-430). Of transactional ids it
//! tells nothing: there an id under the same prefix, that nobody else has, is tried. A cluster without an authorizer allows
//! everything.
//!
//! Owns: asking. Does not own: which rights are needed for what (`producer/topics`, `consumer/history`).

use std::fmt;
use std::time::Duration;

use crate::clock::Clock;

use super::{Admin, Error, Options, Transaction};

/// Longest that trying a transactional id may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something that Kafka allows or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read; of a group: join it, and commit its offsets.
    Read,
    /// Write.
    Write,
    /// Delete; of a topic also: its records.
    Delete,
    /// Describe. Whoever may read, write or delete may this, too.
    Describe,
    /// See the settings.
    DescribeConfigs,
}

impl Operation {
    /// Its number in Kafka's protocol.
    fn number(self) -> i32 {
        match self {
            Operation::Read => 3,
            Operation::Write => 4,
            Operation::Delete => 6,
            Operation::Describe => 8,
            Operation::DescribeConfigs => 10,
        }
    }
}

/// What something is allowed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// A topic.
    Topic(String),
    /// A consumer group.
    Group(String),
    /// All transactional ids that begin so.
    Transactions(String),
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            On::Topic(name) => write!(f, "topic {name}"),
            On::Group(name) => write!(f, "group {name}"),
            On::Transactions(prefix) => write!(f, "transactional ids that begin with {prefix}"),
        }
    }
}

/// A right that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// On what.
    pub on: On,
    /// To do what.
    pub operation: Operation,
    /// What goes wrong without it.
    pub without: &'static str,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on {}, without which {}", self.operation, self.on, self.without)
    }
}

/// Those of `needs` that Kafka does not allow. Of a topic that is not there yet nothing is known, and what a broker is too old
/// to tell counts as allowed.
///
/// # Errors
/// Kafka's, other than refusals.
pub async fn lacking(admin: &Admin, options: &Options, needs: &[Need]) -> Result<Vec<Need>, Error> {
    let mut lacking = Vec::new();
    let mut asked: Option<(&On, Allowed)> = None;
    for need in needs {
        let allowed = match asked.take() {
            Some((on, allowed)) if *on == need.on => allowed,
            _ => ask(admin, options, &need.on).await?,
        };
        if !allowed.is(need.operation) {
            lacking.push(need.clone());
        }
        asked = Some((&need.on, allowed));
    }
    Ok(lacking)
}

enum Allowed {
    /// By their numbers.
    These(Vec<i32>),
    Nothing,
    NotKnown,
}

impl Allowed {
    fn is(&self, operation: Operation) -> bool {
        match self {
            Allowed::These(numbers) => numbers.is_empty() || numbers.contains(&operation.number()),
            Allowed::Nothing => false,
            Allowed::NotKnown => true,
        }
    }
}

async fn ask(admin: &Admin, options: &Options, on: &On) -> Result<Allowed, Error> {
    let allowed = match on {
        On::Topic(topic) => admin.allowed_on_topic(topic).await,
        On::Group(group) => admin.allowed_on_group(group).await.map(Some),
        On::Transactions(prefix) => try_transaction(options, prefix).await.map(|()| None),
    };
    match allowed {
        Ok(Some(numbers)) => Ok(Allowed::These(numbers)),
        Ok(None) => Ok(Allowed::NotKnown),
        Err(Error::Denied { .. }) => Ok(Allowed::Nothing),
        Err(error) => Err(error),
    }
}

/// Registers an id that nobody writes with, and so fences nobody. Kafka forgets it after
/// `transactional.id.expiration.ms`.
async fn try_transaction(options: &Options, prefix: &str) -> Result<(), Error> {
    let (options, id) = (options.clone(), format!("{prefix}check"));
    let tried =
        tokio::task::spawn_blocking(move || Transaction::new(&options, &id, Clock::system())?.init(PATIENCE));
    tried.await.map_err(|_| Error::Closed { doing: "trying a transactional id".to_owned() })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_allowed_and_what_is_refused_is_not() {
        assert!(Allowed::NotKnown.is(Operation::Write));
        assert!(Allowed::These(Vec::new()).is(Operation::Write), "a broker that does not tell");
        assert!(Allowed::These(vec![3, 8]).is(Operation::Read));
        assert!(!Allowed::These(vec![3, 8]).is(Operation::Write));
        assert!(!Allowed::Nothing.is(Operation::Describe));
    }

    #[test]
    fn a_need_says_what_goes_wrong() {
        let need = Need {
            on: On::Topic("products.dlq".to_owned()),
            operation: Operation::Write,
            without: "a record that does not fit stops the dataset",
        };
        let said = "Write on topic products.dlq, without which a record that does not fit stops the dataset";
        assert_eq!(need.to_string(), said);
    }
}
