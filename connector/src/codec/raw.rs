//! Raw bytes: any value is a datum of `bytes`, its length put before it.

use super::room::anew;
use crate::schema::wire::put_bytes;

/// Makes datums of bytes.
#[derive(Debug, Default)]
pub(super) struct Raw {
    out: Vec<u8>,
}

impl Raw {
    /// The datum of `value`.
    pub fn decode(&mut self, value: &[u8]) -> &[u8] {
        anew(&mut self.out, value.len());
        put_bytes(&mut self.out, value);
        &self.out
    }
}
