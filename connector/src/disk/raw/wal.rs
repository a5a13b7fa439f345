//! RocksDB's write-ahead log.
//!
//! ```text
//!  file     block of 32 KiB, block, ...      a record never begins in the last six bytes of one
//!  block    fragment, fragment, ...
//!  fragment u32 CRC (masked) of what follows the length; u16 length; u8 type: whole, first, middle, last; payload
//!  record   fragments joined: u64 sequence, u32 count, then puts, deletes and range deletes, one commit's
//! ```
//!
//! Source: `db/log_format.h`, `db/log_reader.cc` and `db/write_batch.cc` of RocksDB 11.8. Types 5 to 8 are those of files
//! used again, which have the file's number after the type; no log of ours is, those of early builds were.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{Broken, fill, unmask};
use crate::format::wire::Take;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;

/// One commit.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where it begins in the file.
    pub at: u64,
    /// Whether everything before it in the file was whole: RocksDB reads no further than that.
    pub reached: bool,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The keys and values that it puts; the rest of it is passed over.
    pub fn puts(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut take = Take::new(self.bytes);
        let headed = take.raw(12).is_ok();
        std::iter::from_fn(move || {
            if !headed {
                return None;
            }
            loop {
                let [tag] = take.fixed().ok()?;
                // Those of column families name theirs; ours holds everything.
                if matches!(tag, 0x04 | 0x05 | 0x08 | 0x0e) {
                    take.varint().ok()?;
                }
                match tag {
                    0x01 | 0x05 => return Some((slice(&mut take)?, slice(&mut take)?)),
                    0x0e | 0x0f => {
                        slice(&mut take)?;
                        slice(&mut take)?;
                    }
                    0x00 | 0x03 | 0x04 | 0x07 | 0x08 => {
                        slice(&mut take)?;
                    }
                    0x0d => {}
                    _ => return None,
                }
            }
        })
    }
}

fn slice<'a>(take: &mut Take<'a>) -> Option<&'a [u8]> {
    let length = usize::try_from(take.varint().ok()?).ok()?;
    take.raw(length).ok()
}

/// Which part of a record a fragment is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Middle,
    Last,
    /// None of a record: facts about the file.
    Aside,
}

/// Gives all records of a file that are whole, also behind damage (from the next block on), and the place where the
/// first one that is not begins.
///
/// # Errors
/// The system's.
pub fn walk(path: &Path, each: &mut dyn FnMut(Record<'_>)) -> io::Result<Option<Broken>> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    let mut broken: Option<(u64, &'static str)> = None;
    let (mut joined, mut begun) = (Vec::new(), None);
    let mut start = 0u64;
    loop {
        let filled = fill(&mut file, &mut block)?;
        let mut rest = block.get(..filled).unwrap_or_default();
        let last = filled < BLOCK;
        while rest.len() >= HEADER || (last && !rest.is_empty()) {
            let at = start + (filled - rest.len()) as u64;
            let wrong = match fragment(rest) {
                Ok((part, payload, size)) => {
                    rest = rest.get(size..).unwrap_or_default();
                    match (part, begun) {
                        (Part::Aside, _) => None,
                        (Part::Whole, None) => {
                            each(Record { at, reached: broken.is_none(), bytes: payload });
                            None
                        }
                        (Part::First, None) => {
                            begun = Some(at);
                            joined.clear();
                            joined.extend_from_slice(payload);
                            None
                        }
                        (Part::Middle, Some(_)) => {
                            joined.extend_from_slice(payload);
                            None
                        }
                        (Part::Last, Some(begun_at)) => {
                            joined.extend_from_slice(payload);
                            begun = None;
                            each(Record { at: begun_at, reached: broken.is_none(), bytes: &joined });
                            None
                        }
                        // Behind damage the rest of the record that it hit is to be expected.
                        (Part::Middle | Part::Last, None) if broken.is_some() => None,
                        (Part::Middle | Part::Last, None) => {
                            Some("the end of a record that has no beginning")
                        }
                        (Part::Whole | Part::First, Some(_)) => Some("a record that has no end"),
                    }
                }
                Err(wrong) => {
                    rest = &[];
                    Some(wrong)
                }
            };
            if let Some(wrong) = wrong {
                broken = broken.or(Some((begun.unwrap_or(at), wrong)));
                begun = None;
            }
        }
        start += filled as u64;
        if last {
            break;
        }
    }
    if let Some(begun) = begun {
        broken = broken.or(Some((begun, "a record that has no end")));
    }
    Ok(broken.map(|(at, why)| Broken { file: name(path), at, rest: start - at, why }))
}

/// Where types stand that RocksDB does not get over: those of files used again, in a file that is none. `log_reader.cc`
/// of 11.8 refuses such a fragment without passing over it, and meets it again for ever. A flipped bit makes 5 of 1.
///
/// # Errors
/// The system's.
pub fn endless(path: &Path) -> io::Result<Vec<u64>> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    let (mut start, mut used_again, mut places) = (0u64, None, Vec::new());
    loop {
        let filled = fill(&mut file, &mut block)?;
        let mut rest = block.get(..filled).unwrap_or_default();
        while let Some([_, _, _, _, _, _, kind]) = rest.first_chunk::<HEADER>() {
            let again = matches!(kind, 5..=8 | 11 | 131);
            if again && !*used_again.get_or_insert(again) {
                places.push(start + (filled - rest.len() + HEADER - 1) as u64);
            }
            // Damage makes RocksDB go on with the next block, if at all.
            let Ok((_, _, size)) = fragment(rest) else { break };
            used_again.get_or_insert(again);
            rest = rest.get(size..).unwrap_or_default();
        }
        start += filled as u64;
        if filled < BLOCK {
            return Ok(places);
        }
    }
}

/// The fragment at the beginning of `rest`: what it is, its payload, its size.
fn fragment(rest: &[u8]) -> Result<(Part, &[u8], usize), &'static str> {
    let cut_off = |_| "a record that is cut off";
    let mut take = Take::new(rest);
    let crc = u32::from_le_bytes(take.fixed().map_err(cut_off)?);
    let length = usize::from(u16::from_le_bytes(take.fixed().map_err(cut_off)?));
    let summed = take.at();
    let [kind] = take.fixed().map_err(cut_off)?;
    let part = match kind {
        0 if length == 0 => return Err("zeros"),
        1 | 5 => Part::Whole,
        2 | 6 => Part::First,
        3 | 7 => Part::Middle,
        4 | 8 => Part::Last,
        _ => Part::Aside,
    };
    if (5..=8).contains(&kind) {
        take.raw(4).map_err(cut_off)?;
    }
    let payload = take.raw(length).map_err(cut_off)?;
    let size = take.at();
    let bytes = rest.get(summed..size).unwrap_or_default();
    if crc32c::crc32c(bytes) != unmask(crc) {
        return Err("its checksum does not match");
    }
    Ok((part, payload, size))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
