//! Stores that are far away, and their options.

use super::*;

const FAR: &str = "[storage]\nblobs = \"s3://shop/production\"\n";

fn far(options: &str) -> Case {
    case(&LEAST.replace("[storage]\n", FAR).replace("[datasets", &format!("{options}[datasets")))
}

#[test]
fn options_come_from_all_layers_and_keys_are_never_shown() {
    let options = "[storage.options]\naws_region = \"eu-west-1\"\naws_access_key_id = \"pa55id\"\n\
                   aws_endpoint_url = \"http://me:pa55@minio:9000\"\naws_secret_access_key = { env = \"KEY\" }\n";
    let config = far(options)
        .env("KEY", "pa55word")
        .env("STILLWELL_STORAGE__OPTIONS__AWS_REGION", "eu-west-2")
        .set("storage.options.aws_allow_http", "true")
        .right();
    let given = &config.model().options.0;
    assert_eq!(given["aws_region"], "eu-west-2");
    assert_eq!(given["aws_secret_access_key"], "pa55word");
    assert_eq!(given["aws_allow_http"], "true");
    assert_eq!(config.store().unwrap().url(), "s3://shop/production");
    let everything = format!("{}{:?}{config:?}", to_toml(&config.shown()), config.shown());
    assert!(!everything.contains("pa55") && everything.contains("eu-west-2"), "{everything}");
    assert!(to_toml(&config.shown()).contains("[storage.options]\n"), "it can be read again");
}

#[test]
fn an_endpoint_in_the_clear_is_a_mistake_unless_it_is_permitted() {
    let endpoint = "[storage.options]\naws_endpoint_url = \"http://minio:9000\"\n";
    // Whatever the environment permits.
    far(&format!("{endpoint}aws_allow_http = \"false\"\n")).says(&[
        "stillwell.toml:5: storage.options.aws_endpoint_url: the endpoint is http://, and what is sent could be read on the \
         way; allow_http = \"true\" permits that",
    ]);
    far(&format!("{endpoint}allow_http = \"true\"\n")).right();
}

#[test]
fn what_no_store_knows_is_a_mistake() {
    far("[storage.options]\naws_regoin = \"x\"\nazure_storage_account_name = \"me\"\n").says(&[
        "stillwell.toml:5: storage.options.aws_regoin: is no option of s3:// stores; did you mean aws_region?",
        "stillwell.toml:6: storage.options.azure_storage_account_name: is no option of s3:// stores",
    ]);
    let near = LEAST.replace("[datasets", "[storage.options]\naws_region = \"x\"\n[datasets");
    case(&near)
        .set("storage.blobs", "memory://")
        .says(&["stillwell.toml:4: storage.options.aws_region: is no option of memory:// stores"]);
    for (url, said) in [
        ("s3://", "names no bucket; write s3://BUCKET/PREFIX"),
        ("az://me:pa55@shop/x", "write az://CONTAINER/PREFIX"),
        ("s3:/shop", "is not a URL"),
        ("s4://shop", "did you mean s3://?"),
        (
            "ftp://me:pa55@shop/y",
            "an unknown scheme; there are file:///DIR, s3://BUCKET, gs://BUCKET, az://CONTAINER",
        ),
    ] {
        let wrong = case(LEAST).set("storage.blobs", url).wrong();
        assert!(wrong.len() == 1 && wrong[0].contains(said) && !wrong[0].contains("pa55"), "{wrong:?}");
    }
}
