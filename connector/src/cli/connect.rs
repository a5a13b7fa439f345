//! `stillwell check --connect`: whether what the configuration points at is there, and lets us in.
//!
//! Nothing is created but probes, which are removed again with the folders that they made; the log is looked at without
//! its lock, since it may be in use.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::adopt;
use super::healthcheck::reachable;
use crate::blob::{self, Store};
use crate::clock::{Clock, Entropy};
use crate::config::{Config, Role, Shared};
use crate::disk::{self, Look};
use crate::kafka::{Admin, allowed};
use crate::producer::{recover, topics};
use crate::schema::Schema;
use crate::telemetry::Metrics;
use crate::words::counted;
use crate::{Error, ErrorKind, Result};

/// Longest that a store may take for a probe of a few bytes.
const STORE_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest that a process that listens where we would may take to say that it lives.
const LIVE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 2 });

/// Folder of probes in a store.
const PROBES: &str = "stillwell-probe";

/// One thing that was looked at.
#[derive(Debug)]
pub struct Looked {
    /// What.
    pub what: String,
    /// How it is, or what is wrong.
    pub found: Result<String>,
}

/// Looks at everything that the side needs, whatever is found on the way.
///
/// # Errors
/// [`ErrorKind::Internal`] where what stands in for the store cannot be had.
pub async fn look(config: &Config, role: Role) -> Result<Vec<Looked>> {
    let writes = role != Role::Consumer;
    let url = config.model().storage.blobs.clone();
    // Opening a store makes its folder.
    let _made = Made::below(url.strip_prefix("file://").map(|folder| Path::new(folder).join(PROBES)));
    // A topic is not made by looking.
    let opened = config.store_made(false);
    // All else can be looked at without the store.
    let stand_in = || {
        Store::open("memory://")
            .map_err(|error| Error::because(ErrorKind::Internal, "making a store in memory", error))
    };
    let shared = Shared {
        store: opened.as_ref().map_or_else(|_| stand_in(), |store| Ok(store.clone()))?,
        metrics: Metrics::new(),
        clock: Clock::system(),
        entropy: Entropy::system(),
    };
    let mut looked = Vec::new();
    let servers = &config.model().kafka.bootstrap_servers;
    let admin = kafka(config).await;
    let what = format!("Kafka at {servers}");
    let mut comes = None;
    match admin {
        Ok((admin, brokers)) => {
            if let (Some(topic), true) = (url.strip_prefix("kafka://"), config.model().kafka.create_topics)
                && matches!(admin.describe(topic).await, Ok(None))
            {
                comes = Some("its topic is missing; it will be created".to_owned());
            }
            looked.push(Looked { what, found: Ok(counted(brokers as u64, "broker")) });
            for name in config.datasets() {
                if writes {
                    looked.extend(topics(&admin, config, name, &shared).await?);
                    let found = history(config, name, &shared).await;
                    looked.push(Looked { what: format!("versions of {name}"), found });
                }
                let found = rights(&admin, config, name, &shared, role).await;
                looked.push(Looked { what: format!("rights on {name}"), found });
            }
        }
        // Without Kafka nothing is known of topics.
        Err(error) => looked.push(Looked { what, found: Err(error) }),
    }
    if let Some(registry) = config.registry().filter(|_| writes) {
        let found = registry.probe().await;
        let found = found.map_err(|error| Error::because(error.kind(), "asking it for its subjects", error));
        looked.push(Looked { what: format!("schema registry at {}", registry.hosts()), found });
    }
    let probe = format!("{PROBES}/{:016x}", shared.entropy.next_u64());
    let found = match opened {
        Ok(_) if comes.is_some() => Ok(comes.unwrap_or_default()),
        Ok(opened) => match tokio::time::timeout(STORE_TIMEOUT, tried(&opened, &probe, writes)).await {
            Ok(found) => found.map_err(|error| Error::because(error.kind(), "trying the store", error)),
            Err(_) => {
                Err(Error::new(ErrorKind::Unavailable, format!("it did not answer within {STORE_TIMEOUT:?}")))
            }
        },
        Err(error) => Err(error),
    };
    looked.push(Looked { what: format!("blob store {url}"), found });
    if let Some(address) = config.listen(role) {
        let found = tokio::task::spawn_blocking(move || listen(address)).await;
        let found = found.map_err(|error| Error::because(ErrorKind::Internal, "trying it panicked", error));
        looked.push(Looked { what: format!("http.listen {address}"), found: found.and_then(|found| found) });
    }
    for part in ["log", "cache"].into_iter().filter(|part| writes || *part == "cache") {
        let dir = config.data_dir().join(part);
        let found = directory(&dir, shared.entropy.next_u64());
        looked.push(Looked { what: format!("{part} in {}", dir.display()), found });
    }
    for name in config.datasets().filter(|_| writes) {
        let dir = config.producer(name, &shared)?.log_dir();
        let found = tokio::task::spawn_blocking(move || log(&dir)).await;
        let found =
            found.map_err(|error| Error::because(ErrorKind::Internal, "looking at it panicked", error));
        looked.push(Looked { what: format!("log of {name}"), found: found.and_then(|found| found) });
    }
    Ok(looked)
}

/// Folders that a probe makes on its way: removed again when this is dropped, unless something else is in them by then.
struct Made(Vec<PathBuf>);

impl Made {
    /// Those of a folder and all above it that are not there yet, and the folder itself, which is the probes' own.
    fn below(folder: Option<PathBuf>) -> Made {
        let Some(folder) = folder else { return Made(Vec::new()) };
        let missing = folder.ancestors().take_while(|above| !above.exists()).map(Path::to_owned);
        let mut made: Vec<PathBuf> = missing.collect();
        if made.is_empty() {
            made.push(folder);
        }
        Made(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Innermost first; of one that is not empty, or was not made after all, none above is.
            if fs::remove_dir(folder).is_err() && folder.exists() {
                return;
            }
        }
    }
}

/// What lies in the log, beside whoever has it open. Blocks.
fn log(dir: &Path) -> Result<String> {
    let look = match Look::at(dir) {
        Ok(look) => look,
        Err(disk::Error::NoLog { .. }) => return Ok("there is none yet".to_owned()),
        Err(error) => return Err(Error::because(error.kind(), "looking at it", error)),
    };
    if let Some(why) = look.refused {
        let doing = format!(
            "RocksDB refuses it ({why}): the next run puts it aside and reads from Kafka; see `log repair`"
        );
        return Err(Error::new(ErrorKind::Corrupt, doing));
    }
    let records: u64 = look.chunks.iter().map(|(_, summary)| u64::from(summary.records)).sum();
    let used = match look.held_by {
        Some(process) => format!("in use by process {process}"),
        None => "not in use".to_owned(),
    };
    let cut = look
        .cut
        .map_or(String::new(), |(seq, why)| format!("; it ends at chunk {seq}, which cannot be read: {why}"));
    let (records, chunks) = (counted(records, "record"), counted(look.chunks.len() as u64, "chunk"));
    Ok(format!("{used}; {records} in {chunks}{cut}"))
}

async fn kafka(config: &Config) -> Result<(Admin, usize)> {
    let failed = |error: crate::kafka::Error| Error::because(error.kind(), "connecting", error);
    let admin = Admin::new(&config.kafka()).map_err(failed)?;
    let brokers = admin.brokers().await.map_err(failed)?;
    Ok((admin, brokers))
}

/// Those that are right together, and each that is not.
async fn topics(admin: &Admin, config: &Config, name: &str, shared: &Shared) -> Result<Vec<Looked>> {
    let options = config.producer(name, shared)?;
    let what = || format!("topics of {name}");
    let (mut right, mut looked) = (Vec::new(), Vec::new());
    for (topic, found) in topics::look(admin, &options).await {
        let found = found.map(|(info, warning)| match (info, warning) {
            (Some(info), warning) => {
                let partitions = counted(info.partitions.max(0) as u64, "partition");
                let warning = warning.map_or(String::new(), |warning| format!("; {warning}"));
                format!("{topic} ({partitions}{warning})")
            }
            (None, _) => format!("{topic} (missing; will be created)"),
        });
        match found {
            Ok(found) => right.push(found),
            Err(error) => {
                let kind = if error.is_transient() { ErrorKind::Unavailable } else { ErrorKind::Config };
                looked.push(Looked {
                    what: what(),
                    found: Err(Error::because(kind, "looking at them", error)),
                });
            }
        }
    }
    if !right.is_empty() {
        looked.push(Looked { what: what(), found: Ok(right.join(", ")) });
    }
    Ok(looked)
}

/// Whether `run` could listen there: an address that a process of ours serves by now is no mistake.
fn listen(address: SocketAddr) -> Result<String> {
    let error = match TcpListener::bind(address) {
        Ok(_) => return Ok("it is free".to_owned()),
        Err(error) => error,
    };
    let taken = error.kind() == std::io::ErrorKind::AddrInUse;
    if taken && is_ours(address).unwrap_or(false) {
        return Ok("a process of Stillwell serves it by now".to_owned());
    }
    let what = if taken {
        "another process listens there; stop it, or give http.listen another port"
    } else {
        "correct http.listen"
    };
    Err(Error::because(ErrorKind::Config, what, error))
}

/// Whether who listens there says what `/live` says.
fn is_ours(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&reachable(address), LIVE_TIMEOUT)?;
    stream.set_read_timeout(Some(LIVE_TIMEOUT))?;
    stream.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // What trickles for ever is none of ours.
    let _ = stream.take(1_024).read_to_end(&mut answer);
    Ok(answer.ends_with(b"{\"live\":true}"))
}

/// Whether what was announced last can be carried on: a writer that finds it cannot tries again for ever.
async fn history(config: &Config, name: &str, shared: &Shared) -> Result<String> {
    let Some(last) = adopt::announced(config, shared, name).await? else {
        return Ok("none is announced yet".to_owned());
    };
    let mut options = config.producer(name, shared)?;
    if config.adopting().iter().any(|(adopting, _)| adopting == name) {
        // It is the announced one that will be taken.
        let schema = Schema::dataset(&last.schema)
            .map(Arc::new)
            .map_err(|error| Error::because(ErrorKind::Config, "taking over the announced schema", error))?;
        config.fits(name, &schema)?;
        options.schema = schema;
    }
    let doing = "carrying on what is announced";
    recover::continues(&last, &options)
        .and_then(|()| recover::has_all(&last.dataset, &last.positions, &options.topics))
        .map_err(|error| Error::because(ErrorKind::Config, doing, error))?;
    Ok(format!("version {} is announced, and can be carried on", last.version))
}

/// Whether Kafka allows what the side does, as far as that can be asked.
async fn rights(admin: &Admin, config: &Config, name: &str, shared: &Shared, role: Role) -> Result<String> {
    let mut needs = Vec::new();
    if role != Role::Consumer {
        needs.extend(topics::needs(&config.producer(name, shared)?));
    }
    if role != Role::Producer {
        needs.extend(config.consumer(name, shared)?.needs());
    }
    needs.extend(blob::needs(&config.model().storage.blobs, role != Role::Consumer));
    let lacking = allowed::lacking(admin, &config.kafka(), &needs).await;
    let lacking = lacking.map_err(|error| Error::because(error.kind(), "asking for them", error))?;
    let lacking: Vec<String> = lacking.iter().map(ToString::to_string).collect();
    match lacking.as_slice() {
        [] => Ok("this user has all that it needs".to_owned()),
        all => Err(Error::new(
            ErrorKind::Config,
            format!("this user lacks the right to {}; give it (ACL)", all.join("; to ")),
        )),
    }
}

/// Who only reads may not be allowed to write there.
async fn tried(opened: &Store, probe: &str, writes: bool) -> Result<String, blob::Error> {
    match writes {
        true => store(opened, probe).await,
        false => opened.list(PROBES).await.map(|_| "it can be listed".to_owned()),
    }
}

/// Puts a blob, finds it, and deletes it.
async fn store(store: &Store, probe: &str) -> Result<String, blob::Error> {
    let content = Bytes::from_static(b"stillwell check --connect");
    store.put(probe, content.clone()).await?;
    let seen = async {
        let listed = store.list(PROBES).await?.iter().any(|blob| blob.name == probe);
        let same = store.get_bytes(probe).await? == content;
        Ok::<_, blob::Error>(listed && same)
    }
    .await;
    // Also after a failure: a probe is not to be left behind.
    store.delete(probe).await?;
    match seen? {
        true => Ok("a blob can be put, listed, read and deleted".to_owned()),
        false => Err(blob::Error::Unavailable {
            doing: "reading",
            url: store.absolute_url(probe),
            problem: "what was put is not found again; the store is not read-after-write consistent"
                .to_owned(),
        }),
    }
}

/// Whether files can be made and synced there, or, where it does not exist yet, in the folder in which it would be made.
fn directory(dir: &Path, number: u64) -> Result<String> {
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let probe = there.join(format!("stillwell-probe-{number:016x}"));
    let tried = File::create_new(&probe).and_then(|mut file| {
        file.write_all(b"stillwell check --connect")?;
        file.sync_all()?;
        fs::remove_file(&probe)
    });
    tried.map_err(|error| {
        let doing = format!("{} cannot be written; see storage.data_dir", there.display());
        Error::because(ErrorKind::Config, doing, error)
    })?;
    Ok(if there == dir { "it can be written" } else { "it does not exist yet, and can be made" }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failpoint::forks;
    use crate::format::announcement::SourcePosition;
    use crate::producer::log::{Log, Options as LogOptions};
    use crate::record::{SourcePartition, TopicId};

    #[test]
    fn a_history_needs_all_topics_that_it_was_made_of() {
        let source = SourcePartition { topic: "products".into(), topic_id: TopicId::default(), partition: 0 };
        let positions = [SourcePosition { source, start: 0, offset: 7, target: 0 }];
        let with = |topics: &[&str]| {
            let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
            recover::has_all("shop", &positions, &topics)
        };
        with(&["more", "products"]).unwrap();
        let error = with(&["prodcts"]).unwrap_err().to_string();
        assert!(error.starts_with("source topic products is part of dataset shop since"), "{error}");
    }

    #[tokio::test]
    async fn a_probe_leaves_nothing_behind() {
        let memory = Store::open("memory://").unwrap();
        store(&memory, "stillwell-probe/1").await.unwrap();
        assert_eq!(memory.list("").await.unwrap(), []);
        let dir = tempfile::tempdir().unwrap();
        assert!(directory(dir.path(), 1).unwrap().contains("written"));
        assert!(directory(&dir.path().join("log/products"), 1).unwrap().contains("made"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn folders_that_a_probe_makes_go_and_those_that_were_there_stay() {
        let root = tempfile::tempdir().unwrap();
        for (there, left) in [
            ("", ""),
            ("data", "data"),
            ("data/blobs", "data/blobs"),
            ("data/blobs/stillwell-probe", "data/blobs"),
        ] {
            let dir = root.path().join(there.len().to_string());
            fs::create_dir_all(dir.join(there)).unwrap();
            let folder = dir.join("data/blobs");
            let made = Made::below(Some(folder.join(PROBES)));
            let files = Store::open(&format!("file://{}", folder.display())).unwrap();
            store(&files, &format!("{PROBES}/1")).await.unwrap();
            drop(made);
            assert!(dir.join(left).is_dir(), "{there}");
            assert_eq!(fs::read_dir(dir.join(left)).unwrap().count(), 0, "{there}");
        }
    }

    #[tokio::test]
    async fn a_log_says_who_has_it_and_what_it_holds() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("log/products");
        assert_eq!(super::log(&dir).unwrap(), "there is none yet");
        let open = Log::open(&dir, LogOptions::new(Clock::system())).await.unwrap();
        let said = super::log(&dir).unwrap();
        assert_eq!(said, format!("in use by process {}; 0 records in 0 chunks", std::process::id()));
        open.close().await.unwrap();
        drop(open);
        assert_eq!(super::log(&dir).unwrap(), "not in use; 0 records in 0 chunks");
    }

    #[test]
    fn an_address_is_free_served_by_one_of_ours_or_taken() {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = stranger.local_addr().unwrap();
        for (answer, said) in
            [("{\"live\":true}", "of Stillwell"), ("hello", "another process listens there")]
        {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = stranger.accept().unwrap();
                    let mut asked = [0; 1024];
                    let read = stream.read(&mut asked).unwrap();
                    assert!(asked[..read].starts_with(b"GET /live "));
                    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len())
                        .unwrap();
                });
                let told = listen(address).unwrap_or_else(|error| {
                    assert_eq!(error.kind(), ErrorKind::Config);
                    error.chain()
                });
                assert!(told.contains(said), "{told}");
            });
        }
        // Or a process that another test starts at this moment would have the socket, too.
        let _alone = forks::FORKS.write();
        drop(stranger);
        assert_eq!(listen(address).unwrap(), "it is free");
    }

    #[test]
    fn a_file_in_the_way_is_a_mistake_in_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = directory(&file.join("log"), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
