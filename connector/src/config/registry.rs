//! Mistakes about the schema registry: whom to ask; and schemas that are taken from it.

use std::path::PathBuf;
use std::sync::Arc;

use super::Config;
use super::check::Check;
use super::model::{Fallback, Key, SchemaRegistry, Values as _};
use crate::codec::Codec;
use crate::registry::Registry;
use crate::schema::Schema;
use crate::{Error, ErrorKind, Result};

impl Check<'_> {
    /// Prepares to ask the registry, where there is one.
    pub(super) fn registry(&mut self) {
        let model = &self.model.schema_registry;
        let at = |key: &'static str| ["schema_registry", key];
        let Some(options) = super::options::registry(model) else {
            // A key that has a value of its own is part of what `config show` prints, and says nothing of a registry.
            let says = |key: &&Key| matches!(key.fallback, Fallback::Unset) && self.is_given(&at(key.name));
            let idle = SchemaRegistry::SECTION.keys.iter().find(says);
            if let Some(key) = idle {
                self.wrong(
                    &at(key.name),
                    "does nothing without a url: name the registry, as in url = \"http://…\"",
                );
            }
            return;
        };
        for (one, other, what) in [
            ("password", "user", model.password.is_some() && model.user.is_none()),
            ("user", "password", model.user.is_some() && model.password.is_none()),
            ("key_file", "certificate_file", model.key_file.is_some() && model.certificate_file.is_none()),
            ("certificate_file", "key_file", model.certificate_file.is_some() && model.key_file.is_none()),
        ] {
            if what {
                self.wrong(&at(one), format!("does nothing without {other}"));
            }
        }
        if model.token.is_some() && model.user.is_some() {
            self.wrong(&at("token"), "and user cannot both say who asks: remove one");
        }
        match Registry::new(&options) {
            Ok(registry) => self.registry = Some(registry),
            Err(error) => {
                let text = error.to_string();
                let names = |file: &Option<PathBuf>| {
                    file.as_ref().is_some_and(|file| text.contains(&*file.to_string_lossy()))
                };
                let files = [
                    ("ca_file", &model.ca_file),
                    ("key_file", &model.key_file),
                    ("certificate_file", &model.certificate_file),
                ];
                let key = files.into_iter().find(|(_, file)| names(file)).map(|(key, _)| key);
                let key = key.unwrap_or(if text.contains("token") { "token" } else { "url" });
                self.wrong(&at(key), text);
            }
        }
    }
}

impl Config {
    /// The datasets whose schema is not known yet, each with the subject whose newest schema it begins with.
    pub fn adopting(&self) -> Vec<(String, String)> {
        let adopting = self.reading.iter().filter(|(_, reading)| reading.adopts);
        let named = adopting.filter_map(|(name, _)| {
            let dataset = self.model.datasets.get(name)?;
            let source = &dataset.source;
            let first = source.topics.iter().find(|topic| !dataset.formats.contains_key(*topic));
            let first = first.map(|topic| format!("{topic}-value"));
            Some((name.clone(), source.subject.clone().or(first)?))
        });
        named.collect()
    }

    /// Whether a schema can be that of such a dataset.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where it does not go together with what else is configured.
    pub fn fits(&self, name: &str, schema: &Arc<Schema>) -> Result<()> {
        let wrong = |key: &str, what: String| {
            Error::new(
                ErrorKind::Config,
                format!("datasets.{name}.{key} does not fit the dataset's schema: {what}"),
            )
        };
        let (Some(reading), Some(dataset)) = (self.reading.get(name), self.model.datasets.get(name)) else {
            return Ok(());
        };
        Codec::new(reading.format.clone(), reading.key.clone(), schema.clone())
            .map_err(|error| wrong("key", error.to_string()))?;
        let hold = dataset.consumer.hold();
        for (key, misfit) in [
            ("consumer.filter", hold.filter_misfit(schema)),
            ("consumer.fields", hold.fields_misfit(schema)),
            ("consumer.indexes", hold.index_misfit(schema)),
        ] {
            if let Some(what) = misfit {
                return Err(wrong(key, what));
            }
        }
        Ok(())
    }

    /// The schema of such a dataset: from now on it is as if it had been configured.
    ///
    /// # Errors
    /// As [`Config::fits`].
    pub fn adopt(&mut self, name: &str, schema: Arc<Schema>) -> Result<()> {
        self.fits(name, &schema)?;
        if let Some(reading) = self.reading.get_mut(name) {
            (reading.schema, reading.adopts) = (schema, false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LEAST, case};
    use crate::codec::{Format, KeyFormat, Kind, Values};
    use crate::config::Shared;

    fn avro(source: &str) -> String {
        LEAST.replace("\"json\"", &format!("\"avro\"{source}"))
    }

    const URL: &str = "[schema_registry]\nurl = \"http://localhost:8081\"\n";

    fn format(text: &str) -> Format {
        let case = case(text).set("storage.blobs", "memory://");
        let config = case.right();
        let shared = Shared::system(&config, crate::telemetry::Metrics::new()).unwrap();
        let options = config.producer("products", &shared).unwrap();
        assert_eq!(options.registry.is_some(), options.format.asks_registry());
        options.format
    }

    #[test]
    fn avro_is_registered_where_there_is_a_registry_and_nothing_says_otherwise() {
        let values = |text: &str| format(text).values;
        assert!(matches!(values(&avro("")), Values::Avro { .. }));
        assert!(matches!(values(&format!("{}{URL}", avro(""))), Values::Registered(Kind::Avro)));
        assert!(matches!(values(&format!("{}{URL}", avro(", registry = false"))), Values::Avro { .. }));
        assert!(matches!(
            values(&format!("{}{URL}", avro(", schema = \"product.avsc\""))),
            Values::Avro { .. }
        ));
        assert!(matches!(values(&format!("{LEAST}{URL}")), Values::Json { checked: false, .. }));
        let checked = LEAST.replace("\"json\"", "\"json\", registry = true");
        assert!(matches!(values(&format!("{checked}{URL}")), Values::Json { checked: true, .. }));
        for format in
            [avro(", key_format = \"avro\""), LEAST.replace("\"json\"", "\"json\", key_format = \"avro\"")]
        {
            let keys = self::format(&format!("{format}{URL}")).keys;
            assert!(matches!(keys, KeyFormat::Registered(Kind::Avro)));
        }
    }

    #[test]
    fn a_schema_that_is_not_configured_is_taken_later_and_must_fit_then() {
        let text = avro("").replace("schema = \"product.avsc\"\n", "");
        let filtered = format!("{text}[datasets.products.consumer]\nfilter = \"price > 1\"\n{URL}");
        let mut config = case(&filtered).set("storage.blobs", "memory://").right();
        assert_eq!(config.adopting(), [("products".to_owned(), "products-value".to_owned())]);
        let schema = |fields: &str| {
            let json = format!("{{\"type\":\"record\",\"name\":\"P\",\"fields\":[{fields}]}}");
            std::sync::Arc::new(crate::schema::Schema::dataset(&json).unwrap())
        };
        let id = r#"{"name":"id","type":"string"}"#;
        let error = config.adopt("products", schema("")).unwrap_err();
        assert!(error.chain().contains("datasets.products.key"), "{}", error.chain());
        let error = config.adopt("products", schema(id)).unwrap_err();
        assert!(error.chain().contains("consumer.filter"), "{}", error.chain());
        let whole = schema(&format!("{id},{{\"name\":\"price\",\"type\":\"int\"}}"));
        config.adopt("products", whole.clone()).unwrap();
        assert_eq!(config.adopting(), []);
        let shared = Shared::system(&config, crate::telemetry::Metrics::new()).unwrap();
        assert_eq!(config.producer("products", &shared).unwrap().schema.fingerprint(), whole.fingerprint());
        let named = format!("{}{URL}", text.replace("\"avro\"", "\"avro\", subject = \"other\""));
        assert_eq!(case(&named).right().adopting()[0].1, "other");
    }

    #[test]
    fn what_contradicts_is_said() {
        for (text, said) in [
            (
                format!("{}{URL}", avro(", subject = \"other\"")),
                "source.subject: is for avro with a schema registry, where the dataset names no schema",
            ),
            (avro(", registry = true"), "source.registry: needs a registry"),
            (LEAST.replace("\"json\"", "\"json\", registry = true"), "source.registry: needs a registry"),
            (avro(", key_format = \"avro\""), "source.key_format: needs the schema of keys"),
            (
                format!("{}{URL}", avro(", registry = true, schema = \"product.avsc\"")),
                "source.schema: is not for values whose schemas the registry has",
            ),
            (
                format!("{}[datasets.products.producer.spill]\nshed = \"dead_letter\"\n{URL}", avro("")),
                "spill.shed: \"dead_letter\" is not for a source that is only read",
            ),
        ] {
            let wrong = case(&text).wrong();
            assert!(wrong.len() == 1 && wrong[0].contains(said), "{said}: {wrong:#?}");
        }
    }

    #[test]
    fn who_is_asked_must_be_possible_and_no_secret_is_said() {
        let url = "url = \"http://me:pa55@reg/x\"\n";
        for (keys, said) in [
            ("url = \"ftp://me:pa55@reg\"\n".to_owned(), "schema_registry.url: the URL is neither"),
            (
                "url = \"http://me:zz/pa55@reg\"\n".to_owned(),
                "schema_registry.url: the URL has a slash before its @",
            ),
            ("url = \"http://a,http://:1\"\n".to_owned(), "schema_registry.url: the URL names no host"),
            ("user = \"me\"\n".to_owned(), "schema_registry.user: does nothing without a url"),
            (format!("{url}user = \"me\"\n"), "schema_registry.user: does nothing without password"),
            (format!("{url}password = \"pa55\"\n"), "schema_registry.password: does nothing without user"),
            (
                format!("{url}user = \"me\"\npassword = \"pa55\"\ntoken = \"pa55\"\n"),
                "schema_registry.token: and user cannot both",
            ),
            (format!("{url}ca_file = \"nowhere.pem\"\n"), "schema_registry.ca_file: "),
            (format!("{url}ca_file = \"product.avsc\"\n"), "product.avsc holds no certificate in PEM"),
            (
                format!("{url}token = {{ env = \"TOKEN\" }}\nca_file = \"ca.pem\"\n"),
                "schema_registry.token: the token has characters",
            ),
        ] {
            let text = format!("{LEAST}[schema_registry]\n{keys}");
            let wrong = case(&text).env("TOKEN", "\u{1}pa55").wrong();
            assert!(wrong.len() == 1 && wrong[0].contains(said), "{said}: {wrong:#?}");
            assert!(!wrong[0].contains("pa55"), "{wrong:?}");
        }
    }
}
