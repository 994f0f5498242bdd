"""Has the fork server run a command: ``python fork_client.py COMMAND ARGUMENT...``

A file of its own, with few imports, as hundreds of commands start it.
"""

import json
import os
import socket
import sys


def ask(argv: list[str]) -> int:
    """Have the server run a command with this process's folder, environment and files; its exit status."""
    files = [int(name) for name in os.listdir("/proc/self/fd")]
    files = [file for file in files if os.path.lexists(f"/proc/self/fd/{file}")]  # not that of the listing
    command = {"numbers": files, "argv": argv, "folder": os.getcwd(), "variables": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["FORK_SERVER"])
        socket.send_fds(connection, [b"\0"], files)
        connection.sendall(json.dumps(command).encode() + b"\n")
        status = int.from_bytes(connection.recv(2), "big", signed=True)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1:]))
