//! What the commands that read a dataset have in common: they find a version by its announcement and open it through the
//! cache that a running process shares. They open no log and take no lock.

use clap::Args;

use super::downloads::watched;
use super::edge::Edge;
use super::given::Given;
use crate::config::{Config, Shared};
use crate::consumer::history::{self, Found, History};
use crate::consumer::{Fixed, Options, Steering};
use crate::telemetry::Metrics;
use crate::version::{Shard, Version};
use crate::view::View;
use crate::{Error, ErrorKind, Result};

/// Which dataset, of which configuration.
#[derive(Debug, Args)]
pub struct Which {
    #[command(flatten)]
    given: Given,
    /// Dataset
    pub dataset: String,
}

/// Reads the number of a version on the command line.
///
/// # Errors
/// Why it is none, as an end of clap's sentence.
pub(super) fn version_number(text: &str) -> Result<u64, &'static str> {
    match text.trim().parse() {
        Ok(0) => Err("versions count from 1"),
        Ok(number) => Ok(number),
        Err(_) => Err("it is not a version: write its number, as in 41"),
    }
}

impl Which {
    /// The configuration, and what a consumer of the dataset would be told.
    ///
    /// # Errors
    /// Mistakes in the configuration; [`ErrorKind::Rejected`] where it has no such dataset.
    pub fn load(&self, edge: &Edge) -> Result<(Config, Options)> {
        let config = self.given.load(edge)?;
        let shared = Shared::system(&config, Metrics::new())?;
        let mut options = config.consumer(&self.dataset, &shared)?;
        options.store = watched(options.store, &edge.screen);
        Ok((config, options))
    }

    /// Opens a version, by default the one that a consumer would hold; with `serve_stale`, out of the cache where Kafka does
    /// not answer.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where Kafka or the store does not answer, or nothing is announced yet;
    /// [`ErrorKind::Rejected`] where there is no such version.
    pub fn open(&self, edge: &Edge, version: Option<u64>) -> Result<View> {
        let (_, options) = self.load(edge)?;
        let runtime = edge.runtime()?;
        let view = runtime.block_on(open(&options, version.map(Version)));
        runtime.shutdown_background();
        view
    }
}

impl Which {
    /// Opens two versions, the second by default the newest.
    ///
    /// # Errors
    /// As [`Which::open`].
    pub fn open_both(&self, edge: &Edge, from: u64, to: Option<u64>) -> Result<(View, View)> {
        let (_, options) = self.load(edge)?;
        let runtime = edge.runtime()?;
        let both = runtime.block_on(async {
            let (from, to) =
                (find(&options, Some(Version(from))).await?, find(&options, to.map(Version)).await?);
            Ok((opened(&options, &from, false).await?, opened(&options, &to, false).await?))
        });
        runtime.shutdown_background();
        both
    }
}

/// As [`Which::open`], on the caller's runtime.
pub(super) async fn open(options: &Options, version: Option<Version>) -> Result<View> {
    let (found, stale) = match held(options, version).await {
        Ok(found) => (found, false),
        Err(error) if error.kind() == ErrorKind::Unavailable && options.serve_stale => {
            let cached = history::cached(options, Shard(0))?;
            match cached.filter(|found| version.is_none_or(|version| version == found.announcement.version)) {
                Some(found) => {
                    let version = found.announcement.version;
                    tracing::warn!(
                        error = error.chain(), %version,
                        "this version comes out of the cache, and there may be a newer one (http.serve_stale)"
                    );
                    (found, true)
                }
                None => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    opened(options, &found, stale).await
}

/// As [`history::open`]; of a version that is not kept any more it says so, rather than which of its blobs are missing.
async fn opened(options: &Options, found: &Found, stale: bool) -> Result<View> {
    let error = match history::open(options, found, stale).await {
        Err(error) if !stale => error,
        opened => return opened,
    };
    let (version, dataset) = (found.announcement.version, &options.dataset);
    let newest = find(options, None).await.map(|newest| newest.announcement.oldest_kept);
    match newest {
        Ok(oldest) if version < oldest => {
            let what = format!(
                "version {version} of dataset {dataset} was cleaned: {oldest} is the oldest that is kept"
            );
            Err(Error::because(ErrorKind::Rejected, what, error))
        }
        _ => Err(error),
    }
}

/// The version that was asked for; else the one that a reader would hold: the configured one, the pinned one, the newest.
async fn held(options: &Options, version: Option<Version>) -> Result<Found> {
    if version.is_some() {
        return find(options, version).await;
    }
    let shard = Shard(0);
    match options.fixed {
        Some(Fixed::Version(version)) => return find(options, Some(version)).await,
        Some(Fixed::At(ms)) => return History::find(options.topics()).await?.at(shard, ms).await,
        None => {}
    }
    let pin = match Steering::new(options.topics()).pinned().await {
        // Without the right to read the control topic: as a reader does, which says so in its health.
        Err(error) if error.kind() != ErrorKind::Unavailable => {
            tracing::warn!(error = error.chain(), "what is pinned is not known; this is the newest version");
            None
        }
        pin => pin?,
    };
    let Some(pin) = pin else { return find(options, None).await };
    let versions = pin.shard_versions();
    tracing::warn!(dataset = options.dataset, %versions, by = pin.by, reason = pin.reason, "this dataset is pinned");
    match versions.0.as_slice() {
        [version] => find(options, Some(*version)).await,
        _ => find(options, None).await,
    }
}

pub(super) async fn find(options: &Options, version: Option<Version>) -> Result<Found> {
    let history = History::find(options.topics()).await?;
    match version {
        Some(version) => history.version(Shard(0), version).await,
        None => history.last(Shard(0)).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!(
                    "no version of dataset {} is announced yet: its producer has just started",
                    options.dataset
                ),
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_number_from_1_on() {
        assert_eq!(version_number("41"), Ok(41));
        assert_eq!(version_number("0"), Err("versions count from 1"));
        for wrong in ["abc", "", "-1", "4.5", "v41"] {
            assert_eq!(
                version_number(wrong),
                Err("it is not a version: write its number, as in 41"),
                "{wrong}"
            );
        }
    }
}
