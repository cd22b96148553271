#!/bin/sh
# kafka-run-class.sh CLASS [ARGUMENT...]: runs a class of Kafka.
# KAFKA_HEAP_OPTS and KAFKA_OPTS are options of the JVM.
archive=/opt/kafka/kafka.jsa
[ ! -f "$archive" ] || archive_opts="-XX:SharedArchiveFile=$archive -Xshare:auto"
exec java ${KAFKA_HEAP_OPTS:--Xms512m -Xmx512m} $archive_opts -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:TieredStopAtLevel=4 \
	-Dlog4j2.configurationFile=/opt/kafka/config/log4j2.yaml $KAFKA_OPTS -cp '/opt/kafka/libs/*' "$@"
