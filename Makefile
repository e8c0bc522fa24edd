# The README's two commands are `make demo` and `make test`; `make help` lists the rest.
SHELL := bash
PROGRAMS := $(notdir $(wildcard cmd/*))
# go-nvml compiles with a page of deprecation warnings of NVIDIA's header.
export CGO_CFLAGS := -O2 -Wno-deprecated-declarations
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: all $(PROGRAMS) cloud demo test test-cloud race lint bench coverage score fuzz vuln release release-quick release-check test-packages test-image test-engines chaos test-deploy test-slurm help clean

all: $(PROGRAMS) ## build bin/replay, bin/trace, ...

$(PROGRAMS):
	go build -trimpath -o bin/$@ ./cmd/$@

cloud: ## the same with object storage (s3://, gs://, azblob://), in bin/cloud
	@for p in $(PROGRAMS); do echo "go build -tags cloud -o bin/cloud/$$p"; go build -trimpath -tags cloud -o bin/cloud/$$p ./cmd/$$p || exit 1; done

demo: replay ## build, then play a minute of a model that ships against the embedded engine
	@rm -rf run-demo
	@# Status 3 is a run on a busy machine: the summary says so, and it is no failure of the demo.
	bin/replay 'model:mooncake-conv?prompts=0.1&outputs=0.3' --duration 3m --speedup 3 -o run-demo/ || [ $$? -eq 3 ]

test: ## every test
	go test -timeout 30m ./...

race: ## the race detector on the concurrent packages
	go test -race ./replay/... ./internal/wire/... ./internal/metrics/... ./backends/... ./traceformat

lint: ## gofmt, go vet, staticcheck, go fix
	@out=$$(gofmt -l .); echo "$$out" >&2; test -z "$$out"
	go vet ./...
	$(STATICCHECK) ./...
	@out=$$(go fix -diff ./...); echo "$$out" >&2; test -z "$$out"

score: ## models of the public traces beside the acceptance table and noise floors, a few minutes
	go run ./synth/score/acceptance $(SCORE)

bench: ## the figures of docs/measurements.md, a few minutes
	bash testdata/bench/run.sh

coverage: ## how often the intervals of a comparison hold the truth, 35 CPU minutes
	go run ./internal/stats/coverage

FUZZTIME ?= 30s
FUZZPKGS ?= ./...
fuzz: ## each fuzz target of FUZZPKGS for FUZZTIME
	@set -e; for pkg in $$(go list $(FUZZPKGS)); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep ^Fuzz || true); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$pkg; done; done

RELEASE := cd packaging/release && go run . -root ../.. -out ../../dist
release: ## dist/: binaries, packages, container image, bill of materials, checksums
	$(RELEASE) $(if $(VERSION),-version $(VERSION))

release-quick: ## of that, this machine's static build, .deb and bill of materials, for a check in CI
	$(RELEASE) -quick

release-check: ## build the release twice, the second time from a clone without caches, and compare
	$(RELEASE) -check

vuln: ## known vulnerabilities in what is called, asked of vuln.go.dev
	bash .ci/vuln

test-packages: ## the .deb of dist/ in a fresh Debian: demo, units, removal (root)
	bash packaging/test-install.sh

test-image: ## the image of dist/ as pods run it: sidecars of docs/, jobs of replay kubernetes (root)
	python3 packaging/test-image.py

test-cloud: ## object storage, against the S3 server versitygw
	bash testdata/storage/setup-versitygw.sh
	go test -tags cloud -count 1 ./internal/objectstore

test-engines: replay ## real vLLM, SGLang and llama.cpp, where they are installed
	REPRISE_ENGINES=vllm,sglang,llamacpp go test -v -count 1 -timeout 60m -run 'Engine' ./cmd/replay ./cmd/capture

CHAOS ?= 10
chaos: ## CHAOS rounds of each kind of trouble: kills, full disks, clock steps, lossy networks, engines that fail
	REPRISE_CHAOS=$(CHAOS) go test -v -count 1 -timeout 60m -run 'Chaos' ./cmd/replay ./cmd/capture

test-deploy: ## manifests and Helm chart against Kubernetes' own types and Helm's renderer
	cd packaging/deploycheck && go vet ./... && go test ./...

test-slurm: replay report trace ## an array job of a real one-node Slurm, where it is installed
	bash testdata/slurm/test.sh || [ $$? -eq 77 ]

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

clean:
	rm -rf bin dist run-demo
