//! Kafka's errors, sorted by what the caller does next.

use std::borrow::Cow;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::client::TOKENLESS;
use crate::ErrorKind;

/// Why Kafka failed.
///
/// `doing` says what was done where; `detail` is librdkafka's or the broker's own text, and what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses a property: change `[kafka]` or `[kafka.properties]`.
    #[error("{doing}: {detail}")]
    Options {
        /// What was done.
        doing: String,
        /// Which property, and why.
        detail: String,
    },
    /// Kafka does not answer, or is not able to at the moment: try again, with backoff.
    #[error("{doing}: {detail}")]
    Unavailable {
        /// What was done.
        doing: String,
        /// Kafka's words.
        detail: String,
    },
    /// Credentials or rights are missing: an operator has to change something, at Kafka or here.
    #[error("{doing}: {detail}")]
    Denied {
        /// What was done.
        doing: String,
        /// Kafka's words, and which right to give.
        detail: String,
    },
    /// There is no such topic or partition.
    #[error("{doing}: {detail}")]
    Missing {
        /// What was done.
        doing: String,
        /// Kafka's words.
        detail: String,
    },
    /// There is such a topic already.
    #[error("{doing}: {detail}")]
    Exists {
        /// What was done.
        doing: String,
        /// Kafka's words.
        detail: String,
    },
    /// What was sent is not acceptable, and will not be the next time either: too large, an invalid name or setting.
    #[error("{doing}: {detail}")]
    Rejected {
        /// What was done.
        doing: String,
        /// Kafka's words.
        detail: String,
    },
    /// Somebody newer has taken this transactional id or group instance id: stop.
    #[error("{doing}: {detail}")]
    Fenced {
        /// What was done.
        doing: String,
        /// Kafka's words.
        detail: String,
    },
    /// The client cannot go on: drop it and make a new one.
    #[error("{doing}: {detail}")]
    Fatal {
        /// What was done.
        doing: String,
        /// Kafka's words.
        detail: String,
    },
    /// The client was closed meanwhile.
    #[error("{doing}: the client was closed")]
    Closed {
        /// What was done.
        doing: String,
    },
}

impl Error {
    /// Whether the same call may succeed later with nothing changed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }

    /// What the operator does about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Options { .. } | Error::Denied { .. } | Error::Missing { .. } | Error::Exists { .. } => {
                ErrorKind::Config
            }
            Error::Unavailable { .. } | Error::Fatal { .. } => ErrorKind::Unavailable,
            Error::Rejected { .. } => ErrorKind::Rejected,
            Error::Fenced { .. } => ErrorKind::Fenced,
            Error::Closed { .. } => ErrorKind::Closed,
        }
    }

    /// Whether somebody was not let in: not what a broker refuses who has let him in.
    pub(super) fn is_of_login(&self) -> bool {
        matches!(self, Error::Denied { detail, .. } if detail.ends_with(LOGIN))
    }

    /// Sorts an error of rdkafka.
    pub(super) fn from_kafka(doing: impl Into<String>, error: &KafkaError) -> Error {
        let doing = doing.into();
        match error {
            KafkaError::ClientConfig(_, problem, key, _) => {
                // The value is left out: it may be a secret.
                Error::Options { doing, detail: format!("{problem}; correct the property {key}") }
            }
            KafkaError::ClientCreation(problem) => Error::Options { doing, detail: problem.clone() },
            KafkaError::Canceled => Error::Closed { doing },
            KafkaError::Transaction(error) => Error::from_code(doing, error.code(), &error.string()),
            other => match other.rdkafka_error_code().or(admin_code(other)) {
                Some(code) => Error::from_code(doing, code, ""),
                None => Error::Unavailable { doing, detail: other.to_string() },
            },
        }
    }

    /// Sorts an error code of the protocol or of librdkafka. `words` are librdkafka's own about this case, if any.
    pub(super) fn from_code(doing: impl Into<String>, code: Code, words: &str) -> Error {
        let doing = doing.into();
        let code_says = code.to_string();
        // Of an answer without words of its own librdkafka says what was asked, and a colon with nothing behind it.
        let words = words.trim_end().trim_end_matches(':');
        // librdkafka's words often are the code's own.
        let said = if code_says.contains(words) { code_says } else { format!("{words} ({code_says})") };
        match class(code) {
            // Who is there to say whether it is denied does not answer, or not yet.
            _ if words.starts_with(TOKENLESS) => {
                Error::Unavailable { doing, detail: advised(words).into_owned() }
            }
            Class::Denied => Error::Denied { doing, detail: format!("{said}; {}", remedy(code)) },
            Class::Missing => Error::Missing { doing, detail: said },
            Class::Exists => Error::Exists { doing, detail: said },
            Class::Rejected if code == Code::InvalidTopic => {
                Error::Rejected { doing, detail: format!("{said}; {TOPIC_NAMES}") }
            }
            Class::Rejected => Error::Rejected { doing, detail: said },
            Class::Fenced => Error::Fenced { doing, detail: said },
            Class::Fatal => Error::Fatal { doing, detail: said },
            Class::Closed => Error::Closed { doing },
            Class::Unavailable => Error::Unavailable { doing, detail: said },
        }
    }
}

/// Whether Kafka does not allow something, wherever behind `error` that came up: what is tried again would not be allowed
/// either, before somebody has given the right.
pub fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(Error::Denied { .. })) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The code of an admin operation, which rdkafka holds but does not hand out.
fn admin_code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Unavailable,
    Denied,
    Missing,
    Exists,
    Rejected,
    Fenced,
    Fatal,
    Closed,
}

/// What is not listed counts as unavailable: trying again with backoff is wrong for it at worst by being slow, while
/// giving up would be wrong by standing still.
fn class(code: Code) -> Class {
    match code {
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::Authentication
        | Code::SSL
        | Code::PolicyViolation => Class::Denied,
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId => Class::Missing,
        Code::TopicAlreadyExists => Class::Exists,
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessage
        | Code::InvalidRecord
        | Code::BadMessage
        | Code::InvalidTopic
        | Code::InvalidTimestamp
        | Code::InvalidConfig
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidRequest
        | Code::OffsetOutOfRange
        | Code::InvalidArgument
        | Code::InvalidTransactionTimeout
        | Code::UnsupportedForMessageFormat => Class::Rejected,
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::FencedInstanceId => {
            Class::Fenced
        }
        Code::Fatal | Code::UnsupportedFeature | Code::UnsupportedVersion | Code::Inconsistent => {
            Class::Fatal
        }
        Code::BrokerDestroy => Class::Closed,
        _ => Class::Unavailable,
    }
}

/// Which names Kafka takes: those of two topics that come to one name in its metrics collide.
const TOPIC_NAMES: &str =
    "a name is made of letters, digits, '.', '_' and '-', and no two may differ in '.' for '_' alone";

/// Why a connection failed, and what to do about it where it is credentials or certificates: then none is made before
/// somebody has done it, whatever else says only that Kafka is away.
pub(super) fn advised(words: &str) -> Cow<'_, str> {
    let advice = match () {
        () if words.starts_with(TOKENLESS) => {
            "check sasl.oauthbearer.token.endpoint.url, sasl.oauthbearer.client.id, sasl.oauthbearer.client.secret and \
             sasl.oauthbearer.scope in [kafka.properties], and https.ca.location where the endpoint's authority is your own"
        }
        () if words.contains("SASL ") => remedy(Code::Authentication),
        () if words.contains("SSL handshake") || words.contains("certificate") => remedy(Code::SSL),
        () => return Cow::Borrowed(words),
    };
    Cow::Owned(format!("{words}; {advice}"))
}

fn remedy(code: Code) -> &'static str {
    match code {
        Code::TopicAuthorizationFailed => "give this user the right to do so on the topic (ACL)",
        Code::GroupAuthorizationFailed => "give this user the right to read the consumer group (ACL)",
        Code::TransactionalIdAuthorizationFailed => {
            "give this user the right to write with this transactional id (ACL)"
        }
        // Kafka says so to who may write to no topic at all (KIP-679), and of topics that may not be created.
        Code::ClusterAuthorizationFailed => {
            "give this user the right to write to the topic, or to create it (ACL), or create it by hand"
        }
        Code::SSL => {
            "check ssl.ca.location and the certificates in [kafka.properties], and that none has expired"
        }
        Code::PolicyViolation => "the broker's policy forbids it; create the topic by hand",
        _ => LOGIN,
    }
}

/// What is advised where somebody is not let in, and nowhere else.
const LOGIN: &str = "check security.protocol and the sasl.* properties in [kafka.properties]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_what_to_do() {
        let sort = |code| Error::from_code("reading orders[0]", code, "");
        assert!(sort(Code::BrokerTransportFailure).is_transient());
        assert!(sort(Code::NotEnoughReplicas).is_transient());
        assert!(matches!(sort(Code::ProducerFenced), Error::Fenced { .. }));
        assert!(matches!(sort(Code::Fatal), Error::Fatal { .. }));
        assert!(matches!(sort(Code::UnknownTopicOrPartition), Error::Missing { .. }));
        let denied = sort(Code::TopicAuthorizationFailed);
        assert!(matches!(denied, Error::Denied { .. }) && !denied.is_transient());
        let not_let_in = sort(Code::Authentication);
        assert!(matches!(not_let_in, Error::Denied { .. }) && not_let_in.is_of_login());
        assert!(sort(Code::SaslAuthenticationFailed).is_of_login());
        for let_in in [Code::TopicAuthorizationFailed, Code::PolicyViolation, Code::SSL, Code::ProducerFenced]
        {
            assert!(!sort(let_in).is_of_login(), "{let_in:?}");
        }
        assert!(
            denied.to_string().contains("reading orders[0]") && denied.to_string().contains("ACL"),
            "{denied}"
        );
    }

    #[test]
    fn an_answer_without_words_leaves_no_gap() {
        let error = Error::from_code("asking", Code::NotCoordinator, "ConsumerGroupDescribe: ");
        let said = "asking: ConsumerGroupDescribe (NotCoordinator (Broker: Not coordinator))";
        assert_eq!(error.to_string(), said);
        assert_eq!(
            Error::from_code("asking", Code::NotCoordinator, "").to_string(),
            "asking: NotCoordinator (Broker: Not coordinator)"
        );
    }

    #[test]
    fn who_is_not_let_in_is_told_what_to_look_at() {
        let why = "sasl_ssl://kafka:9093/1: SASL authentication error: Authentication failed (after 9ms)";
        assert!(advised(why).starts_with(why) && advised(why).contains("sasl.*"), "{}", advised(why));
        let why = format!("{TOKENLESS}https://login/token: it answered 401: invalid_client");
        let advised_so = advised(&why).into_owned();
        assert!(
            advised_so.starts_with(&why) && advised_so.contains("oauthbearer.token.endpoint.url"),
            "{advised_so}"
        );
        let error = Error::from_code("reaching Kafka", Code::Authentication, &why);
        assert!(error.is_transient() && error.to_string().ends_with(&advised_so), "{error}");
        let why = "ssl://kafka:9093/1: SSL handshake failed: certificate verify failed: broker certificate";
        assert!(advised(why).contains("ssl.ca.location"), "{}", advised(why));
        let why = "sasl_ssl://kafka:9093/1: Connect to ipv4#127.0.0.1:9093 failed: Connection refused";
        assert_eq!(advised(why), why);
    }

    #[test]
    fn a_refused_property_is_named_and_its_value_is_not() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("ssl.key.password", "hunter2").set("security.protocol", "hunter2");
        let error = config.create_native_config().err().expect("no such protocol");
        let text = Error::from_kafka("connecting", &error).to_string();
        assert!(text.contains("security.protocol"), "{text}");
    }
}
