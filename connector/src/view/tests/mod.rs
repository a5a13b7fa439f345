//! A small world around a view: a writer's half (deltas built and stored), a store, a cache, and the model that every
//! version has to equal.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::blob::{self, Store};
use crate::error::ErrorKind;
use crate::format::container::{LEVEL, Writer, compress};
use crate::record::{Position, SourcePartition, TopicId};
use crate::schema::wire::put_bytes;
use crate::version::{BlobRef, Checksum, DeltaRef, Life, Shard, SnapshotRef};

pub(crate) mod heap;
mod model;
mod damage;
mod caching;
mod fetching;
mod reading;
mod changes;
mod churn;
mod holding;
mod warm;
mod evolving;

/// What a version holds.
pub(super) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// One version's changes; `None` deletes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

pub(super) const LIFE: Life = Life { epoch: 3, writer: Uuid::from_u128(77) };

pub(super) struct World {
    pub dir: TempDir,
    pub cache: Cache,
    pub store: Store,
    pub identity: Identity,
    pub schema: Arc<Schema>,
    /// A value as a datum of it.
    pub encode: fn(&[u8]) -> Vec<u8>,
    pub chain: Chain,
    pub model: Model,
    pub view: View,
    pub runtime: tokio::runtime::Runtime,
}

/// A value as a datum of the raw schema.
pub(super) fn datum(value: &[u8]) -> Vec<u8> {
    let mut datum = Vec::new();
    put_bytes(&mut datum, value);
    datum
}

impl World {
    pub fn new() -> World {
        let dir = TempDir::new().unwrap();
        let cache = Cache::open(dir.path(), u64::MAX).unwrap();
        let store = Store::open("memory://").unwrap();
        World::around(dir, cache, store)
    }

    pub fn around(dir: TempDir, cache: Cache, store: Store) -> World {
        let identity =
            Identity { dataset: "products".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 };
        let schema = Arc::new(Schema::raw());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        World {
            view: View::empty(identity.clone(), schema.clone()),
            chain: Chain::default(),
            model: Model::new(),
            dir,
            cache,
            store,
            identity,
            schema,
            encode: datum,
            runtime,
        }
    }

    pub fn fetcher(&self) -> Fetcher {
        Fetcher::new(self.store.clone(), self.cache.clone())
    }

    pub fn put(&self, kind: blob::name::Kind, version: Version, plain: Vec<u8>) -> BlobRef {
        let mut stored = Vec::new();
        match kind {
            blob::name::Kind::Index => stored.clone_from(&plain),
            _ => {
                compress(&plain, LEVEL, &mut stored).unwrap();
            }
        }
        let checksum = Checksum::of(&stored);
        let blob = BlobRef {
            name: self.identity.blob_name(kind, version, LIFE.epoch, checksum),
            bytes: stored.len() as u64,
            checksum,
            plain_bytes: plain.len() as u64,
            plain_checksum: Checksum::of(&plain),
            location: None,
        };
        self.runtime.block_on(self.store.put(&blob.name, stored)).unwrap();
        blob
    }

    /// Builds and stores the next delta, as a writer does; the view stays.
    pub fn write(&mut self, changes: &Changes) -> (DeltaRef, About) {
        let previous = self.chain.version();
        let version = previous.next();
        let sources =
            vec![SourcePartition { topic: "source".into(), topic_id: TopicId([1; 16]), partition: 4 }];
        let header =
            self.identity.header(Kind::Delta, version, previous, LIFE, &self.schema, sources.clone());
        let mut writer = Writer::new(Vec::new(), &header).unwrap();
        for (key, value) in changes {
            let value = value.as_deref().map(self.encode);
            let stamp = Stamp { timestamp: version.0 as i64, source: 0, offset: version.0 as i64 * 10 };
            writer.push(&Entry { key, stamp, value: value.as_deref() }).unwrap();
            match changes[key].clone() {
                Some(value) => self.model.insert(key.clone(), value),
                None => self.model.remove(key),
            };
        }
        let (summary, plain) = writer.finish().unwrap();
        let delta = DeltaRef {
            version,
            epoch: LIFE.epoch,
            blob: self.put(blob::name::Kind::Delta, version, plain),
            upserts: summary.counts.upserts,
            deletes: summary.counts.deletes,
        };
        self.chain.deltas.push(delta.clone());
        let positions = sources.into_iter().map(|source| Position { source, offset: 1 }).collect();
        let about = About {
            version,
            life: LIFE,
            records: self.model.len() as u64,
            positions,
            ..About::nothing(self.schema.clone())
        };
        (delta, about)
    }

    /// Writes the next version and goes on to it.
    pub fn advance(&mut self, changes: &Changes) {
        let (delta, about) = self.write(changes);
        let next = self.runtime.block_on(self.fetcher().apply(&self.view, &delta, None, about));
        self.view = next.unwrap();
    }

    /// Makes a snapshot of `view`, stores it, and lists it in the chain.
    pub fn snapshot(&mut self, view: &View) -> SnapshotRef {
        let snapshot = view.merge_snapshot(LIFE, &self.cache).unwrap();
        let version = view.version();
        let records = snapshot.summary().counts.upserts;
        let plain = std::fs::read(snapshot.snapshot_path()).unwrap();
        let (packed, stored) = snapshot.pack(LEVEL, &self.cache, &self.identity).unwrap();
        assert_eq!(stored.checksum, Checksum::of(&std::fs::read(packed.path()).unwrap()));
        let index = std::fs::read(snapshot.index_path()).unwrap();
        assert_eq!(snapshot.summary().plain_checksum, Checksum::of(&plain));
        let snapshot = SnapshotRef {
            version,
            epoch: LIFE.epoch,
            blob: self.put(blob::name::Kind::Snapshot, version, plain),
            index: self.put(blob::name::Kind::Index, version, index),
            records,
        };
        self.chain.rebase(snapshot.clone());
        snapshot
    }

    /// Opens the chain's version from cache and store.
    pub fn open(&self) -> Result<View, Error> {
        let about = About {
            version: self.chain.version(),
            life: LIFE,
            records: self.model.len() as u64,
            ..About::nothing(self.schema.clone())
        };
        self.runtime.block_on(self.fetcher().open(&self.identity, &self.chain, None, about))
    }

    /// The files of the cache with this ending.
    pub fn files(&self, ending: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.to_string_lossy().ends_with(ending) {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }
}

/// All of a view, by its scan.
pub(super) fn contents(view: &View) -> crate::Result<Model> {
    view.iter()
        .map(|value| value.map(|value| (value.key().to_vec(), value.raw().unwrap().to_vec())))
        .collect()
}

/// Sets keys `from..to` to `value` and their number.
pub(super) fn numbered(range: std::ops::Range<u32>, value: &str) -> Changes {
    range.map(|number| (key(number), Some(format!("{value}-{number}").into_bytes()))).collect()
}

pub(super) fn key(number: u32) -> Vec<u8> {
    format!("P-{number:06}").into_bytes()
}
