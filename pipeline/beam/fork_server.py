"""Start worker processes by forking one that has imported everything already.

Importing Beam and the stages takes three seconds of CPU, and every job of a build starts all its workers again. So the
first worker of a process starts a server, which imports once and then forks a worker per request: in milliseconds, and
with shared memory. The server belongs to the process that started the worker (the driver, a Spark executor, a job
server): it ends with that process, and ends its workers.

The server has one thread and accepts only its user: its socket is in a folder that only the user can enter.
"""

import fcntl
import importlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.private_folder import private_folder

Work = Callable[[list[str]], None]

_LENGTH_BYTES = 4
_CODE_BYTES = 2
_BACKLOG = 1_024  # workers that wait to be accepted
_END_TIMEOUT_S = 5
_KILLED = 128
"""Added to the number of the signal that ended a fork, as shells do."""


@dataclass(frozen=True)
class Request:
    """The arguments, environment and working directory of a process."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str

    @classmethod
    def of_this_process(cls) -> "Request":
        return cls(sys.argv[1:], dict(os.environ), os.getcwd())


def work_in_fork(work: Work, modules: Sequence[str]) -> int:
    """Run `work` with this process's arguments, environment, output and folder in a fork; return its exit code.

    The fork has `modules` imported. On platforms without pidfd (macOS), or if the parent process has ended, `work` runs
    in this process.
    """
    connection = _connect(os.getppid(), work, modules) if hasattr(os, "pidfd_open") else None
    if connection is None:
        work(sys.argv[1:])
        return 0
    _send(connection, Request.of_this_process())
    reply = connection.recv(_CODE_BYTES)
    code = int.from_bytes(reply, "big", signed=True) if reply else 1
    return code if code >= 0 else _KILLED - code


def _connect(owner: int, work: Work, modules: Sequence[str]) -> socket.socket | None:
    """Connect to the server of `owner`, after starting it if needed; None if that is not possible."""
    if owner == 1:  # orphans are reparented to PID 1, which never exits
        return None
    try:
        ending = os.pidfd_open(owner)
        folder = private_folder("wit-workers")
        return _connect_in(folder, folder / f"{owner}-{_started(owner)}", ending, work, modules)
    except OSError:
        return None


def _connect_in(folder: Path, address: Path, ending: int, work: Work, modules: Sequence[str]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError, ConnectionRefusedError):
        connection.connect(str(address))
        return connection
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(str(address))  # another worker was quicker
            return connection
        address.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(address))
        listener.listen(_BACKLOG)
    if os.fork() == 0:
        connection.close()
        _exit_after(lambda: _serve(listener, address, ending, work, modules))
    listener.close()
    connection.connect(str(address))  # accepted once the server has imported the modules
    return connection


def _started(process: int) -> str:
    """Return when a process started, in clock ticks since boot: with its id, a name that is never used again."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return fields[19]  # field 22 of proc(5), counted from the state that follows the name


def _send(connection: socket.socket, request: Request) -> None:
    message = json.dumps(asdict(request)).encode()
    socket.send_fds(connection, [len(message).to_bytes(_LENGTH_BYTES, "big")], [1, 2])
    connection.sendall(message)


def _receive(connection: socket.socket) -> tuple[Request, list[int]]:
    """Return a request and the file descriptors to write output and errors to."""
    length, files, _, _ = socket.recv_fds(connection, _LENGTH_BYTES, 2)
    with connection.makefile("rb") as stream:
        message = stream.read(int.from_bytes(length, "big"))
    return Request(**json.loads(message)), files


def _serve(listener: socket.socket, address: Path, ending: int, work: Work, modules: Sequence[str]) -> None:
    """Fork a worker per connection until the process of the pidfd `ending` ends."""
    os.setsid()  # Ctrl-C is for the driver
    listener.listen(_BACKLOG)  # again: `end_server` sees the process that called it last
    _silence()
    selector = selectors.DefaultSelector()
    try:
        selector.register(ending, selectors.EVENT_READ)
        with suppress(Exception):  # let the worker hit and report the ImportError
            for module in modules:
                importlib.import_module(module)
        selector.register(listener, selectors.EVENT_READ)
        while ending not in (ready := [key.fileobj for key, _ in selector.select()]):
            for file in ready:
                if file is listener:
                    _fork_worker(listener, selector, work)
                else:
                    _report_end(selector, file)
    finally:
        address.unlink(missing_ok=True)
        os.killpg(0, signal.SIGKILL)


def _fork_worker(listener: socket.socket, selector: selectors.BaseSelector, work: Work) -> None:
    connection, _ = listener.accept()
    process = os.fork()
    if process == 0:
        others = [key.data[1] for key in selector.get_map().values() if key.data is not None]
        for other in others:
            other.close()
        selector.close()
        listener.close()
        _exit_after(lambda: _be_worker(connection, work))
    selector.register(os.pidfd_open(process), selectors.EVENT_READ, (process, connection))


def _report_end(selector: selectors.BaseSelector, ended: Any) -> None:
    """Report how a fork ended to the process that waits for it: its exit code, or minus the signal that killed it."""
    process, connection = selector.unregister(ended).data
    os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with connection, suppress(OSError):
        connection.sendall(code.to_bytes(_CODE_BYTES, "big", signed=True))


def end_server() -> None:
    """Kill the server of this process and its workers, if there is one, and wait until they are gone."""
    try:
        address = private_folder("wit-workers") / f"{os.getpid()}-{_started(os.getpid())}"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(address))
            server, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        ended = os.pidfd_open(server)
        os.killpg(server, signal.SIGKILL)  # it leads the group of its workers
    except (OSError, AttributeError):  # none was started, or there can be none
        return
    select.select([ended], [], [], _END_TIMEOUT_S)
    os.close(ended)
    address.unlink(missing_ok=True)


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(nothing, file)


def _be_worker(connection: socket.socket, work: Work) -> None:
    request, files = _receive(connection)
    for target, file in enumerate(files, start=1):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    work(request.arguments)


def _end_with(connection: socket.socket) -> None:
    """End this process when the one that requested it ends."""
    with suppress(OSError):
        connection.recv(1)
    os._exit(1)


def _exit_after(work: Callable[[], None]) -> None:
    """Run `work` and end this process without the exit handlers inherited from its parent."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
