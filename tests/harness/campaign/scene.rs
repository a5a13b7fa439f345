//! One dataset under fire: a workload, one or two writers, a reader that is watched, and the oracle.
//!
//! ```text
//!  workload --> source topic --> writer A (or B) --> announcements, letters, blobs --> reader --> watcher
//!     |               |                |                     |                                      |
//!     +- acknowledged +----------------+-- log, size --------+--------------> oracle <--------------+
//! ```
//!
//! Owns: the processes, and the order of a cycle: fault, its end, a fresh record, the checks. Does not own: which
//! faults (the tests).

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use stillwell::clock::Clock;
use tempfile::TempDir;

use super::archive::{self, Archive};
use super::blobs::Blobs;
use super::chance::Chance;
use super::fair::{Patience, STRETCH, beside};
use super::faults::{PATIENT, STOP};
use super::instance::{Instance, Size};
use super::oracle::{CHECKS, Oracle, Tally, Violation, broken};
use super::row::{Row, SCHEMA};
use super::watcher::{Sampler, Watcher, scan};
use super::workload::Workload;
use crate::topic::{Record, Topic};
use crate::{Broker, held_within, scratch, unique};

/// A fresh record is readable within this after a fault: the promise. Debug builds are given more, being several times
/// slower, so that the check means the same. What others take of the machine meanwhile does not count (`fair`).
const FRESH: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 10 });
/// First start of a dataset: topics are made, the group forms.
const START: Duration = Duration::from_secs(60);
/// Partitions of the source.
const PARTITIONS: i32 = 3;
/// Records in memory, as configured; a chunk may be begun below it.
const PENDING: u64 = 2_000;
/// Bytes of log, as configured: less than a backlog has. What is on its way when it is full comes on top.
const MAX_LOG: u64 = 4 << 20;
const ON_ITS_WAY: u64 = 4 << 20;
/// Bytes of log when all but the newest records are announced: a moment's worth. What is announced is trimmed.
const LOG: u64 = 1 << 20;
/// Resident bytes of a process, whose `memory_limit` is 64 MB; a writer at rest takes 60 MB, RocksDB's buffers may take as
/// much, and the most that was seen is 109 MB.
const RSS: u64 = 160 << 20;

/// What a process may take at rest.
const BOUNDS: Size = Size { rss: RSS, log: LOG, pending: PENDING * 2 };
/// Records of versions under way come on top of those that lie ready. Batches: one is filled, two wait for the builder, one
/// version is held back by the announcer, four are in its transaction; as many as there are uploads each are being built, wait for
/// an upload, are uploaded, and wait to be announced. Chunks: that which is opened, and that which is announced in part.
const UNDER_WAY: u64 = 8;
const UNDER_WAY_OF_EACH_UPLOAD: u64 = 4;
const CHUNKS: u64 = 2;
/// Records of a chunk, which has up to a megabyte.
const CHUNK: u64 = 2_500;

/// How a scene is set up; all of it follows from the seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of everything.
    pub seed: u64,
    /// Records a second.
    pub rate: u64,
    /// Writers, one of which owns the shard.
    pub writers: usize,
    /// Records of a batch, by chance.
    pub batch: [u64; 2],
    /// Bytes of log, as configured.
    pub max_log: u64,
    /// Snapshots that are kept, and the grace of what is not in milliseconds; by chance, where none are said.
    pub cleaning: Option<[u64; 2]>,
    /// Servers that the writers are told of, where that is not the broker itself (a proxy).
    pub writers_servers: Option<String>,
    /// The same for the reader.
    pub readers_servers: Option<String>,
}

impl Plan {
    /// One writer, a few hundred records a second.
    pub fn new(seed: u64) -> Plan {
        Plan {
            seed,
            rate: 400,
            writers: 1,
            batch: [20, 400],
            max_log: MAX_LOG,
            cleaning: None,
            writers_servers: None,
            readers_servers: None,
        }
    }

    /// With so many writers.
    pub fn writers(self, writers: usize) -> Plan {
        Plan { writers, ..self }
    }
}

/// A dataset and all that is done to it.
#[derive(Debug)]
pub struct Scene {
    /// Choices from here on.
    pub chance: Chance,
    /// The writers; the first one is started with the scene.
    pub writers: Vec<Instance>,
    /// The reader.
    pub reader: Instance,
    /// The source's writer.
    pub workload: Workload,
    /// What must be true.
    pub oracle: Oracle,
    dataset: String,
    source: Topic,
    bootstrap: String,
    watcher: Watcher,
    samplers: Vec<Sampler>,
    /// Nobody has written since the oracle looked last.
    at_rest: bool,
    fresh: i64,
    /// The most that a writer may take while it works.
    most: Size,
    clock: Clock,
    /// Waits by time that counts.
    pub patience: Patience,
    text: String,
    dir: TempDir,
}

impl Scene {
    /// Sets the scene on `broker`, starts the first writer and the reader, and waits until a fresh record has gone all
    /// the way.
    ///
    /// # Errors
    /// As [`Scene::settle`].
    pub fn set(broker: &Broker, plan: &Plan) -> Result<Scene, Violation> {
        let chance = Chance::seeded(plan.seed);
        let dataset = unique("crash");
        let bootstrap = broker.bootstrap().to_owned();
        let source = Topic::create_on(broker, &format!("{dataset}.source"), PARTITIONS, &[]);
        let (dir, clock) = (scratch(), Clock::system());
        let patience = Patience::new(&clock, dir.path());
        std::fs::write(dir.path().join("row.avsc"), SCHEMA).expect("a schema can be written");
        let [least, most] = plan.batch;
        let (batch, uploads) = (chance.between(least, most), chance.between(1, 5));
        let sizes = [batch, uploads, plan.max_log];
        let by_chance = [chance.between(1, 3), chance.between(300, 2_000)];
        let cleaning = plan.cleaning.unwrap_or(by_chance);
        let text = configuration(dir.path(), &dataset, source.name(), (sizes, cleaning), &chance);
        let under_way = batch * (UNDER_WAY + UNDER_WAY_OF_EACH_UPLOAD * uploads) + CHUNKS * CHUNK;
        let most = Size { log: plan.max_log + ON_ITS_WAY, pending: BOUNDS.pending + under_way, ..BOUNDS };
        let of_writers = plan.writers_servers.as_deref().unwrap_or(&bootstrap);
        let of_reader = plan.readers_servers.as_deref().unwrap_or(&bootstrap);
        let mut writers: Vec<Instance> = (0..plan.writers)
            .map(|n| {
                let name = char::from(b'A' + n as u8).to_string();
                Instance::new(dir.path(), &name, Some("producer"), &text.replace("SERVERS", of_writers))
            })
            .collect();
        let mut reader =
            Instance::new(dir.path(), "R", Some("consumer"), &text.replace("SERVERS", of_reader));
        let workload = Workload::start(&bootstrap, source.name(), plan.rate, chance.fork());
        let oracle = Oracle::new(
            &dataset,
            source.clone(),
            ["announcements", "dlq"].map(|name| Topic::named_on(broker, &format!("{dataset}.{name}"))),
            (Blobs::new(&dir.path().join("blobs")), Blobs::new(&archive::folder(dir.path()))),
            Archive::start(
                &bootstrap,
                &format!("{dataset}.announcements"),
                &dir.path().join("blobs"),
                &archive::folder(dir.path()),
            ),
            (BOUNDS, patience.clone()),
        );
        if let Some(first) = writers.first_mut() {
            first.start(None);
        }
        reader.start(None);
        let watcher = Watcher::start("R", reader.address(), &dataset);
        let samplers = writers.iter().map(|writer| Sampler::start(writer.address())).collect();
        let began = clock.now();
        let mut scene = Scene {
            chance,
            writers,
            reader,
            workload,
            oracle,
            dataset,
            source,
            bootstrap,
            watcher,
            samplers,
            most,
            clock,
            patience,
            text,
            dir,
            at_rest: false,
            fresh: 0,
        };
        scene.fresh_within(began, START)?;
        for standby in scene.writers.iter_mut().skip(1) {
            standby.start(None);
        }
        scene.check()?;
        Ok(scene)
    }

    /// Its dataset.
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Where the announcement topic ends: for who reads what is committed, and for who reads all.
    pub fn ends_of_announcements(&self) -> (i64, i64) {
        let end = |isolation: &str| {
            let client: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &self.bootstrap)
                .set("group.id", "stillwell-tests")
                .set("isolation.level", isolation)
                .create()
                .expect("a consumer can be made");
            let ends = client.fetch_watermarks(&format!("{}.announcements", self.dataset), 0, START);
            ends.expect("the broker says where the topic ends").1
        };
        // In this order: what is committed meanwhile is not taken for open.
        let all = end("read_uncommitted");
        (end("read_committed"), all)
    }

    /// The first writer.
    pub fn writer(&mut self) -> &mut Instance {
        self.writers.first_mut().expect("a scene has a writer")
    }

    /// Waits until Kafka has acknowledged so many more records, for as long as any are.
    pub fn after_records(&self, records: u64) {
        let (mut last, goal) = (self.workload.count(), self.workload.count() + records);
        while last < goal {
            let more = self.patience.held(START, || match self.workload.count() {
                count if count > last => Ok(count),
                count => Err(count),
            });
            last = more.unwrap_or_else(|count| panic!("Kafka acknowledges nothing more: {count} of {goal}"));
        }
    }

    /// Counts a fault.
    pub fn fault(&mut self) {
        self.oracle.tally.faults += 1;
    }

    /// SIGKILL to the first writer.
    ///
    /// # Errors
    /// As [`Scene::at_rest`].
    pub fn kill(&mut self) -> Result<(), Violation> {
        self.fault();
        self.writer().kill();
        self.at_rest()
    }

    /// Starts the writer at `at` with what it has on disk; when that was.
    ///
    /// # Errors
    /// The first promise that is broken, as it was left.
    pub fn start(&mut self, at: usize, failpoints: Option<&str>) -> Result<Instant, Violation> {
        // It has seen what the dead have left, and nobody has added to it.
        if !std::mem::take(&mut self.at_rest) {
            self.oracle.look()?;
        }
        let dataset = self.dataset.clone();
        let writer = self.writers.get_mut(at).expect("one of them");
        self.oracle.recovery(writer.name(), &writer.log())?;
        match writer.logged(&dataset) {
            Ok(logged) => self.oracle.left(writer.name(), logged),
            Err(what) => return broken(6, what),
        }
        // From now on: what it has left was looked at before, and took its time.
        let now = self.clock.now();
        writer.start(failpoints);
        Ok(now)
    }

    /// What the dead have left is looked at before the next life tidies up: what they announced and committed is all
    /// that there is, and nobody will catch up with it.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn at_rest(&mut self) -> Result<(), Violation> {
        if self.writers.iter_mut().any(Instance::is_up) {
            return Ok(());
        }
        self.oracle.look()?;
        self.at_rest = true;
        self.oracle.blobs_are_there()
    }

    /// The fault has ended `at`: a fresh record must become readable, and all else must hold.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn settle(&mut self, at: Instant) -> Result<(), Violation> {
        self.fresh_within(at, FRESH)?;
        self.oracle.tally.count(9);
        self.check()
    }

    /// A backlog larger than queue and log hold is worked off: that takes as long as it takes.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn worked_off(&mut self) -> Result<(), Violation> {
        let now = self.clock.now();
        self.fresh_within(now, START * 3)
    }

    /// All that can be checked while everything runs.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn check(&mut self) -> Result<(), Violation> {
        // Acknowledged before the announcements are read, and before the fresh records were: so they are covered.
        self.oracle.look()?;
        self.oracle.settled()?;
        self.oracle.readers(&self.watcher.seen())?;
        self.oracle.blobs_are_there()?;
        for instance in self.writers.iter_mut().chain([&mut self.reader]) {
            // What has just been announced is trimmed a moment later, and how long a moment is depends on who else runs.
            let rests = |size: &Size| size.log <= BOUNDS.log && size.pending <= BOUNDS.pending;
            let seen = self.patience.held(START, || match instance.size() {
                Some(size) if !rests(&size) => Err(size),
                seen => Ok(seen),
            });
            if let Some(size) = seen.unwrap_or_else(Some) {
                self.oracle.size(instance.name(), size)?;
            }
        }
        for (writer, sampler) in self.writers.iter().zip(&self.samplers) {
            self.oracle.recovery(writer.name(), &writer.log())?;
            self.oracle.peak(writer.name(), sampler.most(), self.most)?;
        }
        Ok(())
    }

    /// Writes a fresh record into each partition and waits until the reader shows them.
    fn fresh_within(&mut self, began: Instant, most: Duration) -> Result<(), Violation> {
        let most = most.mul_f64(beside());
        // Time is taken from the first: what stands still while these are written does so, too.
        let mut fair = self.patience.since(began);
        self.fresh += 1;
        let n = self.fresh;
        let records: Vec<Record> = (0..PARTITIONS)
            .map(|partition| {
                let id = format!("fresh-{partition}");
                let row = Row { id: id.clone(), n, price: 0.5, stock: None, pad: String::new() };
                let json = serde_json::to_string(&row).expect("a row is JSON");
                Record { partition: Some(partition), ..Record::upsert(id, json) }
            })
            .collect();
        // All that was acknowledged by now lies before them.
        self.oracle.acknowledged(self.workload.acknowledged());
        self.source.produce(records);
        let seen = held_within(most * STRETCH, || match self.shows(n) {
            Ok(()) => Ok(Ok(())),
            Err(state) if fair.counted() > most => Ok(Err(state)),
            Err(state) => Err(state),
        });
        let late = fair.counted() > most;
        match seen {
            Ok(Ok(())) if !late => {
                self.oracle.tally.stretched += u64::from(fair.wall() > most);
                Ok(())
            }
            Ok(Ok(())) => broken(9, format!("fresh record {n} after {fair}, not {most:?}\n{}", self.logs())),
            Ok(Err(state)) | Err(state) => {
                broken(9, format!("no fresh record {n} after {fair}: {state}\n{}", self.logs()))
            }
        }
    }

    /// Whether the reader shows the fresh records numbered `n`.
    fn shows(&mut self, n: i64) -> Result<(), String> {
        for partition in 0..PARTITIONS {
            let path = format!("/v1/datasets/{}/records/fresh-{partition}", self.dataset);
            let answer = self.reader.ask(&path)?;
            let shown = serde_json::from_str::<Row>(&answer.body).ok();
            if shown.as_ref().is_none_or(|row| row.n != n) {
                return Err(format!("{path}: {} {}", answer.status, answer.body));
            }
        }
        Ok(())
    }

    /// The end: the workload rests, everything is announced, a reader that starts from nothing holds the same, every
    /// blob is there, and the writer stops in order with nothing left.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn finish(mut self) -> Result<Tally, Violation> {
        self.workload.set_rate(0);
        let now = self.clock.now();
        self.settle(now)?;
        let mut cold = Instance::new(
            self.dir.path(),
            "COLD",
            Some("consumer"),
            &self.text.replace("SERVERS", &self.bootstrap),
        );
        cold.start(None);
        let path = format!("/v1/datasets/{}/records?limit=10000", self.dataset);
        let found = self.patience.held(START * 3, || {
            let address = cold.listens().ok_or("it does not listen yet")?;
            scan(address, &path, &mut String::new()).ok_or("it shows nothing yet")
        });
        let (version, rows) = match found {
            Ok(found) => found,
            Err(state) => {
                return broken(5, format!("a reader that starts from nothing: {state}\n{}", cold.log()));
            }
        };
        self.oracle.readers(&[super::watcher::Scan { reader: "COLD".into(), version, rows }])?;
        self.oracle.cleaned(START * 2)?;
        for writer in &mut self.writers {
            if writer.is_up() {
                let status = writer.stop(STOP);
                if !status.success() {
                    return broken(
                        0,
                        format!("{} stops with {status}\n{}", writer.name(), tail(&writer.log())),
                    );
                }
            }
        }
        self.oracle.look()?;
        self.oracle.blobs()?;
        if let Some(check) = (1..=CHECKS.len()).find(|check| self.oracle.tally.checks.get(*check) == Some(&0))
        {
            return broken(check, "nothing was checked");
        }
        let deaths = self.writers.iter().chain([&self.reader]).map(Instance::deaths);
        self.oracle.tally.kills += deaths.sum::<u64>();
        Ok(self.oracle.tally.clone())
    }

    /// The last lines of every log.
    pub fn logs(&self) -> String {
        self.writers
            .iter()
            .chain([&self.reader])
            .map(|instance| format!("--- {}\n{}\n", instance.name(), tail(&instance.log())))
            .collect()
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"DEBUG\"")).collect();
    lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
}

/// Small batches, frequent snapshots and few that are kept, so that a few seconds see many of each, and the cleaner is at it
/// all the time; how small is chance. In one scene of four a batch waits for nothing, so that offsets go ahead of their version.
fn configuration(
    dir: &Path,
    dataset: &str,
    source: &str,
    ([size, uploads, max_log], [keep, grace]): ([u64; 3], [u64; 2]),
    chance: &Chance,
) -> String {
    let timeout = Some(chance.between(10, 150)).filter(|timeout| *timeout > 45).unwrap_or(0);
    format!(
        r#"
[kafka]
bootstrap_servers = "SERVERS"
[consumer]
graceful_shutdown_timeout = "{patient}s"
[storage]
data_dir = "DATA_DIR"
blobs = "file://{blobs}"
keep_snapshots = {keep}
clean_grace = "{grace}ms"
[producer.batching]
max_batch_size = {size}
batch_timeout = "{timeout}ms"
max_pending_records = {PENDING}
memory_limit = "64MB"
[producer.performance]
snapshot_frequency = {frequency}
snapshot_min_change = "5%"
worker_pool_size = {uploads}
[producer.spill]
max_log_size = "{max_log}B"
[producer.reliability]
retry_backoff = "100ms"
circuit_breaker_reset = "1s"
[datasets."{dataset}"]
source = {{ topics = ["{source}"], format = "json" }}
schema = "{schema}"
"#,
        blobs = dir.join("blobs").display(),
        schema = dir.join("row.avsc").display(),
        patient = PATIENT.as_secs(),
        frequency = chance.between(3, 12),
    )
}
