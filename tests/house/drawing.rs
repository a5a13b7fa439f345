//! The drawing: groups of rooms from the ground up, and what each may touch. docs/architecture.md shows the same table.

/// Rooms that obey the same rule.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) rooms: &'static [&'static str],
    /// Groups, or single rooms of one.
    pub(crate) may_touch: &'static [&'static str],
}

pub(crate) const DRAWING: &[Group] = &[
    Group {
        name: "ground",
        rooms: &[
            "error",
            "record",
            "version",
            "clock",
            "retry",
            "repeat",
            "words",
            "gauge",
            "failpoint",
            "schema",
            "codec",
            "format",
        ],
        may_touch: &["ground"],
    },
    Group {
        name: "pipes",
        rooms: &["tls", "kafka", "disk", "threads", "registry", "webhook", "telemetry"],
        may_touch: &["ground", "telemetry", "tls"],
    },
    Group { name: "stores", rooms: &["blob"], may_touch: &["ground", "telemetry", "tls", "kafka"] },
    Group { name: "shared", rooms: &["view"], may_touch: &["ground", "pipes", "stores"] },
    Group {
        name: "flow",
        rooms: &["producer", "consumer", "dead"],
        may_touch: &["ground", "pipes", "stores", "shared", "dead"],
    },
    Group {
        name: "outside",
        rooms: &["host", "config", "http", "cli", "demo"],
        may_touch: &["ground", "pipes", "stores", "shared", "flow", "outside"],
    },
];

/// The crates that few rooms use, and which: one outside thing has one room.
pub(crate) const FEW_USERS: &[(&str, &[&str])] = &[
    ("rdkafka", &["kafka"]),
    ("rocksdb", &["disk"]),
    ("object_store", &["blob"]),
    ("hyper_rustls", &["tls"]),
    ("parquet", &["cli"]),
    ("ring", &["webhook"]),
];

/// The files that may hold `unsafe`.
pub(crate) const UNSAFE: &[&str] = &[
    "view/map.rs",
    "view/tests/heap.rs",
    "kafka/ids.rs",
    "kafka/describe.rs",
    "kafka/tokens/kept.rs",
    "main.rs",
];

/// Whether room `from` may touch room `to`.
pub(crate) fn allows(from: &str, to: &str) -> bool {
    from == to
        || group(from).is_some_and(|own| {
            own.may_touch.contains(&to) || group(to).is_some_and(|other| own.may_touch.contains(&other.name))
        })
}

/// The group that holds `room`.
pub(crate) fn group(room: &str) -> Option<&'static Group> {
    DRAWING.iter().find(|group| group.rooms.contains(&room))
}

/// Group, rooms, what they may touch.
pub(crate) type Row = (String, Vec<String>, Vec<String>);

/// The table above.
pub(crate) fn drawn() -> Vec<Row> {
    let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    DRAWING.iter().map(|group| (group.name.to_owned(), owned(group.rooms), owned(group.may_touch))).collect()
}

/// The table in a Markdown text whose head is `| group | rooms | may touch |`.
pub(crate) fn documented(text: &str) -> Vec<Row> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect()
    };
    let list = |cell: &String| cell.split(',').map(|name| name.trim().to_owned()).collect();
    text.lines()
        .skip_while(|line| cells(line) != ["group", "rooms", "may touch"])
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| match cells(line).as_slice() {
            [group, rooms, may_touch] => Some((group.clone(), list(rooms), list(may_touch))),
            _ => None,
        })
        .collect()
}
