//! Records through all the stages, on a real broker.

mod debian;
mod ground;
mod kafka;
mod line;
mod restart;
mod setting;
