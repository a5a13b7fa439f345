//! The lookup table of an index over a snapshot's fields: a file of the cache, mapped beside the snapshot.
//!
//! ```text
//!   0  magic "STLOOKUP"
//!   8  u32 format version (1)        12  u32 bytes of a page (16384)
//!  16  u64 checksum of [24, body)    24  u64 bytes of this file
//!  32  u64 words                     40  u64 where the body starts
//!  48  u64 bytes of the subject
//!  56  page checksums of the body, u64 each
//!      the subject
//!      zeros up to a multiple of the page
//! body words, u64 each, ascending: high 24 bits of the fields' hash | 40-bit offset of the entry in the snapshot
//! ```
//!
//! All integers are little-endian; checksums and hashes are XXH3-64. The subject says of what it was made, and is compared
//! whole: snapshot, schemas, fields. What the fields' hash is taken of is drawn at `view/lookup.rs`, `Term::put`; another
//! form of that is another format here.
//!
//! As with a snapshot's index the header is checked by who opens it, each page of the body when it is first touched. Not in a
//! store: whoever lacks it makes it.
//!
//! Owns: this layout. Does not own: what the words mean (`view/lookup.rs`), where the file lies (`view/cache.rs`).

use std::io::Write;

use xxhash_rust::xxh3::xxh3_64;

use super::container::Error;
use super::index::{PAGE, PageSums, u64_at, words};

/// The version of this layout.
pub const FORMAT: u32 = 1;

/// How its files' names end.
pub const SUFFIX: &str = ".lookup";

const MAGIC: &[u8; 8] = b"STLOOKUP";
const FIXED: usize = 56;

/// Writes the table of `words`, which ascend. Gives its bytes.
///
/// # Errors
/// [`Error::Io`].
pub fn write(subject: &[u8], words: &[u64], out: &mut impl Write) -> Result<u64, Error> {
    let mut pages = PageSums::new();
    let mut piece = Vec::with_capacity(PAGE);
    for some in words.chunks(PAGE / 8) {
        put(some, &mut piece);
        pages.bytes(&piece);
    }
    let sums = pages.finish();
    let body = (FIXED + sums.len() + subject.len()).next_multiple_of(PAGE);
    let bytes = (body + 8 * words.len()) as u64;
    let mut head = Vec::with_capacity(body);
    for field in [bytes, words.len() as u64, body as u64, subject.len() as u64] {
        head.extend_from_slice(&field.to_le_bytes());
    }
    head.extend_from_slice(&sums);
    head.extend_from_slice(subject);
    head.resize(body - 24, 0);
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT.to_le_bytes())?;
    out.write_all(&(PAGE as u32).to_le_bytes())?;
    out.write_all(&xxh3_64(&head).to_le_bytes())?;
    out.write_all(&head)?;
    for some in words.chunks(PAGE / 8) {
        put(some, &mut piece);
        out.write_all(&piece)?;
    }
    out.flush()?;
    Ok(bytes)
}

fn put(words: &[u64], piece: &mut Vec<u8>) {
    piece.clear();
    piece.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// A table's header: where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Words in it.
    pub words: u64,
    /// Where the body starts.
    pub body: u64,
}

impl Layout {
    /// Reads and checks the header, and that it is the table of `subject`. Cost: a pass over the page checksums.
    ///
    /// # Errors
    /// [`Error::Short`] if the file is not as long as it says; [`Error::Malformed`].
    pub fn parse(file: &[u8], subject: &[u8]) -> Result<Layout, Error> {
        let short = || Error::Short { at: file.len() as u64 };
        let field = |at| u64_at(file, at).ok_or_else(short);
        if !file.starts_with(MAGIC) {
            return Err(Error::malformed(0, "not a lookup table of Stillwell"));
        }
        if field(8)? != u64::from(FORMAT) | (PAGE as u64) << 32 {
            return Err(Error::malformed(8, "another format, or pages of another size"));
        }
        let (bytes, words, body, said) = (field(24)?, field(32)?, field(40)?, field(48)?);
        if bytes != file.len() as u64 {
            return Err(short());
        }
        if Some(xxh3_64(file.get(24..body as usize).ok_or_else(short)?)) != u64_at(file, 16) {
            return Err(Error::malformed(16, "the header's checksum is not that of its bytes"));
        }
        // From here on the numbers are the writer's: that they fit each other guards against a bug there, not damage.
        let layout = Layout { words, body };
        let from = FIXED as u64 + 8 * layout.pages();
        let fits = words.checked_mul(8) == bytes.checked_sub(body)
            && from.checked_add(said).is_some_and(|to| to <= body);
        if !fits {
            return Err(Error::malformed(24, "the header's numbers contradict each other"));
        }
        if file.get(from as usize..(from + said) as usize) != Some(subject) {
            return Err(Error::malformed(48, "it was made of something else"));
        }
        Ok(layout)
    }

    /// Pages of the body.
    fn pages(&self) -> u64 {
        self.words.div_ceil(PAGE as u64 / 8)
    }

    /// The checksums of the body's pages, out of the file.
    pub fn sums(&self, file: &[u8]) -> Vec<u64> {
        words(file, FIXED, self.pages())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(subject: &[u8], words: &[u64]) -> Vec<u8> {
        let mut file = Vec::new();
        assert_eq!(write(subject, words, &mut file).unwrap(), file.len() as u64);
        file
    }

    #[test]
    fn what_is_written_is_read_back() {
        for count in [0u64, 1, 2_047, 2_048, 2_049, 9_000] {
            let words: Vec<u64> = (0..count).map(|n| (n * n) << 13).collect();
            let file = written(b"of this", &words);
            let layout = Layout::parse(&file, b"of this").unwrap();
            assert_eq!((layout.words, layout.body), (count, PAGE as u64));
            let body = &file[PAGE..];
            assert_eq!(super::words(body, 0, count), words);
            let sums: Vec<u64> = body.chunks(PAGE).map(xxh3_64).collect();
            assert_eq!(layout.sums(&file), sums);
        }
    }

    /// The layout as it is drawn, byte for byte.
    #[test]
    fn the_layout_is_the_one_that_is_drawn() {
        let file = written(b"abc", &[7, 9]);
        let body = [7u64.to_le_bytes(), 9u64.to_le_bytes()].concat();
        assert_eq!(&file[..16], b"STLOOKUP\x01\0\0\0\0\x40\0\0");
        assert_eq!(u64_at(&file, 16), Some(xxh3_64(&file[24..PAGE])));
        let fields: Vec<u64> = (24..56).step_by(8).map(|at| u64_at(&file, at).unwrap()).collect();
        assert_eq!(fields, [PAGE as u64 + 16, 2, PAGE as u64, 3]);
        assert_eq!((u64_at(&file, 56), &file[64..67]), (Some(xxh3_64(&body)), &b"abc"[..]));
        assert!(file[67..PAGE].iter().all(|byte| *byte == 0));
        assert_eq!(&file[PAGE..], body);
    }

    #[test]
    fn what_is_damaged_foreign_or_cut_is_refused() {
        let file = written(b"of this", &[1, 2, 3]);
        for at in 0..PAGE {
            let mut bytes = file.clone();
            bytes[at] ^= 1 << (at % 8);
            assert!(Layout::parse(&bytes, b"of this").is_err(), "byte {at}");
        }
        for end in (0..file.len()).step_by(97).chain([file.len() - 1]) {
            assert!(Layout::parse(&file[..end], b"of this").is_err(), "cut at {end}");
        }
        assert!(Layout::parse(&[&file[..], b"x"].concat(), b"of this").is_err());
        assert!(Layout::parse(&file, b"of that").is_err());
        assert!(Layout::parse(&file, b"of thi").is_err());
        // Whole by its checksum, and yet nonsense.
        for (at, number) in [(32, u64::MAX), (32, 2), (40, 8), (48, u64::MAX), (48, 1 << 20)] {
            let mut bytes = file.clone();
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
            let body = u64_at(&bytes, 40).unwrap() as usize;
            let sum = bytes.get(24..body).map_or(0, xxh3_64);
            bytes[16..24].copy_from_slice(&sum.to_le_bytes());
            assert!(Layout::parse(&bytes, b"of this").is_err(), "{number} at {at}");
        }
    }
}
