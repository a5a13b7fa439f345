//! Values of topics, in each of their formats: what is read is a datum of the dataset's schema, and shows as JSON.

use std::sync::{Arc, LazyLock};

use stillwell::codec::proto::File;
use stillwell::codec::{
    self, Codec, Encoded, Envelope, ExtraFields, Format, KeyFormat, KeyRule, Kind, SchemaId,
};
use stillwell::schema::Schema;

/// What messages, changes and datums are read as.
const PRODUCT: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},
    {"name":"stock","type":"long"},
    {"name":"price","type":["null","double"],"default":null},
    {"name":"sizes","type":{"type":"array","items":"int"},"default":[]},
    {"name":"counts","type":{"type":"map","values":"long"},"default":{}},
    {"name":"next","type":["null","Product"],"default":null},
    {"name":"all","type":{"type":"array","items":"Product"},"default":[]}]}"#;
/// What other writers of Avro have: what has to be promoted, passed over, and looked at though it takes no bytes.
const WRITTEN: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"voids","type":{"type":"array","items":"null"}},
    {"name":"stock","type":"int"},
    {"name":"id","type":"bytes"},
    {"name":"price","type":["null","int","float"]},
    {"name":"next","type":["null","Product"]},
    {"name":"note","type":["string",{"type":"map","values":"bytes"}]}]}"#;
/// The same of a message.
const MESSAGE: &str = r#"syntax = "proto3";
    message Product {
      string id = 1; int64 stock = 2; optional double price = 3; repeated int32 sizes = 4;
      map<string, int64> counts = 5; Product next = 6; repeated Product all = 7;
      oneof which { string one = 8; bytes two = 9; }
    }"#;
/// What texts are read as: a field of each type, and a union of what can be mistaken for each other.
const EVERYTHING: &str = r#"{"type":"record","name":"Value","fields":[
    {"name":"id","type":"string"},
    {"name":"yes","type":"boolean","default":false},
    {"name":"int","type":"int","default":0},
    {"name":"long","type":"long","default":0},
    {"name":"float","type":"float","default":0},
    {"name":"double","type":"double","default":0},
    {"name":"bytes","type":"bytes","default":""},
    {"name":"fixed","type":{"type":"fixed","name":"Three","size":3},"default":"abc"},
    {"name":"state","type":{"type":"enum","name":"State","symbols":["NEW","USED"]},"default":"NEW"},
    {"name":"list","type":{"type":"array","items":"long"},"default":[]},
    {"name":"map","type":{"type":"map","values":"double"},"default":{}},
    {"name":"any","type":["null","int","long","double","State","bytes","string",{"type":"array","items":"Value"},
        "Value",{"type":"record","name":"Small","fields":[{"name":"id","type":"int"}]},{"type":"map","values":"long"}],
     "default":null}]}"#;

/// Made once: text is slow to compile, and there are many cases.
pub static FILE: LazyLock<Arc<File>> =
    LazyLock::new(|| Arc::new(File::compile(MESSAGE, &[]).expect("a file")));
/// The same of the schema.
pub static SCHEMA: LazyLock<Arc<Schema>> = LazyLock::new(|| schema(PRODUCT));
static OTHER: LazyLock<Arc<Schema>> = LazyLock::new(|| schema(WRITTEN));
static ALL: LazyLock<Arc<Schema>> = LazyLock::new(|| schema(EVERYTHING));

/// The ids that the registry knows.
pub const OWN_ID: u32 = 7;
/// The other writers'.
pub const OTHER_ID: u32 = 8;

fn schema(text: &str) -> Arc<Schema> {
    Arc::new(Schema::dataset(text).expect("a schema"))
}

/// What a codec makes of a value: a datum of its schema, as JSON; `None` deletes.
fn read(codec: &mut Codec, schema: &Schema, bytes: &[u8]) -> Result<Option<String>, String> {
    let record = Encoded { key: Some(br#"{"id":"k"}"#), value: Some(bytes), ..Encoded::default() };
    let decoded = codec.read(record).map_err(|unread| {
        let misfit = unread.misfit();
        assert!(misfit.message.len() < 2_000, "{misfit}");
        misfit.message
    })?;
    let Some(datum) = decoded.value else { return Ok(None) };
    assert_eq!(schema.validate(datum), Ok(datum.len()));
    let mut text = String::new();
    codec::text::to_json(schema, datum, &mut text).map_err(|malformed| malformed.to_string())?;
    Ok(Some(text))
}

fn codec(format: Format, key: KeyRule, schema: &Arc<Schema>) -> Codec {
    Codec::new(format, key, Arc::clone(schema)).expect("they go together")
}

fn said(read: Option<String>) -> String {
    read.map_or("deleted".to_owned(), |text| format!("{} bytes of JSON", text.len()))
}

/// A value by the rules of `format`, in a dataset of products.
fn product(format: Format, key: KeyRule, bytes: &[u8]) -> Result<String, String> {
    read(&mut codec(format, key, &SCHEMA), &SCHEMA, bytes).map(said)
}

/// A datum passed through, one resolved, and either by its id.
pub fn avro(bytes: &[u8]) -> Result<String, String> {
    let bare =
        [&SCHEMA, &OTHER].map(|writer| product(Format::avro(Arc::clone(writer)), KeyRule::Kafka, bytes));
    let mut registered = codec(Format::registered(Kind::Avro), KeyRule::Kafka, &SCHEMA);
    for (id, writer) in [(OWN_ID, &SCHEMA), (OTHER_ID, &OTHER)] {
        registered.learn(SchemaId::Number(id), Ok(&Arc::clone(writer).into()));
    }
    let ways = bare.into_iter().chain([read(&mut registered, &SCHEMA, bytes).map(said)]);
    let (read, refused): (Vec<_>, Vec<_>) = ways.partition(Result::is_ok);
    match read.into_iter().next() {
        Some(read) => read,
        None => Err(refused.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; ")),
    }
}

/// A text, by both rules for what the schema does not know. What is shown of it is read again and shown the same.
pub fn json(bytes: &[u8]) -> Result<String, String> {
    let [mut lenient, mut strict] = [ExtraFields::Ignore, ExtraFields::Reject]
        .map(|extra| codec(Format::json(extra), KeyRule::Kafka, &ALL));
    let strictly = read(&mut strict, &ALL, bytes);
    let shown = read(&mut lenient, &ALL, bytes);
    if let Ok(strictly) = strictly {
        assert_eq!(shown.as_ref(), Ok(&strictly), "what is taken strictly is taken leniently, as the same");
    }
    let shown = shown?;
    let text = shown.as_deref().expect("a text deletes nothing");
    assert_eq!(read(&mut strict, &ALL, text.as_bytes()).as_ref(), Ok(&shown));
    Ok(said(shown))
}

pub fn protobuf(bytes: &[u8]) -> Result<String, String> {
    let message = Arc::new(FILE.message(&[0]).expect("a message"));
    product(Format::protobuf(message), KeyRule::Kafka, bytes)
}

pub fn change(bytes: &[u8]) -> Result<String, String> {
    let format = Format::json(ExtraFields::Ignore).within(Envelope::Debezium);
    product(format.with_keys(KeyFormat::Json), KeyRule::Fields(vec!["id".to_owned()]), bytes)
}
