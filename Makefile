# The course in one-line commands; everything runs in .venv, which `install` makes (and leaves alone when it is up to date).
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
PORT ?= 8888
BENCH ?= round_to_nearest frontier qat components linear_speed
RUN := .venv/bin/python
# Limits of nbval end a hang; they are ten times what the slowest cell and kernel need on a busy computer.
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=3000 --nbval-kernel-startup-timeout=600

.PHONY: lab test install build grade bench book model dates lock clean

lab: install  ## open the course in JupyterLab, on unit 00 (PORT=8899 for another port)
	@$(RUN) lab/start.py --port "$(PORT)"

test: install  ## run every test: helpers, release, misconceptions, grading, notebooks
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile $(NBVAL) tests solutions

install:
	@command -v $(PYTHON) >/dev/null || { echo "No Python found. Install Python 3.11, then: make lab PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) lab/install.py

build: install  ## solutions/*/*.py -> executed solutions -> learners' notebooks (FORCE=1 executes what is unchanged, too)
	@$(RUN) -m grading.build $(if $(FORCE),--force) $(UNITS)

grade: install  ## grade gradebook/submitted/STUDENT/UNIT/UNIT.ipynb; writes feedback and gradebook/grades.csv
	@$(RUN) -m grading.grade $(UNITS)

bench: install  ## measure what the course cites; writes benchmarks/results/ (BENCH=frontier measures that one alone)
	@set -e; for name in $(BENCH); do $(RUN) -m benchmarks.$$name $(ARGS); done

book: install  ## write docs/book_corrected.md, the list of the book's snippets with what happens and what works
	@$(RUN) -m tests.book.page

model: install  ## train the course model again (about an hour on two cores; resumes after an interruption; ARGS="--steps 100" trains less)
	@$(RUN) -m helpers.train_course_model $(ARGS)

dates: install  ## train the date reader of unit 06 again (about ten minutes; ARGS="--steps 100" trains less)
	@$(RUN) -m helpers.train_date_reader $(ARGS)

lock: install  ## pin every dependency of pyproject.toml again, in requirements.lock
	@$(RUN) -m grading.lock

clean:  ## remove what make made (not your notebooks, not the gradebook)
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
