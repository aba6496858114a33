# Everything runs from .venv, which `make` builds itself from requirements.lock; only Python >= 3.11 and make are needed.
PYTHON ?= python3
UV := .uv/bin/uv
RUN := .venv/bin
TARGETS := flows tasks starsearch tests benchmarks deployments

.PHONY: demo test lint bench test-vllm deploy lock clean
.DEFAULT_GOAL := demo

demo: .venv/ready         ## set up, run the main job once, answer a question from what it stored
	@$(RUN)/python -m flows.demo

test: .venv/ready         ## set up, run the tests
	$(RUN)/pytest

lint: .venv/ready         ## formatting, lint, types, who imports whom
	$(RUN)/ruff format --check $(TARGETS)
	$(RUN)/ruff check $(TARGETS)
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

bench: .venv/ready        ## every benchmark beside its target: build/bench.json; BENCH=prefix for some
	@$(RUN)/python -m benchmarks $(BENCH)

test-vllm: .venv/ready    ## the same pipeline against a real vLLM that already serves (see docs/operations.md)
	$(RUN)/pytest -m vllm -s

deploy: .venv/ready       ## register every deployment of prefect.yaml on the server at PREFECT_API_URL
	@test -n "$$PREFECT_API_URL" || { echo "set PREFECT_API_URL, such as http://127.0.0.1:4200/api, to the server to deploy to"; exit 3; }
	@$(RUN)/python deployments/set_up.py
	@DO_NOT_TRACK=1 $(RUN)/prefect --no-prompt deploy --all

lock: $(UV)               ## resolve pyproject.toml again into requirements.lock
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 \
	  --custom-compile-command "make lock" --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .uv build

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "StarSearch needs Python 3.11 or newer; choose one with: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .uv && .uv/bin/python -m pip -q --disable-pip-version-check install uv==0.13.9

.venv/ready: requirements.lock pyproject.toml $(UV)
	@echo "setting up .venv (about 1 GB, once)"
	@test -x $(RUN)/python || $(UV) venv -q --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	@VIRTUAL_ENV=.venv $(UV) pip sync -q --compile-bytecode --require-hashes requirements.lock
	@VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps --no-build-isolation --editable .
	@touch $@
