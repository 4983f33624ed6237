# Everything starts here: `make run` and `make test` do all the set-up on a fresh machine.
# A target's comment after ## is its line in `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell deploy/find-python)
BIN := .venv/bin
# Keeps pip quiet and the installation inside the checkout.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help run demo test test-long check lint types proto proto-check buf imports permissions conformance format lock clean check-deploy audit-dependencies scan-secrets scan-images release-image buf-breaking images pin-images test-compose bench-auth bench-costs bench-datasets bench-gate bench-sealing bench-inference

help: ## List every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Casemate needs Python 3.11 or newer: install it, or name it with PYTHON=…" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "This Python has no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }

.venv/run.stamp: requirements/run.txt pyproject.toml | .venv/bin/python
	@echo "Installing what requirements/run.txt locks (once; about a minute)"
	@$(PIP) --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev.stamp: requirements/dev.txt .venv/run.stamp
	@echo "Installing what requirements/dev.txt locks"
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

run: .venv/run.stamp ## Start auth, inference and datasets with a database and certificates; Ctrl-C stops all
	@exec $(BIN)/casemate up $(if $(AUDIENCE),--audience '$(AUDIENCE)')

demo: .venv/run.stamp ## Run the whole story, thefts and tampering included, on throw-away state
	@exec $(BIN)/casemate demo

test: .venv/dev.stamp ## Run the tests (a real PostgreSQL and real mTLS; no set-up needed)
	@deploy/install-softhsm
	@exec $(BIN)/python -m pytest -q -m "not long" --numprocesses auto --dist loadfile

test-long: .venv/dev.stamp ## Run soaks and kill rounds (an hour), and record what they came to in docs/records/
	@mkdir -p docs/records
	@set -o pipefail; { date -u +%F; git rev-parse --short HEAD; \
	  $(BIN)/python -c 'from bench.report import hardware; print(hardware())'; } | tee docs/records/test-long.txt
	@set -o pipefail; $(BIN)/python -m pytest -q -m long --timeout=3600 -rA --show-capture=no \
	  | tee >(grep -E '^(RECORD|PASSED|FAILED|ERROR|NOT RUN|[0-9]+ (passed|failed))' >>docs/records/test-long.txt)

check: lint types imports buf proto-check ## Everything that needs no running: ruff, mypy, buf, stubs, import walls

lint: .venv/dev.stamp ## ruff: style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: .venv/dev.stamp ## mypy --strict
	@$(BIN)/mypy

imports: .venv/dev.stamp ## import-linter: which room may use which
	@$(BIN)/lint-imports --no-cache

buf: .venv/dev.stamp ## buf: proto style and format
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code

proto: .venv/dev.stamp ## Write the stubs again from protos/
	@$(BIN)/python protos/generate.py

proto-check: proto ## Fail when the committed stubs are not what protos/ gives
	@git diff --exit-code --stat -- 'src/casemate/*/v*/' && test -z "$$(git status --porcelain -- 'src/casemate/*/v*/')"

buf-breaking: .venv/dev.stamp ## Fail when a proto breaks callers of AGAINST (a commit; the last release's)
	@$(BIN)/buf breaking --against ".git#ref=$$(git rev-parse --verify '$(AGAINST)^{commit}')"

.foreign/deploy.stamp: requirements/deploy.txt .venv/dev.stamp
	@echo "Installing what requirements/deploy.txt locks (once)"
	@mkdir -p .foreign && $(BIN)/uv venv --quiet --clear --python $(BIN)/python .foreign/deploy
	@$(BIN)/uv pip install --quiet --require-hashes --python .foreign/deploy/bin/python -r requirements/deploy.txt
	@touch $@

check-deploy: .foreign/deploy.stamp ## Judge manifests and workflows: schemas, checkov, zizmor
	@deploy/check-manifests .foreign/deploy/bin

audit-dependencies: .foreign/deploy.stamp ## Known weaknesses of what is locked (needs the package index's advisories, or OSV's)
	@deploy/audit-dependencies .foreign/deploy/bin run dev auth datasets inference tools aws build deploy

scan-secrets: .foreign/deploy.stamp ## Fail when a file that git knows holds what looks like a secret
	@deploy/scan-secrets .foreign/deploy/bin

scan-images: images ## Known weaknesses of the images, and their bills of materials in build/sbom (needs trivy)
	@deploy/scan-images

release-image: ## Build, scan, push and sign IMAGE for REPOSITORY as VERSION (the release workflow's)
	@deploy/release-image "$(IMAGE)" "$(REPOSITORY)" "$(VERSION)" "$(OUTPUT)"

conformance: .venv/dev.stamp ## Write docs/conformance.md again from a running service
	@WRITE_CONFORMANCE=1 $(BIN)/python -m pytest -q tests/services/inference/test_conformance.py

permissions: .venv/run.stamp ## Write docs/permissions.md again from the protos' policies
	@$(BIN)/python protos/permissions.py

format: .venv/dev.stamp ## Format code and protos
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/buf format -w

lock: .venv/dev.stamp ## Lock requirements/*.txt by hash again (needs a package index)
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 requirements/run.in -o requirements/run.txt
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 -c requirements/run.txt requirements/dev.in -o requirements/dev.txt
	@for name in build tools auth datasets inference aws; do \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 -c requirements/run.txt requirements/$$name.in -o requirements/$$name.txt; done
	@for name in kserve mlserver pytriton deploy model-signing; do \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 requirements/$$name.in -o requirements/$$name.txt; done

images: ## Build the container images: auth, datasets, inference, tools, backup, postgres
	@deploy/images/build

pin-images: ## Write deploy/images/pins.env: the base images by digest, as the registry has them now
	@deploy/images/pin

test-compose: .venv/dev.stamp ## Build the images, run docker-compose.yml, tell the story on it, break it, take it down
	@exec deploy/test-compose

bench-auth: .venv/run.stamp ## Tokens a second, and how soon a revocation is everywhere (JSON=1)
	@exec $(BIN)/python -m bench.auth

bench-costs: .venv/run.stamp ## What each protection costs on this machine (JSON=1 for one JSON object)
	@exec $(BIN)/python -m bench.costs

.foreign/model-signing.stamp: requirements/model-signing.txt .venv/dev.stamp
	@echo "Installing what requirements/model-signing.txt locks (once)"
	@mkdir -p .foreign && $(BIN)/uv venv --quiet --clear --python $(BIN)/python .foreign/model-signing
	@$(BIN)/uv pip install --quiet --require-hashes --python .foreign/model-signing/bin/python -r requirements/model-signing.txt
	@touch $@

bench-datasets: .foreign/model-signing.stamp ## Datasets from a file to sealed rows and back, beside COPY, Flight and model-signing (minutes; JSON=1)
	@exec $(BIN)/python -m bench.datasets

bench-gate: .venv/run.stamp ## What each layer in front of a method costs, and what garbage does (minutes; JSON=1)
	@exec $(BIN)/python -m bench.gate

bench-sealing: .venv/run.stamp ## What sealing rows costs beside PostgreSQL, and beside pgcrypto where that is installed
	@exec $(BIN)/python -m bench.sealing

bench-inference: .venv/dev.stamp ## Inference against a bare gRPC server, batching, overload (JSON=1 for one JSON object)
	@exec $(BIN)/python -m bench.inference

clean: ## Remove the environment and caches; keeps .casemate (keys and data)
	@rm -rf .venv .foreign .mypy_cache .ruff_cache .hypothesis
