"""`wit forecast`: what fetching the plan will give, from a small sample that is fetched now."""

import argparse
import json

from pipeline.cli.arguments import add_config
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    forecast = commands.add_parser(
        "forecast",
        help="estimate images, bytes, hours, dollars and filled queries from a small sample of the plan",
        description="Fetch a small seeded sample of the planned URLs, with all the rules and rates of a build, and "
        "estimate what the whole plan will give, with intervals. Nothing is stored but the estimate, which `wit build` "
        "compares with the outcome. Needs a plan: `wit build --to plan`.",
        allow_abbrev=False,
    )
    add_config(forecast)
    forecast.add_argument(
        "--sample", type=_count, default=500, metavar="N", help="how many URLs to fetch (default: 500)"
    )
    forecast.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="processes that will fetch (default: 1)"
    )
    forecast.add_argument(
        "--worker-hour", type=_price, default=0.10, metavar="DOLLARS", help="price of a worker's hour (default: 0.10)"
    )
    forecast.add_argument(
        "--gb-month",
        type=_price,
        default=0.023,
        metavar="DOLLARS",
        help="price of storing a gigabyte for a month (default: 0.023)",
    )
    forecast.add_argument("--json", action="store_true", help="print JSON, for programs")
    forecast.set_defaults(func=_forecast)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"not a number from 1 to 1,000,000: {text!r}")
    return int(text)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < 1e6:
        raise argparse.ArgumentTypeError(f"not a price in dollars: {text!r}")
    return price


def _forecast(args: argparse.Namespace) -> int:
    project = Project.load(args.config)
    from pipeline.engine.lock import build_lock
    from pipeline.stages.forecast import FORECAST, Prices, describe_forecast, make_forecast

    with build_lock(project.workspace):
        found = make_forecast(
            project.workspace,
            project.config,
            project.base_dir,
            sample=args.sample,
            workers=args.workers,
            prices=Prices(args.worker_hour, args.gb_month),
        )
        project.workspace.write_json(FORECAST, found.to_json())
    print(json.dumps(found.to_json()) if args.json else "\n".join(describe_forecast(found)))
    return 0
