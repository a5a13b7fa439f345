//! What is kept of a store, and what goes: the newest snapshots with what follows them, what is pinned, and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use stillwell::producer::{Batching, Cleaning, Performance, Reliability};
use stillwell::telemetry::ProducerMetrics;
use stillwell::view::Spared;
use stillwell::{ErrorKind, Producer, ProducerBuilder, Shard, Version};
use stillwell_tests::campaign::announced::{Announcement, Told};
use stillwell_tests::{Broker, Record, Running, Topic, scratch, wait_until, wait_until_async};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::pins::{one, produce, steering};
use crate::setting::Setting;

/// Longer than any test: what is not kept is not deleted either.
const NEVER: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_millis(200);
/// Longest that the cleaner may take: its wait after failures doubles, up to five minutes.
const CLEANED: Duration = Duration::from_secs(400);

/// A producer that makes a snapshot of every few versions, and keeps so many.
fn builder(setting: &Setting, keep_snapshots: usize, grace: Duration) -> ProducerBuilder {
    setting
        .builder()
        .batching(Batching { batch_timeout: Duration::from_millis(20), ..Batching::default() })
        .performance(Performance {
            snapshot_frequency: 1,
            snapshot_min_change: 0.0,
            ..Performance::default()
        })
        .cleaning(Cleaning { keep_snapshots, grace })
}

async fn producer(setting: &Setting, keep_snapshots: usize, grace: Duration) -> Producer {
    builder(setting, keep_snapshots, grace).start().await.expect("the producer starts")
}

/// The announcements that the topic holds, with their offsets; by code that is not the cleaner's.
fn announcements(setting: &Setting) -> Vec<(i64, Announcement)> {
    let topic = Topic::named_on(Broker::shared(), &format!("{}.announcements", setting.dataset()));
    let told = topic.read_on(&[0]).into_iter().map(|message| (message.offset, Told::read(&message)));
    told.filter_map(|(offset, told)| match told.expect("it is ours") {
        Told::Announcement(it) => Some((offset, *it)),
        Told::Epoch(_) => None,
    })
    .collect()
}

fn named(it: &Announcement) -> Vec<String> {
    let deltas = it.earlier.iter().chain([&it.delta]).map(|delta| &delta.blob);
    let snapshot = it.snapshot.iter().flat_map(|snapshot| [&snapshot.blob, &snapshot.index]);
    deltas.chain(snapshot).map(|blob| blob.name.clone()).collect()
}

/// The blobs of a store; those of other kinds than these are not counted.
fn blobs(dir: &Path) -> BTreeSet<String> {
    let store = stillwell_tests::campaign::blobs::Blobs::new(dir);
    let is_version =
        |name: &String| [".delta.avro", ".snapshot.avro", ".index"].iter().any(|end| name.ends_with(end));
    store.all().into_iter().map(|(name, _)| name).filter(is_version).collect()
}

fn store(setting: &Setting) -> PathBuf {
    setting.dir.path().join("blobs")
}

/// What announcements from the oldest kept on name, and the pinned one; and that these snapshots are so many.
fn kept(setting: &Setting, snapshots: usize, pinned: Option<Version>) -> Result<BTreeSet<String>, String> {
    let all = announcements(setting);
    let (_, newest) = all.last().ok_or("nothing is announced")?;
    let oldest = newest.oldest_kept;
    let retained = all.iter().map(|(_, it)| it).filter(|it| it.version >= oldest);
    let listed: BTreeSet<i64> =
        retained.clone().filter_map(|it| Some(it.snapshot.as_ref()?.version)).collect();
    if listed.len() != snapshots {
        return Err(format!("from version {oldest} on snapshots {listed:?} are listed, not {snapshots}"));
    }
    let pinned = all.iter().map(|(_, it)| it).filter(|it| pinned == Some(Version(it.version as u64)));
    Ok(retained.chain(pinned).flat_map(named).collect())
}

/// Waits until the store holds exactly what is kept, and the topic no announcement that is not needed.
async fn until_cleaned(setting: &Setting, snapshots: usize, pinned: Option<Version>) {
    wait_until_async("the store holds what is kept and nothing else", CLEANED, || {
        std::future::ready(is_cleaned(setting, snapshots, pinned))
    })
    .await;
}

/// Whether the store holds what is kept and nothing else, whatever the topic holds.
fn is_emptied(setting: &Setting, snapshots: usize, pinned: Option<Version>) -> Result<(), String> {
    let kept = kept(setting, snapshots, pinned)?;
    let there = blobs(&store(setting));
    if there != kept {
        let (lost, left): (Vec<_>, Vec<_>) =
            (kept.difference(&there).collect(), there.difference(&kept).collect());
        return Err(format!("missing: {lost:?}; left: {left:?}"));
    }
    Ok(())
}

fn is_cleaned(setting: &Setting, snapshots: usize, pinned: Option<Version>) -> Result<(), String> {
    is_emptied(setting, snapshots, pinned)?;
    let all = announcements(setting);
    let (Some((_, first)), Some((_, newest))) = (all.first(), all.last()) else {
        return Err("no topic".into());
    };
    let oldest = all.iter().find(|(_, it)| it.version == newest.oldest_kept);
    let base = oldest.and_then(|(_, it)| it.snapshot.as_ref()).map_or(0, |snapshot| snapshot.version);
    let goal = pinned.map_or(base + 1, |pinned| (base + 1).min(pinned.0 as i64));
    match first.version == goal {
        true => Ok(()),
        false => Err(format!("the topic begins with version {}, not {goal}", first.version)),
    }
}

/// Rounds of changes, each of which is readable, and listed as a snapshot, before the next comes.
async fn rounds(setting: &mut Setting, consumer: &stillwell::Consumer, numbers: std::ops::Range<i32>) {
    for number in numbers {
        produce(setting, number);
        setting.settled(consumer).await;
        wait_until_async("a snapshot of it is listed", LONG, || std::future::ready(is_listed(setting))).await;
    }
}

/// Whether the newest announcement lists a snapshot of the last change. Not of the newest version, which may be what the
/// consumer holds by now: one that only says that a snapshot is listed, or what is kept, is in no snapshot.
fn is_listed(setting: &Setting) -> Result<(), String> {
    let all = announcements(setting);
    let changed = all.iter().filter(|(_, it)| it.delta.upserts + it.delta.deletes > 0);
    let changed = changed.map(|(_, it)| it.version).max();
    match all.last().and_then(|(_, it)| Some(it.snapshot.as_ref()?.version)) {
        listed if listed >= changed => Ok(()),
        listed => Err(format!("{listed:?} is listed, {changed:?} is the last change")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_snapshots_stay_with_what_follows_and_the_rest_goes() {
    let mut setting = Setting::new("cleaned", 1, SCHEMA);
    // A letter whose value is too large for its topic lies in a blob.
    setting.topic.produce([Record::upsert("large", "x".repeat(1_040_000))]);
    let metrics = ProducerMetrics::detached();
    let producer = builder(&setting, 2, SOON).metrics(metrics.clone()).start().await.expect("it starts");
    let cache = scratch();
    produce(&mut setting, 0);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    // What puts have left that were killed, long ago and just now.
    let some = store(&setting).join(blobs(&store(&setting)).pop_first().expect("a delta"));
    let left = |name: &str, age: Duration| {
        let path = some.with_file_name(name);
        let file = std::fs::File::create(&path).expect("it can be made");
        let made = file.metadata().and_then(|file| file.modified()).expect("it has a time");
        file.set_modified(made - age).expect("its time can be set");
        path
    };
    let day = Duration::from_secs(24 * 60 * 60);
    let (old, new) = (left("torn.index#1", 2 * day), left("torn.index#2", day / 2));
    rounds(&mut setting, &consumer, 1..6).await;
    until_cleaned(&setting, 2, None).await;
    wait_until("what was left long ago is gone", LONG, || match old.exists() {
        true => Err("it is there"),
        false => Ok(()),
    });
    assert!(new.exists(), "it might be under way");
    let cleaned = ["delta", "snapshot", "index"].map(|kind| metrics.cleaned_blobs_total.with(&[kind]).get());
    assert!(cleaned.iter().all(|count| *count > 0), "{cleaned:?}");
    assert!(metrics.cleaned_bytes_total.get() > 0);
    assert_eq!(metrics.clean_failures_total.get(), 0);
    assert!(metrics.oldest_kept_version.get() > 1);
    let letters = stillwell_tests::campaign::blobs::Blobs::new(&store(&setting)).all();
    assert!(
        letters.iter().any(|(name, bytes)| name.ends_with(".letter") && *bytes == 1_040_000),
        "{letters:?}"
    );

    // Who comes now works from what is kept; what is gone is said to be.
    let fresh = scratch();
    let late = setting.consumer(fresh.path()).await;
    setting.settled(&late).await;
    let refused = steering(&setting).pin(&one(Version(1)), "the test", "").await.expect_err("it is gone");
    assert_eq!(refused.kind(), ErrorKind::Rejected);
    assert!(refused.chain().contains("it is not kept any more"), "{}", refused.chain());
    let gone = late.reader().at(Version(1)).await.expect_err("it is gone");
    assert_eq!(gone.kind(), ErrorKind::Rejected);
    let instance = Instance::new(&setting, "beside");
    let shown = instance.run(&["versions", "show"], &["1"]);
    assert!(shown.stderr.contains("it was cleaned"), "{}", shown.stderr);
    let oldest = announcements(&setting).last().expect("some").1.oldest_kept;
    for version in instance.versions() {
        assert_eq!(version["kept"], json!(version["version"].as_i64() >= Some(oldest)), "{version}");
    }
    for consumer in [consumer, late] {
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_holds_its_chain_and_unpinned_it_goes() {
    let mut setting = Setting::new("kept-pin", 1, SCHEMA);
    produce(&mut setting, 0);
    let metrics = ProducerMetrics::detached();
    let producer = builder(&setting, 1, SOON).metrics(metrics.clone()).start().await.expect("it starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    rounds(&mut setting, &consumer, 1..3).await;
    // Not what the reader holds: that may be the version before the one that lists the snapshot, and it is not kept.
    let (newest, held) = (announcements(&setting).pop().expect("some").1.version, setting.model.clone());
    let pinned = Version(newest as u64);
    steering(&setting).pin(&one(pinned), "the test", "").await.expect("it is kept");
    // The readers are pinned: the topic tells how far the writer is.
    for number in 3..7 {
        let before = announcements(&setting).last().expect("some").1.version;
        produce(&mut setting, number);
        wait_until_async("it is in a snapshot", LONG, || {
            let newest = announcements(&setting).pop().expect("some").1;
            let snapshot = newest.snapshot.map_or(0, |snapshot| snapshot.version);
            std::future::ready(if snapshot > before { Ok(()) } else { Err(snapshot) })
        })
        .await;
    }
    until_cleaned(&setting, 1, Some(pinned)).await;
    // A reader without anything opens it from what was spared.
    let fresh = scratch();
    let late = setting.consumer(fresh.path()).await;
    assert_eq!(late.view().version(), pinned);
    assert_eq!(crate::setting::contents(&late.view()), held);
    late.shutdown().await.expect("it stops");
    let listed = Instance::new(&setting, "beside").versions();
    let it = listed.iter().find(|listed| listed["version"] == pinned.0).expect("it is listed");
    assert_eq!((&it["kept"], &it["pinned"]), (&json!(true), &json!(true)));
    let passed =
        listed.iter().find(|listed| listed["version"] == pinned.0 + 1).expect("the topic goes on from it");
    assert_eq!((&passed["kept"], &passed["pinned"]), (&json!(false), &json!(false)));

    // A pin that only a newer release can read may name anything: nothing goes.
    let control = Topic::named_on(Broker::shared(), &format!("{}.control", setting.dataset()));
    let (key, there) = (format!("{}/pin", setting.dataset()), blobs(&store(&setting)));
    control.produce([Record::upsert(key, b"\xc3\x01of a later release")]);
    rounds(&mut setting, &consumer, 7..9).await;
    wait_until_async("the cleaner says that it cannot", CLEANED, || {
        std::future::ready(if metrics.clean_failures_total.get() > 0 { Ok(()) } else { Err("no failure") })
    })
    .await;
    assert_eq!(there.difference(&blobs(&store(&setting))).count(), 0);
    steering(&setting).unpin().await.expect("it can be");
    until_cleaned(&setting, 1, None).await;
    let again = steering(&setting).pin(&one(pinned), "the test", "").await.expect_err("it is gone");
    assert_eq!(again.kind(), ErrorKind::Rejected);
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}

/// Waits until the owner has noted that this version of the shard is pinned.
async fn until_noted(setting: &Setting, pinned: Option<Version>) {
    let dir = setting.data_dir().join("cache");
    wait_until_async("what is pinned is noted", LONG, || {
        let noted = Spared::load(&dir, setting.dataset(), Shard(0)).expect("it can be read");
        std::future::ready(match noted.map(|noted| noted.version) == pinned {
            true => Ok(()),
            false => Err(format!("{noted:?}, not {pinned:?}")),
        })
    })
    .await;
}

/// The control topic may be made anew long before something is to be cleaned: then the note alone knows the pin.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_is_noted_when_it_is_heard_and_at_a_start() {
    let mut setting = Setting::new("noted-pin", 1, SCHEMA);
    produce(&mut setting, 0);
    // Nothing is ever to be cleaned.
    let first = producer(&setting, 3, NEVER).await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let (steering, version) = (steering(&setting), consumer.view().version());
    consumer.shutdown().await.expect("it stops");
    steering.pin(&one(version), "the test", "").await.expect("it is kept");
    until_noted(&setting, Some(version)).await;
    steering.unpin().await.expect("it can be");
    until_noted(&setting, None).await;
    first.shutdown().await.expect("it stops");

    steering.pin(&one(version), "the test", "").await.expect("it is kept");
    let second = producer(&setting, 3, NEVER).await;
    until_noted(&setting, Some(version)).await;
    second.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_trim_deletes_all_the_same_and_without_a_control_topic_nothing_goes() {
    let mut setting = Setting::new("hindered", 1, SCHEMA);
    let beside = |name| Topic::named_on(Broker::shared(), &format!("{}.{name}", setting.dataset()));
    let (topic, control) = (beside("announcements"), beside("control"));
    produce(&mut setting, 0);
    let metrics = ProducerMetrics::detached();
    // Whatever fails for a while is tried again within six seconds (300 times this).
    let soon_again = Reliability { retry_backoff: Duration::from_millis(20), ..Reliability::default() };
    // Otherwise librdkafka keeps it to itself that a topic is gone until it has known it for half a minute.
    let builder = builder(&setting, 1, SOON).kafka_property("topic.metadata.propagation.max.ms", "100");
    let builder = builder.metrics(metrics.clone()).reliability(soon_again);
    let producer = builder.start().await.expect("it starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    rounds(&mut setting, &consumer, 1..3).await;
    until_cleaned(&setting, 1, None).await;

    // Kafka deletes no records of a topic that is compacted; and it does not compact what it writes to.
    topic.set(&[("cleanup.policy", "compact")]);
    let failures = metrics.clean_failures_total.get();
    let begins = announcements(&setting)[0].1.version;
    rounds(&mut setting, &consumer, 3..6).await;
    let is_hindered = |failures: u64| {
        let seen = metrics.clean_failures_total.get();
        if seen > failures { Ok(()) } else { Err(format!("{seen} failures")) }
    };
    wait_until_async("all blobs are gone that are to go, and Kafka has refused", CLEANED, || {
        std::future::ready(is_emptied(&setting, 1, None).and_then(|()| is_hindered(failures)))
    })
    .await;
    assert_eq!(announcements(&setting)[0].1.version, begins, "and trimmed nothing");
    topic.set(&[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")]);
    until_cleaned(&setting, 1, None).await;

    // What was pinned is not known: versions go on, by the same life, and nothing goes.
    let ended = producer.status().failures;
    control.delete();
    wait_until("the control topic is gone", LONG, || match control.partitions() {
        0 => Ok(()),
        seen => Err(seen),
    });
    let (failures, before) = (metrics.clean_failures_total.get(), blobs(&store(&setting)));
    rounds(&mut setting, &consumer, 6..8).await;
    wait_until_async("the cleaner says that it cannot", CLEANED, || {
        std::future::ready(is_hindered(failures))
    })
    .await;
    let lost: Vec<_> = before.difference(&blobs(&store(&setting))).cloned().collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(producer.status().failures, ended, "{:?}", producer.status());
    Topic::create_on(Broker::shared(), control.name(), 1, &[("cleanup.policy", "compact")]);
    until_cleaned(&setting, 1, None).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_life_takes_up_what_was_in_its_grace_and_says_without_a_record_what_it_keeps() {
    let mut setting = Setting::new("regraced", 1, SCHEMA);
    produce(&mut setting, 0);
    let first = producer(&setting, 3, NEVER).await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    rounds(&mut setting, &consumer, 1..6).await;
    first.shutdown().await.expect("it stops");
    let (before, all) = (blobs(&store(&setting)), announcements(&setting));
    assert_eq!(all[0].1.version, 1, "nothing is trimmed in the grace");
    let ever: BTreeSet<String> = all.iter().flat_map(|(_, it)| named(it)).collect();
    assert_eq!(before.difference(&ever).count(), 0);
    assert_eq!(ever.difference(&before).count(), 0, "nothing is deleted in the grace");
    let said = all.last().expect("some").1.oldest_kept;
    assert!(said > 1, "what is kept was said");

    // Fewer are to be kept, and no record comes.
    let second = producer(&setting, 1, SOON).await;
    until_cleaned(&setting, 1, None).await;
    assert!(announcements(&setting).last().expect("some").1.oldest_kept > said);
    setting.settled(&consumer).await;
    second.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
}

fn is_stopped(process: &Running) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    // The state stands behind the name, which ends with the last parenthesis.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_replaced_deletes_nothing() {
    let mut setting = Setting::new("replaced", 1, SCHEMA);
    let old = Instance::new(&setting, "old");
    old.append("[storage]\nkeep_snapshots = 1\nclean_grace = \"100ms\"");
    old.append("[log]\nlevel = \"info,stillwell::producer=debug\"");
    old.append("[producer.performance]\nsnapshot_frequency = 1\nsnapshot_min_change = \"0%\"");
    produce(&mut setting, 0);
    // It has read what is pinned and that it is the owner, and made up its mind.
    let mut command = old.command_to_run(&[]);
    command.env("FAILPOINTS", "clean.confirmed=2*off->1*return(stop)->off");
    let mut zombie = Running::start(&mut command);
    let mut number = 0;
    wait_until("it has stopped", LONG, || {
        number += 1;
        produce(&mut setting, number);
        match is_stopped(&zombie) {
            true => Ok(()),
            false => Err(zombie.stderr()),
        }
    });
    let there = blobs(&store(&setting));

    let next = setting
        .builder()
        .data_dir(setting.dir.path().join("next"))
        .cleaning(Cleaning { keep_snapshots: 1, grace: NEVER })
        .start()
        .await
        .expect("it starts");
    let cache = scratch();
    number += 1;
    produce(&mut setting, number);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    zombie.signal("CONT");
    wait_until("it knows that it was replaced", LONG, || match old.get("/health") {
        Ok((_, health)) if !health.contains(r#""writer":"running""#) => Ok(()),
        other => Err(format!("{other:?}\n{}", zombie.stderr())),
    });
    let lost: Vec<String> = there.difference(&blobs(&store(&setting))).cloned().collect();
    assert!(lost.is_empty(), "{lost:?}\n{}", zombie.stderr());
    zombie.signal("KILL");
    consumer.shutdown().await.expect("it stops");
    next.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_gc_deletes_what_its_dry_run_says_and_leaves_all_else() {
    let mut setting = Setting::new("collected", 1, SCHEMA);
    produce(&mut setting, 0);
    let first = producer(&setting, 1, NEVER).await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    rounds(&mut setting, &consumer, 1..4).await;
    first.shutdown().await.expect("it stops");
    // The second life runs all the time.
    let second = producer(&setting, 1, NEVER).await;
    rounds(&mut setting, &consumer, 4..6).await;

    let store = store(&setting);
    let folder = blobs(&store).pop_first().expect("some");
    let folder = Path::new(&folder).parent().expect("a folder").to_owned();
    let plant = |name: &str| {
        let path = store.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        std::fs::write(&path, "x").expect("it can be written");
        path
    };
    let of_epoch = |epoch: u64| {
        folder.join(format!("{:020}-{epoch}-00000000000000ff.delta.avro", 3)).display().to_string()
    };
    // Of a life that was replaced; of the present one; of one to come.
    let [orphan, present, later] = [1, 2, 3].map(|epoch| plant(&of_epoch(epoch)));
    let others = [
        folder.join("notes.txt").display().to_string(),
        folder.join("products-0-7.letter").display().to_string(),
        format!("other/{}", folder.strip_prefix(setting.dataset()).expect("its own").join("x.bin").display()),
    ];
    let others = others.map(|name| plant(&name));
    // The version that says so is the last: no record comes meanwhile.
    let kept =
        wait_until_async("one snapshot is kept", LONG, || std::future::ready(kept(&setting, 1, None))).await;

    let instance = Instance::new(&setting, "gc");
    let collect = |more: &[&str]| -> Value {
        let done = instance.run(&["blob", "gc"], &[&["--output", "json"], more].concat()).expect_code(0);
        serde_json::from_str(&done.stdout).expect("JSON")
    };
    let within_the_grace = collect(&["--dry-run"]);
    let listed = within_the_grace["blobs"].as_array().expect("a list");
    assert_eq!(listed.len(), 1, "the orphan alone: ten minutes are not over: {within_the_grace}");
    let none = ["--set", "storage.clean_grace=0s"];
    let would = collect(&[&none[..], &["--dry-run"]].concat());
    let before = blobs(&store);
    let done = collect(&none);
    assert_eq!((&would["blobs"], &would["bytes"]), (&done["blobs"], &done["bytes"]));
    assert_eq!((&would["dry_run"], &done["dry_run"]), (&json!(true), &json!(false)));
    let after = blobs(&store);
    let urls: BTreeSet<String> = done["blobs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|gone| gone["url"].as_str().expect("a URL").to_owned())
        .collect();
    let gone: BTreeSet<String> =
        before.difference(&after).map(|name| format!("{}/{name}", setting.blobs())).collect();
    assert_eq!(urls, gone);
    assert!(!orphan.exists() && present.exists() && later.exists(), "{done}");
    assert!(others.iter().all(|path| path.exists()), "{others:?}");
    assert!(kept.is_subset(&after), "{kept:?}");
    assert_eq!(after.difference(&kept).count(), 2, "the two of lives that may announce them: {after:?}");
    assert_eq!((&done["letters"]["blobs"], &done["unknown"]["blobs"]), (&json!(1), &json!(1)), "{done}");
    assert_eq!(done["in_the_making"]["blobs"], json!(2), "{done}");
    assert_eq!(collect(&none)["blobs"], json!([]), "and nothing is left to do");
    let table = instance.run(&["blob", "gc"], &["--dry-run"]).expect_code(0);
    assert!(table.stdout.contains("0 blobs with 0 bytes would be deleted"), "{}", table.stdout);

    // Readers and the writer go on.
    let fresh = scratch();
    let late = setting.consumer(fresh.path()).await;
    rounds(&mut setting, &consumer, 6..8).await;
    setting.settled(&late).await;
    for consumer in [consumer, late] {
        consumer.shutdown().await.expect("it stops");
    }
    second.shutdown().await.expect("it stops");

    // Where the control topic is missing, or lets pins age out, nothing goes, and in the latter case nothing begins.
    let control = Topic::named_on(Broker::shared(), &format!("{}.control", setting.dataset()));
    let before = blobs(&store);
    control.delete();
    wait_until("the control topic is gone", LONG, || match control.partitions() {
        0 => Ok(()),
        seen => Err(seen),
    });
    let refused = |said: &str| {
        let done = instance.run(&["blob", "gc"], &none).expect_code(78);
        assert!(done.stderr.contains("nothing is deleted") && done.stderr.contains(said), "{}", done.stderr);
        assert_eq!(blobs(&store), before);
    };
    refused(control.name());
    Topic::create_on(Broker::shared(), control.name(), 1, &[("cleanup.policy", "compact,delete")]);
    refused(
        "has cleanup.policy=compact,delete, but what is pinned must not age out: set cleanup.policy=compact",
    );
    let mut third = producer(&setting, 1, NEVER).await;
    let ended = tokio::time::timeout(LONG, third.ended()).await.expect("it ends").expect_err("it is refused");
    assert!(ended.chain().contains("set cleanup.policy=compact"), "{}", ended.chain());
    let _ = third.shutdown().await;
}
