//! Real data: the list of all packages that this Debian machine knows, some 60,000 records with long and short strings,
//! lists and sizes.

use std::io::Write as _;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The schema of a package.
pub const SCHEMA: &str = r#"{"type": "record", "name": "Package", "namespace": "debian", "fields": [
    {"name": "package", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "section", "type": ["null", "string"], "default": null},
    {"name": "priority", "type": {"type": "enum", "name": "Priority",
        "symbols": ["required", "important", "standard", "optional", "extra"]}},
    {"name": "installed_size", "type": "long"},
    {"name": "depends", "type": {"type": "array", "items": "string"}},
    {"name": "description", "type": "string"}
]}"#;

/// The packages, as the JSON that the dataset is to hold. The last stanza of a name wins, as the last record of a key.
pub fn packages() -> &'static [(String, Value)] {
    static PACKAGES: OnceLock<Vec<(String, Value)>> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let listed = Command::new("apt-cache").arg("dumpavail").output();
        let has_lists = listed.is_ok();
        let text = match listed {
            Ok(listed) => listed.stdout,
            // No apt at all, as on another distribution with dpkg: what is installed is a list, too.
            Err(_) => {
                std::fs::read("/var/lib/dpkg/status").expect("a Debian machine, as docs/testing.md says")
            }
        };
        let text = String::from_utf8_lossy(&text);
        let packages: Vec<_> = text.split("\n\n").filter_map(package).collect();
        // Past the test runner's capture: a test that has grown thin is seen in every run.
        let _ = writeln!(std::io::stderr(), "debian: {} package records", packages.len());
        let least = if has_lists { 10_000 } else { 100 };
        assert!(
            packages.len() > least,
            "{} packages: run apt-get update, as .ci/setup test does",
            packages.len()
        );
        packages
    })
}

fn package(stanza: &str) -> Option<(String, Value)> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let name = field("Package")?;
    let depends: Vec<&str> = field("Depends").map(|list| list.split(", ").collect()).unwrap_or_default();
    let priority = field("Priority")
        .filter(|priority| ["required", "important", "standard", "optional", "extra"].contains(priority));
    let value = json!({
        "package": name,
        "version": field("Version")?,
        "section": field("Section"),
        "priority": priority.unwrap_or("optional"),
        "installed_size": field("Installed-Size").and_then(|size| size.parse::<i64>().ok()).unwrap_or(0),
        "depends": depends,
        "description": field("Description").unwrap_or_default(),
    });
    Some((name.to_owned(), value))
}
