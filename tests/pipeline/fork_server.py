"""Commands that start at once: each is a fork of one process that has imported the libraries.

A pipeline is some twenty processes, and each takes longer to import torch, Lightning and MLflow than to
work through a tiny dataset. Only libraries are imported before the fork, so drgrade itself and the
environment of each command are as in a process of its own. That the commands also start by themselves is
seen by the README's first command and by the tests that start them elsewhere.
"""

import atexit
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NoReturn

ADDRESS = "FORK_SERVER"
"""Environment variable: the server's socket."""
COMMANDS = {"drgrade": "drgrade.cli", "snakemake": "snakemake.cli", "dvc": "dvc.cli"}
# not MMDetection: it loads only with operators of drgrade's
LIBRARIES = (
    "torch", "torchvision", "timm", "pytorch_lightning", "lightly", "mmengine.runner", "mlflow", "sklearn",
    "sklearn.linear_model", "pandas", "pyarrow.parquet", "cv2", "matplotlib.pyplot", "snakemake.cli",
    "dvc.cli", "dvc.repo",
)  # fmt: skip


def start(address: str) -> subprocess.Popen:
    """Start the server, which lives until its standard input is closed; a client that comes early waits."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    command = [sys.executable, __file__, "--serve", str(listener.fileno())]
    with listener:
        return subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )


def client(command: Sequence[str], variables: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """A command and its environment, changed so that the server runs it and what it starts.

    The commands become functions of bash, as Snakemake puts its own environment first on the PATH.
    """
    ask = [sys.executable, "-S", "-E", __file__]
    functions = {f"BASH_FUNC_{name}%%": f'() {{ {shlex.join(ask)} {name} "$@"\n}}' for name in COMMANDS}
    changes = {ADDRESS: os.environ[ADDRESS], "SHELL": "/bin/bash"} | functions
    return [*(ask if command[0] in COMMANDS else ()), *command], variables | changes


def serve(listener: socket.socket) -> NoReturn:
    """Run each command that a client sends; import the libraries at the first, as it may never come."""
    _wait(listener)
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # or the first collection of each command would copy all pages
    while True:
        _wait(listener)
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
    listener.close()
    _attend(connection)


def _wait(listener: socket.socket) -> None:
    """Wait for a client; exit if whoever started the server is gone."""
    if listener not in select.select([listener, sys.stdin], [], [])[0]:
        sys.exit()


def _attend(connection: socket.socket) -> None:
    """For one client: run its command in a child, kill the child if the client goes away, send the status."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    command = json.loads(connection.makefile("rb").readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _become(*files, **command)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(status.to_bytes(2, "big", signed=True))
    os._exit(0)


def _become(*files: int, argv: list[str], folder: str, variables: dict[str, str]) -> NoReturn:
    """Run a command as its installed script would, in this process."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    path = variables.get("PYTHONPATH")
    sys.path[:0] = path.split(os.pathsep) if path else []
    sys.argv = argv
    try:
        status = importlib.import_module(COMMANDS[argv[0]]).main()
    except SystemExit as exit:
        status = exit.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def ask(argv: list[str]) -> int:
    """Have the server run a command with this process's folder, environment and streams; its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        command = {"argv": argv, "folder": os.getcwd(), "variables": dict(os.environ)}
        connection.sendall(json.dumps(command).encode() + b"\n")
        status = int.from_bytes(connection.recv(2), "big", signed=True)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    sys.exit(ask(sys.argv[1:]))
