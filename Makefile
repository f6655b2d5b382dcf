# Everything that a person or a CI job calls. `make` alone lists it.

SHELL := /bin/bash
PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help install lab lab-down lab-status lab-reset lab-clean airflow airflow-down down demo test test-versions test-faults lint audit bench \
	compose-base compose-up compose-demo compose-down test-compose docker

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' \
		| while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

install: .venv/installed ## packages of packages.txt, and .venv from requirements.lock

.venv/installed: requirements.lock packages.txt scripts/install.sh
	@bash scripts/install.sh

lab: install ## a Patroni cluster of three on this machine; starts it, or repairs what is stopped
	@$(PYTHON) -m lab up

lab-down: install ## stop the cluster, keep its data
	@$(PYTHON) -m lab down

lab-status: install ## show its members
	@$(PYTHON) -m lab status

lab-reset: install ## set the cluster back to its first day
	@$(PYTHON) -m lab reset

lab-clean: install ## stop the cluster and remove its data
	@$(PYTHON) -m lab clean

airflow: lab ## Airflow on this machine, working on the lab
	@$(PYTHON) -m lab.standalone start

airflow-down: install ## stop Airflow
	@$(PYTHON) -m lab.standalone stop

down: airflow-down lab-down ## stop Airflow and the lab

demo: airflow ## a deployment that succeeds and one that is rolled back, on the lab
	@$(PYTHON) -m lab.demo

test: lab ## unit and cluster tests and a spread of the faults, on the lab
	@$(PYTHON) -m pytest

test-versions: install ## PostgreSQL 11, 13, 14, 16 to 18, old Patroni, other layouts; CASES="postgresql-18 ..." picks some
	@$(PYTHON) -m lab.versions test $(CASES)

test-faults: lab ## break every step on purpose, and the cluster tests that take minutes; CASES="rollback and ssh" picks some
	@BLUEGREEN_FAULTS=all $(PYTHON) -m pytest -q tests/faults tests/cluster -m "faults or whole" $(if $(CASES),-k "$(CASES)"); code=$$?; \
		$(PYTHON) -m tests.faults.summary && exit $$code

lint: install ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

audit: install ## look the locked packages up among known vulnerabilities
	@bash scripts/audit.sh

bench: lab ## measure checkpoint and rollback on the lab
	@$(PYTHON) bench/bench.py

docker: install ## Docker Engine, where none runs and it may be installed
	@bash scripts/docker.sh

compose-base: docker ## the image that the others begin with: pulled, else made from Debian's packages; REFRESH=1 anew
	@bash scripts/base_image.sh

compose-up: compose-base ## the production-like stack; PROFILES=lab,celery PORT=8080 choose, REFRESH=1 builds anew
	@$(PYTHON) -m lab.compose up

compose-demo: compose-up ## the two deployments on it, while a client writes through HAProxy
	@$(PYTHON) -m lab.compose demo

compose-down: install ## stop it; VOLUMES=1 removes its data, keys and secrets too
	@$(PYTHON) -m lab.compose down $(if $(filter-out 0 no false,$(VOLUMES)),--volumes) $(if $(FROM),--from "$(FROM)")

test-compose: compose-base ## all that needs separate hosts, and the cluster tests, on a stack made anew
	@end() { code=$$?; [ ! -e compose/run/made-by-tests ] || $(PYTHON) -m lab.compose down --volumes || code=1; exit $$code; }; \
		trap end EXIT; trap "exit 130" INT TERM; code=0; \
		PROFILES=lab,celery $(PYTHON) -m lab.compose fresh || exit; \
		export LAB_RUN=compose/run BLUEGREEN_FAULTS=all; \
		$(PYTHON) -m pytest tests/compose tests/cluster $(if $(CASES),-k "$(CASES)") || code=$$?; \
		echo "The same Airflow with LocalExecutor"; \
		PROFILES=lab $(PYTHON) -m lab.compose up --tests && $(PYTHON) -m pytest -o cache_dir=.pytest_cache/local tests/compose/test_airflow.py || code=$$?; \
		exit $$code
