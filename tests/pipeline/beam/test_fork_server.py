"""Workers forked by the server of the process that wants them: they look, fail and die as if started by it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

SCRIPT = str(Path(__file__).parents[2] / "support" / "forked_work.py")
ROOT = str(Path(__file__).parents[3])


@pytest.fixture
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment with a temporary folder of its own; socket addresses have to be short."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield os.environ | {"TMPDIR": folder, "PYTHONPATH": ROOT}


def run(private: dict[str, str], *words: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *words], env=private | changes, capture_output=True, text=True)


def server_folder(private: dict[str, str]) -> Path:
    return Path(private["TMPDIR"], f"wit-workers-{os.getuid()}")


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def is_gone(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


def test_a_fork_has_the_arguments_environment_folder_and_output_of_who_asked(private, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "a", "b c"],
        env=private | {"WORD": "straße"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split(maxsplit=1)[1] == f"straße {tmp_path} a b c\n"
    assert done.stderr == "an error\n"
    assert done.returncode == 0


def test_one_server_serves_all_workers_of_a_process(private):
    first, second = run(private, "x", WORD="1"), run(private, "y", WORD="2")
    assert [first.stdout.split()[1], second.stdout.split()[1]] == ["1", "2"]
    assert len(list(server_folder(private).glob(f"{os.getpid()}-*"))) == 1


def test_workers_that_start_together_share_a_server(private):
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(i)], env=private, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for i in range(8)
    ]
    said = [process.communicate()[0].decode().split()[-1] for process in started]
    assert sorted(said) == [str(i) for i in range(8)]
    assert len(list(server_folder(private).glob(f"{os.getpid()}-*"))) == 1


def test_a_failure_is_reported(private):
    failed = run(private, "fail")
    assert failed.returncode == 1
    assert "ValueError: told to" in failed.stderr


def test_a_worker_that_is_killed_is_a_failure(private):
    assert run(private, "die").returncode == 128 + signal.SIGKILL
    assert run(private, "again").returncode == 0


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_the_process_that_asked_for_it(private, blow):
    asking = subprocess.Popen([sys.executable, SCRIPT, "sleep"], env=private, stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    worker = int(asking.stdout.readline().split()[0])
    assert worker != asking.pid
    asking.send_signal(blow)
    asking.communicate()
    wait_until(lambda: is_gone(worker))


def test_the_server_and_its_workers_end_with_the_process_they_belong_to(private):
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                import subprocess, sys
                subprocess.Popen([sys.executable, {SCRIPT!r}, "sleep"])
                sys.stdin.read()
            """),
        ],
        env=private,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    worker = int(owner.stdout.readline().split()[0])
    server = psutil.Process(worker).ppid()
    owner.kill()
    owner.communicate()
    wait_until(lambda: is_gone(worker) and is_gone(server))
    assert [path.name for path in server_folder(private).iterdir()] == ["lock"]


def test_a_process_can_end_its_server_and_workers(private):
    code = textwrap.dedent(f"""
        import subprocess, sys
        from pipeline.beam.fork_server import end_server
        worker = subprocess.Popen([sys.executable, {SCRIPT!r}, "sleep"], stdout=subprocess.PIPE, text=True)
        print(worker.stdout.readline(), end="", flush=True)
        sys.stdin.readline()
        end_server()
        print("ended", flush=True)
        sys.stdin.read()
    """)
    owner = subprocess.Popen(
        [sys.executable, "-c", code], env=private, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    worker = int(owner.stdout.readline().split()[0])
    server = psutil.Process(worker).ppid()
    owner.stdin.write("end\n")
    owner.stdin.flush()
    assert owner.stdout.readline() == "ended\n"
    assert is_gone(server)
    wait_until(lambda: is_gone(worker))
    assert owner.poll() is None
    owner.communicate()


def test_a_server_that_was_killed_is_replaced(private):
    asking = subprocess.Popen([sys.executable, SCRIPT, "sleep"], env=private, stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    server = psutil.Process(psutil.Process(int(asking.stdout.readline().split()[0])).ppid())
    server.kill()
    wait_until(lambda: is_gone(server.pid))
    assert run(private, "next").returncode == 0
    asking.kill()
    asking.communicate()


def test_a_folder_that_others_can_enter_is_not_used(private):
    server_folder(private).mkdir(mode=0o755)
    done = run(private, "alone")
    assert done.returncode == 0
    assert done.stdout.endswith("alone\n")
    assert list(server_folder(private).iterdir()) == []
