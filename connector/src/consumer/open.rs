//! Opening: an announcement becomes a view, by the deltas above the one that is held, from its snapshot on, or by way of
//! older blobs where those are gone.
//!
//! Owns: the way to a view. Does not own: which announcement (`pin`), when, and what becomes of the view (`follow`).

use std::path::PathBuf;
use std::sync::Arc;

use super::Options;
use super::recent::Recent;
use super::tail::UNREACHABLE;
use crate::error::chain;
use crate::format::announcement::Announcement;
use crate::record::TopicId;
use crate::schema::{self, Schema};
use crate::version::{Chain, Life, Shard, Version};
use crate::view::{self, About, Cache, Fetcher, FileName, Identity, Past, Reads, Restored, View};

/// Stage under which it is counted that the store does not give a version's blobs. As with [`UNREACHABLE`], health does not
/// hold the number against the process: a restart would only take away the version that it still serves.
pub const STORE: &str = "store";
/// Stage under which it is counted that the cache's disk is full; the same goes for it.
pub const DISK: &str = "disk";

/// Why a version could not be made readable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Blobs cannot be fetched or opened.
    #[error("opening version {version}")]
    View {
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: view::Error,
    },
    /// The announced schema does not parse.
    #[error("reading the schema of version {version}")]
    Schema {
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: schema::Error,
    },
}

impl Error {
    /// Whether no delta leads from the version that is held, although one follows the other: it has to be opened anew.
    pub fn is_gap(&self) -> bool {
        matches!(self, Error::View { source: view::Error::Gap(_), .. })
    }

    /// Whether a blob is not in the store as it was announced.
    pub fn is_gone(&self) -> bool {
        matches!(self, Error::View { source, .. } if source.is_gone())
    }

    /// Whether a delta does not lead on from the version that is held, and a chain from a snapshot on may: it is gone from the
    /// store, or no delta leads there. What this release cannot read it cannot read by another way either.
    pub fn wants_chain(&self) -> bool {
        let unreadable = matches!(self, Error::View { source: view::Error::UnreadableBlob { .. }, .. });
        self.is_gap() || (self.is_gone() && !unreadable)
    }

    /// Whether the cache's disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::View { source, .. } if source.is_full())
    }

    /// The stage under which it is counted.
    pub fn stage(&self) -> &'static str {
        match self {
            Error::View { source: view::Error::Announcements { .. }, .. } => UNREACHABLE,
            Error::View { source: view::Error::Store(_) | view::Error::Unrestorable { .. }, .. } => STORE,
            _ if self.is_gone() => STORE,
            _ if self.is_full() => DISK,
            _ => "follow",
        }
    }
}

/// Opens the versions of one shard. A clone goes its own way.
#[derive(Clone)]
pub struct Opener {
    options: Options,
    shard: Shard,
    fetcher: Fetcher,
    reads: Arc<Reads>,
    schema: Option<Arc<Schema>>,
    /// Older announcements, once they were needed.
    past: Past,
    /// Asked whether versions that are stepped over are to be seen all the same.
    recent: Recent,
    /// Those, of the last [`Opener::apply`].
    pub passed: Vec<View>,
    /// The snapshot that was gone when the newest view was made, and what was.
    pub restored: Option<(Version, String)>,
}

impl Opener {
    /// An opener by way of `cache`.
    pub fn new(options: Options, shard: Shard, cache: Cache, recent: Recent) -> Opener {
        let metrics = &options.metrics;
        let reads = Reads::on(metrics.zero_copy_reads_total.clone(), metrics.fallback_reads_total.clone());
        Opener {
            fetcher: Fetcher::new(options.store.clone(), cache)
                .holding(options.hold.clone())
                .keeping()
                .leaving_merges()
                .at_hand_here()
                .charging(recent.memory())
                .telling(options.clock.clone()),
            reads: Arc::new(reads),
            schema: None,
            past: Past::new(options.kafka.clone(), &options.announcements, options.clock.clone()),
            recent,
            passed: Vec::new(),
            restored: None,
            options,
            shard,
        }
    }

    /// Another one, which does not take these files of the cache as they are, but fetches them and puts the new ones in
    /// their places.
    pub fn anew(&self, damaged: &[PathBuf]) -> Opener {
        let fetcher = self.fetcher.clone().anew(damaged).elsewhere();
        Opener { fetcher, passed: Vec::new(), restored: None, ..self.clone() }
    }

    /// Whether the deltas above the held version lead to the announced one. Valid announcements form one line, so a
    /// version that was valid when it was opened lies on it, as long as the topic is the same one.
    pub fn follows(&self, held: &View, topic_id: TopicId, announcement: &Announcement) -> bool {
        let base = announcement.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        let at = held.version();
        held.identity().topic_id == topic_id
            && at >= base
            && at <= announcement.version
            && (at != announcement.version || held.about().life == announcement.life)
            && (at.next() != announcement.version
                || announcement
                    .previous
                    .is_none_or(|previous| previous.0 == at && previous.1 == held.about().life.epoch))
    }

    /// The next view, by the deltas above the one that is held.
    ///
    /// # Errors
    /// [`Error`]; [`Error::is_gone`] where older blobs may help; [`Error::is_gap`] where a part is held and the schema changes.
    pub async fn apply(&mut self, held: &View, announcement: &Announcement) -> Result<View, Error> {
        let version = announcement.version;
        let failed = |source| Error::View { version, source };
        self.passed.clear();
        let about = About::announced(announcement, self.schema(announcement)?);
        let mut view = held.clone();
        for delta in announcement.chain.iter().filter(|delta| delta.version > held.version()) {
            // Versions in between are stepped over: their facts are not known, and no reader sees them.
            let life = Life { epoch: delta.epoch, ..about.life };
            let facts = About { version: delta.version, life, ..about.clone() };
            let inline = announcement.inline.clone().filter(|_| delta.version == version);
            view = self.fetcher.apply(&view, delta, inline, facts).await.map_err(failed)?;
            if self.recent.wants(delta.version, version) {
                self.passed.push(view.clone());
            }
            // None of them may have had to wait: who is pinned elsewhere meanwhile leaves this.
            tokio::task::yield_now().await;
        }
        let oldest = announcement.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        view.restate(about).map(|view| view.holding_from(oldest)).map_err(failed)
    }

    /// The view of an announcement, from its snapshot on.
    ///
    /// # Errors
    /// As [`Opener::apply`].
    pub async fn open(&mut self, topic_id: TopicId, announcement: &Announcement) -> Result<View, Error> {
        let fetcher = self.fetcher.clone();
        self.open_by(&fetcher, topic_id, announcement).await
    }

    async fn open_by(
        &mut self,
        fetcher: &Fetcher,
        topic_id: TopicId,
        announcement: &Announcement,
    ) -> Result<View, Error> {
        let version = announcement.version;
        let identity = self.identity(topic_id, announcement);
        let about = About::announced(announcement, self.schema(announcement)?);
        let inline = announcement.inline.clone().map(|inline| (version, inline));
        let view = fetcher.open(&identity, &announcement.chain(), inline, about).await;
        // Views made of this one go on counting.
        view.map(|view| view.counting(self.reads.clone())).map_err(|source| Error::View { version, source })
    }

    /// As [`Opener::open`], from the cache alone; `None`: something of it is not there.
    ///
    /// # Errors
    /// As [`Opener::apply`].
    pub async fn open_held(
        &mut self,
        topic_id: TopicId,
        announcement: &Announcement,
    ) -> Result<Option<View>, Error> {
        let local = self.fetcher.clone().from_cache_only();
        match self.open_by(&local, topic_id, announcement).await {
            Err(error) if error.is_gone() => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// As [`Opener::open`]; where the store does not have a blob any more, by way of older ones.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open_or_restore(
        &mut self,
        topic_id: TopicId,
        announcement: &Announcement,
    ) -> Result<View, Error> {
        let error = match self.open(topic_id, announcement).await {
            Err(error) if error.is_gone() => error,
            opened => return opened,
        };
        let version = announcement.version;
        let identity = self.identity(topic_id, announcement);
        let about = About::announced(announcement, self.schema(announcement)?);
        tracing::error!(
            dataset = self.options.dataset, %version, error = chain(&error),
            "a blob of the newest version is gone; looking for older ones that lead to it"
        );
        let restored = self.past.restore(&self.fetcher, &identity, announcement, about).await;
        let Restored { view, chain, gone } = restored.map_err(|source| Error::View { version, source })?;
        let gone = gone.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let from = chain.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        self.options.metrics.errors_total.with(&["restore"]).inc();
        self.options.metrics.restores_total.inc();
        tracing::error!(
            dataset = self.options.dataset, %version, gone, %from, deltas = chain.deltas.len(),
            "restored from an older snapshot and its deltas; the store has to be looked at"
        );
        let announced = announcement.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        self.restored = Some((announced, format!("it was made from snapshot {from}, since gone is {gone}")));
        Ok(view.counting(self.reads.clone()))
    }

    /// Whose files an announcement's are.
    pub fn identity(&self, topic_id: TopicId, announcement: &Announcement) -> Identity {
        let dataset = Arc::from(self.options.dataset.as_str());
        Identity { dataset, topic_id, shard: self.shard, shards: announcement.shards }
    }

    /// The announced schema, parsed once as long as it stays the same.
    fn schema(&mut self, announcement: &Announcement) -> Result<Arc<Schema>, Error> {
        match &self.schema {
            // Not the fingerprint: defaults count when older values are read in it.
            Some(schema) if schema.json() == announcement.schema => Ok(schema.clone()),
            _ => {
                let schema = Schema::parse(&announcement.schema)
                    .map_err(|source| Error::Schema { version: announcement.version, source })?;
                let schema = Arc::new(schema);
                self.schema = Some(schema.clone());
                Ok(schema)
            }
        }
    }
}

/// Whether what is held is just what is announced, and known to be.
pub fn is_same(held: &View, topic_id: TopicId, announcement: &Announcement) -> bool {
    held.identity().topic_id == topic_id
        && held.version() == announcement.version
        && held.about().life == announcement.life
        && !held.is_stale()
}

/// The cache's disk is full: what may be fetched again makes room for what is needed now. What has come of `needed` stays:
/// it would only be fetched again.
pub async fn relieve(cache: &Cache, dataset: &str, needed: (Identity, Chain)) {
    let (of, dir) = (cache.clone(), cache.dir().display());
    let relieving = move || {
        let (identity, chain) = needed;
        let snapshot = chain.snapshot.iter().flat_map(|of| [FileName::snapshot(of), FileName::index(of)]);
        let names = snapshot.chain(chain.deltas.iter().map(FileName::delta));
        let _needed: Vec<_> = names.filter_map(|name| of.find(&identity, &name).ok().flatten()).collect();
        of.relieve()
    };
    match tokio::task::spawn_blocking(relieving).await {
        Ok(Ok(gone)) if gone > 0 => tracing::warn!(
            dataset, %dir, bytes = gone,
            "the disk of the blob cache is full: all that is not in use was evicted, although storage.cache_size allows it"
        ),
        Ok(Err(error)) => tracing::warn!(dataset, %error, "nothing can be evicted from the blob cache"),
        _ => {}
    }
}

/// Which failures of a version are counted: each kind once, however often it is tried. Else the number would say how often
/// it was tried, and an orchestrator would restart who waits for a store, with the last good version in its hands.
#[derive(Debug, Default)]
pub struct Counted {
    of: Option<(Version, u64)>,
    stages: Vec<&'static str>,
}

impl Counted {
    /// Whether a failure of this version (with its epoch) at this stage is to be counted.
    pub fn is_new(&mut self, of: (Version, u64), stage: &'static str) -> bool {
        if self.of.replace(of) != Some(of) {
            self.stages.clear();
        }
        let new = !self.stages.contains(&stage);
        if new {
            self.stages.push(stage);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures::future::BoxFuture;
    use futures::stream::StreamExt as _;
    use tokio_util::sync::CancellationToken;

    use super::super::follow::tests::World;
    use super::super::listen;
    use super::*;
    use crate::blob::{self, BlobStore, Body, Content, Listed, Store};
    use crate::clock::Clock;
    use crate::format::announcement::Message;
    use crate::kafka::{Cluster, Outgoing, Sender};
    use crate::version::{BlobRef, Checksum};

    /// A store of which each piece takes some time.
    #[derive(Debug)]
    struct Long {
        inner: Store,
        clock: Clock,
    }

    impl BlobStore for Long {
        fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), blob::Error>> {
            Box::pin(self.inner.put(name, body))
        }

        fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, blob::Error>> {
            Box::pin(async move {
                let (content, clock) = (self.inner.get(name).await?, self.clock.clone());
                let late = move |piece: Result<Bytes, blob::Error>| {
                    clock.advance(Duration::from_secs(6));
                    piece
                };
                Ok(content.map(late).boxed())
            })
        }

        fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, blob::Error>> {
            Box::pin(self.inner.head(name))
        }

        fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, blob::Error>> {
            Box::pin(self.inner.list(prefix))
        }

        fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), blob::Error>> {
            Box::pin(self.inner.delete(name))
        }
    }

    /// A first start far from its store is long, and its log says how far it is.
    #[tokio::test]
    async fn a_consumer_tells_of_a_blob_that_is_long_in_coming() {
        let mut world = World::new();
        let announced = world.write(0..10).await;
        let (clock, options) = (Clock::manual(0), world.options());
        let long = Long { inner: options.store.clone(), clock: clock.clone() };
        let options = Options { store: Store::new("long://", Arc::new(long)), clock, ..options };
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache"), u64::MAX).unwrap();
        let recent = Recent::new(Arc::default(), None, false, CancellationToken::new());
        let mut opener = Opener::new(options, Shard(0), cache, recent);

        let log = dir.path().join("log");
        let lines = Arc::new(std::fs::File::create(&log).unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(lines).finish();
        let told = tracing::subscriber::set_default(subscriber);
        let view = opener.open(announced.topic_id, &announced.announcement).await.unwrap();
        drop(told);
        assert_eq!(view.version(), Version(1));
        let text = std::fs::read_to_string(log).unwrap();
        let line =
            text.lines().find(|line| line.contains("fetching a blob")).unwrap_or_else(|| panic!("{text}"));
        let of = format!("of_bytes={}", announced.announcement.delta.blob.bytes);
        for said in ["dataset=products", "seconds_left=", &of] {
            assert!(line.contains(said), "{line} does not say {said}");
        }
    }

    /// A writer of a later release: what it says of its snapshot is true, and the index is none that this release can read.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_snapshot_that_a_later_release_wrote_is_made_up_for_by_an_older_one() {
        let (dir, mut world) = (tempfile::tempdir().unwrap(), listen::tests::World::new());
        let writers = Cache::open(dir.path().join("writer"), u64::MAX).unwrap();
        world.write(&[("a", Some("1")), ("b", Some("1"))]).await;
        world.snapshot(&writers).await;
        world.write(&[("a", Some("2"))]).await;
        world.write(&[("b", Some("3"))]).await;
        world.snapshot(&writers).await;
        world.write(&[("c", Some("4"))]).await;
        let options = world.options();
        let (_, newest) = world.versions.last_mut().unwrap();
        let index = &mut newest.snapshot.as_mut().unwrap().index;
        let mut later = options.store.get_bytes(&index.name).await.unwrap().to_vec();
        // Its format: see `format/index`.
        later[8] += 1;
        let checksum = Checksum::of(&later);
        let name = world.identity.blob_name(blob::name::Kind::Index, Version(3), 1, checksum);
        *index = BlobRef { name, checksum, plain_checksum: checksum, ..index.clone() };
        options.store.put(&index.name, later).await.unwrap();
        let (name, newest) = (index.name.clone(), newest.clone());

        let cluster = Cluster::start(1).unwrap();
        cluster.create_topic(&options.announcements, 1).unwrap();
        let sender = Sender::new(&cluster.options("writer")).unwrap();
        for (_, announcement) in &world.versions {
            let value = Message::Announcement(Box::new(announcement.clone())).encode();
            let topic = options.announcements.as_str();
            let record = Outgoing { topic, partition: Some(0), value: Some(&value), ..Outgoing::default() };
            sender.send(&record).await.unwrap();
        }
        let options = Options { kafka: cluster.options("reader"), ..options };
        let cache = Cache::open(dir.path().join("reader"), u64::MAX).unwrap();
        let recent = Recent::new(Arc::default(), None, false, CancellationToken::new());
        let mut opener = Opener::new(options, Shard(0), cache, recent);
        let view = opener.open_or_restore(world.identity.topic_id, &newest).await.unwrap();
        assert_eq!(view.version(), Version(4));
        let held: Vec<_> = view.iter().map(|value| value.unwrap().raw().unwrap().to_vec()).collect();
        assert_eq!(held, [b"2", b"3", b"4"]);
        let (gone, why) = opener.restored.clone().unwrap();
        assert_eq!(gone, Version(3));
        for said in ["made from snapshot 1", "the index of the snapshot of version 3", &name, "upgrade it"] {
            assert!(why.contains(said), "{why} does not say {said}");
        }
    }
}
