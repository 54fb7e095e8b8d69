# Driver and executors on Kubernetes, and containers of YARN; see docs/spark.md:
#   docker build -f docker/spark.Dockerfile -t REGISTRY/wit-spark:1 .
# The environment is at the same path in driver and executors, which start its wit-beam-boot. Spark's own image would
# have another Python. bookworm has Java 17, which Spark 3.5 runs on.
FROM python:3.11-slim-bookworm
# pdqhash is compiled when it is installed.
RUN apt-get update && apt-get install -y --no-install-recommends g++ openjdk-17-jre-headless procps tini \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/wit
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY queries queries
COPY pipeline pipeline
COPY dedup dedup
COPY trainer trainer
RUN pip install --no-cache-dir -c constraints.txt ".[spark,s3,gcs]"
COPY docker/spark-executor.sh /opt/spark-executor.sh
WORKDIR /
ENTRYPOINT ["tini", "--", "sh", "/opt/spark-executor.sh"]
