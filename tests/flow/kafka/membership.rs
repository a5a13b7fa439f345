//! Membership: static members, standbys, handing over, being replaced.

use std::collections::BTreeSet;
use std::time::Duration;

use stillwell::kafka::{Error, Event, Member};
use stillwell_tests::{Topic, unique};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::{LONG, now, options, runtime};

fn join(group: &str, topic: &Topic, instance: &str) -> Member {
    Member::join(&options(), group, topic.name(), instance).expect("a member")
}

/// What happens within `most`. A coordinator that is not ready, or slow, is nothing: the member goes on by itself.
async fn event(member: &mut Member, most: Duration) -> Result<Option<Event>, Elapsed> {
    let happens = async {
        loop {
            match member.next().await {
                Some(Event::Failed(error)) if error.is_transient() => println!("{error}"),
                event => return event,
            }
        }
    };
    timeout(most, happens).await
}

pub(super) async fn assigned(member: &mut Member) -> Vec<i32> {
    match event(member, LONG).await {
        Ok(Some(Event::Assigned(partitions))) => partitions,
        other => panic!("{other:?}"),
    }
}

/// A restart in place: the group does not even notice.
#[test]
fn a_static_member_that_comes_back_has_its_shard_at_once() {
    let topic = Topic::create("restart", 1);
    let (group, instance) = (unique("restart"), unique("instance"));
    runtime().block_on(async {
        let mut member = join(&group, &topic, &instance);
        assert_eq!(assigned(&mut member).await, [0]);
        // Who waits for the session's end waits twelve seconds each time; a busy machine is slow now and then.
        let mut tries = Vec::new();
        while tries.last().is_none_or(|took| *took >= Duration::from_secs(2)) {
            assert!(tries.len() < 5, "{tries:?}");
            member.close().await;
            let started = now();
            member = join(&group, &topic, &instance);
            assert_eq!(assigned(&mut member).await, [0]);
            tries.push(started.elapsed());
        }
        println!("a restart in place takes {tries:?}");
        member.close().await;
    });
}

/// A standby joins and takes nothing; when the owner's session ends, it has the shard.
#[test]
fn a_standby_takes_over_when_the_owner_is_gone() {
    let topic = Topic::create("standby", 1);
    let group = unique("standby");
    runtime().block_on(async {
        let mut owner = join(&group, &topic, &unique("owner"));
        assert_eq!(assigned(&mut owner).await, [0]);
        let mut standby = join(&group, &topic, &unique("standby"));
        let quiet = Duration::from_secs(4);
        assert!(event(&mut owner, quiet).await.is_err(), "the owner keeps what it has");
        assert!(event(&mut standby, Duration::from_millis(1)).await.is_err());
        assert!(owner.membership().owns(0) && !standby.membership().owns(0));
        let metadata = owner.membership();
        owner.close().await;
        assert!(!metadata.owns(0) && metadata.group_metadata().is_none());
        let started = now();
        assert_eq!(assigned(&mut standby).await, [0]);
        // `assigned` waits for less than librdkafka's own session of 45 s, which would show that ours is not told to Kafka.
        println!("a standby takes over after {:?}", started.elapsed());
        standby.close().await;
    });
}

/// Two shards, two members: one shard moves, after its owner let go; the other never stops.
#[test]
fn a_shard_moves_only_when_its_owner_lets_go() {
    let topic = Topic::create("move", 2);
    let group = unique("move");
    runtime().block_on(async {
        let mut first = join(&group, &topic, &unique("first"));
        let mut owned = BTreeSet::new();
        while owned.len() < 2 {
            owned.extend(assigned(&mut first).await);
        }
        let mut second = join(&group, &topic, &unique("second"));
        let revoked = match event(&mut first, LONG).await {
            Ok(Some(Event::Revoked(revoked))) => revoked,
            other => panic!("{other:?}"),
        };
        let moving = revoked.partitions.clone();
        assert_eq!(moving.len(), 1, "{revoked:?}");
        let membership = first.membership();
        // Until it lets go it owns the shard, and may commit.
        assert!(membership.owns(moving[0]) && membership.group_metadata().is_some());
        assert!(event(&mut second, Duration::from_secs(2)).await.is_err(), "not before it is let go");
        revoked.release();
        assert_eq!(assigned(&mut second).await, moving);
        assert!(!membership.owns(moving[0]) && membership.owns(1 - moving[0]));
        assert!(
            event(&mut first, Duration::from_millis(500)).await.is_err(),
            "the other shard never stopped"
        );
        first.close().await;
        second.close().await;
    });
}

#[test]
fn a_second_member_of_the_same_name_fences_the_first() {
    let topic = Topic::create("twin", 1);
    let (group, instance) = (unique("twin"), unique("instance"));
    runtime().block_on(async {
        let mut first = join(&group, &topic, &instance);
        assert_eq!(assigned(&mut first).await, [0]);
        let mut second = join(&group, &topic, &instance);
        assert_eq!(assigned(&mut second).await, [0]);
        let mut events = Vec::new();
        while let Ok(Some(next)) = event(&mut first, LONG).await {
            events.push(next);
        }
        assert!(matches!(events.last(), Some(Event::Fenced(Error::Fenced { .. }))), "{events:?}");
        assert!(!first.membership().owns(0));
        assert!(second.membership().owns(0));
        first.close().await;
        second.close().await;
    });
}
