//! Writes a dataset from within one's own service: `cargo run --release --example producer -- DATA_DIR`
//!
//! Reads JSON records of the topic `products` at `KAFKA`, else at localhost:9092, and announces versions of them until
//! Ctrl-C. Log, cache and blobs lie below DATA_DIR.

use std::error::Error;
use std::path::PathBuf;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let data_dir =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or("name a folder for log, cache and blobs")?;
    let kafka = std::env::var("KAFKA").unwrap_or_else(|_| "localhost:9092".to_owned());
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/product.avsc");

    let producer = stillwell::Producer::builder("products")
        .bootstrap_servers(kafka)
        .source("products")
        .schema_file(schema)
        .blobs(format!("file://{}", std::path::absolute(data_dir.join("blobs"))?.display()))
        .data_dir(data_dir)
        .start()
        .await?;
    tokio::signal::ctrl_c().await?;
    println!("{}", producer.shutdown().await?); // last version, positions, records left in the log
    Ok(())
}
