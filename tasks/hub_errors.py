"""Every reason why something cannot be had from the hub, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.errors import LlamakeError, ModelError


def endpoint() -> str:
    """The hub's address, or a mirror's (HF_ENDPOINT)."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def has_token() -> bool:
    """True where the hub can know who asks."""
    from huggingface_hub import get_token

    return bool(get_token())


@contextmanager
def explained(repo: str, revision: str = "") -> Iterator[None]:
    """Turn what the hub refuses, what the network does and damaged answers into a ModelError."""
    try:
        yield
    except LlamakeError:
        raise
    except Exception as error:
        raise explain(error, repo, revision) from None


def explain(error: Exception, repo: str, revision: str = "") -> LlamakeError:
    """What happened, why, and what to do; without the token and without signed addresses."""
    import httpx2
    from huggingface_hub import errors

    host = endpoint().partition("://")[2]
    login = "set HF_TOKEN or run 'hf auth login'"
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    if isinstance(error, errors.OfflineModeIsEnabled):
        return unresolved(repo, "HF_HUB_OFFLINE forbids asking the hub")
    if isinstance(error, errors.GatedRepoError):
        terms = f"accept its terms at {endpoint()}/{repo}"
        if status == 401 or not has_token():
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
    if "Invalid credentials" in _said(response) or (status == 401 and has_token()):
        return ModelError(
            f"{host} does not accept your token",
            "it is wrong, or it expired",
            f"make a new one at {endpoint()}/settings/tokens, then {login}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{repo} has no revision '{revision}'",
            "it is no branch, tag or commit of it",
            f"see {endpoint()}/{repo}/tree/main",
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        if status == 401:
            return ModelError(
                f"{repo} is private, or does not exist",
                f"without a token {host} does not tell which",
                f"check the spelling; for a private one {login}",
            )
        return ModelError(
            f"{repo} does not exist on {host}",
            "or your token's account may not see it" if has_token() else "",
            f"check the spelling at {endpoint()}/models?search={repo.rpartition('/')[2]}",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ModelError(
            f"{repo} does not have the file any more", f"not at {revision[:12]}", "add refresh=yes"
        )
    if isinstance(error, errors.DisabledRepoError):
        return ModelError(f"{repo} was disabled by {host}", fix="choose another model")
    if status:
        why = f"it answered {status}"
        if status == 429:
            return ModelError(f"{host} wants fewer requests", why, f"wait a while, or {login}")
        return ModelError(f"{host} does not give {repo}", why, "try again later")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ModelError(
            f"{host} could not be trusted",
            "its certificate is signed by an unknown authority",
            "name your company's in SSL_CERT_FILE (a PEM file)",
        )
    if isinstance(error, (httpx2.TransportError, OSError)):
        return ModelError(
            f"{host} cannot be reached",
            _reason(error),
            "check the network; HTTPS_PROXY and HF_ENDPOINT name a proxy and a mirror",
        )
    return ModelError(
        f"{host} gave an answer about {repo} that is none",
        _reason(error),
        "try again; check what HF_ENDPOINT and HTTPS_PROXY name",
    )


def unresolved(repo: str, why: str) -> ModelError:
    """The error where the hub would have to be asked and must not."""
    return ModelError(
        f"{repo} was never looked up on the hub", why, "do it once with a network: doit prepare"
    )


def _said(response: Any) -> str:
    return str(response.headers.get("X-Error-Message", "")) if response is not None else ""


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160].split("?")[0]
