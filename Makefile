# Everything runs from .venv, which `make` builds itself from requirements.lock (to work on it: requirements-dev.lock); only
# Python >= 3.11 and make are needed.
PYTHON ?= python3
UV := .uv/bin/uv
RUN := .venv/bin
TARGETS := flows tasks starsearch tests benchmarks chaos deployments

.PHONY: demo test lint bench fuzz test-vllm test-kubernetes test-kubernetes-hour chaos day soak audit up down deploy lock clean
.DEFAULT_GOAL := demo

demo: .venv/ready         ## set up, run the main job once, answer a question from what it stored
	@$(RUN)/python -m flows.demo

test: .venv/dev           ## set up, run the tests
	$(RUN)/pytest -n 4 --dist loadfile --no-loadscope-reorder # tests wait more than they compute: four on two cores

SECRETS := --disable-plugin KeywordDetector --disable-plugin HexHighEntropyString --disable-plugin Base64HighEntropyString
lint: .venv/dev           ## formatting, lint, types, who imports whom, no secrets
	$(RUN)/ruff format --check $(TARGETS)
	$(RUN)/ruff check $(TARGETS)
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache
	@git ls-files -z | xargs -0 $(RUN)/detect-secrets-hook $(SECRETS)

fuzz: .venv/dev           ## every parser of foreign bytes and every state machine for SECONDS of CPU time each, with cases that were not tried before; PARSER= for some
	@$(RUN)/python -m tests.fuzz $(or $(SECONDS),600) $(PARSER)

audit: $(UV)              ## every pinned dependency against the list of known vulnerabilities; asks osv.dev
	$(UV) tool run pip-audit@2.10.1 --vulnerability-service osv --disable-pip --require-hashes -r requirements-dev.lock

bench: .venv/dev          ## every benchmark beside its target: build/bench.json; BENCH=prefix for some
	@$(RUN)/python -m benchmarks $(BENCH)

test-vllm: .venv/dev      ## the same pipeline against a real vLLM that already serves (see docs/operations.md)
	$(RUN)/pytest -m vllm -s

test-kubernetes: .venv/dev ## the hour on a real Kubernetes API, with faults and bad clusters: an hour; the first time it builds the control plane
	$(RUN)/pytest -m kubernetes tests/k8s

test-kubernetes-hour: .venv/dev ## of these the hour alone: a schedule, a worker under its Role, eight Jobs and more
	$(RUN)/pytest -m kubernetes tests/k8s/test_cluster.py -k "not whatever_breaks"

chaos: .venv/dev          ## break everything by a schedule drawn from SEED for MINUTES, then prove that nothing was lost; KUBERNETES=1: by Jobs
	@$(RUN)/python -m chaos --seed $(or $(SEED),0) --minutes $(or $(MINUTES),5) --items $(or $(ITEMS),1000) $(if $(PLANT),--plant $(PLANT)) $(if $(GAP),--gap $(GAP)) $(if $(COMPARE),--compare) $(if $(KUBERNETES),--kubernetes)

day: .venv/dev            ## a day of the top 40,000 in virtual time, through flows, shards and workers; HOURS=24
	@$(RUN)/python -m benchmarks.day $(or $(HOURS),24)

soak: .venv/dev           ## a million items through one process, searched all the while: does anything grow? ITEMS=1000000
	@$(RUN)/python -m benchmarks.soak $(or $(ITEMS),1000000)

up: .venv/ready           ## Prefect's server, its UI, workers and every deployment on this machine; PORT=4200
	@$(RUN)/python deployments/one_machine.py up $(PORT)

down: .venv/ready         ## end what `make up` started, and nothing else
	@$(RUN)/python deployments/one_machine.py down

deploy: .venv/ready       ## register every deployment of prefect.yaml on the server at PREFECT_API_URL
	@test -n "$$PREFECT_API_URL" || { echo "set PREFECT_API_URL, such as http://127.0.0.1:4200/api, to the server to deploy to"; exit 3; }
	@$(RUN)/python deployments/set_up.py
	@DO_NOT_TRACK=1 $(RUN)/prefect --no-prompt deploy --all

COMPILE := pip compile -q --universal --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 --custom-compile-command "make lock"
lock: $(UV)               ## resolve pyproject.toml again into both lock files; LOCK= keeps what still fits
	$(UV) $(COMPILE) $(LOCK) --group dev pyproject.toml -o requirements-dev.lock
	$(UV) $(COMPILE) -c requirements-dev.lock --group build pyproject.toml -o requirements.lock
LOCK ?= --upgrade

clean:
	rm -rf .venv .uv build

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "StarSearch needs Python 3.11 or newer; choose one with: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .uv && .uv/bin/python -m pip -q --disable-pip-version-check install uv==0.13.9

define install
	@test -x $(RUN)/python || $(UV) venv -q --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	@VIRTUAL_ENV=.venv $(UV) pip sync -q --compile-bytecode --require-hashes $(1)
	@VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps --no-build-isolation --editable .
endef

# What was set up to work on it will do to run it.
.venv/ready: requirements.lock requirements-dev.lock pyproject.toml $(UV)
	@echo "setting up .venv (about 730 MB, once)"
	$(call install,$(if $(wildcard .venv/dev),requirements-dev.lock,requirements.lock))
	@touch $@ $(wildcard .venv/dev)

.venv/dev: requirements-dev.lock pyproject.toml $(UV)
	@echo "setting up .venv with what the tests need (about 1.1 GB, once)"
	$(call install,requirements-dev.lock)
	@touch $@ .venv/ready
