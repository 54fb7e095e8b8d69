"""`wit card`: the data card of a finished set, or its summary for the EU."""

import argparse

from pipeline.cli.arguments import add_config
from pipeline.errors import UserError
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    card = commands.add_parser(
        "card",
        help="print the data card of a finished dataset, or its summary for the EU",
        description="Print the data card of a finished dataset (report/data_card.md).",
    )
    add_config(card)
    card.add_argument(
        "--eu-summary",
        action="store_true",
        help="print the dataset's part of the public summary of training content that the EU's AI Act requires",
    )
    card.set_defaults(func=_card)


def _card(args: argparse.Namespace) -> int:
    project = Project.load(args.config)
    workspace = project.workspace
    if not workspace.exists("report/data_card.md"):
        raise UserError(f"{workspace.root}: no finished dataset; run `wit build` first")
    if not args.eu_summary:
        print(workspace.read_bytes("report/data_card.md").decode(), end="")
        return 0
    from pipeline.engine.units import add_counts, read_markers
    from pipeline.records import Reason
    from pipeline.stages.compliance import measure_compliance
    from pipeline.stages.data_card import SAMPLED_SHARDS, measure_composition
    from pipeline.stages.eu_summary import write_eu_summary

    manifest = workspace.read_json("shards/manifest.json")
    shards = [f"shards/{shard['tar'][:-4]}.parquet" for shard in manifest["shards"][:SAMPLED_SHARDS]]
    composition = measure_composition(workspace, shards)
    pairs = read_markers(workspace, "pairs")
    summary = write_eu_summary(
        measure_compliance(workspace, manifest),
        composition,
        project.config,
        manifest,
        sources=len(pairs),
        refused_by_pages=add_counts(pairs.values())[Reason.OPTED_OUT],
    )
    print(summary, end="")
    return 0
