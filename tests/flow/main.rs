//! Records through all the stages, on a real broker.

mod ground;
mod kafka;
