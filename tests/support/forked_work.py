"""What test_fork_server.py runs: `python forked_work.py WORD...` does its work in a fork."""

import os
import signal
import sys
import time

from pipeline.beam.fork_server import work_in_fork


def work(words: list[str]) -> None:
    """Say who does it, and then do as told."""
    print(os.getpid(), os.environ.get("WORD"), os.getcwd(), *words, flush=True)
    print("an error", file=sys.stderr)
    if words == ["fail"]:
        raise ValueError("told to")
    if words == ["die"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if words == ["sleep"]:
        time.sleep(600)


if __name__ == "__main__":
    sys.exit(work_in_fork(work, ["json"]))
