"""Fixtures: a Spark that is there or a reason why not, a cluster."""

from collections.abc import Iterator

import pytest
from support.spark_cluster import end_job_servers

from pipeline.beam.spark.cluster import Cluster, local_cluster
from pipeline.beam.spark.job_server import java, runnable_jar
from pipeline.errors import ConfigError


@pytest.fixture(scope="session")
def spark() -> None:
    """Skip, with the reason, where Spark cannot run."""
    try:
        java()
        runnable_jar()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cluster(spark: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A standalone cluster of one master and two workers with a core each."""
    with local_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running
    end_job_servers()
