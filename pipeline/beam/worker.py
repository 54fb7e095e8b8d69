"""Become a Beam worker: the program that FnApiRunner and Spark executors start as their Python process.

Beam's images contain a Go program for this (`boot`), which also installs packages. Here the project is installed on
every host, so this program only requests the job's settings and passes them on in the environment (Beam's container
contract). FnApiRunner has already set the environment.

Nothing slow is imported here: most of these processes only request a fork, see fork_server.py.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from pipeline.beam.fork_server import work_in_fork
from pipeline.beam.redacted_output import redact_output

if TYPE_CHECKING:
    from apache_beam.portability.api import beam_provision_api_pb2 as provision

_MODULES = ("apache_beam.runners.worker.sdk_worker_main", "pipeline.build")
_RESPONSE_TIMEOUT_S = 60


def main() -> int:
    """Be Beam's Python worker until the job is over."""
    return work_in_fork(be_worker, _MODULES)


def be_worker(arguments: list[str]) -> None:
    """Run Beam's worker in this process; with arguments, request the job's settings first."""
    from apache_beam.runners.worker import sdk_worker_main

    redact_output()
    if arguments:
        given = _parse(arguments)
        os.environ.update(worker_environment(given, _provision_info(given.provision_endpoint, worker_id=given.id)))
    sdk_worker_main.main([])


def worker_environment(given: argparse.Namespace, info: "provision.ProvisionInfo") -> dict[str, str]:
    """Return the variables that Beam's worker reads. The job's settings take precedence over the command line."""
    from google.protobuf import json_format

    variables = {
        "WORKER_ID": given.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": _descriptor(info.logging_endpoint.url or given.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(info.control_endpoint.url or given.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if given.semi_persist_dir:
        variables["SEMI_PERSISTENT_DIRECTORY"] = given.semi_persist_dir
    return variables


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wit-beam-boot", description="Started by Spark executors; see docs/spark.md.")
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    for option in ("logging_endpoint", "control_endpoint", "artifact_endpoint", "semi_persist_dir"):
        parser.add_argument(f"--{option}", default="")
    return parser.parse_args(arguments)


def _provision_info(endpoint: str, *, worker_id: str) -> "provision.ProvisionInfo":
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2 as provision
    from apache_beam.portability.api import beam_provision_api_pb2_grpc as provision_grpc

    with grpc.insecure_channel(endpoint) as channel:
        response = provision_grpc.ProvisionServiceStub(channel).GetProvisionInfo(
            provision.GetProvisionInfoRequest(), metadata=(("worker_id", worker_id),), timeout=_RESPONSE_TIMEOUT_S
        )
    return response.info


def _descriptor(url: str) -> str:
    from apache_beam.portability.api import endpoints_pb2
    from google.protobuf import text_format

    text: str = text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))
    return text


if __name__ == "__main__":
    sys.exit(main())
