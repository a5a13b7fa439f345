//! librdkafka's embedded broker, for the demo and for tests of the path.
//!
//! It proves the path, not the guarantees: no fencing, no topic ids, no administration, and transactional offsets that
//! it takes and forgets. A partition keeps 5 MB or 100,000 messages and forgets what is older.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;

use super::{Error, Options};

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
    topic: String,
    partitions: i32,
    done: mpsc::Sender<Result<(), Error>>,
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
                for Command { topic, partitions, done } in received {
                    let made = cluster.create_topic(&topic, partitions, 1);
                    let doing = || format!("creating topic {topic} on the embedded broker");
                    let _ = done.send(made.map_err(|error| Error::from_kafka(doing(), &error)));
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
        let closed = || Error::Closed { doing: format!("creating topic {topic} on the embedded broker") };
        let (done, answer) = mpsc::channel();
        let command = Command { topic: topic.to_owned(), partitions, done };
        let commands = self.0.commands.as_ref().ok_or_else(closed)?;
        commands.send(command).map_err(|_| closed())?;
        answer.recv().map_err(|_| closed())?
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
