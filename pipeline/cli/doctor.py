"""`wit doctor`: is this machine, and what the config names, fit for the build?"""

import argparse
import json
from dataclasses import asdict

from pipeline.cli.arguments import add_config
from pipeline.project import Project
from queries.redact import redact


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check this machine, the workspace, the sources and the network before a build",
        description="Check open files, ports, disks, the clock, the workspace's rights, the sources, DNS, the contact, "
        "the runner and the GPU, and say what to do. Exit 1 if a check failed. `wit build` runs the quick ones itself.",
        allow_abbrev=False,
    )
    add_config(doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.add_argument(
        "--runner", default="FnApiRunner", help="the Beam runner that the build will use (default: FnApiRunner)"
    )
    doctor.set_defaults(func=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    project = Project.load(args.config)
    from pipeline.stages.doctor import Verdict, all_checks

    findings = []
    for finding in all_checks(project, args.runner):
        findings.append(finding)
        if not args.json:
            advice = f": {finding.advice}" if finding.advice else ""
            print(redact(f"{finding.verdict:<8} {finding.check:<20} {finding.found}{advice}"), flush=True)
    if args.json:
        print(redact(json.dumps([asdict(finding) for finding in findings])))
    return 1 if any(finding.verdict is Verdict.FAILED for finding in findings) else 0
