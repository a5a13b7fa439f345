//! Bytes made worse, by a seed: what a disk, a network, an older or newer release or somebody with a grudge makes of them.

use stillwell::clock::Entropy;

/// Longer ones say nothing that these don't.
const LONGEST: usize = 96 << 10;

/// Numbers at which arithmetic ends.
const EDGES: [i64; 12] = [
    0,
    -1,
    1,
    i64::MIN,
    i64::MAX,
    i32::MIN as i64,
    i32::MAX as i64,
    u32::MAX as i64,
    1 << 40,
    1 << 62,
    -(1 << 31) - 1,
    255,
];

/// A number as Avro writes it.
pub fn zigzag(value: i64) -> Vec<u8> {
    varint(((value << 1) ^ (value >> 63)) as u64)
}

/// A number as a varint.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// `bytes` with one to four things wrong in them; some of them taken from `others`.
pub fn mutate(chance: &Entropy, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let below = |most: usize| (chance.next_u64() % most.max(1) as u64) as usize;
    let mut out = bytes.to_vec();
    for _ in 0..=below(4) {
        let at = below(out.len() + 1);
        let some = below(16).min(out.len() - at);
        match below(12) {
            0 | 1 if at < out.len() => out[at] ^= 1 << below(8),
            2 if at < out.len() => out[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
            3 => out.truncate(at),
            4 => drop(out.drain(at..at + some)),
            5 => {
                let twice = out[at..at + some].to_vec();
                drop(out.splice(at..at, twice));
            }
            6 => {
                let noise: Vec<u8> = (0..some).map(|_| chance.next_u64() as u8).collect();
                drop(out.splice(at..at + some, noise));
            }
            // In the place of a number another one, in each of the ways in which numbers are written.
            7 | 8 => {
                let was = out[at..].iter().position(|byte| *byte < 0x80).map_or(0, |length| length + 1);
                drop(out.splice(at..at + was, zigzag(EDGES[below(EDGES.len())])));
            }
            9 | 10 => {
                let width = [2, 4, 8][below(3)];
                let number = EDGES[below(EDGES.len())].to_le_bytes();
                let at = at / width * width;
                let end = (at + width).min(out.len());
                out[at..end].copy_from_slice(&number[..end - at]);
            }
            _ if !others.is_empty() => {
                let other = &others[below(others.len())];
                let from = below(other.len());
                let part = &other[from..(from + 1 + below(64)).min(other.len())];
                drop(out.splice(at..at + some, part.iter().copied()));
            }
            _ => {}
        }
    }
    out.truncate(LONGEST);
    out
}

#[test]
fn a_seed_repeats_and_changes_something() {
    let seeds =
        || (0..500).map(|seed| mutate(&Entropy::seeded(seed), b"0123456789abcdef", &[b"other".to_vec()]));
    assert!(seeds().eq(seeds()));
    let other = seeds().filter(|bytes| bytes != b"0123456789abcdef").count();
    assert!(other > 450, "{other}");
    assert!(seeds().any(|bytes| bytes.len() > 20) && seeds().any(|bytes| bytes.is_empty()));
}
