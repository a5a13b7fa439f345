//! What all clients share: base configuration, and librdkafka's log lines, errors and statistics.

use std::borrow::Cow;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::error::advised;
use super::reach::Reach;
use super::stats::Gauges;
use super::tokens::{self, Kept, Native};
use super::{Error, Options};

/// Makes a client: all are made here. Does not wait for Kafka, nor for a token.
///
/// # Errors
/// [`Error::Options`] for a property that librdkafka refuses.
pub(super) fn make<C: ClientContext, T: FromClientConfigAndContext<C> + Native>(
    options: &Options,
    ours: &[(&str, &str)],
    fixed: &[(&str, &str)],
    context: C,
    doing: impl Fn() -> String,
) -> Result<Kept<T>, Error> {
    let keeper = tokens::keeper(options).map_err(|detail| Error::Options { doing: doing(), detail })?;
    let client = configuration(options, ours, fixed).create_with_context(context);
    let client = client.map_err(|error| Error::from_kafka(doing(), &error))?;
    Ok(Kept::new(client, keeper, options))
}

/// A configuration in three layers, the later wins: `ours` (tuning, which users may change), the user's properties,
/// and `fixed` (what the design depends on).
pub(super) fn configuration(
    options: &Options,
    ours: &[(&str, &str)],
    fixed: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    // librdkafka's own default depends on the `log` crate, which is not used here; the subscriber filters.
    config.set_log_level(RDKafkaLogLevel::Info);
    config.set("socket.nagle.disable", "true").set("socket.keepalive.enable", "true");
    // A broker that comes back is found within a second and not within ten; reconnecting costs little.
    config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
    // That who listens there is no broker is known before a command gives up, after ten seconds.
    config.set("api.version.request.timeout.ms", "5000");
    if options.statistics.is_some() {
        config.set("statistics.interval.ms", "5000");
    }
    for (key, value) in ours {
        config.set(*key, *value);
    }
    for (key, value) in options.properties.iter().filter(|(key, _)| !tokens::is_ours(key)) {
        config.set(key, value);
    }
    config.set("bootstrap.servers", &options.bootstrap_servers);
    // A topic that a broker makes by itself since it was asked for has the broker's settings and not ours.
    config.set("allow.auto.create.topics", "false");
    if !options.client_id.is_empty() {
        config.set("client.id", &options.client_id);
    }
    if options.statistics.is_none() {
        // Nobody would read them.
        config.set("statistics.interval.ms", "0");
    }
    for (key, value) in fixed {
        config.set(*key, *value);
    }
    config
}

/// Lines whose facility is one of these say again what comes as an error as well, or say of every client that it has no
/// use for what another kind of client was given.
const SAID_TWICE: [&str; 3] = ["FAIL", "ERROR", "CONFWARN"];

/// Receives what a client says besides records.
#[derive(Debug)]
pub(super) struct Context {
    /// What this client is for, in log lines.
    role: &'static str,
    servers: String,
    reach: Reach,
    gauges: Option<Gauges>,
}

impl Context {
    pub(super) fn new(role: &'static str, options: &Options) -> Context {
        Context {
            role,
            servers: options.bootstrap_servers.clone(),
            reach: options.reach.clone(),
            gauges: options.statistics.as_ref().map(|statistics| statistics.of(role)),
        }
    }

    /// A log line of librdkafka's. What it cannot mend itself comes back from the call concerned.
    pub(super) fn line(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let role = self.role;
        if facility == "FAIL" {
            // That a connection ended which had worked is said here alone, and then it may be the last one.
            self.reach.failed(&advised(&plain(without_thread(line))));
        }
        let warns = matches!(
            level,
            RDKafkaLogLevel::Emerg
                | RDKafkaLogLevel::Alert
                | RDKafkaLogLevel::Critical
                | RDKafkaLogLevel::Error
                | RDKafkaLogLevel::Warning
        );
        let said = warns && !SAID_TWICE.contains(&facility);
        match said.then(|| self.reach.again(&format!("{role} {facility}"))).flatten() {
            Some(times) => tracing::warn!(role, facility, times, "librdkafka: {line}"),
            None => tracing::debug!(role, facility, "librdkafka: {line}"),
        }
    }

    /// Something that concerns the client as a whole; what concerns a call comes back from that call.
    pub(super) fn trouble(&self, code: Code, reason: &str) {
        let role = self.role;
        tracing::debug!(role, "kafka: {reason}");
        let kind = match code {
            Code::AllBrokersDown => return self.lost(),
            Code::BrokerTransportFailure | Code::Resolve => {
                self.reach.failed(&plain(reason));
                // Of a name that brokers were to be found by, or of no broker in particular, it is no news as long as
                // others answer.
                match node(reason) {
                    Some(node) if !self.reach.is_away() => node,
                    _ => return,
                }
            }
            Code::Authentication | Code::SSL => {
                self.reach.failed(&advised(&plain(reason)));
                format!("{code:?}")
            }
            other => format!("{role} {other:?}"),
        };
        if let Some(times) = self.reach.again(&kind) {
            tracing::warn!(role, times, "kafka: {reason}");
        }
    }

    /// This client has no broker left.
    pub(super) fn lost(&self) {
        self.reach.lost(&self.servers);
    }

    /// Kafka has answered this client.
    pub(super) fn answered(&self) {
        self.reach.answered(&self.servers);
    }

    /// What of an outage its error should say besides.
    pub(super) fn explain(&self, error: Error) -> Error {
        match (error, self.reach.why()) {
            (Error::Unavailable { doing, .. }, Some(why)) => {
                Error::Unavailable { doing, detail: format!("no broker can be reached: {why}") }
            }
            (error, _) => error,
        }
    }

    /// Something that concerns the client as a whole, as an error of what it was `doing`. That Kafka does not take a token that has ended is no
    /// refusal: who could give another does not.
    pub(super) fn sorted(&self, doing: &str, code: Code, words: &str) -> Error {
        let tokenless = match code {
            Code::Authentication => self.reach.no_token_lately(),
            Code::AllBrokersDown => self.reach.no_token(),
            _ => None,
        };
        match tokenless {
            Some(detail) => Error::Unavailable { doing: doing.to_owned(), detail },
            None => Error::from_code(doing, code, words),
        }
    }

    /// The same of an error that was told from others already.
    pub(super) fn excused(&self, error: Error) -> Error {
        let why = if error.is_of_login() { self.reach.no_token_lately() } else { None };
        match (error, why) {
            (Error::Denied { doing, .. }, Some(detail)) => Error::Unavailable { doing, detail },
            (error, _) => error,
        }
    }

    /// librdkafka's statistics, as JSON.
    pub(super) fn statistics(&self, json: &str) {
        if let Some(gauges) = &self.gauges {
            gauges.set(json);
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.line(level, facility, line);
    }

    fn stats_raw(&self, json: &[u8]) {
        self.statistics(std::str::from_utf8(json).unwrap_or(""));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble(error.rdkafka_error_code().unwrap_or(Code::Fail), reason);
    }
}

impl ConsumerContext for Context {}

/// librdkafka's words about who is no broker, or none in the way that is asked for, without its advice: what it names
/// (versions of 2015, its own limits) is not what is wrong.
fn plain(words: &str) -> Cow<'_, str> {
    let said = [
        ("might be caused by incorrect security.protocol", "or wants TLS or a login (security.protocol)"),
        ("might be caused by broker version", "or not by this security.protocol"),
        ("ApiVersionRequest failed", "since it does not answer as one"),
        ("Invalid response size", "since its answer is none of Kafka's"),
    ];
    let found = said.into_iter().find_map(|(begins, besides)| Some((words.split_once(begins)?.0, besides)));
    match found {
        Some((before, besides)) => Cow::Owned(format!(
            "{before}who listens there is no Kafka broker, {besides}: look at kafka.bootstrap_servers"
        )),
        None => Cow::Borrowed(words),
    }
}

/// How librdkafka begins to say that it has no token; what follows is why (`tokens`).
pub(super) const TOKENLESS: &str = "Failed to acquire SASL OAUTHBEARER token: ";

/// A log line without the name of its thread, as in `[thrd:kafka-1:9092/1]: kafka-1:9092/1: Disconnected`.
fn without_thread(line: &str) -> &str {
    line.strip_prefix("[thrd:").and_then(|line| line.split_once("]: ")).map_or(line, |(_, words)| words)
}

/// The broker that librdkafka's words are about, as in `kafka-1:9092/1: Connect to … failed`.
fn node(reason: &str) -> Option<String> {
    let (name, _) = reason.split_once(": ")?;
    let (_, id) = name.rsplit_once('/')?;
    id.parse::<i32>().ok().map(|_| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ends_is_the_reason_until_another_is() {
        let options = Options::default();
        let context = Context::new("tail", &options);
        let ended = "kafka-1:9092/1: Disconnected (after 5000ms in state UP)";
        context.line(RDKafkaLogLevel::Info, "FAIL", &format!("[thrd:kafka-1:9092/1]: {ended}"));
        context.lost();
        assert_eq!(options.reach.why().as_deref(), Some(ended));
        context.line(RDKafkaLogLevel::Info, "FAIL", "no thread");
        assert_eq!(options.reach.why().as_deref(), Some("no thread"));
    }

    #[test]
    fn who_is_no_broker_is_said_to_be_none() {
        let told = |line: &str| {
            let options = Options::default();
            let context = Context::new("tail", &options);
            context.line(RDKafkaLogLevel::Error, "FAIL", &format!("[thrd:x:80/bootstrap]: {line}"));
            context.lost();
            options.reach.why().unwrap()
        };
        for (line, said) in [
            (
                "x:80/bootstrap: Receive failed: Invalid response size 1213486160 (0..100000000): increase \
                 receive.message.max.bytes",
                "x:80/bootstrap: Receive failed: who listens there is no Kafka broker, since its answer",
            ),
            (
                "x:80/bootstrap: ApiVersionRequest failed: Local: Timed out: probably due to broker version < 0.10 (see \
                 api.version.request configuration) (after 10023ms in state APIVERSION_QUERY)",
                "x:80/bootstrap: who listens there is no Kafka broker, since it does not answer as one",
            ),
            (
                "x:80/bootstrap: Disconnected: requesting ApiVersion: might be caused by incorrect security.protocol \
                 configuration (connecting to a SSL listener?) or broker version is < 0.10 (see api.version.request)",
                "requesting ApiVersion: who listens there is no Kafka broker, or wants TLS or a login",
            ),
        ] {
            let why = told(line);
            assert!(why.contains(said) && why.ends_with("look at kafka.bootstrap_servers"), "{why}");
            assert!(!why.contains("receive.message") && !why.contains("0.10"), "{why}");
        }
    }

    #[test]
    fn a_token_that_has_ended_is_no_refusal_while_there_is_no_other() {
        let options = Options::default();
        let context = Context::new("tail", &options);
        let refused = || {
            context.sorted("reaching Kafka", Code::Authentication, "SASL OAUTHBEARER authentication failed")
        };
        assert!(!refused().is_transient(), "{}", refused());
        options.reach.tokenless(Some("the endpoint is away".to_owned()));
        assert!(refused().is_transient() && refused().to_string().contains("the endpoint"), "{}", refused());
        let down = context.sorted("reaching Kafka", Code::AllBrokersDown, "1/1 brokers are down").to_string();
        assert!(down.contains("the endpoint is away"), "{down}");
        let other = context.sorted("reaching Kafka", Code::SSL, "no certificate");
        assert!(!other.is_transient(), "{other}");
        // There is another, but what was begun by the one before may be refused still.
        options.reach.tokenless(None);
        assert!(refused().is_transient(), "{}", refused());
        let down = context.sorted("reaching Kafka", Code::AllBrokersDown, "1/1 brokers are down").to_string();
        assert!(!down.contains("the endpoint"), "{down}");
    }

    #[test]
    fn a_broker_is_told_from_a_name_to_find_brokers_by() {
        let failed = "Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)";
        assert_eq!(node(&format!("kafka:9092/3: {failed}")).as_deref(), Some("kafka:9092/3"));
        assert_eq!(
            node(&format!("sasl_ssl://kafka:9092/3: {failed}")).as_deref(),
            Some("sasl_ssl://kafka:9092/3")
        );
        assert_eq!(node(&format!("kafka:9092/bootstrap: {failed}")), None);
        assert_eq!(node(&format!("GroupCoordinator: {failed}")), None);
        assert_eq!(node(failed), None);
    }
}
