//! Buffers that are kept from record to record: what a giant took goes with the next record that is none.

/// A buffer keeps so many bytes, whatever comes.
const KEPT: usize = 1 << 20;
/// And so many for each byte of the record that comes: what is noted of a Protobuf field of two bytes takes 40, and few take more.
const MOST: usize = 64;

/// Empties a buffer for a record of so many bytes, and lets its memory go where it is far more than such a record takes.
#[inline]
pub(super) fn anew<T>(buffer: &mut Vec<T>, bytes: usize) {
    buffer.clear();
    if buffer.capacity().saturating_mul(size_of::<T>()) > KEPT {
        let_go(buffer, bytes);
    }
}

#[cold]
fn let_go<T>(buffer: &mut Vec<T>, bytes: usize) {
    let most = bytes.saturating_mul(MOST).saturating_add(KEPT) / size_of::<T>().max(1);
    // What is allocated grows by doubling.
    if buffer.capacity() > most.saturating_mul(2) {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_giant_took_goes_with_the_next_that_is_none() {
        let mut buffer = vec![0u64; 16 << 17];
        for (bytes, kept) in [(1 << 20, true), (200_000, true), (100_000, false)] {
            buffer.resize(16 << 17, 0);
            anew(&mut buffer, bytes);
            assert_eq!((buffer.len(), buffer.capacity() > 0), (0, kept), "{bytes}");
        }
        // A megabyte is nobody's giant.
        let mut small = vec![0u8; 1 << 20];
        anew(&mut small, 0);
        assert!(small.is_empty() && small.capacity() >= 1 << 20);
    }
}
