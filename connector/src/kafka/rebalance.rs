//! Membership: which instance owns which shard.
//!
//! ```text
//!   group stillwell.NAME on the announcement topic, one partition a shard
//!
//!   own thread:  poll, poll, poll ...      (also while work stands still: who does not poll is thrown out)
//!                   |
//!                   +-- Assigned [s] ------------->  events, in order, to the producer
//!                   +-- Revoked [s], waits for its answer (briefly)
//!                   +-- Lost [s]: taken away already; nothing to hand over
//! ```
//!
//! The member reads nothing: its partitions are paused. It never commits either; offsets of source topics go with the
//! announcing transaction, under this member's metadata, so that the coordinator refuses them once it is out.
//!
//! Owns: joining, staying, leaving. Does not own: what owning a shard means (`producer/own`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata, Rebalance};
use rdkafka::error::KafkaError;
use tokio::sync::mpsc;

use super::client::{Context, make};
use super::tokens::Kept;
use super::{Error, Options};

/// Longest wait for the answer to a revocation. Heartbeats go on meanwhile, by librdkafka's own thread; the bound is
/// for an owner that hangs.
pub const HANDOVER: Duration = Duration::from_secs(20);

/// Events that may wait for the owner. They are few: one a rebalance. A full channel makes the member wait, which is
/// what an owner that does not listen deserves: it is thrown out after `max.poll.interval.ms`.
const EVENTS: usize = 64;

/// What happened to the membership, in order.
#[derive(Debug)]
pub enum Event {
    /// These partitions are owned from now on, besides those owned before.
    Assigned(Vec<i32>),
    /// These partitions go to somebody else once [`Revoked::release`] is called, or the value is dropped.
    Revoked(Revoked),
    /// These partitions are gone already: the group threw this member out. It joins again by itself.
    Lost(Vec<i32>),
    /// Another member has come with this one's `group.instance.id`. Nothing more follows.
    Fenced(Error),
    /// An error; the member goes on by itself where [`Error::is_transient`] says so, else nothing more follows.
    Failed(Error),
}

/// Partitions to be handed over.
#[derive(Debug)]
pub struct Revoked {
    /// The partitions.
    pub partitions: Vec<i32>,
    release: Option<std_mpsc::Sender<()>>,
}

impl Revoked {
    /// Lets them go: their work is done or dropped.
    pub fn release(mut self) {
        if let Some(release) = self.release.take() {
            // Nobody waits any more after the bound has passed: then they are gone anyway.
            let _ = release.send(());
        }
    }
}

/// The member's standing in the group at one moment, for [`Transaction::send_offsets`](super::Transaction).
pub struct GroupMetadata(ConsumerGroupMetadata);

impl GroupMetadata {
    pub(super) fn new(native: ConsumerGroupMetadata) -> GroupMetadata {
        GroupMetadata(native)
    }

    pub(super) fn native(&self) -> &ConsumerGroupMetadata {
        &self.0
    }
}

/// What other threads may ask about a member. Cheap to clone; outlives the member.
#[derive(Clone)]
pub struct Membership(Arc<Shared>);

struct Shared {
    owned: Mutex<BTreeSet<i32>>,
    consumer: Mutex<Weak<Kept<BaseConsumer<Role>>>>,
    closing: AtomicBool,
}

impl Membership {
    /// Whether the member owns this partition at this moment.
    pub fn owns(&self, partition: i32) -> bool {
        self.0.owned().contains(&partition)
    }

    /// The member's present metadata; `None` once it is closed. Take it anew for each transaction: the generation in
    /// it grows with every rebalance, and the coordinator refuses an older one.
    pub fn group_metadata(&self) -> Option<GroupMetadata> {
        let consumer = self.0.consumer.lock().unwrap_or_else(PoisonError::into_inner).upgrade()?;
        consumer.group_metadata().map(GroupMetadata)
    }
}

impl Shared {
    fn owned(&self) -> std::sync::MutexGuard<'_, BTreeSet<i32>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member of a dataset's group.
pub struct Member {
    membership: Membership,
    events: mpsc::Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Member {
    /// Joins `group` for the partitions of `topic`, as `instance` (static membership: a member that comes back under
    /// its name within the session timeout gets its partitions at once). Returns at once; events tell the rest.
    ///
    /// # Errors
    /// [`Error::Options`] for a property that librdkafka refuses.
    pub fn join(options: &Options, group: &str, topic: &str, instance: &str) -> Result<Member, Error> {
        let mut fixed = vec![
            ("group.id", group),
            ("group.protocol", "classic"),
            // A joining standby takes nothing away from who owns something.
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "latest"),
        ];
        // The embedded broker's groups know no static members.
        if !options.embedded {
            fixed.push(("group.instance.id", instance));
        }
        let tuning = [
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "1500"),
            ("max.poll.interval.ms", "300000"),
            ("queued.max.messages.kbytes", "1024"),
        ];
        let (sender, events) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            owned: Mutex::default(),
            consumer: Mutex::default(),
            closing: AtomicBool::new(false),
        });
        let doing = || format!("joining the group {group} on {topic} as {instance}");
        let role = Role {
            context: Context::new("member", options),
            shared: Arc::clone(&shared),
            events: sender.clone(),
        };
        let consumer: Kept<BaseConsumer<Role>> = make(options, &tuning, &fixed, role, doing)?;
        consumer.subscribe(&[topic]).map_err(|error| Error::from_kafka(doing(), &error))?;
        let consumer = Arc::new(consumer);
        *shared.consumer.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&consumer);
        let thread = std::thread::Builder::new()
            .name("kafka-member".to_owned())
            .spawn({
                let (shared, doing) = (Arc::clone(&shared), doing());
                move || stay(consumer, &shared, &sender, &doing)
            })
            .map_err(|error| Error::Unavailable { doing: doing(), detail: format!("no thread: {error}") })?;
        Ok(Member { membership: Membership(shared), events, thread: Some(thread) })
    }

    /// What happened next; `None` once the member has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// What other threads may ask.
    pub fn membership(&self) -> Membership {
        self.membership.clone()
    }

    /// Stops polling. A static member stays in the group until its session ends, so that a restart in place finds
    /// its partitions waiting; it does not leave.
    pub async fn close(mut self) {
        self.membership.0.closing.store(true, Ordering::Release);
        self.events.close();
        // A revocation among those that nobody has taken: the thread waits for its answer, and this for the thread.
        while self.events.recv().await.is_some() {}
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the member's thread panicked");
            }
        }
    }
}

impl Drop for Member {
    /// Only tells the thread to end; [`Member::close`] waits for it.
    fn drop(&mut self) {
        self.membership.0.closing.store(true, Ordering::Release);
    }
}

/// The member's thread.
fn stay(consumer: Arc<Kept<BaseConsumer<Role>>>, shared: &Shared, events: &mpsc::Sender<Event>, doing: &str) {
    while !shared.closing.load(Ordering::Acquire) {
        match consumer.poll(Duration::from_millis(100)) {
            // Paused before anything could be fetched, or fetched in the instant before: not ours to read.
            None | Some(Ok(_)) => {}
            Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(error)) => {
                let fatal = consumer.client().fatal_error();
                let error = match &fatal {
                    Some((code, words)) => Error::from_code(doing, *code, words),
                    None => sorted(&consumer.context().context, doing, &error),
                };
                let fenced = matches!(error, Error::Fenced { .. });
                let ends = fenced || fatal.is_some();
                let event = if fenced { Event::Fenced(error) } else { Event::Failed(error) };
                if events.blocking_send(event).is_err() || ends {
                    break;
                }
            }
        }
    }
    shared.closing.store(true, Ordering::Release);
    shared.owned().clear();
    // Closed by hand and read empty, for the reason given at `Inlet::drop`. Then it does not matter either that who
    // is just asking for metadata may be the last to hold it.
    if consumer.close_queue().is_ok() {
        while !consumer.closed() {
            consumer.poll(Duration::from_millis(10));
        }
    }
    for _ in 0..3 {
        while consumer.poll(Duration::ZERO).is_some() {}
    }
    drop(consumer);
}

/// An error that the member may go on after: that it has no token is no refusal.
fn sorted(context: &Context, doing: &str, error: &KafkaError) -> Error {
    match error.rdkafka_error_code() {
        Some(code) => context.sorted(doing, code, ""),
        None => Error::from_kafka(doing, error),
    }
}

/// The member's side of rebalances. Callbacks run on the thread that polls.
struct Role {
    context: Context,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
}

impl ClientContext for Role {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.context.line(level, facility, line);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.context.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ConsumerContext for Role {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(_) => {}
            Rebalance::Revoke(list) => {
                let partitions = partitions(list);
                if partitions.is_empty() {
                    return;
                }
                let lost = consumer.assignment_lost();
                if lost {
                    // Before the event: who hears of it must find it true.
                    self.shared.owned().retain(|partition| !partitions.contains(partition));
                }
                if self.shared.closing.load(Ordering::Acquire) {
                    return;
                }
                if lost {
                    let _ = self.events.blocking_send(Event::Lost(partitions));
                    return;
                }
                let (release, released) = std_mpsc::channel();
                let revoked = Revoked { partitions: partitions.clone(), release: Some(release) };
                if self.events.blocking_send(Event::Revoked(revoked)).is_ok()
                    && released.recv_timeout(HANDOVER) == Err(std_mpsc::RecvTimeoutError::Timeout)
                {
                    tracing::warn!(
                        ?partitions,
                        "the owner did not let go within {HANDOVER:?}; handed over all the same"
                    );
                }
                self.shared.owned().retain(|partition| !partitions.contains(partition));
            }
            Rebalance::Error(error) => {
                let error = sorted(&self.context, "rebalancing", error);
                let _ = self.events.blocking_send(Event::Failed(error));
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        // The member only holds its partitions; what is in them the tail reads.
        if let Err(error) = consumer.pause(list) {
            tracing::warn!(%error, "pausing the member's partitions");
        }
        let partitions = partitions(list);
        if partitions.is_empty() || self.shared.closing.load(Ordering::Acquire) {
            return;
        }
        self.shared.owned().extend(&partitions);
        let _ = self.events.blocking_send(Event::Assigned(partitions));
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode as Code;

    use super::*;

    #[test]
    fn a_member_whose_token_has_ended_is_not_refused() {
        let options = Options::default();
        let context = Context::new("member", &options);
        let told = |code| sorted(&context, "joining", &KafkaError::MessageConsumption(code));
        assert!(!told(Code::Authentication).is_transient(), "{}", told(Code::Authentication));
        options.reach.tokenless(Some("the endpoint is away".to_owned()));
        let error = told(Code::Authentication);
        assert!(error.is_transient() && error.to_string() == "joining: the endpoint is away", "{error}");
        let error = told(Code::GroupAuthorizationFailed);
        assert!(!error.is_transient() && error.to_string().starts_with("joining: "), "{error}");
    }

    #[tokio::test]
    async fn a_revocation_that_nobody_has_taken_does_not_hold_up_the_end() {
        let options = Options { bootstrap_servers: "127.0.0.1:9".to_owned(), ..Options::default() };
        let (sender, events) = mpsc::channel(EVENTS);
        let (owned, consumer, closing) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { owned, consumer, closing });
        let context = Context::new("member", &options);
        let role = Role { context, shared: Arc::clone(&shared), events: sender };
        let made = make(&options, &[], &[("group.id", "g")], role, String::new);
        let consumer: Kept<BaseConsumer<Role>> = made.expect("a consumer");
        let thread = std::thread::spawn(move || {
            let mut list = TopicPartitionList::new();
            list.add_partition("t", 0);
            consumer.context().pre_rebalance(&consumer, &Rebalance::Revoke(&list));
        });
        let member = Member { membership: Membership(shared), events, thread: Some(thread) };
        let asked = tokio::time::timeout(HANDOVER, async {
            while member.events.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        asked.await.expect("the revocation waits to be taken");
        tokio::time::timeout(HANDOVER / 2, member.close()).await.expect("nobody is waited for");
    }
}
