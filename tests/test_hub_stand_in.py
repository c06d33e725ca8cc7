"""The tests' hub is a true one: the real huggingface_hub client finds what it looks for."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub import DEADLINE_S, Hub
from hub_sample import CONTENT, GGUF, REPO, api, folder, get, hub, no_proxy, url_of
from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile, RepoFolder
from proxy import Proxy

__all__ = ["api", "folder", "hub", "no_proxy"]


def download(hub: Hub, tmp_path: Path, name: str = GGUF, **more: Any) -> Path:
    return Path(
        hf_hub_download(
            more.pop("repo", REPO),
            name,
            endpoint=hub.endpoint,
            cache_dir=tmp_path / "cache",
            **{"token": False, **more},
        )
    )


# Listings


def test_model_info_has_names_sizes_and_sums(hub: Hub, api: HfApi) -> None:
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == hub.commit(REPO)
    assert (info.id, info.gated, info.private) == (REPO, False, False)
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert set(files) == {GGUF, "config.json", "sub dir/README.md"}
    lfs = files[GGUF].lfs
    assert lfs
    assert (lfs.size, lfs.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert files["config.json"].lfs is None
    assert files["config.json"].size == 8


def test_small_files_have_the_id_that_git_gives_them(hub: Hub, api: HfApi, folder: Path) -> None:
    info = api.model_info(REPO, files_metadata=True)
    ids = {sibling.rfilename: sibling.blob_id for sibling in info.siblings or []}
    done = subprocess.run(
        ["git", "hash-object", folder / "config.json"], check=True, capture_output=True, text=True
    )
    assert ids["config.json"] == done.stdout.strip()


def test_without_metadata_there_are_names_only(api: HfApi) -> None:
    (first, *_) = api.model_info(REPO).siblings or []
    assert (first.size, first.blob_id, first.lfs) == (None, None, None)


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_a_listing_comes_in_pages(hub: Hub, api: HfApi, page_size: int) -> None:
    hub.page_size = page_size
    entries = list(api.list_repo_tree(REPO, recursive=True))
    assert {e.path for e in entries if isinstance(e, RepoFolder)} == {"sub dir"}
    files = {e.path: e for e in entries if isinstance(e, RepoFile)}
    assert set(files) == {GGUF, "config.json", "sub dir/README.md"}
    assert files[GGUF].lfs
    assert len(hub.asked("api")) == -(-4 // page_size)


def test_a_listing_of_one_folder(api: HfApi) -> None:
    assert [e.path for e in api.list_repo_tree(REPO)] == ["config.json", "sub dir"]
    below = [e.path for e in api.list_repo_tree(REPO, "sub dir")]
    assert below == ["sub dir/README.md", GGUF]


def test_paths_info(api: HfApi) -> None:
    file, folder = api.get_paths_info(REPO, [GGUF, "sub dir", "none"])
    assert isinstance(file, RepoFile)
    assert isinstance(folder, RepoFolder)
    assert (file.path, file.size) == (GGUF, len(CONTENT))


# Files


def test_a_large_file_is_on_the_cdn(hub: Hub) -> None:
    hub.tokens["hf_good"] = set()
    metadata = get_hf_file_metadata(url_of(hub), token="hf_good", endpoint=hub.endpoint)
    assert metadata.commit_hash == hub.commit(REPO)
    assert metadata.etag == hashlib.sha256(CONTENT).hexdigest()
    assert metadata.size == len(CONTENT)
    assert metadata.location.startswith(hub.cdn_endpoint)
    assert metadata.xet_file_data is None


def test_a_small_file_is_not(hub: Hub) -> None:
    metadata = get_hf_file_metadata(url_of(hub, "config.json"), token=False)
    assert metadata.location.startswith(hub.endpoint)
    assert (metadata.size, metadata.commit_hash) == (8, hub.commit(REPO))
    assert metadata.etag == hashlib.sha1(b'blob 8\0{"a": 1}').hexdigest()


def test_downloads_and_what_they_cost(hub: Hub, tmp_path: Path) -> None:
    hub.tokens["hf_good"] = set()
    assert download(hub, tmp_path, token="hf_good").read_bytes() == CONTENT
    assert hub.bytes_sent == len(CONTENT)
    (record,) = hub.asked("cdn")
    assert (record.status, record.sent, record.name) == (200, len(CONTENT), GGUF)
    assert "hf_hub/" in record.agent
    assert all(record.authorized for record in hub.asked("resolve"))
    assert not hub.leaked
    hub.reset()
    assert download(hub, tmp_path).read_bytes() == CONTENT
    assert (hub.bytes_sent, [r.method for r in hub.requests]) == (0, ["HEAD"])


def test_a_token_that_reaches_the_cdn_is_noticed(hub: Hub) -> None:
    location = get_hf_file_metadata(url_of(hub), token=False).location
    get(location, Authorization="Bearer hf_good")
    assert hub.leaked


def test_a_snapshot(hub: Hub, tmp_path: Path, folder: Path) -> None:
    path = snapshot_download(REPO, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", token=False)
    for name in (GGUF, "config.json", "sub dir/README.md"):
        assert (Path(path) / name).read_bytes() == (folder / name).read_bytes()


def test_a_moved_branch_leaves_the_old_commit_where_it_was(
    hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    old = hub.commit(REPO)
    assert hub.add(REPO, tmp_path / "repo", refs={"v1": ""}) == old
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    new = hub.add(REPO, other, refs={"refs/pr/1": old})
    assert new != old
    assert api.model_info(REPO).sha == new
    for revision in (old, "v1", "refs/pr/1"):
        assert api.model_info(REPO, revision=revision).sha == old
        assert download(hub, tmp_path, "config.json", revision=revision).read_text() == '{"a": 1}'
    assert download(hub, tmp_path, "config.json").read_text() == "{}"


def test_names_that_no_disk_could_hold(hub: Hub, api: HfApi, folder: Path) -> None:
    names = ("../evil.gguf", "/abs.gguf", "C:\\x.gguf", "aux.gguf", "a\0b.gguf")
    hub.add(REPO, folder, extra=dict.fromkeys(names, b"evil"))
    listed = {s.rfilename for s in api.model_info(REPO).siblings or []}
    assert listed > set(names)
    for name in ("%2e%2e%2Fevil.gguf", "C%3A%5Cx.gguf", "a%00b.gguf"):
        assert get(f"{hub.endpoint}/{REPO}/resolve/main/{name}").content == b"evil"


# Ranges, on every port


def sources(hub: Hub, folder: Path) -> list[str]:
    hub.add("org/small", folder, extra={"data.txt": CONTENT})
    return [url_of(hub), url_of(hub, "data.txt", "org/small"), hub.file(folder / GGUF)]


@pytest.mark.parametrize(
    "span, start, end",
    [("0-0", 0, 1), ("100-199", 100, 200), ("102399-", -1, None), ("-5", -5, None)],
)
def test_ranges(hub: Hub, folder: Path, span: str, start: int, end: int | None) -> None:
    for url in sources(hub, folder):
        answer = get(url, span)
        assert answer.status_code == 206
        assert answer.content == CONTENT[start:end]
        first, last = start % len(CONTENT), (end or len(CONTENT)) - 1
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"


def test_ranges_that_are_none(hub: Hub, folder: Path) -> None:
    for url in sources(hub, folder):
        beyond = get(url, "102400-")
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */102400")
        assert get(url, "5-2-9").content == CONTENT
        etag = get(url).headers["ETag"]
        assert get(url, "9-", **{"If-Range": etag}).status_code == 206
        assert get(url, "9-", **{"If-Range": '"other"'}).content == CONTENT


def test_the_client_resumes(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(CONTENT[:1000])
    with part.open("ab") as stream:
        http_get(url_of(hub), stream, resume_size=1000, expected_size=len(CONTENT))
    assert part.read_bytes() == CONTENT
    assert hub.bytes_sent == len(CONTENT) - 1000
    assert hub.asked("cdn")[0].range == "bytes=1000-"


# Access


def refused(
    error: type[HfHubHTTPError], status: int, call: Callable[..., object], *args: Any, **more: Any
) -> str:
    """The message of the error that a call raises: of exactly this class, with this status."""
    with pytest.raises(HfHubHTTPError) as caught:
        call(*args, **more)
    assert (type(caught.value), caught.value.response.status_code) == (error, status)
    return str(caught.value)


def test_missing_and_private_repositories_look_alike(hub: Hub, folder: Path) -> None:
    hub.add("org/private", folder, private=True)
    hub.tokens = {"hf_good": {"org/private"}, "hf_other": set()}
    for name in ("org/missing", "org/private"):
        for token, status in ((False, 401), ("hf_other", 404)):
            api = HfApi(endpoint=hub.endpoint, token=token)
            refused(RepositoryNotFoundError, status, api.model_info, name)
            url = url_of(hub, "config.json", name)
            refused(RepositoryNotFoundError, status, get_hf_file_metadata, url, token=token)
    assert HfApi(endpoint=hub.endpoint, token="hf_good").model_info("org/private").private


def test_a_gated_repository_shows_its_list_only(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.add("org/gated", folder, gated=True)
    hub.tokens = {"hf_good": {"org/gated"}, "hf_other": set()}
    for token, status in ((False, 401), ("hf_other", 403)):
        assert HfApi(endpoint=hub.endpoint, token=token).model_info("org/gated").gated == "manual"
        for name in (GGUF, "config.json"):
            more = {"repo": "org/gated", "token": token}
            refused(GatedRepoError, status, download, hub, tmp_path, name, **more)
    assert hub.bytes_sent == 0
    got = download(hub, tmp_path, repo="org/gated", token="hf_good")
    assert got.read_bytes() == CONTENT


def test_a_token_that_nobody_gave_out(hub: Hub) -> None:
    api = HfApi(endpoint=hub.endpoint, token="hf_bad")
    text = refused(HfHubHTTPError, 401, api.model_info, REPO)
    assert "Invalid credentials in Authorization header" in text
    hub.tokens["hf_bad"] = set()
    assert api.whoami()["type"] == "user"


def test_a_missing_revision_and_a_missing_file(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    refused(RevisionNotFoundError, 404, api.model_info, REPO, revision="none")
    refused(RevisionNotFoundError, 404, download, hub, tmp_path, revision="none")
    refused(RemoteEntryNotFoundError, 404, download, hub, tmp_path, "none.gguf")


# Client processes: HTTPS, a company's authority, proxies

CLIENT = f"""
from huggingface_hub import HfApi, hf_hub_download
print(HfApi().model_info({REPO!r}).sha)
print(open(hf_hub_download({REPO!r}, {GGUF!r}), "rb").read().hex())
"""


def client(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a client in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", CLIENT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def expected(hub: Hub) -> list[str]:
    return [hub.commit(REPO), CONTENT.hex()]


def port_of(origin: str) -> str:
    return origin.removeprefix("http://").removeprefix("https://")


def test_https_with_an_authority_of_its_own(folder: Path) -> None:
    with Hub(tls=True) as hub:
        hub.add(REPO, folder)
        trusting = client(hub.environment())
        assert trusting.stdout.split() == expected(hub), trusting.stderr
        assert hub.bytes_sent == len(CONTENT)
        stranger = client(hub.environment(SSL_CERT_FILE=None))
        assert "CERTIFICATE_VERIFY_FAILED" in stranger.stderr


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_proxy_sees_every_host(folder: Path, tls: bool) -> None:
    with Hub(tls=tls) as hub, Proxy() as proxy:
        hub.add(REPO, folder)
        done = client(hub.environment(**proxy.environment()))
        assert done.stdout.split() == expected(hub), done.stderr
        origins = {port_of(hub.endpoint), port_of(hub.cdn_endpoint)}
        assert set(proxy.hosts) == origins
        assert set(proxy.tunnels) == (origins if tls else set())


def test_no_proxy_is_honoured(hub: Hub) -> None:
    with Proxy() as proxy:
        environment = {**proxy.environment(), "NO_PROXY": "127.0.0.1"}
        done = client(hub.environment(**environment))
        assert done.stdout.split() == expected(hub), done.stderr
        assert proxy.hosts == []


def test_a_name_that_only_the_proxy_knows(hub: Hub) -> None:
    with Proxy({"hub.test": "127.0.0.1"}) as proxy:
        endpoint = hub.endpoint.replace("127.0.0.1", "hub.test")
        done = client(hub.environment(**proxy.environment(), HF_ENDPOINT=endpoint))
        assert done.stdout.split() == expected(hub), done.stderr
        assert port_of(endpoint) in proxy.hosts


def test_the_environment_is_a_clean_one(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "mine")
    environment = hub.environment(HF_TOKEN="hf_good", PATH=None)
    assert environment["HF_TOKEN"] == "hf_good"
    assert "mine" not in environment.values()
    assert "PATH" not in environment
    assert not os.path.exists(environment["HF_HOME"])
