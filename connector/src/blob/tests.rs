//! The contract of [`BlobStore`], run against every implementation.
