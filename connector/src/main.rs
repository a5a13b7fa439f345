//! The binary: everything it can do lies in [`stillwell::cli`].

use std::process::ExitCode;

// Chosen over the system's: many small, short-lived allocations on several threads at once.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stillwell::cli::main()
}
