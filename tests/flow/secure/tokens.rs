//! By tokens of OIDC: fetched anew before they end, and what is said where there is none.

use stillwell::clock::Clock;
use stillwell_tests::{Running, Secure, User, stillwell, wait_until};

use super::{LONG, Scene, check, is_ready, of, properties, until_read};
use crate::instance::Instance;

/// `[kafka.properties]` for who gets a token by this secret from this endpoint.
fn oidc(secure: &Secure, user: &User, secret: &str, endpoint: &str) -> String {
    let ca = format!("{:?}", secure.authority().pem());
    properties(&[
        ("security.protocol", "\"SASL_SSL\""),
        ("ssl.ca.location", &ca),
        ("https.ca.location", &ca),
        ("sasl.mechanism", "\"OAUTHBEARER\""),
        ("sasl.oauthbearer.method", "\"oidc\""),
        ("sasl.oauthbearer.token.endpoint.url", &format!("{endpoint:?}")),
        ("sasl.oauthbearer.client.id", &format!("{:?}", user.name)),
        ("sasl.oauthbearer.client.secret", secret),
        ("sasl.oauthbearer.scope", "\"stillwell\""),
    ])
}

/// An instance of somebody's, whose secret is given in the file or fetched by it.
fn instance(scene: &Scene, name: &str, user: &User, secret: &str) -> Instance {
    instance_at(scene, name, user, secret, &scene.secure.tokens().url())
}

/// The same, which asks there for its tokens.
fn instance_at(scene: &Scene, name: &str, user: &User, secret: &str, endpoint: &str) -> Instance {
    let instance = Instance::new(&scene.setting, name);
    instance.append(&oidc(scene.secure, user, secret, endpoint));
    instance.append("[kafka]\ncreate_topics = false");
    instance
}

fn scene(name: &str) -> Scene {
    let mut scene = Scene::new(name);
    scene.setting.bootstrap = scene.secure.oidc();
    scene
}

/// Writer and reader work by tokens that last some seconds, while the broker ends each connection with the token that it was
/// made by.
#[test]
fn tokens_are_fetched_again_before_they_end() {
    let mut scene = scene("tokens");
    let (secure, name) = (scene.secure, scene.name().to_owned());
    let [writing, reading] = ["writer", "reader"].map(|role| {
        let user = secure.client();
        secure.give(&user, &of(&[role], &name));
        secure.tokens().admit(&user.name, &user.password);
        user
    });
    let file = scene.setting.dir.path().join("client.secret");
    std::fs::write(&file, &writing.password).expect("it can be written");
    let writer = instance(&scene, "writer", &writing, &format!("{{ file = {file:?} }}"));
    let reader = instance(&scene, "reader", &reading, "{ env = \"CLIENT_SECRET\" }");
    let with_secret = |command: &mut std::process::Command| {
        Running::start(command.env("CLIENT_SECRET", &reading.password)).wait(LONG)
    };

    scene.produce();
    let mut writer_runs = Running::start(&mut writer.command_to_run(&["--role", "producer"]));
    let mut reader_runs = Running::start(
        reader.command_to_run(&["--role", "consumer"]).env("CLIENT_SECRET", &reading.password),
    );
    wait_until("the reader is ready", LONG, || {
        let ended = writer_runs.ended().is_some() || reader_runs.ended().is_some();
        assert!(!ended, "{}{}", writer_runs.stderr(), reader_runs.stderr());
        is_ready(&reader)
    });
    until_read(&reader, &name, "good", "1.5");
    let (clock, all) = (Clock::system(), [&writing, &reading]);
    for round in ["first", "second"] {
        let given = all.map(|user| secure.tokens().given(&user.name));
        let last = given.iter().flatten().copied().max().expect("both have come in by a token");
        wait_until(&format!("the {round} tokens have ended"), LONG, || match last - clock.wall_ms() {
            ..0 => Ok(()),
            left => Err(format!("{left} ms left")),
        });
        let record =
            scene.setting.upsert(round, serde_json::json!({ "id": round, "price": 7.25, "stock": null }));
        scene.setting.topic.produce([record]);
        until_read(&reader, &name, round, "7.25");
        for (user, before) in all.iter().zip(&given) {
            let now = secure.tokens().given(&user.name);
            assert!(
                now.len() > before.len() && now.iter().max() > Some(&last),
                "{round}: {before:?} {now:?}"
            );
        }
    }
    let ended = writer_runs.ended().is_some() || reader_runs.ended().is_some();
    assert!(!ended, "{}{}", writer_runs.stderr(), reader_runs.stderr());
    wait_until("it is ready still", LONG, || is_ready(&reader));

    // Commands, each with a token of its own.
    let got = with_secret(&mut reader.command(&["get"], &["good"])).expect_code(0);
    assert!(got.stdout.contains("1.5"), "{}", got.stdout);
    let named = |arguments: &[&str]| {
        let mut command = stillwell(arguments);
        with_secret(command.arg("-c").arg(reader.config()))
    };
    let checked = named(&["check", "--connect", "--role", "consumer"]).expect_code(0);
    let shown = named(&["config", "show"]).expect_code(0);
    assert!(shown.stdout.contains("***"), "{}", shown.stdout);
    let [writer_ended, reader_ended] =
        [writer_runs, reader_runs].map(|process| process.stop(LONG).expect_code(0));
    for said in [got, checked, shown, writer_ended, reader_ended] {
        let said = said.stdout + &said.stderr;
        for secret in [writing.password.as_str(), reading.password.as_str(), "eyJ"] {
            // All tokens begin so: with a brace and a quotation mark, in base64.
            assert!(!said.contains(secret), "{secret}: {said}");
        }
    }
}

/// Who gets no token says why and what to look at, goes on trying, and works as soon as it gets one.
#[test]
fn who_gets_no_token_says_why_and_goes_on_trying() {
    let mut scene = scene("tokenless");
    let secure = scene.secure;
    let [known, late] = [(); 2].map(|()| {
        let user = secure.client();
        secure.give(&user, &of(&["reader", "writer"], scene.name()));
        user
    });
    secure.tokens().admit(&known.name, &known.password);
    let quoted = |secret: &str| format!("{secret:?}");
    let changed = |instance: &Instance, from: &str, to: &str| {
        let text = std::fs::read_to_string(instance.config()).expect("it is there");
        assert!(text.contains(from), "{text}");
        std::fs::write(instance.config(), text.replace(from, to)).expect("it can be written");
    };
    // Nobody listens on port 1.
    let nobody = "https://127.0.0.1:1/oauth2/token".to_owned();
    let ca = |authority: &std::path::Path| format!("\"https.ca.location\" = {authority:?}");
    let [trusted, stranger] = [secure.authority(), secure.stranger()].map(|authority| ca(&authority.pem()));
    let cases = [
        ("secret", "not-its-secret", None, "invalid_client"),
        ("endpoint", known.password.as_str(), Some((secure.tokens().url(), nobody)), "Connection refused"),
        ("authority", known.password.as_str(), Some((trusted, stranger)), "certificate"),
    ];
    let mut waiting = Vec::new();
    for (what, secret, change, why) in cases {
        let instance = instance(&scene, what, &known, &quoted(secret));
        if let Some((from, to)) = change {
            changed(&instance, &from, &to);
        }
        let process = instance.start();
        waiting.push((what, instance, process, secret, why));
    }
    let later = instance(&scene, "late", &late, &quoted(&late.password));
    let mut process = later.start();
    process.wait_for_text("invalid_client", LONG);

    let clock = Clock::system();
    let began = clock.now();
    for (what, instance, process, secret, why) in &mut waiting {
        let advice = "client.secret";
        let checked = check(instance, "both").expect_code(69);
        let asked = "sasl.oauthbearer.token.endpoint.url";
        let told = |said: &str| said.contains(*why) && said.contains(advice) && said.contains(asked);
        assert!(told(&checked.stderr), "{what}: {}", checked.stderr);
        wait_until(&format!("{what}: /health says why"), LONG, || match instance.get("/health") {
            Ok((_, body)) if told(&body) => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}\n{}", process.stderr())),
            Err(error) => Err(error.to_string()),
        });
        assert!(process.ended().is_none(), "{what}: {}", process.stderr());
        let said = process.stderr();
        assert!(told(&said), "{what}: {said}");
        for said in [&said, &checked.stdout, &checked.stderr] {
            assert!(!said.contains(*secret), "{what}: {said}");
        }
        let lines = said.lines().filter(|line| line.contains(" WARN ") || line.contains("ERROR")).count();
        // For as long as it has run, which on a busy machine is minutes: one in ten seconds, and what a start says.
        let most = 60 + ((clock.now() - began).as_secs() / 10) as usize;
        assert!(lines < most, "{what}: {lines} lines, not {most}\n{said}");
    }
    drop(waiting);

    // Its endpoint comes to know it: nothing is started again.
    secure.tokens().admit(&late.name, &late.password);
    scene.produce();
    until_read(&later, scene.name(), "good", "1.5");
    let ended = process.stop(LONG).expect_code(0);
    assert!(!ended.stderr.contains(&late.password), "{}", ended.stderr);
}

/// While the endpoint is away a process goes on, also past the end of its token; once it is back, so is all.
#[test]
fn who_has_a_token_outlives_an_endpoint_that_is_away() {
    let mut scene = scene("outlived");
    let (secure, name) = (scene.secure, scene.name().to_owned());
    let user = secure.client();
    secure.give(&user, &of(&["reader", "writer"], &name));
    secure.tokens().admit(&user.name, &user.password);
    let door = secure.tokens().door();
    // Away at the start as well.
    door.shut(true);
    let instance = instance_at(&scene, "outlived", &user, &format!("{:?}", user.password), &door.url());
    let mut process = instance.start();
    let says_why = |process: &Running| {
        wait_until("/health says why", LONG, || match instance.get("/health") {
            Ok((_, body)) if body.contains("sasl.oauthbearer.token.endpoint.url") => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}\n{}", process.stderr())),
            Err(error) => Err(error.to_string()),
        });
    };
    says_why(&process);
    door.shut(false);
    scene.produce();
    until_read(&instance, &name, "good", "1.5");

    let before = door.turned_away();
    door.shut(true);
    wait_until("it has asked for another token", LONG, || match door.turned_away() {
        now if now > before => Ok(()),
        now => Err(format!("{now} were sent away, {before} of them before")),
    });
    assert!(process.ended().is_none(), "{}", process.stderr());
    let last = secure.tokens().given(&user.name).into_iter().max().expect("it has come in by a token");
    let clock = Clock::system();
    wait_until("its token has ended", LONG, || match last - clock.wall_ms() {
        ..0 => Ok(()),
        left => Err(format!("{left} ms left")),
    });
    says_why(&process);
    assert!(process.ended().is_none(), "{}", process.stderr());

    door.shut(false);
    let record =
        scene.setting.upsert("later", serde_json::json!({ "id": "later", "price": 7.25, "stock": null }));
    scene.setting.topic.produce([record]);
    until_read(&instance, &name, "later", "7.25");
    let ended = process.stop(LONG).expect_code(0);
    assert!(!ended.stderr.contains(&user.password), "{}", ended.stderr);
    // That brokers refused the token that had ended was no refusal of who showed it, which would have ended a life. A life may end
    // since the group has gone on without it.
    let refused = ["the life has ended", "sasl.*"];
    let refused = ended.stderr.lines().find(|line| refused.iter().all(|said| line.contains(said)));
    assert_eq!(refused, None, "{}", ended.stderr);
}
