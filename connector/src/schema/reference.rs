//! For tests: random schemas, random values of them by `apache-avro`, and those values as JSON text.

use std::collections::HashMap;

use apache_avro::types::Value;
use serde_json::{Value as Json, json};

/// A reproducible source of choices (splitmix64).
pub(crate) struct Dice {
    state: u64,
    /// No infinities: as text they are told from strings only by the schema.
    finite: bool,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice { state: seed, finite: false }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn text(&mut self) -> String {
        let chars = ['a', 'Z', '0', ' ', '/', '%', '"', '\\', '\n', '\u{1}', 'ä', '€', '𝄞', '\u{2028}'];
        (0..self.below(20)).map(|_| chars[self.below(chars.len())]).collect()
    }

    fn blob(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn integer(&mut self) -> i64 {
        match self.below(4) {
            0 => self.below(100) as i64 - 50,
            1 => self.next() as i32 as i64,
            2 => [i64::MAX, i64::MIN, 0, i64::from(i32::MAX), i64::from(i32::MIN)][self.below(5)],
            _ => self.next() as i64,
        }
    }

    fn double(&mut self) -> f64 {
        let value = self.any_double();
        if self.finite && !(value as f32).is_finite() { -0.25 } else { value }
    }

    fn any_double(&mut self) -> f64 {
        match self.below(4) {
            0 => self.below(1000) as f64 / 100.0,
            1 => [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE][self.below(6)],
            2 => self.integer() as f64,
            _ => Some(f64::from_bits(self.next())).filter(|value| !value.is_nan()).unwrap_or(1.5),
        }
    }
}

/// A schema and what its names mean.
pub(crate) struct Made {
    pub json: Json,
    pub types: HashMap<String, Json>,
    /// Text does not always tell which branch of a union a value is.
    pub ambiguous: bool,
}

impl Made {
    pub(crate) fn avro(&self) -> apache_avro::Schema {
        apache_avro::Schema::parse_str(&self.json.to_string()).unwrap()
    }
}

/// A random schema whose root is no union and not null; with `ambiguous`, unions of anything.
pub(crate) fn schema(dice: &mut Dice, ambiguous: bool) -> Made {
    let mut maker = Maker { dice, types: HashMap::new(), open: Vec::new(), ambiguous };
    let json = loop {
        let json = if maker.dice.one_in(4) { maker.any(3) } else { maker.record(3) };
        if !json.is_array() && json != "null" {
            break json;
        }
        maker.types.clear();
    };
    let types = maker.types;
    Made { json, types, ambiguous }
}

struct Maker<'d> {
    dice: &'d mut Dice,
    types: HashMap<String, Json>,
    open: Vec<String>,
    ambiguous: bool,
}

impl Maker<'_> {
    fn any(&mut self, depth: usize) -> Json {
        let kinds = if depth == 0 { 12 } else { 18 };
        match self.dice.below(kinds) {
            0 => json!("null"),
            1 => json!("boolean"),
            2 | 3 => json!("int"),
            4 => json!("long"),
            5 => json!("float"),
            6 => json!({"type": "double"}),
            7 => json!("bytes"),
            8 | 9 => json!("string"),
            10 => self.named("fixed"),
            11 => self.named("enum"),
            12 | 13 => self.record(depth - 1),
            14 => json!({"type": "array", "items": self.any(depth - 1)}),
            15 => json!({"type": "map", "values": self.any(depth - 1)}),
            _ => self.union(depth - 1),
        }
    }

    fn name(&mut self) -> String {
        format!("T{}", self.types.len())
    }

    fn named(&mut self, kind: &str) -> Json {
        let known: Vec<String> =
            self.types.iter().filter(|(_, def)| def["type"] == kind).map(|(n, _)| n.clone()).collect();
        if !known.is_empty() && self.dice.one_in(3) {
            let mut known = known;
            known.sort();
            return json!(known[self.dice.below(known.len())]);
        }
        let name = self.name();
        let json = if kind == "fixed" {
            json!({"type": "fixed", "name": name, "size": self.dice.below(9)})
        } else {
            let symbols: Vec<String> = (0..1 + self.dice.below(4)).map(|at| format!("S{at}")).collect();
            json!({"type": "enum", "name": name, "symbols": symbols})
        };
        self.types.insert(name, json.clone());
        json
    }

    fn record(&mut self, depth: usize) -> Json {
        let name = self.name();
        self.types.insert(name.clone(), Json::Null);
        self.open.push(name.clone());
        let mut fields = Vec::new();
        for at in 0..self.dice.below(7) {
            let schema = if self.dice.one_in(10) {
                let again = self.open[self.dice.below(self.open.len())].clone();
                match self.dice.one_in(2) {
                    true => json!(["null", again]),
                    false => json!({"type": "array", "items": again}),
                }
            } else {
                self.any(depth)
            };
            fields.push(json!({"name": format!("f{at}"), "type": schema}));
        }
        self.open.pop();
        let json = json!({"type": "record", "name": name, "fields": fields});
        self.types.insert(name, json.clone());
        json
    }

    fn union(&mut self, depth: usize) -> Json {
        let mut branches: Vec<Json> = Vec::new();
        let mut kinds: Vec<String> = Vec::new();
        for _ in 0..1 + self.dice.below(4) {
            let before = self.types.clone();
            let mut candidate = if self.dice.one_in(3) { json!("null") } else { self.any(depth) };
            let kind = kind(&candidate, &self.types);
            if candidate.is_array() {
                self.types = before.clone();
            }
            if candidate.is_array() || self.open.iter().any(|open| candidate == *open.as_str()) {
                candidate = json!("null");
            }
            let class = match kind.as_str() {
                // which of these a text means depends on what it says
                "int" | "long" | "float" | "double" if !self.ambiguous => "number",
                "string" | "bytes" | "fixed" | "enum" if !self.ambiguous => "text",
                "record" | "map" if !self.ambiguous => "object",
                "record" | "fixed" | "enum" => {
                    candidate["name"].as_str().or(candidate.as_str()).unwrap_or_default()
                }
                other => other,
            };
            let class = if candidate == "null" { "null" } else { class };
            if kinds.iter().any(|known| known == class) {
                // what it defined is not defined
                self.types = before;
                continue;
            }
            kinds.push(class.to_owned());
            branches.push(candidate);
        }
        Json::Array(branches)
    }
}

fn kind(schema: &Json, types: &HashMap<String, Json>) -> String {
    match schema {
        Json::String(name) => {
            types.get(name).map_or_else(|| name.clone(), |definition| kind(definition, types))
        }
        Json::Object(object) => object["type"].as_str().unwrap_or_default().to_owned(),
        _ => "union".into(),
    }
}

/// A random value of a schema.
pub(crate) fn value(dice: &mut Dice, made: &Made) -> Value {
    dice.finite = !made.ambiguous;
    any_value(dice, &made.json, &made.types, 6)
}

fn any_value(dice: &mut Dice, schema: &Json, types: &HashMap<String, Json>, depth: usize) -> Value {
    let (kind, object) = match schema {
        Json::String(name) => match types.get(name) {
            Some(definition) => return any_value(dice, definition, types, depth),
            None => (name.as_str(), schema),
        },
        Json::Array(branches) => {
            let null = branches.iter().position(|branch| branch == "null").filter(|_| depth == 0);
            let index = null.unwrap_or_else(|| dice.below(branches.len()));
            let value = any_value(dice, &branches[index], types, depth.saturating_sub(1));
            return Value::Union(index as u32, Box::new(value));
        }
        object => (object["type"].as_str().unwrap(), object),
    };
    let some = |dice: &mut Dice| match depth {
        0 => 0,
        1 | 2 => dice.below(3),
        5 | 6 if dice.one_in(10) => 60 + dice.below(20),
        _ => dice.below(4),
    };
    match kind {
        "null" => Value::Null,
        "boolean" => Value::Boolean(dice.one_in(2)),
        "int" => Value::Int(dice.integer() as i32),
        "long" => Value::Long(dice.integer()),
        "float" => Value::Float(dice.double() as f32),
        "double" => Value::Double(dice.double()),
        "bytes" => {
            let length = dice.below(10);
            Value::Bytes(dice.blob(length))
        }
        "string" => Value::String(dice.text()),
        "fixed" => {
            let size = object["size"].as_u64().unwrap() as usize;
            Value::Fixed(size, dice.blob(size))
        }
        "enum" => {
            let symbols = object["symbols"].as_array().unwrap();
            let index = dice.below(symbols.len());
            Value::Enum(index as u32, symbols[index].as_str().unwrap().into())
        }
        "array" => {
            let count = some(dice);
            Value::Array((0..count).map(|_| any_value(dice, &object["items"], types, depth - 1)).collect())
        }
        "map" => {
            let count = some(dice);
            let entry = |dice: &mut Dice| (dice.text(), any_value(dice, &object["values"], types, depth - 1));
            Value::Map((0..count).map(|_| entry(dice)).collect())
        }
        "record" => {
            let fields = object["fields"].as_array().unwrap();
            let field = |field: &Json| {
                let name = field["name"].as_str().unwrap().to_owned();
                (name, any_value(dice, &field["type"], types, depth.saturating_sub(1)))
            };
            Value::Record(fields.iter().map(field).collect())
        }
        other => panic!("{other}"),
    }
}

/// How [`print`] may vary.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// As the codec writes: the schema's order, no whitespace.
    Plain,
    /// Any order, whitespace, escapes, unknown fields.
    Wild,
}

/// A value as JSON text.
pub(crate) fn print(dice: &mut Dice, value: &Value, style: Style, out: &mut String) {
    let wild = style == Style::Wild;
    let space = |dice: &mut Dice, out: &mut String| {
        while wild && dice.one_in(4) {
            out.push([' ', '\n', '\t', '\r'][dice.below(4)]);
        }
    };
    match value {
        Value::Null => out.push_str("null"),
        Value::Boolean(value) => out.push_str(&value.to_string()),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Long(value) => out.push_str(&value.to_string()),
        Value::Float(value) if value.is_finite() => out.push_str(&serde_json::to_string(value).unwrap()),
        Value::Double(value) if value.is_finite() => match wild && dice.one_in(2) {
            true => out.push_str(&format!("{value:e}")),
            false => out.push_str(&serde_json::to_string(value).unwrap()),
        },
        Value::Float(value) => out.push_str(if *value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }),
        Value::Double(value) => out.push_str(if *value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }),
        Value::Bytes(bytes) | Value::Fixed(_, bytes) => {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            let text = if wild && dice.one_in(2) { text.trim_end_matches('=') } else { &text };
            out.push_str(&format!("\"{text}\""));
        }
        Value::String(text) => print_text(dice, text, wild, out),
        Value::Enum(_, symbol) => print_text(dice, symbol, wild, out),
        Value::Union(_, inner) => print(dice, inner, style, out),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                space(dice, out);
                print(dice, item, style, out);
                space(dice, out);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            let fields: Vec<(&str, &Value)> =
                entries.iter().map(|(key, value)| (key.as_str(), value)).collect();
            print_fields(dice, &fields, style, out);
        }
        Value::Record(fields) => {
            let mut fields: Vec<(&str, &Value)> =
                fields.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let extra = Value::Array(vec![Value::Record(vec![("f0".into(), Value::String("x\"]}".into()))])]);
            if wild {
                for at in (1..fields.len()).rev() {
                    fields.swap(at, dice.below(at + 1));
                }
                if dice.one_in(3) {
                    fields.insert(dice.below(fields.len() + 1), ("unknown", &extra));
                }
            }
            print_fields(dice, &fields, style, out);
        }
        other => panic!("{other:?}"),
    }
}

fn print_fields(dice: &mut Dice, fields: &[(&str, &Value)], style: Style, out: &mut String) {
    let wild = style == Style::Wild;
    out.push('{');
    for (at, (name, value)) in fields.iter().enumerate() {
        out.push_str(if at > 0 { "," } else { "" });
        out.push_str(if wild && dice.one_in(3) { "\n " } else { "" });
        print_text(dice, name, wild, out);
        out.push_str(if wild && dice.one_in(3) { " : " } else { ":" });
        print(dice, value, style, out);
        out.push_str(if wild && dice.one_in(3) { "\t" } else { "" });
    }
    out.push_str(if wild && fields.is_empty() { " }" } else { "}" });
}

fn print_text(dice: &mut Dice, text: &str, wild: bool, out: &mut String) {
    if !wild {
        out.push_str(&serde_json::to_string(text).unwrap());
        return;
    }
    out.push('"');
    for char in text.chars() {
        if dice.one_in(10) {
            for unit in char.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04X}"));
            }
        } else {
            let quoted = serde_json::to_string(&char).unwrap();
            out.push_str(&quoted[1..quoted.len() - 1]);
        }
    }
    out.push('"');
}
