//! librdkafka's statistics, cut down to what an operator looks at.
