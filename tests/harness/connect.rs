//! A Kafka Connect worker as a child process, with one sink that cannot read everything: what it cannot goes to dead letters
//! as Connect writes them; and with one that reads letters, of which it makes what their headers say. And kcat, to read topics
//! by what is not ours.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::broker::jars;
use crate::guard::{self, Guard};
use crate::{free_port, unique, workspace};

/// The worker; ended when dropped.
#[derive(Debug)]
pub struct Connect {
    child: Child,
    log: PathBuf,
    read: PathBuf,
    _guard: Guard,
    _folder: tempfile::TempDir,
}

impl Connect {
    /// Starts a worker whose sink writes JSON values of `topic` to a file, and what is no JSON to the topic `letters`; another
    /// one reads the letters of the topic `ours`, which may come later, for [`Connect::letters`]. Give it the time that a JVM
    /// takes.
    pub fn sink(bootstrap: &str, topic: &str, letters: &str, ours: &str) -> Connect {
        let plugins = fetched();
        let jars = jars().unwrap_or_else(|why| panic!("no Connect worker: {why}"));
        let folder = crate::scratch();
        shown(&jars, &folder.path().join("plugins/shown"));
        let at = |name: &str| folder.path().join(name).display().to_string();
        let worker = format!(
            "bootstrap.servers={bootstrap}\n\
             key.converter=org.apache.kafka.connect.storage.StringConverter\n\
             value.converter=org.apache.kafka.connect.json.JsonConverter\n\
             value.converter.schemas.enable=false\n\
             offset.storage.file.filename={}\n\
             plugin.path={plugins},{}\n\
             plugin.discovery=service_load\n\
             listeners=http://127.0.0.1:{}\n",
            at("offsets"),
            at("plugins"),
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
        // Connect's own header converter, which makes numbers of what looks like some; then what the headers say is the value.
        let reader = format!(
            "name={}\n\
             connector.class=org.apache.kafka.connect.file.FileStreamSinkConnector\n\
             tasks.max=1\n\
             topics={ours}\n\
             file={}\n\
             consumer.override.auto.offset.reset=earliest\n\
             consumer.override.allow.auto.create.topics=false\n\
             consumer.override.metadata.max.age.ms=500\n\
             value.converter=org.apache.kafka.connect.storage.StringConverter\n\
             header.converter=org.apache.kafka.connect.storage.SimpleHeaderConverter\n\
             transforms=shown\n\
             transforms.shown.type=Shown\n",
            unique("reader"),
            at("read"),
        );
        std::fs::write(folder.path().join("reader.properties"), reader).expect("it can be written");
        std::fs::write(folder.path().join("worker.properties"), worker).expect("it can be written");
        std::fs::write(folder.path().join("sink.properties"), sink).expect("it can be written");
        let log = folder.path().join("log");
        let file = File::create(&log).expect("it can be made");
        let child = Command::new("java")
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(jars.join("*"))
            .args(["org.apache.kafka.connect.cli.ConnectStandalone", "worker.properties"])
            .args(["sink.properties", "reader.properties"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a handle more"))
            .stderr(file)
            .spawn()
            .expect("Java 17 or newer runs");
        let guard = guard::kill_at_end(child.id());
        let read = folder.path().join("read");
        Connect { child, log, read, _guard: guard, _folder: folder }
    }

    /// What it has read of the topic `ours`.
    pub fn letters(&self) -> String {
        std::fs::read_to_string(&self.read).unwrap_or_default()
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

/// Compiles the transformation that shows headers, and declares it as a plugin.
fn shown(jars: &Path, folder: &Path) {
    let services = folder.join("META-INF/services");
    std::fs::create_dir_all(&services).expect("it can be made");
    std::fs::write(services.join("org.apache.kafka.connect.transforms.Transformation"), "Shown\n")
        .expect("it can be written");
    let compiled = Command::new("javac")
        .args(["-J-XX:TieredStopAtLevel=1", "-proc:none", "-cp"])
        .arg(jars.join("*"))
        .arg("-d")
        .arg(folder)
        .arg(workspace().join("tests/harness/Shown.java"))
        .stdin(Stdio::null())
        .output()
        .expect("Java 17 or newer compiles");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
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
