# Two commands for a new user: `make demo` and `make test`. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := docker/constraints.txt

# What an extra installs of the others.
INCLUDED_dev := test all shard
INCLUDED_test := all shard
INCLUDED_all := shard

.PHONY: demo test test-oldest test-slow test-gpu test-kernels test-readers bench-shard bench-model bench-train bench-tokenize bench-export \
  bench-launches bench-gpu gpu-bundle ablate weights bench-stability check lint docs wheel format clean

demo: $(VENV)/.with-all  ## Shard, train, tokenize, decode real video; write runs/demo/report.html.
	$(BIN)/vidvq demo

# Tests run in parallel processes. One more than cores, because many tests wait for the processes that they start.
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)

test: $(VENV)/.with-test  ## The tests that need no GPU and little time.
	$(BIN)/pytest -n $(JOBS) --dist worksteal

# uv finds the versions, pip installs them.
OLDEST := .venv-oldest

test-oldest:  ## The same tests with the oldest versions that pyproject.toml allows.
	test -x $(OLDEST)/bin/uv || { $(PYTHON) -m venv $(OLDEST) && $(OLDEST)/bin/pip install --quiet uv; }
	$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra test --output-file $(OLDEST)/pins.txt pyproject.toml
	$(MAKE) test VENV=$(OLDEST) PINS=$(OLDEST)/pins.txt

test-slow: $(VENV)/.with-test  ## The tests that take minutes.
	$(BIN)/pytest -m slow

test-gpu: $(VENV)/.with-test  ## The tests that need a CUDA device; they fail, not skip, without one.
	VIDVQ_REQUIRE_GPU=1 $(BIN)/pytest -m gpu

# Beside .venv, not in it: Triton would be a third of it. Interpreted, kernels need no GPU.
test-kernels: $(VENV)/.with-test $(VENV)/triton  ## The Triton kernels, interpreted on the CPU.
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/triton $(BIN)/pytest -m kernels tests/kernels

# Beside .venv, not in it: their own pins contradict one another's and ours, and would bring gigabytes.
test-readers: $(VENV)/.with-test $(VENV)/readers  ## Exports, read back by the libraries that they are for.
	PYTHONPATH=$(VENV)/readers $(BIN)/pytest -m readers tests/readers

bench-shard: $(VENV)/.with-shard  ## Decoding and sharding VIDEOS="a.mp4 b.mkv", as a share of what ffmpeg reaches.
	$(BIN)/python benchmarks/shard.py $(or $(VIDEOS),vidvq/demo/videos/train/*.mp4)

bench-model: $(VENV)/.with-all  ## Parameters, FLOPs, time and memory of each size on this CPU.
	$(BIN)/python benchmarks/model.py

# A finished directory of clip shards.
CLIPS ?= runs/demo/clips/train

bench-train: $(VENV)/.with-all  ## A training step over its bare arithmetic, and the wait for data, on CLIPS=DIR.
	GOMP_SPINCOUNT=1000 $(BIN)/python benchmarks/train.py $(CLIPS)

CHECKPOINT ?= runs/demo/train

bench-tokenize: $(VENV)/.with-all  ## The corpus job's rate over the bare encoder's, on CLIPS=DIR CHECKPOINT=DIR.
	$(BIN)/python benchmarks/corpus.py $(CLIPS) $(CHECKPOINT)

bench-launches: $(VENV)/.with-all  ## Kernels, copies, reads and graph breaks that a GPU would see, as one JSON line.
	$(BIN)/python benchmarks/launches.py

TOKENS ?= runs/demo/tokens/train

bench-export: $(VENV)/.with-all $(VENV)/readers  ## How fast TOKENS=DIR and its exports are read, over plain npy.
	PYTHONPATH=$(VENV)/readers $(BIN)/python benchmarks/export.py $(TOKENS)

bench-gpu:  ## The GPU's tests and figures, with whatever python and torch there are: make bench-gpu PYTHON=python3
	PYTHON=$(PYTHON) launch/gpu-checks.sh

# Videos and folders of them to train the ablation on, and to score it on.
TRAIN ?= vidvq/demo/videos/train
HELD_OUT ?= vidvq/demo/videos/heldout

ablate: $(VENV)/.with-all  ## Which choices of architecture are worth their cost; writes runs/ablate/table.md.
	$(BIN)/python benchmarks/ablate.py $(foreach v,$(TRAIN),--train $(v)) $(foreach v,$(HELD_OUT),--held-out $(v))

# CONFIG: of the run, else bundled. START: a checkpoint to train further. FINISH: config of a second run. BUDGET_S: seconds
# for training. WORK and OUT: folders, else runs/weights and vidvq/weights. HISTORY: the start and the sources with their
# licences, for the README. SETTINGS: of the training runs, as key=value.
weights: $(VENV)/.with-all  ## Train, score and put in place the tokenizer that ships: make weights TRAIN=... HELD_OUT=...
	$(BIN)/python benchmarks/weights.py $(foreach v,$(TRAIN),--train $(v)) $(foreach v,$(HELD_OUT),--held-out $(v)) \
	  $(if $(CONFIG),--config $(CONFIG)) $(if $(START),--start $(START)) $(if $(FINISH),--finish $(FINISH)) $(if $(BUDGET_S),--budget-s $(BUDGET_S)) \
	  $(if $(WORK),--work $(WORK)) $(if $(OUT),--out $(OUT)) $(if $(HISTORY),--history "$(HISTORY)") $(SETTINGS)

# What a machine with PyTorch for CUDA tends to lack. Its perceptual network has 59 MB of weights that no check reads.
GPU_WHEELS := av click einops msgpack psutil py-cpuinfo pydantic pydantic_core annotated_types PyYAML tqdm typing_extensions \
  typing_inspection
GPU_PURE := deepspeed hjson stlpips_pytorch
BUNDLE := runs/gpu-bundle
BUNDLE_MB := 60
MAKE_WHEELS := $(BIN)/python -m pip --quiet --disable-pip-version-check

# Clips are cut from TRAIN and HELD_OUT. Packages are one archive, because wheels are zipped and would be too large.
gpu-bundle: $(VENV)/.with-test  ## One folder for a GPU machine without a network: code, packages, clips, the script.
	rm -rf $(BUNDLE) $(BUNDLE).tmp
	mkdir -p $(BUNDLE).tmp/wheels $(BUNDLE).tmp/packages $(BUNDLE)
	git archive HEAD vidvq benchmarks tests/gpu launch configs pyproject.toml ':!vidvq/demo/videos' | tar -x -C $(BUNDLE)
	$(MAKE_WHEELS) download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
	  --platform manylinux2014_x86_64 --constraint $(PINS) --dest $(BUNDLE).tmp/wheels $(GPU_WHEELS)
	$(MAKE_WHEELS) wheel --no-deps --constraint $(PINS) --wheel-dir $(BUNDLE).tmp/wheels $(GPU_PURE)
	for wheel in $(BUNDLE).tmp/wheels/*.whl; do unzip -q -o $$wheel -d $(BUNDLE).tmp/packages; done
	rm -r $(BUNDLE).tmp/packages/stlpips_pytorch/weights/vST0.0/vgg_*
	tar -C $(BUNDLE).tmp/packages -c . | xz -6 > $(BUNDLE)/packages.tar.xz
	$(BIN)/vidvq shard $(TRAIN) --out $(BUNDLE)/clips/train --config demo-shard runtime.workers=0
	$(BIN)/vidvq shard $(HELD_OUT) --out $(BUNDLE)/clips/heldout --config demo-shard runtime.workers=0
	rm -rf $(BUNDLE).tmp
	du -s --block-size=MB --apparent-size $(BUNDLE)
	test $$(du -s --block-size=1000000 --apparent-size $(BUNDLE) | cut -f1) -le $(BUNDLE_MB)

bench-stability: $(VENV)/.with-all  ## Ten short GAN runs from ten seeds: does any collapse? Writes runs/stability/table.md.
	$(BIN)/python benchmarks/stability.py $(foreach v,$(TRAIN),--train $(v)) $(foreach v,$(HELD_OUT),--held-out $(v))

check: lint test  ## All that must be clean before a change goes in.

lint: $(VENV)/.with-dev  ## Lint, format, spelling, types, import rules, generated pages, links of the docs.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: $(VENV)/.with-dev  ## Rewrite the generated parts of the pages, and build them into site/.
	$(BIN)/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: $(VENV)/.with-dev  ## Build dist/*.whl.
	$(BIN)/python -m build --wheel

format: $(VENV)/.with-dev  ## Fix what ruff can fix.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what make wrote, but not runs/, which may hold trained models.
	rm -rf $(VENV) $(OLDEST) dist site

$(VENV)/readers: tests/readers/libraries.txt $(VENV)/.with-test
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ --requirement $<

$(VENV)/triton: $(VENV)/.with-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ 'triton>=3.6'

$(VENV)/.with-%: pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vidvq needs Python 3.11 or newer; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(PINS) setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(PINS) --editable '.[$*]'
	touch $(foreach extra,$* $(INCLUDED_$*),$(VENV)/.with-$(extra))
