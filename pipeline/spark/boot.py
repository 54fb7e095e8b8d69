"""Become a Beam worker: what a Spark executor runs to get a Python process (`--environment_type=PROCESS`).

Beam's images hold a Go program for this, which also installs packages. Here the project is installed on every host, so
it is enough to ask the job for its facts and to hand them over in the environment (Beam's container contract).
"""

import argparse
import os
from collections.abc import Sequence

import grpc
from apache_beam.portability.api import beam_provision_api_pb2 as provision
from apache_beam.portability.api import beam_provision_api_pb2_grpc as provision_grpc
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

_ANSWER_TIMEOUT_S = 60


def main(args: Sequence[str] | None = None) -> None:
    """Be Beam's Python worker until the job is over; in this process, for to import Beam takes two seconds."""
    given = _parse(args)
    info = _provision_info(given.provision_endpoint, worker_id=given.id)
    os.environ.update(worker_environment(given, info))
    sdk_worker_main.main([])


def worker_environment(given: argparse.Namespace, info: provision.ProvisionInfo) -> dict[str, str]:
    """Return the variables that Beam's worker reads. What the job provisions wins over the command line."""
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


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wit-beam-boot", description=__doc__)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    for option in ("logging_endpoint", "control_endpoint", "artifact_endpoint", "semi_persist_dir"):
        parser.add_argument(f"--{option}", default="")
    return parser.parse_args(args)


def _provision_info(endpoint: str, *, worker_id: str) -> provision.ProvisionInfo:
    with grpc.insecure_channel(endpoint) as channel:
        answer = provision_grpc.ProvisionServiceStub(channel).GetProvisionInfo(
            provision.GetProvisionInfoRequest(), metadata=(("worker_id", worker_id),), timeout=_ANSWER_TIMEOUT_S
        )
    return answer.info


def _descriptor(url: str) -> str:
    text: str = text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))
    return text


if __name__ == "__main__":
    main()
