//! The dataset under test: what its records mean, by a reading of JSON that is not Stillwell's.

use serde::{Deserialize, Serialize};

/// The dataset's schema.
pub const SCHEMA: &str = r#"{"type": "record", "name": "Row", "fields": [
    {"name": "id", "type": "string"},
    {"name": "n", "type": "long"},
    {"name": "price", "type": "double"},
    {"name": "stock", "type": ["null", "int"], "default": null},
    {"name": "pad", "type": "string"}
]}"#;

/// A value of the dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the schema above says what there is to say")]
pub struct Row {
    pub id: String,
    pub n: i64,
    pub price: f64,
    pub stock: Option<i32>,
    pub pad: String,
}

/// What a source record does.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// The key gets this value.
    Upsert(Row),
    /// The key goes.
    Delete,
    /// It cannot be processed: a dead letter.
    Misfit,
}

impl Meaning {
    /// Of a record with this key and value.
    pub fn of(key: Option<&[u8]>, value: Option<&[u8]>) -> Meaning {
        match (key, value) {
            (None, _) => Meaning::Misfit,
            (Some(_), None) => Meaning::Delete,
            (Some(_), Some(value)) => serde_json::from_slice(value).map_or(Meaning::Misfit, Meaning::Upsert),
        }
    }
}

/// A number that stands for a key with its value; their sum stands for a whole version, in whatever order.
pub fn digest(key: &[u8], row: &Row) -> u128 {
    let mut bytes = key.to_vec();
    bytes.push(0);
    serde_json::to_writer(&mut bytes, row).expect("a row is JSON");
    xxhash_rust::xxh3::xxh3_128(&bytes)
}
