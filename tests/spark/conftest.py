"""Fixtures: workers that can import the jobs of this folder, a Spark that is there or a reason why not, a cluster."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.spark_cluster import end_job_servers

from pipeline.beam.spark.cluster import Cluster, local_cluster
from pipeline.beam.spark.job_server import java, runnable_jar
from pipeline.errors import ConfigError


@pytest.fixture(scope="session", autouse=True)
def _importable_on_workers() -> Iterator[None]:
    """Worker processes inherit the environment, be they started by Beam, the job server or an executor."""
    patch = pytest.MonkeyPatch()
    # The project first: tests/pipeline would be taken for the package `pipeline`.
    places = [str(folder) for folder in Path(__file__).parents[2:0:-1]]
    patch.setenv("PYTHONPATH", os.pathsep.join(places), prepend=os.pathsep)
    yield
    patch.undo()


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
