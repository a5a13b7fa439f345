//! Kafka in a container, by Testcontainers: its Kafka module, our image, version and properties.

use std::collections::HashMap;
use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use testcontainers::bollard::models::PortBinding;
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ImageExt};
use testcontainers_modules::kafka::apache::{KAFKA_PORT, Kafka};
use tokio::runtime::Runtime;

use crate::free_port;
use crate::guard::{self, Guard};
use crate::settings::Settings;

#[derive(Debug)]
pub(super) struct Container {
    /// `None` only while it is being dropped.
    container: Option<ContainerAsync<Kafka>>,
    port: u16,
    _guard: Guard,
}

/// The engine's client lives on this runtime, apart from the tests' own, which come and go.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime for the engine's client")
});

/// Runs `future` to its end from any thread, also from one that belongs to another runtime.
fn wait_for<F: Future<Output: Send> + Send>(future: F) -> F::Output {
    std::thread::scope(|scope| scope.spawn(|| RUNTIME.block_on(future)).join())
        .expect("the engine's client does not panic")
}

/// Whether an engine answers that has the image or can get it; else why not.
pub(super) fn usable(settings: &Settings) -> Result<(), String> {
    wait_for(async {
        let client = docker_client_instance().await.map_err(|_| "no Docker engine answers".to_owned())?;
        let ping = tokio::time::timeout(Duration::from_secs(30), client.ping()).await;
        match ping {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err("no Docker engine answers".to_owned()),
            Err(_) => return Err("the Docker engine does not answer within 30 s".to_owned()),
        }
        let name = format!("{}:{}", settings.image, settings.tag);
        if client.inspect_image(&name).await.is_ok() {
            return Ok(());
        }
        let image = Kafka::default().with_name(&settings.image).with_tag(&settings.tag);
        match tokio::time::timeout(settings.start_timeout, image.pull_image()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(format!("the Docker engine cannot get image {name}: {e}")),
            Err(_) => Err(format!("the Docker engine did not get image {name} in time")),
        }
    })
}

impl Container {
    pub(super) fn start(settings: &Settings) -> Result<Container, String> {
        // Chosen here, not by the engine: a port that the engine picks changes when the container is started again.
        let port = free_port();
        let internal = KAFKA_PORT.as_u16();
        let mut image = Kafka::default()
            .with_jvm_image()
            .with_name(&settings.image)
            .with_tag(&settings.tag)
            .with_startup_timeout(settings.start_timeout)
            .with_mapped_port(port, KAFKA_PORT)
            // On the loopback only: a test's broker is nobody else's.
            .with_host_config_modifier(move |host| {
                let binding =
                    PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(port.to_string()) };
                host.port_bindings = Some(HashMap::from([(format!("{internal}/tcp"), Some(vec![binding]))]));
            });
        for (key, value) in &settings.properties {
            let name = format!("KAFKA_{}", key.replace('.', "_").to_uppercase());
            image = image.with_env_var(name, value);
        }
        wait_for(async {
            let container = image.start().await.map_err(|e| format!("starting the container: {e}"))?;
            let id = container.id();
            // Through the client, or where there is none through the engine's socket.
            let guard = guard::at_end(format!(
                "docker rm -f -v {id} || curl -s --unix-socket /var/run/docker.sock -X DELETE \
                 'http://localhost/containers/{id}?force=true&v=true'"
            ));
            Ok(Container { container: Some(container), port, _guard: guard })
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn stop(&mut self) {
        let container = self.container.as_ref().expect("present until dropped");
        // At once, as the native one: no controlled shutdown.
        wait_for(container.stop_with_timeout(Some(0)))
            .unwrap_or_else(|e| panic!("stopping the broker's container: {e}"));
    }

    pub(super) fn freeze(&mut self, frozen: bool) {
        let container = self.container.as_ref().expect("present until dropped");
        let done = match frozen {
            true => wait_for(container.pause()),
            false => wait_for(container.unpause()),
        };
        done.unwrap_or_else(|e| panic!("pausing the broker's container: {e}"));
    }

    pub(super) fn restart(&mut self) {
        self.stop();
        let container = self.container.as_ref().expect("present until dropped");
        wait_for(container.start())
            .unwrap_or_else(|e| panic!("the broker's container does not come back: {e}"));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(container) = self.container.take() {
            let _ = wait_for(container.rm());
        }
    }
}
