"""Why a file cannot be downloaded, in words that show no token and no signed address."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.errors import ModelError
from tasks.transfer import ranges

if TYPE_CHECKING:
    import httpx2

    from tasks.transfer.incomplete import Wanted

PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may do."""


def host_of(url: str) -> str:
    """The part of a URL that may be shown: no path, no query, no user."""
    return urlsplit(url).netloc.rpartition("@")[2]


def status_of(response: httpx2.Response) -> str:
    """As '404 Not Found'."""
    return f"{response.status_code} {response.reason_phrase}".strip()


def refused(wanted: Wanted, why: str) -> ModelError:
    """The error for a server that does not give it."""
    return ModelError(
        f"{wanted.name} cannot be downloaded",
        why,
        "check the address, HF_ENDPOINT and HTTPS_PROXY; a firewall may be in between",
    )


def unexpected(wanted: Wanted, url: str, why: str) -> ModelError:
    """The error for a server whose answer is about another file than this one."""
    return ModelError(
        f"{wanted.name} is not what was expected",
        f"{host_of(url)} {why}",
        "add refresh=yes if it changed; else a proxy or mirror in between is broken",
    )


def locked_out(wanted: Wanted, error: Exception) -> ModelError:
    """The error for an address that is refused as soon as it was given."""
    return ModelError(
        f"{wanted.name} cannot be downloaded",
        f"{error}, to an address that {host_of(wanted.url)} just gave",
        "check this machine's clock, and whether a firewall blocks that host",
    )


def given_up(wanted: Wanted, error: Exception) -> ModelError:
    """The error where trying again was in vain."""
    return ModelError(
        f"{wanted.name}: the download does not get on",
        f"{error} ({ranges.TRIES} tries without a new byte)",
        "check the network and run the same again: it goes on where this one ended",
    )


def distrusted(host: str, error: str) -> ModelError:
    """The error where a server's certificate is not accepted, from what OpenSSL says."""
    what = f"{host} could not be trusted"
    if "expired" in error or "not yet valid" in error:
        why = "its certificate is not valid now"
        return ModelError(what, why, "check this machine's clock; else its owner must renew it")
    if "mismatch" in error:
        why = "its certificate is another server's"
        return ModelError(what, why, "check what HF_ENDPOINT, HTTPS_PROXY and the DNS name")
    return ModelError(
        what,
        "its certificate is signed by an unknown authority",
        "name your company's in SSL_CERT_FILE (a PEM file)",
    )
