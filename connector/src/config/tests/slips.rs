//! What was nearly right.

use super::*;

/// Of what stands in a misspelt section every mistake is said, and of no key of it that it is missing.
#[test]
fn a_misspelt_section_hides_nothing() {
    case(
        r#"[storge]
data_dir = 7
[dataset.products]
sorce = { topcs = ["products"], format = "jsn" }
schema = "product.avsc"
shards = 4
"#,
    )
    .says(&[
        "stillwell.toml:1: storge: unknown key; did you mean storage?",
        "stillwell.toml:2: storage.data_dir: 7 cannot stand here: write a folder, as in \"/var/lib/stillwell\"",
        "stillwell.toml:3: dataset: unknown key; did you mean datasets?",
        "stillwell.toml:4: datasets.products.sorce: unknown key; did you mean datasets.products.source?",
        "stillwell.toml:4: datasets.products.source.format: \"jsn\" is not one of avro, json, protobuf, raw; did you mean \
         \"json\"?",
        "stillwell.toml:4: datasets.products.source.topcs: unknown key; did you mean datasets.products.source.topics?",
        "stillwell.toml:6: datasets.products.shards: 4 shards are not in this release: 1 is",
    ]);
    // Where the right one is there as well, nothing is said twice, and mistakes are said all the same.
    let both = format!("{LEAST}toics = 1\n[storge]\ndata_dir = \"elsewhere\"\ncache_size = \"much\"\n");
    let wrong = case(&both).wrong();
    assert_eq!(wrong.len(), 3, "{wrong:#?}");
    assert!(wrong[0].starts_with("stillwell.toml:7: datasets.products.toics: unknown key"), "{wrong:#?}");
    assert_eq!(wrong[1], "stillwell.toml:8: storge: unknown key; did you mean storage?");
    assert!(
        wrong[2].starts_with("stillwell.toml:10: storage.cache_size: \"much\" cannot stand"),
        "{wrong:#?}"
    );
}

/// Of a list each entry that is wrong is named, not the first one alone.
#[test]
fn each_server_and_each_key_field_is_looked_at() {
    let text = LEAST.replace("[\"id\"]", "[\"idd\", \"price\", \"colour\"]");
    let servers = "[kafka]\nbootstrap_servers = \"localhost, kafka-1:9092, :9092\"\n";
    let wrong = case(&format!("{text}{servers}")).wrong();
    assert_eq!(wrong.len(), 5, "{wrong:#?}");
    for (at, said) in [
        (0, "no field `idd`"),
        (0, "did you mean \"id\"?"),
        (1, "`price`"),
        (2, "no field `colour`"),
        (3, "\"localhost\" is not HOST:PORT"),
        (4, "\":9092\" is not HOST:PORT"),
    ] {
        assert!(wrong[at].contains(said), "{said}: {wrong:#?}");
    }
}

#[test]
fn a_fingerprint_has_sixteen_digits() {
    let with = |text: &str| case(&format!("{LEAST}schema_replaces = \"{text}\"\n"));
    with("4f1c").says(&[
        "stillwell.toml:7: datasets.products.schema_replaces: \"4f1c\" is no fingerprint: 16 hexadecimal digits, as \
         `versions show` prints it",
    ]);
    let (value, _) = shown(&with("4f1c2a9be0d37785").right(), "datasets.products.schema_replaces");
    assert!(value.contains("4f1c2a9be0d37785"), "{value}");
}

/// librdkafka would pass such a server over, and `run` would wait for a broker for ever.
#[test]
fn a_server_with_another_scheme_is_named_by_its_line() {
    let wrong = case(&format!("{LEAST}[kafka]\nbootstrap_servers = \"http://kafka:9092\"\n")).wrong();
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    let said = "stillwell.toml:8: kafka.bootstrap_servers: \"http://kafka:9092\" has a scheme before HOST:PORT: leave it \
                out, as in \"kafka:9092\"";
    assert!(wrong[0].starts_with(said), "{wrong:#?}");
    case(&format!("{LEAST}[kafka]\nbootstrap_servers = \"plaintext://kafka:9092\"\n")).right();
}

/// librdkafka would take Kerberos, and speak of being recompiled.
#[test]
fn sasl_without_a_mechanism_is_named_by_its_line() {
    let text = format!("{LEAST}[kafka.properties]\n\"sasl.username\" = \"shop\"\n");
    let case = case(&format!("{text}\"security.protocol\" = \"SASL_SSL\"\n"));
    let Err(Error::Mistakes { mistakes, .. }) = Config::read_to_run(&case.sources) else {
        panic!("no mistake found")
    };
    let said = mistakes.to_string();
    assert!(
        said.contains("stillwell.toml:9: kafka.properties.\"security.protocol\": needs sasl.mechanism"),
        "{said}"
    );
    assert_eq!(mistakes.list().len(), 1, "{said}");
}

/// Where tokens are asked for stands in errors.
#[test]
fn an_endpoint_for_tokens_has_no_secret_in_its_url() {
    let with = |url: &str| {
        let properties = format!("[kafka.properties]\n\"sasl.oauthbearer.token.endpoint.url\" = \"{url}\"\n");
        case(&format!("{LEAST}{properties}"))
    };
    let wrong = with("https://me:pa55@login.example/token").wrong();
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].contains("has a user in it") && !wrong[0].contains("pa55"), "{wrong:#?}");
    with("https://login.example/token").right();
}

/// The least, of a client that gets tokens by OIDC, and `more` properties.
fn by_oidc(more: &[&str]) -> String {
    let properties = [
        "[kafka.properties]",
        "\"security.protocol\" = \"SASL_SSL\"",
        "\"sasl.mechanism\" = \"OAUTHBEARER\"",
        "\"sasl.oauthbearer.method\" = \"oidc\"",
        "\"sasl.oauthbearer.client.id\" = \"client\"",
    ];
    format!("{LEAST}{}\n", [&properties, more].concat().join("\n"))
}

/// What is missing is named, also where a secret is a part of the name.
#[test]
fn tokens_of_an_endpoint_need_all_that_it_is_asked_by() {
    let with = |more: &str| case(&by_oidc(&[more]));
    // What is missing is said to who is about to run by it, as of all that properties say together.
    let Err(Error::Mistakes { mistakes, .. }) = Config::read_to_run(&with("").sources) else {
        panic!("no mistake found")
    };
    assert_eq!(mistakes.list().len(), 1, "{mistakes}");
    for name in ["sasl.oauthbearer.token.endpoint.url", "sasl.oauthbearer.client.secret"] {
        assert!(mistakes.to_string().contains(name), "{name}: {mistakes}");
    }
    let grant = "\"sasl.oauthbearer.grant.type\" = \"urn:ietf:params:oauth:grant-type:jwt-bearer\"";
    let wrong = with(grant).wrong();
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].contains("client_credentials is"), "{wrong:#?}");
    // Nobody listens on port 1, nor is anybody asked.
    let right = with(
        "\"sasl.oauthbearer.client.secret\" = \"s\"\n\"sasl.oauthbearer.token.endpoint.url\" = \"http://127.0.0.1:1/token\"",
    );
    Config::read_to_run(&right.sources).unwrap();
}

/// A file that does not exist is named, unless its name was fetched.
#[test]
fn an_authority_for_tokens_is_named_where_its_name_stands_in_the_file() {
    let said = |authority: &str| {
        let case = case(&by_oidc(&[
            "\"sasl.oauthbearer.client.secret\" = \"s\"",
            "\"sasl.oauthbearer.token.endpoint.url\" = \"https://127.0.0.1:1/token\"",
            &format!("\"https.ca.location\" = {authority}"),
        ]));
        let case = case.env("AUTHORITY", " /nowhere/own.pem");
        let Err(Error::Mistakes { mistakes, .. }) = Config::read_to_run(&case.sources) else {
            panic!("no mistake found")
        };
        mistakes.to_string()
    };
    let shown = said("\"/nowhere/own.pem\"");
    assert!(shown.contains("https.ca.location: /nowhere/own.pem cannot be read"), "{shown}");
    let masked = said("{ env = \"AUTHORITY\" }");
    assert!(masked.contains("https.ca.location: *** cannot be read"), "{masked}");
}
