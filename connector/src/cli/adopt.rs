//! Datasets whose schema is not configured: it is what was announced, and at the very beginning the registry's newest.
//!
//! ```text
//!  announced already?  yes: its schema, which a dataset keeps         Kafka away: what was kept of the last start
//!                      no:  the newest of the subject                 neither, or nothing registered: waits
//! ```
//!
//! So a restart, another instance or a schema that is registered meanwhile changes nothing. What was found is kept in
//! `data_dir/schemas/DATASET.avsc`, since a writer must be able to start while Kafka is away. Under `run` the one writer
//! waits, in its own task (`host/writer`), and nothing else does.
//!
//! Owns: where such a schema comes from. Does not own: how it fits the configuration (`config`).

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::watch;

use super::edge::Edge;
use crate::codec::Written;
use crate::config::{Config, Shared};
use crate::consumer::history::History;
use crate::format::announcement::Announcement;
use crate::host::Later;
use crate::kafka::Admin;
use crate::registry::{self, Found};
use crate::repeat;
use crate::retry::Backoff;
use crate::schema::Schema;
use crate::version::Shard;
use crate::{Error, ErrorKind, Result};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What is missing, by dataset: each comes by itself, however long it takes, and is kept for the next start. For who has
/// the data directory. What is found and cannot be the dataset's schema is an [`ErrorKind::Config`].
pub fn later(config: &Config, shared: &Shared) -> HashMap<String, Later> {
    let all = Arc::new(config.clone());
    let later = config.adopting().into_iter().map(|(name, subject)| {
        let (say, why) = watch::channel("its schema is being asked for".to_owned());
        let (config, shared, wanted) = (all.clone(), shared.clone(), name.clone());
        let schema = async move { wait(&config, &shared, &wanted, &subject, &say).await };
        (name, Later { schema: schema.boxed(), why })
    });
    later.collect()
}

async fn wait(
    config: &Config,
    shared: &Shared,
    name: &str,
    subject: &str,
    say: &watch::Sender<String>,
) -> Result<Arc<Schema>> {
    let kept = config.data_dir().join("schemas").join(format!("{name}.avsc"));
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let schema = loop {
        let error = match find(config, shared, name, subject, Some(&kept)).await {
            Ok(schema) => break schema,
            Err(error) if error.kind() == ErrorKind::Config => return Err(error),
            Err(error) => error.chain(),
        };
        let wait = backoff.next(&shared.entropy);
        if repeat::is_said(u64::from(backoff.failures())) {
            tracing::warn!(
                dataset = name,
                error,
                tried = backoff.failures(),
                "the dataset's schema is not known yet; its writer waits for it"
            );
        }
        say.send_replace(error);
        tokio::time::sleep(wait).await;
    };
    config.fits(name, &schema)?;
    if let Err(error) = keep(&kept, &schema) {
        tracing::warn!(dataset = name, error = %error.chain(), "its schema cannot be kept for a start without Kafka");
    }
    tracing::info!(
        dataset = name,
        fingerprint = format!("{:016x}", schema.fingerprint()),
        "the dataset's schema is known"
    );
    Ok(schema)
}

/// Finds what is missing of one dataset, once: for commands.
///
/// # Errors
/// As [`later`], and what does not answer.
pub fn now(config: &mut Config, dataset: &str, edge: &Edge) -> Result<()> {
    let adopting = config.adopting();
    let Some((name, subject)) = adopting.into_iter().find(|(name, _)| name == dataset) else { return Ok(()) };
    let shared = Shared::system(config, crate::telemetry::Metrics::new())?;
    let runtime = edge.runtime()?;
    let schema = runtime.block_on(find(config, &shared, &name, &subject, None));
    runtime.shutdown_background();
    config.adopt(&name, schema?)
}

async fn find(
    config: &Config,
    shared: &Shared,
    name: &str,
    subject: &str,
    kept: Option<&Path>,
) -> Result<Arc<Schema>> {
    let announced = match announced(config, shared, name).await {
        Ok(last) => last.map(|last| last.schema),
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            let text = kept.and_then(|kept| std::fs::read_to_string(kept).ok());
            // Torn by a power cut, it is as good as none.
            let text = text.filter(|text| Schema::dataset(text).is_ok());
            let Some(text) = text else { return Err(error) };
            tracing::warn!(dataset = name, error = %error.chain(), "Kafka is away: its schema is that of the last start");
            Some(text)
        }
        Err(error) => return Err(error),
    };
    let schema = match announced {
        Some(text) => Schema::dataset(&text),
        None => Schema::dataset(&newest(config, name, subject).await?),
    };
    let doing = || format!("taking over the schema of {name}");
    schema.map(Arc::new).map_err(|error| Error::because(ErrorKind::Config, doing(), error))
}

/// The last announcement, if there is one.
///
/// # Errors
/// Kafka's.
pub async fn announced(config: &Config, shared: &Shared, name: &str) -> Result<Option<Box<Announcement>>> {
    let topics = config.consumer(name, shared)?.topics();
    let failed = |error: crate::kafka::Error| {
        Error::because(error.kind(), format!("looking for what was announced of {name}"), error)
    };
    let admin = Admin::new(&topics.kafka).map_err(failed)?;
    if admin.describe(&topics.announcements).await.map_err(failed)?.is_none() {
        return Ok(None);
    }
    let last = History::find(topics).await?.last(Shard(0)).await?;
    Ok(last.map(|last| last.announcement))
}

/// The newest schema that is registered.
async fn newest(config: &Config, name: &str, subject: &str) -> Result<String> {
    let Some(registry) = config.registry() else {
        return Err(Error::new(ErrorKind::Config, format!("dataset {name} has neither schema nor registry")));
    };
    match registry.latest(subject).await {
        Ok(Found::Schema(Written::Avro(schema))) => Ok(schema.json().to_owned()),
        Ok(Found::Schema(other)) => {
            let what = format!(
                "the newest schema of subject {subject} is of type {}, and that of {name} is AVRO: name a file with \
                 datasets.{name}.schema",
                other.kind()
            );
            Err(Error::new(ErrorKind::Config, what))
        }
        Ok(Found::Unusable(why)) => {
            let what = format!("the newest schema of subject {subject} cannot be that of {name}: {why}");
            Err(Error::new(ErrorKind::Config, what))
        }
        // What it refers to may be unknown instead, and is then named.
        Err(registry::Error::Unknown { what }) if what == format!("subject {subject}") => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "nothing is registered under subject {subject} yet, whose newest schema is to be that of {name}: register \
                 it, name another one (datasets.{name}.source.subject), or a file (datasets.{name}.schema)"
            ),
        )),
        // Whoever changes the registry's mind mends it: what waits need not be started again.
        Err(error) => {
            let doing = format!("asking for the newest schema of subject {subject}");
            Err(Error::because(ErrorKind::Unavailable, doing, error))
        }
    }
}

/// Written aside and renamed, so that what is there is whole.
fn keep(file: &Path, schema: &Schema) -> Result<()> {
    if std::fs::read_to_string(file).is_ok_and(|kept| kept == schema.json()) {
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        let aside = PathBuf::from(format!("{}.part", file.display()));
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut part = std::fs::File::create(&aside)?;
        part.write_all(schema.json().as_bytes())?;
        part.sync_all()?;
        std::fs::rename(aside, file)
    };
    write()
        .map_err(|error| Error::because(ErrorKind::Unavailable, format!("keeping {}", file.display()), error))
}
