//! A profile of `~/.aws/credentials` and `~/.aws/config`, which object_store does not read.
//!
//! Owns: the two files' form, as far as keys, region and endpoint go. Does not own: profiles that take a program or a
//! sign-in (`role_arn`, `sso_…`, `credential_process`): what those bring is exported into the environment by
//! `aws configure export-credentials`.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a profile says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Profile {
    /// It was asked for by name, so it goes before roles.
    pub(super) named: bool,
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) region: Option<String>,
    pub(super) endpoint_url: Option<String>,
}

/// Reads the profile that the variables name. `None`: there is none, and none was asked for. The error says what is wrong,
/// and holds no secret.
pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Profile>, String> {
    let asked = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
    let name = asked.clone().unwrap_or_else(|| "default".to_owned());
    let file = |variable: Option<String>, name: &str| {
        variable.map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".aws").join(name)))
    };
    let text = |path: Option<PathBuf>| path.and_then(|path| std::fs::read_to_string(path).ok());
    let credentials = text(file(variable("AWS_SHARED_CREDENTIALS_FILE"), "credentials")).unwrap_or_default();
    let config = text(file(variable("AWS_CONFIG_FILE"), "config")).unwrap_or_default();
    let mut values = section(&config, &[&format!("profile {name}"), &name]);
    values.extend(section(&credentials, &[&name]));
    if values.is_empty() {
        return match asked {
            Some(name) => {
                Err(format!("there is no profile {name} (AWS_PROFILE) in ~/.aws; see `aws configure`"))
            }
            None => Ok(None),
        };
    }
    let mut take = |key: &str| values.remove(key);
    let profile = Profile {
        named: asked.is_some(),
        access_key_id: take("aws_access_key_id"),
        secret_access_key: take("aws_secret_access_key"),
        session_token: take("aws_session_token"),
        region: take("region"),
        endpoint_url: take("endpoint_url"),
    };
    let by_program = values.keys().find(|key| {
        ["role_arn", "credential_process", "web_identity_token_file"].contains(&key.as_str())
            || key.starts_with("sso_")
    });
    match by_program {
        Some(key) if profile.access_key_id.is_none() && profile.named => Err(format!(
            "the profile {name} (AWS_PROFILE) has no keys but {key}, which this release does not follow: export what it \
             gives, by `aws configure export-credentials --format env`"
        )),
        _ => Ok(Some(profile)),
    }
}

/// The lines `key = value` of a section; what is indented belongs to the key above, and is left out.
fn section(text: &str, names: &[&str]) -> BTreeMap<String, String> {
    let mut inside = false;
    let mut values = BTreeMap::new();
    for line in text.lines() {
        if let Some(header) = line.trim().strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default();
            let header = header.split_whitespace().collect::<Vec<_>>().join(" ");
            inside = names.contains(&header.as_str());
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_files_are_read_as_the_sdks_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let (credentials, config) = (folder.path().join("credentials"), folder.path().join("config"));
        let keys = "[default]\naws_access_key_id = AK1\naws_secret_access_key=a=b+/\n# x\n[ ops ]\naws_access_key_id = AK2\n\
                    aws_secret_access_key = s\naws_session_token = t\n";
        std::fs::write(&credentials, keys).unwrap();
        let more = "[default]\nregion = eu-west-1\ns3 =\n  region = no\n[profile ops]\nregion=us-west-2\n\
                    endpoint_url = http://here:9000\n[profile web]\nsso_session = x\n";
        std::fs::write(&config, more).unwrap();
        let read = |profile: Option<&str>| {
            read(|name| match name {
                "AWS_PROFILE" => profile.map(str::to_owned),
                "AWS_SHARED_CREDENTIALS_FILE" => Some(credentials.display().to_string()),
                "AWS_CONFIG_FILE" => Some(config.display().to_string()),
                _ => None,
            })
        };
        let text = |text: &str| Some(text.to_owned());
        let default = read(None).unwrap().unwrap();
        assert_eq!((default.access_key_id, default.secret_access_key), (text("AK1"), text("a=b+/")));
        assert_eq!((default.region, default.named), (text("eu-west-1"), false));
        let ops = read(Some("ops")).unwrap().unwrap();
        assert_eq!((ops.access_key_id, ops.session_token), (text("AK2"), text("t")));
        assert_eq!(
            (ops.region, ops.endpoint_url, ops.named),
            (text("us-west-2"), text("http://here:9000"), true)
        );
        assert!(read(Some("web")).unwrap_err().contains("export-credentials"));
        assert!(read(Some("none")).unwrap_err().contains("no profile none"));
        std::fs::remove_file(&credentials).unwrap();
        std::fs::remove_file(&config).unwrap();
        assert_eq!(read(None).unwrap(), None);
    }
}
