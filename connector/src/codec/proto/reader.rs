//! The wire's parts, one after the other: numbers, tags, what is passed over. Every byte may be hostile.

use super::plan::wire;
use super::run::{Stop, What};

const CUT: &str = "it ends too early";

/// Reads the wire.
pub(super) struct Reader<'b> {
    /// Up to the end of what may be read.
    pub bytes: &'b [u8],
    pub at: usize,
}

impl Reader<'_> {
    #[inline]
    fn varint(&mut self) -> Result<u64, Stop> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if let Some(first) = rest.first()
            && *first < 0x80
        {
            self.at += 1;
            return Ok(u64::from(*first));
        }
        let mut bits = 0u64;
        for (at, byte) in rest.iter().take(10).enumerate() {
            // The tenth byte has room for one bit of 64; what is beyond is cut by others, and here garbage.
            if at == 9 && *byte > 1 {
                break;
            }
            bits |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                self.at += at + 1;
                return Ok(bits);
            }
        }
        let cut = rest.len() < 10;
        Err(Stop(What::Bytes(if cut { CUT } else { "a number has more than 64 bits" }), self.at))
    }

    /// A field's number and type on the wire.
    #[inline]
    pub fn tag(&mut self) -> Result<(u32, u8), Stop> {
        let from = self.at;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        match (number, (tag & 7) as u8) {
            (Some(number), wire) if wire <= wire::FIXED32 => Ok((number, wire)),
            (None, _) => Err(Stop(What::Bytes("a field's number is 0 or too large"), from)),
            _ => Err(Stop(What::Bytes("a field is of a type on the wire that there is not"), from)),
        }
    }

    /// Passes over a field's content: from where to where it lies, and its bits where it is a number.
    #[inline]
    pub fn field(&mut self, number: u32, wire: u8, depth: usize) -> Result<(usize, usize, u64), Stop> {
        let from = self.at;
        match wire {
            wire::VARINT => {
                let bits = self.varint()?;
                Ok((from, self.at, bits))
            }
            wire::FIXED32 => {
                let chunk = self.bytes.get(from..).and_then(|rest| rest.first_chunk::<4>());
                let bits = u32::from_le_bytes(*chunk.ok_or(Stop(What::Bytes(CUT), from))?);
                self.at += 4;
                Ok((from, self.at, bits.into()))
            }
            wire::FIXED64 => {
                let chunk = self.bytes.get(from..).and_then(|rest| rest.first_chunk::<8>());
                let bits = u64::from_le_bytes(*chunk.ok_or(Stop(What::Bytes(CUT), from))?);
                self.at += 8;
                Ok((from, self.at, bits))
            }
            wire::BYTES => {
                let length = self.varint()?;
                let from = self.at;
                let to = usize::try_from(length).ok().and_then(|length| from.checked_add(length));
                let to = to.filter(|to| *to <= self.bytes.len());
                self.at = to.ok_or(Stop(What::Bytes("a length reaches beyond the end"), from))?;
                Ok((from, self.at, 0))
            }
            wire::GROUP => self.group(number, depth),
            _ => Err(Stop(What::Bytes("a group ends that has not begun"), from)),
        }
    }

    /// Passes over a group.
    fn group(&mut self, number: u32, depth: usize) -> Result<(usize, usize, u64), Stop> {
        let from = self.at;
        let depth = depth.checked_sub(1).ok_or(Stop(What::Deep, from))?;
        loop {
            let end = self.at;
            let (inner, wire) = self.tag()?;
            match wire {
                wire::GROUP_END if inner == number => return Ok((from, end, 0)),
                wire::GROUP_END => {
                    return Err(Stop(What::Bytes("a group ends that is not the innermost"), end));
                }
                wire => {
                    self.field(inner, wire, depth)?;
                }
            }
        }
    }
}
