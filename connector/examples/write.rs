//! Writes a record from within one's own service, and reads it in the version that it is told:
//! `cargo run --release --example write -- DATA_DIR`
//!
//! Announces versions of the topic `products` at `KAFKA`, else at localhost:9092. Log, cache and blobs lie below
//! DATA_DIR.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use stillwell::{Consumer, Producer, Publication, Write};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let data_dir =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or("name a folder for log, cache and blobs")?;
    let kafka = std::env::var("KAFKA").unwrap_or_else(|_| "localhost:9092".to_owned());
    let blobs = format!("file://{}", std::path::absolute(data_dir.join("blobs"))?.display());
    let producer = Producer::builder("products")
        .bootstrap_servers(&kafka)
        .source("products")
        .schema_file(concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/product.avsc"))
        .blobs(&blobs)
        .data_dir(data_dir.join("producer"))
        .start()
        .await?;
    let products = Consumer::builder("products")
        .bootstrap_servers(&kafka)
        .blobs(&blobs)
        .cache_dir(data_dir.join("cache"))
        .start()
        .await?;

    let kettle = r#"{"id": "P-100", "name": "Kettle", "category": "KITCHEN", "price_cents": 2450,
        "size": {"width_mm": 200, "height_mm": 250, "depth_mm": 180}}"#;
    let written = producer.write([Write::upsert("P-100", kettle)]).await?; // fits, and is on its way
    match written.published(Duration::from_secs(10)).await {
        Publication::Published { version, .. } => {
            products.watch().wait_for(|readable| readable.version >= version).await?;
            let view = products.view();
            let value = view.get("P-100")?.ok_or("deleted since")?;
            println!("{} in version {}", value.to_json()?, view.version());
        }
        other => println!("{other}"),
    }
    products.shutdown().await?;
    println!("{}", producer.shutdown().await?);
    Ok(())
}
