"""Who may have what from the hub, and by which way: tokens, mirrors, proxies, authorities."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from graph import gone
from hub import Hub
from hub_http import Handler
from hub_user import (
    CONTENT,
    GATED,
    GOOD,
    NAME,
    OPEN,
    PRIVATE,
    SEVERAL,
    STRANGER,
    WRONG,
    User,
    employee,
    fill,
    host,
    hub,
    nobody,
    secure,
    source,
    user,
)
from proxy import Proxy

__all__ = ["employee", "hub", "nobody", "secure", "source", "user"]

# --- tokens


def log_in(user: User) -> dict[str, str]:
    """What `hf auth login` does; the variables that lead to what it stored."""
    home = {"HF_HOME": str(user.folder / "home")}
    code = f"import huggingface_hub as hub; hub.login(token={GOOD!r}, skip_if_logged_in=False)"
    env = {**os.environ, **user.env, **home}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    return home


def in_a_file(user: User) -> dict[str, str]:
    path = user.folder / "token"
    path.write_text(f"{GOOD}\n")
    return {"HF_TOKEN_PATH": str(path)}


@pytest.mark.parametrize(
    ("repo", "how"),
    [(GATED, "HF_TOKEN"), (PRIVATE, "HF_TOKEN"), (PRIVATE, "login"), (PRIVATE, "HF_TOKEN_PATH")],
)
def test_a_token_opens_what_is_closed_and_goes_to_the_hub_only(
    user: User, hub: Hub, repo: str, how: str
) -> None:
    ways = {"login": log_in, "HF_TOKEN_PATH": in_a_file}
    env = ways[how](user) if how in ways else {how: GOOD}
    hub.reset()
    user.downloads(repo, **env)
    assert hub.asked("cdn")
    assert not hub.leaked
    assert all(record.authorized for record in hub.requests if record.kind != "cdn")


def test_a_token_does_not_follow_a_redirect_to_another_origin(
    user: User, hub: Hub, source: Path
) -> None:
    with Hub() as other:
        fill(other, source)
        path = f"/api/models/{OPEN}/revision/main?blobs=true"
        where = {"Location": f"{other.endpoint}{path}"}
        hub.fault("status", where="api", code=307, headers=where)
        path = f"/{OPEN}/resolve/{hub.commit(OPEN)}/{NAME}"
        where = {"Location": f"{other.endpoint}{path}"}
        hub.fault("status", where="resolve", code=307, headers=where)
        user.downloads(HF_TOKEN=GOOD)
        assert {record.kind for record in other.requests} == {"api", "resolve", "cdn"}
        assert not any(record.authorized for record in other.requests)
        assert all(record.authorized for record in hub.requests)


def test_another_server_never_sees_the_token(user: User, source: Path) -> None:
    with Hub() as other:
        url = other.file(source / NAME)
        user.doit("download", f"model={url}", env={"HF_TOKEN": GOOD})
        assert other.asked("plain")
        assert not any(record.authorized for record in other.requests)


def test_another_servers_refusal_is_not_the_hubs(user: User, source: Path) -> None:
    with Hub() as other:
        url = other.file(source / NAME)
        other.fault("status", where="plain", code=401)
        said = user.refused("download", f"model={url}", HF_TOKEN=GOOD)
        assert f"ERROR: {url} cannot be had\n  why: {host(url)} answers 401 Unauth" in said
        assert "token" not in said


NO_TOKEN = "set HF_TOKEN or run 'hf auth login'"


@pytest.mark.parametrize(
    ("repo", "token", "what", "why", "fix"),
    [
        (GATED, "", "{} is gated", "no token says who", "terms at {hub}/{}, then " + NO_TOKEN),
        (GATED, STRANGER, "{} is gated", "account was not let in", "terms at {hub}/{} with that"),
        (GATED, WRONG, "{host} does not accept your token", "expired", "{hub}/settings/tokens"),
        (PRIVATE, "", "{} is private, or does not exist", "without a token", NO_TOKEN),
        (PRIVATE, STRANGER, "{} does not exist on {host}", "account may not see it", "spelling"),
        (PRIVATE, WRONG, "{host} does not accept your token", "expired", NO_TOKEN),
        ("org/no", "", "{} is private, or does not exist", "without a token", "spelling"),
        ("org/no", GOOD, "{} does not exist on {host}", "account", "{hub}/models?search=no"),
        (SEVERAL, "", "{} is gated", "no token says who", "terms at {hub}/{}, then " + NO_TOKEN),
        (SEVERAL, STRANGER, "{} is gated", "account was not let in", "terms at {hub}/{} with"),
    ],
)
def test_who_may_not_is_told_before_anything_is_built(
    user: User, hub: Hub, repo: str, token: str, what: str, why: str, fix: str
) -> None:
    said = user.refused("prepare", f"model={repo}", **({"HF_TOKEN": token} if token else {}))
    names = {"hub": hub.endpoint, "host": host(hub.endpoint)}
    first, second, third = said.strip().splitlines()
    assert first == f"ERROR: {what.format(repo, **names)}"
    assert second.startswith("  why: ")
    assert why in second
    assert third.startswith("  fix: ")
    assert fix.format(repo, **names) in third
    assert not hub.asked("cdn")


def test_a_token_that_lacks_the_right_is_told(user: User, hub: Hub) -> None:
    hub.fault("status", where="api", code=403)
    said = user.refused("prepare", f"model={OPEN}", HF_TOKEN=GOOD)
    assert f"{OPEN} may not be read" in said
    assert f"the right to read it at {hub.endpoint}/settings/tokens" in said


def test_a_gate_that_closes_before_the_download(user: User, hub: Hub) -> None:
    user.downloads(GATED, HF_TOKEN=GOOD)
    user.doit("forget", "download", f"model={GATED}")
    said = user.doit("download", f"model={GATED}", status=14)
    assert f"{GATED} is gated" in said
    assert NO_TOKEN in said


# --- secrets


@pytest.mark.parametrize("debug", [{"HF_DEBUG": "1"}, {"HF_HUB_VERBOSITY": "debug"}])
def test_secrets_are_nowhere(user: User, hub: Hub, debug: dict[str, str]) -> None:
    hub.fault("expire", where="cdn")
    expired = user.doit("download", f"model={OPEN}", status=14, env={"HF_TOKEN": GOOD, **debug})
    assert "403" in expired
    hub.clear_faults()
    hub.fault("flip", where="cdn", at=9)
    flipped = user.doit("download", f"model={OPEN}", status=14, env={"HF_TOKEN": GOOD, **debug})
    assert "mismatch" in flipped
    assert f"GET {hub.cdn_endpoint}/repos/" in expired
    hub.clear_faults()
    for repo, token, status in ((GATED, GOOD, 0), (PRIVATE, WRONG, 14), (SEVERAL, STRANGER, 14)):
        user.doit("download", f"model={repo}", status=status, env={"HF_TOKEN": token, **debug})
    # Their outputs are among these files.
    texts = {path: path.read_bytes() for path in user.folder.rglob("*") if path.is_file()}
    assert any(path.name == ".hub.json" for path in texts)
    for path, text in texts.items():
        for secret in (GOOD, STRANGER, WRONG, "Signature", "Expires="):
            assert secret.encode() not in text, f"{secret} in {path}"


# --- mirrors


class Mirror(Handler):
    """Answers under a path, as companies' mirrors do."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/hf/"):
            self.path = self.path.removeprefix("/api/hf")
        elif self.server.port == "api":
            self.path = "/elsewhere"
        super().do_GET()

    do_HEAD = do_GET


@pytest.mark.parametrize("path", ["/", "/api/hf/"])
def test_a_mirrors_address_may_have_a_path(
    user: User, hub: Hub, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path != "/":
        for server in hub._servers:
            monkeypatch.setattr(server, "RequestHandlerClass", Mirror)
    user.downloads(PRIVATE, HF_ENDPOINT=f"{hub.endpoint}{path}", HF_TOKEN=GOOD)
    assert not hub.leaked


def test_resolved_at_one_hub_and_downloaded_from_a_mirror(
    user: User, hub: Hub, source: Path
) -> None:
    user.downloads()
    user.doit("forget", "download", f"model={OPEN}")
    hub.reset()
    with Hub() as mirror:
        fill(mirror, source)
        user.downloads(HF_ENDPOINT=mirror.endpoint)
        assert mirror.bytes_sent == len(CONTENT)
        assert not mirror.asked("api")
    assert not hub.requests


def test_an_endpoint_that_is_no_address(user: User) -> None:
    said = user.refused("prepare", f"model={OPEN}", HF_ENDPOINT="hub.example")
    assert said.startswith("ERROR: HF_ENDPOINT cannot be asked\n")


# --- no network


@pytest.mark.parametrize(
    ("words", "env", "who"),
    [
        ((), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        (("offline=yes",), {}, "offline=yes"),
    ],
)
def test_offline_asks_nothing(
    user: User, hub: Hub, words: tuple[str, ...], env: dict[str, str], who: str
) -> None:
    said = user.refused("prepare", f"model={OPEN}", *words, **env)
    assert f"why: {who} forbids asking the hub" in said
    assert "do it once with a network" in said
    assert f"{who} forbids" in user.doit("list", f"model={OPEN}", *words, env=env)
    assert not hub.requests
    user.downloads()
    before = len(hub.requests)
    user.doit("download", f"model={OPEN}", *words, env=env)
    user.doit("forget", "download", f"model={OPEN}")
    user.found().unlink()
    lost = user.doit("download", f"model={OPEN}", *words, status=14, env=env)
    assert f"{NAME} of {OPEN} is not on this machine" in lost
    assert len(hub.requests) == before


# --- proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_all_goes_through_the_proxy(user: User, hub: Hub, name: str) -> None:
    with Proxy() as proxy:
        user.downloads(**{name: proxy.url})
        assert set(proxy.hosts) == {host(hub.endpoint), host(hub.cdn_endpoint)}
        assert len(proxy.hosts) == len(hub.requests)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_a_proxy_tunnels_to_a_secure_hub(employee: User, secure: Hub, name: str) -> None:
    with Proxy() as proxy:
        employee.downloads(**{name: proxy.url, "SSL_CERT_FILE": str(secure.ca_pem)})
        assert set(proxy.tunnels) == {host(secure.endpoint), host(secure.cdn_endpoint)}
        assert proxy.tunnels == proxy.hosts


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_some_hosts_need_no_proxy(user: User, nobody: str, name: str) -> None:
    user.downloads(**{"HTTP_PROXY": f"http://{nobody}", name: "example.com,127.0.0.1"})


def test_a_proxy_of_a_kind_that_cannot_be_used(user: User) -> None:
    said = user.refused("prepare", f"model={OPEN}", HTTP_PROXY="socks5://u:secret@127.0.0.1:9")
    assert "the proxy that the environment names cannot be used" in said
    assert "secret" not in said


def test_a_dead_proxy_is_named_without_its_password(user: User, hub: Hub, nobody: str) -> None:
    said = user.refused("prepare", f"model={OPEN}", HTTP_PROXY=f"http://me:secret@{nobody}")
    assert f"ERROR: {host(hub.endpoint)} cannot be reached\n" in said
    assert f"(through the proxy {nobody})" in said
    assert "HTTPS_PROXY" in said
    assert "secret" not in said


# --- authorities


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_companys_authority_in_a_file(employee: User, secure: Hub, name: str) -> None:
    employee.downloads(**{name: str(secure.ca_pem)})


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the folder's links")
@pytest.mark.parametrize("name", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_a_companys_authority_in_a_folder(employee: User, secure: Hub, name: str) -> None:
    folder = employee.folder / "authorities"
    folder.mkdir()
    shutil.copy(secure.ca_pem, folder)
    subprocess.run(["openssl", "rehash", folder], check=True)
    employee.downloads(**{name: str(folder)})


def test_an_unknown_authority_is_explained_at_once(employee: User, secure: Hub) -> None:
    said = employee.refused("prepare", f"model={OPEN}")
    assert f"ERROR: {host(secure.endpoint)} could not be trusted\n" in said
    assert "signed by an unknown authority" in said
    assert "SSL_CERT_FILE" in said
    assert not secure.requests


def test_another_servers_certificate_is_explained(employee: User, secure: Hub) -> None:
    port = urlsplit(secure.endpoint).port
    with Proxy({"mirror.test": "127.0.0.1"}) as proxy:
        said = employee.refused(
            "prepare",
            f"model={OPEN}",
            HF_ENDPOINT=f"https://mirror.test:{port}",
            HTTPS_PROXY=proxy.url,
            SSL_CERT_FILE=str(secure.ca_pem),
        )
        assert "its certificate is another server's" in said
        assert len(proxy.tunnels) == 1


@pytest.mark.parametrize(
    "name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
def test_authorities_that_are_not_there(employee: User, name: str) -> None:
    said = employee.refused("prepare", f"model={OPEN}", **{name: "/nowhere/company.pem"})
    assert "the certificate authorities in /nowhere/company.pem cannot be read" in said
    assert "No such file" in said


def test_authorities_that_are_none(employee: User) -> None:
    path = employee.folder / "company.pem"
    path.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context(cafile=path)
    said = employee.refused("prepare", f"model={OPEN}", SSL_CERT_FILE=str(path))
    assert f"the certificate authorities in {path} cannot be read" in said


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("fault", [("api", {}), ("cdn", {"after": 9000})])
def test_a_signal_ends_it_and_the_next_run_goes_on(
    user: User, hub: Hub, fault: tuple[str, dict[str, Any]], number: int
) -> None:
    where, options = fault
    stalled = hub.fault("stall", where=where, **options)
    run = user.start("download", f"model={OPEN}")
    hub.wait(lambda: stalled.hits > 0, "a stalled answer")
    children = run.children()
    said = run.stop(number, status=130)
    gone(children)
    assert "Traceback" not in said
    assert "ERROR" not in said
    assert not user.found().exists()
    stalled.clear()
    hub.reset()
    user.downloads()
    assert bool(hub.asked("api")) == (where != "cdn")
