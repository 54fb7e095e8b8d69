# Workers on Dataflow:  docker build -f docker/worker.Dockerfile -t REGION-docker.pkg.dev/PROJECT/wit/worker:1 .
# Beam and Python must have the versions of the submitting machine; Beam's image includes its boot program.
FROM apache/beam_python3.11_sdk:2.77.0
WORKDIR /opt/wit
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY queries queries
COPY pipeline pipeline
COPY dedup dedup
COPY trainer trainer
RUN pip install --no-cache-dir -c constraints.txt ".[dataflow,s3]"
WORKDIR /
