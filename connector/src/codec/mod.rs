//! Codecs.
/// How values are encoded.
#[derive(Clone, Debug)]
pub enum Format {
    /// Raw bytes.
    Raw,
}
/// Where keys come from.
#[derive(Clone, Debug)]
pub enum KeyRule {
    /// The Kafka key.
    Kafka,
}
