//! The binary: everything it can do lies in [`stillwell::cli`].

use std::process::ExitCode;
use std::time::Duration;

// Chosen over the system's: many small, short-lived allocations on several threads at once.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often memory that has been free for a second is given back to the system. mimalloc looks for it only when it is
/// asked for memory, and a reader at rest asks for none.
const GIVE_BACK_EVERY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // Nobody waits for it: it holds nothing, and ends with the process. Without it all is well, but larger.
    let _ = std::thread::Builder::new().name("memory".into()).spawn(give_back);
    stillwell::cli::main()
}

fn give_back() {
    loop {
        std::thread::park_timeout(GIVE_BACK_EVERY);
        #[expect(unsafe_code, reason = "the allocator's own call, which its crate does not wrap")]
        // SAFETY: has no precondition. Looks after this thread's heap and the process's free pages, by mimalloc's own locks.
        unsafe {
            libmimalloc_sys::mi_collect(false);
        }
    }
}
