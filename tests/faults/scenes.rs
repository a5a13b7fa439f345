//! Scenes: each from its seed, each to its end.

use std::time::Duration;

use stillwell::failpoint::ALL;
use stillwell_tests::campaign::store::FLOODED;
use stillwell_tests::campaign::{Chance, Plan, Scene, Tally, Violation};
use stillwell_tests::{Broker, TOXICS, Toxic};

/// How a scene ends: what was done and what was checked, or the promise that was broken.
pub type Outcome = Result<Tally, Violation>;

/// Steps at which a writer becomes a zombie: those of taking over, and those between a transaction's begin and its end
/// being known.
pub const ZOMBIES: [&str; 12] = [
    "takeover.fenced",
    "takeover.epoch",
    "takeover.begun",
    "takeover.view",
    "takeover.log",
    "announce.begin",
    "announce.offsets",
    "announce.announcements",
    "announce.committed",
    "store.put",
    "clean.confirmed",
    "clean.delete",
];

/// Steps that can fail.
pub const FAILING: [&str; 17] = [
    "log.append",
    "log.synced",
    "store.put",
    "announce.begin",
    "announce.letters",
    "announce.offsets",
    "announce.announcements",
    "announce.committed",
    "takeover.fenced",
    "takeover.epoch",
    "takeover.begun",
    "takeover.view",
    "takeover.log",
    "clean.confirmed",
    "clean.delete",
    "clean.deleted",
    "clean.trimmed",
];

/// SIGKILL to either side, with parts of the disk gone now and then.
pub fn killed(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    for _ in 0..12 {
        match scene.chance.below(8) {
            0 => scene.disk_lost()?,
            1 => scene.reader_killed()?,
            _ => scene.killed()?,
        }
    }
    scene.finish()
}

/// Death at each pair of failpoints.
pub fn pairs(seed: u64, pairs: &[[&str; 2]]) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    for pair in pairs {
        scene.died_at(pair)?;
    }
    scene.finish()
}

/// Death at each failpoint alone.
pub fn singles(seed: u64, points: &[&str]) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    for point in points {
        scene.died_at(&[point])?;
    }
    scene.finish()
}

/// Death with a version in a transaction that nobody ends.
pub fn left_open(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    for _ in 0..3 {
        scene.left_open()?;
    }
    scene.finish()
}

/// Steps that fail.
pub fn failed(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    for _ in 0..6 {
        let point = *scene.chance.pick(&FAILING);
        scene.failed_at(point)?;
    }
    scene.finish()
}

/// A zombie at `point`, given up for a while or for longer than a transaction lives.
pub fn zombie(seed: u64, point: &str, long: bool) -> Outcome {
    let plan = Plan::new(seed).writers(2);
    // While a long one stands still nobody reads the source for half a minute. Whoever comes then has no log, and no more time
    // for all that waits than a fresh record has.
    let rate = if long { plan.rate / 2 } else { plan.rate };
    let mut scene = Scene::set(Broker::shared(), &Plan { rate, ..plan })?;
    scene.stopped_at(point, long)?;
    scene.finish()
}

/// The shard goes from A to B and back.
pub fn there_and_back(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed).writers(2))?;
    scene.there_and_back()?;
    scene.finish()
}

/// The cleaner keeps one snapshot, with hardly any grace, and its writer dies in the midst of it, again and again; so does
/// the reader, or it stands still until what it was about to read is gone.
pub fn cleaned(seed: u64) -> Outcome {
    // Few records, in many versions, which a slow machine can keep up with; and a grace in which a reader can open what it
    // has read of. Without any, snapshots every half second were gone before a reader on a busy machine had them, ever again.
    let plan = Plan { cleaning: Some([1, 2_000]), rate: 200, batch: [20, 80], ..Plan::new(seed) };
    let mut scene = Scene::set(Broker::shared(), &plan)?;
    for _ in 0..6 {
        match scene.chance.below(6) {
            0 => scene.reader_killed()?,
            1 => scene.reader_stopped()?,
            2 => scene.killed()?,
            3 => scene.disk_lost()?,
            _ => {
                let points = ["clean.confirmed", "clean.delete", "clean.deleted", "clean.trimmed"];
                let [first, second] = [*scene.chance.pick(&points), *scene.chance.pick(&points)];
                scene.died_at(&[first, second])?;
            }
        }
    }
    scene.finish()
}

/// Members come and go.
pub fn storm(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed).writers(3))?;
    for _ in 0..3 {
        scene.storm(4)?;
    }
    scene.finish()
}

/// The broker is killed, or frozen, and comes back.
pub fn broker(seed: u64) -> Outcome {
    let mut broker = Broker::own();
    let mut scene = Scene::set(&broker, &Plan::new(seed))?;
    for frozen in [false, true] {
        scene.after_records(scene.chance.between(1, 400));
        scene.fault();
        let away = Duration::from_millis(scene.chance.between(500, 4_000));
        if frozen {
            broker.freeze();
            scene.wait(away);
            broker.thaw();
        } else {
            broker.stop();
            scene.oracle.tally.kills += 1;
            scene.wait(away);
            broker.restart();
        }
        let now = scene.clock().now();
        scene.settle(now)?;
    }
    scene.finish()
}

/// Each toxic for some seconds, between the writer and the broker; half of the time between the reader and the broker too.
pub fn network(seed: u64) -> Outcome {
    let chance = Chance::seeded(seed ^ 1);
    let both = chance.one_in(2);
    let (broker, proxy) = Broker::own_behind_proxy(chance);
    let proxied = format!("127.0.0.1:{}", proxy.port());
    let readers_servers = both.then(|| proxied.clone());
    let plan = Plan { writers_servers: Some(proxied), readers_servers, ..Plan::new(seed) };
    let mut scene = Scene::set(&broker, &plan)?;
    for toxic in TOXICS {
        scene.after_records(scene.chance.between(1, 400));
        scene.fault();
        proxy.set(toxic);
        scene.wait(Duration::from_millis(scene.chance.between(1_000, 5_000)));
        proxy.set(Toxic::Pass);
        let now = scene.clock().now();
        scene.settle(now)?;
    }
    scene.finish()
}

/// The store is away, and comes back; it is slow; it has lost a blob that is needed, and has it in other bytes.
pub fn store(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    scene.store_away()?;
    scene.store_slow()?;
    for wrong in [false, true] {
        scene.store_spoilt(wrong)?;
    }
    scene.finish()
}

/// The store is away while more comes than queue and log hold.
pub fn flood(seed: u64) -> Outcome {
    let plan = Plan { batch: [100, 400], max_log: FLOODED, ..Plan::new(seed) };
    let mut scene = Scene::set(Broker::shared(), &plan)?;
    scene.flooded()?;
    scene.finish()
}

/// What lies on the writer's disk is damaged while it is down.
pub fn damaged(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    for _ in 0..8 {
        let part = *scene.chance.pick(&["log", "log", "cache"]);
        scene.disk_damaged(part)?;
    }
    scene.finish()
}

/// The disk under the log is full for a while.
pub fn full(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    if !scene.disk_full()? {
        println!("not allowed to mount: no disk was filled");
    }
    scene.finish()
}

/// The disk under the log breaks.
pub fn broken(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    if !scene.disk_broken()? {
        println!("not allowed to mount, or without the tools to: no disk broke");
    }
    scene.finish()
}

/// Wall clocks go wrong by an hour.
pub fn clocks(seed: u64) -> Outcome {
    let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
    scene.clock_jumps()?;
    scene.finish()
}

/// All pairs of failpoints.
pub fn all_pairs() -> Vec<[&'static str; 2]> {
    ALL.iter().flat_map(|first| ALL.iter().map(move |second| [*first, *second])).collect()
}
