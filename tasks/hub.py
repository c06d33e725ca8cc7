"""The Hugging Face hub: what a repository holds, and where its files are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tasks.errors import ModelError
from tasks.hub_errors import endpoint, explained
from tasks.manifest import Manifest, RemoteFile

DEFAULT_REVISION = "main"
_TRIES = 4
_TIMEOUT_S = 15.0
_LONGEST_WAIT_S = 60.0
_BUSY = (408, 429, 500, 502, 503, 504)
_T = TypeVar("_T")


def offline() -> bool:
    """True where the environment forbids asking the hub, as huggingface_hub understands it."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def client() -> Any:
    """huggingface_hub's own HTTP client, which knows proxies and certificate authorities."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        # What companies set for other tools; the client itself reads only these two.
        if (bundle := os.environ.get(name)) and not os.environ.get("SSL_CERT_DIR"):
            variable = "SSL_CERT_DIR" if os.path.isdir(bundle) else "SSL_CERT_FILE"
            os.environ.setdefault(variable, bundle)
    try:
        return get_session()
    except OSError as error:
        authorities = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise ModelError(
            f"the certificate authorities in {authorities} cannot be read",
            str(error),
            "name a PEM file in SSL_CERT_FILE",
        ) from None


def headers() -> Mapping[str, str]:
    """What a request to the hub carries: the token of HF_TOKEN or of the stored login, if any."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    found: dict[str, str] = build_hf_headers(library_name="llamake")
    return found


def file_url(repo: str, commit: str, name: str) -> str:
    """Where a file of a repository is downloaded from."""
    from urllib.parse import quote

    return f"{endpoint()}/{repo}/resolve/{quote(commit, safe='')}/{quote(name)}"


def list_repository(repo: str, revision: str, *, tries: int = _TRIES) -> Manifest:
    """The files of `org/name` at a revision, with the commit that it is now."""

    def ask() -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=endpoint(), library_name="llamake").model_info(
            repo, revision=revision or None, files_metadata=True, timeout=_TIMEOUT_S
        )

    with explained(repo, revision):
        info = patiently(ask, tries)
        found = {}
        for entry in info.siblings or ():
            sha256 = str(entry.lfs.sha256) if entry.lfs else ""
            size = entry.lfs.size if entry.lfs else entry.size
            if isinstance(size, int) and size >= 0 and isinstance(entry.rfilename, str):
                sha1 = "" if sha256 else str(entry.blob_id or "")
                found[entry.rfilename] = RemoteFile(entry.rfilename, size, sha256, sha1)
        if not isinstance(info.sha, str) or not _is_commit(info.sha):
            raise ValueError("it names no commit")
        return Manifest(repo, info.sha, tuple(found.values()))


def _is_commit(text: str) -> bool:
    return len(text) == 40 and all(character in "0123456789abcdef" for character in text)


def check_access(repo: str, commit: str, name: str) -> None:
    """Raise ModelError where a file could not be downloaded, before anything is built for it."""
    from huggingface_hub import get_hf_file_metadata

    with explained(repo, commit):
        url = file_url(repo, commit, name)
        patiently(lambda: get_hf_file_metadata(url, endpoint=endpoint(), timeout=_TIMEOUT_S))


def read_start(url: str, count: int) -> tuple[bytes, Mapping[str, str]]:
    """The first `count` bytes of a file, and the answer's headers; raises what httpx2 raises."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    def ask() -> tuple[bytes, Mapping[str, str]]:
        asked = {**(headers() if url.startswith(f"{endpoint()}/") else {})}
        asked |= {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
        with client().stream("GET", url, headers=asked, timeout=_TIMEOUT_S) as answer:
            hf_raise_for_status(answer)
            data = b""
            # A server that knows no ranges sends it all: what is not needed is not read.
            for chunk in answer.iter_bytes(1 << 16):
                data += chunk
                if len(data) >= count:
                    break
            return data[:count], dict(answer.headers)

    return patiently(ask)


def cached(repo: str, file: RemoteFile) -> Path | None:
    """A file's blob in the user's Hugging Face cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    blob = folder / file.checksum
    return blob if file.checksum and blob.is_file() else None


def patiently(ask: Callable[[], _T], tries: int = _TRIES) -> _T:
    """`ask`, again after a while where the hub is busy or the network fails."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    client()
    for attempt in range(1, tries + 1):
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in _BUSY or attempt == tries:
                raise
            wait = retry_after(error.response.headers) or 0.0
            if wait > _LONGEST_WAIT_S:
                raise
        except httpx2.TransportError as error:
            if attempt == tries or "CERTIFICATE" in str(error):
                raise
            wait = 0.0
        time.sleep(max(wait, 0.4 * 2**attempt))
    raise AssertionError


def retry_after(answer: Mapping[str, str]) -> float | None:
    """Seconds that an answer's Retry-After asks to wait: a number or a date."""
    from email.utils import parsedate_to_datetime

    value = answer.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
