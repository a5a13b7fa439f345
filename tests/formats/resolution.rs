//! Schema resolution against Avro's reference implementation in Java: datums that it makes, read by both. Every promotion, in
//! every place; each rule that has a name; and schemas made at random, with random changes.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use stillwell::schema::{Resolver, Schema};
use stillwell_tests::campaign::Chance;
use stillwell_tests::{avro_tools, workspace};

/// What Java made of a pair.
struct Reference {
    compatible: bool,
    /// A datum as it was written, and as it is read; `None`: refused.
    datums: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().map(|digit| digit.to_digit(16).expect("a hexadecimal digit") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// All pairs of writer's and reader's schema, in one process of Java.
fn reference(pairs: &[(String, String)]) -> Vec<Reference> {
    let mut java = Command::new("java")
        .arg("-cp")
        .arg(avro_tools())
        .arg(workspace().join("tests/formats/Resolve.java"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Java 17 or newer runs");
    let mut input = java.stdin.take().expect("piped");
    let lines: String = pairs.iter().map(|(writer, reader)| format!("{writer}\t{reader}\n")).collect();
    let feed = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let done = java.wait_with_output().expect("it ends");
    feed.join().expect("no panic").expect("it reads all");
    assert!(done.status.success(), "see stderr");
    let text = String::from_utf8(done.stdout).expect("it is ASCII");
    let made: Vec<Reference> = text
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let compatible = words.next() == Some("true");
            let datum = |word: &str| {
                let (written, read) = word.split_once(':').expect("a pair");
                (bytes(written), (read != "!").then(|| bytes(read)))
            };
            Reference { compatible, datums: words.map(datum).collect() }
        })
        .collect();
    assert_eq!(made.len(), pairs.len());
    made
}

/// How often each came out, so that a test that compares nothing is seen.
#[derive(Debug, Default)]
struct Tally {
    compatible: usize,
    refused: usize,
    partly: usize,
    read: usize,
    misfits: usize,
}

/// Holds ours against Java's. Where ours is stricter is said here, and nowhere else:
/// - bytes that are read as a string have to be UTF-8: blobs are read by others, and Java keeps any bytes as text;
/// - what Java's `SchemaCompatibility` refuses and its reader reads all the same (records of other names) is refused.
fn compare(pairs: &[(String, String)]) -> Tally {
    let mut tally = Tally::default();
    for ((writer, reader), java) in pairs.iter().zip(reference(pairs)) {
        let pair = format!("writer {writer}\nreader {reader}");
        let parsed = |json: &str, parse: fn(&str) -> Result<Schema, stillwell::schema::Error>| {
            Arc::new(parse(json).unwrap_or_else(|error| panic!("{error}: {json}")))
        };
        let (writes, reads) = (parsed(writer, Schema::writers), parsed(reader, Schema::parse));
        let resolver = match Resolver::new(&writes, &reads) {
            Ok(resolver) => resolver,
            Err(error) => {
                assert!(!java.compatible, "{error}\n{pair}");
                tally.refused += 1;
                continue;
            }
        };
        if java.compatible {
            tally.compatible += 1;
        } else {
            // Single branches or symbols that the reader does not have: of those datums alone.
            assert!(!resolver.is_total(), "Java refuses it\n{pair}");
            tally.partly += 1;
        }
        for (written, expected) in java.datums {
            let mut read = Vec::new();
            let ours = resolver.resolve(&written, &mut read).map(|()| read);
            match (ours, expected) {
                (Ok(ours), Some(expected)) => {
                    assert_eq!(ours, expected, "{written:02x?}\n{pair}");
                    assert_eq!(reads.validate(&ours), Ok(ours.len()), "{pair}");
                    tally.read += 1;
                }
                (Err(_), None) => tally.misfits += 1,
                (Err(error), Some(expected)) => {
                    assert!(error.what.contains("not UTF-8"), "{error}: Java reads {expected:02x?}\n{pair}");
                    assert!(String::from_utf8(expected).is_err(), "{pair}");
                }
                (Ok(ours), None) => panic!("Java refuses {written:02x?}, ours is {ours:02x?}\n{pair}"),
            }
            assert!(
                !java.compatible
                    || !resolver.is_total()
                    || resolver.resolve(&written, &mut Vec::new()).is_ok()
            );
        }
    }
    tally
}

fn record(name: &str, fields: Value) -> Value {
    json!({"type": "record", "name": name, "fields": fields})
}

fn nullable(it: &str) -> Value {
    if it == "null" { json!(["null"]) } else { json!(["null", it]) }
}

const PRIMITIVES: [&str; 8] = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];

#[test]
fn every_primitive_in_every_place_is_promoted_as_avro_does() {
    type Place = fn(&str) -> Value;
    let places: [Place; 8] = [
        |it| json!(it),
        |it| record("R", json!([{"name": "f", "type": it}])),
        |it| record("R", json!([{"name": "f", "type": record("I", json!([{"name": "g", "type": it}]))}])),
        |it| json!({"type": "array", "items": it}),
        |it| json!({"type": "map", "values": it}),
        |it| json!([{"type": "map", "values": "null"}, it]),
        |it| record("R", json!([{"name": "f", "type": nullable(it)}])),
        |it| json!({"type": "array", "items": {"type": "map", "values": record("R", json!([{"name": "f", "type": it}]))}}),
    ];
    let mut pairs = Vec::new();
    for writer in PRIMITIVES {
        for reader in PRIMITIVES {
            let both = places.iter().map(|place| (place(writer).to_string(), place(reader).to_string()));
            pairs.extend(both);
            // Into a union, and out of one.
            pairs.push((
                json!(writer).to_string(),
                json!([{"type": "map", "values": "int"}, reader]).to_string(),
            ));
            pairs.push((
                json!([{"type": "map", "values": "int"}, writer]).to_string(),
                json!(reader).to_string(),
            ));
        }
    }
    let tally = compare(&pairs);
    println!("{} pairs: {tally:?}", pairs.len());
    assert!(tally.compatible > 120 && tally.refused > 250 && tally.read > 1_000, "{tally:?}");
}

#[test]
fn every_rule_that_has_a_name_is_avros() {
    let f = |kind: Value| json!({"name": "f", "type": kind});
    let new = |kind: Value, default: Value| json!({"name": "new", "type": kind, "default": default});
    let ints = || record("R", json!([f(json!("int"))]));
    let with = |field: Value| record("R", json!([{"name": "f", "type": "int"}, field]));
    let symbols = |name: &str, list: &[&str]| json!({"type": "enum", "name": name, "symbols": list});
    let fixed = |name: &str, size: u8| json!({"type": "fixed", "name": name, "size": size});
    let tree = |value: &str, more: Value| {
        let mut fields = vec![
            json!({"name": "value", "type": value}),
            json!({"name": "sub", "type": {"type": "array", "items": "Tree"}}),
        ];
        fields.extend(more.as_array().cloned().into_iter().flatten());
        record("Tree", json!(fields))
    };
    let logical = |kind: &str, logical: &str| json!({"type": kind, "logicalType": logical});
    let mut enum_default = symbols("E", &["C", "A"]);
    enum_default["default"] = json!("A");
    let mut alias_of_type = record("New", json!([f(json!("long"))]));
    alias_of_type["aliases"] = json!(["R"]);
    let renamed = |aliases: &[&str]| record("R", json!([{"name": "g", "aliases": aliases, "type": "long"}]));
    let list: Vec<(Value, Value)> = vec![
        // fields
        (ints(), with(new(json!("string"), json!("s")))),
        (with(json!({"name": "old", "type": "string"})), ints()),
        (
            with(json!({"name": "old", "type": "string"})),
            record("R", json!([{"name": "old", "type": "bytes"}, f(json!("double"))])),
        ),
        (ints(), with(json!({"name": "new", "type": "string"}))),
        (ints(), renamed(&["f"])),
        (ints(), renamed(&["e", "f"])),
        (ints(), renamed(&["e"])),
        (ints(), alias_of_type),
        (ints(), record("Other", json!([f(json!("int"))]))),
        (ints(), record("n.R", json!([f(json!("int"))]))),
        // defaults of each type
        (ints(), with(new(json!("null"), Value::Null))),
        (ints(), with(new(json!("boolean"), json!(true)))),
        (ints(), with(new(json!("long"), json!(-9)))),
        (ints(), with(new(json!("float"), json!(1.5)))),
        (ints(), with(new(json!("double"), json!(1)))),
        (ints(), with(new(json!("bytes"), json!("\u{0}\u{ff}")))),
        (ints(), with(new(fixed("F", 2), json!("ab")))),
        (ints(), with(new(symbols("E", &["A", "B"]), json!("B")))),
        (ints(), with(new(json!({"type": "array", "items": "int"}), json!([1, 2])))),
        (ints(), with(new(json!({"type": "map", "values": "int"}), json!({"a": 1})))),
        (ints(), with(new(json!(["null", "int"]), Value::Null))),
        (ints(), with(new(json!(["int", "null"]), json!(7)))),
        (
            ints(),
            with(new(
                record(
                    "I",
                    json!([{"name": "a", "type": "int"}, {"name": "b", "type": "int", "default": 3}]),
                ),
                json!({"a": 1}),
            )),
        ),
        // enums
        (symbols("E", &["A", "B", "C"]), symbols("E", &["C", "B", "A"])),
        (symbols("E", &["A", "B"]), symbols("E", &["A", "B", "C"])),
        (symbols("E", &["A", "B", "C"]), symbols("E", &["C", "A"])),
        (symbols("E", &["A", "B", "C"]), enum_default.clone()),
        (symbols("E", &["A", "B"]), symbols("G", &["A", "B"])),
        (record("R", json!([f(symbols("E", &["A", "B", "C"]))])), record("R", json!([f(enum_default)]))),
        // fixed
        (fixed("F", 3), fixed("F", 3)),
        (fixed("F", 3), fixed("F", 4)),
        (fixed("F", 3), fixed("G", 3)),
        // unions
        (json!(["null", "string"]), json!(["string", "null"])),
        (json!(["int", "string"]), json!(["double", "bytes"])),
        (json!(["null", "int", "string"]), json!(["null", "int"])),
        (json!("int"), json!(["string", "double", "long"])),
        (json!("int"), json!(["double", "int"])),
        (json!(["null", "int"]), json!("long")),
        (json!(["null", "int"]), json!(["boolean", "string"])),
        (
            json!(["null", ints()]),
            json!([record("R", json!([f(json!("double")), new(json!("int"), json!(1))])), "null"]),
        ),
        (
            json!(["string", record("S", json!([f(json!("string"))])), ints()]),
            json!([ints(), "string", record("S", json!([]))]),
        ),
        (json!(["float", "int"]), json!(["null", "double"])),
        // lists and maps
        (
            json!({"type": "array", "items": ints()}),
            json!({"type": "array", "items": with(new(json!("int"), json!(1)))}),
        ),
        (
            json!({"type": "map", "values": ["null", "int"]}),
            json!({"type": "map", "values": ["double", "null"]}),
        ),
        (json!({"type": "array", "items": "int"}), json!({"type": "map", "values": "int"})),
        // recursion
        (tree("int", json!([])), tree("double", json!([new(json!("string"), json!("n"))]))),
        (tree("int", json!([new(json!("int"), json!(0))])), tree("long", json!([]))),
        (tree("int", json!([])), tree("string", json!([]))),
        (
            record("L", json!([{"name": "v", "type": "int"}, {"name": "next", "type": ["null", "L"]}])),
            record("L", json!([{"name": "next", "type": ["L", "null"]}, {"name": "v", "type": "float"}])),
        ),
        // logical types are what lies beneath
        (logical("int", "date"), json!("int")),
        (logical("int", "date"), logical("long", "timestamp-millis")),
        (logical("long", "timestamp-millis"), json!("double")),
        (logical("string", "uuid"), json!("bytes")),
        (json!("int"), logical("int", "time-millis")),
        (logical("long", "timestamp-micros"), logical("int", "date")),
    ];
    let pairs: Vec<_> = list.iter().map(|(one, two)| (one.to_string(), two.to_string())).collect();
    // Both directions.
    let back = pairs.iter().map(|(one, two)| (two.clone(), one.clone()));
    let pairs: Vec<_> = pairs.iter().cloned().chain(back).collect();
    let tally = compare(&pairs);
    println!("{} pairs: {tally:?}", pairs.len());
    assert!(
        tally.compatible > 50 && tally.refused > 20 && tally.partly > 5 && tally.misfits > 10,
        "{tally:?}"
    );
}

/// Ours alone: Java's generic reader knows decimals as bytes, and gives another number without a word.
/// What Java's writers have written with, and our own parser refuses for a schema of ours: namespaces that are none, names of other
/// scripts, defaults that fit no type. The reader's are as they must be.
#[test]
fn schemas_of_writers_that_no_reader_may_have_are_read_as_avro_reads_them() {
    let f = |name: &str, kind: Value| json!({"name": name, "type": kind});
    let spaced = |space: &str, fields: Value| {
        let mut record = record("R", fields);
        record["namespace"] = json!(space);
        record
    };
    let wrong = |kind: &str, default: Value| json!({"name": "f", "type": kind, "default": default});
    let reader = || record("R", json!([f("f", json!("long"))]));
    let list = [
        (spaced("com.my-company", json!([f("f", json!("int"))])), reader()),
        (spaced("1.2 3", json!([f("f", json!("int"))])), reader()),
        (record("R", json!([f("größe", json!("int")), f("f", json!("int"))])), reader()),
        (record("R", json!([wrong("int", Value::Null)])), reader()),
        (record("R", json!([wrong("long", json!("seven"))])), reader()),
        (
            spaced("a-b", json!([f("f", json!("int")), f("sub", json!(["null", "a-b.R"]))])),
            record("R", json!([f("f", json!("long")), f("sub", json!(["null", "R"]))])),
        ),
    ];
    let pairs: Vec<(String, String)> =
        list.iter().map(|(writer, reader)| (writer.to_string(), reader.to_string())).collect();
    for (writer, _) in &pairs {
        Schema::parse(writer).expect_err("none of ours");
    }
    let tally = compare(&pairs);
    assert_eq!((tally.compatible, tally.refused), (pairs.len(), 0), "{tally:?}");
    assert!(tally.read > 60, "{tally:?}");
}

#[test]
fn decimals_of_another_scale_are_refused() {
    let decimal = |precision: u8, scale: u8| {
        let json = json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale});
        Arc::new(Schema::parse(&json.to_string()).expect("a schema"))
    };
    let error = Resolver::new(&decimal(9, 2), &decimal(9, 4)).expect_err("other numbers").to_string();
    assert!(error.ends_with("the schema: a decimal of scale 2 is read as one of scale 4"), "{error}");
    assert!(Resolver::new(&decimal(9, 2), &decimal(8, 2)).is_err(), "digits would be lost");
    assert!(Resolver::new(&decimal(9, 2), &decimal(12, 2)).is_ok());
}

/// Schemas at random, and what becomes of them.
struct Maker {
    chance: Chance,
    names: usize,
}

impl Maker {
    fn below(&mut self, limit: usize) -> usize {
        self.chance.below(limit as u64) as usize
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.chance.one_in(chances)
    }

    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    fn schema(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 10 } else { 16 }) {
            at @ 0..=7 => json!(PRIMITIVES[at]),
            8 => {
                let count = 1 + self.below(4);
                json!({"type": "enum", "name": self.name("E"), "symbols": Vec::from(&["A", "B", "C", "D"][..count])})
            }
            9 => json!({"type": "fixed", "name": self.name("F"), "size": 1 + self.below(3)}),
            10 => json!({"type": "array", "items": self.schema(depth - 1)}),
            11 => json!({"type": "map", "values": self.schema(depth - 1)}),
            12 => self.union(depth - 1),
            _ => {
                let fields: Vec<Value> = (0..self.below(5))
                    .map(|at| json!({"name": format!("f{at}"), "type": self.schema(depth - 1)}))
                    .collect();
                record(&self.name("R"), json!(fields))
            }
        }
    }

    fn union(&mut self, depth: usize) -> Value {
        let mut branches: Vec<Value> = Vec::new();
        for _ in 0..1 + self.below(4) {
            let branch = self.schema(depth);
            let kind = |it: &Value| it.get("type").unwrap_or(it).clone();
            // Each kind once: what the named ones may, unions of unions and two lists may not.
            if !branch.is_array() && branches.iter().all(|have| kind(have) != kind(&branch)) {
                branches.push(branch);
            }
        }
        if branches.is_empty() { json!(["null"]) } else { json!(branches) }
    }

    /// As somebody might change it.
    fn changed(&mut self, schema: &Value) -> Value {
        if let Some(branches) = schema.as_array() {
            let mut branches: Vec<Value> = branches.iter().map(|branch| self.changed(branch)).collect();
            branches.retain(|branch| !branch.is_array());
            if branches.len() > 1 && self.one_in(4) {
                branches.remove(self.below(branches.len()));
            }
            if self.one_in(3) {
                branches.reverse();
            }
            let mut seen = Vec::new();
            branches.retain(|branch| {
                let kind = branch.get("type").unwrap_or(branch).clone();
                !seen.contains(&kind) && {
                    seen.push(kind);
                    true
                }
            });
            return match branches.len() {
                0 => json!(["null"]),
                1 if self.one_in(2) => branches.remove(0),
                _ => json!(branches),
            };
        }
        if self.one_in(12) {
            return self.schema(1);
        }
        if self.one_in(8) && !schema.is_array() {
            return match schema == "null" {
                true => json!(["null", "int"]),
                false => json!(["null", schema]),
            };
        }
        match schema.as_str() {
            Some(name) => json!(match (name, self.below(3)) {
                ("int", 1) => "long",
                ("int", 2) => "double",
                ("long", 1) => "float",
                ("float", 1) => "double",
                ("string", 1) => "bytes",
                _ => name,
            }),
            None => self.composite(schema.clone()),
        }
    }

    fn composite(&mut self, mut schema: Value) -> Value {
        match schema["type"].as_str() {
            Some("array") => schema["items"] = self.changed(&schema["items"].clone()),
            Some("map") => schema["values"] = self.changed(&schema["values"].clone()),
            Some("enum") => {
                let mut symbols = schema["symbols"].as_array().cloned().expect("symbols");
                match self.below(4) {
                    0 => symbols.push(json!("Z")),
                    1 if symbols.len() > 1 => drop(symbols.remove(self.below(symbols.len()))),
                    2 => symbols.reverse(),
                    _ => {}
                }
                if self.one_in(3) {
                    schema["default"] = symbols[0].clone();
                }
                schema["symbols"] = json!(symbols);
            }
            Some("fixed") if self.one_in(6) => schema["size"] = json!(4),
            Some("record") => {
                let mut fields = schema["fields"].as_array().cloned().expect("fields");
                for field in &mut fields {
                    field["type"] = self.changed(&field["type"].clone());
                    if self.one_in(6) {
                        let name = field["name"].clone();
                        (field["name"], field["aliases"]) =
                            (json!(format!("g_{}", name.as_str().expect("text"))), json!([name]));
                    }
                }
                if !fields.is_empty() && self.one_in(3) {
                    fields.remove(self.below(fields.len()));
                }
                if self.one_in(3) {
                    fields.push(json!({"name": "added", "type": ["null", "long"], "default": null}));
                }
                if self.one_in(4) {
                    fields.insert(0, json!({"name": "first", "type": "double", "default": 0.5}));
                }
                if self.one_in(10) {
                    fields.push(json!({"name": "lacking", "type": "int"}));
                }
                if self.one_in(3) {
                    fields.reverse();
                }
                schema["fields"] = json!(fields);
                if self.one_in(8) {
                    let name = schema["name"].clone();
                    (schema["name"], schema["aliases"]) =
                        (json!(format!("Z{}", name.as_str().expect("text"))), json!([name]));
                }
            }
            _ => {}
        }
        schema
    }
}

#[test]
fn schemas_at_random_resolve_as_avros_do() {
    let mut maker = Maker { chance: Chance::seeded(20_261), names: 0 };
    let pairs: Vec<(String, String)> = (0..600)
        .map(|_| {
            let fields: Vec<Value> = (0..1 + maker.below(4))
                .map(|at| json!({"name": format!("f{at}"), "type": maker.schema(2)}))
                .collect();
            let writer = record("Top", json!(fields));
            let reader = maker.composite(writer.clone());
            (writer.to_string(), reader.to_string())
        })
        .collect();
    let tally = compare(&pairs);
    println!("{} pairs: {tally:?}", pairs.len());
    assert!(
        tally.compatible > 60 && tally.refused > 60 && tally.partly > 10 && tally.read > 500,
        "{tally:?}"
    );
}
