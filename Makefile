# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SPARK := $(VENV)/.spark
# More test processes than cores: some tests wait for time-outs. Files start in the order of tests/conftest.py.
TEST_PROCESSES ?= $(shell expr $$(nproc) + 1)
PYTEST := $(BIN)/python -m pytest -rs -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# Some images set it. The demo and the tests start many processes, and each would compile Beam and torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo lint test check golden spark test-spark emulators fuzz lock clean

setup: $(INSTALLED)

# uv installs in seconds, pip in minutes; constraints.txt gives every set-up the same versions.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev,s3,train,starter,dataflow]"
	touch $@

demo: setup
	$(BIN)/wit demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: setup emulators
	$(PYTEST) -m "not spark"

check: lint
	$(PYTEST) -m "not slow and not spark"

# An emulator of Google Cloud Storage for the tests, built once. Without Go they skip and say so.
GO ?= $(or $(shell command -v go),/usr/local/go/bin/go)
EMULATORS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/wit/bin
emulators:
	@test -x $(EMULATORS)/fake-gcs-server \
	  || { test -x $(GO) && GOBIN=$(EMULATORS) $(GO) install github.com/fsouza/fake-gcs-server@v1.56.1; } \
	  || echo "emulators: no fake-gcs-server, Go cannot build it (the reason is above, or there is no Go)"

# Write tests/golden/ again, after outputs have changed on purpose; tests/README.md says when.
golden: setup
	PYTHONPATH=tests $(BIN)/python -m support.golden
	PYTHONPATH=tests $(BIN)/python -m support.golden_losses

# Spark on this machine. If pyspark, Java, Maven or a jar is not available, print why and pass: nothing else needs them.
spark: $(SPARK)

$(SPARK): $(INSTALLED)
	@{ $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[spark]" \
	  && $(BIN)/python -m pipeline.beam.spark.build_job_server && touch $@; } \
	  || echo "spark: not available (the reason is above)"

test-spark: spark
	@test -e $(SPARK) || { echo "test-spark: skipped, Spark is not available"; exit 0; }; \
	$(BIN)/python -m pytest -rs -m spark tests/spark || test $$? -eq 5  # 5: no tests collected

# Damaged files for every reader of untrusted bytes: make fuzz FUZZ_SECONDS=3600 FUZZ_SEED=7
FUZZ_SECONDS ?= 300
FUZZ_SEED ?= 0
fuzz: setup
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

lock: setup
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links -o constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
