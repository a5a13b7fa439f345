//! Avro's own Java tools: the reference implementation reads what Stillwell wrote.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::workspace;

/// The jar of Avro's tools, with all of Avro in it.
pub fn avro_tools() -> PathBuf {
    let fetched = Command::new("bash")
        .arg(workspace().join(".ci/avro-tools"))
        .output()
        .expect("bash runs, and Maven fetches Avro's tools (see .ci/setup)");
    let jar = String::from_utf8_lossy(&fetched.stdout).trim().to_owned();
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    jar.into()
}

/// The records of an object container file, as Avro's `tojson` prints them.
pub fn read_by_avro_tools(file: &Path) -> Vec<Value> {
    let read = Command::new("java")
        .arg("-jar")
        .arg(avro_tools())
        .arg("tojson")
        .arg(file)
        .output()
        .expect("Java 17 or newer runs");
    let (text, complaint) = (String::from_utf8_lossy(&read.stdout), String::from_utf8_lossy(&read.stderr));
    assert!(read.status.success(), "{} is not read: {complaint}", file.display());
    text.lines().map(|line| serde_json::from_str(line).expect("tojson prints JSON")).collect()
}
