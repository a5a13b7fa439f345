//! The campaign of `make faults`: scenes one after the other, several at a time, for as long as `FAULTS_FOR` says, or until all of them
//! were played (`FAULTS_FOR=all`, hours).
//!
//! First every failpoint alone, every zombie and every fault of the world; then every pair of failpoints, and kills at
//! any moment between them; all of it in the order that the seed gives. `FAULTS_SCENE=name:seed` repeats one scene.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use stillwell::clock::Clock;
use stillwell::failpoint::ALL;
use stillwell_tests::campaign::{CHECKS, Chance, Tally, seed};

use crate::scenes::{self, Outcome, ZOMBIES};

/// Pairs of failpoints in a scene, and failpoints alone.
const IN_A_SCENE: usize = 4;

/// Kinds of zombies: until another has written, or for longer than a transaction lives.
const ZOMBIE: &str = "zombie";
const ZOMBIE_LONG: &str = "zombie-long";

/// What a scene does, from its seed.
type Act = Box<dyn Fn(u64) -> Outcome + Send>;

/// A scene to come.
struct Scene {
    name: String,
    act: Act,
}

fn scene(name: impl Into<String>, act: impl Fn(u64) -> Outcome + Send + 'static) -> Scene {
    Scene { name: name.into(), act: Box::new(act) }
}

/// Every scene that must be played once.
fn once() -> Vec<Scene> {
    let mut scenes = vec![
        scene("killed", scenes::killed),
        scene("failed", scenes::failed),
        scene("left-open", scenes::left_open),
        scene("there-and-back", scenes::there_and_back),
        scene("storm", scenes::storm),
        scene("broker", scenes::broker),
        scene("network", scenes::network),
        scene("store", scenes::store),
        scene("flood", scenes::flood),
        scene("damaged", scenes::damaged),
        scene("full", scenes::full),
        scene("broken", scenes::broken),
        scene("clocks", scenes::clocks),
        scene("cleaned", scenes::cleaned),
    ];
    for points in ALL.chunks(IN_A_SCENE) {
        scenes.push(scene(format!("singles/{}", points.join("+")), |seed| scenes::singles(seed, points)));
    }
    for (at, point) in ZOMBIES.iter().enumerate() {
        // Who stands still in a takeover, or with all of a transaction sent, is a danger once Kafka has given it up, and else
        // only slow.
        let long = at % 3 == 0 || point.starts_with("takeover.") || *point == "announce.announcements";
        scenes.push(zombie(point, long));
    }
    scenes
}

/// A zombie at `point`; its name says whether it is a long one, so that it can be repeated as it was.
fn zombie(point: &'static str, long: bool) -> Scene {
    let kind = if long { ZOMBIE_LONG } else { ZOMBIE };
    scene(format!("{kind}/{point}"), move |seed| scenes::zombie(seed, point, long))
}

/// Every pair of failpoints, and kills between them.
fn pairs(chance: &Chance) -> Vec<Scene> {
    let mut pairs = scenes::all_pairs();
    shuffle(&mut pairs, chance);
    let mut scenes = Vec::new();
    for (at, chunk) in pairs.chunks(IN_A_SCENE).enumerate() {
        let chunk = chunk.to_vec();
        let names: Vec<String> = chunk.iter().map(|pair| pair.join(",")).collect();
        scenes.push(scene(format!("pairs/{}", names.join("+")), move |seed| scenes::pairs(seed, &chunk)));
        scenes.extend(match at % 13 {
            0 => Some(scene("broken", scenes::broken)),
            1 | 4 | 9 => Some(scene("killed", scenes::killed)),
            2 => Some(scene("storm", scenes::storm)),
            3 => Some(scene("failed", scenes::failed)),
            5 => Some(scene("there-and-back", scenes::there_and_back)),
            6 => Some(scene("store", scenes::store)),
            7 => Some(scene("network", scenes::network)),
            8 => Some(scene("damaged", scenes::damaged)),
            10 => Some(scene("clocks", scenes::clocks)),
            11 => {
                let point = *chance.pick(&ZOMBIES);
                Some(zombie(point, chance.one_in(2)))
            }
            12 => Some(scene("cleaned", scenes::cleaned)),
            _ => None,
        });
    }
    scenes
}

/// The scene called `name`, with its points where it has some.
fn named(name: &str) -> Option<Scene> {
    let (kind, rest) = name.split_once('/').unwrap_or((name, ""));
    let known = |point: &str| ALL.iter().find(|known| **known == point).copied();
    match kind {
        "pairs" => {
            let pair = |text: &str| {
                let (first, second) = text.split_once(',')?;
                Some([known(first)?, known(second)?])
            };
            let pairs: Vec<[&str; 2]> = rest.split('+').map(pair).collect::<Option<_>>()?;
            Some(scene(name, move |seed| scenes::pairs(seed, &pairs)))
        }
        "singles" => {
            let points: Vec<&str> = rest.split('+').map(known).collect::<Option<_>>()?;
            Some(scene(name, move |seed| scenes::singles(seed, &points)))
        }
        ZOMBIE | ZOMBIE_LONG => {
            let point = ZOMBIES.iter().find(|known| **known == rest)?;
            Some(zombie(point, kind == ZOMBIE_LONG))
        }
        _ => once().into_iter().find(|scene| scene.name == name),
    }
}

fn shuffle<T>(items: &mut [T], chance: &Chance) {
    for at in (1..items.len()).rev() {
        items.swap(at, chance.below(at as u64 + 1) as usize);
    }
}

#[derive(Default)]
struct Totals {
    pairs: u64,
    tally: Tally,
    /// By the first word of a scene's name.
    families: BTreeMap<String, Family>,
    failed: Vec<String>,
}

/// Scenes of one kind.
#[derive(Default)]
struct Family {
    runs: u64,
    failed: u64,
    faults: u64,
    kills: u64,
    checks: u64,
    took: Duration,
}

fn family(name: &str) -> String {
    name.split('/').next().unwrap_or(name).to_owned()
}

impl Totals {
    fn family(&mut self, name: &str) -> &mut Family {
        self.families.entry(family(name)).or_default()
    }

    fn runs(&self) -> u64 {
        self.families.values().map(|family| family.runs).sum()
    }

    /// A line for each family, those that were never played too.
    fn print(&self) {
        println!(
            "  {:14} {:>5} {:>6} {:>6} {:>5} {:>7}  each",
            "family", "runs", "failed", "faults", "kills", "checks"
        );
        for (name, Family { runs, failed, faults, kills, checks, took }) in &self.families {
            let each = took.checked_div(u32::try_from(*runs).unwrap_or(u32::MAX)).unwrap_or_default();
            println!("  {name:14} {runs:>5} {failed:>6} {faults:>6} {kills:>5} {checks:>7}  {each:.1?}");
        }
        let unplayed: Vec<&str> = self
            .families
            .iter()
            .filter(|(_, family)| family.runs == 0)
            .map(|(name, _)| name.as_str())
            .collect();
        if !unplayed.is_empty() {
            println!("  too short a time for {}", unplayed.join(", "));
        }
    }
}

/// A scene to play and its seed, one at a time.
struct Deck {
    chance: Chance,
    scenes: VecDeque<Scene>,
    /// Pairs were dealt.
    dealt: bool,
    /// When it is over; `None`: once all were played.
    end: Option<Instant>,
}

impl Deck {
    fn draw(&mut self, now: Instant) -> Option<(Scene, u64)> {
        if self.end.is_some_and(|end| now >= end) {
            return None;
        }
        if self.scenes.is_empty() && (self.end.is_some() || !self.dealt) {
            self.scenes = pairs(&self.chance).into();
            self.dealt = true;
        }
        Some((self.scenes.pop_front()?, self.chance.next_seed()))
    }
}

#[test]
fn every_scene_is_found_again_by_its_name() {
    let zombies = ZOMBIES.iter().flat_map(|point| [false, true].map(|long| zombie(point, long)));
    let mut names = BTreeSet::new();
    for Scene { name, .. } in once().into_iter().chain(zombies).chain(pairs(&Chance::seeded(1))) {
        let found = named(&name).unwrap_or_else(|| panic!("there is no scene {name}"));
        assert_eq!(found.name, name);
        names.insert(name);
    }
    for kind in [ZOMBIE, ZOMBIE_LONG] {
        let of_kind = names.iter().filter(|name| family(name) == kind).count();
        assert_eq!(of_kind, ZOMBIES.len(), "a short and a long one have two names: {names:?}");
    }
    assert!(named("zombie/nowhere").is_none());
}

#[test]
#[ignore = "takes as long as FAULTS_FOR says: make faults"]
fn campaign() {
    if let Ok(text) = std::env::var("FAULTS_SCENE") {
        let (name, seed) = text.rsplit_once(':').expect("FAULTS_SCENE is name:seed");
        let scene = named(name).unwrap_or_else(|| panic!("there is no scene {name}"));
        match (scene.act)(seed.parse().expect("FAULTS_SCENE is name:seed")) {
            Ok(tally) => println!("{text}: {tally}"),
            Err(violation) => panic!("FAULTS_SCENE={text}: {violation}"),
        }
        return;
    }
    let clock = Clock::system();
    let seed = seed();
    let (length, began) = (length(), clock.now());
    let words = length.map_or("until all were played".to_owned(), |length| format!("for {length:?}"));
    println!("STILLWELL_SEED={seed}, {words}");
    let chance = Chance::seeded(seed);
    let mut first = once();
    shuffle(&mut first, &chance);
    let mut totals = Totals::default();
    for scene in first.iter().map(|scene| scene.name.as_str()).chain(["pairs"]) {
        totals.family(scene);
    }
    let end = length.map(|length| began + length);
    let deck = Mutex::new(Deck { chance, scenes: first.into(), dealt: false, end });
    let totals = Mutex::new(totals);
    // A scene waits for most of its time: for batches, groups, and grace.
    let at_a_time =
        std::thread::available_parallelism().map_or(2, |processors| processors.get() * 3 / 2).max(2);
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| play(&deck, &totals, &clock));
        }
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    let pairs = scenes::all_pairs().len();
    println!(
        "{} runs with {} faults, {} kills and {} checks, {} of {pairs} pairs of failpoints, in {:.0?}",
        totals.runs(),
        totals.tally.faults,
        totals.tally.kills,
        totals.tally.checks.iter().sum::<u64>(),
        totals.pairs.min(pairs as u64),
        clock.now() - began
    );
    println!("{}", totals.tally);
    totals.print();
    for (at, check) in CHECKS.iter().enumerate() {
        println!("  {:2}. {check}: {} times", at + 1, totals.tally.checks.get(at + 1).copied().unwrap_or(0));
    }
    if totals.tally.stretched > 0 {
        println!(
            "  {} of 9 took longer by the clock: others had the machine, or the disk",
            totals.tally.stretched
        );
    }
    match totals.failed.first() {
        None => println!("nothing failed"),
        Some(first) => {
            let count = totals.failed.len();
            panic!("{count} runs failed (STILLWELL_SEED={seed}), the first of them:\n{first}");
        }
    }
}

/// Plays scenes until there are no more.
fn play(deck: &Mutex<Deck>, totals: &Mutex<Totals>, clock: &Clock) {
    loop {
        let began = clock.now();
        // Not held while it is played.
        let drawn = deck.lock().unwrap_or_else(PoisonError::into_inner).draw(began);
        let Some((scene, seed)) = drawn else { return };
        let outcome = catch_unwind(AssertUnwindSafe(|| (scene.act)(seed)));
        let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
        let about = format!("{}:{seed}", scene.name);
        let took = clock.now() - began;
        let family = totals.family(&scene.name);
        family.runs += 1;
        family.took += took;
        let failure = match outcome {
            Ok(Ok(tally)) => {
                println!("{about}: {} faults, {} kills in {took:.1?}", tally.faults, tally.kills);
                family.faults += tally.faults;
                family.kills += tally.kills;
                family.checks += tally.checks.iter().sum::<u64>();
                totals.tally.add(&tally);
                totals.pairs +=
                    if about.starts_with("pairs/") { about.matches(',').count() as u64 } else { 0 };
                continue;
            }
            Ok(Err(violation)) => violation.to_string(),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                    .unwrap_or_default()
            }
        };
        totals.family(&scene.name).failed += 1;
        println!("FAILED FAULTS_SCENE='{about}' after {took:.1?}: {failure}");
        totals.failed.push(format!("FAULTS_SCENE='{about}': {failure}"));
    }
}

/// `FAULTS_FOR`: a number with `s`, `m` or `h` behind it, or `all`, for which there is `None`; five minutes.
fn length() -> Option<Duration> {
    let Ok(text) = std::env::var("FAULTS_FOR") else { return Some(Duration::from_secs(5 * 60)) };
    if text == "all" {
        return None;
    }
    let units = [('s', 1), ('m', 60), ('h', 3600)];
    let parsed = units.iter().find_map(|(unit, seconds)| {
        Some(Duration::from_secs(text.strip_suffix(*unit)?.parse::<u64>().ok()? * seconds))
    });
    Some(parsed.unwrap_or_else(|| panic!("FAULTS_FOR is like 30s, 30m, 2h or all, not {text:?}")))
}
