# Each target works from a fresh clone: it creates .venv by itself.
PYTHON ?= python3
LAB_FLAGS ?=
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
LONGEST := tutorials/sweep.ipynb
# What pytest runs in test-latest and test-oldest; CI gives `$(TRAINING)` to the first, the files in which fastai trains.
TESTS ?= tests
TRAINING := $(patsubst %,tests/test_%.py,callbacks classification image_classification text_classification \
	image_generation methods features progress resume readme)
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Threads that wait must not spin: where other programs use the cores, too, training would be many times slower.
export OMP_WAIT_POLICY = PASSIVE
# uv trusts the certificates that pip trusts: those of this machine, with the one of a proxy.
export UV_SYSTEM_CERTS = 1
# Modules are compiled once, when one of the many processes imports them first.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-latest test-oldest check lint torchtext lab readme docs everything clean

demo: .venv/.lib  ## three teachers and a student on the digits, in a minute or two
	gnosis-image-classification +experiment=digits teacher.num_components=3 teacher.independent=true data_dir=demo exp_name=digits

test: .venv/.dev  ## notebooks, of which the longest begins first, then pytest, of which many tests wait, on up to four cores
	OMP_NUM_THREADS=1 nbdev_test --path nbs/$(LONGEST) & longest=$$!; \
		OMP_NUM_THREADS=1 nbdev_test --n_workers $(WORKERS) --timing --skip_file_re '^([_.]|$(notdir $(LONGEST)))'; \
		others=$$?; wait $$longest && exit $$others
	OMP_NUM_THREADS=1 pytest -q -n $$(($(WORKERS) + 1)) --dist worksteal --durations=10 tests

test-latest: .venv-latest/.lib  ## the same with the newest versions that the ranges of settings.ini admit, and nbdev 3
	OMP_NUM_THREADS=1 PATH=$(CURDIR)/.venv-latest/bin:$$PATH .venv-latest/bin/nbdev-test nbs --n-workers $(WORKERS) --timing
	OMP_NUM_THREADS=1 PATH=$(CURDIR)/.venv-latest/bin:$$PATH .venv-latest/bin/pytest -q -n $$(($(WORKERS) + 1)) --dist worksteal $(TESTS)

test-oldest: .venv-oldest/.lib  ## pytest with the oldest versions that the ranges of settings.ini admit
	OMP_NUM_THREADS=1 PATH=$(CURDIR)/.venv-oldest/bin:$$PATH .venv-oldest/bin/pytest -q -n $$(($(WORKERS) + 1)) --dist worksteal $(TESTS)

lint: .venv/.dev  ## long lines, semicolons, private names of other modules, unused imports and names; rules in pyproject.toml
	ruff check .

check: lint  ## lint, then fails when notebooks, package and README are not in step
	.ci/in_step

torchtext: .venv-torchtext/.lib  ## the built-in tokeniser and vocabulary against torchtext's, on all of IMDB where it is in data/datasets
	OMP_NUM_THREADS=1 .venv-torchtext/bin/python -m pytest -q tests/test_torchtext.py

lab: .venv/.lab  ## JupyterLab on the notebooks, without the development tools
	jupyter lab --notebook-dir=nbs $(LAB_FLAGS)

readme: .venv/.dev  ## README.md from nbs/index.ipynb
	python scripts/readme.py

docs: .venv/.dev  ## the documentation site in _docs, with its links and anchors checked; needs no network
	python scripts/docs.py

everything:  ## all of these targets and every command of the documentation, in a fresh clone, with a table of times; takes an hour
	$(PYTHON) scripts/everything.py

clean:
	rm -rf .venv .venv-latest .venv-oldest .venv-torchtext build dist *.egg-info demo

.venv/.lib: settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e .
	touch $@

.venv/.lab: settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv   # needs a third of pip's time
	$(BIN)/uv pip install -q --python $(BIN)/python -e '.[lab]' || $(BIN)/python -m pip install -e '.[lab]'
	touch .venv/.lib $@

.venv/.dev: settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv   # needs a third of pip's time
	$(BIN)/uv pip install -q --python $(BIN)/python -e '.[dev]' || $(BIN)/python -m pip install -e '.[dev]'
	touch .venv/.lib .venv/.lab $@

.venv-latest/.lib: settings.ini setup.py
	test -x .venv-latest/bin/python || $(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install -q uv
	.venv-latest/bin/uv pip install -q --python .venv-latest/bin/python --upgrade -e '.[latest]' \
		|| .venv-latest/bin/python -m pip install -q --upgrade -e '.[latest]'
	touch $@

# First the oldest of what the package itself needs, then what the tests need beside it.
.venv-oldest/.lib: settings.ini setup.py
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q uv
	.venv-oldest/bin/uv pip install -q --python .venv-oldest/bin/python --resolution lowest-direct -e .
	.venv-oldest/bin/uv pip install -q --python .venv-oldest/bin/python -e '.[tests]'
	touch $@

# torchtext's last release wants an older torch: an environment of its own.
.venv-torchtext/.lib: settings.ini setup.py
	test -x .venv-torchtext/bin/python || $(PYTHON) -m venv .venv-torchtext
	.venv-torchtext/bin/python -m pip install -q uv
	.venv-torchtext/bin/uv pip install -q --python .venv-torchtext/bin/python -e '.[torchtext]' 'pytest>=8'
	touch $@
