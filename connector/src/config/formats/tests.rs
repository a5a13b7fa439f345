use super::super::tests::{LEAST, case};
use crate::codec::{Envelope, ExtraFields, Format, KeyFormat, Kind, Values};
use crate::config::Shared;

const URL: &str = "[schema_registry]\nurl = \"http://localhost:8081\"\n";

const OTHER: &[u8] = br#"{"type": "record", "name": "K", "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "int"}]}"#;

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
        let key = br#"{"type": "record", "name": "K", "fields": [{"name": "id", "type": "string"}]}"#;
        let case = case.bytes("key.avsc", key);
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
    let avro = r#""json", key_format = "avro", key_schema = "key.avsc""#;
    let keys = format(&with(avro));
    assert!(matches!(&keys.keys, KeyFormat::Avro(schema) if schema.json().contains("\"K\"")));
    assert!(!keys.asks_registry() && keys.read_only().is_some());
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
            with(r#""json", key_schema = "product.avsc""#),
            "source.key_schema: is for keys with key_format = \"avro\"",
        ),
        (with(r#""json", key_format = "avro", key_schema = "none.avsc""#), "source.key_schema: cannot read"),
        (
            // Several fields, and none of them called as the dataset's key.
            with(r#""json", key_format = "avro", key_schema = "other.avsc""#),
            "source.key_schema: the key field `id`",
        ),
        (
            // What is wrong with the dataset's own key is said first, and of that field alone.
            with(r#""json", key_format = "avro", key_schema = "other.avsc""#)
                .replace(r#"["id"]"#, r#"["id", "idd"]"#),
            "products.key: Product has no field `idd`",
        ),
        (
            with(r#""json", key_format = "protobuf", key_message = "shop.P", descriptor_set = "shop.pb""#),
            "source.key_message: the field `price` of shop.P is none that a key is made of",
        ),
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
        let wrong = case(&text).bytes("shop.pb", &set()).bytes("other.avsc", OTHER).wrong();
        assert!(wrong.len() == 1 && wrong[0].contains(said), "{said}: {wrong:#?}");
    }
    let warned = case(&with(r#""json", envelope = "debezium""#)).right();
    let warnings = warned.warnings().to_string();
    assert!(warnings.contains("source.key_format: the Kafka nulls that Debezium writes"), "{warnings}");
}

/// Two topics more, and what is said of their formats.
fn several(formats: &str) -> String {
    let topics = r#"topics = ["products", "shop.old", "shop-new"]"#;
    format!("{}{formats}", LEAST.replace(r#"topics = ["products"]"#, topics))
        .replace("source = {", "[datasets.products.source]\n")
        .replace(
            ", format = \"json\" }\nschema = \"product.avsc\"\nkey = [\"id\"]\n",
            "\nformat = \"json\"\n",
        )
        .replace("[datasets.products]\n", "[datasets.products]\nschema = \"product.avsc\"\nkey = [\"id\"]\n")
}

fn at(topic: &str) -> String {
    format!("[datasets.products.source.formats.{topic}]\n")
}

#[test]
fn a_topic_has_a_format_of_its_own_and_takes_nothing_from_the_others() {
    let formats = format!("{}format = \"avro\"\nkey_format = \"string\"\n", at("\"shop.old\""));
    let text = several(&formats).replace("format = \"json\"", "format = \"json\"\nextra_fields = \"reject\"");
    let given = case(&text)
        .env("STILLWELL_DATASETS__PRODUCTS__SOURCE__FORMATS__SHOP_OLD__ENVELOPE", "upsert")
        .env("STILLWELL_DATASETS__PRODUCTS__SOURCE__FORMATS__SHOP_OLD__KEY_FORMAT", "json")
        .set("datasets.products.source.formats.shop-new.format", "json")
        .set("storage.blobs", "memory://");
    let config = given.right();
    let shared = Shared::system(&config, crate::telemetry::Metrics::new()).unwrap();
    let format = config.producer("products", &shared).unwrap().format;
    let json = |format: &Format| match format.values {
        Values::Json { extra_fields, .. } => extra_fields,
        _ => panic!("{format:?}"),
    };
    assert_eq!(json(format.of_topic("products")), ExtraFields::Reject);
    assert_eq!(json(format.of_topic("shop-new")), ExtraFields::Ignore, "its own default");
    let old = format.of_topic("shop.old");
    assert!(matches!(old.values, Values::Avro { .. }), "{old:?}");
    assert!(matches!(old.keys, KeyFormat::Json), "the variable, over the file: {old:?}");
    let shown = crate::config::to_toml(&config.shown());
    let section = shown.split_once(&at("\"shop.old\"")).map(|(_, rest)| rest).expect("it is shown");
    assert!(section.starts_with("format = \"avro\""), "{section}");
    assert_eq!(case(&shown).right().shown().len(), config.shown().len(), "what is shown can be read");
    // All of a topic at once, by its whole name.
    let raw = case(&several("")).set("datasets.products.source.formats.shop.old", "{ format = \"raw\" }");
    let wrong = raw.wrong();
    assert!(wrong.len() == 1 && wrong[0].contains("raw values need the schema"), "{wrong:#?}");
}

#[test]
fn what_is_wrong_with_a_topics_format_is_said_of_it() {
    let old = at("\"shop.old\"");
    for (formats, said) in [
        (
            format!("{}format = \"json\"\n", at("shop_new")),
            "source.formats.shop_new: is none of the source's topics; did you mean \"shop-new\"?",
        ),
        (
            format!("{old}fromat = \"json\"\n"),
            "source.formats.\"shop.old\".fromat: unknown key; did you mean datasets.products.source.formats.\"shop.old\".format?",
        ),
        (old.clone(), "source.formats.\"shop.old\".format: is missing"),
        (format!("{old}format = \"jsn\"\n"), "\"shop.old\".format: \"jsn\" is not one of avro, json"),
        (format!("{old}format = \"raw\"\n"), "\"shop.old\".format: raw values need the schema"),
        (format!("{old}format = \"protobuf\"\n"), "\"shop.old\".message: is missing"),
        (format!("{old}format = \"json\"\nregistry = true\n"), "\"shop.old\".registry: needs a registry"),
        (
            format!("{old}format = \"protobuf\"\ndescriptor_set = \"shop.pb\"\nmessage = \"shop.K\"\n"),
            "\"shop.old\".message: the message shop.K does not make the dataset's records",
        ),
        (
            format!("{old}format = \"raw\"\nenvelope = \"debezium\"\n"),
            "\"shop.old\".envelope: \"debezium\" is for avro and json",
        ),
        (
            format!(
                "{old}format = \"json\"\nenvelope = \"debezium\"\nkey_format = \"json\"\n\
                 [datasets.products.producer.spill]\nshed = \"dead_letter\"\n"
            ),
            "is not for a source that is only read (datasets.products.source.formats.\"shop.old\")",
        ),
    ] {
        let wrong = case(&several(&formats)).bytes("shop.pb", &set()).wrong();
        assert!(wrong.len() == 1 && wrong[0].contains(said), "{said}: {wrong:#?}");
    }
    let slip = case(&several("")).set("datasets.products.source.formats.shop.old.fromat", "json").wrong();
    assert!(slip.len() == 1 && slip[0].contains("did you mean"), "{slip:?}");
}

#[test]
fn topics_of_other_formats_do_not_give_the_schema() {
    let text = several("").replace("schema = \"product.avsc\"\n", "");
    let text = format!("{}{URL}", text.replace("format = \"json\"\n", "format = \"avro\"\n"));
    let config = case(&(text.clone() + &at("products") + "format = \"json\"\n")).right();
    assert_eq!(config.adopting(), [("products".to_owned(), "shop.old-value".to_owned())]);
    let bare = text + &format!("{}format = \"avro\"\nregistry = false\n", at("shop-new"));
    let wrong = case(&bare).wrong();
    assert!(
        wrong.len() == 1 && wrong[0].contains("shop-new.schema: is missing: the schema of these values"),
        "{wrong:#?}"
    );
}
