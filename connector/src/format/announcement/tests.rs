use super::*;

fn fingerprint(file: &str) -> u64 {
    let path = format!("{}/../schemas/{file}", env!("CARGO_MANIFEST_DIR"));
    let schema = apache_avro::Schema::parse_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let bytes = schema.fingerprint::<apache_avro::rabin::Rabin>().bytes;
    u64::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn the_fingerprints_are_the_schema_files() {
    assert_eq!(format!("{ANNOUNCEMENT_FINGERPRINT:#018x}"), format!("{:#018x}", fingerprint("announcement.avsc")));
    assert_eq!(format!("{EPOCH_FINGERPRINT:#018x}"), format!("{:#018x}", fingerprint("epoch.avsc")));
    println!("{:#018x}", fingerprint("letter.avsc"));
}
