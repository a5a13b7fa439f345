//! Rights in Kafka that only some need (`secure` has the others): who refuses versions, who hears of changes, who makes topics.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::json;
use stillwell_tests::{Message, Record, Request, Right, Running, wait_until};

use crate::instance::Instance;
use crate::secure::{LONG, Scene, blobs, check, documented, expected, of, until_read};

/// Takes webhooks, and no change that they bring.
fn refusing() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in socket.incoming() {
            std::thread::spawn(move || refuse(stream.expect("a connection")));
        }
    });
    address
}

fn refuse(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while Request::read(&mut reader)?.is_some() {
        reader.get_mut().write_all(b"HTTP/1.1 422 X\r\ncontent-length: 0\r\n\r\n")?;
    }
    Ok(())
}

/// Waits until a process says what Kafka does not allow it; it goes on.
fn says(process: &mut Running, missing: &Right) {
    wait_until(&format!("{missing:?} is missed"), LONG, || {
        if let Some(status) = process.ended() {
            panic!("without {missing:?} it ended ({status}):\n{}", process.stderr());
        }
        let said = process.stderr();
        let missed = |line: &str| line.contains(&missing.name) && line.contains(expected(missing));
        if said.lines().any(missed) { Ok(()) } else { Err(said) }
    });
}

/// A reader with a guard or a webhook needs one right more. Without it `check --connect` names it, what needs it says so, and
/// the rest goes on; it is done once somebody gives the right, by the same process.
#[test]
fn who_guards_or_hears_needs_a_right_more() {
    let mut scene = Scene::new("besides");
    let name = scene.name().to_owned();
    let writer = scene.instance("writer", &scene.user(&of(&["writer"], &name)));
    let writing = Running::start(&mut writer.command_to_run(&["--role", "producer"]));
    let control = scene.setting.topic.beside(&format!("{name}.control"));
    let address = refusing();
    let webhook = format!(
        "url = \"http://{address}/\"\nmax_retry_attempts = 0\nretry_backoff = \"100ms\"\nmax_backoff = \"100ms\"\ncircuit_breaker_reset = \"100ms\""
    );
    for (who, section, keys) in
        [("guards", "guard", "max_records = 0".to_owned()), ("hears", "webhook", webhook)]
    {
        let missing = documented(who, &name);
        let [missing] = missing.as_slice() else { panic!("{missing:?}") };
        let user = scene.user(&of(&["reader"], &name));
        let instance = scene.instance(who, &user);
        instance.append(&format!("[datasets.{name:?}.consumer.{section}]\n{keys}"));
        let mut process = Running::start(&mut instance.command_to_run(&["--role", "consumer"]));
        let checked = check(&instance, "consumer").expect_code(78);
        let named = format!("the right to {} on topic {}", missing.operation, missing.name);
        assert!(checked.stderr.contains(&named), "{missing:?}: {}", checked.stderr);
        scene.produce();
        says(&mut process, missing);
        let of_it = |read: &[Message]| match who {
            "guards" => read.len(),
            _ => read
                .iter()
                .filter(|letter| letter.header("__connect.errors.stage") == Some("webhook"))
                .count(),
        };
        let topic = if who == "guards" { &control } else { &scene.letters };
        assert_eq!(of_it(&topic.read()), 0, "{who}");

        scene.secure.give(&user, std::slice::from_ref(missing));
        check(&instance, "consumer").expect_code(0);
        let mut round = 0;
        wait_until(&format!("{who}: it is done"), LONG, || {
            // Each version is refused anew.
            round += 1;
            let key = format!("{who}-{round}");
            let row = json!({ "id": key, "price": 1.0, "stock": round });
            scene.setting.topic.produce([Record::upsert(&key, row.to_string())]);
            match of_it(&topic.read()) {
                0 => Err(process.stderr()),
                _ => Ok(()),
            }
        });
        process.stop(LONG).expect_code(0);
    }
    writing.stop(LONG).expect_code(0);
}

/// Who makes topics needs Create on each of them: without one it says so and waits, and goes on once it is given.
#[test]
fn who_makes_topics_may_create_each_of_them() {
    let mut lacking = Vec::new();
    for right in documented("creates", "N") {
        let mut scene = Scene::bare("made");
        let name = scene.name().to_owned();
        scene.setting.store = Some(format!("kafka://{}", blobs(&name)));
        let missing = Right { name: right.name.replace('N', &name), ..right };
        let mut rights = of(&["reader", "writer", "fetches", "stores", "creates"], &name);
        let all = rights.len();
        rights.retain(|right| *right != missing);
        assert_eq!(rights.len(), all - 1, "{missing:?}");
        let user = scene.user(&rights);
        let instance: Instance = scene.making("both", &user);
        let process = instance.start();
        scene.produce();
        lacking.push((scene, missing, user, instance, process));
    }
    assert_eq!(lacking.len(), 4, "three topics of its own, and the blobs'");
    for (scene, missing, user, instance, mut process) in lacking {
        says(&mut process, &missing);
        scene.secure.give(&user, std::slice::from_ref(&missing));
        until_read(&instance, scene.name(), "good", "1.5");
        process.stop(LONG).expect_code(0);
    }
}
