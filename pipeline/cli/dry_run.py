"""`wit build --dry-run`: what a build would use and cost. It starts nothing and sends nothing, not even to a store."""

from collections.abc import Iterator
from dataclasses import dataclass

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.beam.dataflow import memory_gib_of, vcpus_of
from pipeline.beam.runner import worker_count
from pipeline.config.sources import SourceConfig
from pipeline.engine.units import read_stage
from pipeline.engine.workspace import Workspace
from pipeline.fetching.lower_bound import lower_bound
from pipeline.paths import expand_paths
from pipeline.project import Project
from pipeline.stages.build_cost import FETCHED_SHARE, JOBS, NEEDS, Effort
from pipeline.stages.plan import read_hosts
from pipeline.stages.plan_parts import PAIRS_PER_PART, plan_parts

Line = tuple[str, str]

CORE_HOUR = 0.04
"""Dollars for an hour of one core of a large cloud, where the runner's own prices are not known."""

# Google's list prices of batch jobs in us-central1, in dollars an hour; FlexRS is 40 % cheaper for CPU and memory.
_VCPU_HOUR, _GB_HOUR, _DISK_GB_HOUR, _FLEXRS_FACTOR = 0.056, 0.003557, 0.000054, 0.6
_ADDRESS_HOUR, _NAT_GB = 0.005, 0.045
_START_H = 4 / 60
"""In which the machines of a job start."""

_SYSTEM_GIB = 1.0
_MANY_PAIRS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """What is planned: pairs, and hours that the slowest host takes with any number of processes."""

    pairs: int
    bound_h: float
    is_known: bool


def print_dry_run(project: Project, options: PipelineOptions, stages: tuple[str, ...]) -> None:
    """Print what the stages would use with these options.

    Raises:
        ConfigError: a pattern of the sources matches no local file.
    """
    plan = _plan(project)
    for name, text in [*_of_stages(project, stages, plan), *_of_runner(project, options, plan)]:
        print(f"{name:<10} {text}")
    print("nothing was started, and no request was sent")


def _plan(project: Project) -> Plan:
    """Read the plan of a local workspace; in a store, nothing is looked up."""
    root = project.resolve(project.config.workspace)
    if not _is_remote(root):
        workspace = Workspace(root)
        marker = read_stage(workspace, "plan")
        if marker is not None:
            bound = lower_bound(read_hosts(workspace), project.config.fetch)
            return Plan(marker.counts["kept"], bound.time_s / 3600, is_known=True)
    return Plan(_MANY_PAIRS, 0.0, is_known=False)


def _is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def _of_stages(project: Project, stages: tuple[str, ...], plan: Plan) -> Iterator[Line]:
    yield "workspace", project.resolve(project.config.workspace)
    stated = project.config.fetch.parts
    parts = f"{stated or plan_parts(plan.pairs):,} parts" if plan.is_known or stated else "parts"
    parts += "" if stated else f" of at most {PAIRS_PER_PART:,} pairs"
    for stage in stages:
        units = parts
        if stage == "pairs":
            units = ", ".join(_source_units(project, source) for source in project.config.sources)
        elif stage == "plan":
            units = "files of pairs/, then buckets and parts of candidates"
        elif stage == "report":
            units = "files of pairs/ and parts; the page in one process"
        network = NEEDS[stage].network
        if stage == "fetched" and not (project.config.fetch.network and project.config.requests_images):
            network = "archives or sources, workspace"
        yield stage, f"{units}; at most {_mib(project, stage):,} MiB a process; network: {network}"


def _mib(project: Project, stage: str) -> int:
    """Return the memory of a process: of the stages that sort, what the config allows."""
    return NEEDS[stage].mib or project.config.run.memory_bytes >> 20


def _source_units(project: Project, source: SourceConfig) -> str:
    remote = [path for path in source.paths if _is_remote(path)]
    if source.kind == "common-crawl" or remote:
        what = ", ".join([*map(str, source.crawls), *remote]) or source.kind
        return f"the files of {what}, listed when it runs"
    count = len(expand_paths(source.paths, project.base_dir))
    return f"{count:,} {source.kind} file{'s' if count > 1 else ''}"


def _of_runner(project: Project, options: PipelineOptions, plan: Plan) -> Iterator[Line]:
    runner = options.view_as(StandardOptions).runner
    if runner == "DataflowRunner":
        yield from _of_dataflow(project, options, plan)
        return
    processes = worker_count(options)
    gib = max(_mib(project, stage) for stage in NEEDS) / 1024
    yield "runner", f"{runner}; {processes:,} processes, one unit at a time in each"
    yield (
        "memory",
        f"{processes * gib:,.0f} GiB for all processes"
        + (f", and {processes:,} GiB for the JVMs of the executors" if runner == "SparkRunner" else ""),
    )
    if runner == "SparkRunner":
        yield "image", "this project in an environment at the same path on every host, or docker/spark.Dockerfile"
        yield "network", "executors connect to the driver; every host to the workspace, the sources and the web"
    hours = _hours(plan, processes)
    yield (
        "cost",
        f"{_of_pairs(plan)}: {hours}; at ${CORE_HOUR} a core hour ${_core_hours(plan, processes) * CORE_HOUR:,.2f}",
    )


def _of_dataflow(project: Project, options: PipelineOptions, plan: Plan) -> Iterator[Line]:
    cloud, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    vcpus, gib = vcpus_of(workers.machine_type), memory_gib_of(workers.machine_type)
    threads = options.view_as(DebugOptions).number_of_worker_harness_threads
    is_fixed, disk_gb = workers.autoscaling_algorithm == "NONE", workers.disk_size_gb
    machines = _machines(workers)
    yield "runner", f"DataflowRunner; project {cloud.project}, region {cloud.region}, staging in {cloud.temp_location}"
    yield "jobs", f"some {JOBS}, one after the other; each waits about {_START_H * 60:.0f} minutes for its machines"
    yield "image", workers.sdk_container_image
    yield (
        "machines",
        f"{machines:,} x {workers.machine_type}, {'for the whole job' if is_fixed else 'at most: Dataflow adds them'}; "
        f"{machines * vcpus:,} processes (one a vCPU), {threads} thread{'s' if threads > 1 else ''} each",
    )
    stage = max(NEEDS, key=lambda stage: _mib(project, stage))
    yield "memory", _memory(workers.machine_type, vcpus, gib, stage, _mib(project, stage) / 1024)
    yield "disk", f"{disk_gb:,} GB a machine ({workers.disk_type or 'a standard persistent disk'})"
    yield "preempted", _preemptible(cloud.flexrs_goal)
    account = cloud.service_account_email or f"the default Compute Engine account of {cloud.project}"
    yield (
        "identity",
        f"workers run as {account}, which needs the roles dataflow.worker, storage.objectAdmin on the buckets and "
        "artifactregistry.reader on the image; whoever submits needs dataflow.developer and iam.serviceAccountUser",
    )
    yield "network", _network(project, workers, machines * vcpus, vcpus)
    yield from _dataflow_cost(cloud, workers, plan, vcpus, gib)


def _machines(workers: WorkerOptions) -> int:
    is_fixed = workers.autoscaling_algorithm == "NONE"
    return int(workers.num_workers if is_fixed else workers.max_num_workers)


def _memory(machine_type: str, vcpus: int, gib: float | None, stage: str, largest: float) -> str:
    if gib is None:
        return f"the memory of {machine_type} is not known here; a process takes up to {largest:.1f} GiB"
    each = (gib - _SYSTEM_GIB) / vcpus
    text = f"{gib:g} GiB a machine, {each:.1f} GiB a process; the largest, of {stage}, takes {largest:.1f}"
    if each >= largest:
        return text
    return text + f": too little, choose a machine type with at least {largest + _SYSTEM_GIB:.0f} GiB a vCPU"


def _preemptible(flexrs_goal: str | None) -> str:
    resumes = (
        "parts resume inside: a machine that is lost costs the URLs since its last copy to the store, 30 s at most"
    )
    if flexrs_goal == "COST_OPTIMIZED":
        return f"preemptible machines (FlexRS); {resumes}. Each job may wait up to 6 hours to start"
    return f"no preemptible machines. They could be used, with --flexrs_goal=COST_OPTIMIZED: {resumes}"


def _network(project: Project, workers: WorkerOptions, processes: int, vcpus: int) -> str:
    concurrency = project.config.fetch.concurrency
    subnet = workers.subnetwork or workers.network or "the network `default`"
    inner = "machines reach each other on TCP ports 12345 and 12346 (firewall)"
    ports = "TCP 80 and 443 to any host, UDP and TCP 53 to the DNS servers"
    if workers.use_public_ips is False:
        return (
            f"{subnet}; no external addresses: Private Google Access for the store, and Cloud NAT with at least "
            f"{vcpus * concurrency:,} ports a machine for the web; egress: {ports}; {inner}"
        )
    return (
        f"{subnet}; an external address for each machine (check the quota), or --no_use_public_ips and Cloud NAT; "
        f"egress: {ports}; {inner}"
    )


def _dataflow_cost(
    cloud: GoogleCloudOptions, workers: WorkerOptions, plan: Plan, vcpus: int, gib: float | None
) -> Iterator[Line]:
    machines, disk_gb = _machines(workers), workers.disk_size_gb
    factor = _FLEXRS_FACTOR if cloud.flexrs_goal == "COST_OPTIMIZED" else 1.0
    vcpu_price, gb_price = _VCPU_HOUR * factor, _GB_HOUR * factor
    memory_gb = gib if gib is not None else 4.0 * vcpus
    addresses = machines * _ADDRESS_HOUR if workers.use_public_ips is not False else 0.0
    hour = machines * (vcpus * vcpu_price + memory_gb * gb_price + disk_gb * _DISK_GB_HOUR) + addresses
    yield (
        "prices",
        f"${hour:,.2f} an hour: {machines * vcpus:,} vCPUs at ${vcpu_price:.4f}, {machines * memory_gb:,.0f} GB of "
        f"memory at ${gb_price:.6f}, {machines * disk_gb:,} GB of disk at ${_DISK_GB_HOUR:.6f}"
        + (f", {machines:,} addresses at ${_ADDRESS_HOUR:.3f}" if addresses else "")
        + "; list prices of us-central1, others are up to 30 % higher",
    )
    hours = _core_hours(plan, machines * vcpus) / (machines * vcpus) + JOBS * _START_H
    nat = 0.0 if addresses else Effort.of(plan.pairs).web_gb * _NAT_GB
    yield (
        "cost",
        f"{_of_pairs(plan)}: {_hours(plan, machines * vcpus)}, and {JOBS * _START_H:.1f} h in which machines start: "
        f"${hours * hour:,.2f}" + (f", and ${nat:,.2f} for Cloud NAT at ${_NAT_GB} a GB" if nat else ""),
    )
    yield "", "without pairs and plan, which follow the size of the sources, and the store: see docs/scale.md"


def _of_pairs(plan: Plan) -> str:
    if plan.is_known:
        return f"the plan's {plan.pairs:,} pairs"
    return f"for each {plan.pairs:,} planned pairs (no plan is read)"


def _hours(plan: Plan, processes: int) -> str:
    effort = Effort.of(plan.pairs)
    text = (
        f"{effort.cpu_h:,.1f} CPU hours after the plan, {effort.cpu_h / processes:,.1f} h with {processes:,} "
        f"processes, {effort.web_gb:,.0f} GB from the web ({FETCHED_SHARE:.0%} of the links give an image)"
    )
    if plan.bound_h > effort.cpu_h / processes:
        text += f"; but {plan.bound_h:,.1f} h at least, for the slowest host (`wit build --to plan` names it)"
    return text


def _core_hours(plan: Plan, processes: int) -> float:
    """Return the hours of all processes, which are paid while they wait."""
    return max(Effort.of(plan.pairs).cpu_h, plan.bound_h * processes)
