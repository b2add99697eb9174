# Verbs of the project. `make help` lists them. Nothing here asks a question.
# PYTHON chooses the interpreter of the virtual environment, VENV its folder.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo $(p))))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt
LOCK := pyproject.toml fcn_client/pyproject.toml constraints.txt

# ONNX Runtime must not report to its makers, see docs/operations.md.
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test clients ray check format proto sync monitoring dist bench bench-gpu fuzz soak lock sbom clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## set up and serve the shipped model: REST on 8000, gRPC on 8001 (CPU)
	$(BIN)/fcn serve

# As many test processes as cores, up to four; tests/conftest.py says who runs beside whom.
test: $(VENV)/.dev ## set up and run the whole test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4

clients: $(VENV)/.clients ## install other people's clients, which some tests run (in CI all do)

ray: $(VENV)/.ray ## install Ray, for tests/fault/test_ray.py

check: $(VENV)/.dev ## lint, format, types, import rules and what bandit finds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml cli fcn_client model service training

format: $(VENV)/.dev ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(BIN)/python ## generate the gRPC stubs again from proto/
	$(BIN)/python proto/generate.py

sync: $(VENV)/.dev ## make the client for threads again from the one for asyncio
	$(BIN)/python tools/make_sync.py

monitoring: $(VENV)/.dev ## make the Prometheus rules and the dashboard again from tools/
	$(BIN)/python -m tools.make_rules
	$(BIN)/python -m tools.make_dashboard
	$(BIN)/python -m tools.make_kubernetes

dist: $(VENV)/.dev ## build server and client of this commit into dist/, the same bytes everywhere
	$(BIN)/python -m tools.make_dist $(if $(RELEASE),--release)

bench: $(VENV)/.dev ## measure latency and the peers on this machine (half an hour)
	$(BIN)/python -m bench

bench-gpu: $(VENV)/.dev ## measure the networks and the server on this machine's GPU
	$(BIN)/python -m bench.gpu

fuzz: $(VENV)/.fuzz ## fuzz every reader of other people's bytes for MINUTES=10
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) --results bench/results/fuzz.json

soak: $(VENV)/.dev ## serve valid and hostile traffic for MINUTES=60, and watch answers and memory
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),60)

COMPILE := $(BIN)/pip-compile --quiet --upgrade --strip-extras --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-options
HASHED := $(COMPILE) --constraint constraints.txt --generate-hashes --allow-unsafe

# Of torch, the version alone: a build from a CPU-only index calls itself 2.x+cpu.
lock: $(VENV)/.dev ## choose new versions of the dependencies: rewrites the pins and their hashes
	$(COMPILE) --extra cpu --extra otel --extra ray --extra train --extra dev --output-file $(VENV)/lock.txt pyproject.toml
	{ echo "# Tested versions of extras cpu, otel, ray, train and dev. Made by 'make lock'."; \
		grep -E '^[a-z0-9._-]+==' $(VENV)/lock.txt | grep -vE '^(nvidia-|cuda-|triton==)' \
		| sed 's/+cpu$$//'; } > constraints.txt
	$(HASHED) --extra cpu --extra otel --output-file docker/requirements-cpu.txt pyproject.toml
	$(HASHED) --extra gpu --extra otel --output-file docker/requirements-gpu.txt pyproject.toml
	$(HASHED) --only-build-deps --build-deps-for wheel --output-file docker/requirements-build.txt pyproject.toml

# By a tool in an environment of its own, which needs many libraries.
sbom: $(VENV)/.sbom ## list what the container images contain, as CycloneDX: dist/sbom-*.json
	mkdir -p dist
	for kind in cpu gpu; do $(VENV)/sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --output-file dist/sbom-$$kind.json docker/requirements-$$kind.txt \
		|| exit 1; done

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) build dist *.egg-info fcn_client/build fcn_client/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras; a change of the pins or of pyproject.toml installs again.
$(VENV)/.serve: $(LOCK) | $(BIN)/python
	$(PIP) -e './fcn_client[progress]' -e '.[cpu]'
	@touch $@

$(VENV)/.dev: $(LOCK) | $(BIN)/python
	$(PIP) -e './fcn_client[progress]' -e '.[cpu,otel,train,dev]'
	@touch $@ $(VENV)/.serve

# In an environment of their own: they want older libraries than the project has.
$(VENV)/.clients: tests/acceptance/requirements.txt tests/acceptance/typescript/package-lock.json | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --disable-pip-version-check --no-input -r $<
	@if command -v npm >/dev/null; then \
		cp tests/acceptance/typescript/package*.json $(VENV)/clients/ && \
		npm ci --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/clients; \
	else echo "make: without npm the client in TypeScript is not tested: apt-get install npm"; fi
	@touch $@

# On top of the project's environment, which it leaves as it is: Ray wants many libraries.
$(VENV)/.ray: tests/acceptance/ray.txt constraints.txt | $(VENV)/.dev
	$(BIN)/python -m venv $(VENV)/ray
	$(BIN)/python -c 'import site, sys, sysconfig; \
		base = sysconfig.get_path("purelib"); \
		print("import site; site.addsitedir(%r)" % base)' \
		> "$$($(VENV)/ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(VENV)/ray/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
		-c constraints.txt -r $<
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) 'atheris>=3,<4'
	@touch $@

$(VENV)/.sbom: Makefile | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/sbom
	$(VENV)/sbom/bin/python -m pip install --quiet --disable-pip-version-check --no-input cyclonedx-bom==7.5.0
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: fcn needs Python 3.11 or newer, and found none:" \
		"install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: '$(PYTHON)' is not Python 3.11 or newer:" \
		"name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: '$(PYTHON)' cannot make a virtual environment:" \
		"on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
