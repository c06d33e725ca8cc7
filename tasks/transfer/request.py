"""One request for a range of a file: where it leads, who sees the token, what an answer means."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from tasks.errors import ModelError
from tasks.transfer.errors import PASSING, distrusted, host_of, refused, status_of, unexpected
from tasks.transfer.incomplete import Wanted

if TYPE_CHECKING:
    import httpx2

CONNECT_S, SILENCE_S = 10.0, 30.0
LONGEST_ASKED_WAIT_S = 3600.0
"""A server that wants a longer wait is taken at its word: we stop."""
_REDIRECTS = 10
_PAGE = 1 << 16
"""Bytes of an error's text that are read."""
_EXPIRED = (401, 403, 404, 410)


class Unsteady(Exception):
    """A failure that may pass; `wait_s` is what the server asks for, `busy`: we are too many."""

    def __init__(self, why: str, wait_s: float | None = None, busy: bool = False) -> None:
        super().__init__(why)
        self.wait_s, self.busy = wait_s, busy


class Expired(Exception):
    """The storage host does not accept the address that the hub gave."""


class NoRanges(Exception):
    """The server gives this file as a whole only."""


class NeedsXet(Exception):
    """The hub gives this file by Xet only."""


@dataclass(frozen=True)
class Answer:
    """A body that is about to come."""

    response: httpx2.Response
    url: str
    """Where redirects ended."""
    start: int
    end: int | None
    """Of the body, as a position in the file; None where the server does not say."""
    total: int | None
    """Bytes of the whole file, None where the server does not say."""
    partial: bool
    """It is the range that was asked for, and `start` its first byte; else the whole file."""
    validator: str
    """What names this version of the file (a strong ETag or a date), '' where nothing does."""


@contextmanager
def ask(
    client: httpx2.Client,
    wanted: Wanted,
    url: str,
    headers: Mapping[str, str],
    span: tuple[int, int] | None,
    validator: str,
) -> Iterator[Answer]:
    """Ask for a half-open range, or with None for everything; redirects are followed.

    `headers` go with every request, but a token and cookies only to the origin of `wanted.url`.
    Raises Unsteady, Expired, NoRanges, NeedsXet, the hub's own errors, or what ends the download.
    """
    import httpx2

    own = {"Accept-Encoding": "identity"}
    if span:
        own["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        if validator:
            own["If-Range"] = validator
    for _ in range(_REDIRECTS):
        with transient(wanted, url):
            request = client.build_request(
                "GET",
                url,
                headers={**_for_origin(headers, wanted.url, url), **own},
                timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S),
            )
            response = client.send(request, stream=True, follow_redirects=False)
        try:
            if response.has_redirect_location:
                with transient(wanted, url):
                    _page(response)  # Read to its end, its connection can be used again.
                url = urljoin(url, response.headers["location"])
                continue
            yield _judge(response, wanted, url, span)
            return
        finally:
            response.close()
    raise refused(wanted, f"{host_of(wanted.url)} redirects in circles")


def _for_origin(headers: Mapping[str, str], home: str, url: str) -> dict[str, str]:
    if _origin(home) == _origin(url):
        return dict(headers)
    secret = ("authorization", "cookie", "proxy-authorization")
    return {key: value for key, value in headers.items() if key.lower() not in secret}


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


@contextmanager
def transient(wanted: Wanted, url: str) -> Iterator[None]:
    """Raise what the network does as Unsteady, unless trying again is in vain."""
    import httpx2

    name = host_of(url)
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        why = f"an address of {name or 'no host'} is none that can be asked"
        raise refused(wanted, why) from error
    except httpx2.ConnectTimeout:
        raise Unsteady(f"{name} did not answer within {CONNECT_S:.0f} s") from None
    except httpx2.TimeoutException:
        raise Unsteady(f"{name} sent nothing for {SILENCE_S:.0f} s") from None
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        text = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            raise distrusted(name, text) from None
        if isinstance(error, (httpx2.ConnectError, httpx2.ProxyError)):
            raise Unsteady(f"no connection to {name}: {text}") from None
        raise Unsteady(f"{name} broke the connection off") from None


def _judge(
    response: httpx2.Response, wanted: Wanted, url: str, span: tuple[int, int] | None
) -> Answer:
    status = response.status_code
    headers = response.headers
    encoded = headers.get("content-encoding", "identity") != "identity"
    if status == 206 and span:
        if encoded:  # Parts of something encoded cannot be put together.
            raise NoRanges
        return _part(response, wanted, url, span)
    if status == 200:
        length = headers.get("content-length", "")
        total = int(length) if length.isdigit() and not encoded else None
        return Answer(response, url, 0, total, total, False, "")
    name = host_of(url)
    if status in PASSING:
        _refuse_long_wait(wait := retry_after(headers), wanted, name)
        raise Unsteady(f"{name} answers {status_of(response)}", wait, busy=status in (429, 503))
    if status == 416 and headers.get("content-range", "") == "bytes */0":
        raise NoRanges  # It is empty, and no range is in it.
    if status == 416:
        own_range = f"{span[0]} to {span[1] - 1}" if span else "0 and on"
        raise unexpected(wanted, url, f"does not have the bytes {own_range} of it")
    at_home = _origin(url) == _origin(wanted.url)
    if not at_home and status in _EXPIRED:
        raise Expired(f"{name} answers {status_of(response)}")
    if (
        at_home
        and 400 <= status < 500
        and "x-xet-hash" in headers
        and not (status in (401, 403, 404) and "x-error-code" in headers)
    ):
        raise NeedsXet
    if at_home and wanted.on_hub:
        _raise_as_hub(response, wanted)
    raise refused(wanted, f"{name} answers {status_of(response)}")


def _part(response: httpx2.Response, wanted: Wanted, url: str, span: tuple[int, int]) -> Answer:
    header = response.headers.get("content-range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header.strip())
    if not match or int(match[1]) != span[0] or int(match[2]) >= span[1]:
        why = f"sends another part of it than was asked for ('{header[:60]}')"
        raise unexpected(wanted, url, why)
    etag = response.headers.get("etag", "")
    validator = etag if etag.startswith('"') else response.headers.get("last-modified", "")
    total = None if match[3] == "*" else int(match[3])
    return Answer(response, url, int(match[1]), int(match[2]) + 1, total, True, validator)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, as a number or a date, or by the hub's rate limit."""
    from huggingface_hub.utils._http import parse_ratelimit_headers

    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


def _refuse_long_wait(wait_s: float | None, wanted: Wanted, name: str) -> None:
    if wait_s is not None and wait_s > LONGEST_ASKED_WAIT_S:
        raise ModelError(
            f"{wanted.name}: the download does not get on",
            f"{name} asks to wait {wait_s / 3600:.0f} hours",
            "run the same again then: it goes on where this one ended",
        )


def _raise_as_hub(response: httpx2.Response, wanted: Wanted) -> None:
    import httpx2
    from huggingface_hub.utils._http import hf_raise_for_status

    url = str(response.url)
    with transient(wanted, url):
        text = _page(response)
    # Without what it was asked with: the token must not travel in an error.
    bare = httpx2.Request("GET", url.partition("?")[0])
    kept = {
        key: value
        for key, value in response.headers.items()
        if key not in ("content-length", "content-encoding", "transfer-encoding", "set-cookie")
    }
    hf_raise_for_status(
        httpx2.Response(response.status_code, headers=kept, content=text, request=bare)
    )


def _page(response: httpx2.Response) -> bytes:
    text = b""
    for chunk in response.iter_raw():
        text += chunk
        if len(text) > _PAGE:
            break
    return text
