"""`wit metrics`: the state of a build for Prometheus, read from its workspace. Needs the extra `[metrics]`.

One exporter on any machine that reads the workspace sees driver and workers on every runner: units and rows are counted
by the markers that workers write.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.cli.arguments import add_config
from pipeline.errors import ConfigError, UserError
from pipeline.project import Project

if TYPE_CHECKING:
    from pipeline.engine.workspace import Workspace


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    metrics = commands.add_parser(
        "metrics",
        help="export the progress of a build to Prometheus",
        description="Serve the progress and the account of a workspace as Prometheus metrics, until interrupted; or "
        "print them once, for the node exporter's textfile collector. Needs the extra [metrics].",
        allow_abbrev=False,
    )
    add_config(metrics)
    metrics.add_argument(
        "--listen", default="127.0.0.1:9464", metavar="HOST:PORT", help="where to serve (default: 127.0.0.1:9464)"
    )
    metrics.add_argument("--once", action="store_true", help="print the metrics and exit")
    metrics.set_defaults(func=_metrics)


def _metrics(args: argparse.Namespace) -> int:
    host, _, port = args.listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"--listen {args.listen}: must be HOST:PORT")
    workspace = Project.load(args.config).workspace
    try:
        from prometheus_client import CollectorRegistry, generate_latest, start_http_server
    except ModuleNotFoundError:
        raise UserError(
            "wit metrics needs prometheus-client: run pip install '.[metrics]' in the project's folder"
        ) from None
    registry = CollectorRegistry()
    registry.register(_Collector(workspace))
    if args.once:
        print(generate_latest(registry).decode(), end="")
        return 0
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise UserError(f"--listen {args.listen}: {error.strerror or error}") from None
    print(f"metrics at http://{args.listen}/metrics", flush=True)
    try:
        while thread.is_alive():
            time.sleep(0.5)
    finally:
        server.shutdown()
        server.server_close()
    return 0


class _Collector:
    """Reads the workspace for every scrape."""

    def __init__(self, workspace: "Workspace") -> None:
        self._workspace = workspace

    def describe(self) -> Iterable[Any]:
        """Return nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metric families."""
        from prometheus_client.core import GaugeMetricFamily

        from pipeline.account import read_account
        from pipeline.engine.run_record import read_run

        run = read_run(self._workspace)
        alive = run is not None and run.is_alive
        yield _gauge("wit_running", "1 while a build runs", float(alive))
        paused = alive and run is not None and run.state == "paused"
        yield _gauge("wit_paused", "1 while a build waits, such as for disk space", float(paused))
        if run is not None:
            yield _gauge("wit_heard_timestamp_seconds", "when the last build was heard of last", run.heard)
            yield _gauge("wit_stage_number", "the running stage, counted from 1", float(run.stage_number or 0))
            yield _gauge("wit_stages", "how many stages this build runs", float(len(run.stages)))
        if run is not None and run.step is not None:
            step, labels = run.step, ["stage", "step"]
            for name, about, value in (
                ("wit_step_units", "units of the running step", step.units),
                ("wit_step_units_done", "units of it that are done", step.done),
                ("wit_step_rows_per_second", "rows that this run has done, per second", step.rows_per_s),
                ("wit_step_left_seconds", "estimated time until the step is done", step.left_s),
            ):
                family = GaugeMetricFamily(name, about, labels=labels)
                if value is not None:
                    family.add_metric([run.stage or "", step.step], float(value))
                yield family
        rows = GaugeMetricFamily("wit_rows", "rows by stage: kept, or a reason", labels=["stage", "outcome"])
        for stage in read_account(self._workspace).stages:
            for outcome, count in {"kept": stage.kept, **stage.reasons}.items():
                rows.add_metric([stage.stage, outcome], float(count))
        yield rows


def _gauge(name: str, about: str, value: float) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, about, value=value)
