"""Ports: whether one is free, who has it, and one that is."""

from __future__ import annotations

import errno
import socket
import sys

from tasks.errors import PortInUse, Refused


def reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1" if host != "::" else "[::1]"
    return f"[{host}]" if ":" in host else host


def free_port(host: str) -> int:
    """A port that nobody listens on right now."""
    with _bound(host, 0) as listener:
        return int(listener.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raise PortInUse, naming the process, where `port` is taken; Refused for a bad address."""
    _bound(host, port).close()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        why = getattr(error, "strerror", "") or str(error)
        raise Refused(f"host={host} is not an address", why) from None
    listener = socket.socket(family, kind, protocol)
    try:
        # As a server does: a port in TIME_WAIT is free. Not SO_REUSEPORT, which llama-server sets:
        # with it, two servers would share the port and each get some of the requests.
        # On Windows SO_REUSEADDR means just that, and TIME_WAIT is free without.
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _explain(error, host, port) from None
    return listener


def _explain(error: OSError, host: str, port: int) -> PortInUse | Refused:
    if error.errno == errno.EADDRNOTAVAIL:
        return Refused(f"host={host} is not an address of this machine", fix="try host=127.0.0.1")
    if error.errno == errno.EACCES:
        return Refused(f"port {port} needs more rights than you have", fix="take one above 1023")
    holder = who_listens(port)
    return PortInUse(
        f"port {port} is in use",
        f"{holder} listens there" if holder else "another user's process listens there",
        "stop it, or take another port with port=N or port=auto",
    )


def who_listens(port: int) -> str:
    """The process that listens on `port`, as `name (pid N)`; empty where it cannot be seen."""
    import psutil

    for process in psutil.process_iter():
        try:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port:
                    return f"{process.name()} (pid {process.pid})"
        except psutil.Error:
            continue
    return ""
