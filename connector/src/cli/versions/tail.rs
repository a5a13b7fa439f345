//! `stillwell versions tail`: each version as it is announced.

use std::sync::Arc;

use clap::Args;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::edge::{Answer, Edge, print};
use super::super::reading::Which;
use super::super::table::Output;
use super::Listed;
use crate::Result;
use crate::consumer;
use crate::consumer::history::History;
use crate::consumer::tail::{Announced, Seen, Tail, unknown};
use crate::error::{Error, ErrorKind};
use crate::format::announcement::Announcement;
use crate::version::{Shard, Version};

/// Versions that wait to be printed.
const WAITING: usize = 16;

/// Prints the newest version, and then each as it is announced, until it is interrupted
#[derive(Debug, Args)]
pub(super) struct Follow {
    #[command(flatten)]
    which: Which,
    /// Begin with this version, or the oldest that is kept [default: the newest]
    #[arg(long, value_name = "V")]
    from: Option<u64>,
    /// End after so many versions [default: never]
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// A line each, or a JSON object a line
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Follow {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let (_, options) = self.which.load(edge)?;
        let runtime = edge.runtime()?;
        let stop = CancellationToken::new();
        let answer = runtime.block_on(async {
            tokio::select! {
                told = self.tell(options, &stop) => told.map(|()| Answer::Yes),
                _ = tokio::signal::ctrl_c() => Ok(Answer::Interrupted),
            }
        });
        stop.cancel();
        runtime.shutdown_background();
        answer
    }

    async fn tell(&self, options: consumer::Options, stop: &CancellationToken) -> Result<()> {
        let store = options.store.clone();
        let mut told = 0;
        let mut last = Version(0);
        let mut tell = |announcement: &Announcement| -> Result<bool> {
            if announcement.version <= last {
                return Ok(true);
            }
            last = announcement.version;
            let listed = Listed::of(announcement, &store);
            print(|out| match self.output {
                Output::Json => {
                    serde_json::to_writer(&mut *out, &listed)?;
                    writeln!(out)
                }
                Output::Table => writeln!(out, "{}", line(&listed)),
            })?;
            told += 1;
            Ok(self.max.is_none_or(|max| told < max))
        };
        if let Some(from) = self.from {
            let history = History::find(options.topics()).await?;
            let (lines, mut lines_in) = mpsc::channel(WAITING);
            let folding = history.fold(Shard(0), (), move |(), announcement| {
                if announcement.version >= Version(from) {
                    // Who no longer listens has all that was wanted.
                    let _ = lines.blocking_send(announcement);
                }
            });
            let telling = async {
                while let Some(announcement) = lines_in.recv().await {
                    if !tell(&announcement)? {
                        return Ok(false);
                    }
                }
                Ok::<_, Error>(true)
            };
            let mut telling = std::pin::pin!(telling);
            let more = tokio::select! {
                more = &mut telling => more?,
                folded = folding => {
                    folded?;
                    telling.await?
                }
            };
            if !more {
                return Ok(());
            }
        }
        let (seen, mut seen_in) = mpsc::channel(WAITING);
        let (status, _status) = watch::channel(unknown());
        let tail = Tail::new(options, Shard(0), seen, status);
        let stop = stop.clone();
        let tailing = tokio::task::spawn_blocking(move || Handle::current().block_on(tail.run(&stop)));
        while let Some(next) = seen_in.recv().await {
            let announced: Arc<Announced> = match next {
                Seen::Announced(announced) => announced,
                Seen::Gone => {
                    tracing::warn!(
                        "the announcement topic is another one now: start this again to follow it"
                    );
                    continue;
                }
                Seen::Pinned(_) | Seen::Newest(_) | Seen::UpToDate => continue,
            };
            if !tell(&announced.announcement)? {
                return Ok(());
            }
        }
        match tailing.await {
            Ok(()) => Ok(()),
            Err(panic) => Err(Error::because(ErrorKind::Internal, "reading announcements panicked", panic)),
        }
    }
}

fn line(listed: &Listed) -> String {
    let Listed { announced_at, version, records, upserts, deletes, epoch, .. } = listed;
    format!(
        "{announced_at}  version {version}  {records} records  {upserts} upserts  {deletes} deletes  epoch {epoch}{}",
        if listed.caught_up { "" } else { "  not caught up" }
    )
}
