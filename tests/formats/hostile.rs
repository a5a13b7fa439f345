//! Bytes that nobody should have written, read: `tests/corpus/FORMAT/*` and the golden files, as they are and made worse.
//!
//! Each is a value or an error that says something; never a panic, never more memory than its bytes account for. A sample
//! of the cases is taken in each run, by a seed that a failure prints (`STILLWELL_SEED=…` repeats it);
//! `STILLWELL_FUZZ=100` takes a hundred times as many. What a case finds is kept: its bytes go into the corpus.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use stillwell::clock::{Clock, Entropy};
use stillwell_tests::workspace;

use crate::allocator;
use crate::mutate::mutate;
use crate::play::{self, ALL, Format};

/// Bytes that the cases of one file come to, in a sample.
const SAMPLE: usize = 400_000;
/// No case takes longer, or it would never end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The files of a format: those of the corpus, and the golden ones, each with its name.
fn files(format: &Format) -> Vec<(String, Vec<u8>)> {
    let root = workspace().join("tests");
    let mut paths: Vec<PathBuf> = format.golden.iter().map(|name| root.join("golden").join(name)).collect();
    let corpus = root.join("corpus").join(format.name);
    let entries = std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display()));
    paths.extend(entries.map(|entry| entry.expect("an entry can be read").path()));
    paths.sort();
    let named = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.strip_prefix(&root).expect("it lies below").display().to_string();
        (name, bytes)
    };
    paths.into_iter().map(named).collect()
}

/// Plays one case; what is wrong with it.
fn case(format: &Format, bytes: &[u8]) -> Result<Result<String, String>, String> {
    let began = Clock::system().now();
    let (played, held) = allocator::most(|| catch_unwind(AssertUnwindSafe(|| (format.play)(bytes))));
    let took = began.elapsed();
    let played = played.map_err(|_| "it panics".to_owned())?;
    let most = format.memory + 300 * bytes.len();
    if held > most {
        return Err(format!(
            "it takes {held} bytes of memory for {} of its own: {most} at most",
            bytes.len()
        ));
    }
    if took > PATIENCE {
        return Err(format!("it takes {took:?}"));
    }
    match &played {
        Err(said) if said.trim().is_empty() || said.len() > 4096 => {
            Err(format!("its error says nothing: {said:?}"))
        }
        _ => Ok(played),
    }
}

fn play_all(format: &Format) {
    let files = files(format);
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("it is a number"));
    let (seed, times) =
        (given("STILLWELL_SEED").unwrap_or_else(|| Entropy::system().next_u64()), given("STILLWELL_FUZZ"));
    let bytes: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
    let (mut values, mut errors) = (0, 0);
    for (file, (name, whole)) in files.iter().enumerate() {
        match case(format, whole) {
            Ok(Ok(_)) => values += 1,
            Ok(Err(_)) => errors += 1,
            Err(wrong) => panic!("tests/{name}: {wrong}"),
        }
        let cases = (SAMPLE / (whole.len() + 200)).clamp(8, 400) * times.unwrap_or(1) as usize;
        let chance = Entropy::seeded(seed.wrapping_add(file as u64));
        for number in 0..cases {
            let mut worse = mutate(&chance, whole, &bytes);
            // Behind a checksum half of the time: whoever writes lies can count them up as well.
            if let Some(reseal) = format.reseal.filter(|_| number % 2 == 0) {
                reseal(&mut worse);
            }
            match case(format, &worse) {
                Ok(Ok(_)) => values += 1,
                Ok(Err(_)) => errors += 1,
                Err(wrong) => {
                    let kept =
                        std::env::temp_dir().join(format!("stillwell-{}-{seed}-{number}", format.name));
                    std::fs::write(&kept, &worse).expect("the case can be kept");
                    panic!(
                        "{}: {name}, case {number} of STILLWELL_SEED={seed}: {wrong}; it lies in {}: mend it, and put it \
                         into tests/corpus/{}",
                        format.name,
                        kept.display(),
                        format.name
                    );
                }
            }
        }
    }
    println!(
        "{}: {} files, {values} values, {errors} errors (STILLWELL_SEED={seed})",
        format.name,
        files.len()
    );
    assert!(values > 0 && errors > 0, "{}: {values} values, {errors} errors", format.name);
}

macro_rules! formats {
    ($($name:ident),*) => {$(
        #[test]
        fn $name() {
            let name = stringify!($name).replace('_', "-");
            play_all(ALL.iter().find(|format| format.name == name).expect("it is one of all"));
        }
    )*
    #[test]
    fn every_format_is_played() {
        assert_eq!(ALL.map(|format| format.name.replace('-', "_")), [$(stringify!($name)),*]);
    }};
}

formats!(
    container,
    snapshot,
    index,
    announcement,
    control,
    letter,
    origin,
    chunk,
    summary,
    note,
    schema,
    avro,
    json,
    protobuf,
    change,
    record
);

/// What a file of the corpus is refused with: which format it has, which one is read, what to do.
#[test]
fn what_is_wrong_is_said() {
    for (file, said) in [
        ("container/future.avro", "format 7; this build reads 1: upgrade it"),
        ("container/foreign.avro", "stillwell.format is missing: not a Stillwell blob"),
        ("container/foreign-codec.avro", "neither null nor zstandard"),
        ("container/not-avro", "not an Avro object container file"),
        ("container/cut.avro", "cut short"),
        ("container/stored-as-plain.avro", "compressed: unpack it first"),
        ("container/block-of-max.avro", "a block of more than 1 GiB"),
        ("container/snappy-lies.avro", "claim to hold"),
        ("container/doubling-schema.avro", "takes no bytes and has more than 256 parts"),
        ("container/metadata-of-max.avro", "cut short"),
        ("container/out-of-order.avro", "out of key order"),
        ("index/future.index", "format 3; this build reads up to 2: upgrade it"),
        ("index/foreign.index", "not an index of Stillwell"),
        ("index/cut.index", "cut short"),
        ("index/numbers-of-max.index", "contradict each other"),
        ("index/other-pages.index", "pages of another size"),
        ("announcement/future.bin", "a newer one wrote it, upgrade this one"),
        ("announcement/foreign.json", "does not begin as Avro single-object encoding does"),
        ("announcement/chain-of-max.bin", "not readable by its schema"),
        ("announcement/contradiction.bin", "it contradicts itself"),
        ("control/future.bin", "a newer one wrote it, upgrade this one"),
        ("letter/future.bin", "does not know; upgrade it"),
        ("origin/future.bin", "no origin"),
        ("chunk/future.bin", "format 9; this build reads up to 3: upgrade it"),
        ("chunk/foreign.bin", "neither a chunk nor its summary"),
        ("chunk/flipped.bin", "the checksum does not match"),
        ("chunk/ranges-of-max.bin", "the content makes no sense"),
        ("summary/future.bin", "format 3; this build reads up to 1: upgrade it"),
        ("schema/doubling-defaults.avsc", "more than 256 parts"),
        ("avro/length-of-max.bin", "not an Avro datum of"),
        ("avro/varint-of-11-bytes.bin", "not an Avro datum of"),
        ("avro/deep.bin", "not an Avro datum of"),
        ("avro/array-of-max.bin", "not an Avro datum of"),
        ("avro/other-voids-of-max.bin", "65536 items that take no bytes"),
        ("avro/id-unknown.bin", "the registry does not know schema id 4096"),
        ("avro/id-negative.bin", "negative schema id"),
        ("avro/magic-wrong.bin", "does not begin with a schema registry's id"),
        ("json/deep.json", "nested deeper than 128 levels"),
        ("json/deep-unknown.json", "nested deeper than 128 levels"),
        ("json/twice-escaped.json", "twice"),
        ("json/key-twice.json", "twice"),
        ("json/number-of-5000-digits.json", "64 bits"),
        ("json/nan.json", "not JSON"),
        ("json/not-utf-8.json", "not UTF-8"),
        ("json/surrogate-alone.json", "surrogate"),
        ("json/null.json", "the word null"),
        ("protobuf/length-of-max.bin", "a length reaches beyond the end"),
        ("protobuf/deep.bin", "nested deeper than 128 levels"),
        ("protobuf/deep-groups.bin", "nested deeper than 128 levels"),
        ("protobuf/not-utf-8.bin", "a string is not UTF-8"),
        ("protobuf/varint-of-11-bytes.bin", "more than 64 bits"),
        ("protobuf/other-wire-type.bin", "another type on the wire"),
        ("protobuf/field-0.bin", "a field's number is 0 or too large"),
        ("change/truncated-table.json", "the table was truncated"),
        ("change/strange-op.json", "none of c, r, u, d and t"),
        ("change/op-twice.json", "occurs twice"),
        ("change/deep.json", "nested deeper than 128 levels"),
        ("change/no-row.json", "no row in `after`"),
        ("record/id-empty.bin", "the header __value_schema_id is empty"),
        ("record/id-short.bin", "the header __value_schema_id ends within the schema id"),
        ("record/id-of-no-kind.bin", "does not begin with a schema registry's id"),
        ("record/id-negative.bin", "begins with a negative schema id"),
        ("record/id-unknown.bin", "the registry does not know schema id 4096"),
        ("record/id-right-then-wrong.bin", "ends within the schema id"),
        ("record/message-indexes-of-max.bin", "the list of indexes behind schema id 9 is none"),
        ("record/count-of-max.bin", "no record as Kafka lays it out"),
    ] {
        let (format, _) = file.split_once('/').expect("a folder");
        let format = ALL.iter().find(|all| all.name == format).expect("a format");
        let path = workspace().join("tests/corpus").join(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let error = match format.name {
            "container" => play::refusals(&bytes),
            _ => (format.play)(&bytes).expect_err(file),
        };
        assert!(error.contains(said), "{file}: {error}");
    }
}

/// The judge is judged: a reader that takes a length at its word, one that panics, one whose error says nothing.
#[test]
fn a_reader_that_believes_its_bytes_is_found() {
    let format = |play| Format { name: "any", golden: &[], play, reseal: None, memory: 1 << 20 };
    let believing = |bytes: &[u8]| {
        let length = u32::from_le_bytes(bytes.try_into().map_err(|_| "cut short")?);
        std::hint::black_box(Vec::<u8>::with_capacity(length as usize));
        Ok("read".to_owned())
    };
    let of = |length: u32| case(&format(believing), &length.to_le_bytes());
    assert_eq!(of(1_000), Ok(Ok("read".to_owned())));
    let found = of(64 << 20).expect_err("it takes 64 MiB for four bytes");
    assert!(found.starts_with("it takes 67108864 bytes of memory for 4 of its own"), "{found}");
    assert_eq!(case(&format(|bytes| Ok(bytes[7].to_string())), b"x"), Err("it panics".to_owned()));
    let silent = case(&format(|_| Err(" ".to_owned())), b"x").expect_err("it says nothing");
    assert!(silent.contains("its error says nothing"), "{silent}");
}
