#!/usr/bin/env bash
# Makes sure that a Docker daemon answers: installs docker.io and starts dockerd
# where there is none. It does so only as root on Debian; anywhere else it says
# what is missing and fails. Safe to run again.
set -euo pipefail

log=${THRONG_DOCKERD_LOG:-/var/log/throng-dockerd.log}
wait_s=60

die() {
	echo "docker: $*" >&2
	exit 1
}

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

if command -v docker >/dev/null && answers; then
	echo "docker: $(docker version --format '{{.Server.Version}}') answers"
	exit 0
fi
[ -z "${DOCKER_HOST:-}" ] || die "nothing answers at DOCKER_HOST=$DOCKER_HOST"
[ "$(id -u)" = 0 ] || die "no daemon answers; start one, or run this as root to have it installed and started"
[ -f /etc/debian_version ] || die "no daemon answers; it is installed here only on Debian: install Docker by hand"

if ! command -v dockerd >/dev/null; then
	echo "docker: installing docker.io"
	out=$(mktemp)
	trap 'rm -f "$out"' EXIT
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io iptables; } >"$out" 2>&1 \
		|| { cat "$out" >&2; die "docker.io could not be installed"; }
fi
if ! answers; then
	echo "docker: starting dockerd, log in $log"
	# Of a session of its own: it outlives this script and its terminal.
	setsid nohup dockerd >"$log" 2>&1 </dev/null &
	pid=$!
	for ((i = 0; i < wait_s * 5; i++)); do
		answers && break
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.2
	done
fi
answers || { tail -n 15 "$log" >&2; die "dockerd does not run here; the end of its log is above"; }
echo "docker: $(docker version --format '{{.Server.Version}}') answers"
