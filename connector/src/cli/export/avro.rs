//! An Avro object container file with the entries of a snapshot.

use super::Rows;
use super::file::Out;
use crate::format::container::{self, Kind, Portable};
use crate::record::Entry;
use crate::version::Version;
use crate::view::{Value, View};
use crate::{Error, ErrorKind, Result};

pub(super) struct Entries(Portable<Out>);

impl Entries {
    pub(super) fn new(out: Out, view: &View) -> Result<Entries> {
        let about = view.about();
        let sources = about.positions.iter().map(|position| position.source.clone()).collect();
        let previous = Version(about.version.0.saturating_sub(1));
        let (version, life) = (about.version, about.life);
        let header = view.identity().header(Kind::Snapshot, version, previous, life, &about.schema, sources);
        Ok(Entries(Portable::new(out, &header).map_err(unwritten)?))
    }
}

impl Rows for Entries {
    fn push(&mut self, value: &Value<'_>) -> Result<()> {
        let entry = Entry { key: value.key(), stamp: value.stamp(), value: Some(value.bytes()) };
        self.0.push(&entry).map_err(unwritten)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.0.finish().map_err(unwritten)
    }
}

fn unwritten(error: container::Error) -> Error {
    Error::because(ErrorKind::Unavailable, "writing the container", error)
}
