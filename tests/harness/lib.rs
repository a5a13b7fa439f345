//! What every integration test stands on: a real broker, topics of its own, the `stillwell` binary, and waiting that
//! says what it waited for.
//!
//! ```text
//! test -> Topic, Stillwell, wait_until
//!            |        |
//!         broker   guard: ends what a test binary started, however that binary ends
//! ```
//!
//! Owns: the choice of the broker and its life; the names that keep tests apart. Does not own: what is tested.
//! A helper that fails panics with what it did and what it saw: it runs inside a test.

pub mod broker;
pub mod campaign;
pub mod certificates;
pub mod cloud;
pub mod connect;
pub mod debian;
pub mod guard;
pub mod port;
pub mod process;
pub mod protocol;
pub mod proxy;
pub mod reference;
pub mod registry;
pub mod request;
pub mod rights;
pub mod secure;
pub mod setting;
pub mod settings;
pub mod tap;
pub mod tokens;
pub mod topic;
pub mod volume;
pub mod wait;

pub use broker::Broker;
pub use cloud::Cloud;
pub use port::free_port;
pub use process::{Finished, Running, example, python, run, stillwell, unprivileged};
pub use proxy::{Proxy, TOXICS, Toxic};
pub use reference::{avro_tools, read_by_avro_tools};
pub use registry::Registry;
pub use request::Request;
pub use rights::{Resource, Right};
pub use secure::{Secure, User};
pub use setting::Setting;
pub use tap::{Tap, Then};
pub use tokens::Tokens;
pub use topic::{Message, Record, Topic};
pub use volume::{Disk, Volume};
pub use wait::{held_within, mostly_within, wait_until, wait_until_async};

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use stillwell::clock::Entropy;

/// `bootstrap.servers` of the broker that all tests of this binary share; the first call starts it.
pub fn bootstrap() -> &'static str {
    Broker::shared().bootstrap()
}

/// `name`, made unlike any other of this run or of another against the same broker. Good for topics and datasets.
pub fn unique(name: &str) -> String {
    static RUN: LazyLock<u64> = LazyLock::new(|| Entropy::system().next_u64());
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{name}-{:08x}-{}", *RUN >> 32, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A folder of the test's own, gone with the value.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("stillwell-test-").tempdir().expect("a temporary folder can be made")
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests crate lies one level below the root")
        .to_owned()
}
