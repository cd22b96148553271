#!/usr/bin/env bash
# Removes the containers, volumes and networks of all runs, those under way
# included, and the images of the roles. The images of Kafka, MySQL and Redis
# stay: docker rmi takes those.
set -euo pipefail

command -v docker >/dev/null && docker version >/dev/null 2>&1 || { echo "clean: no Docker daemon answers, so nothing of a run is left" >&2; exit 0; }
containers=$(docker ps -aq --filter label=throng.run)
[ -z "$containers" ] || docker rm -fv $containers >/dev/null
networks=$(docker network ls -q --filter label=throng.run)
[ -z "$networks" ] || docker network rm $networks >/dev/null
images=$(docker images -q --filter label=throng.role=image)
[ -z "$images" ] || docker rmi -f $images >/dev/null
echo "clean: removed $(echo $containers | wc -w) containers, $(echo $networks | wc -w) networks, $(echo $images | wc -w) images of roles"
