use super::*;
use crate::format::letter::LETTER_FINGERPRINT;

fn fingerprint(file: &str) -> u64 {
    let path = format!("{}/../schemas/{file}", env!("CARGO_MANIFEST_DIR"));
    let schema = apache_avro::Schema::parse_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let bytes = schema.fingerprint::<apache_avro::rabin::Rabin>().bytes;
    u64::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn the_fingerprints_are_the_schema_files() {
    let in_code = [ANNOUNCEMENT_FINGERPRINT, EPOCH_FINGERPRINT, LETTER_FINGERPRINT];
    let of_files = ["announcement.avsc", "epoch.avsc", "letter.avsc"].map(fingerprint);
    assert_eq!(in_code.map(|f| format!("{f:#018x}")), of_files.map(|f| format!("{f:#018x}")));
}
