//! librdkafka's embedded broker, for the demo and for tests of the path.
//!
//! It proves the path, not the guarantees: no fencing, no topic ids, no administration, and transactional offsets that
//! it takes and forgets. A partition keeps 5 MB or 100,000 messages and forgets what is older.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;

use super::{Error, Options};

/// librdkafka's name for all brokers of a cluster.
const ALL: i32 = -1;

/// A running embedded broker; it ends when the last clone is dropped.
#[derive(Clone)]
pub struct Cluster(Arc<Running>);

struct Running {
    servers: String,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// The cluster is not for several threads, so it has one of its own.
struct Command {
    what: What,
    doing: String,
    done: mpsc::Sender<Result<(), Error>>,
}

enum What {
    Create {
        topic: String,
        partitions: i32,
    },
    /// Takes connections, or breaks them and takes none.
    Up(bool),
    /// Answers after this time.
    #[cfg(test)]
    Slow(std::time::Duration),
}

impl Cluster {
    /// Starts `brokers` brokers on ports of 127.0.0.1 that the system chooses.
    pub fn start(brokers: i32) -> Result<Cluster, Error> {
        let (commands, received) = mpsc::channel::<Command>();
        let (started, starting) = mpsc::channel();
        let doing = "starting the embedded broker";
        let thread = std::thread::Builder::new()
            .name("kafka-embedded".to_owned())
            .spawn(move || {
                let cluster = match MockCluster::new(brokers) {
                    Ok(cluster) => cluster,
                    Err(error) => {
                        let _ = started.send(Err(Error::from_kafka(doing, &error)));
                        return;
                    }
                };
                let _ = started.send(Ok(cluster.bootstrap_servers()));
                for Command { what, doing, done } in received {
                    let result = match what {
                        What::Create { topic, partitions } => cluster.create_topic(&topic, partitions, 1),
                        What::Up(true) => cluster.broker_up(ALL),
                        What::Up(false) => cluster.broker_down(ALL),
                        #[cfg(test)]
                        What::Slow(time) => cluster.broker_round_trip_time(ALL, time),
                    };
                    let _ = done.send(result.map_err(|error| Error::from_kafka(doing, &error)));
                }
            })
            .map_err(|error| Error::Unavailable {
                doing: doing.to_owned(),
                detail: format!("no thread: {error}"),
            })?;
        let servers = starting.recv().map_err(|_| Error::Closed { doing: doing.to_owned() })??;
        Ok(Cluster(Arc::new(Running { servers, commands: Some(commands), thread: Some(thread) })))
    }

    /// Makes a topic. One that a client asks for without this has four partitions.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        let what = What::Create { topic: topic.to_owned(), partitions };
        self.tell(what, format!("creating topic {topic} on the embedded broker"))
    }

    /// Breaks all connections and takes no new ones (`false`), or takes them again. What it holds it keeps.
    pub fn set_up(&self, up: bool) -> Result<(), Error> {
        // It closes its listener and binds another to the same port, and aborts where that fails.
        #[cfg(test)]
        let _alone = crate::failpoint::forks::FORKS.write();
        self.tell(What::Up(up), "switching the embedded broker".to_owned())
    }

    /// Answers only after this time.
    #[cfg(test)]
    pub(super) fn set_slow(&self, time: std::time::Duration) -> Result<(), Error> {
        self.tell(What::Slow(time), "slowing the embedded broker down".to_owned())
    }

    fn tell(&self, what: What, doing: String) -> Result<(), Error> {
        let closed = Error::Closed { doing: doing.clone() };
        let (done, answer) = mpsc::channel();
        let sent = self.0.commands.as_ref().map(|commands| commands.send(Command { what, doing, done }));
        match (sent, answer.recv()) {
            (Some(Ok(())), Ok(answer)) => answer,
            _ => Err(closed),
        }
    }

    /// Where it listens: `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.0.servers
    }

    /// Options for clients of this broker.
    pub fn options(&self, client_id: &str) -> Options {
        Options {
            bootstrap_servers: self.0.servers.clone(),
            client_id: client_id.to_owned(),
            embedded: true,
            ..Options::default()
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the embedded broker's thread panicked");
        }
    }
}
