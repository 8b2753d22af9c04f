"""Several nodes of one allocation at one stage: task 0 pulls, the others run the same stage for its ranks.

Task 0 listens on a free port and leaves its addresses and a secret in a file of the submission; the others connect, are
told what to run, and tell how it went. Lines of JSON over TCP: a file would come late through the caches of NFS.
"""

import errno
import json
import os
import secrets
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.failures import Failure
from toolkit.manifest.files import write_atomic

JOIN_SECONDS = 300.0  # that the other tasks may come later than the first, or a busy file system hide the file


@dataclass(kw_only=True)
class Link:
    """One end of a connection. `node` is the number of the node at the other end and `name` its name, `address` the
    leader's as it is seen from there."""

    sock: socket.socket
    node: int = 0
    name: str = ""
    address: str = ""
    _rest: bytes = field(default=b"", init=False)

    def tell(self, words: Mapping[str, Any]) -> None:
        """Send one message; whoever has gone does not hear it, and is missed when it should answer."""
        with suppress(OSError):
            self.sock.sendall(json.dumps(words).encode() + b"\n")

    def hear(self) -> list[dict[str, Any]] | None:
        """The messages that have come; None once the other end is gone. Call it when the socket can be read."""
        try:
            block = self.sock.recv(1 << 16)
        except OSError:
            block = b""
        if not block:
            return None
        *lines, self._rest = (self._rest + block).split(b"\n")
        return [json.loads(line) for line in lines]


class Leader:
    """Task 0's side: the links to the other nodes, all of which are there when it has been made."""

    def __init__(self, file: Path, nodes: int, stopping: Callable[[], bool]) -> None:
        """
        Raises:
            OSError: some nodes did not come.
        """
        self.links: list[Link] = []
        self.file = file
        secret = secrets.token_hex(16)
        with socket.create_server(("", 0), backlog=nodes) as server:
            hosts = list(dict.fromkeys([os.environ.get("SLURMD_NODENAME", ""), socket.gethostname(), socket.getfqdn()]))
            words = {"hosts": [host for host in hosts if host], "port": server.getsockname()[1], "secret": secret}
            write_atomic(file, json.dumps(words).encode())
            file.chmod(0o600)
            deadline = time.monotonic() + JOIN_SECONDS
            while len(self.links) < nodes - 1 and not stopping():
                if time.monotonic() > deadline:
                    missing = nodes - 1 - len(self.links)
                    raise OSError(errno.EREMOTEIO, f"{missing} of {nodes} nodes did not come in {JOIN_SECONDS:.0f} s")
                if select.select([server], [], [], 1.0)[0]:
                    self._greet(server.accept()[0], secret)

    def _greet(self, sock: socket.socket, secret: str) -> None:
        """Take in whoever knows the secret: a port is open to everybody on the network."""
        sock.settimeout(10)
        link = Link(sock=sock)
        hello = (link.hear() or [{}])[0]
        if not secrets.compare_digest(str(hello.get("secret", "")), secret):
            sock.close()
            return
        link.node, link.name, link.address = hello["node"], hello["name"], hello["address"]
        self.links.append(link)

    def meeting(self) -> tuple[str, int]:
        """Address and port where the ranks meet: this node's, as another one reached it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return self.links[0].address, probe.getsockname()[1]

    def tell(self, words: Mapping[str, Any]) -> None:
        """Tell all nodes."""
        for link in self.links:
            link.tell(words)

    def hear(self) -> list[dict[str, Any]]:
        """What the nodes have said, without waiting; a node that is gone counts as a failure."""
        said: list[dict[str, Any]] = []
        for link in list(self.links):
            if select.select([link.sock], [], [], 0)[0]:
                words = link.hear()
                if words is None:
                    self.links.remove(link)
                    message = f"node {link.name} of the job is gone, or its task has died"
                    words = [{"event": "failed", "reason": Failure.NODE_FAIL, "message": message, "node": link.name}]
                said += words
        return said

    def close(self) -> None:
        """Let the others end."""
        self.tell({"do": "end"})
        for link in self.links:
            link.sock.close()
        self.file.unlink(missing_ok=True)


def join(file: Path, node: int, stopping: Callable[[], bool]) -> Link | None:
    """Another task's side: the link to task 0; None if it did not come, or this one is to stop."""
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline and not stopping():
        with suppress(OSError, ValueError):  # not there yet, half there, or the leader's node is booting
            os.listdir(file.parent)  # makes NFS look again
            words = json.loads(file.read_bytes())
            for host in words["hosts"]:
                with suppress(OSError):
                    sock = socket.create_connection((host, words["port"]), timeout=10)
                    sock.settimeout(None)
                    link = Link(sock=sock)
                    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
                    mine = {"node": node, "name": name, "address": sock.getpeername()[0]}
                    link.tell({"secret": words["secret"], **mine})
                    return link
        time.sleep(0.2)
    return None
