# The README's two commands are `make demo` and `make test`; `make help` lists the rest.
SHELL := bash
PROGRAMS := $(notdir $(wildcard cmd/*))
# go-nvml compiles with a page of deprecation warnings of NVIDIA's header.
export CGO_CFLAGS := -O2 -Wno-deprecated-declarations
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: all $(PROGRAMS) cloud demo test test-cloud race lint bench coverage score fuzz test-engines help clean

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
	go test ./...

race: ## the race detector on the concurrent packages
	go test -race ./replay/... ./internal/wire/... ./internal/metrics/... ./backends/... ./traceformat

lint: ## gofmt, go vet, staticcheck, go fix
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	$(STATICCHECK) ./...
	@test -z "$$(go fix -diff ./... | tee /dev/stderr)"

score: ## models of the public traces beside the acceptance table and noise floors, a few minutes
	go run ./synth/score/acceptance $(SCORE)

bench: ## the figures of docs/measurements.md, a few minutes
	bash testdata/bench/run.sh

coverage: ## how often the intervals of a comparison hold the truth, about an hour
	go run ./internal/stats/coverage

FUZZTIME ?= 30s
fuzz: ## each fuzz target for FUZZTIME
	@set -e; for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep ^Fuzz || true); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$pkg; done; done

test-cloud: ## object storage, against the S3 server versitygw
	bash testdata/storage/setup-versitygw.sh
	go test -tags cloud -count 1 ./internal/objectstore

test-engines: replay ## real vLLM, SGLang and llama.cpp, where they are installed
	REPRISE_ENGINES=vllm,sglang,llamacpp go test -v -count 1 -timeout 60m -run 'Engine' ./cmd/replay ./cmd/capture

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

clean:
	rm -rf bin run-demo
