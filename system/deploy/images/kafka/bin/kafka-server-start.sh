#!/bin/sh
# kafka-server-start.sh server.properties: runs a broker.
exec /opt/kafka/bin/kafka-run-class.sh kafka.Kafka "$@"
