//! The metrics as connector/src/telemetry/names.rs declares them, against the tables of docs/operations.md.

/// Name, kind, labels, meaning: a row of a table whose head is [`HEAD`].
pub(crate) type Row = [String; 4];

const HEAD: [&str; 4] = ["metric", "kind", "labels", "meaning"];

/// The families of names.rs: `pub struct X["label"] {`, then for each metric its doc comment and `name: Kind["label"],`.
pub(crate) fn declared(source: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut family: Vec<String> = Vec::new();
    let mut meaning = String::new();
    let mut inside = false;
    for line in source.lines().map(str::trim) {
        if let Some(help) = line.strip_prefix("///") {
            meaning = format!("{meaning} {}", help.trim()).trim().to_owned();
            continue;
        }
        if line.starts_with("pub struct ") && line.ends_with('{') {
            family = labels(line);
            inside = true;
        } else if line == "}" {
            inside = false;
        } else if let Some((name, kind)) = line.strip_suffix(',').and_then(|line| line.split_once(": "))
            && inside
        {
            let all: Vec<String> = family.iter().cloned().chain(labels(kind)).collect();
            let kind = match kind.trim_start_matches("By<").split(['>', '[']).next().unwrap_or_default() {
                "IntCounter" | "Counter" | "Striped" => "counter",
                "IntGauge" | "Gauge" => "gauge",
                "Histogram" => "histogram",
                other => panic!("what kind of metric is {other}? ({line})"),
            };
            let row = [format!("stillwell_{name}"), kind.to_owned(), all.join(", "), meaning.clone()];
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        meaning.clear();
    }
    rows
}

/// The rows of all tables with that head.
pub(crate) fn documented(markdown: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in markdown.lines() {
        let cells: Vec<String> =
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
        match <Row>::try_from(cells) {
            Ok(row) if row == HEAD => inside = true,
            Ok(row) if inside && row.iter().all(|cell| cell.chars().all(|c| c == '-')) => {}
            Ok(row) if inside => rows.push(row),
            _ => inside = false,
        }
    }
    rows
}

/// `row` as it stands in the table.
pub(crate) fn line([name, kind, labels, meaning]: &Row) -> String {
    format!("| `{name}` | {kind} | {labels} | {meaning} |")
}

/// The words between quotes.
fn labels(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}
