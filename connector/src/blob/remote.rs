//! Opening stores that are far away: S3 and what speaks like it, Google Cloud Storage, Azure.
//!
//! ```text
//! s3://BUCKET/PREFIX     AWS_*,    profile of ~/.aws (AWS_PROFILE), web identity, container, instance role
//! gs://BUCKET/PREFIX     GOOGLE_*, application default credentials, metadata server
//! az://CONTAINER/PREFIX  AZURE_*,  workload identity, managed identity
//!                        then [storage.options], which go before both
//! ```
//!
//! Owns: what a URL and options mean, and which source of credentials is taken. Does not own: the credentials themselves,
//! which object_store, and of a container `container`, asks for when a request needs them and renews before they end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpConnector as _;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as Location;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use super::answer::Far;
use super::container::{self, Container};
use super::http::{IN_THE_CLEAR, Wire};
use super::profile;

/// Where a machine of EC2 is asked for its role.
const METADATA: &str = "http://169.254.169.254";
/// What stands in place of a secret.
const MASK: &str = "***";

/// Settings of a store by object_store's names, which are those of the providers' variables in small letters:
/// `aws_endpoint_url`, `aws_region`, `azure_storage_account_name`. They go before the environment's.
#[derive(Clone, Default, PartialEq)]
pub struct Options(pub BTreeMap<String, String>);

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value): (&String, &String)| {
            (name.clone(), if is_secret(name) { MASK.to_owned() } else { value.clone() })
        };
        f.debug_map().entries(self.0.iter().map(shown)).finish()
    }
}

/// Whether an option's value must never be shown.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["key", "secret", "token", "password", "sas", "credential"].iter().any(|word| name.contains(word))
}

/// Retries within a request, for what passes at once: a connection that was closed while idle, a 503. What lasts longer is
/// for the caller, who knows what else waits.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(15),
    }
}

/// One provider.
struct Provider {
    scheme: &'static str,
    /// What its variables begin with.
    prefix: &'static str,
    kind: &'static str,
    credentials: &'static str,
    place: &'static str,
}

const PROVIDERS: [Provider; 3] = [
    Provider {
        scheme: "s3",
        prefix: "AWS_",
        kind: "bucket",
        credentials: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role",
        place: "AWS_REGION and AWS_ENDPOINT_URL, or [storage.options]",
    },
    Provider {
        scheme: "gs",
        prefix: "GOOGLE_",
        kind: "bucket",
        credentials: "set GOOGLE_APPLICATION_CREDENTIALS to a key's file, or give the machine a service account",
        place: "google_base_url in [storage.options]",
    },
    Provider {
        scheme: "az",
        prefix: "AZURE_",
        kind: "container",
        credentials: "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, or give the machine an identity",
        place: "AZURE_STORAGE_ACCOUNT_NAME and AZURE_ENDPOINT, or [storage.options]",
    },
];

/// Whether stores of a scheme know an option of this name. Those that are not far away know none.
pub fn is_option(scheme: &str, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // What is for an HTTP client is for object_store's own; ours heeds these.
    let ours = |of: &ClientConfigKey| {
        matches!(
            of,
            ClientConfigKey::AllowHttp
                | ClientConfigKey::ConnectTimeout
                | ClientConfigKey::DefaultContentType
        )
    };
    match scheme {
        "s3" => name.parse().is_ok_and(|key| !matches!(&key, Key::Client(of) if !ours(of))),
        "gs" => name.parse().is_ok_and(|key| !matches!(&key, GoogleConfigKey::Client(of) if !ours(of))),
        "az" => name.parse().is_ok_and(|key| !matches!(&key, AzureConfigKey::Client(of) if !ours(of))),
        _ => false,
    }
}

/// Options that are often given, of all stores, for who has misspelt one; object_store knows more of them.
pub const OPTIONS: &[(&str, &[&str])] = &[
    (
        "s3",
        &[
            "aws_access_key_id",
            "aws_allow_http",
            "aws_endpoint_url",
            "aws_region",
            "aws_secret_access_key",
            "aws_server_side_encryption",
            "aws_session_token",
            "aws_sse_kms_key_id",
            "aws_virtual_hosted_style_request",
            "connect_timeout",
        ],
    ),
    (
        "gs",
        &[
            "allow_http",
            "connect_timeout",
            "google_application_credentials",
            "google_base_url",
            "google_service_account",
            "google_service_account_key",
        ],
    ),
    (
        "az",
        &[
            "allow_http",
            "azure_storage_account_key",
            "azure_storage_account_name",
            "azure_storage_client_id",
            "azure_storage_client_secret",
            "azure_storage_endpoint",
            "azure_storage_sas_key",
            "azure_storage_tenant_id",
            "connect_timeout",
        ],
    ),
];

/// Whether the URL of a store that is far away has the form of one; else what is wrong with it. Opens nothing.
pub fn far_url(url: &str) -> Result<(), String> {
    let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
    match PROVIDERS.iter().find(|provider| provider.scheme == scheme) {
        Some(provider) => provider.parts(rest).map(drop),
        None => Err("it is none of s3://, gs://, az://".to_owned()),
    }
}

/// Why an S3 store would be refused for its endpoint, as far as `options` and the environment say which it is: with the option
/// that names the endpoint, where one does. Opens nothing, and needs no credentials.
pub fn in_the_clear(url: &str, options: &Options) -> Option<(Option<String>, String)> {
    let ours = |(name, value): &(String, String)| name.starts_with("AWS_") && !value.is_empty();
    let environment = variables().filter(ours).collect();
    url.strip_prefix("s3://")?;
    let settings = Settings { environment, options: options.clone() };
    let why = encrypted(&settings.given::<Key>("s3").ok()?).err()?;
    let is_endpoint = |name: &&String| {
        matches!(name.to_ascii_lowercase().parse::<Key>(), Ok(Key::Endpoint | Key::S3Endpoint))
    };
    // Of several the last one counts.
    Some((options.0.keys().rfind(is_endpoint).cloned(), why))
}

/// Whether nothing is sent to S3 in the clear that nobody has permitted: known before the first request, so that a start is
/// refused and not tried again.
fn encrypted(given: &[(Key, String)]) -> Result<(), String> {
    let last = |wanted: Key| given.iter().rev().find(|(key, _)| *key == wanted).map(|(_, value)| value);
    // As object_store has it: the one for S3 alone goes before the one for all services.
    let endpoint = last(Key::S3Endpoint).or_else(|| last(Key::Endpoint));
    let clear = endpoint.is_some_and(|url| url.trim().to_ascii_lowercase().starts_with("http://"));
    let permitted = last(Key::Client(ClientConfigKey::AllowHttp)).is_some_and(|value| is_yes(value));
    if clear && !permitted { Err(IN_THE_CLEAR.to_owned()) } else { Ok(()) }
}

/// The process's environment, as far as it is text.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text)
}

/// A store, and how error texts name it; or what is wrong, without secrets.
type Opened = Result<(Arc<dyn ObjectStore>, Far), String>;

/// A store, and how error texts name it. `None`: the scheme is of no store far away. The error says what is wrong, and holds
/// no secret.
pub(super) fn open(
    scheme: &str,
    rest: &str,
    options: &Options,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Option<Opened> {
    let provider = PROVIDERS.iter().find(|provider| provider.scheme == scheme)?;
    Some(provider.open(rest, options, environment))
}

impl Provider {
    /// Bucket or container, and prefix.
    fn parts<'a>(&self, rest: &'a str) -> Result<(&'a str, Location), String> {
        let (scheme, kind) = (self.scheme, self.kind);
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let written = format!("write {scheme}://{}/PREFIX", kind.to_uppercase());
        if name.is_empty() {
            return Err(format!("it names no {kind}; {written}"));
        }
        if rest.contains(['@', '?', '#', '%', ' ']) || name.contains(':') {
            return Err(format!(
                "it is more than {kind} and prefix; {written}, and credentials and endpoint as {}… or in [storage.options]",
                self.prefix
            ));
        }
        let prefix = prefix.trim_end_matches('/');
        let parsed = Location::parse(prefix).ok().filter(|_| !prefix.starts_with('/'));
        let prefix = parsed
            .ok_or_else(|| format!("its prefix {prefix:?} has an empty part, or one of dots; {written}"))?;
        Ok((name, prefix))
    }

    fn open(
        &self,
        rest: &str,
        options: &Options,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Opened {
        let (scheme, kind) = (self.scheme, self.kind);
        let (name, prefix) = self.parts(rest)?;
        // Only what is set: an empty variable is how shells unset one.
        let environment: BTreeMap<String, String> = environment
            .into_iter()
            .filter(|(name, value)| {
                // Azure's own hosts say by the other where their identity is asked for.
                let ours = name.starts_with(self.prefix) || (scheme == "az" && name == "IDENTITY_ENDPOINT");
                ours && !value.is_empty()
            })
            .collect();
        let settings = Settings { environment, options: options.clone() };
        let store = match scheme {
            "s3" => settings.s3(name),
            "gs" => settings.gs(name).map(|store| (store, None)),
            _ => settings.az(name).map(|store| (store, None)),
        };
        let (store, asked) = store.map_err(|why| settings.hushed(why))?;
        let store =
            if prefix.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) };
        let (name, credentials, place) = (name.to_owned(), self.credentials, self.place);
        Ok((store, Far { kind, name, credentials, place, asked }))
    }
}

/// What is set, by whom.
struct Settings {
    environment: BTreeMap<String, String>,
    options: Options,
}

impl Settings {
    /// Each with its key: the environment's, of which those that are no key are somebody else's.
    fn variables<K: std::str::FromStr>(&self) -> Vec<(K, String)> {
        let found = self.environment.iter();
        found
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone())))
            .collect()
    }

    /// Each with its key; all must be known.
    fn options<K: std::str::FromStr>(&self, scheme: &str) -> Result<Vec<(K, String)>, String> {
        let key = |name: &String| {
            let key = name.to_ascii_lowercase().parse::<K>().ok().filter(|_| is_option(scheme, name));
            key.ok_or_else(|| format!("{name} in [storage.options] is no option of {scheme}:// stores"))
        };
        self.options.0.iter().map(|(name, value)| Ok((key(name)?, value.clone()))).collect()
    }

    /// Both, in the order in which the later goes before the earlier.
    fn given<K: std::str::FromStr>(&self, scheme: &str) -> Result<Vec<(K, String)>, String> {
        let mut given = self.variables();
        given.extend(self.options(scheme)?);
        Ok(given)
    }

    /// A store, and who is asked for a role, where somebody is.
    fn s3(&self, bucket: &str) -> Result<(Arc<dyn ObjectStore>, Option<String>), String> {
        let has = |given: &[(Key, String)], key| given.iter().any(|(known, _)| *known == key);
        let of_keys = |key: &Key| matches!(key, Key::AccessKeyId | Key::SecretAccessKey | Key::Token);
        let mut given = self.variables::<Key>();
        let options = self.options::<Key>("s3")?;
        if has(&options, Key::AccessKeyId) {
            // A session's token belongs to its own key.
            given.retain(|(key, _)| !of_keys(key));
        }
        given.extend(options);
        let signed = has(&given, Key::AccessKeyId) || has(&given, Key::SkipSignature);
        let of = |name: &str| self.environment.get(name).cloned();
        let found = match profile::read(of) {
            Err(_) if signed => None,
            found => found?,
        };
        if let Some(found) = found {
            // In the SDKs' order: a profile that is named goes before roles, the default one after; and after keys.
            let role = has(&given, Key::WebIdentityTokenFile)
                || has(&given, Key::ContainerCredentialsRelativeUri)
                || has(&given, Key::ContainerCredentialsFullUri);
            let signs = !signed && (found.named || !role);
            let values = [
                (Key::AccessKeyId, found.access_key_id),
                (Key::SecretAccessKey, found.secret_access_key),
                (Key::Token, found.session_token),
                (Key::Region, found.region),
                (Key::Endpoint, found.endpoint_url),
            ];
            for (key, value) in values {
                if let Some(value) = value
                    && (signs || !of_keys(&key))
                    && !has(&given, key)
                    && !(key == Key::Region && has(&given, Key::DefaultRegion))
                {
                    given.push((key, value));
                }
            }
        }
        encrypted(&given)?;
        let get =
            |wanted: Key| given.iter().rev().find(|(key, _)| *key == wanted).map(|(_, value)| value.clone());
        let signed = get(Key::AccessKeyId).is_some() || get(Key::SecretAccessKey).is_some();
        let unsigned = get(Key::SkipSignature).is_some_and(|skip| is_yes(&skip));
        let web = get(Key::WebIdentityTokenFile).is_some() && get(Key::RoleArn).is_some();
        let container = container::Place::find(
            get(Key::ContainerCredentialsRelativeUri).as_deref(),
            get(Key::ContainerCredentialsFullUri).as_deref(),
            get(Key::ContainerAuthorizationTokenFile),
            self.environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN").cloned(),
        );
        // By the SDKs' name for it as well as by object_store's.
        let endpoint = self.environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").cloned();
        let endpoint = get(Key::MetadataEndpoint).or(endpoint).unwrap_or_else(|| METADATA.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        // One at a time is how blobs are deleted, and the bulk request is what stores that speak S3 most often lack.
        let mut builder = AmazonS3Builder::new().with_disable_bulk_delete(true);
        for (key, value) in given {
            builder = builder.with_config(key, value);
        }
        let disabled = |value: &String| value.eq_ignore_ascii_case("true");
        let mut asked = None;
        match container {
            _ if signed || unsigned || web => {}
            Some(place) => {
                let place = place?;
                let client = Wire.connect(&ClientOptions::new().with_allow_http(true));
                let client = client.map_err(|error| error.to_string())?;
                asked = Some(place.shown());
                builder = builder.with_credentials(Arc::new(Container::new(place, client)));
            }
            None if self.environment.get("AWS_EC2_METADATA_DISABLED").is_some_and(disabled) => {
                return Err(
                    "no credentials are given, and AWS_EC2_METADATA_DISABLED forbids to ask for a role: set \
                            AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
                        .to_owned(),
                );
            }
            None => {
                asked = Some(format!("{endpoint}/latest/"));
                builder = builder.with_metadata_endpoint(endpoint);
            }
        }
        let builder = builder.with_bucket_name(bucket).with_retry(retries()).with_http_connector(Wire);
        let store = builder.build().map_err(|error| error.to_string())?;
        Ok((Arc::new(store), asked))
    }

    fn gs(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>, String> {
        let in_the_clear = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
        // Unlike the others' builders this one permits it, for the sake of the metadata server, which gets it anyway.
        let mut builder = GoogleCloudStorageBuilder::new().with_config(in_the_clear, "false");
        for (key, value) in self.given::<GoogleConfigKey>("gs")? {
            builder = builder.with_config(key, value);
        }
        let builder = builder.with_bucket_name(bucket).with_retry(retries()).with_http_connector(Wire);
        builder.build().map(|store| Arc::new(store) as _).map_err(|error| error.to_string())
    }

    fn az(&self, container: &str) -> Result<Arc<dyn ObjectStore>, String> {
        let mut builder = MicrosoftAzureBuilder::new();
        for (key, value) in self.given::<AzureConfigKey>("az")? {
            builder = builder.with_config(key, value);
        }
        let builder = builder.with_container_name(container).with_retry(retries()).with_http_connector(Wire);
        builder.build().map(|store| Arc::new(store) as _).map_err(|error| error.to_string())
    }

    /// A text of object_store's without the values of secrets.
    fn hushed(&self, mut text: String) -> String {
        for (name, value) in self.environment.iter().chain(&self.options.0) {
            // A shorter one would be found in any text.
            if is_secret(name) && value.len() > 3 {
                text = text.replace(value.as_str(), MASK);
            }
        }
        text
    }
}

/// As object_store reads what is to be true or false; it refuses any other word itself.
fn is_yes(value: &str) -> bool {
    ["1", "true", "on", "yes", "y"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(url: &str, environment: &[(&str, &str)], options: &[(&str, &str)]) -> Result<Far, String> {
        let (scheme, rest) = url.split_once("://").unwrap();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        // No profile of whoever runs the test.
        let nowhere = [("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"), ("AWS_CONFIG_FILE", "/nowhere")];
        let environment = nowhere.iter().chain(environment).map(owned);
        let options = Options(options.iter().map(owned).collect());
        open(scheme, rest, &options, environment).unwrap().map(|(_, far)| far)
    }

    #[test]
    fn each_scheme_takes_its_variables_and_options() {
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "s3cret"), ("AWS_PAGER", "less")];
        assert_eq!(opened("s3://shop/blobs/products/", &keys, &[]).unwrap().name, "shop");
        assert_eq!(opened("s3://shop", &[], &[("aws_region", "eu-west-1")]).unwrap().kind, "bucket");
        opened("s3://shop", &[keys[0], keys[1], ("AWS_PROFILE", "none")], &[]).unwrap();
        let key = "s3cretA=";
        let account = [("AZURE_STORAGE_ACCOUNT_NAME", "me"), ("AZURE_STORAGE_ACCOUNT_KEY", key)];
        assert_eq!(opened("az://shop/blobs", &account, &[]).unwrap().kind, "container");
        opened("gs://shop/blobs", &[], &[("google_skip_signature", "true")]).unwrap();
        let untold =
            r#"{"client_email": "", "private_key_id": "", "private_key": "", "disable_oauth": true}"#;
        opened("gs://shop/blobs", &[], &[("google_service_account_key", untold)]).unwrap();
        assert!(open("ftp", "shop", &Options::default(), []).is_none());
    }

    #[test]
    fn a_role_is_asked_for_where_nothing_goes_before_it() {
        let full = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://localhost/creds");
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "s3cret")];
        let web = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")];
        let at = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1/");
        let relative = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/creds");
        for (environment, asked) in [
            (&[][..], Some("http://169.254.169.254/latest/")),
            (&[at], Some("http://127.0.0.1:1/latest/")),
            (&[at, full], Some("http://localhost/…")),
            (&[at, full, relative], Some("http://169.254.170.2/v2/…")),
            (&[full, keys[0], keys[1]], None),
            (&[full, web[0], web[1]], None),
            (&[full, web[0]], Some("http://localhost/…")),
            (&[full, ("AWS_SKIP_SIGNATURE", "Yes")], None),
            (&[full, ("AWS_SKIP_SIGNATURE", "0")], Some("http://localhost/…")),
            (&[full, ("AWS_SKIP_SIGNATURE", "False")], Some("http://localhost/…")),
        ] {
            let far = opened("s3://shop", environment, &[]).unwrap();
            assert_eq!(far.asked.as_deref(), asked, "{environment:?}");
        }
        let far =
            opened("s3://shop", &[full], &[("aws_access_key_id", "id"), ("aws_secret_access_key", "x")]);
        assert_eq!(far.unwrap().asked, None, "options go before the environment");
    }

    #[test]
    fn an_endpoint_in_the_clear_is_refused_unless_that_is_permitted() {
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "s3cret")];
        let at = ("aws_endpoint_url", "http://minio:9000");
        for (environment, options, is_refused) in [
            (&keys[..], &[at][..], true),
            (&[keys[0], keys[1], ("AWS_ENDPOINT_URL", "HTTP://minio:9000")], &[], true),
            (&[keys[0], keys[1], ("AWS_ALLOW_HTTP", "true")], &[at, ("aws_allow_http", "false")], true),
            (&keys, &[at, ("aws_allow_http", "true")], false),
            (&[keys[0], keys[1], ("AWS_ALLOW_HTTP", "true")], &[at], false),
            (&keys, &[("aws_endpoint_url", "https://minio:9000")], false),
            (&[keys[0], keys[1], ("AWS_ENDPOINT_URL_S3", "http://minio:9000")], &[], true),
            (&[keys[0], keys[1], ("AWS_ENDPOINT_URL_S3", "https://minio:9000")], &[at], false),
        ] {
            let opened = opened("s3://shop", environment, options);
            let refused = opened.as_ref().err().map(String::as_str);
            assert_eq!(refused, is_refused.then_some(IN_THE_CLEAR), "{environment:?} {options:?}");
        }
    }

    #[test]
    fn what_cannot_be_opened_says_why_without_secrets() {
        let secret = [("AWS_SECRET_ACCESS_KEY", "s3cret")];
        for (url, environment, options, said) in [
            ("s3://", &[][..], &[][..], "names no bucket"),
            ("s3:///a", &[], &[], "names no bucket"),
            ("s3://id:s3cret@shop/a", &[], &[], "more than bucket and prefix"),
            ("s3://shop/a?x=y", &[], &[], "more than bucket and prefix"),
            ("s3://shop/a//b", &[], &[], "empty part"),
            ("s3://shop/../b", &[], &[], "dots"),
            ("az://shop/a", &[], &[], "ccount"),
            ("s3://shop", &[], &[("aws_regoin", "s3cret")], "aws_regoin in [storage.options] is no option"),
            ("s3://shop", &secret[..], &[], "AccessKeyId"),
            ("s3://shop", &[], &[("aws_access_key_id", "s3cret")], "SecretAccessKey"),
            ("gs://shop", &[], &[("google_service_account_key", "s3cret")], ""),
            ("s3://shop", &[("AWS_PROFILE", "none")], &[], "no profile none"),
            ("s3://shop", &[("AWS_EC2_METADATA_DISABLED", "true")], &[], "AWS_EC2_METADATA_DISABLED forbids"),
            (
                "s3://shop",
                &[
                    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://h/a"),
                    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "s3cret"),
                ],
                &[],
                "names h",
            ),
        ] {
            let why = opened(url, environment, options).unwrap_err();
            assert!(why.contains(said) && !why.contains("s3cret"), "{url}: {why}");
        }
        let options = Options([("aws_secret_access_key".to_owned(), "s3cret".to_owned())].into());
        assert_eq!(format!("{options:?}"), r#"{"aws_secret_access_key": "***"}"#);
    }
}
