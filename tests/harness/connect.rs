//! A Kafka Connect worker as a child process, with one sink that cannot read everything: what it cannot goes to dead letters
//! as Connect writes them. And kcat, to read topics by what is not ours.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::broker::jars;
use crate::guard::{self, Guard};
use crate::{free_port, unique, workspace};

/// The worker; ended when dropped.
#[derive(Debug)]
pub struct Connect {
    child: Child,
    log: PathBuf,
    _guard: Guard,
    _folder: tempfile::TempDir,
}

impl Connect {
    /// Starts a worker whose sink writes JSON values of `topic` to a file, and what is no JSON to the topic `letters`. Give it
    /// the time that a JVM takes.
    pub fn sink(bootstrap: &str, topic: &str, letters: &str) -> Connect {
        let plugins = fetched();
        let folder = crate::scratch();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let worker = format!(
            "bootstrap.servers={bootstrap}\n\
             key.converter=org.apache.kafka.connect.storage.StringConverter\n\
             value.converter=org.apache.kafka.connect.json.JsonConverter\n\
             value.converter.schemas.enable=false\n\
             offset.storage.file.filename={}\n\
             plugin.path={plugins}\n\
             plugin.discovery=service_load\n\
             listeners=http://127.0.0.1:{}\n",
            at("offsets"),
            free_port()
        );
        let sink = format!(
            "name={}\n\
             connector.class=org.apache.kafka.connect.file.FileStreamSinkConnector\n\
             tasks.max=1\n\
             topics={topic}\n\
             file={}\n\
             consumer.override.auto.offset.reset=earliest\n\
             errors.tolerance=all\n\
             errors.deadletterqueue.topic.name={letters}\n\
             errors.deadletterqueue.topic.replication.factor=1\n\
             errors.deadletterqueue.context.headers.enable=true\n",
            unique("sink"),
            at("out")
        );
        std::fs::write(folder.path().join("worker.properties"), worker).expect("it can be written");
        std::fs::write(folder.path().join("sink.properties"), sink).expect("it can be written");
        let log = folder.path().join("log");
        let file = File::create(&log).expect("it can be made");
        let jars = jars().unwrap_or_else(|why| panic!("no Connect worker: {why}"));
        let child = Command::new("java")
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(jars.join("*"))
            .args(["org.apache.kafka.connect.cli.ConnectStandalone", "worker.properties", "sink.properties"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a handle more"))
            .stderr(file)
            .spawn()
            .expect("Java 17 or newer runs");
        let guard = guard::kill_at_end(child.id());
        Connect { child, log, _guard: guard, _folder: folder }
    }

    /// What it has logged last.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last: Vec<&str> = lines.iter().copied().skip(lines.len().saturating_sub(20)).collect();
        last.join("\n")
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fetched() -> String {
    let fetched = Command::new("bash").arg(workspace().join(".ci/connect")).stdin(Stdio::null()).output();
    let fetched = fetched.expect("bash runs, and Maven fetches Connect's connectors");
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    String::from_utf8_lossy(&fetched.stdout).trim().to_owned()
}

/// What kcat reads of a topic from its beginning to its end, in its own format; several partitions one after another.
pub fn kcat(bootstrap: &str, topic: &str, format: &str) -> Vec<u8> {
    let read = Command::new("kcat")
        .args(["-C", "-q", "-e", "-o", "beginning", "-b", bootstrap, "-t", topic, "-f", format])
        .stdin(Stdio::null())
        .output()
        .expect("kcat is there (see .ci/setup)");
    assert!(read.status.success(), "{topic}: {}", String::from_utf8_lossy(&read.stderr));
    read.stdout
}
