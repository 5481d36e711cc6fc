# The tools that make or judge what is committed, each pinned in its one line.
CLANG         := clang-19
GOLANGCI_LINT := v2.15.0

# What the targets need beyond Go, as Debian packages.
TEST_PACKAGES     := curl wrk nghttp2-client iproute2 gunicorn nodejs node-ws systemd ngtcp2-client
BENCH_PACKAGES    := nginx libnginx-mod-stream haproxy wrk
GENERATE_PACKAGES := $(CLANG) $(CLANG:clang%=llvm%) libbpf-dev linux-libc-dev

PREFIX     ?= /usr/local
TESTFLAGS  ?=
BENCHFLAGS ?=
VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The version comes from VERSION; Go's own stamp fails where another user owns the clone.
export GOFLAGS += -buildvcs=false
export BPF2GO_CC := $(CLANG)

LINT := bin/tools/golangci-lint-$(GOLANGCI_LINT)

.DEFAULT_GOAL := build
.PHONY: build demo test check generate verifier faults soak quic foreign systemd jaeger collector dashboards conformance gates listeners cost figures claim capacity vips bench install clean help

build: ## build bin/baton and bin/baton-proxy
	CGO_ENABLED=0 go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ ./supervisor/cmd/baton ./proxy/cmd/baton-proxy

demo: build ## watch a proxy be replaced under load (as root by BPF, else in takeover mode)
	@exec bin/baton demo

test: build ## run every test; the kernel's need root
	@if [ "$$(id -u)" = 0 ]; then exec tests/install $(TEST_PACKAGES); fi; \
	echo "not root: the tests that load BPF programs or make network namespaces are left out; 'sudo make test' runs them"
	go test -count=1 -p 1 -timeout 10m $(TESTFLAGS) ./... # one package at a time: several of them load the machine

check: $(LINT) ## format, vet, lint and import rules, generated files, go.mod, licences
	@tests/install $(GENERATE_PACKAGES)
	$(LINT) run
	go vet ./...
	go mod tidy -diff
	tests/check

generate: ## compile the BPF programs; the result is committed
	@tests/install $(GENERATE_PACKAGES)
	go generate ./bpf/...

verifier: ## instructions and stack of each BPF program, as the verifier counts them (root)
	go test -count=1 -run TestVerifier -v ./bpf/...

soak: build ## 1,000 releases in a row: nothing may grow; sixty of one listener each; 100,000 operations on a balancer (root)
	BATON_TEST_OPERATIONS=100000 BATON_TEST_KERNEL_OPERATIONS=100000 go test -count=1 -parallel 12 -timeout 1h -run TestRandomOperations -v ./supervisor/balancer
	BATON_TEST_SOAK=1 go test -count=1 -timeout 2h -run TestThousandReleases -v ./tests/release
	BATON_RELEASES=60 go test -count=1 -timeout 1h -run TestSplitReleases -v ./tests/release

gates: build ## a hundred releases of the same again, and more of the gates' tests (root)
	BATON_TEST_GATES=1 go test -count=1 -timeout 30m -run 'TestSameAgainPasses|TestConservation|TestBadGenerations|TestBadLedgers' -v ./supervisor ./tests/packetpath

faults: build ## kill supervisors at each transition of a release, and 200 times at any moment of one, under load; and generations with full queues (root, half an hour)
	BATON_CRASHES=100 go test -count=1 -timeout 30m -run TestQueueOfACrashedGeneration -v ./supervisor
	BATON_KILLS=200 go test -count=1 -timeout 2h -run 'TestSupervisorKilledInReleases|TestSupervisorKilledInSplitReleases|TestSupervisorKilledAtEachTransition' -v ./tests/faults

quic: build ## QUIC at full length: 200 releases, all slots used twice, a minute of flips, Chromium; what steering costs, beside Caddy, which is built (root, network, half an hour)
	@tests/install $(TEST_PACKAGES) chromium
	BATON_TEST_STEERING=9 go test -count=1 -run TestDatagramCost -v ./bpf/reuseport
	BATON_RELEASES=200 BATON_ROUND=300 BATON_FLIPS=1m BATON_RATES=15 BATON_CADDY=1 BATON_RESETS=20 BATON_TEST_CHROMIUM=1 go test -count=1 -timeout 1h -v ./tests/quic

foreign: build ## Node.js, gunicorn and Go's net/http released 50 times under keep-alive load, then under clients by others (root, ten minutes)
	@tests/install $(TEST_PACKAGES)
	BATON_RELEASES=50 go test -count=1 -timeout 1h -v ./tests/foreign

systemd: build ## the units in deploy/systemd under a systemd that is PID 1 of its own namespaces, under load; what its store of descriptors costs (root, three minutes)
	@tests/install $(TEST_PACKAGES)
	BATON_TEST_STORE=1 go test -count=1 -timeout 10m -v ./tests/systemd

jaeger: build ## build Jaeger in a module of its own and show it a release (root, network, ten minutes)
	BATON_TEST_JAEGER=1 go test -count=1 -timeout 1h -run TestJaegerShowsARelease -v ./tests/receivers

collector: build ## build the OpenTelemetry Collector in a module of its own and show it a release (root, network, five minutes)
	BATON_TEST_COLLECTOR=1 go test -count=1 -timeout 1h -run TestCollectorShowsARelease -v ./tests/receivers

dashboards: ## hold deploy/dashboards and deploy/alerts against the types that Grafana publishes and the parser of Prometheus (network, three minutes)
	BATON_TEST_DASHBOARDS=1 go test -count=1 -timeout 1h -run TestDashboardsAreRead -v ./tests/receivers

conformance: ## h2spec's cases for HTTP/2, built in a module of its own; a minute of each fuzz target of the proxy (network, ten minutes)
	BATON_TEST_H2SPEC=1 go test -count=1 -timeout 10m -run '^TestH2Spec$$' -v ./proxy
	for target in proxy:FuzzRequests proxy:FuzzTraceparent proxy/listener:FuzzHead proxy/listener:FuzzH2Frames proxy/listener:FuzzFrames \
		proxy/config:FuzzParse proxy/config:FuzzIDKeys proxy/config:FuzzLongLists proxy/ledger:FuzzScribble; do \
		go test -run '^$$' -fuzz "^$${target#*:}$$" -fuzztime 1m ./$${target%:*} || exit 1; done

listeners: build ## 5,000 listeners on one port: how long start, release and stop take (root)
	BATON_TEST_LISTENERS=5000 go test -p 1 -count=1 -timeout 30m -run TestManyListeners -v ./supervisor ./tests/release

cost: ## what the account of requests costs the proxy, and what spans of the SDK would; what a request of HTTP/3 takes
	BATON_TEST_COST=40 go test -count=1 -timeout 30m -run '^(TestCost|TestHTTP3Cost)$$' -v ./proxy

vips: ## 1,000 VIPs and 1,000 reals of a balancer: how long start and reload take, and memory (root, three minutes)
	BATON_TEST_MANY=1000 go test -count=1 -timeout 30m -run TestManyVIPs -v ./supervisor/balancer

packets: ## nanoseconds that the balancer's program takes for a packet of each kind; a million random ones through it and a model (root, five minutes)
	BATON_TEST_SPEED=21 go test -count=1 -run '^TestSpeed$$' -v ./bpf/xdp
	BATON_TEST_PACKETS=1000000 go test -count=1 -timeout 30m -run '^TestRandomPackets$$' -v ./bpf/xdp

figures: ## draw docs/figures/maglev-disruption.svg again
	BATON_TEST_FIGURE=$(CURDIR)/docs/figures/maglev-disruption.svg go test -count=1 -run TestDisruption -v ./supervisor/balancer/maglev

claim: ## 800 connections through two balancers, one of which dies with a node; with ids and without (root, five minutes)
	BATON_TEST_CLAIM=400 go test -count=1 -timeout 30m -run 'TestBalancerAndNodeLost' -v ./tests/packetpath

capacity: ## what three nodes serve while they are replaced, drawn to docs/figures/capacity.svg (root, a minute)
	BATON_TEST_CAPACITY=$(CURDIR)/docs/figures/capacity.svg go test -count=1 -timeout 10m -run '^TestCapacity$$' -v ./tests/packetpath

bench: build ## what a release costs, and other ways of replacing a proxy beside it (root, 22 minutes)
	@tests/install $(BENCH_PACKAGES)
	go run ./tests/bench $(BENCHFLAGS)

install: build ## install the two binaries in PREFIX/bin (/usr/local/bin)
	install -D -t $(DESTDIR)$(PREFIX)/bin bin/baton bin/baton-proxy

clean: ## remove bin/
	rm -rf bin

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

$(LINT):
	@echo "building golangci-lint $(GOLANGCI_LINT), once (two minutes)"
	GOBIN=$(CURDIR)/bin/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT)
	mv bin/tools/golangci-lint $@
