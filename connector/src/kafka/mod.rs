//! Kafka.
use std::collections::BTreeMap;
/// How to reach Kafka.
#[derive(Clone, Default)]
pub struct Options {
    /// `bootstrap.servers`.
    pub bootstrap_servers: String,
    /// Any other librdkafka property.
    pub properties: BTreeMap<String, String>,
    /// `client.id`.
    pub client_id: String,
    /// librdkafka's embedded broker.
    pub embedded: bool,
}
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("bootstrap_servers", &self.bootstrap_servers).finish_non_exhaustive()
    }
}
