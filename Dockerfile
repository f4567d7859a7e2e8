# docker build -t fdtrain .
# docker run --gpus all --shm-size 8g -v $PWD/data:/fdtrain/data -v $PWD/runs:/fdtrain/runs fdtrain \
#     deepspeed fdtrain/main.py --config configs/imagenet32.yaml --resume auto
FROM python:3.11-slim-bookworm

# Triton, through which torch.compile makes kernels for GPUs, needs a C compiler: any.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 trainer && install -d -o trainer /fdtrain /fdtrain/data /fdtrain/runs
WORKDIR /fdtrain

# torch from the index serves the CUDA build, with the libraries it needs. Packages first: code changes oftener.
COPY requirements.lock .
RUN pip install --no-cache-dir -r requirements.lock

COPY --chown=trainer . .
RUN pip install --no-cache-dir --no-build-isolation --no-deps -e .

# By number, which is what runAsNonRoot of Kubernetes can check.
USER 1000
CMD ["deepspeed", "fdtrain/main.py", "--help"]
