# Two commands set everything up on a fresh Debian or Ubuntu machine: make demo, make test.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test faults production bench lint format install system schemas lock clean

demo: install system            ## move the lab's guest from its vCenter to KVM and show the proof
	./hyperflow demo

test: install system            ## every test, the real migration included
	$(PYTHON) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

faults: install system          ## whole runs and a whole wave while all around them do their worst; on a quiet machine
	$(PYTHON) -m pytest -m night

production: install system      ## docker-compose.yaml brought up for real on a Docker engine, a wave, a worker killed
	lab/install-packages debian-archive-keyring debootstrap docker-compose docker.io
	$(PYTHON) -m pytest -m production

bench: install system           ## measure against the usual tools; some names only: make bench ONLY="convert_qcow2 fix"
	lab/install-packages curl e2fsprogs nbdkit openssl postgresql virt-v2v
	PYTHONPATH=plugins:. $(PYTHON) -m bench $(ONLY)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON) -c 'import sys; from lab import vcenter; sys.exit(vcenter.unformatted() or 0)'

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

install: $(STAMP)               ## the virtual environment, from the locked requirements

$(STAMP): requirements.txt
	@command -v python3 >/dev/null || lab/install-packages python3 python3-venv
	@python3 -c 'import ensurepip' 2>/dev/null || lab/install-packages python3-venv
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(PYTHON) -r requirements.txt
	touch $@

system:                         ## what the lab needs of the distribution
	lab/install-packages $$(grep -v '^#' lab/packages.txt)

schemas: install                ## JSON Schemas from the models, docs/errors.md from the catalogue
	PYTHONPATH=plugins $(PYTHON) -m hyperflow.manifest.schema
	PYTHONPATH=plugins $(PYTHON) -m hyperflow.plans.schema
	PYTHONPATH=plugins $(PYTHON) -m hyperflow.errors.page

COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url

lock: install                   ## requirements.txt and requirements-production.txt from the .in files
	$(COMPILE) requirements.in -o requirements.txt
	cp requirements.txt requirements-production.txt  # uv keeps the versions that it finds there where it can
	$(COMPILE) requirements-production.in -o requirements-production.txt

clean: install                  ## end the lab and remove what was made here (the caches in ~/.cache/hyperflow stay)
	./hyperflow lab down
	rm -rf $(VENV) .lab
