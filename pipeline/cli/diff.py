"""`wit diff`: which pairs came and went between two sets, and why."""

import argparse
import json

from queries.redact import redact


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    diff = commands.add_parser(
        "diff",
        help="compare two sets: which pairs are new, which are gone, and why",
        description="Compare two folders of shards with manifest.json, such as two workspaces' shards/. A pair that "
        "only one set has is counted by the reason that the other set gives.",
        allow_abbrev=False,
    )
    diff.add_argument("first", metavar="A", help="the older folder of shards: a path or URL")
    diff.add_argument("second", metavar="B", help="the newer one")
    diff.add_argument("--json", action="store_true", help="print JSON, for programs")
    diff.set_defaults(func=_diff)


def _diff(args: argparse.Namespace) -> int:
    from pipeline.stages.difference import compare_sets

    found = compare_sets(args.first, args.second)
    if args.json:
        print(redact(json.dumps(found.to_json())))
        return 0
    print(f"A has {found.first:,} samples, B {found.second:,}; {found.both:,} are in both")
    for way, counts, why in (("came", found.came, "A had it as"), ("went", found.went, "B has it as")):
        print(f"{way}: {counts.total():,}")
        for reason, count in counts.most_common():
            examples = ", ".join(map(redact, found.examples.get(f"{way}: {reason}", [])))
            print(f"  {count:>9,}  {why} {reason}, such as {examples}")
    for key, (before, after) in found.recipe.items():
        print(redact(f"recipe: {key} was {before!r}, is {after!r}"))
    return 0
