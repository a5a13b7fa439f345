//! Runs a command beside a broker: `cargo run -p stillwell-tests --example broker -- COMMAND…`.
//!
//! The command finds it by `STILLWELL_KAFKA__BOOTSTRAP_SERVERS`, which Stillwell reads, and by `BOOTSTRAP_SERVERS`.
//! Without a command the address is printed, and the broker stays until standard input ends.

use std::io::Read;
use std::process::{Command, ExitCode};

use stillwell_tests::bootstrap;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        println!("{}", bootstrap());
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        return ExitCode::SUCCESS;
    };
    let status = Command::new(&program)
        .args(words)
        .env("STILLWELL_KAFKA__BOOTSTRAP_SERVERS", bootstrap())
        .env("BOOTSTRAP_SERVERS", bootstrap())
        .status();
    match status {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(70)),
        Err(e) => {
            eprintln!("{}: {e}", program.display());
            ExitCode::from(69)
        }
    }
}
