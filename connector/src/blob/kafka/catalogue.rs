//! Which upload of a name is its blob: a fold over the catalogue partition, in the order of its offsets.
//!
//! ```text
//!  begun a   a   begun b   b      (neither replaces)      the blob is a: of several at a time one is first, for all alike
//!  … c (replaces)                                         the blob is c
//!  … a = null, b = null                                   cleaned up by whoever brought c
//! ```
//!
//! Compaction keeps of each upload its last record, in the same order, so that whoever reads the topic later folds to the
//! same.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::blob::Tag;
use crate::format::upload::{Upload, read_key};

/// An upload as the catalogue has it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub id: Uuid,
    /// Offset of its record.
    pub offset: i64,
    pub upload: Arc<Upload>,
}

impl Entry {
    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.upload.offsets.is_some()
    }

    /// What tells it from any other.
    pub fn tag(&self) -> Tag {
        Tag(self.id.simple().to_string().into())
    }
}

/// What the catalogue says, up to some offset.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    /// By name, in the order of their records.
    names: BTreeMap<String, Vec<Entry>>,
    /// Whether a record was ours.
    ours: bool,
    /// Offset of the first one that was not.
    foreign: Option<i64>,
}

impl Catalogue {
    /// Takes the next record; what is none of ours is passed over.
    pub fn apply(&mut self, offset: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        let Some((name, id)) = key.and_then(read_key) else {
            self.foreign.get_or_insert(offset);
            return;
        };
        self.ours = true;
        if let Some(entries) = self.names.get_mut(name) {
            entries.retain(|entry| entry.id != id);
            if entries.is_empty() {
                self.names.remove(name);
            }
        }
        match value.map(Upload::decode) {
            Some(Ok(upload)) => {
                let entry = Entry { id, offset, upload: Arc::new(upload) };
                self.names.entry(name.to_owned()).or_default().push(entry);
            }
            Some(Err(error)) => {
                tracing::warn!(offset, name, %error, "a record of the blobs' catalogue is passed over");
            }
            None => {}
        }
    }

    /// Offset of a record that is no blob's in a topic where none is one: it is in use for something else. A stray one among
    /// ours does no harm.
    pub fn in_other_use(&self) -> Option<i64> {
        self.foreign.filter(|_| !self.ours)
    }

    /// A name's blob.
    pub fn blob(&self, name: &str) -> Option<&Entry> {
        let whole = self.names.get(name)?.iter().filter(|entry| entry.is_whole());
        whole.fold(None, |blob, entry| match blob {
            Some(blob) if !entry.upload.replaces => Some(blob),
            _ => Some(entry),
        })
    }

    /// All uploads of a name, whole or not, its blob among them.
    pub fn of(&self, name: &str) -> &[Entry] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// An upload that began before `before` (milliseconds since the Unix epoch) and was never completed, with its name.
    pub fn abandoned(&self, before: i64) -> Option<(&str, &Entry)> {
        let all =
            self.names.iter().flat_map(|(name, entries)| entries.iter().map(move |entry| (&**name, entry)));
        all.into_iter().find(|(_, entry)| !entry.is_whole() && entry.upload.at < before)
    }

    /// Names and lengths of blobs whose names begin with `prefix` and a slash, or of all if it is empty; in name order.
    pub fn list(&self, prefix: &str) -> Vec<(String, u64)> {
        let below = |name: &str| {
            prefix.is_empty() || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        let names = self.names.range(prefix.to_owned()..).map(|(name, _)| name);
        let names = names.take_while(|name| name.starts_with(prefix)).filter(|name| below(name));
        names.filter_map(|name| Some((name.clone(), self.blob(name)?.upload.bytes))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::upload::upload_key;

    fn id(n: u8) -> Uuid {
        Uuid::from_u128(n.into())
    }

    fn upload(replaces: bool, whole: bool, at: i64) -> Vec<u8> {
        let offsets = whole.then(|| vec![5]);
        Upload { bytes: 10, chunk: 100, partition: 1, replaces, at, offsets }.encode()
    }

    /// Applies (upload, value) in order, and says which upload is the blob of `a`.
    fn fold(records: &[(u8, Option<Vec<u8>>)]) -> (Catalogue, Option<Uuid>) {
        let mut catalogue = Catalogue::default();
        for (offset, (upload, value)) in records.iter().enumerate() {
            let key = upload_key("a", id(*upload));
            catalogue.apply(offset as i64, Some(key.as_bytes()), value.as_deref());
        }
        let blob = catalogue.blob("a").map(|entry| entry.id);
        (catalogue, blob)
    }

    #[test]
    fn of_several_that_do_not_replace_the_first_that_is_whole_stays() {
        let (begun, whole) = (Some(upload(false, false, 0)), Some(upload(false, true, 0)));
        let records = [(1, begun.clone()), (2, begun), (2, whole.clone()), (1, whole)];
        assert_eq!(fold(&records[..2]).1, None, "nothing is seen of what is under way");
        assert_eq!(fold(&records[..3]).1, Some(id(2)));
        assert_eq!(fold(&records).1, Some(id(2)));
        let gone = [&records[..], &[(2, None)]].concat();
        assert_eq!(fold(&gone).1, Some(id(1)));
        assert!(fold(&[&gone[..], &[(1, None)]].concat()).0.list("").is_empty());
    }

    #[test]
    fn of_several_that_replace_the_last_is_it() {
        let (first, over) = (Some(upload(false, true, 0)), Some(upload(true, true, 0)));
        let records = [(1, first.clone()), (2, over.clone()), (3, first), (4, over)];
        assert_eq!(fold(&records[..2]).1, Some(id(2)));
        assert_eq!(fold(&records[..3]).1, Some(id(2)));
        assert_eq!(fold(&records).1, Some(id(4)));
        // Compaction changes nothing: of each upload the last record, in the same order.
        assert_eq!(fold(&records[2..]).1, Some(id(4)));
        assert_eq!(fold(&records).0.of("a").len(), 4, "all of them are there to be cleaned up");
    }

    #[test]
    fn what_is_none_of_ours_is_passed_over() {
        let mut catalogue = Catalogue::default();
        let value = upload(false, true, 0);
        for key in [None, Some(&b"a"[..]), Some(&b"a#1"[..]), Some(&[0xff, b'#'][..])] {
            catalogue.apply(1, key, Some(&value));
        }
        assert_eq!((catalogue.in_other_use(), Catalogue::default().in_other_use()), (Some(1), None));
        catalogue.apply(2, Some(upload_key("a", id(1)).as_bytes()), Some(b"nonsense"));
        assert!(catalogue.list("").is_empty());
        assert_eq!(catalogue.in_other_use(), None, "one was ours");
    }

    #[test]
    fn listings_keep_to_whole_parts_and_what_was_left_is_found_by_its_age() {
        let mut catalogue = Catalogue::default();
        for (n, name) in ["p/a/2", "p/a/1", "p/ab/1", "px/1", "p/a"].iter().enumerate() {
            let key = upload_key(name, id(n as u8));
            catalogue.apply(n as i64, Some(key.as_bytes()), Some(&upload(true, true, 0)));
        }
        let left = upload_key("p/a/0", id(9));
        catalogue.apply(9, Some(left.as_bytes()), Some(&upload(true, false, 500)));
        let names = |prefix| catalogue.list(prefix).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names("p/a"), ["p/a/1", "p/a/2"]);
        assert_eq!(names(""), ["p/a", "p/a/1", "p/a/2", "p/ab/1", "px/1"]);
        assert_eq!(names("q"), [] as [&str; 0]);
        assert!(catalogue.abandoned(500).is_none());
        assert_eq!(catalogue.abandoned(501).map(|(name, entry)| (name, entry.id)), Some(("p/a/0", id(9))));
    }
}
