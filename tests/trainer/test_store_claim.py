"""One run at a time in a folder on a store, on whatever machines the runs are."""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import fsspec
import pytest

from trainer import store_claim
from trainer.errors import TrainerError
from trainer.store_claim import NAME, StoreClaim

URL = "memory://runs/one"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the store, which is empty; what takes minutes takes a second."""
    monkeypatch.setattr(store_claim, "RENEW_S", 0.05)
    monkeypatch.setattr(store_claim, "STALE_S", 1.0)
    monkeypatch.setattr(store_claim, "WATCH_S", 0.4)
    monkeypatch.setattr(store_claim, "_LOOK_S", 0.02)
    store = fsspec.filesystem("memory")
    if store.exists("/runs"):
        store.rm("/runs", recursive=True)
    return store


def _leave(store: Any, **keys: Any) -> None:
    about = {"token": "other", "host": "elsewhere", "place": "there", "pid": 7, "renewed": time.time(), **keys}
    store.pipe_file(f"/runs/one/{NAME}", json.dumps(about).encode())


def _holder(store: Any) -> dict[str, Any]:
    return dict(json.loads(store.cat_file(f"/runs/one/{NAME}")))


def test_the_object_is_there_while_it_is_held_and_says_by_whom(quick: Any):
    with StoreClaim(URL).held():
        told = _holder(quick)
        assert (told["host"], told["pid"]) == (store_claim.socket.gethostname(), os.getpid())
    assert not quick.exists(f"/runs/one/{NAME}")


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"renewed": time.time() - 1e6},  # of a clock that is days behind
        {"host": store_claim.socket.gethostname(), "pid": os.getpid()},  # of a container with the name of this one
    ],
)  # fmt: skip
def test_a_run_that_another_machine_renews_is_not_disturbed(quick: Any, keys: dict[str, Any]):
    _leave(quick, **keys)
    renewing = threading.Timer(0.2, _leave, (quick,))
    renewing.start()
    message = r"another run is training in memory://runs/one \(process 7 on elsewhere\)"
    with pytest.raises(TrainerError, match=message), StoreClaim(URL).held():
        pass
    renewing.join()
    assert _holder(quick)["token"] == "other"


def test_of_two_that_wait_for_a_killed_run_one_has_its_place(quick: Any):
    """Both wait until the same moment; their looks at the store come one after the other."""
    _leave(quick)
    held: list[bool] = []
    refused: list[str] = []
    done = threading.Event()

    def take(number: int) -> None:
        done.wait(0.03 * number)
        claim = StoreClaim(URL)
        try:
            with claim.held():
                done.wait(0.5)
                held.append(claim.is_lost)
        except TrainerError as error:
            refused.append(str(error))

    runs = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert held == [False]
    assert len(refused) == 2
    assert all("another run is training in" in line for line in refused)


@pytest.mark.parametrize("age_s", [0.0, 1e6, -1e6])  # of a clock that may be wrong
def test_what_a_killed_run_left_is_taken_over_when_nobody_renews_it(quick: Any, age_s: float):
    _leave(quick, renewed=time.time() - age_s)
    with StoreClaim(URL).held():
        assert _holder(quick)["pid"] == os.getpid()


def test_a_run_that_ended_while_another_waits_makes_room(quick: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_claim, "STALE_S", 1e6)
    _leave(quick)
    threading.Timer(0.1, quick.rm_file, (f"/runs/one/{NAME}",)).start()
    with StoreClaim(URL).held():
        assert _holder(quick)["pid"] == os.getpid()


def test_what_a_process_of_this_machine_left_is_taken_over_at_once(quick: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_claim, "STALE_S", 1e6)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):  # the second: of an earlier run of this process
        _leave(quick, host=store_claim.socket.gethostname(), place=store_claim._place(), pid=pid)
        with StoreClaim(URL).held():
            pass


@pytest.mark.parametrize("content", [b"", b"started\n", b"[1]", b'{"token": 1}', b"\xff"])
def test_an_object_of_another_form_counts_as_none(quick: Any, content: bytes):
    quick.pipe_file(f"/runs/one/{NAME}", content)
    with StoreClaim(URL).held():
        assert _holder(quick)["pid"] == os.getpid()


def test_of_two_that_start_in_one_moment_one_has_it(quick: Any, monkeypatch: pytest.MonkeyPatch):
    """The second sees no object, but finds one when it creates its own."""
    second = StoreClaim(URL)
    look, seen = second._holder, []
    monkeypatch.setattr(second, "_holder", lambda: look() if seen else seen.append(1) or {})
    with StoreClaim(URL).held():
        with pytest.raises(TrainerError, match="another run is training in"), second.held():
            pass
        assert _holder(quick)["token"] != second._token


def test_a_run_that_was_away_finds_that_another_has_taken_over(quick: Any):
    claim = StoreClaim(URL)
    with claim.held():
        claim.check()
        _leave(quick)
        with pytest.raises(TrainerError, match=r"another run has taken memory://runs/one over"):
            claim.check()
        while not claim.is_lost:
            time.sleep(0.01)
    assert _holder(quick)["token"] == "other"  # neither renewed nor removed


def test_a_run_that_was_away_finds_that_another_has_come_and_gone(quick: Any, monkeypatch: pytest.MonkeyPatch):
    claim = StoreClaim(URL)
    with claim.held():
        quick.rm_file(f"/runs/one/{NAME}")
        claim.check()  # by hand: it is made again
        while not quick.exists(f"/runs/one/{NAME}"):
            time.sleep(0.01)
        monkeypatch.setattr(store_claim, "STALE_S", -1.0)  # the last renewal was long ago
        quick.rm_file(f"/runs/one/{NAME}")
        with pytest.raises(TrainerError, match="has taken"):
            claim.check()
