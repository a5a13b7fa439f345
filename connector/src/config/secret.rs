//! What must never be shown.

use std::collections::BTreeMap;
use std::fmt;

use crate::blob;

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// librdkafka properties; `Debug` shows no secrets.
#[derive(Clone, Default)]
pub struct Properties(pub BTreeMap<String, String>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(name, value)| {
            (name, if is_secret(std::slice::from_ref(name)) { MASK } else { value.as_str() })
        });
        f.debug_map().entries(shown).finish()
    }
}

/// Properties of SASL that say how somebody is asked, and nothing of who it is: what is looked at first where a login fails.
const OPEN: [&str; 5] = [
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.kerberos.service.name",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.grant.type",
];

/// Whether the value at this path must never be shown. A value that came by `{ file = }` or `{ env = }` never is,
/// whatever its path: who fetches a value from outside the file has a reason.
pub fn is_secret(path: &[String]) -> bool {
    let Some(name) = path.last() else { return false };
    if let [storage, options, ..] = path
        && storage == "storage"
        && options == "options"
    {
        return blob::is_secret(name);
    }
    if let [.., webhook, name] = path
        && webhook == "webhook"
        && ["url", "headers"].contains(&name.as_str())
    {
        // Who may post to a URL is often whoever knows it; headers carry tokens.
        return true;
    }
    let name = name.to_ascii_lowercase();
    if OPEN.contains(&name.as_str()) {
        return false;
    }
    ["password", "secret", "token"].iter().any(|word| name.contains(word))
        || ["sasl.", "ssl.key.", "ssl_key"].iter().any(|prefix| name.starts_with(prefix))
}

/// A URL without its user and password, or several in a row. All up to the last `@` is taken for those, since a password may have
/// a slash in it that should have been escaped; a folder has neither.
pub fn without_user(text: &str) -> String {
    let mut urls = text.split("://");
    let mut shown = urls.next().unwrap_or_default().to_owned();
    for rest in urls {
        let is_folder = shown.ends_with("file");
        shown.push_str("://");
        match rest.rsplit_once('@').filter(|_| !is_folder) {
            Some((_, host)) => shown.extend([MASK, "@", host]),
            None => shown.push_str(rest),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names() {
        let path = |name: &str| vec!["kafka".to_owned(), "properties".to_owned(), name.to_owned()];
        for secret in
            ["sasl.password", "sasl.username", "ssl.key.pem", "ssl.keystore.password", "Client_Secret"]
        {
            assert!(is_secret(&path(secret)), "{secret}");
        }
        let option = |name: &str| ["storage", "options", name].map(str::to_owned);
        for secret in ["aws_access_key_id", "azure_storage_sas_key", "google_service_account_key", "token"] {
            assert!(is_secret(&option(secret)), "{secret}");
        }
        assert!(!is_secret(&option("aws_endpoint_url")));
        for open in
            ["security.protocol", "sasl.mechanism", "sasl.mechanisms", "ssl.ca.location", "max_batch_size"]
        {
            assert!(!is_secret(&path(open)), "{open}");
        }
    }

    #[test]
    fn a_url_is_shown_without_who_asks() {
        assert_eq!(without_user("http://me:pw@host:8081/x"), "http://***@host:8081/x");
        assert_eq!(without_user("http://me:p/w?#@host:8081/x"), "http://***@host:8081/x");
        assert_eq!(without_user("http://host:8081/a@b"), "http://***@b", "rather too much than a password");
        assert_eq!(without_user("file:///home/me@work/blobs"), "file:///home/me@work/blobs");
        assert_eq!(without_user("http://host:8081/a"), "http://host:8081/a");
        let two = "http://me:pa55@r1,https://me:pa66@r2/x";
        assert_eq!(without_user(two), "http://***@r1,https://***@r2/x");
    }
}
