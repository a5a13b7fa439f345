//! The public error: its kind says what the operator does next.

use std::fmt;

/// What to do about an error. A new kind needs a decision about all of exit code, problem type and retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The configuration, or what it points at, is wrong: change it and start again.
    Config,
    /// Something outside (Kafka, blob store, disk) does not answer or refuses: it is tried again; look there.
    Unavailable,
    /// A newer life writes the shard: nothing to do, this one has stopped.
    Fenced,
    /// Bytes are not what they were: they are fetched again where possible; look at the disk or the store.
    Corrupt,
    /// The input (a record, a key, a query) is not acceptable: change it.
    Rejected,
    /// It was shut down.
    Closed,
    /// A bug: report it.
    Internal,
}

impl ErrorKind {
    /// The process's exit code (BSD `sysexits.h`).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Config => 78,
            ErrorKind::Unavailable | ErrorKind::Fenced | ErrorKind::Closed => 69,
            ErrorKind::Corrupt => 74,
            ErrorKind::Rejected => 65,
            ErrorKind::Internal => 70,
        }
    }

    /// The kind as a word, as logs and problem types spell it.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Config => "config",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Fenced => "fenced",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Rejected => "rejected",
            ErrorKind::Closed => "closed",
            ErrorKind::Internal => "internal",
        }
    }
}

/// An error as the library's callers see it: what was being done, what to do about it, and the cause.
///
/// `Display` is one level; walk [`std::error::Error::source`], or use [`Error::chain`], for the rest. `Debug` is the chain, so
/// that `fn main() -> Result` says it, and so does `unwrap`.
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result with the public [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause below it; `doing` says what, where and what to do.
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error { kind, doing: doing.into(), source: None }
    }

    /// An error with its cause.
    pub fn because(
        kind: ErrorKind,
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error { kind, doing: doing.into(), source: Some(source.into()) }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// All levels, outermost first, joined by colons.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// All levels of any error, outermost first, joined by colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

// By hand: who returns it from `main` sees this and nothing else, and it has to say the cause in words.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_the_chain_in_words() {
        let cause = Error::because(ErrorKind::Unavailable, "asking the store", std::fmt::Error);
        let error = Error::because(ErrorKind::Config, "opening s4://x", cause);
        let words = format!("opening s4://x: asking the store: {}", std::fmt::Error);
        assert_eq!(error.chain(), words);
        assert_eq!(format!("{error:?}"), words);
        assert_eq!(error.to_string(), "opening s4://x", "Display is one level");
        // As `main` prints what it returns: the error boxed, as most services have it.
        let of_main: Box<dyn std::error::Error> = error.into();
        assert_eq!(format!("{of_main:?} {of_main:#?}"), format!("{words} {words}"));
    }
}
