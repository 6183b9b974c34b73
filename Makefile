# Each target does its own set-up: a virtual environment with the compiled core and what the target needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH := build/bench
NEWEST ?= /var/tmp/kombulite-newest
SOURCES := setup.py pyproject.toml $(wildcard ext/kombulite/_core/*)

.PHONY: run test coverage soak faults newest outages bench bench-full brokers c-client instructions lint docs release \
        wheels debug sanitize coverage-core fuzz clean

# Tests start hundreds of processes, which would compile our modules each time.
unexport PYTHONDONTWRITEBYTECODE

run: $(VENV)/.installed  ## the main job: a stream of events over the embedded broker
	$(BIN)/python -m kombulite run

PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --benchmark-disable

test: $(VENV)/.installed brokers  ## all tests, three files at a time
	$(PYTEST)

coverage: $(VENV)/.installed brokers  ## the same with branch coverage, which doubles the processor time of the unit tests
	$(PYTEST) --cov --cov-report=term

# SOAK_SECONDS=3600 for an hour of faults at random
soak: $(VENV)/.installed brokers  ## the tests that take long, and the core under sanitizers
	$(BIN)/pytest -m soak
	$(MAKE) sanitize

faults: $(VENV)/.installed brokers  ## the same faults on kombulite, kombu and aio-pika, and the table of what they did
	$(BIN)/python -m tests.faults

bench: $(BENCH)/venv/.installed brokers c-client  ## the benchmarks in short: JSON, a report and plots in build/bench
	$(BENCH)/venv/bin/python -m bench lab

bench-full: $(BENCH)/venv/.installed brokers c-client  ## all of them, with every round and setting: takes under an hour
	tests/install_tools.sh strace valgrind
	$(BENCH)/venv/bin/python -m bench lab --full

# A cluster's nodes are RabbitMQ 4: make newest brings them.
outages: $(VENV)/.installed $(NEWEST)/tree/.made  ## time without service after a leader's death, beside pika
	KOMBULITE_TEST_PROGRAMS=$(NEWEST)/rabbitmq $(BIN)/python -m tests.cluster --kills 20

# Root on Debian only. Some 2 GB, outside the repository: setuptools reads all that lies in it.
newest: $(VENV)/.installed $(NEWEST)/tree/venv/.installed  ## the tests of brokers on the newest ones, and on the newest Python
	$(BIN)/python -m tests.newest $(NEWEST)

brokers:  ## install the brokers and the browser that tests and benchmarks start for themselves, where that is allowed
	tests/install_tools.sh redis-server rabbitmq-server postgresql pgbouncer chromium
	tests/install_tools.sh etcd-server

c-client:  ## the same for the RabbitMQ C client, a rival
	tests/install_tools.sh librabbitmq-dev

instructions: $(VENV)/.installed  ## instructions that the hot paths take, compared with those kept
	tests/install_tools.sh valgrind
	$(BIN)/python -m bench.instructions

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(BIN)/basedpyright
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint ext
	$(BIN)/codespell kombulite/*.py kombulite/*/ ext tests/*/ bench
	$(BIN)/codespell -D - -D .glossary.txt README.md CONTRIBUTING.md SECURITY.md CODE_OF_CONDUCT.md docs

# Without --quiet: it would hide the warnings from --strict, which counts those that are shown.
docs: $(VENV)/.installed  ## the site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: $(VENV)/.installed  ## an sdist and a wheel in dist, each tried in a clean environment
	$(BIN)/python -m tests.release

wheels: $(VENV)/.installed  ## a wheel in dist for each Python on the PATH, each tried in a clean environment
	$(BIN)/nox --session wheels

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(BENCH)/venv/.installed: $(SOURCES)
	$(PYTHON) -m venv $(BENCH)/venv
	$(BENCH)/venv/bin/python -m pip install --quiet --upgrade pip
	$(BENCH)/venv/bin/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(NEWEST)/tree/.made: tests/newest_brokers.sh
	tests/newest_brokers.sh $(NEWEST)
	touch $@

$(NEWEST)/tree/venv/.installed: $(NEWEST)/tree/.made $(SOURCES)
	$(NEWEST)/run python3.14 -m venv /venv
	CC=gcc $(NEWEST)/run /venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

debug: $(VENV)/.installed  ## the core in place without optimisation; annotated sources in build/debug/c
	KOMBULITE_DEBUG=1 $(BIN)/python setup.py --quiet build_ext --inplace --force

# The next three build a core of their own below build/ and leave the one in place alone. They run no tests that read the
# sources, which are not there, or that start a browser, which would load the sanitizers too.
NOT_OF_THE_CORE := $(addprefix --ignore tests/unit/test_,changelog.py findings.py manual.py site.py tables.py web.py)

sanitize:  ## the unit tests on a core under the address and undefined-behaviour sanitizers
	$(call install_variant,sanitize,KOMBULITE_SANITIZE=1)
	cd build/sanitize && PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) \
	$$(gcc -print-file-name=libubsan.so)" venv/bin/pytest -p no:cacheprovider --timeout 900 $(NOT_OF_THE_CORE) tests/unit

# Without the tests of threads: a traced line may let go of the GIL amid what is one step without tracing.
coverage-core:  ## the unit tests with line coverage of the core itself, on a copy of the sources built in place
	$(call install_variant,coverage,)
	cp -r ext kombulite setup.py LICENSE build/coverage/
	find build/coverage/kombulite -name '*.so' -delete
	cd build/coverage && KOMBULITE_COVERAGE=1 venv/bin/python setup.py --quiet build_ext --inplace
	cd build/coverage && venv/bin/python -m pytest -p no:cacheprovider --timeout 900 -W ignore --cov \
	--cov-config=tests/core.coveragerc --cov-report=term -k 'not test_threads' $(NOT_OF_THE_CORE) tests/unit

fuzz: $(VENV)/.installed  ## the decoders, for a minute each, all at once
	$(BIN)/python -m tests.fuzz --seconds 60

define install_variant
mkdir -p build/$(1)
$(PYTHON) -m venv build/$(1)/venv
$(2) build/$(1)/venv/bin/pip install --quiet '.[dev]'
rm -rf build/$(1)/tests build/$(1)/docs build/$(1)/bench
cp -r tests docs bench pyproject.toml README.md mkdocs.yml kombulite.pth build/$(1)/
endef

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage
	find kombulite -name '*.so' -delete
