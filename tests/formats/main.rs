//! Golden bytes, and other tools reading what Stillwell writes.

mod reference;
