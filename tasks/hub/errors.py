"""Every reason why something cannot be had from the hub, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tasks import console, process
from tasks.errors import LlamakeError, ModelError
from tasks.transfer.errors import distrusted, host_of, status_of


def endpoint() -> str:
    """The hub's address, or a mirror's (HF_ENDPOINT)."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def shown_endpoint() -> str:
    """The hub's address without a user and a password."""
    parts = urlsplit(endpoint())
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def has_token() -> bool:
    """True where the hub can know who asks."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return "authorization" in build_hf_headers()


@contextmanager
def explained(repo: str, revision: str = "") -> Iterator[None]:
    """Turn what the hub refuses, what the network does and damaged answers into a ModelError."""
    try:
        yield
    except (LlamakeError, process.Stopped, NameError, ImportError, AssertionError):
        raise  # The last three would be our own mistakes.
    except Exception as error:
        raise explain(error, repo, revision) from None


def explain(error: Exception, repo: str, revision: str = "") -> LlamakeError:
    """What happened, why, and what to do; without the token and without signed addresses.

    `repo` is `org/name`, or the address of a file outside of any hub.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return unresolved(repo, "HF_HUB_OFFLINE forbids asking the hub")
    response = getattr(error, "response", None)
    if response is None:
        return _unanswered(error, repo, repo if "://" in repo else endpoint())
    if "://" in repo:
        return ModelError(
            f"{repo} cannot be had",
            f"{host_of(repo)} answers {status_of(response)}",
            "check the address; a file for which one must log in has to be downloaded by hand",
        )
    return _refused(error, response, repo, revision)


def _refused(error: Exception, response: Any, repo: str, revision: str) -> ModelError:
    """What the hub's answer with an error means."""
    from huggingface_hub import errors

    from tasks.transfer.request import retry_after

    host, status, token = host_of(endpoint()), response.status_code, has_token()
    login = "set HF_TOKEN or run 'hf auth login'"
    if token and (status == 401 or "Invalid credentials" in _said(response)):
        return ModelError(
            f"{host} does not accept your token",
            "the token is wrong, or it expired",
            f"make a new one at {shown_endpoint()}/settings/tokens, then {login}",
        )
    if isinstance(error, errors.GatedRepoError):
        terms = f"accept its terms at {shown_endpoint()}/{repo}"
        if not token:
            return ModelError(
                f"{repo} is gated",
                "only those who accepted its terms may have it, and no token says who asks",
                f"{terms}, then {login}",
            )
        return ModelError(
            f"{repo} is gated",
            "your token's account was not let in",
            f"{terms} with that account, and wait for its owner where they approve by hand",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{repo} has no revision '{revision}'",
            "it is no branch, tag or commit of it",
            f"see {shown_endpoint()}/{repo}/tree/main",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        if status == 401:
            return ModelError(
                f"{repo} is private, or does not exist",
                f"without a token {host} does not tell which",
                f"check the spelling; for a private one {login}",
            )
        return ModelError(
            f"{repo} does not exist on {host}",
            "or your token's account may not see it" if token else "",
            f"check the spelling at {shown_endpoint()}/models?search={repo.rpartition('/')[2]}",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ModelError(
            f"{repo} does not have the file any more", f"not at {revision[:12]}", "add refresh=yes"
        )
    if isinstance(error, errors.DisabledRepoError):
        return ModelError(f"{repo} was disabled by {host}", fix="choose another model")
    why = f"{host} answers {status_of(response)}"
    if status == 429:
        wait = retry_after(response.headers)
        asked = f", and asks to wait {console.duration(wait)}" if wait else ""
        return ModelError(f"{host} wants fewer requests", why + asked, f"do so, or {login}")
    if status in (401, 403):
        right = f"give your token the right to read it at {shown_endpoint()}/settings/tokens"
        return ModelError(
            f"{repo} may not be read", why, f"{right if token else login}; or a proxy forbids it"
        )
    return ModelError(f"{host} does not give {repo}", why, "try again later")


def _unanswered(error: Exception, repo: str, asked: str) -> ModelError:
    """What it means that there is no answer from the address that was asked, or none to use."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, UnicodeEncodeError):
        return ModelError(
            "your token cannot be sent",
            "it has a letter that no token has",
            "check HF_TOKEN, or run 'hf auth login' again",
        )
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"'{repo}' is no name of a repository", _reason(error))
    host = host_of(asked)
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        name = "HF_ENDPOINT" if asked == endpoint() else "the address"
        return ModelError(
            f"{name} cannot be asked", _reason(error), "name one as https://hub.example.com"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return distrusted(host, str(error))
    if isinstance(error, (httpx2.TransportError, OSError)):
        through = f" (through the proxy {proxy})" if (proxy := _proxy(asked)) else ""
        return ModelError(
            f"{host} cannot be reached",
            _reason(error) + through,
            "check the network; HTTPS_PROXY and HF_ENDPOINT name a proxy and a mirror",
        )
    return ModelError(
        f"{host} gave an answer about {repo} that is none",
        _reason(error),
        "try again; check what HF_ENDPOINT and HTTPS_PROXY name",
    )


def _proxy(asked: str) -> str:
    """HOST:PORT of the proxy that the environment names for an address, '' for none."""
    from urllib.request import getproxies, proxy_bypass

    found = getproxies()
    proxy = found.get(urlsplit(asked).scheme) or found.get("all") or ""
    if not proxy or proxy_bypass(host_of(asked)):
        return ""
    return host_of(proxy if "://" in proxy else f"http://{proxy}")


def unresolved(repo: str, why: str) -> ModelError:
    """The error where the hub would have to be asked and must not."""
    return ModelError(
        f"{repo} was never looked up on the hub",
        why,
        f"do it once with a network: doit prepare model={repo}",
    )


def _said(response: Any) -> str:
    return str(response.headers.get("X-Error-Message", ""))


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160].split("?")[0]
