"""Ports: real sockets, and the process that has one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from tasks.errors import PortInUse, Refused
from tasks.port import check_port, free_port, reachable

LISTENER = """
import socket, sys
listener = socket.socket()
if sys.argv[1] == "shared":
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind((sys.argv[2], 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["plain", "shared"])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_taken_is_refused_with_the_process(kind: str, address: str) -> None:
    if kind == "shared" and not hasattr(socket, "SO_REUSEPORT"):
        pytest.skip("this system has no SO_REUSEPORT")
    child = subprocess.Popen(
        [sys.executable, "-c", LISTENER, kind, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout
        port = int(child.stdout.readline())
        name = psutil.Process(child.pid).name()
        with pytest.raises(PortInUse) as taken:
            check_port("127.0.0.1", port)
        child.communicate()
    assert str(taken.value).splitlines()[:2] == [
        f"port {port} is in use",
        f"  why: {name} (pid {child.pid}) listens there",
    ]
    check_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_free_port_is_free(host: str) -> None:
    port = free_port(host)
    assert 1 <= port <= 65535
    check_port(host, port)


@pytest.mark.parametrize("host", ["not an address", "a" * 100, "a..b", "999.1.1.1"])
def test_a_host_that_is_no_address(host: str) -> None:
    with pytest.raises(Refused, match="is not an address"):
        check_port(host, 8080)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(Refused, match=r"host=192\.0\.2\.1 is not an address of this machine"):
        check_port("192.0.2.1", 8080)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may take every port"
)
def test_a_port_that_needs_rights() -> None:
    with pytest.raises(Refused, match="port 1 needs more rights"):
        check_port("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("box.lan", "box.lan"),
    ],
)
def test_where_a_client_reaches_the_server(host: str, address: str) -> None:
    assert reachable(host) == address
