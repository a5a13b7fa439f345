//! Properties of librdkafka's, asked of librdkafka itself: whether it knows them, and takes their values.
//!
//! Owns: asking, the names for a did-you-mean, words without the value, which may be a secret. Does not own: which
//! properties are ours to set (`config/properties`), and which are not for librdkafka (`tokens`).

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use rdkafka::types::RDKafkaConfRes;

use super::client::configuration;
use super::{Error, Options, tokens};

pub use super::tokens::NAMED_FILE;

/// Why a property is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is none of this name.
    Unknown,
    /// Its value is not one; in words that go on after the name.
    Value(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Unknown => f.write_str("is none of librdkafka's"),
            Refused::Value(words) => f.write_str(words),
        }
    }
}

/// Why librdkafka does not take a property; `None`: it does. Takes some microseconds, and no connection.
pub fn refused(name: &str, value: &str) -> Option<Refused> {
    if tokens::is_ours(name) {
        return tokens::refused(name, value).map(Refused::Value);
    }
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => Some(Refused::Unknown),
        Err(KafkaError::ClientConfig(_, said, ..)) => Some(Refused::Value(words(said.trim(), value))),
        Err(_) => Some(Refused::Value("has a zero byte in it".to_owned())),
    }
}

/// librdkafka's words, without the value.
fn words(said: &str, value: &str) -> String {
    if let Some((_, range)) = said.split_once("outside allowed range ") {
        return format!("is outside of {range}");
    }
    for (part, words) in [
        ("cannot be set to empty value", "is empty"),
        ("Expected bool value", "is neither true nor false"),
        ("must be set through dedicated", "cannot be set by a configuration"),
        ("not settable", "cannot be set by a configuration"),
    ] {
        if said.contains(part) {
            return words.to_owned();
        }
    }
    match said.contains("not supported in this build") && !said.contains(value) {
        true => format!("is not taken: {said}"),
        false => "has a value that librdkafka does not take".to_owned(),
    }
}

const PROTOCOL: &str = "security.protocol";

/// Which servers librdkafka would pass over, for what they have before `://`: it takes the protocol that `security.protocol`
/// says, and any other costs a line of its log, after which it waits for a broker for ever. In words for a person.
pub fn schemes(servers: &str, properties: &BTreeMap<String, String>) -> Vec<String> {
    let protocol = properties.get(PROTOCOL).map(|protocol| protocol.trim()).filter(|text| !text.is_empty());
    let protocol = protocol.unwrap_or("plaintext");
    let other = |server: &&str| {
        server.split_once("://").is_some_and(|(scheme, _)| !scheme.eq_ignore_ascii_case(protocol))
    };
    let told = |server: &str| {
        let host = server.split_once("://").map_or(server, |(_, host)| host);
        format!(
            "{server:?} has a scheme before HOST:PORT: leave it out, as in {host:?}; whether TLS and SASL are spoken says \
             {PROTOCOL} in [kafka.properties]"
        )
    };
    servers.split(',').map(str::trim).filter(other).map(told).collect()
}

/// What is missing where SASL is wanted, and by which mechanism is not said: librdkafka would take Kerberos (GSSAPI), which it is
/// built without here.
pub fn no_mechanism(properties: &BTreeMap<String, String>) -> Option<String> {
    let value = |name: &str| properties.get(name).map(|value| value.trim()).filter(|text| !text.is_empty());
    let protocol = value(PROTOCOL)?;
    let sasl = ["SASL_SSL", "SASL_PLAINTEXT"].iter().any(|sasl| sasl.eq_ignore_ascii_case(protocol));
    // Who wants tokens is told of all that is missing for them (`tokens`).
    let tokens = value("sasl.oauthbearer.method").is_some_and(|method| method.eq_ignore_ascii_case("oidc"));
    let named = value("sasl.mechanism").or(value("sasl.mechanisms")).is_some();
    (sasl && !tokens && !named).then(|| {
        format!(
            "needs sasl.mechanism beside {protocol}: set it to PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER, as the \
             brokers have it"
        )
    })
}

/// Whether tokens can be had by the properties together, where they are wanted. Asks nobody for one.
///
/// # Errors
/// [`Error::Options`], without values of properties but for that of [`NAMED_FILE`].
pub fn tokens(options: &Options) -> Result<(), Error> {
    let doing = || "reading how to get tokens".to_owned();
    tokens::check(options).map_err(|detail| Error::Options { doing: doing(), detail })
}

/// Whether a producer and a consumer can be made with all properties together: what contradicts, files that are not
/// there, mechanisms that this build does not have. Waits for no connection, and needs no token.
///
/// # Errors
/// [`Error::Options`] with librdkafka's words, which may quote values.
pub fn together(options: &Options) -> Result<(), Error> {
    let doing = "making a client with these properties";
    let producer = [("transactional.id", "check"), ("enable.idempotence", "true"), ("acks", "all")];
    let made: Result<BaseProducer, _> = configuration(options, &[], &producer).create();
    made.map_err(|error| Error::from_kafka(doing, &error))?;
    let made: Result<BaseConsumer, _> = configuration(options, &[], &[("group.id", "check")]).create();
    made.map(|_| ()).map_err(|error| Error::from_kafka(doing, &error))
}

/// The names of librdkafka 2.12's properties, as its CONFIGURATION.md lists them, for a did-you-mean: it has no call that
/// lists them. Whether there is a property is asked of librdkafka itself, so that a name missing here costs a hint.
pub const KNOWN: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "api.version.request.timeout.ms",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.num.messages",
    "batch.size",
    "bootstrap.servers",
    "broker.address.family",
    "broker.address.ttl",
    "check.crcs",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "consume.callback.max.messages",
    "coordinator.query.interval.ms",
    "debug",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.metrics.push",
    "enable.partition.eof",
    "enable.random.seed",
    "enable.sasl.oauthbearer.unsecure.jwt",
    "enable.ssl.certificate.verification",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.protocol.type",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "https.ca.location",
    "https.ca.pem",
    "internal.termination.signal",
    "isolation.level",
    "linger.ms",
    "log.connection.close",
    "log.thread.name",
    "log_level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.copy.max.bytes",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.library.paths",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.kinit.cmd",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.assertion.algorithm",
    "sasl.oauthbearer.assertion.claim.aud",
    "sasl.oauthbearer.assertion.claim.exp.seconds",
    "sasl.oauthbearer.assertion.claim.iss",
    "sasl.oauthbearer.assertion.claim.jti.include",
    "sasl.oauthbearer.assertion.claim.nbf.seconds",
    "sasl.oauthbearer.assertion.claim.sub",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.client.credentials.client.id",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.grant.type",
    "sasl.oauthbearer.metadata.authentication.type",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.certificate.stores",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.id",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.providers",
    "ssl.sigalgs.list",
    "statistics.interval.ms",
    "sticky.partitioning.linger.ms",
    "topic.blacklist",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.fast.interval.ms",
    "topic.metadata.refresh.interval.ms",
    "topic.metadata.refresh.sparse",
    "transaction.timeout.ms",
    "transactional.id",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_knows_every_name_that_may_be_meant() {
        for name in KNOWN {
            assert_ne!(refused(name, "?"), Some(Refused::Unknown), "{name}");
        }
    }

    #[test]
    fn what_is_refused_is_named_without_its_value() {
        for (name, value, said) in [
            ("securty.protocol", "SSL", "is none of librdkafka's"),
            ("security.protocol", "SLL", "has a value that librdkafka does not take"),
            ("fetch.wait.max.ms", "900001", "is outside of 0..300000"),
            ("fetch.wait.max.ms", "", "is empty"),
            ("check.crcs", "maybe", "is neither true nor false"),
            ("error_cb", "x", "cannot be set by a configuration"),
            ("sasl.password", "a\0b", "has a zero byte in it"),
        ] {
            assert_eq!(
                refused(name, value).map(|refused| refused.to_string()).as_deref(),
                Some(said),
                "{name}"
            );
        }
        for (name, value) in [("security.protocol", "sasl_ssl"), ("acks", "all"), ("sasl.password", "s3cret")]
        {
            assert_eq!(refused(name, value), None, "{name}");
        }
    }

    #[test]
    fn all_of_them_are_said_at_once() {
        let mut options = Options::default();
        for (name, value) in [("linger.ms", "5"), ("linger.mss", "s3cret"), ("ssl.ca.locaton", "s3cret")] {
            options.properties.insert(name.to_owned(), value.to_owned());
        }
        let error = options.check().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Config);
        let text = error.to_string();
        assert!(text.contains("\"linger.mss\"") && text.contains("\"ssl.ca.locaton\""), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("\"linger.ms\" "), "{text}");
    }

    #[test]
    fn a_scheme_that_is_not_the_protocol_is_told_with_the_host_that_is_meant() {
        let of = |servers: &str, protocol: &str| {
            schemes(servers, &BTreeMap::from([(PROTOCOL.to_owned(), protocol.to_owned())]))
        };
        assert_eq!(schemes("kafka:9092, PLAINTEXT://kafka:9092", &BTreeMap::new()), Vec::<String>::new());
        assert_eq!(of("ssl://kafka:9093,kafka-2:9093", "SSL"), Vec::<String>::new());
        assert_eq!(of("SASL_SSL://kafka:9093", "sasl_ssl"), Vec::<String>::new());
        for (servers, protocol) in [
            ("kafka-1:9092, http://kafka:9092", ""),
            ("ssl://kafka:9092", ""),
            ("plaintext://kafka:9092", "SSL"),
        ] {
            let told = of(servers, protocol);
            assert_eq!(told.len(), 1, "{servers}: {told:?}");
            assert!(told[0].contains("leave it out, as in \"kafka:9092\""), "{servers}: {told:?}");
        }
        // Of the library's builders, too.
        let options = Options { bootstrap_servers: "http://kafka:9092".to_owned(), ..Options::default() };
        let error = options.check().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Config);
        assert!(error.to_string().contains("\"http://kafka:9092\" has a scheme"), "{error}");
    }

    #[test]
    fn sasl_needs_a_mechanism_that_is_there() {
        let of = |properties: &[(&str, &str)]| {
            let pairs = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let options = Options { properties: pairs.collect(), ..Options::default() };
            options.check().map_err(|error| error.to_string())
        };
        for protocol in ["SASL_SSL", "sasl_plaintext"] {
            let why = of(&[(PROTOCOL, protocol)]).unwrap_err();
            assert!(why.contains("\"security.protocol\" needs sasl.mechanism"), "{why}");
            of(&[(PROTOCOL, protocol), ("sasl.mechanism", "PLAIN")]).unwrap();
            of(&[(PROTOCOL, protocol), ("sasl.mechanisms", "SCRAM-SHA-256")]).unwrap();
        }
        of(&[(PROTOCOL, "SSL")]).unwrap();
    }

    #[test]
    fn oidc_is_taken_and_nobody_asked_for_a_token_by_looking() {
        let endpoint = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        endpoint.set_nonblocking(true).unwrap();
        let url = format!("http://{}/token", endpoint.local_addr().unwrap());
        let mut options = Options { bootstrap_servers: "127.0.0.1:1".to_owned(), ..Options::default() };
        for (name, value) in [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "OAUTHBEARER"),
            ("sasl.oauthbearer.method", "oidc"),
            ("sasl.oauthbearer.client.id", "me"),
            ("sasl.oauthbearer.client.secret", "s3cret"),
            ("sasl.oauthbearer.scope", "kafka"),
            ("sasl.oauthbearer.extensions", "logicalCluster=lkc-1"),
            ("sasl.oauthbearer.grant.type", "client_credentials"),
            ("sasl.oauthbearer.token.endpoint.url", &url),
            ("https.ca.location", "probe"),
        ] {
            options.properties.insert(name.to_owned(), value.to_owned());
        }
        options.check().unwrap();
        tokens(&options).unwrap();
        together(&options).unwrap();
        assert_eq!(endpoint.accept().map(|_| ()).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        options.properties.remove("sasl.oauthbearer.client.secret");
        let error = super::tokens(&options).unwrap_err();
        assert!(error.to_string().contains("sasl.oauthbearer.client.secret"), "{error}");
        let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
        options.properties.insert("sasl.oauthbearer.grant.type".to_owned(), grant.to_owned());
        let error = options.check().unwrap_err().to_string();
        assert!(error.contains("grant.type") && error.contains("client_credentials is"), "{error}");
    }

    #[test]
    fn what_contradicts_is_found_by_making_a_client() {
        let mut options = Options { bootstrap_servers: "127.0.0.1:1".to_owned(), ..Options::default() };
        together(&options).unwrap();
        options.properties.insert("security.protocol".to_owned(), "SSL".to_owned());
        options.properties.insert("ssl.ca.location".to_owned(), "/nowhere/ca.pem".to_owned());
        let error = together(&options).unwrap_err();
        assert!(error.to_string().contains("ssl.ca.location"), "{error}");
    }
}
