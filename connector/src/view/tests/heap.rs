//! The memory that this process's Rust code holds, to the byte: what the system counts is that and what its allocator
//! keeps between the pieces. And processes that tests start.

#![expect(
    unsafe_code,
    reason = "an allocator is unsafe by its signature; this one passes on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::process::{Child, Command, Output, Stdio};
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; what is counted takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        HELD.fetch_add(bytes, Ordering::Relaxed);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are held now.
pub(crate) fn held() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// Held shared by who starts a process, alone by who closes a socket and needs its port at once: from its fork to its exec a
/// child has all sockets of this process, and keeps them open.
pub(crate) static FORKS: RwLock<()> = RwLock::new(());

/// Starts a process. Back from here it has run its exec.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _shared = FORKS.read();
    command.spawn()
}

/// What a process says until its end.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}

/// Runs an ignored test of this binary as a process of its own, in which nothing else takes memory, threads or descriptors.
/// Gives what it printed.
pub(crate) fn alone(test: &str) -> String {
    let mut run = Command::new(std::env::current_exe().unwrap());
    let run = output(run.args(["--exact", test, "--ignored", "--nocapture"])).unwrap();
    let said = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    said
}
