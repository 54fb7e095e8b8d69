"""The fuzzer finds what it is for, and every reader takes the files it starts from."""

import os
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzz import __main__ as fuzzer
from fuzz.mutate import mutate
from fuzz.targets import Target, load_targets

TARGETS = load_targets()


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_survives_some_damage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "_CASES_PER_CHILD", 20)  # one child damages files, the other has a grammar
    outcome = fuzzer.fuzz(TARGETS[name], seed=11, seconds=120, findings=tmp_path, cases=40)
    assert outcome.findings == {}
    assert outcome.cases > 0


def test_the_same_seed_makes_the_same_cases() -> None:
    first, second = ([mutate(Random(n), b"abc" * 99, [b"xyz"], [b"<"]) for n in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 40


def crash(_: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def stall(_: bytes) -> None:
    time.sleep(60)


def swell(_: bytes) -> None:
    np.ones(600 << 20, np.uint8)  # beyond what a fork of a large process may have been counted with


def fail(data: bytes) -> None:
    raise KeyError(len(data))


@pytest.mark.parametrize(
    ("check", "what"),
    [
        (crash, "killed by SIGSEGV"),
        (stall, "took over 0 s"),
        (swell, "memory grew by over 10 MiB"),
        (fail, "KeyError from fuzz/test_fuzz.py"),
    ],
)
def test_what_goes_wrong_is_found_and_kept(check, what, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fuzzer, "_STALL_S", 0.3 if check is stall else 60.0)
    monkeypatch.setattr(fuzzer, "_LEAP_BYTES", 10 << 20)
    target = Target("bad", [b"seed"], check)
    outcome = fuzzer.fuzz(target, seed=1, seconds=60, findings=tmp_path, kinds=1)
    ((found, kept),) = outcome.findings.items()
    assert found.startswith(what)
    assert kept.name == "bad-1-0.bin"
    assert kept.read_bytes() == fuzzer.damaged_case(target, 1, 0)
