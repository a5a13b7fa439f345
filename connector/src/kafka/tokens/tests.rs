use std::sync::mpsc;

use super::stub::{Endpoint, LONG, token};
use super::*;
use crate::ErrorKind;
use crate::kafka::ends::Ends;
use crate::kafka::{Admin, Error, Group, Polled, Poller, Sender, Transaction, Tuning};

/// Milliseconds since the Unix epoch.
const NOW: i64 = 1_800_000_000_000;
/// How long a token lasts, in seconds.
const LIFE: i64 = 10_000;
/// A moment, after which is looked again.
const SOON: Duration = Duration::from_millis(20);

/// What somebody was told: for whom a token is, or why there is none.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Given(String),
    Failed(String),
}

/// Somebody who only listens.
struct Listener {
    told: mpsc::Sender<Told>,
    gone: Mutex<bool>,
}

impl Holder for Listener {
    fn give(&self, token: &Token) -> Result<(), String> {
        self.told.send(Told::Given(token.principal.clone())).map_err(|error| error.to_string())
    }

    fn fail(&self, why: &str) {
        // The test may be over.
        let _ = self.told.send(Told::Failed(why.to_owned()));
    }

    fn is_gone(&self) -> bool {
        *self.gone.lock().unwrap()
    }
}

fn listen(keeper: &Arc<Keeper>) -> (Arc<Listener>, mpsc::Receiver<Told>) {
    let (told, heard) = mpsc::channel();
    let listener = Arc::new(Listener { told, gone: Mutex::new(false) });
    keeper.admit(Arc::clone(&listener) as Arc<dyn Holder>);
    (listener, heard)
}

fn next(heard: &mpsc::Receiver<Told>) -> Told {
    heard.recv_timeout(LONG).expect("somebody is told something")
}

/// A token that lasts from some seconds after [`NOW`] on.
fn lasting(name: &str, from: i64) -> stub::Answer {
    token(name, NOW / 1_000 + from + LIFE)
}

fn deadline() -> Instant {
    Clock::system().now() + LONG
}

/// Lets a second pass, again and again, until the endpoint is asked.
fn until_asked(endpoint: &Endpoint, keeper: &Keeper) {
    let deadline = deadline();
    while endpoint.next(SOON).is_none() {
        assert!(
            Clock::system().now() < deadline,
            "nothing is asked {} ms after {NOW}",
            keeper.clock.wall_ms() - NOW
        );
        keeper.clock.advance(Duration::from_secs(1));
        keeper.woken.notify_one();
    }
}

fn ending(ends_ms: i64) -> Token {
    Token { value: String::new(), principal: String::new(), ends_ms, extensions: Vec::new() }
}

/// So long after [`NOW`], by a clock that nobody sets.
fn later(start: Moment, passed: Duration) -> Moment {
    Moment { at: start.at + passed, wall_ms: start.wall_ms + passed.as_millis() as i64 }
}

#[test]
fn a_token_is_renewed_at_four_fifths_of_its_life_and_a_failure_is_tried_again_ever_more_rarely() {
    let entropy = Entropy::seeded(7);
    let start = Moment::of(&Clock::manual(NOW));
    let after = |ms| later(start, Duration::from_millis(ms));
    let mut schedule = Schedule::new();
    assert_eq!(
        (schedule.due_in(start), schedule.good(start).is_some()),
        (Duration::ZERO, false),
        "the first is due at once"
    );
    schedule.got(ending(NOW + 20_000), start);
    assert_eq!(schedule.due_in(start), Duration::from_secs(16));
    assert_eq!(schedule.due_in(after(16_000)), Duration::ZERO);
    assert!(schedule.good(after(18_999)).is_some() && schedule.good(after(19_000)).is_none());
    // While it fails the one that is there stays, and the waits double, each by chance in its upper half.
    let mut now = after(16_000);
    for longest in [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000] {
        schedule.failed("no".to_owned(), now, &entropy);
        let wait = schedule.due_in(now);
        let ms = wait.as_millis() as i64;
        assert!((longest / 2..=longest).contains(&ms), "{ms} of {longest}");
        assert_eq!(schedule.why(now), Some("no"));
        assert_eq!(schedule.good(now).is_some(), now.wall_ms < NOW + 19_000);
        now = later(now, wait);
        assert_eq!(schedule.why(now), None, "it is asked again before somebody is told");
    }
    schedule.got(ending(now.wall_ms + 100), now);
    assert_eq!(
        (schedule.due_in(now), schedule.failures()),
        (SOONEST, 0),
        "not more often than once a second"
    );
    schedule.got(ending(i64::MAX), now);
    assert!(schedule.due_in(now) > Duration::from_secs(1 << 40), "and no end is too far");
}

#[test]
fn a_wall_clock_that_is_set_puts_off_no_request() {
    let entropy = Entropy::seeded(7);
    let start = Moment::of(&Clock::manual(NOW));
    let set = |now: Moment, by_ms: i64| Moment { wall_ms: now.wall_ms + by_ms, ..now };
    let day = 86_400_000;
    let mut schedule = Schedule::new();
    schedule.failed("no".to_owned(), start, &entropy);
    assert!(schedule.due_in(start) > Duration::ZERO);
    // Set back, and on: it waits as long as it would have.
    for by in [-day, day] {
        assert_eq!(schedule.due_in(set(start, by)), schedule.due_in(start), "{by}");
        let then = set(later(start, AGAIN.0), by);
        assert_eq!((schedule.due_in(then), schedule.why(then)), (Duration::ZERO, None), "{by}");
    }
    // Nor does it put off that a token is renewed; one that has ended since the clock was set on is renewed at once.
    schedule.got(ending(NOW + 20_000), start);
    let four_fifths = later(start, Duration::from_secs(16));
    assert_eq!(schedule.due_in(set(four_fifths, -day)), Duration::ZERO);
    assert_eq!(schedule.due_in(set(start, day)), Duration::ZERO);
    assert_eq!(schedule.due_in(set(start, 1_000)), Duration::from_secs(15));
}

#[test]
fn many_clients_cost_one_request() {
    let endpoint = Endpoint::start(lasting("first", 0));
    let keeper = Arc::new(Keeper::new(endpoint.given(&[]), Clock::manual(NOW)));
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(|| listen(&keeper))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (_, heard) in &together {
        assert_eq!(next(heard), Told::Given("first".to_owned()));
    }
    let later = listen(&keeper);
    assert_eq!(next(&later.1), Told::Given("first".to_owned()));
    assert!(endpoint.next(LONG).is_some());
    assert_eq!(endpoint.next(Duration::ZERO), None, "one request");
    // Whoever is told nothing more has nothing more to do.
    assert!(together.iter().all(|(_, heard)| heard.try_recv().is_err()));
}

#[test]
fn an_endpoint_that_fails_takes_no_token_away_before_its_end() {
    let endpoint = Endpoint::start(lasting("first", 0));
    let keeper = Arc::new(Keeper::new(endpoint.given(&[]), Clock::manual(NOW)));
    let (_listener, heard) = listen(&keeper);
    assert_eq!(next(&heard), Told::Given("first".to_owned()));
    assert!(endpoint.next(LONG).is_some());

    // From four fifths on it is asked, fails, and is asked again.
    endpoint.answers((503, "busy".to_owned()));
    keeper.clock.advance(Duration::from_secs((LIFE * RENEWED_AT / 100) as u64));
    keeper.woken.notify_one();
    assert!(endpoint.next(LONG).is_some());
    endpoint.answers(lasting("second", LIFE));
    until_asked(&endpoint, &keeper);
    assert!(keeper.clock.wall_ms() < NOW + LIFE * 1_000, "this machine is too busy to tell");
    // Had anybody been told that it failed, that came first.
    assert_eq!(next(&heard), Told::Given("second".to_owned()));

    // Once it has ended, everybody is told, also who comes then.
    endpoint.answers((503, "busy".to_owned()));
    keeper.clock.advance(Duration::from_secs(2 * LIFE as u64));
    keeper.woken.notify_one();
    let why = loop {
        match next(&heard) {
            // At its end nobody had been asked yet.
            Told::Failed(why) if why.ends_with("/oauth2/token: no answer yet") => {}
            Told::Failed(why) => break why,
            Told::Given(name) => panic!("there is no token, but {name}"),
        }
    };
    assert!(why.ends_with("/oauth2/token: it answered 503: busy"), "{why}");
    let (_late, told_late) = listen(&keeper);
    endpoint.answers(lasting("third", 4 * LIFE));
    let last = |heard: &mpsc::Receiver<Told>| {
        let deadline = deadline();
        loop {
            keeper.clock.advance(Duration::from_secs(1));
            keeper.woken.notify_one();
            match heard.recv_timeout(SOON) {
                Ok(Told::Given(name)) => return name,
                other => assert!(Clock::system().now() < deadline, "no token yet: {other:?}"),
            }
        }
    };
    assert_eq!([last(&heard), last(&told_late)], ["third", "third"]);
}

/// Brokers refuse it from then on, while the endpoint may be asked much later, and let that wait.
#[test]
fn that_a_token_has_ended_is_said_at_its_end() {
    let endpoint = Endpoint::start(lasting("first", 0));
    let keeper = Arc::new(Keeper::new(endpoint.given(&[]), Clock::manual(NOW)));
    let (_listener, heard) = listen(&keeper);
    assert_eq!(next(&heard), Told::Given("first".to_owned()));
    assert!(endpoint.next(LONG).is_some());
    endpoint.answers((503, "busy".to_owned()));
    keeper.clock.advance(Duration::from_secs((LIFE * RENEWED_AT / 100) as u64));
    keeper.woken.notify_one();
    let deadline = deadline();
    while keeper.state().schedule.why.is_none() {
        assert!(Clock::system().now() < deadline, "it has not failed yet");
        std::thread::park_timeout(SOON);
    }
    assert!(heard.try_recv().is_err(), "the token lasts");
    // From now on each request takes seconds, and would be told in words of its own.
    endpoint.answers((stub::SILENCE, String::new()));
    keeper.clock.advance(Duration::from_secs((LIFE - LIFE * RENEWED_AT / 100) as u64) - AHEAD);
    keeper.woken.notify_one();
    let Told::Failed(why) = next(&heard) else { panic!("there is no token") };
    assert!(why.ends_with("it answered 503: busy"), "{why}");
}

#[test]
fn the_end_of_a_token_is_said_once_whether_or_not_it_is_known_why_there_is_no_other() {
    let endpoint = Endpoint::start(lasting("first", 0));
    let keeper = Keeper::new(endpoint.given(&[]), Clock::manual(NOW));
    let start = Moment::of(&keeper.clock);
    let after = |ms| later(start, Duration::from_millis(ms));
    let (told, heard) = mpsc::channel();
    let mut state = keeper.state();
    assert_eq!(keeper.look(&mut state, start), None, "nobody is there");
    state.holders.push(Arc::new(Listener { told, gone: Mutex::new(false) }));
    assert_eq!(keeper.look(&mut state, start), Some(LONGEST_WAIT));
    for why in ["no answer yet", "it answered 503"] {
        state.schedule.got(ending(NOW + 20_000), start);
        if why != "no answer yet" {
            state.schedule.failed(why.to_owned(), start, &keeper.entropy);
        }
        assert_eq!(keeper.look(&mut state, after(18_000)), Some(Duration::from_secs(1)));
        assert!(heard.try_recv().is_err(), "it lasts");
        for _ in 0..2 {
            assert_eq!(keeper.look(&mut state, after(19_000)), Some(LONGEST_WAIT));
        }
        let said = heard.try_recv();
        assert!(matches!(&said, Ok(Told::Failed(said)) if said.ends_with(why)), "{said:?}");
        assert!(heard.try_recv().is_err(), "it is said once");
    }
}

#[test]
fn the_thread_ends_with_who_needs_it_and_the_token_stays() {
    let endpoint = Endpoint::start(lasting("first", 0));
    let keeper = Arc::new(Keeper::new(endpoint.given(&[]), Clock::manual(NOW)));
    let ended = || {
        let deadline = deadline();
        while keeper.state().runs {
            assert!(Clock::system().now() < deadline, "its thread still runs");
            std::thread::park_timeout(SOON);
        }
    };
    for _ in 0..2 {
        let (listener, heard) = listen(&keeper);
        assert_eq!(next(&heard), Told::Given("first".to_owned()));
        *listener.gone.lock().unwrap() = true;
        keeper.left();
        ended();
    }
    assert!(endpoint.next(LONG).is_some());
    assert_eq!(endpoint.next(Duration::ZERO), None, "the token was there");

    // Also out of the middle of a request.
    let silent = Endpoint::start((stub::SILENCE, String::new()));
    let keeper = Arc::new(Keeper::new(silent.given(&[]), Clock::manual(NOW)));
    let (listener, heard) = listen(&keeper);
    assert!(silent.next(LONG).is_some());
    *listener.gone.lock().unwrap() = true;
    keeper.left();
    let deadline = deadline();
    while keeper.state().runs {
        assert!(Clock::system().now() < deadline, "its thread still runs");
        std::thread::park_timeout(SOON);
    }
    assert!(heard.try_recv().is_err());
}

fn options(endpoint: &Endpoint) -> Options {
    // Nobody listens on port 1.
    let bootstrap_servers = "127.0.0.1:1".to_owned();
    Options { bootstrap_servers, properties: endpoint.properties(), ..Options::default() }
}

/// What a poller says of Kafka as a whole first.
fn trouble(poller: &mut Poller) -> Error {
    let deadline = deadline();
    loop {
        match poller.poll(Duration::from_millis(100)) {
            Some(Polled::Error(error)) => return error,
            Some(_) => panic!("nobody is there to read from"),
            None => assert!(Clock::system().now() < deadline, "nothing is said"),
        }
    }
}

fn now_seconds() -> i64 {
    Clock::system().wall_ms() / 1_000
}

/// With a token librdkafka tries its brokers, without one it does not.
#[test]
fn clients_of_all_kinds_get_one_token_and_go_in_any_order() {
    let endpoint = Endpoint::start(token("me", now_seconds() + 86_400));
    let options = options(&endpoint);
    let mut poller = Poller::new(&options, &Tuning::source("group", 1 << 20)).unwrap();
    let admin = Admin::new(&options).unwrap();
    let ends = Ends::new(&options, "group").unwrap();
    let group = Group::new(&options, "group").unwrap();
    let sender = Sender::new(&options.clone()).unwrap();
    let transaction = Transaction::new(&options, "id", Clock::system()).unwrap();
    let error = trouble(&mut poller);
    assert!(error.is_transient(), "{error}");
    let why = options.reach.why().unwrap_or_default() + &error.to_string();
    assert!(!why.contains("token") && why.contains("roker"), "{why}");
    drop((group, transaction, admin));
    drop(poller);
    drop((sender, ends));
    assert!(endpoint.next(LONG).is_some());
    assert_eq!(endpoint.next(Duration::ZERO), None, "one request for all");
}

#[test]
fn without_a_token_kafka_is_away_and_it_says_why() {
    let refusal = r#"{"error": "invalid_client"}"#.to_owned();
    let endpoint = Endpoint::start((401, refusal));
    let options = options(&endpoint);
    let mut poller = Poller::new(&options, &Tuning::source("group", 1 << 20)).unwrap();
    let error = trouble(&mut poller);
    assert_eq!((error.is_transient(), error.kind()), (true, ErrorKind::Unavailable), "{error}");
    let why = options.reach.why().expect("Kafka is away");
    for said in [error.to_string(), why] {
        assert!(said.contains("it answered 401: invalid_client"), "{said}");
        assert!(said.contains("check sasl.oauthbearer.token.endpoint.url"), "{said}");
        assert!(!said.contains(stub::SECRET), "{said}");
    }
    // Once it gives one, brokers are tried.
    endpoint.answers(token("me", now_seconds() + 86_400));
    let deadline = deadline();
    loop {
        let error = trouble(&mut poller).to_string();
        if !error.contains("token") {
            break;
        }
        assert!(Clock::system().now() < deadline, "{error}");
    }
}

#[test]
fn what_cannot_be_right_is_said_before_a_client_is_made() {
    let endpoint = Endpoint::start((401, String::new()));
    let mut options = options(&endpoint);
    options.properties.remove("sasl.oauthbearer.client.id");
    let error = Admin::new(&options).err().expect("there is no id");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("sasl.oauthbearer.client.id"), "{error}");
    assert_eq!(endpoint.next(Duration::ZERO), None, "nobody is asked");
}
