"""Dataflow, as far as it can be checked without Google: every job of a build is translated as if it were submitted.

Needs `apache-beam[gcp]` (`pip install '.[dataflow]'`); nothing leaves the machine.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions
from apache_beam.portability.api import beam_runner_api_pb2
from support.recorded_web import make_project

from pipeline.beam.dataflow import memory_gib_of
from pipeline.beam.options import parse_beam_options
from pipeline.beam.runner import run_pipeline, worker_count
from pipeline.build import Project, run_build
from pipeline.engine import run as engine
from pipeline.engine.progress import Progress
from pipeline.errors import ConfigError

IMAGE = "europe-docker.pkg.dev/some-project/wit/worker:1"
ARGUMENTS = [
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west1",
    "--temp_location=gs://some-bucket/temp",
    f"--sdk_container_image={IMAGE}",
    "--no_auth",
]

gcp = pytest.importorskip("apache_beam.runners.dataflow.internal.apiclient", reason="needs apache-beam[gcp]")


@dataclass
class Submitted:
    """What Dataflow would have been sent for one job."""

    graph: beam_runner_api_pb2.Pipeline
    job: dict[str, object]
    staged: set[str]


@dataclass
class Dataflow:
    """Takes what the SDK would upload, and the job it would create."""

    folder: Path
    staged: set[str] = field(default_factory=set)

    def stage_file(
        self, client: object, folder: str, name: str, source: object, *args: object, **kwargs: object
    ) -> None:
        self.staged.add(name)
        target = self.folder / name
        if isinstance(source, str | Path):
            shutil.copyfile(source, target)
        else:
            target.write_bytes(source.read())  # type: ignore[attr-defined]

    def translate(self, wire: Callable[[beam.Pipeline], object], options: PipelineOptions) -> Submitted:
        self.staged.clear()
        pipeline = beam.Pipeline(options=options)
        pipeline.options.view_as(GoogleCloudOptions).template_location = "gs://some-bucket/template.json"
        wire(pipeline)
        pipeline.run()
        graph = beam_runner_api_pb2.Pipeline.FromString((self.folder / "pipeline.pb").read_bytes())
        return Submitted(graph, json.loads((self.folder / "template.json").read_text()), set(self.staged))


@pytest.fixture
def dataflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataflow]:
    fake = Dataflow(tmp_path / "staged")
    fake.folder.mkdir()
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr(gcp.DataflowApplicationClient, "stage_file", lambda *args, **kw: fake.stage_file(*args, **kw))
    monkeypatch.setattr(gcp, "create_storage_client", lambda *args, **kw: None)
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *args: False)
    return fake


@pytest.mark.slow
def test_every_job_of_a_build_translates(dataflow, tmp_path, monkeypatch):
    submitted: list[Submitted] = []
    on_dataflow = parse_beam_options(ARGUMENTS)

    def translate_and_run(wire: Callable[[beam.Pipeline], None], options: PipelineOptions) -> None:
        submitted.append(dataflow.translate(wire, on_dataflow))
        run_pipeline(wire, options)

    monkeypatch.setattr(engine, "run_pipeline", translate_and_run)
    run_build(Project.load(make_project(tmp_path / "project")), parse_beam_options([]), progress=Progress(None))
    assert len(submitted) >= 8
    for job in submitted:
        check(job)


def check(submitted: Submitted) -> None:
    graph, job = submitted.graph, submitted.job
    assert graph.ByteSize() < 1_000_000
    assert not [requirement for requirement in graph.requirements if "stateful" in requirement]
    assert "pickled_main_session" not in submitted.staged
    images = {
        beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
        for environment in graph.components.environments.values()
    }
    assert images == {IMAGE}
    pool = job["environment"]["workerPools"][0]  # type: ignore[index]
    assert pool["autoscalingSettings"]["maxNumWorkers"] == pool["numWorkers"] == 4
    assert pool["autoscalingSettings"]["algorithm"] == "AUTOSCALING_ALGORITHM_NONE"
    assert (pool["machineType"], pool["diskSizeGb"]) == ("n2-standard-4", 100)
    assert "flexResourceSchedulingGoal" not in job["environment"]  # type: ignore[operator]
    assert pool["numThreadsPerWorker"] == 1
    assert "use_runner_v2" in job["environment"]["experiments"]  # type: ignore[index]


def test_the_bound_on_units_at_once():
    assert worker_count(parse_beam_options(ARGUMENTS)) == 16
    bigger = [*ARGUMENTS, "--max_num_workers=50", "--machine_type=n2-standard-8"]
    assert worker_count(parse_beam_options(bigger)) == 400


@pytest.mark.parametrize(
    ("given", "machines", "disk_gb", "algorithm"),
    [
        ([], 4, 100, "NONE"),
        (["--machine_type=n2-standard-8"], 2, 160, "NONE"),
        (["--machine_type=n1-standard-1"], 16, 55, "NONE"),
        (["--num_workers=30"], 30, 100, "NONE"),
        (["--num_workers=2"], 2, 100, "NONE"),
        (["--num_workers=2", "--autoscaling_algorithm=THROUGHPUT_BASED"], 4, 100, "THROUGHPUT_BASED"),
        (["--max_num_workers=9", "--disk_size_gb=70"], 9, 70, "NONE"),
        (["--autoscaling_algorithm=THROUGHPUT_BASED"], 4, 100, "THROUGHPUT_BASED"),
        (["--flexrs_goal=COST_OPTIMIZED"], 4, 100, None),
    ],
)
def test_machines_and_disks_suit_the_processes(given, machines, disk_gb, algorithm):
    workers = parse_beam_options([*ARGUMENTS, *given]).view_as(WorkerOptions)
    assert (workers.max_num_workers, workers.disk_size_gb) == (machines, disk_gb)
    assert workers.autoscaling_algorithm == algorithm


@pytest.mark.parametrize(
    ("machine_type", "gib"),
    [
        ("n2-standard-4", 16.0),
        ("n1-standard-1", 3.75),
        ("n1-highcpu-16", 14.4),
        ("e2-highmem-2", 16.0),
        ("custom-6-3072", 3.0),
        ("n2-custom-4-16384", 16.0),
        ("n2d-custom-2-65536-ext", 64.0),
        ("e2-medium", None),
        ("m1-ultramem-40", None),
    ],
)
def test_the_memory_of_machine_types(machine_type, gib):
    assert memory_gib_of(machine_type) == (gib if gib is None else pytest.approx(gib))


@pytest.mark.parametrize("missing", ["project", "region", "temp_location", "sdk_container_image"])
def test_what_dataflow_cannot_do_without_is_asked_for(missing):
    given = [argument for argument in ARGUMENTS if not argument.startswith(f"--{missing}=")]
    with pytest.raises(ConfigError, match=f"DataflowRunner needs --{missing}="):
        parse_beam_options(given)
