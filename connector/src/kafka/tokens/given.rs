//! What `[kafka.properties]` say of OIDC, under librdkafka's names and with its meaning.
//!
//! librdkafka does this by itself where it is built with curl. Ours is not, and takes none of these properties: they are taken
//! out of what it is given.
//!
//! Owns: which properties those are, and whether they can be right. Does not own: asking for a token (`fetch`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hyper::Uri;

use crate::tls::{self, Connector, Trust};

const PROTOCOL: &str = "security.protocol";
/// With its other name.
const MECHANISM: [&str; 2] = ["sasl.mechanism", "sasl.mechanisms"];
const BY_TOKEN: &str = "OAUTHBEARER";
const METHOD: &str = "sasl.oauthbearer.method";
const URL: &str = "sasl.oauthbearer.token.endpoint.url";
/// With the name that it has besides, as in librdkafka.
const ID: [&str; 2] = ["sasl.oauthbearer.client.id", "sasl.oauthbearer.client.credentials.client.id"];
const SECRET: [&str; 2] =
    ["sasl.oauthbearer.client.secret", "sasl.oauthbearer.client.credentials.client.secret"];
const SCOPE: &str = "sasl.oauthbearer.scope";
const EXTENSIONS: &str = "sasl.oauthbearer.extensions";
const GRANT: &str = "sasl.oauthbearer.grant.type";
const METADATA: &str = "sasl.oauthbearer.metadata.authentication.type";
const ASSERTION: &str = "sasl.oauthbearer.assertion.";
const CA_FILE: &str = "https.ca.location";
/// The property whose value stands in errors.
pub const NAMED_FILE: &str = CA_FILE;
const CA_TEXT: &str = "https.ca.pem";
const UNSECURE: &str = "enable.sasl.oauthbearer.unsecure.jwt";

/// Whether a property is not for librdkafka.
pub(in crate::kafka) fn is_ours(name: &str) -> bool {
    [METHOD, URL, SCOPE, EXTENSIONS, GRANT, METADATA, CA_FILE, CA_TEXT].contains(&name)
        || ID.contains(&name)
        || SECRET.contains(&name)
        || name.starts_with(ASSERTION)
}

/// Why the value of such a property is none, by itself, in words that go on after its name and do not repeat it.
pub(in crate::kafka) fn refused(name: &str, value: &str) -> Option<String> {
    if value.contains('\0') {
        return Some("has a zero byte in it".to_owned());
    }
    let one_of = |known: &[&str]| known.iter().any(|known| known.eq_ignore_ascii_case(value));
    match name {
        METHOD if !one_of(&["default", "oidc"]) => Some("is neither default nor oidc".to_owned()),
        GRANT if !one_of(&["client_credentials"]) => {
            Some("is not supported with this value: client_credentials is".to_owned())
        }
        METADATA if !one_of(&["none"]) => Some(format!(
            "is not supported with this value: only none is, with {}, {} and {URL}",
            ID[0], SECRET[0]
        )),
        URL if !value.is_empty() => endpoint(value).err(),
        EXTENSIONS => extensions(value).err(),
        _ if name.starts_with(ASSERTION) => {
            Some(format!("is not supported: of {GRANT} only client_credentials is, which needs none"))
        }
        _ => None,
    }
}

/// How somebody gets tokens, and from whom. Not `Debug`: there is a secret in it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) url: Uri,
    pub(super) id: String,
    pub(super) secret: String,
    /// Empty: none is asked for.
    pub(super) scope: String,
    /// What the broker is told besides.
    pub(super) extensions: Vec<(String, String)>,
    authority: Authority,
}

/// Who vouches for the endpoint.
#[derive(Clone, PartialEq, Eq)]
enum Authority {
    System,
    File(PathBuf),
    Text(String),
}

impl Given {
    /// What these properties say; `None`: tokens are not wanted, or not from an endpoint.
    ///
    /// # Errors
    /// What contradicts or is missing, without values.
    pub(super) fn of(properties: &BTreeMap<String, String>) -> Result<Option<Given>, String> {
        // As librdkafka reads them: without the space before a value, and an empty one is none.
        let value = |name: &str| {
            properties.get(name).map(|value| value.trim_start()).filter(|value| !value.is_empty())
        };
        let is = |name: &str, wanted: &str| {
            value(name).is_some_and(|value| value.trim_end().eq_ignore_ascii_case(wanted))
        };
        let by_token = MECHANISM.iter().any(|name| is(name, BY_TOKEN));
        let other_way = !by_token && MECHANISM.iter().any(|name| value(name).is_some());
        let with_sasl = is(PROTOCOL, "SASL_SSL") || is(PROTOCOL, "SASL_PLAINTEXT");
        let unsecure = ["true", "t", "1"].iter().any(|yes| is(UNSECURE, yes));
        match is(METHOD, "oidc") {
            true if other_way => return Ok(None),
            true if !(by_token && with_sasl) => {
                let lacks = [
                    (!with_sasl).then(|| format!("{PROTOCOL} = \"SASL_SSL\" (or \"SASL_PLAINTEXT\")")),
                    (!by_token).then(|| format!("{} = {BY_TOKEN:?}", MECHANISM[0])),
                ];
                let lacks: Vec<String> = lacks.into_iter().flatten().collect();
                return Err(format!("{METHOD} = \"oidc\" needs {}", lacks.join(" and ")));
            }
            true => {}
            // librdkafka would wait for a token that nobody gets, and try no broker.
            false if by_token && with_sasl && !unsecure => {
                return Err(format!(
                    "{} = {BY_TOKEN:?} needs {METHOD} = \"oidc\", and what that needs; or {UNSECURE} = \"true\", to try things",
                    MECHANISM[0]
                ));
            }
            false => return Ok(None),
        }
        if unsecure {
            return Err(format!("{UNSECURE} and {METHOD} = \"oidc\" exclude each other: remove one"));
        }
        for name in properties.keys().filter(|name| is_ours(name)) {
            if let Some(words) = value(name).and_then(|value| refused(name, value)) {
                return Err(format!("{name} {words}"));
            }
        }
        let of_two = |[name, other]: [&str; 2]| match (value(name), value(other)) {
            (Some(_), Some(_)) => Err(format!("{name} and {other} are one property: remove one")),
            (one, another) => Ok(one.or(another).map(str::to_owned)),
        };
        let (url, id, secret) = (value(URL), of_two(ID)?, of_two(SECRET)?);
        let missing: Vec<&str> = [(URL, url.is_none()), (ID[0], id.is_none()), (SECRET[0], secret.is_none())]
            .into_iter()
            .filter_map(|(name, is_missing)| is_missing.then_some(name))
            .collect();
        let (Some(url), Some(id), Some(secret)) = (url, id, secret) else {
            return Err(format!("{METHOD} = \"oidc\" needs {}", missing.join(", ")));
        };
        let authority = match (value(CA_FILE), value(CA_TEXT)) {
            (Some(_), Some(_)) => {
                return Err(format!("{CA_FILE} and {CA_TEXT} exclude each other: remove one"));
            }
            (None, None) | (Some("probe"), None) => Authority::System,
            (Some(file), None) => Authority::File(file.into()),
            (None, Some(text)) => Authority::Text(text.to_owned()),
        };
        Ok(Some(Given {
            url: endpoint(url).map_err(|words| format!("{URL} {words}"))?,
            id,
            secret,
            scope: value(SCOPE).unwrap_or_default().to_owned(),
            extensions: extensions(value(EXTENSIONS).unwrap_or_default())
                .map_err(|words| format!("{EXTENSIONS} {words}"))?,
            authority,
        }))
    }

    /// Makes connections to the endpoint. Reads certificates, and connects to nobody yet.
    ///
    /// # Errors
    /// Which certificates are none.
    pub(super) fn connector(&self) -> Result<Connector, String> {
        let trust = match &self.authority {
            Authority::System if self.url.scheme_str() == Some("http") => Trust::Nobody,
            Authority::System => Trust::System,
            Authority::File(file) if Path::is_dir(file) => {
                return Err(format!("{CA_FILE} is a folder: name a file"));
            }
            Authority::File(file) => Trust::File(file),
            Authority::Text(text) => Trust::Text(text),
        };
        tls::connector(trust, None, tls::CONNECT).map_err(|error| {
            let property = match &self.authority {
                Authority::Text(_) => CA_TEXT,
                _ => CA_FILE,
            };
            format!("{property}: {error}")
        })
    }

    /// The endpoint as it may be shown: without a query, in which a key may stand.
    pub(super) fn shown(&self) -> String {
        let part = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let authority = self.url.authority().map(|authority| authority.as_str());
        format!("{}://{}{}", part(self.url.scheme_str()), part(authority), self.url.path())
    }
}

/// The URL of an endpoint; or why it is none.
fn endpoint(text: &str) -> Result<Uri, String> {
    // Before anything else, since a password with a slash in it makes no URL. A query may hold any.
    let before_query = text.split(['?', '#']).next().unwrap_or_default();
    if before_query.contains('@') {
        return Err(format!("has a user in it: set {} and {} instead", ID[0], SECRET[0]));
    }
    let url: Uri = text.parse().map_err(|_| "cannot be read as a URL".to_owned())?;
    let authority = url.authority().map(|authority| authority.as_str());
    match (url.scheme_str(), url.host(), authority) {
        // A port that is none would be passed over, and that of the scheme be asked.
        (Some("https" | "http"), Some(host), Some(authority))
            if host != authority && url.port().is_none() =>
        {
            Err("has a port that is none".to_owned())
        }
        (Some("https" | "http"), Some(host), _) if !host.is_empty() => Ok(url),
        _ => Err("is no URL of https:// (or of http://)".to_owned()),
    }
}

/// `name=value,name=value`, by RFC 7628, 3.1: names of letters, values of visible characters and spaces.
fn extensions(text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |pair: &str| {
        let (name, value) =
            pair.trim().split_once('=').ok_or("is no list of NAME=VALUE with commas between")?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) || name == "auth" {
            return Err("has a name that is not made of letters alone, or is auth".to_owned());
        }
        let is_shown = |byte: u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        if !value.bytes().all(is_shown) {
            return Err("has a value with characters that are not ASCII".to_owned());
        }
        Ok((name.to_owned(), value.to_owned()))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let least = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "OAUTHBEARER"),
            (METHOD, "OIDC"),
            (URL, "https://login.example/oauth2/token?key=k3y"),
            (ID[0], "me"),
            (SECRET[0], "s3cret"),
        ];
        let all = least.iter().chain(pairs);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn wrong(pairs: &[(&str, &str)]) -> String {
        let properties = properties(pairs);
        let words = Given::of(&properties)
            .and_then(|given| given.expect("tokens are wanted").connector())
            .map(|_| ())
            .expect_err("something is wrong");
        assert!(!words.contains("s3cret") && !words.contains("k3y"), "{words}");
        words
    }

    #[test]
    fn what_is_said_is_read() {
        let given = Given::of(&properties(&[
            (SCOPE, " read write"),
            (EXTENSIONS, "logicalCluster=lkc-1, identityPoolId=pool=2,"),
            (GRANT, "client_credentials"),
            (METADATA, "none"),
            (CA_FILE, "probe"),
        ]));
        let given = given.expect("right").expect("tokens are wanted");
        assert_eq!(
            (given.id.as_str(), given.secret.as_str(), given.scope.as_str()),
            ("me", "s3cret", "read write")
        );
        let pairs = [("logicalCluster", "lkc-1"), ("identityPoolId", "pool=2")];
        assert_eq!(given.extensions, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(given.shown(), "https://login.example/oauth2/token");
        let mut other_names = properties(&[(ID[1], "me"), (SECRET[1], "s3cret")]);
        other_names.remove(ID[0]);
        other_names.remove(SECRET[0]);
        assert!(
            matches!(Given::of(&other_names), Ok(Some(given)) if given.id == "me" && given.secret == "s3cret")
        );
    }

    #[test]
    fn who_comes_in_another_way_needs_no_endpoint() {
        for pairs in [
            vec![(MECHANISM[0], "PLAIN")],
            vec![(MECHANISM[0], "plain"), (PROTOCOL, "SSL")],
            vec![(MECHANISM[0], ""), (MECHANISM[1], "SCRAM-SHA-512")],
            vec![(METHOD, "default"), (PROTOCOL, "SSL")],
            vec![(METHOD, ""), (MECHANISM[0], "")],
            vec![(METHOD, "default"), (UNSECURE, "True")],
        ] {
            let mut properties = properties(&pairs);
            properties.remove(URL);
            assert!(matches!(Given::of(&properties), Ok(None)), "{pairs:?}");
        }
        assert!(matches!(Given::of(&BTreeMap::new()), Ok(None)));
    }

    /// librdkafka would say nothing, try no broker, and wait.
    #[test]
    fn who_would_wait_for_a_token_for_ever_is_told_what_is_missing() {
        for pairs in [
            vec![(METHOD, "")],
            vec![(METHOD, "default"), (PROTOCOL, "SASL_PLAINTEXT")],
            vec![(METHOD, "Default"), (MECHANISM[0], "oauthbearer"), (UNSECURE, "false")],
            vec![(METHOD, ""), (MECHANISM[0], ""), (MECHANISM[1], "OAuthBearer")],
        ] {
            let words = wrong(&pairs);
            assert!(words.contains("OAUTHBEARER") && words.contains(METHOD), "{pairs:?}: {words}");
        }
        for (pairs, protocol, mechanism) in [
            (vec![(PROTOCOL, "ssl")], true, false),
            (vec![(PROTOCOL, "")], true, false),
            (vec![(MECHANISM[0], "")], false, true),
            (vec![(MECHANISM[0], ""), (PROTOCOL, "PLAINTEXT")], true, true),
        ] {
            let words = wrong(&pairs);
            assert!(words.contains(METHOD), "{pairs:?}: {words}");
            let named = (words.contains(PROTOCOL), words.contains(MECHANISM[0]));
            assert_eq!(named, (protocol, mechanism), "{pairs:?}: {words}");
        }
        let spaced = properties(&[(PROTOCOL, " SASL_SSL ")]);
        assert!(matches!(Given::of(&spaced), Ok(Some(_))), "librdkafka takes it without the space, too");
    }

    #[test]
    fn what_is_missing_or_contradicts_is_named() {
        let words = wrong(&[(URL, ""), (ID[0], " "), (SECRET[0], "")]);
        for name in [URL, ID[0], SECRET[0]] {
            assert!(words.contains(name), "{words}");
        }
        let words = wrong(&[(SECRET[0], "")]);
        assert!(words.contains(SECRET[0]) && !words.contains(ID[0]), "{words}");
        for (pairs, said) in [
            (vec![(UNSECURE, "true")], UNSECURE),
            (vec![(ID[1], "me")], "are one property"),
            (vec![(CA_FILE, "/ca.pem"), (CA_TEXT, "x")], "exclude each other"),
            (vec![(CA_FILE, "/nowhere/ca.pem")], "https.ca.location: /nowhere/ca.pem cannot be read"),
            (vec![(CA_FILE, "/")], "is a folder"),
            (vec![(CA_TEXT, "no certificate")], "https.ca.pem: "),
            (vec![(GRANT, "urn:ietf:params:oauth:grant-type:jwt-bearer")], "client_credentials is"),
            (vec![(METADATA, "azure_imds")], "only none is"),
        ] {
            let words = wrong(&pairs);
            assert!(words.contains(said), "{pairs:?}: {words}");
        }
    }

    #[test]
    fn what_is_refused_by_itself_is_not_repeated() {
        for (name, value, said) in [
            (METHOD, "s3cret", "is neither default nor oidc"),
            (GRANT, "s3cret", "client_credentials is"),
            (METADATA, "azure_imds", "only none is"),
            ("sasl.oauthbearer.assertion.file", "s3cret", "is not supported"),
            (URL, "https://me:s3cret@login.example/token", "has a user in it"),
            (URL, "https://me:s3/cret@login.example/token", "has a user in it"),
            (URL, "https://login.example:99999/s3cret", "a port that is none"),
            (URL, "https://login.example:/s3cret", "a port that is none"),
            (URL, "https://[::1]:s3cret/", "none"),
            (URL, "https://me:s3?cret@login.example/token", "a port that is none"),
            (URL, "login.example/s3cret", "cannot be read as a URL"),
            (URL, "ftp://login.example/s3cret", "is no URL of https://"),
            (URL, "https:// s3cret", "cannot be read as a URL"),
            (EXTENSIONS, "s3cret", "NAME=VALUE"),
            (EXTENSIONS, "auth=s3cret", "is auth"),
            (EXTENSIONS, "a1=s3cret", "letters alone"),
            (EXTENSIONS, "a=s3cret\u{e9}", "not ASCII"),
            (SECRET[1], "s3cret\0", "zero byte"),
        ] {
            let words = refused(name, value).unwrap_or_default();
            assert!(is_ours(name) && words.contains(said) && !words.contains("s3cret"), "{name}: {words}");
        }
        for (name, value) in [
            (METHOD, "OIDC"),
            (GRANT, "client_credentials"),
            (URL, "http://127.0.0.1:8080/token"),
            (URL, "http://[::1]/token"),
            (URL, "http://[::1]:8080/token"),
            (URL, "https://login.example/token?for=me@example.com"),
            (URL, ""),
            (SECRET[0], "anything"),
            (EXTENSIONS, ""),
        ] {
            assert_eq!(refused(name, value), None, "{name}");
        }
        assert!(!is_ours("sasl.oauthbearer.config") && !is_ours(UNSECURE), "those are librdkafka's");
    }
}
