"""A forward proxy on loopback for the tests: it notes every host that it was asked for."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PIECE = 1 << 16


class Proxy(ThreadingHTTPServer):
    """A proxy that runs for the length of a `with` block.

    `names` are hosts that only this proxy knows the address of.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names = names or {}
        self.hosts: list[str] = []
        """HOST:PORT of every request and every tunnel, in their order."""
        self.tunnels: list[str] = []
        """Those of them that were asked for by CONNECT."""
        self.failures: list[BaseException] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        if self.failures:
            raise self.failures[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # That one of the two ends goes away is no failure of the proxy's.
        if error and not isinstance(error, (ConnectionError, http.client.HTTPException)):
            self.failures.append(error)

    def environment(self) -> dict[str, str]:
        """What sends a client's requests here, those to loopback included."""
        return {"HTTP_PROXY": self.url, "HTTPS_PROXY": self.url, "NO_PROXY": ""}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _address(self, host: str, port: int) -> tuple[str, int]:
        self.server.hosts.append(f"{host}:{port}")
        return self.server.names.get(host, host), port

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        self.server.tunnels.append(self.path)
        self.close_connection = True
        try:
            target = socket.create_connection(self._address(host, int(port)))
        except OSError as error:
            self.send_error(502, str(error))
            return
        with target:
            self.send_response(200, "Connection established")
            self.end_headers()
            back = threading.Thread(target=_pump, args=(target, self.connection), daemon=True)
            back.start()
            _pump(self.connection, target)
            back.join()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not url.hostname:
            self.send_error(400, "this is a proxy")
            return
        target = http.client.HTTPConnection(*self._address(url.hostname, url.port or 80))
        try:
            target.connect()
        except OSError as error:
            self.send_error(502, str(error))
            return
        headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
        path = url._replace(scheme="", netloc="").geturl() or "/"
        target.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            target.putheader(name, value)
        target.endheaders(body or None)
        answer = target.getresponse()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        try:
            while piece := answer.read(PIECE):
                self.wfile.write(piece)
            # A body that was cut must not look whole on this side.
            self.close_connection |= bool(answer.length)
        finally:
            target.close()

    do_HEAD = do_POST = do_GET


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(PIECE):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
