#!/bin/sh
# kafka-storage.sh format -t CLUSTER_ID -c server.properties: prepares the data folder.
exec /opt/kafka/bin/kafka-run-class.sh kafka.tools.StorageTool "$@"
