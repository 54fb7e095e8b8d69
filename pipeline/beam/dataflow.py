"""Dataflow: the options that a build chooses where the user does not, and what its machines have.

Nothing in this module uses the network.
"""

import re

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import create_runner

from pipeline.errors import ConfigError

DEFAULT_MACHINE = "n2-standard-4"
"""4 GiB a vCPU: a process that fetches takes up to 2, the system and Dataflow's own programs up to 1."""

DEFAULT_PROCESSES = 16
"""As on Spark: enough for a trial, within the quota of a new project."""

_DISK_GB, _DISK_GB_PER_PROCESS = 40, 15
"""The system, the image and logs; and two parts or windows that are being fetched, or one bucket of a large shuffle.
Dataflow's own default, 25 GB a machine, is for jobs that leave nothing on disk."""

_GIB_PER_VCPU = {"standard": 4.0, "highmem": 8.0, "highcpu": 1.0}
_OTHER_GIB_PER_VCPU = {
    ("n1", "standard"): 3.75,
    ("n1", "highmem"): 6.5,
    ("n1", "highcpu"): 0.9,
    ("c3", "highcpu"): 2.0,
    ("c4", "standard"): 3.75,
    ("c4", "highmem"): 7.75,
    ("c4", "highcpu"): 2.0,
}


def prepare(options: PipelineOptions) -> None:
    """Add the options of a build on Dataflow.

    Raises:
        ConfigError: the package or an option that has no default is missing.
    """
    try:
        create_runner("DataflowRunner")
    except ImportError as error:
        raise ConfigError(
            "DataflowRunner is not installed: run pip install '.[dataflow]' in the project's folder"
        ) from error
    cloud = options.view_as(GoogleCloudOptions)
    missing = [name for name in ("project", "region", "temp_location") if not getattr(cloud, name)]
    if missing:
        raise ConfigError(f"DataflowRunner needs --{missing[0]}=...")
    workers = options.view_as(WorkerOptions)
    if not workers.sdk_container_image:
        raise ConfigError(
            "DataflowRunner needs --sdk_container_image=... with this project installed: see docs/dataflow.md"
        )
    options.view_as(SetupOptions).sdk_location = "container"
    debug = options.view_as(DebugOptions)
    if debug.number_of_worker_harness_threads is None:
        debug.number_of_worker_harness_threads = 1  # one unit at a time per process
    _choose_machines(workers, is_flexible=cloud.flexrs_goal == "COST_OPTIMIZED")


def _choose_machines(workers: WorkerOptions, *, is_flexible: bool) -> None:
    if workers.machine_type is None:
        workers.machine_type = DEFAULT_MACHINE
    vcpus = vcpus_of(workers.machine_type)
    if workers.disk_size_gb is None:
        workers.disk_size_gb = _DISK_GB + _DISK_GB_PER_PROCESS * vcpus
    if workers.autoscaling_algorithm is None and not is_flexible:
        # Dataflow adds machines by their CPU load: a fetch that waits for slow hosts would stay with one.
        workers.autoscaling_algorithm = "NONE"
    is_fixed = workers.autoscaling_algorithm == "NONE"
    if workers.max_num_workers is None:  # Dataflow would scale to any number, and a fetch is cut for a known one
        enough = -(-DEFAULT_PROCESSES // vcpus)
        workers.max_num_workers = workers.num_workers if is_fixed and workers.num_workers else enough
        workers.max_num_workers = max(workers.max_num_workers, workers.num_workers or 0)
    if is_fixed and workers.num_workers is None:
        workers.num_workers = workers.max_num_workers


def vcpus_of(machine_type: str | None) -> int:
    """Read the number out of a Compute Engine machine type: 8 for "n2-highmem-8", 6 for "custom-6-3072"."""
    if machine_type is None:
        return 1  # n1-standard-1, Dataflow's default for batch jobs
    number = re.search(r"-(\d+)(?:-|$)", machine_type)
    return int(number[1]) if number else 2  # the types without a number share a core: e2-micro, e2-small, e2-medium


def memory_gib_of(machine_type: str) -> float | None:
    """Return the memory of a Compute Engine machine type, None where its name does not say it."""
    if custom := re.fullmatch(r"(?:\w+-)?custom-\d+-(\d+)(?:-ext)?", machine_type):
        return int(custom[1]) / 1024
    family, _, rest = machine_type.partition("-")
    kind = rest.partition("-")[0]
    per_vcpu = _OTHER_GIB_PER_VCPU.get((family, kind), _GIB_PER_VCPU.get(kind))
    return None if per_vcpu is None else per_vcpu * vcpus_of(machine_type)
