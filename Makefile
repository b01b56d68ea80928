# Targets set up everything they need; a second run repeats nothing. Steps of the set-up: scripts/setup_env.py.
#   make setup [PYTHON=python3.11]   virtual environment, wheels, message build, all inside this folder
#   make demo                        the real node on a recorded simulated table; results in demo_output/
#   make test [ARGS="-k rollout"]    the tests of CI; test-slow adds the long ones
#   make test-floor                  the tests without ROS, with the oldest versions that setup.py allows
#   make test-quantised              the tests of quantised loading
#   make test-ray                    the test of `decaf reproduce --engine ray`
#   make test-colcon                 the tests of CI, run by colcon
#   make lint                        ruff and mypy
#   make docs                        the site with docs/ and the API reference, in site/
#   make bench [QUICK=1] [DEVICE=cuda] [SHAPE=7b]    benchmarks
#   make train-mllm, make train-sam2 train the checkpoints of the simulated table (hours; decaf_tabletop/README.md)
#   make clean                       removes everything that set-up, demo and tests made

SHELL := /bin/bash
PYTHON ?=
QUICK ?=
ARGS ?=
RUN := scripts/with_env.sh
# Every test uses one thread. The tests of a file stay together, because they share what its fixtures start.
TEST_WORKERS ?= 2
PYTEST := python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile

.PHONY: help setup demo test test-slow test-floor test-quantised test-ray test-colcon lint docs bench clips validation train-mllm train-sam2 clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@python3 scripts/setup_env.py --python "$(PYTHON)"

demo: setup
	@$(RUN) python -m decaf_tabletop.demo.run

test: setup
	DECAF_REQUIRE_ROS=1 $(RUN) $(PYTEST) -m "not slow" $(ARGS)

test-slow: setup
	DECAF_REQUIRE_ROS=1 $(RUN) $(PYTEST) $(ARGS)

# Tests compare with float32 on a CPU, also where there is a GPU; scripts/gpu_check.sh runs those for a GPU.
test test-slow test-floor test-quantised test-ray test-colcon: export CUDA_VISIBLE_DEVICES :=

# A second environment: older versions of the same packages, without ROS.
FLOOR := .venv-floor
FLOOR_PIP := $(FLOOR)/bin/python -m pip install --disable-pip-version-check --quiet --no-build-isolation

test-floor: $(FLOOR)/stamp
	env -u PYTHONPATH $(FLOOR)/bin/python -m pytest -m "not ros and not slow" $(ARGS)

$(FLOOR)/stamp: requirements/floor.txt requirements/tools.txt setup.py decaf_tabletop/entry_points.txt
	$(or $(PYTHON),python3) -m venv --clear $(FLOOR)
	$(FLOOR_PIP) --requirement requirements/tools.txt
	$(FLOOR_PIP) --requirement requirements/floor.txt
	SAM2_BUILD_CUDA=0 $(FLOOR_PIP) --constraint requirements/floor.txt sam2==1.1.0
	$(FLOOR_PIP) --no-deps --editable . # registers its entry points
	touch $@

# Packages for quantised loading, outside .venv.
QUANTISERS := .quantisers

test-quantised: setup $(QUANTISERS)/stamp
	$(RUN) sh -c 'PYTHONPATH="$$PYTHONPATH:$(CURDIR)/$(QUANTISERS)" DECAF_REQUIRE_QUANTISERS=1 \
	  python -m pytest test/test_loading.py $(ARGS)'

$(QUANTISERS)/stamp: requirements/quantised.txt | setup
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $(QUANTISERS) \
	  --requirement requirements/quantised.txt
	touch $@

# Ray, outside .venv.
RAY := .ray

test-ray: setup $(RAY)/stamp
	$(RUN) sh -c 'PYTHONPATH="$$PYTHONPATH:$(CURDIR)/$(RAY)" DECAF_REQUIRE_RAY=1 \
	  python -m pytest test/test_reproduce_ray.py $(ARGS)'

$(RAY)/stamp: requirements/ray.txt | setup
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $(RAY) \
	  --requirement requirements/ray.txt
	touch $@

# As in a workspace: a copy of the sources, built and tested by colcon against the ROS of .venv alone.
COLCON := build/colcon
test-colcon: setup
	rm -rf $(COLCON) && mkdir -p $(COLCON)/src/decaf_ros
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory=$(COLCON)/src/decaf_ros
	cd $(COLCON) && env -u PYTHONPATH PATH="$(CURDIR)/.venv/bin:$$PATH" AMENT_PREFIX_PATH=$(CURDIR)/.venv \
	  CMAKE_PREFIX_PATH=$(CURDIR)/.venv DECAF_REQUIRE_ROS=1 PYTEST_ADDOPTS='-m "not slow" $(ARGS)' sh -c '\
	  colcon build --cmake-args -DPython3_EXECUTABLE=$(CURDIR)/.venv/bin/python && \
	  colcon test --event-handlers console_direct+ --return-code-on-test-failure && \
	  colcon test-result --verbose'

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

DOCS := .venv-docs
docs: $(DOCS)/stamp
	$(DOCS)/bin/mkdocs build --strict
$(DOCS)/stamp: requirements/docs.txt
	$(or $(PYTHON),python3) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --disable-pip-version-check --quiet --requirement requirements/docs.txt
	touch $@

bench: setup
	$(RUN) python benchmarks/run.py $(if $(QUICK),--quick) $(if $(DEVICE),--device $(DEVICE)) $(if $(SHAPE),--shape $(SHAPE))
	$(if $(QUICK),,$(RUN) python benchmarks/node.py)
	$(if $(QUICK),,$(RUN) python benchmarks/soak.py --minutes 10)

# Clips for the validation of SAM 2's training.
validation: setup
	$(RUN) python -m decaf_tabletop.world.store --out .training/validation --seeds 900000:900060

# Clips and training states are stored in .training, so a stopped training resumes. `rm -r .training` starts over.
clips: setup
	$(RUN) python -m decaf_tabletop.world.store --out .training/clips --seeds 0:9000
	$(RUN) python -m decaf_tabletop.world.store --out .training/clips --seeds 500000:500170 --windows 8

train-mllm: clips
	$(RUN) python -m decaf_tabletop.training.mllm --data .training/clips --out decaf_tabletop/models/tabletop_mllm --work .training/mllm

train-sam2: clips validation
	$(RUN) python -m decaf_tabletop.training.sam2 --data .training/clips --out decaf_tabletop/models/tabletop_sam2 --work .training/sam2 \
		--validation .training/validation

clean:
	rm -rf .venv $(FLOOR) $(QUANTISERS) $(RAY) $(DOCS) site build install log demo_output gpu_check .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
