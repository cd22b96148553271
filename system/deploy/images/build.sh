#!/usr/bin/env bash
# Builds the images of the containers target for machines that reach no image
# registry: a Debian base by debootstrap, on it Redis and the JRE from Debian
# stable, MySQL from Debian unstable, Apache Kafka from its Maven artifacts, and
# an S3-compatible server from its Go module. They are started like the public
# images (apache/kafka, mysql, redis, versity/versitygw), so that the target takes
# either.
#
#   build.sh           builds what is missing or out of date
#   build.sh --force   builds everything again
#
# An image is out of date when the files that it is made from have changed: their
# hash is its label throng.content. Needs root, a Docker daemon, Debian's apt, Go
# and, for Kafka, Maven; debootstrap and Maven are installed where they are missing.
# Mirrors and repositories are those that apt, Maven and Go of this machine use;
# THRONG_DEBIAN_MIRROR names another mirror of Debian.
set -euo pipefail
cd "$(dirname "$0")"

suite=bookworm
kafka=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' kafka/pom.xml)
redis=7
mysql=9
s3=1.8.0

force=
case "${1:-}" in
"") ;;
--force) force=1 ;;
*) echo "usage: build.sh [--force]" >&2; exit 64 ;;
esac

work=
began=$SECONDS
say() { printf 'images: %3d s  %s\n' $((SECONDS - began)) "$*"; }
die() {
	echo "images: $*" >&2
	exit 1
}
# quietly NAME COMMAND...: the output is shown only when the command fails.
quietly() {
	local log="$work/$1.log"
	shift
	"$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2; die "failed: $*"; }
}

# content DIR: the hash of what an image is made from.
content() { (cat build.sh; find "$1" -type f | LC_ALL=C sort | xargs cat) | sha256sum | cut -c1-16; }
base_content() { { echo "$suite"; sed -n '/^# base begins/,/^# base ends/p' build.sh; } | sha256sum | cut -c1-16; }
label() { docker image inspect --format '{{index .Config.Labels "throng.content"}}' "$1" 2>/dev/null || true; }

# needs IMAGE HASH: whether it must be built.
needs() { [ -n "$force" ] || [ "$(label "$1")" != "$2" ]; }

find_mirror() {
	mirror=${THRONG_DEBIAN_MIRROR:-}
	[ -n "$mirror" ] && return
	command -v apt-get >/dev/null || die "no apt here: images are built on Debian, elsewhere pull the public ones"
	mirror=$(apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		awk -F'|' '$2 !~ /-security|-updates/ && ($1 == "Debian" || $1 ~ /ORIGIN/ || $1 == "") { print $3; exit }')
	[ -n "$mirror" ] || die "apt names no mirror of Debian; set THRONG_DEBIAN_MIRROR"
	local proxy
	proxy=$(apt-config shell p Acquire::http::Proxy | sed "s/^p='\(.*\)'$/\1/")
	if [ -n "$proxy" ]; then export http_proxy=${http_proxy:-$proxy}; fi
}

install_missing() { # COMMAND PACKAGE
	command -v "$1" >/dev/null && return
	say "installing $2"
	quietly "apt-$2" sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2"
}

# base begins
# No manuals, documents and translations, now and in what is installed later.
build_base() {
	local root=$work/base
	quietly debootstrap debootstrap --variant=minbase "$suite" "$root" "$mirror"
	printf 'path-exclude=/usr/share/%s/*\n' doc man info locale lintian >"$root/etc/dpkg/dpkg.cfg.d/throng"
	printf 'force-unsafe-io\n' >>"$root/etc/dpkg/dpkg.cfg.d/throng"
	rm -rf "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
	tar -C "$root" --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -c . |
		docker import --change "LABEL throng.content=$1" - "throng/debian:$suite" >/dev/null
	rm -rf "$root"
}
# base ends

build_image() { # NAME VERSION HASH CONTEXT
	quietly "$1" docker build ${force:+--no-cache} --force-rm --network host --build-arg "base=throng/debian:$suite" --build-arg "mirror=$mirror" \
		--build-arg http_proxy --label "throng.content=$3" --label throng.image=true -t "throng/$1:$2" "$4"
	say "throng/$1:$2, $(($(docker image inspect --format '{{.Size}}' "throng/$1:$2") / 1000000)) MB"
}

# build_kafka HASH: the artifacts are fetched by this machine's Maven.
build_kafka() {
	local context=$work/kafka-context
	cp -r kafka "$context"
	quietly maven mvn -q -B -f kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$context/libs"
	build_image kafka "$kafka" "$1" "$context"
}

# build_s3 HASH: the binary is built by this machine's Go.
build_s3() {
	local context=$work/s3-context
	cp -r s3 "$context"
	quietly s3-binary env CGO_ENABLED=0 GOFLAGS=-trimpath "GOBIN=$context" go install "github.com/versity/versitygw/cmd/versitygw@v$s3"
	build_image s3 "$s3" "$1" "$context"
}

docker version >/dev/null 2>&1 || die "no Docker daemon answers: make docker"
base_hash=$(base_content)
hash_of() { echo "$base_hash-$(content "$1")"; }
todo=()
for image in "kafka:$kafka" "mysql:$mysql" "redis:$redis" "s3:$s3"; do
	if needs "throng/$image" "$(hash_of "${image%%:*}")"; then todo+=("$image"); fi
done
if [ ${#todo[@]} -eq 0 ]; then
	say "all are up to date"
	exit 0
fi

[ "$(id -u)" = 0 ] || die "building needs root (debootstrap); or pull the public images"
work=$(mktemp -d "${TMPDIR:-/tmp}/throng-images.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
find_mirror
if needs "throng/debian:$suite" "$base_hash"; then
	install_missing debootstrap debootstrap
	say "Debian $suite, by debootstrap"
	build_base "$base_hash"
fi
pids=()
for image in "${todo[@]}"; do
	name=${image%%:*}
	say "building throng/$image"
	if [ "$name" = kafka ]; then
		install_missing mvn maven
		build_kafka "$(hash_of kafka)" &
	elif [ "$name" = s3 ]; then
		build_s3 "$(hash_of s3)" &
	else
		build_image "$name" "${image#*:}" "$(hash_of "$name")" "$name" &
	fi
	pids+=($!)
done
failed=
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
[ -z "$failed" ] || die "not all images could be built"
docker image prune -f --filter label=throng.image=true >/dev/null # those that were replaced
say "done"
