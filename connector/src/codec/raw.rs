//! Raw bytes: any value is a datum of `bytes`, its length put before it.

use crate::schema::wire::put_bytes;

/// Makes datums of bytes.
#[derive(Debug, Default)]
pub(super) struct Raw {
    out: Vec<u8>,
}

impl Raw {
    /// The datum of `value`.
    pub fn decode(&mut self, value: &[u8]) -> &[u8] {
        self.out.clear();
        put_bytes(&mut self.out, value);
        &self.out
    }
}
