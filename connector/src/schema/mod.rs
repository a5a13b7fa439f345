//! Schemas.
/// A dataset's schema.
#[derive(Debug)]
pub struct Schema;
