# The trainer on NVIDIA GPUs:  docker build -f docker/trainer.Dockerfile -t wit-trainer .
#   docker run --gpus all --ipc=host -v "$PWD":/data wit-trainer --nproc-per-node=8 -m trainer -c /data/wit.toml
# Torch's wheels include CUDA; the host needs only a driver. --ipc=host: loader workers pass batches in shared memory.
FROM python:3.11-slim
# pdqhash is compiled when it is installed; Triton compiles the launchers of its kernels at run time (train.compile).
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/wit
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY queries queries
COPY pipeline pipeline
COPY dedup dedup
COPY trainer trainer
RUN pip install --no-cache-dir -c constraints.txt ".[train,s3,gcs]"
# A run that torchrun starts again on several machines must not find the addresses of processes that have died.
ENV TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
WORKDIR /data
ENTRYPOINT ["torchrun"]
CMD ["--help"]
