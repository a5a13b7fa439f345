//! `testcontainers-config/kafka.toml`, read.

use std::time::Duration;

use crate::workspace;

/// Image, version and properties of the broker that tests run against.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Kafka's version, for the native broker.
    pub version: String,
    /// Image name, without its tag. `STILLWELL_TEST_KAFKA_IMAGE=name:tag` overrides it and [`Settings::tag`].
    pub image: String,
    /// The image's tag.
    pub tag: String,
    /// Longest start, a first pull of the image included.
    pub start_timeout: Duration,
    /// Options of the native broker's JVM.
    pub java_options: Vec<String>,
    /// Broker properties, for both ways to start it.
    pub properties: Vec<(String, String)>,
}

impl Settings {
    /// Reads the file; a mistake in it ends the test run.
    pub fn load() -> Settings {
        let path = workspace().join("testcontainers-config/kafka.toml");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let string = |key: &str| {
            table
                .get(key)
                .and_then(|value| value.as_str())
                .unwrap_or_else(|| panic!("{}: `{key}` is not a string", path.display()))
                .to_owned()
        };
        let mut settings = Settings {
            version: string("version"),
            image: string("image"),
            tag: string("tag"),
            start_timeout: Duration::from_secs(
                table.get("start_timeout_seconds").and_then(|v| v.as_integer()).unwrap_or(180).unsigned_abs(),
            ),
            java_options: table
                .get("java_options")
                .and_then(|value| value.as_array())
                .map(|list| list.iter().filter_map(|v| v.as_str()).map(str::to_owned).collect())
                .unwrap_or_default(),
            properties: table
                .get("properties")
                .and_then(|value| value.as_table())
                .map(|table| table.iter().map(|(k, v)| (k.clone(), plain(v))).collect())
                .unwrap_or_default(),
        };
        if let Ok(image) = std::env::var("STILLWELL_TEST_KAFKA_IMAGE") {
            let (name, tag) = image
                .rsplit_once(':')
                .unwrap_or_else(|| panic!("STILLWELL_TEST_KAFKA_IMAGE is not name:tag: {image}"));
            (settings.image, settings.tag) = (name.to_owned(), tag.to_owned());
        }
        settings
    }
}

fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
