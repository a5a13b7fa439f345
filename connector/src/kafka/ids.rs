//! What rdkafka does not offer, straight from librdkafka: records and events with their topic, and many at a time.
//!
//! - rdkafka's consumer reports the end of a partition and a lost offset without topic and offset, both of which
//!   librdkafka knows; with several source topics that is not enough to know where one stands.
//! - rdkafka takes one record per call with an allocation each; librdkafka hands out batches.
//!
//! Owns: with `describe` and `tokens/kept` all `unsafe` of this room. Everything that leaves this file is safe, borrowed from its owner, and bounded.

#![expect(unsafe_code, reason = "the calls of librdkafka that rdkafka lacks; each has its SAFETY")]

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull, addr_of};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::client::Client;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::Notify;

use super::client::Context;
use super::tokens::Kept;

/// Records taken out of librdkafka's queue at a time. They no longer count against `queued.max.messages.kbytes`, yet
/// no more come out than were in: at worst that bound holds twice.
const BATCH: usize = 256;

/// Batches after which log lines and statistics are looked after although records keep coming.
const UNSERVED: usize = 32;

/// Troubles kept until they are asked for; a poller that is polled asks after each.
const TROUBLES: usize = 8;

/// Longest wait in one go: log lines and troubles are looked after in between.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A queue of librdkafka's, shared with those who may wake its reader.
struct Queue(NonNull<rd::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues are locked inside; any thread may use or destroy a handle.
unsafe impl Send for Queue {}

impl Queue {
    fn as_ptr(&self) -> *mut rd::rd_kafka_queue_t {
        self.0.as_ptr()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the handle came from rd_kafka_queue_get_* or rd_kafka_queue_new and is dropped once.
        unsafe { rd::rd_kafka_queue_destroy(self.as_ptr()) }
    }
}

/// Ends the wait of the [`Inlet`] that it came from, from any thread. After the inlet is gone it does nothing.
#[derive(Clone)]
pub(super) struct Bell(Arc<Rope>);

struct Rope {
    /// Rung, and not yet answered. librdkafka has such a flag too, but any call that takes records clears it.
    rung: AtomicBool,
    queue: Mutex<Option<Queue>>,
}

impl Bell {
    fn new(queue: Queue) -> Bell {
        Bell(Arc::new(Rope { rung: AtomicBool::new(false), queue: Mutex::new(Some(queue)) }))
    }

    fn answer(&self) -> bool {
        self.0.rung.swap(false, Ordering::AcqRel)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Option<Queue>> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ring(&self) {
        self.0.rung.store(true, Ordering::Release);
        if let Some(queue) = &*self.queue() {
            // SAFETY: the inlet takes the handle out, under this lock, before the client goes.
            unsafe { rd::rd_kafka_queue_yield(queue.as_ptr()) }
        }
    }
}

/// A consumer, with its queue read in batches.
///
/// Fields drop in order, after [`Inlet::drop`] has given back all records: queues before the client they belong to.
pub(super) struct Inlet {
    /// Taken out of the queue and not yet given back; those before `next` are null.
    batch: Vec<*mut rd::rd_kafka_message_t>,
    /// The record that comes next.
    next: usize,
    bell: Bell,
    queue: Queue,
    main: Queue,
    /// Batches taken since the main queue was served.
    unserved: usize,
    /// What went wrong with the client as a whole, by code and words; not yet told.
    troubles: VecDeque<(i32, String)>,
    consumer: Kept<BaseConsumer<Context>>,
    /// Behind the client, which tells it as long as it lives.
    arrived: Arc<Notify>,
}

// SAFETY: the raw pointers are records that this inlet alone owns; librdkafka lets any thread read and destroy them.
unsafe impl Send for Inlet {}

impl Inlet {
    /// Takes over the receiving side of `consumer`, which must not be polled besides.
    ///
    /// `None` where the client has no consumer queue: it was made without a `group.id`.
    pub(super) fn new(consumer: Kept<BaseConsumer<Context>>) -> Option<Inlet> {
        let client = consumer.client().native_ptr();
        // SAFETY: `client` lives as long as `consumer`; each call hands out a reference of its own, or null.
        let [queue, wake, main] = unsafe {
            [
                NonNull::new(rd::rd_kafka_queue_get_consumer(client)).map(Queue),
                NonNull::new(rd::rd_kafka_queue_get_consumer(client)).map(Queue),
                NonNull::new(rd::rd_kafka_queue_get_main(client)).map(Queue),
            ]
        };
        let (queue, wake, main) = (queue?, wake?, main?);
        // rdkafka forwards log lines and statistics into the consumer queue, where a batch call would print them to
        // stderr. They stay in the main queue, which `serve` empties.
        // SAFETY: both handles are live; a null destination ends the forwarding.
        unsafe { rd::rd_kafka_queue_forward(main.as_ptr(), ptr::null_mut()) }
        let batch = Vec::with_capacity(BATCH);
        let (bell, troubles, arrived) = (Bell::new(wake), VecDeque::new(), Arc::default());
        Some(Inlet { batch, next: 0, bell, queue, main, unserved: 0, troubles, consumer, arrived })
    }

    /// The consumer, for assignment, pausing and the like.
    pub(super) fn consumer(&self) -> &BaseConsumer<Context> {
        &self.consumer
    }

    /// What ends a wait early.
    pub(super) fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// What is told each time that the queue has something after it had nothing, from now on.
    pub(super) fn arrivals(&self) -> Arc<Notify> {
        let told = Arc::as_ptr(&self.arrived).cast_mut().cast();
        // SAFETY: the handle is live. What the pointer leads to is dropped with this inlet, after the client, and nobody else
        // calls it.
        unsafe { rd::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), Some(arrived), told) }
        self.arrived.clone()
    }

    /// The next record or event, waiting for up to `timeout`. What was handed out before is given back.
    ///
    /// `None` sooner than that when the bell is rung, or there is [`Inlet::trouble`].
    pub(super) fn next(&mut self, timeout: Duration) -> Option<Message<'_>> {
        if self.batch.get(self.next).is_none() && !self.fill(timeout) {
            return None;
        }
        let taken = self.next;
        self.next += 1;
        if let Some(before) = taken.checked_sub(1).and_then(|before| self.batch.get_mut(before)) {
            destroy(before);
        }
        let message = NonNull::new(*self.batch.get(taken)?)?;
        Some(Message { message, inlet: PhantomData })
    }

    /// As [`Inlet::next`], by `rd_kafka_consumer_poll`, a call for each record: what librdkafka's users do, with which
    /// benches compare.
    pub(super) fn one(&mut self, timeout: Duration) -> Option<Message<'_>> {
        self.discard();
        let timeout = timeout.as_millis().min(i32::MAX as u128) as c_int;
        // SAFETY: the client is live; the record is ours, and destroyed as those of a batch are.
        let message = unsafe { rd::rd_kafka_consumer_poll(self.consumer.client().native_ptr(), timeout) };
        let message = NonNull::new(message)?;
        self.batch.push(message.as_ptr());
        self.next = 1;
        Some(Message { message, inlet: PhantomData })
    }

    fn fill(&mut self, timeout: Duration) -> bool {
        self.discard();
        // A call waits until it has as many records as it was asked for: first take what is there, then wait for one.
        if self.take(BATCH, Duration::ZERO) > 0 {
            self.unserved += 1;
            if self.unserved == UNSERVED {
                self.serve();
            }
            return true;
        }
        let mut left = timeout;
        loop {
            self.serve();
            if self.bell.answer() || left.is_zero() || !self.troubles.is_empty() {
                return false;
            }
            let wait = left.min(LONGEST_WAIT);
            if self.take(1, wait) > 0 {
                return true;
            }
            left -= wait;
        }
    }

    /// Gives back all records, also those not handed out.
    pub(super) fn discard(&mut self) {
        for message in self.batch.get_mut(self.next.saturating_sub(1)..).unwrap_or_default() {
            destroy(message);
        }
        self.batch.clear();
        self.next = 0;
    }

    /// What went wrong with the client as a whole since it was last asked: code and words.
    pub(super) fn trouble(&mut self) -> Option<(i32, String)> {
        self.troubles.pop_front()
    }

    /// Looks after log lines and statistics, and takes no record. What is wrong with the client as a whole is passed over.
    pub(super) fn tend(&mut self) {
        self.serve();
        self.troubles.clear();
    }

    fn serve(&mut self) {
        self.unserved = 0;
        serve(&self.main, self.consumer.client(), true, |code, words| {
            // Which brokers are lost one by one is librdkafka's business; that none is left, or that none will have
            // us, is the caller's.
            let told = matches!(
                code_of(code),
                Code::AllBrokersDown | Code::Authentication | Code::SSL | Code::Resolve
            );
            if told && self.troubles.len() < TROUBLES {
                self.troubles.push_back((code, words.to_owned()));
            }
        });
    }

    fn take(&mut self, most: usize, timeout: Duration) -> usize {
        let timeout = timeout.as_millis().min(i32::MAX as u128) as c_int;
        debug_assert!(self.batch.is_empty() && most <= self.batch.capacity());
        // SAFETY: the vector has room for `most` pointers and is empty; the call fills the first `taken` of them with
        // records that are ours from then on.
        unsafe {
            let into = self.batch.as_mut_ptr();
            let taken = rd::rd_kafka_consume_batch_queue(self.queue.as_ptr(), timeout, into, most);
            self.batch.set_len(usize::try_from(taken).unwrap_or(0));
        }
        self.batch.len()
    }
}

impl Drop for Inlet {
    /// rdkafka's consumer closes itself on drop, but stops reading its queue the moment that it is closed. What is
    /// left there holds on to partitions, a partition to its broker's thread, and the end of the client waits for
    /// that thread for ever (seen, a time in three, where a fetch had just come in). So it is closed here, and its
    /// queue emptied.
    fn drop(&mut self) {
        self.bell.queue().take();
        self.discard();
        if self.consumer.close_queue().is_ok() {
            while !self.consumer.closed() {
                self.take(BATCH, Duration::from_millis(10));
                self.discard();
            }
        }
        // A call may come back empty in the middle: it stops at the word that the consumer is closed.
        let mut empty = 0;
        while empty < 3 {
            empty = if self.take(BATCH, Duration::ZERO) == 0 { empty + 1 } else { 0 };
            self.discard();
        }
    }
}

/// Called by a thread of librdkafka's, which holds the queue's lock meanwhile.
///
/// # Safety
/// `told` is that of [`Inlet::arrivals`].
unsafe extern "C" fn arrived(_: *mut rd::rd_kafka_t, told: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { &*told.cast_const().cast::<Notify>() }.notify_one();
}

fn destroy(message: &mut *mut rd::rd_kafka_message_t) {
    let message = std::mem::replace(message, ptr::null_mut());
    if !message.is_null() {
        // SAFETY: it came from rd_kafka_consume_batch_queue, and the null left in its place keeps it from being
        // destroyed twice. A `Message` borrows the inlet, so none is left that shows it.
        unsafe { rd::rd_kafka_message_destroy(message) }
    }
}

/// Hands log lines, statistics and, where they are `news`, errors that wait in a client's main queue to its context.
fn serve(main: &Queue, client: &Client<Context>, news: bool, mut trouble: impl FnMut(i32, &str)) {
    loop {
        // SAFETY: the queue is live; the event is ours, and destroyed below.
        let Some(event) = NonNull::new(unsafe { rd::rd_kafka_queue_poll(main.as_ptr(), 0) }) else { return };
        let event = event.as_ptr();
        let context = client.context();
        // SAFETY: the event is live until destroyed; each accessor is called on the type that it is for, and the
        // strings are copied or parsed before the event goes.
        unsafe {
            match rd::rd_kafka_event_type(event) {
                rd::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut line, mut level) = (ptr::null(), ptr::null(), 0);
                    if rd::rd_kafka_event_log(event, &mut facility, &mut line, &mut level) == 0 {
                        context.line(level_of(level), text(facility).trim(), text(line).trim());
                    }
                }
                rd::RD_KAFKA_EVENT_STATS => context.statistics(text(rd::rd_kafka_event_stats(event))),
                rd::RD_KAFKA_EVENT_ERROR => {
                    let (code, words) = (event_code(event), text(rd::rd_kafka_event_error_string(event)));
                    if news {
                        context.trouble(code_of(code), words);
                    }
                    trouble(code, words);
                }
                _ => {}
            }
            rd::rd_kafka_event_destroy(event);
        }
    }
}

/// Serves the main queue of a client that rdkafka leaves unread: an admin client's log lines would pile up for ever.
/// With `news`, errors count as of now; without, as of some time before, when nobody listened. Whether one of them was
/// that no broker is left.
pub(super) fn serve_unread(client: &Client<Context>, news: bool) -> bool {
    let mut lost = false;
    // SAFETY: the client is live; the handle is a reference of its own.
    if let Some(main) = NonNull::new(unsafe { rd::rd_kafka_queue_get_main(client.native_ptr()) }) {
        serve(&Queue(main), client, news, |code, _| lost |= code_of(code) == Code::AllBrokersDown);
    }
    lost
}

fn level_of(level: c_int) -> RDKafkaLogLevel {
    match level {
        ..=4 => RDKafkaLogLevel::Warning,
        5 | 6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

/// The text behind a pointer of librdkafka's; empty for null and for what is not UTF-8.
///
/// # Safety
/// Null, or a C string that lives for `'a`.
unsafe fn text<'a>(text: *const c_char) -> &'a str {
    if text.is_null() {
        return "";
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("")
}

/// Bytes behind a pointer of librdkafka's.
///
/// # Safety
/// Null, or `len` bytes that live for `'a`.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(start.cast(), len) })
}

/// A record as librdkafka holds it; valid until the poller is polled again.
pub struct Message<'a> {
    message: NonNull<rd::rd_kafka_message_t>,
    inlet: PhantomData<&'a Inlet>,
}

impl<'a> Message<'a> {
    // No reference to the struct is ever made, only its fields are read: `err` is a Rust enum in the bindings, and a
    // code that is newer than they are would make such a reference undefined behaviour.

    /// The error code; 0 for a record.
    pub(super) fn code(&self) -> i32 {
        // SAFETY: live while the inlet is borrowed; the enum's representation is a C int.
        unsafe { addr_of!((*self.message.as_ptr()).err).cast::<i32>().read() }
    }

    /// librdkafka's words for the error.
    pub(super) fn words(&self) -> &'a str {
        // SAFETY: live while the inlet is borrowed.
        unsafe { text(rd::rd_kafka_message_errstr(self.message.as_ptr())) }
    }

    /// Tells topics apart without comparing names: the same for all records of a topic while it is assigned.
    pub(super) fn topic_handle(&self) -> usize {
        // SAFETY: live while the inlet is borrowed.
        unsafe { addr_of!((*self.message.as_ptr()).rkt).read() as usize }
    }

    /// Topic name. Measures its length each time; [`Polled::Record`](super::Polled)'s slot costs nothing.
    pub fn topic(&self) -> &'a str {
        // SAFETY: live while the inlet is borrowed, and the topic lives as long as its records.
        unsafe {
            let topic = addr_of!((*self.message.as_ptr()).rkt).read();
            if topic.is_null() { "" } else { text(rd::rd_kafka_topic_name(topic)) }
        }
    }

    /// Partition.
    pub fn partition(&self) -> i32 {
        // SAFETY: live while the inlet is borrowed.
        unsafe { addr_of!((*self.message.as_ptr()).partition).read() }
    }

    /// The record's own offset.
    pub fn offset(&self) -> i64 {
        // SAFETY: live while the inlet is borrowed.
        unsafe { addr_of!((*self.message.as_ptr()).offset).read() }
    }

    /// Milliseconds since the Unix epoch, by whoever the topic lets set it; -1 where there is none.
    pub fn timestamp_ms(&self) -> i64 {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: live while the inlet is borrowed.
        unsafe { rd::rd_kafka_message_timestamp(self.message.as_ptr(), &mut kind) }
    }

    /// The key; `None` where it is null.
    pub fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: live while the inlet is borrowed, as are the bytes it points to.
        unsafe {
            let message = self.message.as_ptr();
            bytes(addr_of!((*message).key).read(), addr_of!((*message).key_len).read())
        }
    }

    /// The value; `None` where it is null.
    pub fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: live while the inlet is borrowed, as are the bytes it points to.
        unsafe {
            let message = self.message.as_ptr();
            bytes(addr_of!((*message).payload).read(), addr_of!((*message).len).read())
        }
    }

    /// The headers, in order; names that are not UTF-8 show as empty (letters
    /// count those). They are parsed at this call, not before.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + 'a {
        let mut headers = ptr::null_mut();
        // SAFETY: live while the inlet is borrowed; the headers belong to the message, and without any the pointer
        // stays null.
        unsafe { rd::rd_kafka_message_headers(self.message.as_ptr(), &mut headers) };
        let mut index = 0;
        std::iter::from_fn(move || {
            if headers.is_null() {
                return None;
            }
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the headers live as long as the message; past the last one the call says so.
            let found =
                unsafe { rd::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size) };
            if found != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            index += 1;
            // SAFETY: both point into the headers.
            Some(unsafe { (text(name), bytes(value, size)) })
        })
    }
}

unsafe extern "C" {
    // The same functions as in the bindings, with their results as the integers they are: a code that is newer than
    // the bindings' enum must not become one.
    #[link_name = "rd_kafka_event_error"]
    fn event_code(event: *mut rd::rd_kafka_event_t) -> c_int;
}

/// The code as rdkafka names it; one that it does not know is `Unknown`.
pub(super) fn code_of(code: i32) -> Code {
    rd::rd_kafka_resp_err_t::try_from(code).map_or(Code::Unknown, Code::from)
}
