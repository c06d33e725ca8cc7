"""Why a file cannot be downloaded, in words that show no token and no signed address."""

from __future__ import annotations

from urllib.parse import urlsplit

from tasks import ranges
from tasks.errors import ModelError
from tasks.incomplete import Wanted


def host(url: str) -> str:
    """The part of a URL that may be shown: no path, no query, no user."""
    return urlsplit(url).netloc.rpartition("@")[2]


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
        f"{host(url)} {why}",
        "add refresh=yes if it changed; else a proxy or mirror in between is broken",
    )


def locked_out(wanted: Wanted, error: Exception) -> ModelError:
    """The error for an address that is refused as soon as it was given."""
    return ModelError(
        f"{wanted.name} cannot be downloaded",
        f"{error}, to an address that {host(wanted.url)} just gave",
        "check this machine's clock, and whether a firewall blocks that host",
    )


def given_up(wanted: Wanted, error: Exception) -> ModelError:
    """The error where trying again was in vain."""
    return ModelError(
        f"{wanted.name}: the download does not get on",
        f"{error} ({ranges.TRIES} tries without a new byte)",
        "check the network and run the same again: it goes on where this one ended",
    )
