# `make run` (one task, one ratio, one row), `make sweep` (many of them) and `make test` (everything that must hold).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What `make run` and `make sweep` need is a part of what the tests and the site need, and is installed in half the time.
RUN_READY := $(READY:%=%-run)

# Parameters of nbs/run.ipynb, as in `make run task=mrpc ratio=0.3 oov_options='{m: 8}'`; only those given here are passed on, as YAML.
PARAMETERS := task ratio method when vocab_share losparse_options base scorer scorer_options oov oov_options unseen model data seed epochs learning_rate batch_size precision max_train_examples held_out_examples vocabulary_tasks look_first baseline save_model out
GIVEN := $(foreach p,$(PARAMETERS),$(if $(filter command,$(origin $(p))),$(p)))

# A name that a goal does not take is a slip, and would silently make other runs than those asked for.
TAKES_run := $(PARAMETERS)
TAKES_sweep := recipe engine workers retry
TAKES_grid := recipe workers
TAKES_languages := recipe
ifneq ($(filter run sweep grid languages,$(MAKECMDGOALS)),)
TAKES := $(foreach goal,$(MAKECMDGOALS),$(TAKES_$(goal)))
SETTINGS := PYTHON VENV BIN READY RUN_READY MAKEFLAGS MAKEOVERRIDES
$(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $(v))),$(if $(filter-out $(TAKES) $(SETTINGS),$(v)),$(error make $(MAKECMDGOALS) takes no $(v); choose from: $(TAKES)))))
endif

# Without any, a first look of about a minute: half of MiniLM, on generated text that it learns quickly.
ifeq ($(strip $(filter-out out,$(GIVEN))),)
task := sst2
data := sample
ratio := 0.49
max_train_examples := 320
epochs := 2
learning_rate := 3e-4
batch_size := 16
look_first := false
GIVEN += task data ratio max_train_examples epochs learning_rate batch_size look_first
NAMED := -first-look
endif
empty :=
comma := ,
# What was asked for names the executed page; where that is too long for a file, its beginning and a checksum do.
ASKED := run$(or $(NAMED),$(foreach p,$(filter-out out,$(GIVEN)),-$(p)=$(subst /,_,$($(p)))))
ASKED := $(subst {,,$(subst },,$(subst :,,$(subst $(comma),-,$(subst $(empty) ,,$(ASKED))))))
NAMED_PAGE = $(shell printf %s '$(ASKED)' | awk '{ if (length($$0) <= 180) print; else { printf "%s-", substr($$0, 1, 160); print | "cksum | cut -d\" \" -f1" } }')
EXECUTED = $(or $(out),runs)/notebooks/$(NAMED_PAGE).ipynb

# Versions: those of constraints.txt, the lowest that settings.ini allows (test-lowest), or the newest (test-newest).
# Where a lowest version cannot be installed, another may be named: `make test-lowest but=torch==2.13.0`.
LOWEST := .venv-lowest
NEWEST := .venv-newest
EXTRAS := dev
RUN_EXTRAS := run

.PHONY: help run sweep grid languages dist test test-all e2e gpu test-portable test-lowest test-newest page readme docs lint clean
help:
	@echo "make run                                                    a first look: prune, fine-tune and score on generated text"
	@echo "make run task=cola [ratio=0.2 scorer=tfidf oov=pq …]        the same for a task of GLUE or of your own"
	@echo "make grid recipe=FILE [workers=2]                           every run of a recipe that prunes after fine-tuning"
	@echo "make languages [recipe=FILE]                                a multilingual encoder, pruned for many languages"
	@echo "make sweep recipe=FILE [engine=ray workers=4 retry=1]   every run of a recipe that is not there yet"
	@echo "make test                                                   everything that must hold, without slow tests"
	@echo "make test-all                                               the slow tests, too"
	@echo "make e2e                                                    exported graphs in transformers.js (needs Node)"
	@echo "make gpu                                                    the tests of an accelerator"
	@echo "make test-portable                                          what compares numbers, on other kernels, 1 and 2 threads"
	@echo "make test-lowest [but=torch==2.13.0]                        the tests, with the lowest versions allowed"
	@echo "make test-newest                                            the tests, with the newest versions"
	@echo "make page nb=nbs/scorers/budget.ipynb                   run one notebook, save it clean, export the package"
	@echo "make dist                                                   wheel and sdist, installed afresh and tried with the README's five lines"
	@echo "make readme                                                 README.md from nbs/index.ipynb"
	@echo "make docs                                                   the site, to _site/ (needs Quarto)"

$(READY): setup.py settings.ini constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

$(RUN_READY): setup.py settings.ini constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what a run needs into $(VENV) (once; a few minutes) …"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(RUN_EXTRAS)]'
	touch $@

# Progress is what the notebook writes on stderr; papermill's own bar counts cells and would stand still in the long ones.
run: $(RUN_READY)
	@mkdir -p '$(or $(out),runs)/notebooks'
	$(BIN)/papermill nbs/run.ipynb '$(EXECUTED)' --no-progress-bar --stderr-file /dev/stderr $(foreach p,$(GIVEN),-y "$(p): $($(p))")
	@$(BIN)/python -c "from vocab_pruning.runs.record import summarize_notebook as s; print(s('$(EXECUTED)', '$(or $(out),runs)'))"

sweep: $(RUN_READY)
	$(BIN)/vocab-prune sweep $(or $(recipe),$(error give recipe=recipes/….yaml)) --engine $(or $(engine),local) --workers $(or $(workers),2) $(if $(filter-out 0 false no,$(retry)),--retry)

# A recipe that prunes after fine-tuning: one fine-tuned model for each task and seed serves every cut.
grid: $(RUN_READY)
	$(BIN)/python -c "from vocab_pruning.runs.after import evaluate_grid; evaluate_grid('$(or $(recipe),$(error give recipe=recipes/….yaml))', workers=$(or $(workers),1))"

# A multilingual encoder, pruned for each of many languages, without training.
languages: $(RUN_READY)
	$(BIN)/python -c "from vocab_pruning.runs.languages import run_languages; run_languages('$(or $(recipe),recipes/languages.yaml)')"

test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest

test-all: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --flags notest
	$(BIN)/python -m pytest -m ""

# A client that is not Python: transformers.js, in Node, reads exported graphs with its own tokenizer.
TRANSFORMERS_JS := 4.3.2
e2e: $(READY)
	npm install --prefix .node --ignore-scripts --no-audit --no-fund --no-save @huggingface/transformers@$(TRANSFORMERS_JS)
	TRANSFORMERS_JS=.node $(BIN)/python -m pytest -m "" -n 0 tests/test_ship_consumers.py -k js

# What only an accelerator can show. Without one, its tests are skipped, and one says so.
gpu: $(READY)
	$(BIN)/python -m pytest -m cuda -n 0 -rs tests/test_devices.py

# Whatever compares numbers, on the kernels of a processor without AVX-512, with one thread and with two.
OTHER_KERNELS := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_WAIT_POLICY=passive
COMPARES := test_close\(|is_close\(|allclose\(|assert_close\(|assert_near\(|approx\(|atol=

test-portable: $(READY)
	pages=$$(grep -rlE '$(COMPARES)' nbs --include='*.ipynb' | xargs -n1 basename | paste -sd'|'); \
	tests=$$(grep -lE '$(COMPARES)' tests/test_*.py); \
	for threads in 1 2; do \
	  $(OTHER_KERNELS) OMP_NUM_THREADS=$$threads $(BIN)/nbdev_test --n_workers 2 --file_re "^($$pages)$$" && \
	  $(OTHER_KERNELS) OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest $$tests || exit 1; \
	done

$(LOWEST)/.ready: setup.py settings.ini tools/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tools/lowest.py $(but) > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest

$(NEWEST)/.ready: setup.py settings.ini
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[$(EXTRAS)]'
	touch $@

test-newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python -m pytest

page: $(READY)
	$(BIN)/python -c "from tools.publish import run_page; run_page('$(or $(nb),$(error give nb=nbs/….ipynb))')"
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: $(READY)
	$(BIN)/python -m tools.readme

# The wheel in an environment of its own runs the README's first blocks; MiniLM and texts are those of the extra `offline`.
dist: $(READY)
	rm -rf dist build .venv-dist
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[offline]"
	.venv-dist/bin/python tools/try_readme.py README.md

docs: $(READY)
	@$(BIN)/python -m tools.website render

lint: $(READY)
	$(BIN)/ruff check

clean:
	rm -rf $(VENV) $(LOWEST) $(NEWEST) .venv-dist .node dist build _site _proc .pytest_cache .hypothesis .ruff_cache *.egg-info
