//! A real broker: one shared by all tests of a binary, and one of a test's own where the test stops it.
//!
//! ```text
//! STILLWELL_TEST_BOOTSTRAP set            that broker, which somebody else runs (shared only)
//! a Docker engine answers                 Testcontainers: image of testcontainers-config/kafka.toml
//! else                                    the same version as a child process, its jars fetched by .ci/kafka
//! ```
//!
//! The choice is made once, printed once, and there always is one: a test that needs a broker is never skipped.
//! `STILLWELL_TEST_BROKER=testcontainers|native` forces it, so that CI cannot take the one for the other.
//!
//! Owns: starting, stopping, and that nothing outlives the test binary (by [`crate::guard`]).
//! Does not own: topics.

mod container;
mod native;

pub(crate) use native::jars;

use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::campaign::Chance;
use crate::proxy::Proxy;
use crate::settings::Settings;
use crate::wait_until;

/// A broker of one node, on a port of 127.0.0.1 that was free.
#[derive(Debug)]
pub struct Broker {
    bootstrap: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Given,
    Container(Box<container::Container>),
    Native(native::Native),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    Testcontainers,
    Native,
}

impl Broker {
    /// The broker that all tests of this binary share. Never stopped while they run.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Result<Broker, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| {
            if let Ok(bootstrap) = std::env::var("STILLWELL_TEST_BOOTSTRAP") {
                say(&format!("the given one at {bootstrap} (STILLWELL_TEST_BOOTSTRAP)"));
                let given = Broker { bootstrap, kind: Kind::Given };
                given.wait();
                return Ok(given);
            }
            Broker::launch(&[])
        });
        match started {
            Ok(broker) => broker,
            Err(why) => panic!("no broker to test with: {why}"),
        }
    }

    /// A broker of the test's own, which it may stop and start; gone with the value.
    pub fn own() -> Broker {
        Broker::own_with(&[])
    }

    /// A broker of the test's own, and a proxy on the way to it: who begins at the proxy's port stays with it, who
    /// begins at the broker's [`Broker::bootstrap`] goes past it. Always native: an image's advertised addresses are
    /// its own affair.
    pub fn own_behind_proxy(chance: Chance) -> (Broker, Proxy) {
        let proxy = Proxy::start(0, chance);
        let door = native::Door { name: "PROXIED", protocol: "PLAINTEXT", advertised: Some(proxy.port()) };
        let native = native::Native::start(&Settings::load(), &[door], &[])
            .unwrap_or_else(|why| panic!("no broker of its own: {why}"));
        proxy.lead_to(*native.doors().first().expect("it was asked for"));
        let broker = Broker { bootstrap: format!("127.0.0.1:{}", native.port()), kind: Kind::Native(native) };
        broker.wait();
        (broker, proxy)
    }

    /// A broker with a listener of each of these names and protocols besides the plain one, whose clients have all
    /// rights; gives their ports. `format` are arguments for formatting its storage, `java` for its virtual machine.
    /// Always native, too.
    pub(crate) fn with_doors(
        doors: &[(&'static str, &'static str)],
        properties: &[(String, String)],
        format: &[String],
        java: &[String],
    ) -> Result<(Broker, Vec<u16>), String> {
        let mut settings = Settings::load();
        settings.properties.extend_from_slice(properties);
        settings.java_options.extend_from_slice(java);
        let doors: Vec<_> =
            doors.iter().map(|&(name, protocol)| native::Door { name, protocol, advertised: None }).collect();
        let native = native::Native::start(&settings, &doors, format)?;
        let (port, doors) = (native.port(), native.doors().to_vec());
        let broker = Broker { bootstrap: format!("127.0.0.1:{port}"), kind: Kind::Native(native) };
        broker.wait();
        Ok((broker, doors))
    }

    /// Stops the broker where it is, as by SIGSTOP: connections stay and nobody answers.
    pub fn freeze(&mut self) {
        self.set_frozen(true);
    }

    /// Lets a frozen broker go on.
    pub fn thaw(&mut self) {
        self.set_frozen(false);
    }

    fn set_frozen(&mut self, frozen: bool) {
        match &mut self.kind {
            Kind::Container(container) => container.freeze(frozen),
            Kind::Native(native) => native.freeze(frozen),
            Kind::Given => panic!("only a broker of the test's own can be frozen"),
        }
    }

    /// The same, with broker properties besides those of `testcontainers-config/kafka.toml`.
    pub fn own_with(properties: &[(&str, &str)]) -> Broker {
        Broker::launch(properties).unwrap_or_else(|why| panic!("no broker of its own: {why}"))
    }

    fn launch(properties: &[(&str, &str)]) -> Result<Broker, String> {
        let mut settings = Settings::load();
        settings
            .properties
            .extend(properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let kind = match choice(&settings)? {
            Choice::Testcontainers => Kind::Container(Box::new(container::Container::start(&settings)?)),
            Choice::Native => Kind::Native(native::Native::start(&settings, &[], &[])?),
        };
        let port = match &kind {
            Kind::Container(container) => container.port(),
            Kind::Native(native) => native.port(),
            Kind::Given => unreachable!("a given broker is not launched"),
        };
        let broker = Broker { bootstrap: format!("127.0.0.1:{port}"), kind };
        broker.wait();
        Ok(broker)
    }

    /// `bootstrap.servers`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Takes the broker away; address and data remain. Clients see refused connections.
    pub fn stop(&mut self) {
        match &mut self.kind {
            Kind::Container(container) => container.stop(),
            Kind::Native(native) => native.stop(),
            Kind::Given => panic!("only a broker of the test's own can be stopped"),
        }
    }

    /// Brings a stopped broker back at its address, with its data; returns once it answers.
    pub fn restart(&mut self) {
        match &mut self.kind {
            Kind::Container(container) => container.restart(),
            Kind::Native(native) => native.restart(),
            Kind::Given => panic!("only a broker of the test's own can be restarted"),
        }
        self.wait();
    }

    /// Returns once the broker answers a metadata request.
    fn wait(&self) {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("reconnect.backoff.max.ms", "200")
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
            .create()
            .expect("a client without a group can be made");
        wait_until("the broker answers", Duration::from_secs(180), || {
            match client.fetch_metadata(None, Duration::from_secs(10)) {
                Ok(metadata) if metadata.brokers().is_empty() => Err("no broker in its metadata".to_owned()),
                Ok(_) => Ok(()),
                Err(e) => Err(e.to_string()),
            }
        });
    }
}

/// Decides once which kind of broker this run uses, and says so.
fn choice(settings: &Settings) -> Result<Choice, String> {
    static CHOICE: OnceLock<Result<Choice, String>> = OnceLock::new();
    CHOICE
        .get_or_init(|| {
            let forced = std::env::var("STILLWELL_TEST_BROKER").unwrap_or_default();
            let (choice, why) = match forced.as_str() {
                "native" => (Choice::Native, "STILLWELL_TEST_BROKER".to_owned()),
                "testcontainers" => {
                    container::usable(settings)?;
                    (Choice::Testcontainers, "STILLWELL_TEST_BROKER".to_owned())
                }
                "" => match container::usable(settings) {
                    Ok(()) => (Choice::Testcontainers, "a Docker engine answers".to_owned()),
                    Err(why) => (Choice::Native, why),
                },
                other => {
                    return Err(format!("STILLWELL_TEST_BROKER is testcontainers or native, not {other}"));
                }
            };
            match choice {
                Choice::Testcontainers => {
                    say(&format!("Testcontainers, image {}:{} ({why})", settings.image, settings.tag));
                }
                Choice::Native => say(&format!("Kafka {}, native ({why})", settings.version)),
            }
            Ok(choice)
        })
        .clone()
}

/// Past the test runner's capture, so that the choice is seen in every run.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "test broker: {what}");
}
