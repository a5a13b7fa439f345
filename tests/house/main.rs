//! The house as it is drawn in docs/architecture.md: which room may touch which, who may use which crate, how long a
//! file may be, what a room must say about itself. Each rule is also tried on a made-up file that breaks it.

mod drawing;
mod metrics;
mod rules;
mod source;

use std::path::{Path, PathBuf};

use rules::{Complaint, House};
use source::Source;
use stillwell_tests::workspace;

/// Every Rust file below `folder`, with its path from there.
fn sources(folder: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap_or_else(|e| panic!("{}: {e}", next.display())) {
            let path: PathBuf = entry.expect("an entry can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("source is UTF-8");
                let name = path.strip_prefix(folder).expect("below it").to_string_lossy().into_owned();
                found.push(Source::new(&name, &text));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn house() -> House {
    let files = sources(&workspace().join("connector/src"));
    assert!(files.len() > 20, "the source is somewhere else: {} files", files.len());
    House::new(files)
}

#[track_caller]
fn none(complaints: Vec<Complaint>) {
    let lines: Vec<String> = complaints.iter().map(Complaint::to_string).collect();
    assert!(lines.is_empty(), "{} complaint(s)\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn arrows_are_drawn() {
    none(house().arrows());
}

#[test]
fn every_room_is_drawn() {
    none(house().undrawn());
}

#[test]
fn outside_crates_have_one_user() {
    none(house().foreign_crates());
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    none(house().unsafe_code());
}

#[test]
fn a_file_is_one_idea() {
    none(house().long_files());
    let tests = sources(&workspace().join("tests"));
    none(House::new(tests).long_files());
}

#[test]
fn a_room_says_what_it_owns() {
    none(house().silent_rooms());
}

#[test]
fn the_drawing_is_the_documented_one() {
    let path = workspace().join("docs/architecture.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(
        drawing::documented(&text),
        drawing::drawn(),
        "docs/architecture.md and tests/house/drawing.rs differ"
    );
}

#[test]
fn every_metric_is_documented() {
    let read = |path: &str| {
        std::fs::read_to_string(workspace().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let declared = metrics::declared(&read("connector/src/telemetry/names.rs"));
    let documented = metrics::documented(&read("docs/operations.md"));
    assert!(declared.len() > 20, "names.rs is written in another way: {declared:?}");
    let missing: Vec<_> =
        declared.iter().filter(|row| !documented.contains(row)).map(metrics::line).collect();
    let gone: Vec<_> = documented.iter().filter(|row| !declared.contains(row)).map(metrics::line).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/operations.md lacks\n{}\nand has\n{}",
        missing.join("\n"),
        gone.join("\n")
    );
}

/// The rules on a made-up house: each must see what breaks it, and only that.
mod can_fail {
    use super::*;

    fn complaints(rule: impl Fn(&House) -> Vec<Complaint>, files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(name, text)| Source::new(name, text)).collect();
        rule(&House::new(files)).iter().map(Complaint::to_string).collect()
    }

    #[test]
    fn a_bad_arrow_is_seen() {
        for (name, text, seen) in [
            ("codec/json.rs", "use crate::kafka::Poller;", "codec -> kafka"),
            ("view/read.rs", "use crate::{record::Key, producer};", "view -> producer"),
            ("view/read.rs", "use crate::{record::Key, dead::{letter, replay}};", "view -> dead"),
            ("producer/mod.rs", "fn f() {\n    crate::consumer::tail::start();\n}", "producer -> consumer"),
            ("producer/mod.rs", "use super::consumer;", "producer -> consumer"),
            ("producer/log.rs", "use super::super::http::routes;", "producer -> http"),
            ("disk/keys.rs", "mod tests {\n    use super::super::super::blob::Store;\n}", "disk -> blob"),
            ("kafka/poll.rs", "fn f(c: &crate::Consumer) {}", "kafka -> consumer"),
            ("host/mod.rs", "use crate::cellar::Wine;", "host -> cellar"),
            ("dead/mod.rs", "pub(in crate::host) fn f() {}", "dead -> host"),
        ] {
            let lib =
                ("lib.rs", "pub mod consumer;\npub use consumer::{Consumer, Builder as ConsumerBuilder};");
            let found = complaints(House::arrows, &[lib, (name, text)]);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains(seen), "{text}: {found:?}");
        }
    }

    #[test]
    fn a_good_arrow_is_not() {
        let text = r##"
            //! Talks of crate::http::routes, in a comment.
            /* crate::http /* nested crate::cli */ crate::demo */
            use crate::{view::{self, View}, kafka::*, record::Key as K, Error};
            use self::log::Log;
            pub(crate) fn f<'a>(s: &'a str) -> char { let _ = (s, r#"crate::http"#, "\"crate::cli", b"crate::cli"); '"' }
            mod tests { use super::*; use super::log::Log; use crate::producer::build; }
        "##;
        let lib = ("lib.rs", "pub use error::{Error, Result};");
        assert_eq!(complaints(House::arrows, &[lib, ("producer/mod.rs", text)]), Vec::<String>::new());
        assert_eq!(
            complaints(House::arrows, &[lib, ("cli/run.rs", "use crate::{demo, host, producer};")]),
            [""; 0]
        );
    }

    #[test]
    fn a_room_that_is_not_drawn_is_seen() {
        let found =
            complaints(House::undrawn, &[("lib.rs", "pub mod view;\npub mod utils;"), ("utils.rs", "")]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("utils"), "{found:?}");
    }

    #[test]
    fn a_second_user_of_a_crate_is_seen() {
        let files = [
            ("kafka/poll.rs", "use rdkafka::Message; fn f() { rdkafka::util::get(); }"),
            ("producer/source.rs", "/// As rdkafka::Message.\nuse rdkafka::Message;"),
            ("view/map.rs", "fn f(e: ::rocksdb::Error) {}"),
            ("http/mod.rs", "let rocksdb = \"rocksdb::DB\";"),
            ("blob/object.rs", "use object_store::path::Path;"),
            ("demo/mod.rs", "use ::{object_store::ObjectStore, std::io};"),
        ];
        let found = complaints(House::foreign_crates, &files);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("producer/source.rs:2") && found[0].contains("rdkafka"), "{found:?}");
        assert!(found[1].contains("view/map.rs:1") && found[1].contains("rocksdb"), "{found:?}");
        assert!(found[2].contains("demo/mod.rs:1") && found[2].contains("object_store"), "{found:?}");
    }

    #[test]
    fn unsafe_elsewhere_is_seen() {
        let code = "#![expect(unsafe_code)]\n// unsafe\nfn f() { unsafe { g() } }";
        let files = [("view/map.rs", code), ("kafka/ids.rs", code), ("view/read.rs", code)];
        let found = complaints(House::unsafe_code, &files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("view/read.rs:3"), "{found:?}");
    }

    #[test]
    fn a_long_file_is_seen() {
        let found =
            complaints(House::long_files, &[("a.rs", &"\n".repeat(600)), ("b.rs", &"\n".repeat(601))]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("b.rs"), "{found:?}");
    }

    #[test]
    fn a_silent_room_is_seen() {
        let files = [
            ("view/mod.rs", "//! One version.\n//!\n//! Owns: a map. Does not\n//! own: files.\n"),
            ("disk/mod.rs", "//! The disk. Owns RocksDB.\n"),
            ("blob/mod.rs", "//! Blobs.\n// Owns: all. Does not own: much.\n"),
            ("http/dashboard/mod.rs", "//! Not a room.\n"),
        ];
        let found = complaints(House::silent_rooms, &files);
        let seen: Vec<_> = found.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
        assert_eq!(seen, ["disk/mod.rs", "blob/mod.rs", "blob/mod.rs"], "{found:?}");
    }

    #[test]
    fn a_metric_that_is_not_documented_is_seen() {
        let source = r#"
            //! All.
            families! {
                /// One side.
                pub struct A["dataset"] {
                    /// Things
                    /// done.
                    done_total: IntCounter,
                    /// Things open.
                    open: By<IntGauge>["kind"],
                }
            }
            fn f(other: Gauge) {}
        "#;
        let markdown = "# Operations\n\n| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n\
                        | `stillwell_done_total` | counter | dataset | Things done. |\n\nText | a | b | c\n";
        let (declared, documented) = (metrics::declared(source), metrics::documented(markdown));
        assert_eq!(declared.len(), 2, "{declared:?}");
        assert_eq!(documented, declared[..1]);
        assert_eq!(
            metrics::line(&declared[1]),
            "| `stillwell_open` | gauge | dataset, kind | Things open. |"
        );
    }

    #[test]
    fn a_changed_map_is_seen() {
        let text = "# Rooms\n\n| group | rooms | may touch |\n| --- | --- | --- |\n| ground | `error`, `record` | ground |\n\nEnd.\n";
        let seen = drawing::documented(text);
        assert_eq!(seen, [("ground".into(), vec!["error".into(), "record".into()], vec!["ground".into()])]);
        assert_ne!(seen, drawing::drawn());
    }
}
