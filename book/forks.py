"""Kernels forked from one process that has imported the libraries already, instead of each importing them anew.

That process, the server, forks a kernel for each request, so every chapter starts as the server is: fresh. It imports
nothing of this project, so that a kernel reads the code of its own tree. A kernel and the worker that asked for it hold
the two ends of a socket; whichever ends first, and however, the other one sees it closed.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

LIBRARIES = (
    *("ipykernel.kernelapp", "matplotlib.pyplot", "pandas", "scipy.stats", "seaborn", "sklearn.datasets"),
    *("statsmodels.api", "torch", "torch._dynamo"),  # the last is imported by torch.func and torch.optim, when called
)
"""What several chapters import, apart from this project; none starts a thread, which a fork would be without."""


@contextlib.contextmanager
def fork_server(environment: dict[str, str], log: Path) -> Iterator[socket.socket]:
    """A socket that workers ask for kernels by; the server ends when nobody holds it any more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, log.open("ab") as stderr:
        server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *LIBRARIES],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the process that asks, which then ends the others
        )
    try:
        yield ours
    finally:
        ours.close()
        server.wait()


class Kernel:
    """A forked kernel as its worker sees it: the part of `subprocess.Popen` that Jupyter makes use of.

    Raises
    ------
    ConnectionError
        If the server or the kernel is killed before the kernel has begun.
    """

    stdin = stdout = stderr = None

    def __init__(self, server: socket.socket, **request: Any) -> None:
        self.lifeline, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(server, [b"kernel"], [theirs.fileno()])
        self.lifeline.sendall(json.dumps(request).encode() + b"\n")
        pid = self.lifeline.recv(32)
        if not pid:
            raise ConnectionResetError("the kernel ended before it began")
        self.pid = int(pid)

    def poll(self) -> int | None:
        """None while the kernel lives; then 1, as nobody asks how it ended."""
        return 1 if select.select([self.lifeline], [], [], 0)[0] else None

    def wait(self) -> int:
        select.select([self.lifeline], [], [])
        return 1

    def send_signal(self, signum: int) -> None:
        """Signal the kernel and what it has started, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkProvisioner(LocalProvisioner):
    """Launches a kernel by asking `server` for a fork; without one, as Jupyter does."""

    server: ClassVar[socket.socket | None] = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        if self.server is None:
            return await super().launch_kernel(cmd, **kwargs)
        arguments, cwd = cmd[cmd.index("-f") :], str(kwargs.get("cwd") or Path.cwd())
        self.process = Kernel(self.server, arguments=arguments, cwd=cwd, environment=dict(kwargs["env"]))
        self.pid, self.cwd = self.process.pid, cwd
        return self.connection_info


class ForkManager(AsyncKernelManager):
    """The kernel manager for papermill whose kernels are forks."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.provisioner = ForkProvisioner(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)


def serve(requests: socket.socket, libraries: list[str]) -> None:
    """Import the libraries, then fork a kernel a request, until nobody is left who could ask; returns in each fork."""
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # read when ipykernel is imported: a kernel ends with its parent
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as ipykernel would, but later
    builtins.get_ipython = lambda: SimpleNamespace(kernel=None)  # pandas lays tables out for a terminal otherwise
    for name in libraries:
        with contextlib.suppress(ImportError):  # a chapter that needs it will say so
            importlib.import_module(name)
    del builtins.get_ipython  # the kernel brings its own
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels here
    while True:
        asked, descriptors, *_ = socket.recv_fds(requests, 16, 1)
        if not asked:
            return
        lifeline = socket.socket(fileno=descriptors[0])
        if os.fork() == 0:
            requests.close()
            return become_kernel(lifeline)
        lifeline.close()


def become_kernel(lifeline: socket.socket) -> None:
    """Be the kernel that the other end of `lifeline` asks for, as if this process had just been started for it."""
    import numpy as np
    import torch
    from ipykernel.kernelapp import launch_new_instance

    request = json.loads(lifeline.makefile("rb").readline())
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    np.random.seed()  # noqa: NPY002  # afresh, as the other one: the server's state would be that of every chapter
    torch.default_generator.seed()

    def watch() -> None:
        lifeline.recv(1)  # until its worker ends: nothing is ever sent
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    lifeline.sendall(str(os.getpid()).encode())
    launch_new_instance()


if __name__ == "__main__":
    del sys.path[0]  # this folder, which kernels are not to import from
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
