//! Acts on what changes: `cargo run --release --example listener -- BLOBS`
//!
//! BLOBS is the producer's blob store; Kafka is at `KAFKA`, else at localhost:9092. Started again it goes on where it stopped.

use stillwell::{ChangeSet, Consumer, Failed, Listener};

struct Print;

impl Listener for Print {
    async fn changed(&self, set: &ChangeSet<'_>) -> Result<(), Failed> {
        for change in &set.changes {
            let key = String::from_utf8_lossy(change.key());
            match change.after() {
                Some(value) => println!("{}: {key} is {}", set.version, value.to_json()?),
                None => println!("{}: {key} is gone", set.version),
            }
        }
        Ok(()) // remembered; an error has the set come again
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let blobs =
        std::env::args().nth(1).ok_or("name the blob store, as in file:///var/lib/stillwell/blobs")?;
    let kafka = std::env::var("KAFKA").unwrap_or_else(|_| "localhost:9092".to_owned());
    let dir = std::env::temp_dir().join("stillwell-listener-example");
    let products = Consumer::builder("products")
        .bootstrap_servers(kafka)
        .blobs(blobs)
        .cache_dir(dir.join("cache"))
        .listener("print", Print)
        .start()
        .await?;
    tokio::signal::ctrl_c().await?;
    Ok(products.shutdown().await?)
}
