#!/bin/sh
# Runs a broker once, when the image is built, to archive the classes it loads.
set -eu
cd /tmp
sed 's|/var/lib/kafka/data|/tmp/train|' /opt/kafka/config/server.properties >train.properties
id=AAAAAAAAAAAAAAAAAAAAAQ
/opt/kafka/bin/kafka-storage.sh format -t "$id" -c train.properties
KAFKA_OPTS=-XX:ArchiveClassesAtExit=/opt/kafka/kafka.jsa /opt/kafka/bin/kafka-server-start.sh train.properties >train.log 2>&1 &
pid=$!
n=0
until grep -q 'Kafka Server started' train.log; do
	n=$((n + 1))
	[ $n -lt 600 ] || { cat train.log; exit 1; }
	kill -0 $pid || { cat train.log; exit 1; }
	sleep 0.1
done
kill $pid
wait $pid || [ $? = 143 ]
[ -s /opt/kafka/kafka.jsa ] || { cat train.log; exit 1; }
rm -rf /tmp/train /tmp/train.* /tmp/hsperfdata_*
