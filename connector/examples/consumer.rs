//! Reads a dataset from one's own service: `cargo run --release --example consumer -- BLOBS KEY…`
//!
//! BLOBS is the producer's blob store, as in `file:///var/lib/stillwell/blobs`; Kafka is at `KAFKA`, else at
//! localhost:9092.

use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let blobs = arguments.next().ok_or("name the blob store, as in file:///var/lib/stillwell/blobs")?;
    let kafka = std::env::var("KAFKA").unwrap_or_else(|_| "localhost:9092".to_owned());

    let products = stillwell::Consumer::builder("products")
        .bootstrap_servers(kafka)
        .blobs(blobs)
        .cache_dir(std::env::temp_dir().join("stillwell-consumer-example"))
        .start()
        .await?; // returns when a version is readable
    let view = products.view(); // one version: never changes, never locks
    println!("version {} holds {} products", view.versions(), view.records());
    for key in arguments {
        match view.get(&key)? {
            Some(value) => println!("{key}: {}", value.to_json()?),
            None => println!("{key} is not there"),
        }
    }
    products.shutdown().await?;
    Ok(())
}
