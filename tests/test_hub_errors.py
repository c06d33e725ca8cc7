"""What is said of each error that huggingface_hub and its client raise: never a secret."""

from __future__ import annotations

import ssl

import httpx2
import pytest
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils._validators import validate_repo_id

from tasks.errors import LlamakeError, ModelError, StorageError
from tasks.hub.errors import endpoint, explain, explained, has_token, shown_endpoint
from tasks.transfer.errors import distrusted, host_of

REPO = "org/name"
URL = f"https://huggingface.co/{REPO}/resolve/main/x.gguf?Signature=s3cret"
TOKEN = "hf_s3cret"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is logged in, and nothing leads elsewhere."""
    hub = ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    names = (*hub, "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for name in (*names, *(name.lower() for name in names)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setattr("huggingface_hub.constants.HF_STORED_TOKENS_PATH", "/nowhere/tokens")


def refusal(status: int, code: str = "", message: str = "") -> HfHubHTTPError:
    """The error that the client raises for an answer of the hub."""
    request = httpx2.Request("GET", URL, headers={"Authorization": f"Bearer {TOKEN}"})
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    kept = {name: value for name, value in headers.items() if value}
    with pytest.raises(HfHubHTTPError) as caught:
        hf_raise_for_status(httpx2.Response(status, headers=kept, request=request))
    return caught.value


def parts(error: Exception, repo: str = REPO) -> tuple[str, str, str]:
    said = explain(error, repo, "main")
    assert isinstance(said, ModelError)
    assert said.exit_code == 14
    assert said.what
    assert "s3cret" not in str(said)
    assert len(str(said).splitlines()) <= 3
    return said.what, said.why, said.fix


DISABLED = "Access to this resource is disabled."


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "what"),
    [
        (403, "GatedRepo", "", GatedRepoError, "is gated"),
        (404, "RepoNotFound", "", RepositoryNotFoundError, "does not exist on huggingface.co"),
        (404, "RevisionNotFound", "", RevisionNotFoundError, "has no revision 'main'"),
        (404, "EntryNotFound", "", RemoteEntryNotFoundError, "does not have the file any more"),
        (403, "", DISABLED, DisabledRepoError, "was disabled by huggingface.co"),
        (403, "", "", HfHubHTTPError, "may not be read"),
    ],
)
def test_refusals_of_the_hub(
    status: int,
    code: str,
    message: str,
    kind: type[Exception],
    what: str,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(status, code, message)
    assert type(error) is kind
    assert parts(error)[0] == f"{REPO} {what}"


def test_who_asks_decides_what_a_401_means(monkeypatch: pytest.MonkeyPatch) -> None:
    gated, missing = refusal(401, "GatedRepo"), refusal(401, "RepoNotFound")
    assert not has_token()
    assert "no token says who asks" in parts(gated)[1]
    assert parts(missing)[0] == f"{REPO} is private, or does not exist"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert has_token()
    assert parts(gated) == parts(missing)
    assert parts(gated)[0] == "huggingface.co does not accept your token"
    assert "https://huggingface.co/settings/tokens" in parts(gated)[2]


def test_a_token_that_must_not_be_sent_counts_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert not has_token()


def test_a_mirror_goes_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hf/")
    assert endpoint() == "https://mirror.example/hf"
    assert parts(refusal(404, "RepoNotFound"))[0] == f"{REPO} does not exist on mirror.example"
    assert f"https://mirror.example/hf/{REPO}" in parts(refusal(403, "GatedRepo"))[2]


def test_a_file_elsewhere_is_no_matter_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    url = "https://files.example/x.gguf"
    for status in (401, 403, 404, 500):
        what, why, fix = parts(refusal(status), url)
        assert what == f"{url} cannot be had"
        assert f"files.example answers {status} " in why
        assert "token" not in f"{why}{fix}"
    assert parts(httpx2.ConnectError("refused"), url)[0] == "files.example cannot be reached"


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("[Errno 111] Connection refused"),
        httpx2.ReadTimeout("The read operation timed out"),
        httpx2.ProxyError("407 Proxy Authentication Required"),
        httpx2.RemoteProtocolError("peer closed connection"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_a_network_that_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    what, why, _ = parts(error)
    assert what == "huggingface.co cannot be reached"
    assert why == str(error)
    monkeypatch.setenv("https_proxy", "me:s3cret@proxy.example:3128")
    assert parts(error)[1] == f"{error} (through the proxy proxy.example:3128)"
    monkeypatch.setenv("no_proxy", "huggingface.co")
    assert parts(error)[1] == str(error)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("unable to get local issuer certificate", "signed by an unknown authority"),
        ("self-signed certificate in certificate chain", "signed by an unknown authority"),
        ("certificate has expired", "not valid now"),
        ("certificate is not yet valid", "not valid now"),
        ("Hostname mismatch, certificate is not valid for 'x'", "another server's"),
        ("IP address mismatch, certificate is not valid for '1.2.3.4'", "another server's"),
    ],
)
def test_a_certificate_that_is_not_accepted(text: str, why: str) -> None:
    raised = ssl.SSLError(1, f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {text}")
    what, said, _ = parts(httpx2.ConnectError(str(raised)))
    assert what == "huggingface.co could not be trusted"
    assert why in said
    assert why in distrusted("huggingface.co", str(raised)).why


def test_other_errors() -> None:
    what, why, _ = parts(OfflineModeIsEnabled(f"Cannot reach {URL}: offline mode is enabled"))
    assert (what, why) == (
        f"{REPO} was never looked up on the hub",
        "HF_HUB_OFFLINE forbids asking the hub",
    )
    with pytest.raises(HFValidationError) as invalid:
        validate_repo_id("org/na..me")
    assert parts(invalid.value, "org/na..me")[0] == "'org/na..me' is no name of a repository"
    what, why, _ = parts(KeyError("sha"))
    assert (what, why) == (f"huggingface.co gave an answer about {REPO} that is none", "'sha'")
    assert parts(RuntimeError())[1] == "RuntimeError"
    # The client's own texts hold addresses.
    assert "s3cret" not in parts(ValueError(f"no answer from {URL}"))[1]


def test_what_is_explained_already_stays_as_it_is() -> None:
    with pytest.raises(LlamakeError) as caught, explained(REPO):
        raise StorageError("the disk is full")
    assert type(caught.value) is StorageError
    with pytest.raises(ModelError), explained(REPO):
        raise httpx2.ConnectError("refused")


def test_a_token_that_cannot_be_sent_is_called_so_and_our_own_mistakes_are_not_hidden() -> None:
    with pytest.raises(ModelError, match="your token cannot be sent"), explained(REPO):
        "Bearer hf_bäd".encode("ascii")
    with pytest.raises(NameError), explained(REPO):
        raise NameError("mistake")


def test_a_host_is_shown_without_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_of("https://me:s3cret@mirror.example:8443/hf?x=1") == "mirror.example:8443"
    monkeypatch.setenv("HF_ENDPOINT", "https://me:s3cret@mirror.example:8443/hf/")
    assert shown_endpoint() == "https://mirror.example:8443/hf"
