# make demo     from nothing to a trained, evaluated, exported model of real handwritten digits
# make fashion  the same for Fashion-MNIST: some 90 minutes on two CPU cores (GPU=1: the larger run for one GPU)
# make test     every test
# make chaos    a job killed fifty times, on changing numbers of processes; each one resumed by each other
# make signals  every launcher, signal, target, number of ranks and workers
# make cluster  jobs of SLURM, runs over ssh, data in a store that speaks S3, on two hosts made on this machine
# make fuzz     thousands of damaged files and server answers, different ones each time (CASES=20000 for more)
# make gpu      what a first GPU is to show, in pieces of at most eight minutes, each done once: some 25 minutes of one
# make docs     the documentation as a site, in site/
# make lint     style, the direction of imports, types
# make clean    what demo and test made, the environment included
# make help     this list
#
# For a shorter demo: make demo RUN=short SETTINGS="--set training.steps=40"

PYTHON ?= python3
# Processes of the demo: the GPUs there are (a power of two, which the lanes allow), else two on the CPU.
PROCESSES ?= $(shell .venv/bin/python -c "import torch; print(1 << max(1, torch.cuda.device_count()).bit_length() - 1 if torch.cuda.is_available() else 2)")
# DeepSpeed's launcher warns where it has to find out for itself that there is no GPU.
ACCELERATOR ?= $(shell .venv/bin/python -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")
RUN ?= digits
SETTINGS ?=

# Fashion-MNIST's files, as the package dataset-fashion-mnist of Debian and Ubuntu installs them. The ODE likelihood takes
# some 140 evaluations for each of four draws of an image, two minutes of two cores for sixteen: of these first ones.
FASHION_FILES ?= /usr/share/datasets/fashion-mnist
FASHION_CLASSES := "T-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot"
FASHION := fashion_mnist$(if $(GPU),_gpu)
FASHION_ODE ?= $(if $(GPU),10000,16)
FASHION_SAMPLES ?= $(if $(GPU),10000,2000)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
READY := .venv/ready

CASES ?= 2000

.DEFAULT_GOAL := help
.PHONY: help demo fashion docs test signals chaos cluster fuzz gpu lint clean environment

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(READY)
	python tools/pack.py digits data/digits
	python tools/evaluate.py features data/digits export/digits-features
	DS_ACCELERATOR=$(ACCELERATOR) deepspeed --quiet --num_accelerators $(PROCESSES) fdtrain/main.py --config configs/digits.yaml --resume auto \
		--set name=$(RUN) --set monitor.frechet_every=800 --set monitor.frechet_features=export/digits-features \
		--set monitor.frechet_images=128 $(SETTINGS)
	python tools/evaluate.py nll runs/$(RUN) --data data/digits --draws 20
	python tools/evaluate.py fid runs/$(RUN) --data data/digits --features export/digits-features --images 128 --steps 25
	python tools/evaluate.py curve runs/$(RUN) --data data/digits --features export/digits-features --images 64 \
		--solvers sde ode unipc2 --nfe 5 8 10 15 20 30 --reference 60
	python tools/sample.py runs/$(RUN) --images 100 --steps 50 --out runs/$(RUN)/samples/final.png
	python tools/export.py runs/$(RUN) export/$(RUN)
	python tools/evaluate.py report runs/$(RUN)
	@echo
	@echo "Data set             data/digits"
	@echo "Sample grid          runs/$(RUN)/samples/final.png"
	@echo "Report               runs/$(RUN)/report.html"
	@echo "Test bits/dim        runs/$(RUN)/evaluation/nll_test.json"
	@echo "Frechet distance     runs/$(RUN)/evaluation/frechet_digits-features.json"
	@echo "Log of every window  runs/$(RUN)/metrics.jsonl"
	@echo "TensorBoard          .venv/bin/tensorboard --logdir runs"
	@echo "Checkpoints          runs/$(RUN)/checkpoints"
	@echo "Exported model       export/$(RUN)"

fashion: $(READY)
	python tools/pack.py idx $(FASHION_FILES) data/fashion_mnist --classes $(FASHION_CLASSES)
	python tools/evaluate.py features data/fashion_mnist export/fashion-features
	DS_ACCELERATOR=$(ACCELERATOR) deepspeed --quiet --num_accelerators $(PROCESSES) fdtrain/main.py --config configs/$(FASHION).yaml \
		--resume auto $(SETTINGS)
	python tools/evaluate.py nll runs/$(FASHION) --data data/fashion_mnist --draws 10
	python tools/evaluate.py nll runs/$(FASHION) --data data/fashion_mnist --images $(FASHION_ODE) --draws 10 --ode --importance 4
	python tools/evaluate.py fid runs/$(FASHION) --data data/fashion_mnist --features export/fashion-features \
		--images $(FASHION_SAMPLES) --steps 10
	python tools/evaluate.py curve runs/$(FASHION) --data data/fashion_mnist --features export/fashion-features --images 200 \
		--solvers sde ode unipc2 --nfe 5 8 10 15 20 30 --reference 60
	python tools/sample.py runs/$(FASHION) --images 100 --steps 50 --out runs/$(FASHION)/samples/final.png
	python tools/export.py runs/$(FASHION) export/$(FASHION)
	python tools/evaluate.py report runs/$(FASHION)

# Each file with one thread, and twice as many files as cores: many tests wait, for processes and for what must not come.
# A process that a test brings down ends them all, by the test's name: xdist would start another, and wait for it for ever.
test: $(READY)
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

signals: $(READY)
	FDTRAIN_SIGNALS= python -m pytest tests/resilience/test_preemption.py

chaos: $(READY)
	FDTRAIN_CHAOS_KILLS=50 FDTRAIN_RESHARDING="1 2 4" python -m pytest tests/chaos tests/training/test_resharding.py

cluster: $(READY)
	python -m pytest -m cluster -rs tests/cluster

fuzz: $(READY)
	FDTRAIN_FUZZ_CASES=$(CASES) python -m pytest tests/hostile

gpu: $(READY)
	python benchmarks/first_gpu.py

lint: $(READY)
	ruff check .
	ruff format --check .
	lint-imports
	pyright

docs: $(READY)
	mkdocs build

environment: $(READY)

$(READY): requirements.lock setup.py
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements.lock
	.venv/bin/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $(READY)

clean:
	rm -rf .venv data/digits runs/$(RUN) export/$(RUN) export/digits-features
