//! A broker that demands credentials and rights: every way in, the rights that docs/operations.md names and no others, each of
//! them taken away once, and what is said then.

mod tokens;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use stillwell::clock::Clock;
use stillwell_tests::{
    Finished, Record, Resource, Right, Running, Secure, Topic, User, run, stillwell, wait_until, workspace,
};

use crate::instance::Instance;
use crate::line::SCHEMA;
use crate::setting::Setting;

/// Longest that anything may take: many processes start at once here.
pub const LONG: Duration = Duration::from_secs(120);

/// The rights that docs/operations.md names for `who`, on dataset and source `name`.
pub fn documented(who: &str, name: &str) -> Vec<Right> {
    let text = std::fs::read_to_string(workspace().join("docs/operations.md")).expect("it is there");
    let (_, section) = text.split_once("## Rights in Kafka").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("another one");
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (cells.len() == 6 && cells[1] == who).then_some(cells)
    });
    let right = |cells: Vec<&str>| {
        let [kind, template, after] = cells[2].split('`').collect::<Vec<_>>()[..] else {
            panic!("{cells:?} is no right")
        };
        Right {
            resource: match kind.trim() {
                "topic" => Resource::Topic,
                "group" => Resource::Group,
                "transactional ids" => Resource::Transaction,
                other => panic!("what is {other}?"),
            },
            name: template.replace("NAME", name).replace("SOURCE", name).replace("BLOBS", &blobs(name)),
            prefixed: after.trim() == "(prefixed)",
            operation: cells[3].to_owned(),
        }
    };
    let rights: Vec<Right> = rows.map(right).collect();
    assert!(!rights.is_empty(), "docs/operations.md names no right of {who}");
    rights
}

/// The topic with the blobs of `name`, where they are in Kafka.
pub fn blobs(name: &str) -> String {
    format!("{name}.blobs")
}

/// A dataset on the secured broker, its topics made as its documentation says.
pub struct Scene {
    pub setting: Setting,
    pub secure: &'static Secure,
    pub letters: Topic,
}

impl Scene {
    pub fn new(name: &str) -> Scene {
        let scene = Scene::bare(name);
        let own = |suffix: &str, config: &[(&str, &str)]| {
            Topic::create_on(scene.secure.broker(), &format!("{}.{suffix}", scene.name()), 1, config);
        };
        let kept = [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
        own("announcements", &kept);
        own("control", &[("cleanup.policy", "compact")]);
        own("dlq", &[("retention.ms", "-1")]);
        scene
    }

    /// The same, of whose topics only the source is there.
    pub fn bare(name: &str) -> Scene {
        let secure = Secure::shared();
        let mut setting = Setting::on(secure.broker(), name, 1, SCHEMA);
        setting.bootstrap = secure.sasl();
        let letters = Topic::named_on(secure.broker(), &format!("{}.dlq", setting.dataset()));
        Scene { setting, secure, letters }
    }

    pub fn name(&self) -> &str {
        self.setting.dataset()
    }

    /// A value that fits, and a record that does not.
    pub fn produce(&mut self) {
        let good = self.setting.upsert("good", json!({ "id": "good", "price": 1.5, "stock": null }));
        self.setting.topic.produce([good, Record::upsert("bad", r#"{"id": "bad", "price": "2.5"}"#)]);
    }

    /// Somebody with exactly these rights.
    pub fn user(&self, rights: &[Right]) -> User {
        let user = self.secure.user();
        self.secure.give(&user, rights);
        user
    }

    /// Somebody's instance, by SCRAM-SHA-512; its password lies in a file.
    pub fn instance(&self, name: &str, user: &User) -> Instance {
        let instance = self.making(name, user);
        instance.append("[kafka]\ncreate_topics = false");
        instance
    }

    /// The same, which makes topics that are missing.
    pub fn making(&self, name: &str, user: &User) -> Instance {
        let instance = Instance::new(&self.setting, name);
        let secret = self.setting.dir.path().join(format!("{name}.secret"));
        std::fs::write(&secret, &user.password).expect("it can be written");
        instance.append(&sasl(self.secure, "SCRAM-SHA-512", user, &format!("{{ file = {secret:?} }}")));
        instance
    }
}

/// `[kafka.properties]` for who has a password.
fn sasl(secure: &Secure, mechanism: &str, user: &User, password: &str) -> String {
    properties(&[
        ("security.protocol", "\"SASL_SSL\""),
        ("ssl.ca.location", &format!("{:?}", secure.authority().pem())),
        ("sasl.mechanism", &format!("{mechanism:?}")),
        ("sasl.username", &format!("{:?}", user.name)),
        ("sasl.password", password),
    ])
}

fn properties(pairs: &[(&str, &str)]) -> String {
    pairs
        .iter()
        .fold("[kafka.properties]".to_owned(), |text, (key, value)| text + &format!("\n{key:?} = {value}"))
}

fn is_ready(instance: &Instance) -> Result<(), String> {
    match instance.get("/ready") {
        Ok((200, _)) => Ok(()),
        Ok((_, body)) => Err(body),
        Err(error) => Err(error.to_string()),
    }
}

pub fn check(instance: &Instance, role: &str) -> Finished {
    let mut command = stillwell(["check", "--connect", "--role", role, "-c"]);
    run(command.arg(instance.config()), LONG)
}

/// What a record reads over HTTP, once it does.
pub fn until_read(instance: &Instance, dataset: &str, key: &str, expected: &str) {
    wait_until(&format!("{key} is readable"), LONG, || {
        match instance.get(&format!("/v1/datasets/{dataset}/records/{key}")) {
            Ok((200, body)) if body.contains(expected) => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(error) => Err(error.to_string()),
        }
    });
}

pub fn of(roles: &[&str], name: &str) -> Vec<Right> {
    let all: BTreeSet<Right> = roles.iter().flat_map(|who| documented(who, name)).collect();
    all.into_iter().collect()
}

/// Few snapshots for a short time, so that there is something to clean.
const CLEANING: &str = "[storage]\nkeep_snapshots = 1\nclean_grace = \"100ms\"";
pub const SNAPSHOTS: &str = "[producer.performance]\nsnapshot_frequency = 1\nsnapshot_min_change = \"0%\"";

/// Everything that is done, by three users of whom each has what docs/operations.md names for him and nothing else.
#[test]
fn all_is_done_with_the_rights_that_are_named() {
    let mut scene = Scene::new("rights");
    let name = scene.name().to_owned();
    let writer = scene.instance("writer", &scene.user(&of(&["writer"], &name)));
    writer.append(CLEANING);
    writer.append(SNAPSHOTS);
    let reader = scene.instance("reader", &scene.user(&of(&["reader"], &name)));
    let all = of(&["reader", "steers", "puts", "lists", "replays"], &name);
    let operator = scene.instance("operator", &scene.user(&all));
    for (instance, role) in [(&writer, "producer"), (&reader, "consumer")] {
        let checked = check(instance, role);
        let said = format!("rights on {name}: right");
        assert!(checked.stdout.contains(&said), "{role}: {}{}", checked.stdout, checked.stderr);
        checked.expect_code(0);
    }
    scene.produce();
    let mut writing = Running::start(&mut writer.command_to_run(&["--role", "producer"]));
    let mut reading = Running::start(&mut reader.command_to_run(&["--role", "consumer"]));
    wait_until("the reader is ready", LONG, || {
        assert!(
            writing.ended().is_none() && reading.ended().is_none(),
            "{}{}",
            writing.stderr(),
            reading.stderr()
        );
        is_ready(&reader)
    });
    until_read(&reader, &name, "good", "1.5");
    scene.letters.read_until("what does not fit is a letter", LONG, |read| match read.len() {
        1 => Ok(()),
        other => Err(format!("{other} letters")),
    });

    // Read, list, mend, replay, write.
    assert!(operator.run(&["get"], &["good"]).expect_code(0).stdout.contains("1.5"));
    operator.run(&["dlq", "list"], &[]).expect_code(0);
    let mended = operator.run(&["dlq", "replay"], &["--fix", "sed 's/\"2.5\"/2.5/'"]).expect_code(0);
    assert!(mended.stdout.contains("1 replayed"), "{}", mended.stdout);
    until_read(&reader, &name, "bad", "2.5");
    let file = scene.setting.dir.path().join("more.jsonl");
    let line = json!({ "key": "more", "value": { "id": "more", "price": 3.5, "stock": null } });
    std::fs::write(&file, format!("{line}\n")).expect("it can be written");
    operator.run(&["import"], &[&file.to_string_lossy()]).expect_code(0);
    until_read(&reader, &name, "more", "3.5");

    // Pin, unpin, snapshot, rebuild.
    let newest = wait_until("a version is pinned before it is cleaned", LONG, || {
        let newest = operator.versions().last().and_then(|last| last["version"].as_u64()).expect("a version");
        let pinned = operator.run(&["pin"], &[&newest.to_string(), "--reason", "a test"]);
        if pinned.code() == 0 { Ok(newest) } else { Err(pinned.stderr) }
    });
    wait_until("the reader obeys", LONG, || match reader.metric("stillwell_pinned_version") {
        Some(pinned) if pinned == newest as f64 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    operator.run(&["unpin"], &[]).expect_code(0);
    operator.run(&["snapshot"], &[]).expect_code(0);
    let rebuilt = operator.run(&["rebuild"], &["--yes"]).expect_code(0);
    assert!(rebuilt.stdout.contains("is rebuilt") || rebuilt.stderr.contains("is rebuilt"), "{rebuilt:?}");

    // Clean: what nothing keeps any more goes, from the store and from the topic.
    let announcements = scene.setting.topic.beside(&format!("{name}.announcements"));
    let mut round = 0;
    wait_until("the announcements are trimmed", LONG, || {
        round += 1;
        let key = format!("round-{round}");
        let record = Record::upsert(&key, json!({ "id": key, "price": 1.0, "stock": round }).to_string());
        scene.setting.topic.produce([record]);
        match announcements.watermarks()[0].0 {
            0 => Err("it begins at 0".to_owned()),
            low => Ok(low),
        }
    });
    for (process, who) in [(writing, "writer"), (reading, "reader")] {
        let ended = process.stop(LONG).expect_code(0);
        assert!(
            !ended.stderr.contains("uthorization") && !ended.stderr.contains("lacks"),
            "{who}: {}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("a-secret-of"), "{who}: {}", ended.stderr);
    }
}

/// What a process says that lacks one right of its role; the words that this is known by.
pub fn expected(right: &Right) -> &'static str {
    match (right.resource, right.operation.as_str()) {
        (Resource::Topic, "DescribeConfigs") => "DescribeConfigs",
        // Of the cluster, where nothing may be written at all.
        (Resource::Topic, _) => "uthorization failed",
        (Resource::Group, _) => "roup authorization failed",
        (Resource::Transaction, _) => "ransactional Id authorization failed",
    }
}

/// Each right that is named is needed: without it `check --connect` names it, and what needs it says what Kafka does not
/// allow, goes on trying, and does not say it all the time.
#[test]
fn each_right_that_is_named_is_missed_where_it_is_missing() {
    let (mut lacking, clock) = (Vec::new(), Clock::system());
    let began = clock.now();
    for (who, role) in [("writer", "producer"), ("reader", "consumer")] {
        for right in documented(who, "N") {
            let mut scene = Scene::new("lacking");
            let name = scene.name().to_owned();
            let missing = Right { name: right.name.replace('N', &name), ..right };
            let mut left = documented(who, &name);
            left.retain(|right| *right != missing);
            let instance = scene.instance(who, &scene.user(&left));
            instance.append(CLEANING);
            instance.append(SNAPSHOTS);
            let process = Running::start(&mut instance.command_to_run(&["--role", role]));
            scene.produce();
            lacking.push((scene, missing, role, instance, process));
        }
    }
    for (scene, missing, role, instance, process) in &mut lacking {
        let checked = check(instance, role).expect_code(78);
        let named = format!("the right to {} on ", missing.operation);
        let on = missing.name.trim_end_matches('/');
        assert!(
            checked.stderr.contains(&named) && checked.stderr.contains(on),
            "{missing:?}: {}",
            checked.stderr
        );
        // What is only done now and then has to be brought about.
        let [control, letters] = ["control", "dlq"].map(|topic| format!("{}.{topic}", scene.name()));
        let of_rebuilds = [(&control, "Write"), (&letters, "Read")];
        if of_rebuilds.contains(&(&missing.name, missing.operation.as_str())) {
            let all = of(&["reader", "steers", "puts"], scene.name());
            let operator = scene.instance("operator", &scene.user(&all));
            let asked = operator.run(&["rebuild"], &["--yes", "--wait", "1s"]);
            assert!(asked.stderr.contains("The request stays"), "{asked:?}");
        }
        let mut round = 0;
        wait_until(&format!("{missing:?} is missed"), LONG, || {
            if let Some(status) = process.ended() {
                panic!("without {missing:?} it ended ({status}):\n{}", process.stderr());
            }
            let said = process.stderr();
            let lines = said.lines().filter(|line| !line.contains("lacks the right"));
            if lines.filter(|line| line.contains(on)).any(|line| line.contains(expected(missing))) {
                return Ok(());
            }
            // Versions to clean, and letters.
            round += 1;
            let key = format!("round-{round}");
            let record = Record::upsert(&key, json!({ "id": key, "price": 1.0, "stock": round }).to_string());
            scene.setting.topic.produce([record]);
            Err(said)
        });
        let loud = process.stderr().lines().filter(|line| line.contains("uthorization")).count();
        // All run from the beginning, and the last is looked at after all others: one in ten seconds, and what a start says.
        let most = 100 + ((clock.now() - began).as_secs() / 10) as usize;
        assert!(loud < most, "{missing:?}: {loud} lines, not {most}\n{}", process.stderr());
    }
}

/// Blobs in a topic take the rights that are named besides, and each of them is missed.
#[test]
fn blobs_in_a_topic_take_the_rights_that_are_named() {
    let in_kafka = || {
        let mut scene = Scene::new("in-kafka");
        let topic = blobs(scene.name());
        Topic::create_on(scene.secure.broker(), &topic, 2, &[("cleanup.policy", "compact")]);
        scene.setting.store = Some(format!("kafka://{topic}"));
        scene
    };
    let without = |scene: &Scene, roles: &[&str], missing: Option<&Right>| {
        let mut rights = of(roles, scene.name());
        rights.retain(|right| Some(right) != missing);
        // Of its own name, and so with a cache of its own.
        let name = missing.map_or("all".to_owned(), |missing| format!("without-{}", missing.operation));
        let instance = scene.instance(&format!("{}-{name}", roles[0]), &scene.user(&rights));
        instance.append(SNAPSHOTS);
        instance
    };
    let says = |instance: &Instance, process: &mut Running, role: &str, missing: &Right| {
        let checked = check(instance, role).expect_code(78);
        let named = format!("the right to {} on topic {}", missing.operation, missing.name);
        assert!(checked.stderr.contains(&named), "{missing:?}: {}", checked.stderr);
        wait_until(&format!("{missing:?} is missed"), LONG, || {
            assert!(process.ended().is_none(), "without {missing:?} it ended: {}", process.stderr());
            let said = process.stderr();
            let missed = |line: &str| line.contains(&missing.name) && line.contains(expected(missing));
            if said.lines().any(missed) { Ok(()) } else { Err(said) }
        });
    };

    let mut scene = in_kafka();
    let name = scene.name().to_owned();
    let writer = without(&scene, &["writer", "stores"], None);
    check(&writer, "producer").expect_code(0);
    scene.produce();
    let writing = Running::start(&mut writer.command_to_run(&["--role", "producer"]));
    let looking = without(&scene, &["reader", "fetches"], None);
    // From then on nobody can begin without the store.
    wait_until("there is a snapshot", LONG, || match looking.run(&["versions", "list"], &[]) {
        listed if listed.code() == 0 && looking.versions().iter().any(|line| !line["snapshot"].is_null()) => {
            Ok(())
        }
        listed => Err(format!("{}{}", listed.stdout, listed.stderr)),
    });
    check(&looking, "consumer").expect_code(0);
    let reading = Running::start(&mut looking.command_to_run(&["--role", "consumer"]));
    until_read(&looking, &name, "good", "1.5");
    for missing in documented("fetches", &name) {
        let instance = without(&scene, &["reader", "fetches"], Some(&missing));
        let mut process = Running::start(&mut instance.command_to_run(&["--role", "consumer"]));
        says(&instance, &mut process, "consumer", &missing);
    }
    for (process, who) in [(writing, "writer"), (reading, "reader")] {
        let ended = process.stop(LONG).expect_code(0);
        assert!(!ended.stderr.contains("uthorization"), "{who}: {}", ended.stderr);
    }

    for right in documented("stores", "N") {
        let mut scene = in_kafka();
        let missing = Right { name: blobs(scene.name()), ..right };
        let writer = without(&scene, &["writer", "stores"], Some(&missing));
        scene.produce();
        let mut process = Running::start(&mut writer.command_to_run(&["--role", "producer"]));
        says(&writer, &mut process, "producer", &missing);
    }
}

/// The same for what operators do by commands.
#[test]
fn an_operator_is_told_which_right_is_missing() {
    let mut scene = Scene::new("operated");
    let name = scene.name().to_owned();
    let writer = scene.instance("writer", &scene.user(&of(&["writer"], &name)));
    scene.produce();
    let process = Running::start(&mut writer.command_to_run(&["--role", "producer"]));
    scene.letters.read_until("there is a letter", LONG, |read| match read.len() {
        1 => Ok(()),
        other => Err(format!("{other} letters; {}", process.stderr())),
    });
    let file = scene.setting.dir.path().join("more.jsonl").to_string_lossy().into_owned();
    let line = json!({ "key": "more", "value": { "id": "more", "price": 3.5, "stock": null } });
    std::fs::write(&file, format!("{line}\n")).expect("it can be written");
    let acts: [(&str, &[&str], &[&str]); 4] = [
        ("steers", &["unpin"], &[]),
        ("puts", &["import"], &[&*file]),
        ("lists", &["dlq", "list"], &[]),
        ("replays", &["dlq", "replay"], &["--fix", "sed 's/\"2.5\"/2.5/'"]),
    ];
    for (who, command, arguments) in acts {
        for missing in documented(who, &name) {
            let mut left = of(&["reader", who], &name);
            left.retain(|right| *right != missing);
            let instance = scene.instance(&format!("{who}-{}", missing.operation), &scene.user(&left));
            // Of what steers only a rebuild looks at the source.
            let done = match who == "steers" && missing.name == name {
                true => instance.run(&["rebuild"], &["--dry-run"]),
                false => instance.run(command, arguments),
            };
            let listing = who == "lists" && missing.resource == Resource::Group;
            assert_eq!(done.code() == 0, listing, "{missing:?}: {done:?}");
            let said = done
                .stderr
                .lines()
                .any(|line| line.contains(&missing.name) && line.contains(expected(&missing)));
            assert!(said, "{missing:?}: {}", done.stderr);
        }
        // And with all of them it is done.
        let instance = scene.instance(&format!("{who}-all"), &scene.user(&of(&["reader", who], &name)));
        let done = instance.run(command, arguments);
        assert!(done.code() == 0, "{who}: {done:?}");
    }
    process.stop(LONG).expect_code(0);
}

/// By a password out of the environment, by a token, by a certificate: into the same dataset, each seeing what another wrote.
#[test]
fn by_password_token_and_certificate_all_get_in_and_no_secret_is_shown() {
    let mut scene = Scene::new("ways");
    let (secure, name) = (scene.secure, scene.name().to_owned());
    let ca = format!("{:?}", secure.authority().pem());
    let by_token = |who: &str| {
        properties(&[
            ("security.protocol", "\"SASL_SSL\""),
            ("ssl.ca.location", &ca),
            ("sasl.mechanism", "\"OAUTHBEARER\""),
            ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
            ("sasl.oauthbearer.config", &format!("\"principal={who}\"")),
        ])
    };
    let (writing, reading, asking) = (secure.nameless(), secure.nameless(), secure.user());
    secure.give(&writing, &of(&["writer"], &name));
    secure.give(&reading, &of(&["reader"], &name));
    secure.give(&asking, &of(&["reader"], &name));

    let token = Instance::new(&scene.setting, "token");
    token.append(&by_token(&writing.name));
    let password = Instance::new(&scene.setting, "password");
    password.append(&sasl(secure, "PLAIN", &asking, "{ env = \"KAFKA_PASSWORD\" }"));
    scene.setting.bootstrap = secure.mutual();
    let certificate = Instance::new(&scene.setting, "certificate");
    let own = secure.authority().client(&reading.name);
    certificate.append(&properties(&[
        ("security.protocol", "\"SSL\""),
        ("ssl.ca.location", &ca),
        ("ssl.certificate.location", &format!("{:?}", own.pem)),
        ("ssl.key.location", &format!("{:?}", own.key)),
    ]));
    for instance in [&token, &certificate, &password] {
        instance.append("[kafka]\ncreate_topics = false");
    }

    scene.produce();
    let writer = Running::start(&mut token.command_to_run(&["--role", "producer"]));
    let reader = Running::start(&mut certificate.command_to_run(&["--role", "consumer"]));
    until_read(&certificate, &name, "good", "1.5");
    let with_password = |arguments: &[&str]| {
        let mut command = stillwell(arguments);
        run(command.arg("-c").arg(password.config()).env("KAFKA_PASSWORD", &asking.password), LONG)
    };
    assert!(with_password(&["get", &name, "good"]).expect_code(0).stdout.contains("1.5"));
    let shown = with_password(&["config", "show"]).expect_code(0);
    assert!(shown.stdout.contains("***") && !shown.stdout.contains(&asking.password), "{}", shown.stdout);
    let checked = with_password(&["check", "--connect", "--role", "consumer"]).expect_code(0);
    assert!(!(checked.stdout + &checked.stderr).contains(&asking.password));
    for process in [writer, reader] {
        process.stop(LONG).expect_code(0);
    }
}

/// Who is not let in says why and what to look at, in the answer of a command, in the log, and in `/health`; does not die of
/// it, and does not say it all the time.
#[test]
fn who_is_not_let_in_says_why_and_goes_on_trying() {
    let mut scene = Scene::new("kept-out");
    let secure = scene.secure;
    let user = scene.user(&of(&["reader", "writer"], scene.name()));
    let wrong = User { password: "not-the-password".to_owned(), ..user.clone() };
    let trusting = |ca: &std::path::Path, instance: &Instance| {
        let text = std::fs::read_to_string(instance.config()).expect("it is there");
        let text = text.replace(&format!("{:?}", secure.authority().pem()), &format!("{ca:?}"));
        std::fs::write(instance.config(), text).expect("it can be written");
    };
    let cases = [
        ("password", &wrong, None, "SASL authentication error", "sasl.*"),
        ("unknown", &user, Some(secure.stranger().pem()), "certificate verify failed", "ssl.ca.location"),
        ("ended", &user, Some(secure.authority().ended()), "certificate verify failed", "none has expired"),
    ];
    let (mut processes, clock) = (Vec::new(), Clock::system());
    let began = clock.now();
    for (what, user, ca, why, advice) in cases {
        let instance = scene.instance(what, user);
        if let Some(ca) = ca {
            trusting(&ca, &instance);
        }
        let process = instance.start();
        processes.push((what, instance, process, user, why, advice));
    }
    for (what, instance, process, user, why, advice) in &mut processes {
        let checked = check(instance, "both").expect_code(69);
        assert!(
            checked.stderr.contains(*why) && checked.stderr.contains(*advice),
            "{what}: {}",
            checked.stderr
        );
        wait_until(&format!("{what}: /health says why"), LONG, || match instance.get("/health") {
            Ok((_, body)) if body.contains(*why) && body.contains(*advice) => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}\n{}", process.stderr())),
            Err(error) => Err(error.to_string()),
        });
        assert!(process.ended().is_none(), "{what}: {}", process.stderr());
        let said = process.stderr();
        assert!(said.contains(*why) && said.contains(*advice), "{what}: {said}");
        assert!(!said.contains(&user.password), "{what}: {said}");
        let lines = said.lines().filter(|line| line.contains(" WARN ") || line.contains("ERROR")).count();
        // For as long as it has run, which on a busy machine is minutes: one in ten seconds, and what a start says.
        let most = 60 + ((clock.now() - began).as_secs() / 10) as usize;
        assert!(lines < most, "{what}: {lines} lines, not {most}\n{said}");
    }
    drop(processes);

    // Somebody without any right, until he has them: nothing is started again.
    let user = secure.user();
    let instance = scene.instance("late", &user);
    let mut process = instance.start();
    process.wait_for_text("opic authorization failed", LONG);
    secure.give(&user, &of(&["reader", "writer"], scene.name()));
    scene.produce();
    until_read(&instance, scene.name(), "good", "1.5");
    process.stop(LONG).expect_code(0);
}
