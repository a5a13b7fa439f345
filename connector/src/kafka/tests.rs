//! The room against the embedded broker; what needs a real one is in `tests/flow/kafka.rs`.
