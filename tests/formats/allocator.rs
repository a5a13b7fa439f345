//! The memory that a thread asks for, counted: what a length field says must not be what a reader allocates.

#![expect(
    unsafe_code,
    reason = "an allocator is unsafe by its signature; this one passes on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes held, and the most since [`most`] began: of this thread, as far as it frees what it took.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// Notes that a thread holds so many bytes more. A thread that is ending has nothing to note it in.
fn note(more: isize) {
    let held = HELD.try_with(|held| {
        held.set(held.get() + more);
        held.get()
    });
    if let Ok(held) = held {
        let _ = MOST.try_with(|most| most.set(most.get().max(held)));
    }
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; what is noted takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // For a moment both may be there.
        note(bytes as isize);
        note(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs it, and says how many bytes this thread held meanwhile beyond those before, at most.
pub fn most<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let done = run();
    (done, usize::try_from(MOST.get() - before).unwrap_or(0))
}

#[test]
fn what_a_thread_asks_for_is_seen() {
    let (bytes, held) = most(|| {
        let first = vec![0u8; 3 << 20].len();
        first + vec![1u8; 1 << 20].len()
    });
    assert!(bytes == 4 << 20 && (3 << 20..4 << 20).contains(&held), "{held}");
    let (_, grown) = most(|| (0..1 << 20).map(|byte| byte as u8).collect::<Vec<u8>>().len());
    assert!(grown >= 1 << 20, "{grown}");
}
