use super::super::tests::{LEAST, case};
use crate::codec::{Envelope, KeyFormat, Kind, Values};
use crate::config::Shared;

const URL: &str = "[schema_registry]\nurl = \"http://localhost:8081\"\n";

/// The least, with this in place of `"json"`.
fn with(source: &str) -> String {
    LEAST.replace("\"json\"", source)
}

/// A descriptor set of one message `shop.P` with a string `id` and a double `price`, and one `shop.K` with an int64 `id`.
fn set() -> Vec<u8> {
    let text = r#"syntax = "proto3"; package shop; message P { string id = 1; double price = 2; } message K { int64 id = 1; }"#;
    let mut pool = prost_reflect::DescriptorPool::new();
    pool.add_file_descriptor_proto(protox_parse::parse("shop.proto", text).unwrap()).unwrap();
    pool.encode_to_vec()
}

#[test]
fn formats_are_taken_as_they_are_written() {
    let format = |text: &str| {
        let case = case(text).set("storage.blobs", "memory://").bytes("shop.pb", &set());
        let shared = |config: &crate::config::Config| {
            Shared::system(config, crate::telemetry::Metrics::new()).unwrap()
        };
        let config = case.right();
        config.producer("products", &shared(&config)).unwrap().format
    };
    let change = format(&with(r#""json", envelope = "debezium", key_format = "json""#));
    assert_eq!(change.envelope, Envelope::Debezium);
    assert!(matches!(change.keys, KeyFormat::Json));
    let bare = r#""protobuf", descriptor_set = "shop.pb", message = "shop.P""#;
    for text in [with(bare), format!("{}{URL}", with(bare))] {
        let bare = format(&text);
        assert!(matches!(&bare.values, Values::Protobuf { message } if message.name() == "shop.P"));
    }
    let keys = format(&with(&format!("{bare}, key_format = \"protobuf\", key_message = \"shop.K\"")));
    assert!(matches!(&keys.keys, KeyFormat::Protobuf(message) if message.name() == "shop.K"));
    let registered = format(&format!("{}{URL}", with(r#""protobuf", key_format = "protobuf""#)));
    assert!(matches!(registered.values, Values::Registered(Kind::Protobuf)));
    assert!(matches!(registered.keys, KeyFormat::Registered(Kind::Protobuf)));
    assert!(matches!(format(&with(r#""json", key_format = "string""#)).keys, KeyFormat::Text));
}

#[test]
fn what_does_not_go_together_is_said() {
    let bare = r#""protobuf", descriptor_set = "shop.pb", message = "shop.P""#;
    for (text, said) in [
        (with(r#""raw", envelope = "debezium""#), "source.envelope: \"debezium\" is for avro and json"),
        (with(r#""protobuf""#), "source.message: is missing"),
        (with(r#""protobuf", message = "shop.P""#), "source.message: needs descriptor_set"),
        (with(&bare.replace("shop.P", "shop.Q")), "shop.pb has no message \"shop.Q\"; it has shop.P, shop.K"),
        (
            with(&bare.replace("shop.pb", "product.avsc")),
            "source.descriptor_set: product.avsc is no descriptor set",
        ),
        (with(&bare.replace("shop.pb", "none.pb")), "source.descriptor_set: cannot read"),
        (
            with(&bare.replace("shop.P", "shop.K")),
            "source.message: the message shop.K does not make the dataset's records: `id`: int64",
        ),
        (with(&format!("{bare}, registry = true")), "source.registry: needs a registry"),
        (
            format!("{}{URL}", with(&format!("{bare}, registry = true"))),
            "source.message: is not for values whose schemas",
        ),
        (
            with(r#""json", descriptor_set = "shop.pb""#),
            "source.descriptor_set: does nothing without message",
        ),
        (with(r#""json", message = "shop.P""#), "source.message: is for protobuf, not for json"),
        (
            with(r#""json", key_message = "shop.K""#),
            "source.key_message: is for keys with key_format = \"protobuf\"",
        ),
        (with(r#""json", key_format = "protobuf""#), "source.key_format: needs the type of keys"),
        (
            with(r#""json", envelope = "debezium", key_format = "json""#)
                + "[datasets.products.producer.spill]\nshed = \"dead_letter\"\n",
            "spill.shed: \"dead_letter\" is not for a source that is only read",
        ),
        (
            format!(
                "{}{URL}",
                with(r#""avro", envelope = "debezium""#).replace("schema = \"product.avsc\"\n", "")
            ),
            "products.schema: is missing: the registry has the schema of changes",
        ),
        (with(r#""avro", envelope = "debezium""#), "products.schema: the schema is none of a change"),
    ] {
        let wrong = case(&text).bytes("shop.pb", &set()).wrong();
        assert!(wrong.len() == 1 && wrong[0].contains(said), "{said}: {wrong:#?}");
    }
    let warned = case(&with(r#""json", envelope = "debezium""#)).right();
    let warnings = warned.warnings().to_string();
    assert!(warnings.contains("source.key_format: the Kafka nulls that Debezium writes"), "{warnings}");
}
