# Everything a developer or CI runs. `make` alone lists the targets.
# Needs Go and make; `make check` and `make test-race` need a C compiler too,
# for the race detector.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# One set of build flags for the binaries, the tests, vet and the linter, so
# that they share one build cache; only -race has its own.
export CGO_ENABLED := 0
override GOFLAGS := $(strip $(filter-out -trimpath,$(GOFLAGS)) -trimpath)
export GOFLAGS

GO      ?= go
LINT    := $(GO) tool -modfile=.ci/tools.mod golangci-lint
TIMEOUT ?= 10m

# Settings of `make sim`; only those that are set are passed on.
SCENARIO ?=
STACK    ?=
TARGET   ?=
SCALE    ?=
DURATION ?=
SEED     ?=
OUT      ?=
FLAGS    ?=

# A scenario is a name under scenarios/ or the path of a file.
scenario_file = $(if $(findstring /,$(SCENARIO))$(filter %.yaml %.yml,$(SCENARIO)),$(SCENARIO),scenarios/$(SCENARIO).yaml)
flag          = $(if $(strip $($(1))),--$(2) '$(strip $($(1)))')

FUZZTIME  ?= 1m
BENCH     ?= .
BENCHTIME ?= 1s
COUNT     ?= 1
BENCH_OUT ?= reports/bench/latest.txt

# What `make check` does, in this order: what reads the code, then what runs it.
CHECK_CODE := mod fmt vet build lint
CHECK_RUNS := test test-race smoke milli

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make sim SCENARIO=name [STACK=embedded|containers|external|auto] [SCALE=1/5000]"
	@echo "           [DURATION=60s] [SEED=1] [OUT=folder] [TARGET=file, for external]"

.PHONY: sim
sim: ## Runs a scenario and writes its report: make sim SCENARIO=groups_peak
ifeq ($(strip $(SCENARIO)),)
	@echo "Say which scenario: make sim SCENARIO=name"
	@$(MAKE) -s scenarios
	@exit 1
else
	@$(MAKE) -s build
	bin/throng run '$(scenario_file)'$(if $(strip $(STACK)), $(call flag,STACK,stack))$(if $(strip $(TARGET)), $(call flag,TARGET,target))$(if $(strip $(SCALE)), $(call flag,SCALE,scale))$(if $(strip $(DURATION)), $(call flag,DURATION,duration))$(if $(strip $(SEED)), $(call flag,SEED,seed))$(if $(strip $(OUT)), $(call flag,OUT,out)) $(FLAGS)
endif

.PHONY: scenarios
scenarios: ## Lists the scenarios and the question of each
	@for f in scenarios/*.yaml; do \
		[ -f "$$f" ] || continue; \
		awk -v name="$$(basename "$$f" .yaml)" '!/^#/ || text ~ /[?]$$/ { exit } { sub(/^#+ */, ""); sub(/^Question: */, ""); text = text " " $$0 } \
			END { printf "  %-16s%s\n", name, text }' "$$f"; \
	done

.PHONY: build
build: ## Builds bin/throng (harness) and bin/chatd (backend), static
	@$(GO) build -o bin/ ./sim/cmd/throng ./system/cmd/chatd

.PHONY: test
test: ## Runs all tests
	$(GO) test -timeout $(TIMEOUT) ./...
	@[ -d testdata/client/node_modules ] || echo "NOT RUN by this: the client in JavaScript; \`make client\` fetches what it needs" >&2
	@[ "$$THRONG_DOCKER" = 1 ] || echo "NOT RUN by this: the tests that need Docker; make test-containers runs them" >&2

# What is heavy is compiled before the first test starts: on a small machine a
# compiler beside a test that watches the clock makes the test fail. -short
# leaves out the tests that only compute: in one goroutine nothing can race.
.PHONY: test-race
test-race: export CGO_ENABLED := 1
test-race: ## Runs the tests that can race with the race detector (needs a C compiler)
	$(GO) build -race ./...
	$(GO) test -race -short -vet=off -count=1 -timeout $(TIMEOUT) ./...

# Runs the targets $(1) one after the other and says how long each took.
define steps
	@total=$$(date +%s); times=; \
	for step in $(1); do \
		echo "== $$step"; start=$$(date +%s); \
		$(MAKE) --no-print-directory $$step || { echo "== $$step failed"; exit 1; }; \
		times="$$times$$step $$(( $$(date +%s) - start )) s, "; \
	done; \
	echo "== $@ passed: $${times}in all $$(( $$(date +%s) - total )) s"
endef

.PHONY: check
check: ## Everything: mod, fmt, vet, build, lint, test, test-race, smoke, milli
	$(call steps,$(CHECK_CODE) $(CHECK_RUNS))

.PHONY: check-code
check-code: ## The part of check that runs nothing
	$(call steps,$(CHECK_CODE))

.PHONY: check-runs
check-runs: ## The part of check that runs the tests and the smoke scenario
	$(call steps,$(CHECK_RUNS))

.PHONY: mod
mod: ## Checks that go.mod lists what is used, no more and no less
	$(GO) mod tidy -diff

.PHONY: fmt
fmt: ## Checks that every Go file is formatted
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './.*')); \
	[ -z "$$unformatted" ] || { echo "gofmt -w these:"; echo "$$unformatted"; exit 1; }

.PHONY: vet
vet: ## Runs go vet
	$(GO) vet ./...

.PHONY: lint
lint: ## Runs the linters of .golangci.yml
	$(LINT) run

.PHONY: smoke
smoke: build ## Runs scenarios/smoke.yaml; inconclusive twice counts as failed
	@STRICT=1 TRIES=2 .ci/gate smoke --stack embedded

# Where the machine is too slow or too busy for it that is a warning: what it can
# carry is for `throng breakpoint` to say. Anything lost fails.
.PHONY: milli
milli: build ## Runs a minute of milli_whatsapp at an eight-thousandth
	@.ci/gate milli_whatsapp --stack embedded --scale 1/8000 --duration 60s

# The lock file names versions and their hashes; no script of a package runs.
.PHONY: client
client: ## Fetches the libraries of the client in JavaScript (testdata/client), for its test
	@command -v npm >/dev/null || { echo "client: needs Node.js and npm"; exit 1; }
	@npm --prefix testdata/client ci --ignore-scripts --no-audit --no-fund --silent

.PHONY: bench
bench: ## Runs the benchmarks; BENCH= BENCHTIME= COUNT= BENCH_OUT=
	@packages=$$(grep -rl --include='*_test.go' '^func Benchmark' sim system | xargs -n 1 dirname | sort -u | sed 's|^|./|'); \
	[ -n "$$packages" ] || { echo "no package has benchmarks"; exit 1; }; \
	mkdir -p "$$(dirname '$(BENCH_OUT)')"; \
	{ $(GO) version; \
	  echo "commit: $$(git describe --always --dirty 2>/dev/null || echo unknown)"; \
	  echo "date: $$(date -u +%Y-%m-%d)"; \
	  $(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem -count $(COUNT) -timeout 30m $$packages \
		|| echo "FAILED"; \
	} 2>&1 | tee '$(BENCH_OUT)' | awk -f .ci/bench.awk

# Builds nothing of others: it runs what the user has installed, and says how to.
.PHONY: bench-peers
bench-peers: ## Runs k6 and Centrifugo, if installed, beside throng on the same work, into reports/peers; FLAGS=
	@$(GO) build -o bin/ ./sim/cmd/peers
	bin/peers $(FLAGS)

.PHONY: fuzz
fuzz: ## Runs each fuzz target for FUZZTIME (1m)
	@targets=$$(grep -rn --include='*_test.go' '^func Fuzz' sim system | sed 's|^\(.*\)/[^/]*:[0-9]*:func \(Fuzz[A-Za-z0-9_]*\).*|\1 \2|'); \
	[ -n "$$targets" ] || { echo "no package has fuzz targets"; exit 1; }; \
	echo "$$targets" | while read -r dir name; do \
		echo "== $$dir $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) "./$$dir" || exit 1; \
	done

.PHONY: proto
proto: ## Generates the Go code of the .proto files
	PATH="$(CURDIR)/bin/tools:$$PATH" sh system/internal/rpc/generate.sh

.PHONY: proto-tools
proto-tools: ## Installs what `make proto` needs into bin/tools
	GOBIN="$(CURDIR)/bin/tools" $(GO) install github.com/bufbuild/buf/cmd/buf@v1.75.0
	GOBIN="$(CURDIR)/bin/tools" $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	GOBIN="$(CURDIR)/bin/tools" $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	GOBIN="$(CURDIR)/bin/tools" $(GO) install github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto@v0.6.1-0.20240319094008-0393e58bdf10

# What the containers target needs. THRONG_IMAGE_KAFKA, _MYSQL, _REDIS and _S3 name
# other images; where they name all four there is nothing to build.
.PHONY: docker
docker: ## Makes sure that a Docker daemon answers (root on Debian: installs and starts it)
	@system/deploy/docker.sh

IMAGE ?= throng/chatd:dev

.PHONY: image
image: build ## Builds the image of both binaries for a cluster: IMAGE=registry/name:tag
	tar -c bin/chatd bin/throng scenarios system/deploy/Dockerfile | docker build -q -f system/deploy/Dockerfile -t '$(IMAGE)' -

.PHONY: images
images: docker ## Builds the images of Kafka, MySQL, Redis and an S3 server, without an image registry
	@$(if $(and $(THRONG_IMAGE_KAFKA),$(THRONG_IMAGE_MYSQL),$(THRONG_IMAGE_REDIS),$(THRONG_IMAGE_S3)),echo "images: the environment names all four",system/deploy/images/build.sh)

.PHONY: test-containers
test-containers: images ## Tests of the containers target, and of the adapters on MySQL, S3, Redis and Kafka
	THRONG_DOCKER=1 $(GO) test -count=1 -timeout 20m ./sim/target/containers/

.PHONY: clean-containers
clean-containers: ## Removes what runs in containers have left, runs under way included
	@system/deploy/clean.sh

.PHONY: clean
clean: ## Removes bin/; run folders under reports/runs/ stay
	rm -rf bin
