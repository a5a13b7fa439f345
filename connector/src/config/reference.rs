//! docs/configuration.md is held to `model.rs`: its tables are made here, and a test compares.

use std::fmt::Write as _;

use super::model::{FEATURES, Fallback, SECTIONS, Section};
use super::profile::NAMES;

const BEGIN: &str =
    "<!-- made from connector/src/config/model.rs; its test says how to bring it up to date -->\n";
const END: &str = "<!-- end -->\n";

fn tables() -> String {
    let mut text = String::new();
    for section in SECTIONS {
        table(&mut text, section);
    }
    let _ = writeln!(text, "### `[features]`\n\nFlags for experimental optimisations, off by default.\n");
    if FEATURES.is_empty() {
        let _ = writeln!(text, "This release has none.\n");
    }
    for (name, about) in FEATURES {
        let _ = writeln!(text, "- `{name}`: {about}");
    }
    text
}

fn table(text: &mut String, section: &Section) {
    let title = match section.path {
        "" => "Top level".to_owned(),
        path => format!("`[{}]`", path.replacen('*', "NAME", 1).replace('*', "TOPIC")),
    };
    let _ = writeln!(text, "### {title}\n\n{}\n", section.about.trim());
    let with_profiles = section.keys.iter().any(|key| key.profiles.iter().any(Option::is_some));
    let profiles = if with_profiles { &NAMES[1..] } else { &[] };
    let _ = writeln!(
        text,
        "| key | takes | default |{} meaning |",
        profiles.iter().map(|name| format!(" {name} |")).collect::<String>()
    );
    let _ = writeln!(text, "| --- | --- | --- |{} --- |", " --- |".repeat(profiles.len()));
    for key in section.keys {
        let default = match key.fallback {
            Fallback::Required => "**required**".to_owned(),
            Fallback::Unset => "unset".to_owned(),
            Fallback::Is(value) => format!("`{value}`"),
            Fallback::Derived(how) => how.to_owned(),
        };
        let profiles = key
            .profiles
            .iter()
            .take(profiles.len())
            .map(|value| value.map_or(" |".to_owned(), |value| format!(" `{value}` |")));
        let _ = writeln!(
            text,
            "| `{}` | {} | {default} |{} {} |",
            key.name,
            key.kind.word(),
            profiles.collect::<String>(),
            key.about.trim()
        );
    }
    text.push('\n');
}

#[test]
fn the_documentation_lists_every_key_with_its_default_and_profiles() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) =
        page.split_once(BEGIN).expect("docs/configuration.md has the mark where its tables begin");
    let (now, after) = rest.split_once(END).expect("docs/configuration.md has the mark where its tables end");
    let wanted = tables();
    if now != wanted {
        if std::env::var_os("STILLWELL_DOCS").is_some() {
            std::fs::write(path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        } else {
            panic!("docs/configuration.md differs from model.rs: run this test again with STILLWELL_DOCS=1");
        }
    }
}
