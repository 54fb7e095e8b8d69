"""`wit gc`: what no build owns in a workspace, how large it is, and its removal."""

import argparse
from typing import TYPE_CHECKING

from pipeline.cli.arguments import add_config
from pipeline.project import Project

if TYPE_CHECKING:
    from pipeline.stages.garbage import Stray

_MOST_SHOWN = 5


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    gc = commands.add_parser(
        "gc",
        help="list the files of a workspace that nothing owns, and remove them on request",
        description="List the files in a workspace's folders that no finished step owns, by folder, with their size. "
        "Results that a stopped build has fetched and not used yet are listed and stay.",
        allow_abbrev=False,
    )
    add_config(gc)
    gc.add_argument("--remove", action="store_true", help="remove what is listed as removable")
    gc.set_defaults(func=_gc)


def _gc(args: argparse.Namespace) -> int:
    from pipeline.engine.lock import build_lock
    from pipeline.stages.garbage import find_strays

    workspace = Project.load(args.config).workspace
    with build_lock(workspace):
        strays = list(find_strays(workspace))
        _print_folders([stray for stray in strays if stray.is_removable], "owned by nothing")
        _print_folders([stray for stray in strays if not stray.is_removable], "of a stopped build; the next uses it")
        removable = [stray for stray in strays if stray.is_removable]
        total = sum(stray.bytes for stray in removable)
        if args.remove:
            workspace.remove([stray.name for stray in removable])
            print(f"removed {len(removable):,} files, {total:,} bytes")
        else:
            print(f"{len(removable):,} files, {total:,} bytes can be removed{': add --remove' if removable else ''}")
    return 0


def _print_folders(strays: "list[Stray]", what: str) -> None:
    folders: dict[str, list[Stray]] = {}
    for stray in strays:
        folders.setdefault(stray.name.split("/")[0], []).append(stray)
    for folder, found in folders.items():
        names = ", ".join(stray.name for stray in found[:_MOST_SHOWN])
        more = f" and {len(found) - _MOST_SHOWN:,} more" if len(found) > _MOST_SHOWN else ""
        print(f"{folder}/: {len(found):,} files, {sum(stray.bytes for stray in found):,} bytes, {what}: {names}{more}")
