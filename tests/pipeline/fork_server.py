"""Commands that start at once: each is a fork of one process that has imported the libraries.

A pipeline is some twenty processes, and each takes longer to import torch, Lightning and MLflow than to
work through a tiny dataset. Only libraries are imported before the fork, so drgrade itself and the
environment of each command are as in a process of its own. That the commands also start by themselves is
seen by the README's first command and by the tests that start them elsewhere. Scripts of other tests start
in the same way (:data:`PYTHON`), and so do the processes of a pool that a command spawns.
"""

import atexit
import fcntl
import gc
import importlib.util
import inspect
import json
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

ADDRESS = "FORK_SERVER"
"""Environment variable: the server's socket, which fork_client.py reads."""
ASK = (sys.executable, "-S", "-E", str(Path(__file__).with_name("fork_client.py")))
"""Followed by a command: what has the server run it."""
PYTHON = (*ASK, "python")
"""An interpreter that has imported the libraries: ``python -c CODE`` or ``python FILE``, with arguments."""
MOST_FILES = 64
"""Files of a client that its command gets."""
COMMANDS = {"drgrade": "drgrade.cli", "snakemake": "snakemake.cli", "dvc": "dvc.cli"}
# not MMDetection: it loads only with operators of drgrade's
LIBRARIES = (
    "torch", "torchvision", "timm", "pytorch_lightning", "lightly", "mmengine.runner", "mlflow",
    "mlflow.store.tracking.sqlalchemy_store", "sklearn", "sklearn.linear_model", "pandas", "pyarrow.parquet",
    "cv2", "imagehash", "simplejpeg", "matplotlib.pyplot", "numba", "imgaug", "pycocotools.coco", "skimage",
    "pytorch_grad_cam", "snakemake.cli", "snakemake.report.html_reporter", "snakemake.executors.local", "yte",
    "dvc.cli", "dvc.repo",
)  # fmt: skip


def start(address: str) -> subprocess.Popen:
    """Start the server, which lives until its standard input is closed; a client that comes early waits."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    script = interpreter(address)
    # the tracker of a pool's resources imports nothing, and outlives the pool
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *resource_tracker*) exec {sys.executable} "$@" ;; esac\n'
        f'exec {shlex.join(PYTHON)} "$@"\n'
    )
    script.chmod(0o700)
    command = [sys.executable, __file__, str(listener.fileno())]
    with listener:
        return subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )


def interpreter(address: str) -> Path:
    """:data:`PYTHON` as one file, for :func:`multiprocessing.set_executable`."""
    return Path(address).with_name("python")


def client(command: Sequence[str], variables: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """A command and its environment, changed so that the server runs it and what it starts.

    The commands become functions of bash, as Snakemake puts its own environment first on the PATH.
    """
    functions = {f"BASH_FUNC_{name}%%": f'() {{ {shlex.join(ASK)} {name} "$@"\n}}' for name in COMMANDS}
    changes = {ADDRESS: os.environ[ADDRESS], "SHELL": "/bin/bash"} | functions
    return [*(ASK if command[0] in COMMANDS else ()), *command], variables | changes


def serve(listener: socket.socket) -> NoReturn:
    """Run each command that a client sends; import the libraries at the first, as it may never come."""
    _wait(listener)
    for name in LIBRARIES:
        importlib.import_module(name)
    inspect.getmodule(compile("", "", "exec"))  # an unknown file: all modules are looked at, and remembered
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
    _, files, _, _ = socket.recv_fds(connection, 1, MOST_FILES)
    command = json.loads(connection.makefile("rb").readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _become(files, **command)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(status.to_bytes(2, "big", signed=True))
    os._exit(0)


def _become(
    files: list[int], numbers: list[int], argv: list[str], folder: str, variables: dict[str, str]
) -> NoReturn:
    """Run a command as its installed script would, in this process.

    Args:
        files: open files of the client, as received.
        numbers: the numbers that they have there.
        argv: the command.
        folder: where it runs.
        variables: its environment.
    """
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, max(numbers) + 1) for file in files]
    for file in files:
        os.close(file)
    for number, file in zip(numbers, above, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    path = variables.get("PYTHONPATH")
    sys.path[:0] = path.split(os.pathsep) if path else []
    _remember_files()
    sys.argv = argv
    multiprocessing.set_executable(str(interpreter(variables[ADDRESS])))
    try:
        status = _python(*argv[1:]) if argv[0] == "python" else _main(argv[0])
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


def _remember_files() -> None:
    """Tell :func:`inspect.getmodule` which file is which module of drgrade.

    Pydantic asks it about every class with documented fields. It would look at each of the thousands of
    modules here, once for every file that it does not know.
    """
    package = Path(importlib.util.find_spec("drgrade").origin).parent
    for file in package.rglob("*.py"):
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        inspect.modulesbyfile[str(file)] = name.removesuffix(".__init__")


def _main(command: str) -> int | str | None:
    return importlib.import_module(COMMANDS[command]).main()


def _python(*arguments: str) -> None:
    """Run ``-c CODE`` or a file, with arguments; options before ``-c`` are ignored."""
    if arguments[0].startswith("-"):
        code, *rest = arguments[arguments.index("-c") + 1 :]
        main = sys.modules["__main__"] = ModuleType("__main__")
        sys.argv = ["-c", *rest]
        sys.path.insert(0, "")
        exec(code, vars(main))
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
