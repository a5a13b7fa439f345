#!/usr/bin/env bash
# Kafka's console producer, where the official image has it.
exec java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp '/opt/kafka/libs/*' org.apache.kafka.tools.ConsoleProducer "$@"
