"""Under the tests' hub: its servers, its faults on the wire, bodies, what was asked and sent."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub import Fault, File, Hub

PIECE = 1 << 20
"""Bytes that are written at once."""
SEND_BUFFER = 1 << 19
"""Bytes: what a killed client never read but counts as sent stays small."""


@dataclass
class Record:
    """One request; `sent` grows while its body is written."""

    method: str
    path: str
    """As it was asked, query included."""
    kind: str
    """'api', 'resolve', 'cdn', 'plain' or 'xet'."""
    range: str
    """The Range header, '' where none was sent."""
    authorized: bool
    """An Authorization header came with it."""
    agent: str
    name: str = ""
    """The file's name, else the repository's."""
    status: int = 0
    """0 until the answer begins."""
    sent: int = 0
    """Bytes of the body."""


class Refusal(Exception):
    """An answer that is an error, with the headers that the client reads it from."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


def tls_context(ca_pem: Path) -> ssl.SSLContext:
    """A server's context for loopback and *.test; the authority's certificate goes to `ca_pem`."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca_pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost", "hub.test", "cdn.test").configure_cert(context)
    return context


class Server(ThreadingHTTPServer):
    """One of the hub's ports."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, hub: Hub, context: ssl.SSLContext | None, port: str, handler: type[Wire]
    ) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub, self.context, self.port = hub, context, port
        scheme = "https" if context else "http"
        self.origin = f"{scheme}://127.0.0.1:{self.server_address[1]}"
        self._live: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        """Answer from a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and end what is open."""
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()
        for live in list(self._live):
            with suppress(OSError):
                live.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if self.context:
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except OSError:
                return  # a client that does not trust the certificate
        self._live.add(request)
        try:
            with self.hub.counted("connections"):
                super().finish_request(request, client_address)
        except (ConnectionError, ssl.SSLError, TimeoutError):
            pass  # a client that goes away is no failure of the hub's
        except Exception as error:
            if not self.hub.stopping.is_set():
                self.hub.failures.append(error)
        finally:
            self._live.discard(request)
            with suppress(OSError):
                request.close()


class Wire(BaseHTTPRequestHandler):
    """Answers the requests of one connection, as the faults want it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def kind(self) -> str:
        """The kind of the request."""
        raise NotImplementedError

    def name(self, kind: str) -> str:
        """The file or the repository that is asked for, as far as the URL says."""
        raise NotImplementedError

    def route(self) -> None:
        """Answer, or raise Refusal."""
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def version_string(self) -> str:
        return "stand-in"

    @property
    def hub(self) -> Hub:
        """Whose port this is."""
        return self.server.hub

    def do_GET(self) -> None:
        raw, _, query = self.path.partition("?")
        self.parts = [urllib.parse.unquote(part) for part in raw.split("/")[1:]]
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.posted = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        kind = self.kind()
        self.record = Record(
            method=self.command,
            path=self.path,
            kind=kind,
            range=self.headers.get("Range", ""),
            authorized=bool(self.token),
            agent=self.headers.get("User-Agent", ""),
            name=self.name(kind),
        )
        with self.hub.counted("", kind):
            self.hub.note(self.record)
            try:
                self._spoil_or_route()
            except Refusal as refusal:
                self.json({"error": str(refusal)}, refusal.status, refusal.headers)

    do_HEAD = do_POST = do_GET

    def _spoil_or_route(self) -> None:
        if stalled := self.strike("stall", lambda fault: "after" not in fault.options):
            stalled.released.wait()
        if slow := self.strike("slow"):
            self.hub.stopping.wait(slow["seconds"])
        if failing := self.strike("status"):
            self._failing(failing)
        else:
            self.route()

    def strike(self, kind: str, fits: Callable[[Fault], bool] = lambda _: True) -> Fault | None:
        """The fault of a kind that spoils this answer; counts as a hit."""
        return self.hub.strike(kind, self.record.kind, self.record.name, self.command, fits=fits)

    def _failing(self, fault: Fault) -> None:
        headers = dict(fault.get("headers", {}))
        if (after := fault.get("retry_after", None)) is not None:
            is_date = isinstance(after, datetime)
            headers["Retry-After"] = format_datetime(after, usegmt=True) if is_date else str(after)
        code = fault["code"]
        text = fault.get("text", HTTPStatus(code).phrase)
        self.json({"error": text}, code, headers)

    def redirect(self, status: int, location: str, headers: Mapping[str, str]) -> None:
        """Answer with another place."""
        text = f"{HTTPStatus(status).phrase}. Redirecting to {location}".encode()
        self._begin(status, {**headers, "Location": location, "Content-Length": str(len(text))})
        self._body(text, 0, len(text))

    def content(self, file: File, headers: Mapping[str, str]) -> None:
        """Answer with a file, or with the range of it that is asked for."""
        start, end, status = 0, file.size, 200
        if found := self.wanted(file):
            start, end, status = *found, 206
        if start >= end and status == 206:
            headers = {**headers, "Content-Range": f"bytes */{file.size}", "Content-Length": "0"}
            self._begin(416, headers)
            return
        if status == 206:
            if self.strike("shift"):
                start, end = 0, end - start
            wrong = self.record.kind in ("cdn", "plain") and self.strike("size")
            total = wrong["to"] if wrong else file.size
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{total}"}
        length = str(end - start)
        more = {"Content-Type": "application/octet-stream", "Content-Length": length}
        self._begin(status, {**headers, "Accept-Ranges": "bytes", **more})
        self._body(file, start, end - start)

    def wanted(self, file: File) -> tuple[int, int] | None:
        """Start and end of the range that is asked for, None for the whole file."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.record.range)
        if not match or match.group() == "bytes=-":
            return None
        if self.headers.get("If-Range", file.etag) != file.etag:
            return None
        first, last = match.groups()
        start = int(first) if first else max(0, file.size - int(last))
        end = min(int(last) + 1, file.size) if first and last else file.size
        refused = self.strike("no-range", lambda fault: start >= fault.get("beyond", 0))
        return None if refused else (start, end)

    def json(
        self, answer: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with JSON."""
        padding = 0
        if status == 200 and (edit := self.strike("edit")):
            answer = edit["by"](answer)
        text = json.dumps(answer).encode()
        if status == 200 and (garbage := self.strike("garbage")):
            text = garbage.get("text", '{"id": "org/na').encode()
        if status == 200 and (giant := self.strike("giant")):
            padding = giant["size"]
        length = len(text) + padding
        more = {"Content-Type": "application/json", "Content-Length": str(length)}
        self._begin(status, {**(headers or {}), **more})
        self._body(text, 0, length)

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        if self.hub.stopping.is_set():
            raise ConnectionAbortedError("the hub stops")
        self.record.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _body(self, source: File | bytes, start: int, length: int) -> None:
        """Write a body, spoiled as the faults want it; text shorter than that ends in blanks."""
        if self.command == "HEAD":
            return
        cut: Fault | None = None
        for kind in ("drop", "truncate", "stall"):
            cut = cut or self.strike(kind, lambda fault: fault.get("after", length) < length)
        rate = self.strike("rate")
        with Body(self, source, start, int(rate["bytes_per_s"]) if rate else 0) as body:
            if not isinstance(source, bytes):
                body.flip = self.strike("flip", lambda f: start <= f["at"] < start + length)
            if cut:
                body.send(cut["after"])
                if cut.kind != "stall":
                    self._break(reset=cut.kind == "drop")
                    return
                cut.released.wait()
            body.send(length)

    def _break(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            now = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_WR)


class Body:
    """A body on its way into a socket, up to a rate in bytes per second (0: any)."""

    def __init__(self, handler: Wire, source: File | bytes, start: int, rate: int) -> None:
        self.handler, self.source, self.start, self.rate = handler, source, start, rate
        self.began = time.monotonic()
        self.sent = 0
        path = None if isinstance(source, bytes) else source.path
        self.stream = path.open("rb") if path else None
        self.flip: Fault | None = None

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream:
            self.stream.close()

    def send(self, until: int) -> None:
        """Write up to this many bytes of the body, counted from its beginning."""
        hub, record = self.handler.hub, self.handler.record
        content = not isinstance(self.source, bytes)
        piece = max(1, min(PIECE, self.rate // 20)) if self.rate else PIECE
        while self.sent < until and not hub.stopping.is_set():
            amount, written = min(piece, until - self.sent), 0
            # Before it leaves: a client that has it all must find it all counted.
            hub.note_sent(record, amount, content)
            try:
                written = self._write(amount)
            finally:
                hub.note_sent(record, written - amount, content)
            self.sent += written
            if self.rate:
                hub.stopping.wait(self.began + self.sent / self.rate - time.monotonic())

    def _write(self, amount: int) -> int:
        offset = self.start + self.sent
        connection = self.handler.connection
        fast = not self.flip and hasattr(os, "sendfile")
        if self.stream and fast and not isinstance(connection, ssl.SSLSocket):
            sent = os.sendfile(connection.fileno(), self.stream.fileno(), offset, amount)
            if not sent:
                raise ConnectionError("the served file became shorter")
            return sent
        piece = self._read(offset, amount)
        at = self.flip["at"] - offset if self.flip else -1
        if 0 <= at < amount:
            piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
        connection.sendall(piece)
        return amount

    def _read(self, offset: int, amount: int) -> bytes:
        if self.stream:
            self.stream.seek(offset)
            return self.stream.read(amount)
        data = self.source if isinstance(self.source, bytes) else self.source.content
        return data[offset : offset + amount].ljust(amount)
