"""Feed damaged and odd files to every reader of foreign bytes: `make fuzz FUZZ_SECONDS=600 FUZZ_SEED=7`.

Half of the cases are damaged files (mutate.py), half are made by Hypothesis where there is a grammar (grammars.py).
Every case runs in a forked child: a crash, an exception that a reader does not promise, a stall, or a leap in memory is
a finding. The input of the first of each kind is kept; `PYTHONPATH=tests python -m fuzz --replay FILE` runs it again.
"""

import argparse
import math
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TextIO

import hypothesis
from fuzz.mutate import mutate
from fuzz.targets import Target, load_targets
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

_PROJECT = Path(__file__).parents[2]
_STALL_S = 30.0
_LEAP_BYTES = 700 << 20
_CASES_PER_CHILD = 100


@dataclass
class Outcome:
    """What became of one target's cases. `findings`: what was wrong -> file of the first such input."""

    cases: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    findings: dict[str, Path] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this one; may be given several times")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where inputs that fail are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one kept input again: TARGET-*.bin")
    args = parser.parse_args()
    targets = load_targets()
    if args.replay:
        targets[args.replay.name.split("-")[0]].check(args.replay.read_bytes())
        print("no finding")
        return 0
    chosen = {name: targets[name] for name in args.target or targets}
    outcomes = {name: fuzz(t, args.seed, args.seconds / len(chosen), args.findings) for name, t in chosen.items()}
    for name, outcome in outcomes.items():
        rate = outcome.cases / max(outcome.seconds, 1e-9)
        print(f"{name:12} {outcome.cases:>9,} cases {rate:>7,.0f}/s  slowest {outcome.slowest_s:5.2f} s", end="  ")
        print("ok" if not outcome.findings else f"{len(outcome.findings)} FINDINGS")
    for outcome in outcomes.values():
        for what, file in outcome.findings.items():
            print(f"{file}: {what}")
    return 1 if any(outcome.findings for outcome in outcomes.values()) else 0


def fuzz(
    target: Target, seed: int, seconds: float, findings: Path, *, cases: float = math.inf, kinds: int = 20
) -> Outcome:
    """Run cases of one target until its time is over, `cases` are run, or `kinds` of findings are made.

    Case n of a seed is the same on every machine.
    """
    outcome, number = Outcome(), 0
    start = time.monotonic()
    with TemporaryDirectory(prefix="wit-fuzz-") as folder:
        while time.monotonic() - start < seconds and number < cases and len(outcome.findings) < kinds:
            number = _run_child(target, seed, number, start + seconds, Path(folder), findings, outcome)
    outcome.cases, outcome.seconds = number, time.monotonic() - start
    return outcome


def _run_child(
    target: Target, seed: int, first: int, until: float, folder: Path, findings: Path, outcome: Outcome
) -> int:
    """Run cases in a child, from number `first`; return the number of the next one."""
    case, log = folder / "case", folder / "log"
    case.write_bytes(b"")
    log.write_text("")
    child = os.fork()
    if child == 0:
        _be_child(target, seed, first, until, case, log)
    status = _wait(child, case)
    lines = log.read_text().splitlines()
    done = [line for line in lines if line.startswith("case ")]
    outcome.slowest_s = max([outcome.slowest_s, *(float(line.split()[1]) for line in done)])
    if status == 0:
        return first + len(done)
    number = first + len(done)
    what = next((line for line in lines if not line.startswith("case ")), _ending(status))
    if what not in outcome.findings:
        findings.mkdir(parents=True, exist_ok=True)
        kept = findings / f"{target.name}-{seed}-{number}.bin"
        kept.write_bytes(case.read_bytes())
        outcome.findings[what] = kept
    return number + 1


def _wait(child: int, case: Path) -> int:
    """Wait for a child, and kill one whose case takes too long; return its wait status."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.time() - case.stat().st_mtime > _STALL_S:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1] or 1
        time.sleep(0.05)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"took over {_STALL_S:.0f} s" if number == signal.SIGKILL else f"killed by {signal.Signals(number).name}"
    return f"exit {os.waitstatus_to_exitcode(status)}"


def _be_child(target: Target, seed: int, first: int, until: float, case: Path, log: Path) -> None:
    """Run cases until one is wrong or they are over; then end without the parent's clean-up."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain about every damage
    try:
        with log.open("w", buffering=1) as lines:
            trial = _Trial(target, case, lines)
            if target.grammar is not None and (first // _CASES_PER_CHILD) % 2:
                _try_grammar(trial, target.grammar, f"{target.name} {seed} {first}", until)
            else:
                _try_damaged(trial, target, seed, first, until)
        os._exit(0)
    finally:
        os._exit(1)


def _try_damaged(trial: "_Trial", target: Target, seed: int, first: int, until: float) -> None:
    for number in range(first, first + _CASES_PER_CHILD):
        if time.monotonic() > until:
            return
        trial.run(damaged_case(target, seed, number))


def damaged_case(target: Target, seed: int, number: int) -> bytes:
    """Return one of the target's files, damaged."""
    random = Random(f"{target.name} {seed} {number}")
    return mutate(random, random.choice(target.seeds), target.seeds, target.tokens)


def _try_grammar(trial: "_Trial", grammar: SearchStrategy[bytes], seed: str, until: float) -> None:
    @settings(
        max_examples=_CASES_PER_CHILD,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(seed)
    @given(grammar)
    def run(data: bytes) -> None:
        if time.monotonic() < until:
            trial.run(data)

    run()


@dataclass
class _Trial:
    """Runs cases; the first that is wrong ends the process."""

    target: Target
    case: Path
    lines: TextIO
    peak_kib: int = field(default_factory=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def run(self, data: bytes) -> None:
        self.case.write_bytes(data)
        start = time.process_time()
        try:
            self.target.check(data)
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
            ours = [f for f in frames if f.filename.startswith(str(_PROJECT))] or frames
            place = Path(ours[-1].filename)
            self._fail(f"{type(error).__name__} from {place.parent.name}/{place.name}:{ours[-1].lineno}")
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if peak_kib - self.peak_kib > _LEAP_BYTES >> 10:
            self._fail(f"memory grew by over {_LEAP_BYTES >> 20} MiB")
        self.peak_kib = max(self.peak_kib, peak_kib)
        self.lines.write(f"case {time.process_time() - start:.3f}\n")

    def _fail(self, what: str) -> None:
        self.lines.write(f"{what}\n")
        self.lines.flush()
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
