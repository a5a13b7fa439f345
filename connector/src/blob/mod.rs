//! Blob stores.
/// A blob store.
#[derive(Clone, Debug)]
pub struct Store;
