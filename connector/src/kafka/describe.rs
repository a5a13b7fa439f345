//! What rdkafka does not offer, straight from librdkafka: a topic's id, and what the broker allows on topics and groups.
//!
//! ```text
//!  topic, group -> librdkafka's admin call, its own queue -> Answer -> code and words, or what is said
//! ```
//!
//! Owns: these two calls, and the `unsafe` that they take. Does not own: waiting beside them (`topics`), which rights
//! are needed (`allowed`).

#![expect(unsafe_code, reason = "the admin calls of librdkafka that rdkafka lacks; each has its SAFETY")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::record::TopicId;

use super::client::Context;
use super::ids::code_of;

/// What [`topic`] found out.
pub(super) struct Described {
    pub(super) id: TopicId,
    pub(super) partitions: usize,
    /// The operations that are allowed, by their numbers in Kafka's protocol; empty where they were not asked for, or
    /// the broker is too old to tell.
    pub(super) allowed: Vec<i32>,
}

/// Asks a broker for a topic's id and partition count, and for what is allowed there. Blocks for up to `timeout`.
///
/// # Errors
/// The broker's code and words; `UnknownTopicOrPartition` where there is no such topic.
pub(super) fn topic(
    client: &Client<Context>,
    topic: &str,
    rights: bool,
    timeout: Duration,
) -> Result<Described, (Code, String)> {
    let name = named(topic)?;
    let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let answer = ask(client, operation, rights, timeout, |rk, options, queue| {
        let mut names = [name.as_ptr()];
        // SAFETY: the collection is copied by the call, and destroyed after it.
        unsafe {
            let topics = rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            rd::rd_kafka_DescribeTopics(rk, topics, options, queue);
            rd::rd_kafka_TopicCollection_destroy(topics);
        }
    })?;
    // SAFETY: the event lives until `answer` is dropped, and all that is read here with it.
    unsafe {
        let result = rd::rd_kafka_event_DescribeTopics_result(answer.0);
        let mut count = 0;
        let topics = match result.is_null() {
            true => ptr::null_mut(),
            false => rd::rd_kafka_DescribeTopics_result_topics(result, &mut count),
        };
        if topics.is_null() || count == 0 {
            return Err((Code::Fail, "the answer names no topic".to_owned()));
        }
        let topic = *topics;
        refusal(rd::rd_kafka_TopicDescription_error(topic))?;
        let id = rd::rd_kafka_TopicDescription_topic_id(topic);
        let (high, low) = match id.is_null() {
            true => (0, 0),
            false => {
                (rd::rd_kafka_Uuid_most_significant_bits(id), rd::rd_kafka_Uuid_least_significant_bits(id))
            }
        };
        let mut partitions = 0;
        rd::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
        let id = (u128::from(high as u64) << 64) | u128::from(low as u64);
        let mut count = 0;
        let operations = rd::rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
        let allowed = numbers(operations, count);
        Ok(Described { id: TopicId(id.to_be_bytes()), partitions, allowed })
    }
}

/// Asks a group's coordinator what is allowed on it; whether there is such a group does not matter. As
/// [`Described::allowed`]. Blocks for up to `timeout`.
///
/// # Errors
/// The broker's code and words.
pub(super) fn group(
    client: &Client<Context>,
    group: &str,
    timeout: Duration,
) -> Result<Vec<i32>, (Code, String)> {
    let name = named(group)?;
    let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
    let answer = ask(client, operation, true, timeout, |rk, options, queue| {
        let mut names = [name.as_ptr()];
        // SAFETY: names are copied by the call.
        unsafe { rd::rd_kafka_DescribeConsumerGroups(rk, names.as_mut_ptr(), names.len(), options, queue) }
    })?;
    // SAFETY: as in `topic`.
    unsafe {
        let result = rd::rd_kafka_event_DescribeConsumerGroups_result(answer.0);
        let mut count = 0;
        let groups = match result.is_null() {
            true => ptr::null_mut(),
            false => rd::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count),
        };
        if groups.is_null() || count == 0 {
            return Err((Code::Fail, "the answer names no group".to_owned()));
        }
        let group = *groups;
        refusal(rd::rd_kafka_ConsumerGroupDescription_error(group))?;
        let mut count = 0;
        let operations = rd::rd_kafka_ConsumerGroupDescription_authorized_operations(group, &mut count);
        Ok(numbers(operations, count))
    }
}

fn named(name: &str) -> Result<CString, (Code, String)> {
    CString::new(name).map_err(|_| (Code::InvalidArgument, "a name holds no zero byte".to_owned()))
}

/// Makes one call and waits for its answer.
fn ask(
    client: &Client<Context>,
    operation: rd::rd_kafka_admin_op_t,
    rights: bool,
    timeout: Duration,
    call: impl FnOnce(*mut rd::rd_kafka_t, *const rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
) -> Result<Answer, (Code, String)> {
    let millis = timeout.as_millis().min(i32::MAX as u128) as c_int;
    let rk = client.native_ptr();
    // SAFETY: `rk` lives as long as `client`. The options are copied by the call and destroyed after it, the queue after
    // the wait: an answer that comes later finds it closed. What setting an option says is freed.
    let event = unsafe {
        let Some(queue) = NonNull::new(rd::rd_kafka_queue_new(rk)) else {
            return Err((Code::Fail, "no memory for a queue".to_owned()));
        };
        let options = rd::rd_kafka_AdminOptions_new(rk, operation);
        rd::rd_kafka_AdminOptions_set_request_timeout(options, millis, ptr::null_mut(), 0);
        if rights {
            let refused = rd::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !refused.is_null() {
                rd::rd_kafka_error_destroy(refused);
            }
        }
        call(rk, options, queue.as_ptr());
        rd::rd_kafka_AdminOptions_destroy(options);
        let event = rd::rd_kafka_queue_poll(queue.as_ptr(), millis);
        rd::rd_kafka_queue_destroy(queue.as_ptr());
        NonNull::new(event)
    };
    let Some(answer) = event.map(|event| Answer(event.as_ptr())) else {
        return Err((Code::OperationTimedOut, String::new()));
    };
    // SAFETY: the event lives until `answer` is dropped; error codes are read as integers, see below.
    unsafe {
        match event_code(answer.0) {
            0 => Ok(answer),
            code => Err((code_of(code), text(rd::rd_kafka_event_error_string(answer.0)))),
        }
    }
}

/// # Safety
/// `error` is null or librdkafka's, and lives.
unsafe fn refusal(error: *const rd::rd_kafka_error_t) -> Result<(), (Code, String)> {
    // SAFETY: by the caller.
    match if error.is_null() { 0 } else { unsafe { error_code(error) } } {
        0 => Ok(()),
        // SAFETY: by the caller.
        code => Err((code_of(code), unsafe { text(rd::rd_kafka_error_string(error)) })),
    }
}

/// # Safety
/// `operations` is null, or points to `count` of them.
unsafe fn numbers(operations: *const rd::rd_kafka_AclOperation_t, count: usize) -> Vec<i32> {
    if operations.is_null() {
        return Vec::new();
    }
    // Read as the integers that they are: one that is newer than the bindings' enum must not become one.
    // SAFETY: by the caller; a C enum is an int.
    unsafe { std::slice::from_raw_parts(operations.cast::<c_int>(), count) }.to_vec()
}

/// # Safety
/// `words` is null or a C string that lives.
unsafe fn text(words: *const c_char) -> String {
    if words.is_null() {
        return String::new();
    }
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
}

/// An event, destroyed on drop.
struct Answer(*mut rd::rd_kafka_event_t);

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: it came from rd_kafka_queue_poll and is dropped once.
        unsafe { rd::rd_kafka_event_destroy(self.0) }
    }
}

unsafe extern "C" {
    // The same functions as in the bindings, with their results as the integers they are: a code that is newer than
    // the bindings' enum must not become one.
    #[link_name = "rd_kafka_event_error"]
    fn event_code(event: *mut rd::rd_kafka_event_t) -> c_int;
    #[link_name = "rd_kafka_error_code"]
    fn error_code(error: *const rd::rd_kafka_error_t) -> c_int;
}
