//! `stillwell run`: every configured dataset, until it is told to stop.

use std::collections::HashMap;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind};

use super::adopt;
use super::edge::{Answer, Edge};
use super::given::{Given, Side};
use super::signals::{LEFT_BEHIND, Signals, listen};
use crate::config::{Config, Role, Shared};
use crate::disk::DataDir;
use crate::failpoint;
use crate::host::{self, Goodbye, Host, Meaning, Part};
use crate::http::{App, Listener};
use crate::telemetry::Metrics;
use crate::{Error, ErrorKind, Result};

/// Runs every configured dataset, writing and reading, and serves them over HTTP
///
/// SIGTERM or SIGINT stops it gracefully, within consumer.graceful_shutdown_timeout; a second one at once, with exit code
/// 130.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    given: Given,
    /// Which sides to run
    #[arg(long, value_enum, default_value_t, env = "STILLWELL_ROLE")]
    role: Side,
}

impl Run {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let config = self.given.load_to_run(edge)?;
        let _armed = failpoint::arm().map_err(|mistake| Error::new(ErrorKind::Config, mistake))?;
        let role = Role::from(self.role);
        let runtime = edge.runtime()?;
        let outcome = runtime.block_on(serve(&config, role));
        runtime.shutdown_timeout(LEFT_BEHIND);
        outcome
    }
}

async fn serve(config: &Config, role: Role) -> Result<Answer> {
    // First of all, so that a signal during the start is not the default's sudden end.
    let mut signals = Signals::new()?;
    let mut reload = listen(SignalKind::hangup())?;
    // Who writes has the data directory to itself, whichever datasets it writes. Readers share it, with each other and
    // with who writes: what they have in common is the cache, which is made for that.
    let _held = (role != Role::Consumer).then(|| hold(config)).transpose()?;
    let metrics = Metrics::new();
    let shared = Shared::system(config, metrics.clone())?;
    // Before the datasets: an address that is taken is known at once, and what connects meanwhile waits.
    let listener = match config.listen(role) {
        Some(address) => Some(Listener::bind(&address.to_string()).await?),
        None => None,
    };
    let parts = parts(config, role, &shared)?;
    let consumer = &config.model().consumer;
    let options = host::Options {
        graceful_shutdown_timeout: consumer.graceful_shutdown_timeout.0,
        health_check_interval: consumer.health_check_interval.0,
        clock: shared.clock.clone(),
    };
    let datasets: Vec<&str> = config.datasets().collect();
    tracing::info!(
        datasets = datasets.join(","),
        ?role,
        servers = config.model().kafka.bootstrap_servers,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    let mut host = tokio::select! {
        host = Host::start(parts, options) => host?,
        () = signals.stop() => return Ok(Answer::Yes),
    };
    if let Some(listener) = listener {
        let token = config.model().http.admin_token.as_ref();
        let app = App::with_admin(host.directory().clone(), metrics, shared.clock, token);
        tracing::info!(address = %listener.address(), "listening for HTTP");
        host.front("HTTP", |stop| listener.serve(app.router(), stop));
    }
    let ended = until_told(&mut host, &mut signals, &mut reload).await;
    let goodbye = tokio::select! {
        goodbye = host.shutdown() => goodbye,
        () = signals.stop() => {
            // What is durable stays so: records in the log, versions announced. Nothing else is promised.
            tracing::warn!(
                "stopped at once by a second signal; what was logged and not announced waits in the log"
            );
            return ended.map_or(Ok(Answer::Interrupted), Err);
        }
    };
    tell(&goodbye);
    match ended {
        Some(error) => Err(error),
        None => goodbye.into_result().map(|()| Answer::Yes),
    }
}

fn hold(config: &Config) -> Result<DataDir> {
    let dir = config.data_dir();
    DataDir::take(&dir).map_err(|error| {
        let place = config.place_of("storage.data_dir");
        let doing = format!("taking the data directory {} (storage.data_dir, {place})", dir.display());
        Error::because(error.kind(), doing, error)
    })
}

/// Runs until a signal, or until what has ended by itself takes the process with it: then its mistake.
async fn until_told(host: &mut Host, signals: &mut Signals, reload: &mut Signal) -> Option<Error> {
    loop {
        tokio::select! {
            () = signals.stop() => {
                tracing::info!("stopping; a second signal ends it at once");
                return None;
            }
            _ = reload.recv() => tracing::warn!(
                "SIGHUP: reading the configuration again comes with a later release; restart to apply a change"
            ),
            end = host.next_end() => {
                if end.meaning == Meaning::ProcessEnds {
                    return Some(end.error);
                }
            }
        }
    }
}

fn parts(config: &Config, role: Role, shared: &Shared) -> Result<Vec<Part>> {
    // A reader takes the schema from what is announced.
    let mut later = match role {
        Role::Consumer => HashMap::new(),
        Role::Both | Role::Producer => adopt::later(config, shared),
    };
    let part = |name: &str| {
        Ok(Part {
            name: name.to_owned(),
            producer: (role != Role::Consumer).then(|| config.producer(name, shared)).transpose()?,
            schema: later.remove(name),
            consumer: (role != Role::Producer).then(|| config.consumer(name, shared)).transpose()?,
        })
    };
    config.datasets().map(part).collect()
}

fn tell(goodbye: &Goodbye) {
    for sentence in goodbye.sentences() {
        if goodbye.is_clean() {
            tracing::info!("{sentence}");
        } else {
            tracing::warn!("{sentence}");
        }
    }
    tracing::info!("stopped");
}
