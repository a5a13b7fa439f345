//! Kafka as a child process: KRaft, broker and controller in one, data in a folder of its own.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stillwell::clock::Entropy;

use crate::guard::{self, Guard};
use crate::settings::Settings;
use crate::{free_port, wait_until, workspace};

#[derive(Debug)]
pub(super) struct Native {
    jars: PathBuf,
    java_options: Vec<String>,
    start_timeout: Duration,
    folder: PathBuf,
    port: u16,
    running: Option<(Child, Guard)>,
    /// Ports of the further listeners, in their order.
    doors: Vec<u16>,
    _folder_goes: Guard,
}

/// A listener besides the plain one, which has no credentials and all rights.
#[derive(Clone, Debug)]
pub(super) struct Door {
    /// Its name, by which broker properties speak of it (`listener.name.NAME.…`, there in lower case).
    pub(super) name: &'static str,
    /// `PLAINTEXT`, `SSL`, `SASL_SSL`.
    pub(super) protocol: &'static str,
    /// The port that its clients are told to come by, where it is another one: a proxy's.
    pub(super) advertised: Option<u16>,
}

impl Native {
    /// Starts it, with `doors` besides the plain listener; `format` are arguments for formatting its storage.
    pub(super) fn start(settings: &Settings, doors: &[Door], format: &[String]) -> Result<Native, String> {
        let jars = jars()?;
        // A port found free may be taken by another process before the broker binds it.
        let mut last = String::new();
        for _ in 0..3 {
            match Native::try_start(settings, &jars, doors, format) {
                Ok(native) => return Ok(native),
                Err(why) if why.contains("Address already in use") => last = why,
                Err(why) => return Err(why),
            }
        }
        Err(last)
    }

    fn try_start(
        settings: &Settings,
        jars: &Path,
        doors: &[Door],
        format: &[String],
    ) -> Result<Native, String> {
        let folder = tempfile::Builder::new()
            .prefix("stillwell-broker-")
            .tempdir()
            .map_err(|e| format!("no folder for the broker's data: {e}"))?
            .keep();
        let folder_goes = guard::at_end(format!("rm -rf {}", guard::quoted(&folder.to_string_lossy())));
        let [port, controller] = [free_port(), free_port()];
        let ports: Vec<u16> = doors.iter().map(|_| free_port()).collect();
        let properties = properties(settings, &folder, port, controller, doors, &ports);
        std::fs::write(folder.join("server.properties"), properties)
            .map_err(|e| format!("writing the broker's properties: {e}"))?;
        let mut native = Native {
            jars: jars.to_owned(),
            java_options: settings.java_options.clone(),
            start_timeout: settings.start_timeout,
            folder,
            port,
            running: None,
            doors: ports,
            _folder_goes: folder_goes,
        };
        let status = native
            .java("kafka.tools.StorageTool")?
            .args(["format", "--standalone", "-t", &cluster_id(), "-c", "server.properties"])
            .args(format)
            .status()
            .map_err(|e| format!("java cannot be started: {e}"))?;
        if !status.success() {
            return Err(format!("formatting the broker's storage: {status}\n{}", native.log_tail()));
        }
        native.run()?;
        Ok(native)
    }

    /// Starts the process and waits for its "started" line, or for its end.
    fn run(&mut self) -> Result<(), String> {
        let before = self.log().matches(STARTED).count();
        let options = self.java_options.clone();
        let mut child = self
            .java_with(&options, "kafka.Kafka")?
            .arg("server.properties")
            .spawn()
            .map_err(|e| format!("java cannot be started: {e}"))?;
        let guard = guard::kill_at_end(child.id());
        let outcome = wait_until("the broker has started", self.start_timeout, || {
            if self.log().matches(STARTED).count() > before {
                return Ok(Ok(()));
            }
            match child.try_wait() {
                Ok(Some(status)) => Ok(Err(format!("the broker ended: {status}\n{}", self.log_tail()))),
                _ => Err(self.log_tail()),
            }
        });
        outcome.map(|()| self.running = Some((child, guard)))
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The ports of the doors, in the order in which they were asked for.
    pub(super) fn doors(&self) -> &[u16] {
        &self.doors
    }

    /// Stops the process where it is, or lets it go on.
    pub(super) fn freeze(&mut self, frozen: bool) {
        let (child, _) = self.running.as_ref().expect("a broker that was stopped cannot be frozen");
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let status = Command::new("kill").arg(signal).arg(child.id().to_string()).status();
        assert!(status.expect("kill can be started").success(), "kill {signal} {}", child.id());
    }

    /// Killed, not asked: the abrupt end is what clients must live with, and nothing waits for a controlled shutdown.
    pub(super) fn stop(&mut self) {
        if let Some((mut child, _guard)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn restart(&mut self) {
        self.stop();
        self.run().unwrap_or_else(|why| panic!("the broker does not come back: {why}"));
    }

    fn java(&self, class: &str) -> Result<Command, String> {
        self.java_with(&[], class)
    }

    fn java_with(&self, options: &[String], class: &str) -> Result<Command, String> {
        let log = |_| -> Result<File, String> {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.folder.join("broker.log"))
                .map_err(|e| format!("the broker's log: {e}"))
        };
        let mut command = Command::new("java");
        command
            .args(options)
            .arg("-Dorg.slf4j.simpleLogger.showDateTime=true")
            .arg("-cp")
            .arg(self.jars.join("*"))
            .arg(class)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log(())?)
            .stderr(log(())?);
        Ok(command)
    }

    fn log(&self) -> String {
        std::fs::read(self.folder.join("broker.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(30)).fold(String::new(), |tail, line| tail + line + "\n")
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What Kafka logs once it serves.
const STARTED: &str = "Kafka Server started";

fn properties(
    settings: &Settings,
    folder: &Path,
    port: u16,
    controller: u16,
    doors: &[Door],
    ports: &[u16],
) -> String {
    let [mut listeners, mut advertised, mut protocols] = [const { String::new() }; 3];
    for (Door { name, protocol, advertised: other }, port) in doors.iter().zip(ports) {
        listeners += &format!(",{name}://127.0.0.1:{port}");
        // Who comes by a proxy's door is told the proxy's address, and so comes that way again.
        advertised += &format!(",{name}://127.0.0.1:{}", other.unwrap_or(*port));
        protocols += &format!(",{name}:{protocol}");
    }
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         log.dirs={}\n",
        folder.join("data").display()
    );
    for (key, value) in &settings.properties {
        text += &format!("{key}={value}\n");
    }
    text
}

/// A cluster id as Kafka writes them: 16 bytes in base64 without padding. Any will do, so only hex digits are drawn.
fn cluster_id() -> String {
    let entropy = Entropy::system();
    let drawn = format!("{:016x}{:016x}", entropy.next_u64(), entropy.next_u64());
    drawn.chars().take(21).chain(std::iter::once('A')).collect()
}

/// The jars, fetched by `.ci/kafka` unless they are there.
pub(crate) fn jars() -> Result<PathBuf, String> {
    let output = Command::new("bash")
        .arg(workspace().join(".ci/kafka"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("bash .ci/kafka: {e}"))?;
    if !output.status.success() {
        return Err(format!("no jars of Kafka: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
