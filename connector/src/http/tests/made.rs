//! Views to be served.

use std::sync::Arc;

use uuid::Uuid;

use super::SCHEMA;
use crate::format::container::{Kind, Writer};
use crate::record::{Entry, Position, SourcePartition, Stamp, TopicId};
use crate::schema::Schema;
use crate::schema::wire::put_bytes;
use crate::version::{Life, Shard, Version};
use crate::view::{About, DeltaFile, Identity, View};

/// A view of version `version`, whose values are products named like their keys.
pub(in crate::http) fn view(version: u64, keys: &[&[u8]]) -> View {
    view_of(TopicId([7; 16]), version, keys)
}

/// The same, of another announcement topic.
pub(super) fn view_of(topic_id: TopicId, version: u64, keys: &[&[u8]]) -> View {
    let named = |key: &&[u8]| (key.to_vec(), String::from_utf8_lossy(key).into_owned());
    view_with(topic_id, version, &keys.iter().map(named).collect::<Vec<_>>())
}

/// A view of one product, with a name of so many bytes.
pub(super) fn view_named(version: u64, key: &[u8], bytes: usize) -> View {
    view_with(TopicId([7; 16]), version, &[(key.to_vec(), "x".repeat(bytes))])
}

/// A view of products by their keys, in order, and names.
pub(super) fn view_with(topic_id: TopicId, version: u64, products: &[(Vec<u8>, String)]) -> View {
    let schema = Arc::new(Schema::dataset(SCHEMA).unwrap());
    let identity = Identity { dataset: "products".into(), topic_id, shard: Shard(0), shards: 1 };
    let life = Life { epoch: 1, writer: Uuid::nil() };
    let source = SourcePartition { topic: "products".into(), topic_id, partition: 0 };
    let mut view = View::empty(identity.clone(), schema.clone());
    for at in 1..=version {
        let (at, before) = (Version(at), Version(at - 1));
        let header = identity.header(Kind::Delta, at, before, life, &schema, vec![source.clone()]);
        let mut writer = Writer::new(Vec::new(), &header).unwrap();
        for (key, name) in products.iter().filter(|_| at.0 == version) {
            let mut datum = Vec::new();
            put_bytes(&mut datum, name.as_bytes());
            let stamp = Stamp { timestamp: 1, source: 0, offset: 2 };
            writer.push(&Entry { key, stamp, value: Some(&datum) }).unwrap();
        }
        let (_, plain) = writer.finish().unwrap();
        let delta = DeltaFile::from_plain(plain, &identity, &schema).unwrap();
        let about = About {
            version: at,
            life,
            announced_at_ms: 1_700_000_000_000,
            caught_up: true,
            records: products.len() as u64,
            positions: vec![Position { source: source.clone(), offset: 3 }],
            ..About::nothing(schema.clone())
        };
        view = view.apply(Arc::new(delta), about).unwrap();
    }
    view
}

/// The entity tag of a version of [`view`].
pub(super) fn tag(version: u64) -> String {
    format!("\"{version}.{:08x}\"", view(version, &[]).mark())
}
