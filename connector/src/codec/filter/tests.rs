//! The language, its rules, and hostile text.

use proptest::prelude::*;

use super::*;
use crate::schema::wire::{put_bytes, put_long};

const SCHEMA: &str = r#"{"type":"record","name":"P","fields":[
    {"name":"category","type":"string"},
    {"name":"stock","type":"long"},
    {"name":"price","type":["null","double"]},
    {"name":"weight","type":"float"},
    {"name":"live","type":"boolean"},
    {"name":"size","type":{"type":"enum","name":"S","symbols":["small","large"]}},
    {"name":"maker","type":["null",{"type":"record","name":"M","fields":[{"name":"city","type":["null","string"]}]}]},
    {"name":"code","type":["null","string","long"]},
    {"name":"raw","type":"bytes"}]}"#;

struct Row {
    category: &'static str,
    stock: i64,
    price: Option<f64>,
    city: Option<Option<&'static str>>,
    code: Result<i64, &'static str>,
}

const ROW: Row = Row { category: "shoes", stock: 7, price: Some(2.5), city: Some(Some("Bonn")), code: Ok(5) };

fn datum(row: &Row) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, row.category.as_bytes());
    put_long(&mut out, row.stock);
    put_long(&mut out, row.price.is_some().into());
    out.extend(row.price.map(f64::to_le_bytes).into_iter().flatten());
    out.extend(0.1f32.to_le_bytes());
    out.push(1);
    put_long(&mut out, 1);
    put_long(&mut out, row.city.is_some().into());
    if let Some(city) = row.city {
        put_long(&mut out, city.is_some().into());
        if let Some(city) = city {
            put_bytes(&mut out, city.as_bytes());
        }
    }
    match row.code {
        Err(text) => {
            put_long(&mut out, 1);
            put_bytes(&mut out, text.as_bytes());
        }
        Ok(number) => {
            put_long(&mut out, 2);
            put_long(&mut out, number);
        }
    }
    put_bytes(&mut out, b"\xff");
    out
}

fn holds(text: &str, row: &Row) -> bool {
    let schema = Schema::parse(SCHEMA).unwrap();
    let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    filter.check(&schema).unwrap_or_else(|error| panic!("{text}: {error}"));
    filter.holds(&schema, &datum(row)).unwrap()
}

#[test]
fn comparisons_are_what_they_look_like() {
    for text in [
        "category = 'shoes'",
        "category == \"shoes\"",
        "category != 'hats'",
        "category <> 'hats' AND stock >= 7",
        "category < 'shoes!' and category > 'shoe'",
        "stock < 8 and stock <= 7 and stock > 6.5",
        "stock = 7.0",
        "price = 2.5 and price > 2 and price < 3",
        "weight = 0.1",
        "live = true and live != FALSE",
        "size = 'large' and size < 'small'",
        "maker.city = 'Bonn'",
        "maker is not null and maker.city is not null",
        "code = 5 and code != 'five'",
        "category in ('hats', 'shoes') and stock not in (1, 2, 3)",
        "stock = 0 or stock = 7",
        "not (stock = 0)",
        "not stock = 0 and not not stock=7",
        "stock = 0 and live = false or category='shoes'",
        "stock > -1 and stock < +1e3",
    ] {
        assert!(holds(text, &ROW), "{text}");
        assert!(!holds(&format!("not ({text})"), &ROW), "not {text}");
    }
    let quotes = Row { category: "it's", ..ROW };
    assert!(holds("category = 'it''s'", &quotes) && holds("category = \"it's\"", &quotes));
}

#[test]
fn null_is_nothing_that_compares() {
    let none = Row { price: None, city: None, ..ROW };
    for text in ["price = 2.5", "price != 2.5", "price in (1, 2.5)", "price < 9", "maker.city = 'Bonn'"] {
        assert!(!holds(text, &none), "{text}");
        assert!(holds(&format!("not {text}"), &none), "not {text}");
    }
    assert!(holds("price is null and maker is null and maker.city IS NULL", &none));
    assert!(holds("maker.city is null and maker is not null", &Row { city: Some(None), ..ROW }));
    // A branch of another type is another value.
    let text = Row { code: Err("5"), ..ROW };
    assert!(!holds("code = 5", &text) && holds("code != 5 and code = '5'", &text));
    let nan = Row { price: Some(f64::NAN), ..ROW };
    assert!(!holds("price < 1 or price >= 1 or price = 0", &nan) && holds("price != 1", &nan));
}

#[test]
fn large_integers_compare_exactly() {
    let max = Row { stock: i64::MAX, ..ROW };
    assert!(holds("stock < 9223372036854775808 and stock = 9223372036854775807", &max));
    assert!(!holds("stock = 9223372036854775808.0", &max));
    let odd = Row { stock: (1 << 53) + 1, ..ROW };
    assert!(holds("stock > 9007199254740992.0", &odd), "a double cannot tell them apart");
    assert!(holds("stock > -0.5 and stock < 0.5 and stock >= -0.0", &Row { stock: 0, ..ROW }));
    assert!(holds("stock < -1.5 and stock > -2.5", &Row { stock: -2, ..ROW }));
}

#[test]
fn mistakes_say_where_and_what() {
    for (text, rest, what) in [
        ("", "", "a field"),
        ("category", "", "one of ="),
        ("category = ", "", "text in quotes"),
        ("category = shoes", "shoes", "text in quotes"),
        ("category = 'shoes", "'shoes", "a ' at the end"),
        ("category = 'a' stock = 1", "stock = 1", "`and`, `or`"),
        ("(stock = 1", "", "`)`"),
        ("stock = 1)", ")", "the end"),
        ("stock = 1 and", "", "a field"),
        ("stock in ()", ")", "text in quotes"),
        ("stock in (1", "", "`,` or `)`"),
        ("stock not = 1", "= 1", "`in`"),
        ("price = null", "null", "`is null`"),
        ("price is 1", "1", "`null`"),
        ("a..b = 1", "= 1", "a..b"),
        ("stock = 1x", "1x", "a number"),
        ("stock & 1", "& 1", "a field, text"),
        ("é = 1", "é = 1", "a field"),
    ] {
        match Filter::parse(text) {
            Err(Error::Syntax { rest: at, what: says }) => {
                assert_eq!(at, rest, "{text}");
                assert!(says.contains(what), "{text}: {says}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let schema = Schema::parse(SCHEMA).unwrap();
    for (text, what) in [
        ("colour = 'red'", "no field colour"),
        ("maker.town = 'x'", "no field maker.town"),
        ("category.x = 'x'", "no field category.x"),
        ("stock = 'many'", "field stock is long, which is not compared with the text 'many'"),
        ("price = 'x'", "field price is null or double"),
        ("raw = 'x'", "field raw is bytes"),
        ("maker = 1", "is null or M"),
        ("live in (1)", "boolean"),
        ("colour is null", "no field colour"),
        ("not (stock = 1 or live = 2)", "boolean"),
    ] {
        let error = Filter::parse(text).unwrap().check(&schema).unwrap_err();
        assert!(error.to_string().contains(what), "{text}: {error}");
    }
    assert!(Filter::parse(&format!("{}stock = 1{}", "(".repeat(64), ")".repeat(64))).is_ok());
    let deep = Filter::parse(&format!("{}stock = 1{}", "(".repeat(65), ")".repeat(65)));
    assert!(deep.unwrap_err().to_string().contains("64 levels"));
    assert!(Filter::parse(&"not ".repeat(100_000)).is_err());
}

#[derive(Clone, Debug)]
enum Tree {
    Stock(&'static str, i64),
    Live(bool),
    Not(Box<Tree>),
    Both(Box<Tree>, Box<Tree>),
    Either(Box<Tree>, Box<Tree>),
}

impl Tree {
    fn text(&self) -> String {
        match self {
            Tree::Stock(sign, value) => format!("stock {sign} {value}"),
            Tree::Live(value) => format!("live = {value}"),
            Tree::Not(inner) => format!("not ({})", inner.text()),
            Tree::Both(one, other) => format!("({}) and ({})", one.text(), other.text()),
            Tree::Either(one, other) => format!("({}) or ({})", one.text(), other.text()),
        }
    }

    fn holds(&self, stock: i64) -> bool {
        match self {
            Tree::Stock("=", value) => stock == *value,
            Tree::Stock("!=", value) => stock != *value,
            Tree::Stock("<", value) => stock < *value,
            Tree::Stock("<=", value) => stock <= *value,
            Tree::Stock(">", value) => stock > *value,
            Tree::Stock(_, value) => stock >= *value,
            Tree::Live(value) => *value,
            Tree::Not(inner) => !inner.holds(stock),
            Tree::Both(one, other) => one.holds(stock) && other.holds(stock),
            Tree::Either(one, other) => one.holds(stock) || other.holds(stock),
        }
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let signs = prop::sample::select(vec!["=", "!=", "<", "<=", ">", ">="]);
    let leaf = prop_oneof![
        (signs, -3..3i64).prop_map(|(sign, value)| Tree::Stock(sign, value)),
        any::<bool>().prop_map(Tree::Live)
    ];
    leaf.prop_recursive(4, 20, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Tree::Not(Box::new(one))),
            (inner.clone(), inner.clone())
                .prop_map(|(one, other)| Tree::Both(Box::new(one), Box::new(other))),
            (inner.clone(), inner).prop_map(|(one, other)| Tree::Either(Box::new(one), Box::new(other))),
        ]
    })
}

proptest! {
    #[test]
    fn any_expression_is_what_its_tree_is(tree in tree(), stock in -4..4i64) {
        prop_assert_eq!(holds(&tree.text(), &Row { stock, ..ROW }), tree.holds(stock), "{}", tree.text());
    }

    #[test]
    fn any_text_is_a_filter_or_an_error(text in "[a-c .()'\"=<>!,0-9é-]{0,40}|\\PC{0,40}") {
        if let Ok(filter) = Filter::parse(&text) {
            prop_assert_eq!(Filter::parse(filter.text()), Ok(filter));
        }
    }
}
