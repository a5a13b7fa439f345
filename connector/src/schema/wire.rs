//! Avro's integers: zig-zag, then seven bits a byte, least significant first.
//!
//! ```text
//!  value   0  -1   1  -2  64
//!  zig-zag 0   1   2   3  128
//!  bytes  00  01  02  03  80 01
//! ```

/// Appends an `int` or `long`.
#[inline]
pub fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push((rest as u8) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends `bytes` or a `string`: the length, then the bytes.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// Ends an array or a map that is one block: writes its count into the byte that was kept for it at `start`, making room
/// where it takes more, and the empty block behind. Nothing but that byte: there were no items.
pub fn close_block(out: &mut Vec<u8>, start: usize, count: usize) {
    if count == 0 {
        return;
    }
    let more = long_len(count as i64) - 1;
    if more > 0 {
        let end = out.len();
        out.resize(end + more, 0);
        out.copy_within(start + 1..end, start + 1 + more);
    }
    let mut rest = (count as u64) << 1;
    for byte in out.iter_mut().skip(start).take(more + 1) {
        *byte = (rest & 0x7f) as u8 | if rest >= 0x80 { 0x80 } else { 0 };
        rest >>= 7;
    }
    out.push(0);
}

/// How many bytes [`put_long`] writes.
#[inline]
pub fn long_len(value: i64) -> usize {
    // seven bits a byte, and the value 0 takes one
    (64 - (zigzag(value) | 1).leading_zeros() as usize).div_ceil(7)
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// A `long` at the front of `bytes`, and what is behind it; `None` where it ends early or has more than 64 bits.
#[inline(always)]
pub fn split_long(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (bits, rest) = if first < 0x80 { (u64::from(first), rest) } else { split_more(bytes)? };
    Some(((bits >> 1) as i64 ^ -((bits & 1) as i64), rest))
}

fn split_more(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut bits = 0u64;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        // the tenth byte has room for one bit of 64
        if at == 9 && byte > 1 {
            return None;
        }
        bits |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Some((bits, bytes.get(at + 1..)?));
        }
    }
    None
}

/// An `int` at the front of `bytes`; `None` also where the value has more than 32 bits.
#[inline]
pub fn split_int(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let (value, rest) = split_long(bytes)?;
    Some((i32::try_from(value).ok()?, rest))
}

/// `bytes` or a `string` at the front of `bytes`; `None` where the length is negative or reaches beyond the end.
#[inline]
pub fn split_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = split_long(bytes)?;
    rest.split_at_checked(usize::try_from(length).ok()?)
}

/// What is behind a `long`.
#[inline]
pub fn skip_long(bytes: &[u8]) -> Option<&[u8]> {
    skip_up_to(bytes, 9).or_else(|| split_long(bytes).map(|(_, rest)| rest))
}

/// What is behind an `int`.
#[inline]
pub fn skip_int(bytes: &[u8]) -> Option<&[u8]> {
    // four bytes are 28 bits; a fifth may hold more than the four that are left
    skip_up_to(bytes, 5).or_else(|| split_int(bytes).map(|(_, rest)| rest))
}

/// What is behind an integer of fewer than `limit` bytes, found without a loop; `None`: look again, one by one.
#[inline]
fn skip_up_to(bytes: &[u8], limit: usize) -> Option<&[u8]> {
    const LAST: u64 = 0x8080_8080_8080_8080;
    let word = u64::from_le_bytes(*bytes.first_chunk()?);
    let length = (!word & LAST).trailing_zeros() as usize / 8 + 1;
    if length < limit { bytes.get(length..) } else { None }
}

/// Bytes of the `count` integers at the front of `bytes`; `None` where they end beyond its first 16 bytes: look again,
/// one by one. Without a loop or a branch: each ends with the next byte whose highest bit is clear.
#[inline(always)]
pub fn length_of(count: usize, bytes: &[u8]) -> Option<usize> {
    let word = u128::from_le_bytes(*bytes.first_chunk()?);
    let mut ends = !word & u128::from_ne_bytes([0x80; 16]);
    for _ in 1..count {
        ends &= ends.wrapping_sub(1);
    }
    if ends == 0 { None } else { Some(ends.trailing_zeros() as usize / 8 + 1) }
}

/// Takes a `long` off the front of `rest`; where it cannot, `rest` is untouched.
#[inline]
pub fn take_long(rest: &mut &[u8]) -> Option<i64> {
    let (value, after) = split_long(rest)?;
    *rest = after;
    Some(value)
}

/// Takes an `int`.
#[inline]
pub fn take_int(rest: &mut &[u8]) -> Option<i32> {
    let (value, after) = split_int(rest)?;
    *rest = after;
    Some(value)
}

/// Takes `bytes` or a `string`.
#[inline]
pub fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (bytes, after) = split_bytes(rest)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_passed_over_together() {
        for values in [[0, 0, 0, 1], [1_700_000_000_000, 3, 77_000, 1], [-1, 64, i64::from(i32::MAX), 0]] {
            let mut bytes = Vec::new();
            values.iter().for_each(|value| put_long(&mut bytes, *value));
            let length = bytes.len();
            for more in 0..20 {
                let expected = (bytes.len() >= 16).then_some(length);
                assert_eq!(length_of(4, &bytes), expected, "{values:?} and {more} bytes more");
                bytes.push(0xff);
            }
        }
        assert_eq!(length_of(2, &[0xff; 16]), None);
        assert_eq!(length_of(2, &[0; 16]), Some(2));
    }

    #[test]
    fn longs_are_read_as_they_were_written() {
        for value in [0, -1, 1, 63, 64, -64, -65, 8191, 8192, i64::from(i32::MAX), i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            put_long(&mut bytes, value);
            assert_eq!(bytes.len(), long_len(value), "{value}");
            let mut rest = &bytes[..];
            assert_eq!(take_long(&mut rest), Some(value));
            assert!(rest.is_empty());
            let padded = [&bytes[..], &[0xff; 9]].concat();
            for bytes in [&bytes, &padded] {
                let rest = &bytes[long_len(value)..];
                assert_eq!(skip_long(bytes), Some(rest));
                assert_eq!(skip_int(bytes), i32::try_from(value).ok().map(|_| rest), "{value}");
            }
            for cut in 0..bytes.len() {
                assert_eq!(take_long(&mut &bytes[..cut]), None);
                assert_eq!(skip_long(&bytes[..cut]), None);
                assert_eq!(skip_int(&bytes[..cut]), None);
            }
        }
    }

    #[test]
    fn more_than_64_or_32_bits_are_refused() {
        assert_eq!(take_long(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..]), None);
        assert_eq!(take_long(&mut &[0x80; 20][..]), None);
        assert_eq!(skip_long(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
        assert_eq!(skip_long(&[0x80; 20]), None);
        let mut bytes = Vec::new();
        put_long(&mut bytes, i64::from(i32::MAX) + 1);
        assert_eq!(take_int(&mut &bytes[..]), None);
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        assert_eq!(take_bytes(&mut &[4, b'a'][..]), None);
        assert_eq!(take_bytes(&mut &[1, b'a'][..]), None, "minus one");
        assert_eq!(take_bytes(&mut &[2, b'a', b'b'][..]), Some(&b"a"[..]));
    }
}
