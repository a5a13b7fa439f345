use super::*;

#[test]
fn a_raw_datum_is_as_long_as_it_says() {
    let raw = Schema::raw();
    assert_eq!(raw.json(), r#"{"type":"bytes"}"#);
    assert_eq!(raw.skip(&[6, 1, 2, 3, 99]), Ok(4));
    assert_eq!(raw.skip(&[6, 1, 2]).unwrap_err().at, 0);
}
