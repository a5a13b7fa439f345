//! How large a record may be: as it came, before it is decoded, and as what it becomes.
//!
//! No format has such a bound of its own. It is there for all who hold the dataset: one row of a hundred megabytes goes
//! into every reader's memory, every page of changes, every webhook. A few bytes may become many: a number a name, nothing at
//! all a record of defaults. So decoders stop at the bound, and what they make takes no more memory than it says.
//!
//! Owns: the measure. Does not own: what becomes of the record.

use super::{Encoded, Misfit, Stage};

/// Most bytes of a record, its key and its value together, as they came; and of its datum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(u64);

impl Default for Bound {
    /// 16 MB: sixteen times what Kafka's brokers take by default.
    fn default() -> Bound {
        Bound(16_000_000)
    }
}

impl Bound {
    /// None.
    pub const ANY: Bound = Bound(0);

    /// So many; 0: any.
    pub fn of(bytes: u64) -> Bound {
        Bound(bytes)
    }

    /// Whether a record is small enough.
    ///
    /// # Errors
    /// The [`Misfit`], of [`Stage::Oversized`].
    #[inline]
    pub fn check(self, record: Encoded<'_>) -> Result<(), Misfit> {
        let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len) as u64;
        let bytes = len(record.key) + len(record.value);
        if bytes > self.0 && self.0 > 0 { Err(self.oversized(bytes)) } else { Ok(()) }
    }

    /// Most bytes of a datum.
    #[inline]
    pub(super) fn most(self) -> usize {
        match self.0 {
            0 => usize::MAX,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    /// The misfit of a record whose datum would have more.
    #[cold]
    pub(super) fn swollen(self) -> Misfit {
        Misfit {
            stage: Stage::Oversized,
            class: "stillwell.Oversized",
            message: format!(
                "in the dataset's schema the value has more than {0} bytes, and max_record_size is {0}",
                self.0
            ),
        }
    }

    #[cold]
    fn oversized(self, bytes: u64) -> Misfit {
        Misfit {
            stage: Stage::Oversized,
            class: "stillwell.Oversized",
            message: format!("key and value have {bytes} bytes, and max_record_size is {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_value_count_and_nothing_else() {
        let record = Encoded {
            key: Some(b"1234"),
            value: Some(b"123456"),
            key_header: Some(b"1"),
            value_header: Some(b"2"),
            ..Encoded::default()
        };
        assert_eq!(Bound::of(10).check(record), Ok(()));
        let misfit = Bound::of(9).check(record).unwrap_err();
        assert_eq!(misfit.stage, Stage::Oversized);
        assert_eq!(misfit.message, "key and value have 10 bytes, and max_record_size is 9");
        assert_eq!(Bound::of(0).check(record), Ok(()), "no bound");
        let delete = Encoded { key: Some(b"1234"), ..Encoded::default() };
        assert_eq!((Bound::of(4).check(delete), Bound::of(3).check(delete).is_err()), (Ok(()), true));
        assert_eq!(Bound::of(1).check(Encoded::default()), Ok(()));
    }
}
