//! Threads of a moment: work that nobody waits for gives way to whoever answers, and work that somebody waits for is done by
//! all processors.
//!
//! A merge of a large base keeps a processor busy for a second. Where there are only two, a version that comes meanwhile would
//! be readable later by as much as the scheduler lets the merge run on.
//!
//! Owns: priority and number. Does not own: what is done, and when.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio_util::sync::CancellationToken;

/// Threads of [`several`] at most: what they read has to come from memory, and that is no faster with more.
const MOST: usize = 8;

/// Nice, of 0 to 19. Each step is worth a tenth of a processor's time against others: at 10 it is a tenth of theirs, so that work
/// which must end some time does.
const NICE: i32 = 10;

/// Does `work` on a thread of its own that gives way to others, and waits for it. Blocks. A panic there is one here. On other
/// systems than Linux, where a priority is that of the whole process, the thread is as any.
pub fn apart<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let mut work = Some(work);
    let done = thread::scope(|scope| {
        let run = || {
            give_way();
            work.take().map(|work| work())
        };
        let started = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run);
        started.map(|running| running.join())
    });
    match (done, work) {
        (Ok(Ok(Some(done))), _) => done,
        (Ok(Err(panic)), _) => resume_unwind(panic),
        // There is no thread to be had.
        (_, Some(work)) => work(),
        (_, None) => unreachable!("work that was taken was done, or has panicked"),
    }
}

/// Does `work`; `None`: it was stopped first. For threads that wait for a future: where a runtime ends before them, its timers are gone
/// by then, and a future that asks one panics. Once stopped, `work` is not asked again.
pub async fn until<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        done = work => Some(done),
    }
}

/// How many threads [`several`] has for that many jobs.
pub fn for_jobs(jobs: usize) -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST).min(jobs)
}

/// Does `work` for each of `jobs`, on this thread and others; the results in the order of the jobs. Blocks. A panic there is one
/// here.
pub fn several<J: Send, T: Send>(jobs: Vec<J>, work: impl Fn(J) -> T + Sync) -> Vec<T> {
    let threads = for_jobs(jobs.len());
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let until_none = || {
        let mut done = Vec::new();
        loop {
            // Not held while the job is done.
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, job)) = next else { return done };
            done.push((number, work(job)));
        }
    };
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        // One that the system refuses is done without.
        let others = (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, until_none).ok());
        let others: Vec<_> = others.collect();
        let mut done = until_none();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, done)| done).collect()
}

/// Lowers the priority of this thread, for as long as it lives: raising it again takes a right.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "this thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_work_gives_way_and_who_waits_for_it_does_not() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let (name, meanwhile) = apart("merge", || (thread::current().name().map(str::to_owned), nice()));
        assert_eq!((name.as_deref(), meanwhile), (Some("merge"), NICE.max(before)));
        assert_eq!(nice(), before);
    }

    #[test]
    fn a_panic_is_passed_on() {
        let apart = std::panic::catch_unwind(|| apart("merge", || panic!("at the disco")));
        let several = std::panic::catch_unwind(|| several(vec![1, 2, 3], |_| panic!("at the disco")));
        for panicked in [apart.unwrap_err(), several.unwrap_err()] {
            assert_eq!(panicked.downcast_ref::<&str>(), Some(&"at the disco"));
        }
    }

    #[test]
    fn each_job_is_done_once_and_answers_come_in_their_order() {
        assert!(several(Vec::<u8>::new(), |job| job).is_empty());
        let jobs: Vec<u64> = (0..1_000).collect();
        let done = several(jobs.clone(), |job| {
            // Later ones are done sooner.
            (0..10 * (1_000 - job)).for_each(|_| std::hint::spin_loop());
            job * 2
        });
        assert_eq!(done, jobs.iter().map(|job| job * 2).collect::<Vec<_>>());
    }
}
