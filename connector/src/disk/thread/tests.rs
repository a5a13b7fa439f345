use super::*;
use crate::clock::Clock;
use crate::format::chunk::{Body, ChunkBuilder};

fn chunk(bytes: usize) -> Chunk {
    let source =
        crate::record::SourcePartition { topic: "t".into(), topic_id: Default::default(), partition: 0 };
    let mut builder = ChunkBuilder::new();
    let slot = builder.slot(&source, 0);
    builder.push(slot, 0, 0, Body::Upsert { key: b"k", value: &vec![7; bytes] });
    builder.finish()
}

fn push(writer: &Writer, bytes: usize) -> Result<u64, PushError> {
    writer.push(chunk(bytes), 0, Clock::system().now())
}

/// A disk that does as it is told: each commit waits for an order.
struct Ordered {
    orders: mpsc::Receiver<Order>,
    /// The numbers of each commit.
    commits: mpsc::Sender<Vec<u64>>,
}

enum Order {
    Succeed,
    Fail,
    Panic,
}

impl Persist for Ordered {
    fn persist(&mut self, group: &[Waiting]) -> Result<(), Error> {
        self.commits.send(group.iter().map(|waiting| waiting.seq).collect()).unwrap();
        match self.orders.recv().unwrap() {
            Order::Succeed => Ok(()),
            Order::Fail => Err(failure("no space left")),
            Order::Panic => panic!("out of order"),
        }
    }
}

fn failure(why: &str) -> Error {
    Error::Failed { doing: "appending", dir: "dir".into(), why: why.into() }
}

struct Fixture {
    writer: Writer,
    orders: mpsc::Sender<Order>,
    commits: mpsc::Receiver<Vec<u64>>,
    told: mpsc::Receiver<Result<Vec<u64>, Error>>,
}

fn fixture(most: (u64, usize)) -> Fixture {
    paced(most, Duration::ZERO)
}

fn paced(most: (u64, usize), apart: Duration) -> Fixture {
    let (orders, ordered) = mpsc::channel();
    let (commit, commits) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let pace = Pace { apart, clock: Clock::system() };
    let writer =
        Writer::start(10, most, pace, Ordered { orders: ordered, commits: commit }, move |outcome| {
            let _ = tell.send(outcome.map(|group| group.iter().map(|waiting| waiting.seq).collect()));
        });
    Fixture { writer: writer.unwrap(), orders, commits, told }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn one_commit_takes_all_that_waits() {
    let it = fixture((1 << 30, 1_000));
    assert_eq!(push(&it.writer, 1).unwrap(), 10);
    assert_eq!(it.commits.recv_timeout(LONG).unwrap(), [10]);
    for _ in 0..99 {
        push(&it.writer, 1_000).unwrap(); // while the first commit is under way
    }
    it.orders.send(Order::Succeed).unwrap();
    assert_eq!(it.told.recv_timeout(LONG).unwrap().unwrap(), [10]);
    assert_eq!(
        it.commits.recv_timeout(LONG).unwrap(),
        (11..110).collect::<Vec<_>>(),
        "99 chunks, one commit"
    );
    it.orders.send(Order::Succeed).unwrap();
    it.writer.drain().unwrap();
    assert_eq!(it.told.recv_timeout(LONG).unwrap().unwrap().len(), 99);
    assert_eq!(it.writer.next(), 110);
}

#[test]
fn commits_keep_apart_unless_much_waits_or_somebody_waits_for_them() {
    let it = paced((1 << 30, 1_000), Duration::from_secs(3_600));
    let committed = |seqs: &[u64]| {
        assert_eq!(it.commits.recv_timeout(LONG).unwrap(), seqs);
        it.orders.send(Order::Succeed).unwrap();
        it.told.recv_timeout(LONG).unwrap().unwrap();
    };
    push(&it.writer, 1).unwrap();
    committed(&[10]);
    push(&it.writer, 1).unwrap();
    push(&it.writer, SOON_BYTES as usize).unwrap();
    committed(&[11, 12]);
    push(&it.writer, 1).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| it.writer.drain().unwrap());
        assert_eq!(it.commits.recv_timeout(LONG).unwrap(), [13], "who waits for it need not wait an hour");
        it.orders.send(Order::Succeed).unwrap();
    });
    it.told.recv_timeout(LONG).unwrap().unwrap();
    push(&it.writer, 1).unwrap();
    it.orders.send(Order::Succeed).unwrap();
    it.writer.close().unwrap();
    assert_eq!(it.commits.try_recv().unwrap(), [14], "nor does the end");
}

#[test]
fn a_commit_is_bounded_in_bytes() {
    let it = fixture((1 << 30, 1_000));
    push(&it.writer, 1).unwrap();
    it.commits.recv_timeout(LONG).unwrap();
    for _ in 0..9 {
        push(&it.writer, 3 << 20).unwrap();
    }
    let mut sizes = Vec::new();
    it.orders.send(Order::Succeed).unwrap();
    while sizes.iter().sum::<usize>() < 9 {
        sizes.push(it.commits.recv_timeout(LONG).unwrap().len());
        it.orders.send(Order::Succeed).unwrap();
    }
    assert_eq!(sizes, [2, 2, 2, 2, 1]);
}

#[test]
fn what_waits_is_bounded_in_bytes_and_in_number() {
    for most in [(10_000, 1_000), (1 << 30, 3)] {
        let it = fixture(most);
        for _ in 0..3 {
            push(&it.writer, 3_000).unwrap();
        }
        let Err(PushError::Full(back)) = push(&it.writer, 3_000) else { panic!("a fourth does not fit") };
        assert_eq!(back.records(), 1, "it comes back whole");
        it.writer.wait(Duration::from_millis(1)); // nobody makes room: returns all the same
        let commit = |chunks: usize| {
            let mut committed = 0;
            while committed < chunks {
                committed += it.commits.recv_timeout(LONG).unwrap().len();
                it.orders.send(Order::Succeed).unwrap();
            }
            it.writer.drain().unwrap();
        };
        commit(3);
        push(&it.writer, 50_000).expect("what is larger than the bound goes alone");
        let full = matches!(push(&it.writer, 1), Err(PushError::Full(_)));
        assert_eq!(full, most.0 == 10_000);
        commit(if full { 1 } else { 2 });
    }
}

#[test]
fn after_a_failed_commit_nothing_is_taken_any_more() {
    for (order, why) in [(Order::Fail, "no space left"), (Order::Panic, "the thread panicked: out of order")]
    {
        let it = fixture((1 << 30, 1_000));
        push(&it.writer, 1).unwrap();
        it.commits.recv_timeout(LONG).unwrap();
        push(&it.writer, 1).unwrap(); // waits behind the one that fails
        it.orders.send(order).unwrap();
        let told = it.told.recv_timeout(LONG).unwrap().unwrap_err();
        assert!(told.to_string().contains(why) && told.is_transient(), "{told}");
        assert_eq!(it.writer.drain().unwrap_err(), told);
        // The next fsync might succeed without the pages that the first one lost: it is not asked.
        let Err(PushError::Failed(refused)) = push(&it.writer, 1) else { panic!("it must be refused") };
        assert_eq!(refused, told);
        assert!(it.commits.try_recv().is_err() && it.told.try_recv().is_err());
        it.writer.wait(LONG); // returns at once
        assert_eq!(it.writer.close().unwrap_err(), told);
    }
}

#[test]
fn closing_makes_durable_what_waits() {
    let it = fixture((1 << 30, 1_000));
    push(&it.writer, 1).unwrap();
    it.commits.recv_timeout(LONG).unwrap();
    push(&it.writer, 1).unwrap();
    it.orders.send(Order::Succeed).unwrap();
    it.orders.send(Order::Succeed).unwrap();
    it.writer.close().unwrap();
    assert_eq!(it.told.iter().map(Result::unwrap).collect::<Vec<_>>(), [[10], [11]]);
    assert!(matches!(push(&it.writer, 1), Err(PushError::Failed(Error::Closed))));
}

#[test]
fn a_job_that_panics_is_told_and_the_next_one_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let options = crate::disk::Options { clock: Clock::system(), write_buffer_bytes: 1 << 20 };
    let database = Arc::new(Database::open(&dir.path().join("log"), &options).unwrap().database);
    let (tell, told) = mpsc::channel();
    let keeper = Keeper::start(database, move |error| tell.send(error).unwrap()).unwrap();
    assert_eq!(keeper.call::<()>(|_| panic!("oops")).unwrap_err(), Error::Closed);
    assert!(told.recv_timeout(LONG).unwrap().to_string().contains("panicked: oops"));
    assert_eq!(keeper.call(|database| database.survey()).unwrap().chunks, []);
    keeper.close();
    assert!(!keeper.run(|_| ()));
    assert_eq!(keeper.call(|_| Ok(())).unwrap_err(), Error::Closed);
}
