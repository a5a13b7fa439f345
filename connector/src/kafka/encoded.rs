//! A record as codecs take it.

use super::Message;
use crate::codec::{Encoded, KEY_HEADER, VALUE_HEADER};

impl<'a> Message<'a> {
    /// Key and value; with `around` also the topic, and the headers that name schemas: of several of one name the last.
    #[inline]
    pub fn encoded(&self, around: bool) -> Encoded<'a> {
        let mut encoded = Encoded { key: self.key(), value: self.value(), ..Encoded::default() };
        if around {
            encoded.topic = Some(self.topic());
            for (name, value) in self.headers() {
                match name {
                    KEY_HEADER => encoded.key_header = value,
                    VALUE_HEADER => encoded.value_header = value,
                    _ => {}
                }
            }
        }
        encoded
    }
}
