//! What takes long to let go of is let go of by a thread that does nothing else.
//!
//! ```text
//!  the last view on a large file, let go of by a reader, or by the runtime --map--> [at most 64] --> thread: munmap
//! ```
//!
//! Unmapping takes its time for each page that was touched, and once more where nobody else has the file any more, since
//! then its pages are freed: tens of milliseconds for the base of a million records. A reader that happens to be the last
//! would wait for them in the middle of its work, and a thread of the runtime would make all wait that it has to do.
//!
//! Owns: the thread, one for the process, since views outlive every consumer, and whoever reads may let go of them. Does
//! not own: what is large (`map`).

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

/// What may wait: beyond it whoever lets go does it, and so is held back who makes more than can be let go of.
const WAITING: usize = 64;

type Thread = Option<SyncSender<Box<dyn Send>>>;

/// The thread, begun by who asks first.
fn thread() -> &'static Thread {
    static THREAD: OnceLock<Thread> = OnceLock::new();
    THREAD.get_or_init(|| {
        let (give, take) = sync_channel::<Box<dyn Send>>(WAITING);
        // Ends with the process, which gives back whatever still waits.
        let thread =
            thread::Builder::new().name("unmap".into()).spawn(move || take.into_iter().for_each(drop));
        thread.is_ok().then_some(give)
    })
}

/// Begins the thread. Whoever begins it gives it its own priority, and merges, which let go of maps too, have a low one.
pub(super) fn begin() {
    thread();
}

/// Drops `what` on the thread for it; here, where that is not to be had or has too much to do.
pub(super) fn drop_elsewhere(what: Box<dyn Send>) {
    if let Some(thread) = thread()
        && let Err(TrySendError::Full(what) | TrySendError::Disconnected(what)) = thread.try_send(what)
    {
        drop(what);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::super::map::{LARGE, Map};
    use super::*;

    /// Holds up whoever drops it until it is told to go on.
    struct Holds(Receiver<()>);

    impl Drop for Holds {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    /// Says who dropped it.
    struct Tells(Sender<thread::ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    fn is_mapped(path: &Path) -> bool {
        fs::read_to_string("/proc/self/maps").unwrap().contains(&*path.to_string_lossy())
    }

    #[test]
    fn who_lets_go_of_a_large_map_does_not_unmap_it_unless_too_many_wait() {
        let dir = tempfile::TempDir::new().unwrap();
        let map = |name: &str, bytes: usize| {
            let path = dir.path().join(name);
            fs::write(&path, vec![1; bytes]).unwrap();
            (Map::open(&path, bytes as u64).unwrap(), path)
        };
        let ((small, small_at), (large, large_at)) = (map("small", LARGE - 1), map("large", LARGE));
        let (go_on, held) = channel();
        drop_elsewhere(Box::new(Holds(held)));
        drop(small);
        assert!(!is_mapped(&small_at), "it takes less than to wake a thread");
        drop(large);
        assert!(is_mapped(&large_at), "unmapped by who let go of it");

        let (tell, told) = channel();
        for _ in 0..=WAITING {
            drop_elsewhere(Box::new(Tells(tell.clone())));
        }
        assert_eq!(told.try_recv(), Ok(thread::current().id()), "there is no end to what may wait");
        drop((go_on, tell));
        // All that waits is dropped in the end, what came first before the rest.
        while told.recv_timeout(Duration::from_secs(30)).is_ok() {}
        assert!(!is_mapped(&large_at), "it stays mapped");
    }
}
