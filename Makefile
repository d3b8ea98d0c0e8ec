# demo: the main job on the simulator. test: lint, then all tests. Both make their own virtual environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: demo test lint bench survive enospc service service-test arm64-test fuzz hil powercut endure train-smoke clean

demo: $(VENV)/.demo
	$(BIN)/edge-scanner demo --out out

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml

bench: $(VENV)/.test
	for b in tests/benchmarks/*_bench.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

survive: $(VENV)/.test
	$(BIN)/python tests/survive.py --kills 240 --side-by-side 2 --record tests/records/survive.txt

# Needs root; mounts a small file system.
enospc: $(VENV)/.test
	$(BIN)/python tests/enospc.py --record tests/records/enospc.md

# A tiny model rendered, trained, exported and compared with ONNX Runtime; PyTorch has an environment of its own.
train-smoke: $(VENV)-train/.train
	$(VENV)-train/bin/python -m pytest tests/test_model_train.py

fuzz: $(VENV)/.test
	$(BIN)/python tests/service/fuzz.py --record tests/records/fuzz.md

# Needs root, systemd-container and mmdebstrap.
service service-test: $(VENV)/.test
	$(BIN)/python tests/service/lane.py --record tests/records/service.md

# Needs root, qemu-user-static and mmdebstrap; emulated, so an hour or so.
arm64-test: $(VENV)/.test
	$(BIN)/python tests/arm64/lane.py --record tests/records/arm64.md

# Every hardware-in-the-loop scenario (root, for a small disk), and 10,000 faults on each serial driver.
hil: $(VENV)/.test
	$(BIN)/python -m hil_sim run all
	$(BIN)/python tests/driver_storm.py 10000

powercut: $(VENV)/.test
	$(BIN)/python tests/powercut/powercut.py --record tests/records/powercut.md

# Needs root; more than an hour.
endure: $(VENV)/.test
	$(BIN)/python tests/endure/endure.py --record tests/records/memory.md

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cpu,test,readers,peers]'
	touch $@ $(VENV)/.demo

$(VENV)-train/.train: pyproject.toml
	$(PYTHON) -m venv $(VENV)-train
	$(VENV)-train/bin/pip install --quiet --disable-pip-version-check -e '.[cpu,train,test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-train out build dist
