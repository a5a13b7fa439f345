//! Clients of librdkafka's that are given tokens, by the calls that rdkafka does not offer.
//!
//! ```text
//!  Kept { holding: Lease, client }    dropped in this order: the lease ends before the client is destroyed
//!           |
//!           +-- Keeper has the lease, too, for as long as it likes: ended, it does nothing
//! ```
//!
//! Owns: the `unsafe` of it. Does not own: which token, and when (`tokens`).

#![expect(unsafe_code, reason = "the calls of librdkafka that rdkafka lacks; each has its SAFETY")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::admin::AdminClient;
use rdkafka::bindings as rd;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};

use super::fetch::Token;
use super::{Holder, Keeper};
use crate::kafka::Options;
use crate::kafka::client::TOKENLESS;
use crate::kafka::error::advised;
use crate::kafka::reach::Reach;
use crate::repeat::Tally;

/// Longest that librdkafka says of a token that it does not take.
const WORDS: usize = 512;

/// What is a client of librdkafka's.
///
/// # Safety
/// The handle is the same at each call, and is not destroyed before the value is dropped, whether it is moved or not.
pub(in crate::kafka) unsafe trait Native {
    /// Its handle.
    fn handle(&self) -> *mut rd::rd_kafka_t;
}

// SAFETY: rdkafka's `Client` makes its handle once, and destroys it on drop.
unsafe impl<C: ConsumerContext> Native for BaseConsumer<C> {
    fn handle(&self) -> *mut rd::rd_kafka_t {
        self.client().native_ptr()
    }
}

// SAFETY: as above.
unsafe impl<C: ProducerContext + 'static> Native for ThreadedProducer<C> {
    fn handle(&self) -> *mut rd::rd_kafka_t {
        self.client().native_ptr()
    }
}

// SAFETY: as above.
unsafe impl<C: ClientContext> Native for AdminClient<C> {
    fn handle(&self) -> *mut rd::rd_kafka_t {
        self.inner().native_ptr()
    }
}

/// A client, and what keeps its token fresh where it needs one.
pub(in crate::kafka) struct Kept<T> {
    /// Goes before the client does, since fields drop in order. Nothing else may take the client out of here.
    _holding: Option<Holding>,
    client: T,
}

impl<T: Native> Kept<T> {
    /// Gives `client` the token that there is, and each one that follows, until it is dropped.
    pub(in crate::kafka) fn new(client: T, keeper: Option<Arc<Keeper>>, options: &Options) -> Kept<T> {
        let handle = NonNull::new(client.handle());
        let holding = keeper.zip(handle).map(|(keeper, handle)| {
            let holds = Holds { client: Some(Handle(handle)), had: false, said: Said::default() };
            let (reach, servers) = (options.reach.clone(), options.bootstrap_servers.clone());
            let lease = Arc::new(Lease { holds: Mutex::new(holds), reach, servers });
            keeper.admit(Arc::clone(&lease) as Arc<dyn Holder>);
            Holding { lease, keeper }
        });
        Kept { _holding: holding, client }
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.client
    }
}

/// Ends a lease when it is dropped.
struct Holding {
    lease: Arc<Lease>,
    keeper: Arc<Keeper>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        // Waits where a token is just being given, which takes microseconds.
        self.lease.holds().client.take();
        self.keeper.left();
    }
}

/// The way to a client, for as long as it is there.
struct Lease {
    holds: Mutex<Holds>,
    reach: Reach,
    servers: String,
}

struct Holds {
    /// `None`: the client is going, or gone.
    client: Option<Handle>,
    /// Whether it was ever given a token: then it may be connected, which it stays as long as the broker has it.
    had: bool,
    /// Why it was given none yet.
    said: Said,
}

/// What a client was told of why there is no token. Each time makes an event, and later a wish for another token, which lie in the
/// queue of a client that nobody polls.
#[derive(Default)]
struct Said {
    words: Option<String>,
    changes: Tally,
}

impl Said {
    /// Whether it is to be told this: what is new only, and that ever more rarely, since some endpoints put a time or a number into
    /// each of their answers.
    fn is_news(&mut self, why: &str) -> bool {
        if self.words.as_deref() == Some(why) {
            return false;
        }
        self.words = Some(why.to_owned());
        self.changes.again().is_some()
    }
}

struct Handle(NonNull<rd::rd_kafka_t>);

// SAFETY: any thread may make the calls that are made here; librdkafka locks inside.
unsafe impl Send for Handle {}

impl Lease {
    fn holds(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder for Lease {
    fn give(&self, token: &Token) -> Result<(), String> {
        let text = |text: &str| CString::new(text).map_err(|_| "a token has a zero byte in it".to_owned());
        let (value, principal) = (text(&token.value)?, text(&token.principal)?);
        let pairs = token.extensions.iter().flat_map(|(name, value)| [name, value]);
        let pairs: Vec<CString> = pairs.map(|part| text(part)).collect::<Result<_, _>>()?;
        let mut extensions: Vec<*const c_char> = pairs.iter().map(|part| part.as_ptr()).collect();
        let mut words = [0; WORDS];
        let mut holds = self.holds();
        let Some(Handle(client)) = &holds.client else { return Ok(()) };
        // SAFETY: the client lives: who drops it takes the handle out before, under this lock (`Holding`). All strings live
        // until the call is over, which copies them; `words` is as long as it says, and ended by a zero.
        let why = unsafe {
            let code = set_token(
                client.as_ptr(),
                value.as_ptr(),
                token.ends_ms,
                principal.as_ptr(),
                extensions.as_mut_ptr(),
                extensions.len(),
                words.as_mut_ptr(),
                words.len(),
            );
            (code != 0).then(|| CStr::from_ptr(words.as_ptr()).to_string_lossy().into_owned())
        };
        match why {
            None => {
                holds.had = true;
                self.reach.tokenless(None);
                Ok(())
            }
            Some(why) => Err(why),
        }
    }

    fn fail(&self, why: &str) {
        let mut holds = self.holds();
        let Holds { client: Some(Handle(client)), had, said } = &mut *holds else { return };
        self.reach.tokenless(Some(advised(&format!("{TOKENLESS}{why}")).into_owned()));
        if *had {
            // That it has no broker left, once that is so, librdkafka says by itself.
            return;
        }
        // It tries no broker, and so does not say it.
        self.reach.lost(&self.servers);
        if let (true, Ok(words)) = (said.is_news(why), CString::new(why)) {
            // SAFETY: the client lives, as in `give`; the words are copied.
            unsafe { set_token_failure(client.as_ptr(), words.as_ptr()) };
        }
    }

    fn is_gone(&self) -> bool {
        self.holds().client.is_none()
    }
}

unsafe extern "C" {
    // The same functions as in the bindings, with their results as the integers they are: a code that is newer than
    // the bindings' enum must not become one.
    #[link_name = "rd_kafka_oauthbearer_set_token"]
    fn set_token(
        client: *mut rd::rd_kafka_t,
        value: *const c_char,
        ends_ms: i64,
        principal: *const c_char,
        extensions: *mut *const c_char,
        extensions_size: usize,
        words: *mut c_char,
        words_size: usize,
    ) -> c_int;
    #[link_name = "rd_kafka_oauthbearer_set_token_failure"]
    fn set_token_failure(client: *mut rd::rd_kafka_t, words: *const c_char) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_differs_each_time_is_told_ever_more_rarely() {
        let told = |words: &dyn Fn(u32) -> String| {
            let mut said = Said::default();
            (0..1_000).filter(|time| said.is_news(&words(*time))).collect::<Vec<_>>()
        };
        assert_eq!(told(&|_| "it answered 401".to_owned()), [0]);
        assert_eq!(
            told(&|time| format!("it answered 401: at {time}")),
            [0, 1, 3, 7, 15, 31, 63, 127, 255, 511]
        );
    }
}
