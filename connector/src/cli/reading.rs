//! What the commands that read a dataset have in common: they find a version by its announcement and open it through the
//! cache that a running process shares. They open no log and take no lock.

use clap::Args;

use super::edge::Edge;
use super::given::Given;
use crate::config::{Config, Shared};
use crate::consumer::Options;
use crate::consumer::history::{self, Found, History};
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

impl Which {
    /// The configuration, and what a consumer of the dataset would be told.
    ///
    /// # Errors
    /// Mistakes in the configuration; [`ErrorKind::Rejected`] where it has no such dataset.
    pub fn load(&self, edge: &Edge) -> Result<(Config, Options)> {
        let config = self.given.load(edge)?;
        let shared = Shared::system(&config, Metrics::new())?;
        let options = config.consumer(&self.dataset, &shared)?;
        Ok((config, options))
    }

    /// Opens a version, the newest by default, as a consumer would: with `serve_stale`, out of the cache where Kafka does
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

async fn open(options: &Options, version: Option<Version>) -> Result<View> {
    let (found, stale) = match find(options, version).await {
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
    history::open(options, &found, stale).await
}

pub(super) async fn find(options: &Options, version: Option<Version>) -> Result<Found> {
    let history = History::find(options.clone()).await?;
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
