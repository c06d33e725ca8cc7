"""The Hugging Face hub: what a repository holds, and where its files are."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks import console
from tasks.errors import ModelError
from tasks.hub.errors import endpoint, explained
from tasks.hub.manifest import Manifest, RemoteFile
from tasks.transfer.errors import PASSING, host_of

if TYPE_CHECKING:
    import logging

DEFAULT_REVISION = "main"
TRIES = 4
_TRIES_IN_SILENCE = 2
"""So often a hub may send nothing, which takes the longest."""
_MOST_LISTING_BYTES = 64 << 20
_LONGEST_WAIT_S = 60.0
_T = TypeVar("_T")


def offline() -> bool:
    """True where the environment forbids asking the hub, as huggingface_hub understands it."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def client() -> Any:
    """huggingface_hub's own HTTP client, which knows proxies and certificate authorities."""
    import logging

    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_unsigned)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        # What companies set for other tools; the client itself reads only these two.
        if (bundle := os.environ.get(name)) and not os.environ.get("SSL_CERT_DIR"):
            variable = "SSL_CERT_DIR" if os.path.isdir(bundle) else "SSL_CERT_FILE"
            os.environ.setdefault(variable, bundle)
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        if folder and not file:
            os.listdir(folder)  # OpenSSL takes one that is not there for an empty one.
        return get_session()
    except OSError as error:
        raise ModelError(
            f"the certificate authorities in {file or folder} cannot be read",
            error.strerror or str(error),
            "name a PEM file in SSL_CERT_FILE",
        ) from None
    except (ImportError, ValueError):
        raise ModelError(
            "the proxy that the environment names cannot be used",
            "it is none of http:// or https://",
            "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY",
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


def list_repository(repo: str, revision: str, *, tries: int = TRIES) -> Manifest:
    """The files of `org/name` at a revision, with the commit that it is now."""
    from urllib.parse import quote

    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with explained(repo, revision):
        validate_repo_id(repo)
        at = quote(revision, safe="")
        # Not by HfApi.model_info: that reads an answer of any size.
        url = f"{endpoint()}/api/models/{repo}/revision/{at}?blobs=true"
        text, _ = _read(url, _MOST_LISTING_BYTES + 1, headers(), tries)
        if len(text) > _MOST_LISTING_BYTES:
            raise ValueError(f"it is larger than {_MOST_LISTING_BYTES >> 20} MiB")
        return _parsed(repo, text)


def _parsed(repo: str, text: bytes) -> Manifest:
    """The hub's answer about a repository; ValueError where it is none."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        page = text.lstrip()[:1] == b"<"
        raise ValueError("it is a web page" if page else "it is no JSON") from None
    if not isinstance(answer, dict) or not _is_hex(answer.get("sha"), 40):
        raise ValueError("it names no commit")
    entries = answer.get("siblings")
    if not isinstance(entries, list):
        raise ValueError("it lists no files")
    found = {file.name: file for file in map(_remote_file, entries) if file}
    name = answer.get("id")
    if isinstance(name, str) and name.lower() == repo.lower():
        repo = name  # As its owner writes it, so that it has one folder.
    return Manifest(repo, answer["sha"], tuple(found.values()))


def _remote_file(entry: Any) -> RemoteFile | None:
    """An entry of a listing; None for what is no file, such as a submodule."""
    if not isinstance(entry, dict) or not isinstance(name := entry.get("rfilename"), str):
        raise ValueError("it lists a file without a name")
    lfs = entry.get("lfs") or {}
    if not isinstance(lfs, dict):
        raise ValueError(f"it says nothing of {name!r} that can be understood")
    size = (lfs or entry).get("size")
    sha256, sha1 = lfs.get("sha256", ""), "" if lfs else entry.get("blobId") or ""
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise ValueError(f"it lists {name!r} with a size of {size!r}")
    if (lfs and not _is_hex(sha256, 64)) or (sha1 and not _is_hex(sha1, 40)):
        raise ValueError(f"it lists {name!r} with a checksum that is none")
    if not sha256 and not sha1:
        raise ValueError(f"it lists {name!r} without a checksum")
    return RemoteFile(name, size, sha256, sha1)


def _is_hex(text: object, digits: int) -> bool:
    return isinstance(text, str) and bool(re.fullmatch(f"[0-9a-f]{{{digits}}}", text))


def check_access(repo: str, commit: str, name: str) -> None:
    """Raise ModelError where a file could not be downloaded, before anything is built for it."""
    from huggingface_hub import get_hf_file_metadata

    with explained(repo, commit):
        url = file_url(repo, commit, name)
        patiently(lambda: get_hf_file_metadata(url, endpoint=endpoint(), timeout=_timeout_s()))


def read_start(url: str, count: int, *, tries: int = TRIES) -> tuple[bytes, Mapping[str, str]]:
    """The first `count` bytes of a file, and the answer's headers; raises what httpx2 raises."""
    ours = headers() if url.startswith(f"{endpoint()}/") else {}
    span = {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    return _read(url, count, {**ours, **span}, tries)


def _read(
    url: str, count: int, asked: Mapping[str, str], tries: int
) -> tuple[bytes, Mapping[str, str]]:
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    def ask() -> tuple[bytes, Mapping[str, str]]:
        with client().stream("GET", url, headers=asked, timeout=_timeout_s()) as answer:
            hf_raise_for_status(answer)
            data = bytearray()
            # A server that knows no ranges sends it all: what is not needed is not read.
            for chunk in answer.iter_bytes(1 << 16):
                data += chunk
                if len(data) >= count:
                    break
            return bytes(data[:count]), dict(answer.headers)

    return patiently(ask, tries)


def _timeout_s() -> float:
    from huggingface_hub import constants

    return float(constants.HF_HUB_ETAG_TIMEOUT)


def cached(repo: str, file: RemoteFile) -> Path | None:
    """A file's blob in the user's Hugging Face cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    blob = folder / file.checksum
    return blob if file.checksum and blob.is_file() else None


def patiently(ask: Callable[[], _T], tries: int = TRIES) -> _T:
    """`ask`, again after a while where the hub is busy or the network fails."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    from tasks.transfer.request import retry_after

    client()
    for attempt in range(1, tries + 1):
        wait = 0.0
        try:
            return ask()
        except HfHubHTTPError as error:
            answer = error.response
            wait = retry_after(answer.headers) or 0.0
            if answer.status_code not in PASSING or attempt == tries or wait > _LONGEST_WAIT_S:
                raise
            if wait > 1:
                text = f"answers {answer.status_code}: waiting {console.duration(wait)}, as it asks"
                console.say("model", f"{host_of(str(answer.url))} {text}")
        except httpx2.TransportError as error:
            slow = isinstance(error, httpx2.TimeoutException) and attempt >= _TRIES_IN_SILENCE
            if attempt == tries or slow or _is_final(error):
                raise
        time.sleep(max(wait, 0.4 * 2**attempt))
    raise AssertionError


def _is_final(error: Exception) -> bool:
    """True for a failure that the next try would have, too."""
    import httpx2

    return isinstance(error, httpx2.UnsupportedProtocol) or "CERTIFICATE" in str(error)


def _unsigned(record: logging.LogRecord) -> bool:
    """Take what a server signed out of the addresses that huggingface_hub logs (HF_DEBUG)."""
    record.msg = re.sub(r"(://[^\s?'\"]+)\?[^\s'\"]*", r"\1?…", record.getMessage())
    record.args = ()
    return True
