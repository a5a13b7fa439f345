//! Announced blobs in a `file://` store, read by the crate apache-avro.

use std::path::{Path, PathBuf};

use apache_avro::Reader;
use apache_avro::types::Value;

use super::announced::{Blob, Fields};
use super::row::Row;

/// An entry of a delta or a snapshot.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the schema's words")]
pub struct Entry {
    pub key: Vec<u8>,
    pub timestamp: i64,
    pub source: i64,
    pub offset: i64,
    pub value: Option<Row>,
}

/// The folder of a `file://` store.
#[derive(Clone, Debug)]
pub struct Blobs(PathBuf);

/// Whether a file of the store is a blob, and not one that is being written (`object_store` has a `#` in those).
pub fn is_whole(name: &str) -> bool {
    !name.contains('#')
}

impl Blobs {
    /// The store in `dir`.
    pub fn new(dir: &Path) -> Blobs {
        Blobs(dir.to_owned())
    }

    /// Where a blob lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The bytes of an announced blob.
    ///
    /// # Errors
    /// That it is missing, or not what was announced.
    pub fn bytes(&self, blob: &Blob) -> Result<Vec<u8>, String> {
        let bytes =
            std::fs::read(self.0.join(&blob.name)).map_err(|error| format!("{}: {error}", blob.name))?;
        let checksum = xxhash_rust::xxh3::xxh3_64(&bytes);
        if (bytes.len() as i64, checksum) != (blob.bytes, blob.checksum) {
            return Err(format!(
                "{} has {} bytes with checksum {checksum:016x}, announced were {} with {:016x}",
                blob.name,
                bytes.len(),
                blob.bytes,
                blob.checksum
            ));
        }
        Ok(bytes)
    }

    /// Whether an announced blob is there, with its length.
    ///
    /// # Errors
    /// That it is not.
    pub fn is_there(&self, blob: &Blob) -> Result<(), String> {
        match std::fs::metadata(self.0.join(&blob.name)) {
            Ok(about) if about.len() as i64 == blob.bytes => Ok(()),
            Ok(about) => {
                Err(format!("{} has {} bytes, announced were {}", blob.name, about.len(), blob.bytes))
            }
            Err(error) => Err(format!("{}: {error}", blob.name)),
        }
    }

    /// The bytes of a blob that something else names, without saying what they are.
    ///
    /// # Errors
    /// That it is missing.
    pub fn unverified(&self, name: &str) -> Result<Vec<u8>, String> {
        std::fs::read(self.0.join(name)).map_err(|error| format!("{name}: {error}"))
    }

    /// Every file of the store, as a blob's name, with its length.
    pub fn all(&self) -> Vec<(String, u64)> {
        let mut folders = vec![self.0.clone()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = file.path();
                match (file.metadata(), path.strip_prefix(&self.0)) {
                    (Ok(about), _) if about.is_dir() => folders.push(path),
                    (Ok(about), Ok(name)) => found.push((name.to_string_lossy().into_owned(), about.len())),
                    _ => {}
                }
            }
        }
        found
    }
}

/// The entries of a delta or a snapshot.
///
/// # Errors
/// What apache-avro says, or that keys are not in order.
pub fn entries(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let reader = Reader::new(bytes).map_err(|error| error.to_string())?;
    let mut entries: Vec<Entry> = Vec::new();
    for value in reader {
        let entry = entry(&Fields(value.map_err(|error| error.to_string())?))?;
        if entries.last().is_some_and(|last| last.key >= entry.key) {
            return Err(format!(
                "key {:?} is not behind the one before",
                String::from_utf8_lossy(&entry.key)
            ));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(value: &Fields) -> Result<Entry, String> {
    let row = value.optional("value")?.map(|row| self::row(&row)).transpose()?;
    Ok(Entry {
        key: value.of("key")?.bytes()?,
        timestamp: value.long("timestamp")?,
        source: value.long("source")?,
        offset: value.long("offset")?,
        value: row,
    })
}

fn row(value: &Fields) -> Result<Row, String> {
    let price = match value.of("price")?.0 {
        Value::Double(price) => price,
        other => return Err(format!("price is no double: {other:?}")),
    };
    let stock = match value.optional("stock")? {
        Some(Fields(Value::Int(stock))) => Some(stock),
        Some(other) => return Err(format!("stock is no int: {other:?}")),
        None => None,
    };
    Ok(Row { id: value.text("id")?, n: value.long("n")?, price, stock, pad: value.text("pad")? })
}
