"""How a user names a repository of the hub, or a file somewhere else; no network, no disk."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit, urlunsplit

from tasks.errors import LlamakeError, ModelError, Refused
from tasks.hub.labels import label_of, match_rank, quantizable
from tasks.hub.manifest import Request

_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_EXAMPLES = "write org/name, org/name:Q4_K_M or org/name@revision"

_LONGEST = 96
# As the hub's own client checks them.
_NAME = re.compile(r"(?=[A-Za-z0-9_])[A-Za-z0-9_.-]{0,95}[A-Za-z0-9_]", re.A)
_REVISION = re.compile(r"(?![-/.])[^\s:@~^?*\[\]\\\x00-\x1f\x7f]{1,250}(?<![/.])")
_SPECIAL_REVISION = re.compile(r"refs/(?:pr/\d+|convert/\w+)(?=/|$)", re.A)
_LIKE_A_PATH = re.compile(r"[./~\\]|[A-Za-z]:(?![\w.-]*$)|[A-Za-z]:.*\\")
_SUFFIXES = (".gguf", ".safetensors")
_OTHER_KINDS = ("datasets", "spaces", "models", "collections", "papers", "docs", "api")


@dataclass(frozen=True)
class Reference:
    """A repository, and what the reference itself says of the choice from it."""

    repo: str
    """'org/name'."""
    quantization: str = ""
    """As the user wrote it."""
    revision: str = ""
    filename: str = ""
    """Path in the repository."""


@dataclass(frozen=True)
class Url:
    """A GGUF that is no hub's."""

    url: str

    @property
    def name(self) -> str:
        """The file's name, as the server calls it: not yet safe as a path."""
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]

    @property
    def shown(self) -> str:
        """The URL as it may be printed and logged: without what may be a secret."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True)
class Wanted:
    """A repository, its revision ('': the hub's default), and what is asked of it."""

    repo: str
    revision: str
    request: Request


def parse(
    text: str, hosts: Collection[str] = (), *, is_hub: bool = False
) -> Reference | Url | None:
    """What a model reference names; None for what can only be a local path.

    `hosts` are further hubs (HF_ENDPOINT without its scheme: 'host:port/path'); `is_hub` says
    that it is a repository (`hf-model=`). Raises Refused or ModelError for near misses.
    """
    text = text.strip()
    scheme, has_scheme, rest = text.partition("://")
    if has_scheme and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        if scheme.lower() in ("http", "https"):
            return _web(text, (*_HUB_HOSTS, *hosts))
        if scheme.lower() == "hf":
            return _with_path(text, rest)
        raise Refused(
            f"'{text}' is of an unknown kind",
            f"nothing is fetched by '{scheme}://'",
            f"{_EXAMPLES}, or https://…/file.gguf",
        )
    if text[:3].lower() == "hf:":
        return _with_path(text, text[3:])
    host, _, rest = text.partition("/")
    if host.lower() in _HUB_HOSTS and rest:
        return _with_path(text, rest)
    if is_hub:
        return _with_path(text, text)
    repo = re.split("[:@]", text)[0]
    if _LIKE_A_PATH.match(text) or "\\" in text or repo.lower().endswith(_SUFFIXES):
        return None
    if "/" not in repo:
        raise _without_org(text, repo)
    if repo.strip("/").count("/") > 1 and "//" not in repo:
        return None
    return _reference(text, text)


def _without_org(text: str, name: str) -> LlamakeError:
    if re.fullmatch(r"(?!hf:)[\w.-]+:[\w.-]+", text):
        return Refused(
            f"'{text}' names no repository",
            "it looks like a model of Ollama, which has names of its own",
            f"find the model on huggingface.co and {_EXAMPLES}",
        )
    return ModelError(
        f"there is no model '{text}'",
        f"no file or folder is called so, and a repository has an owner: org/{name or 'name'}",
        f"name a GGUF file or a safetensors folder, or {_EXAMPLES}",
    )


def _with_path(text: str, rest: str) -> Reference:
    """`org/name` in all its forms, with a file's path after it or not."""
    rest = rest.split("?")[0].split("#")[0].strip("/")
    org, _, tail = rest.partition("/")
    if org in _OTHER_KINDS and "/" in tail:
        raise Refused(f"'{text}' names no model", f"it is of the hub's {org}", _EXAMPLES)
    name, at, after = tail.partition("@")
    if "/" in name:
        repo, _, path = tail.partition("/")
        return _file(text, f"{org}/{repo}", path)
    if at and after.lower().endswith(_SUFFIXES):
        revision, path = _split_revision(after)
        return replace(_file(text, f"{org}/{name}", path), revision=_revision(text, revision))
    return _reference(text, rest)


def _reference(text: str, rest: str) -> Reference:
    match = re.fullmatch(r"([^:@]*)(?::([^:@]*)(?:@([^:@]*))?|@([^:@]*)(?::([^:@]*))?)?", rest)
    if match is None:
        raise Refused(f"'{text}' has ':' or '@' twice", fix=_EXAMPLES)
    repo = _repo(text, match[1])
    label = match[2] if match[2] is not None else match[5]
    revision = match[3] if match[3] is not None else match[4]
    if label == "" or revision == "":
        what, sign = ("quantization", ":") if label == "" else ("revision", "@")
        raise Refused(f"'{text}' has no {what} after its '{sign}'", fix=_EXAMPLES)
    reference = Reference(repo, revision=_revision(text, revision) if revision else "")
    if label and label.lower().endswith(".gguf"):
        return replace(reference, filename=label)
    if label and not re.fullmatch(r"[\w.-]+", label, re.A):
        raise Refused(
            f"'{label}' in '{text}' is no quantization",
            "a revision comes after '@'" if "/" in label else "",
            _EXAMPLES,
        )
    return replace(reference, quantization=label or "")


def _repo(text: str, repo: str) -> str:
    """`repo` where it can be a repository's name; Refused says why not."""
    org, _, name = repo.partition("/")
    if "//" in repo or repo != repo.strip("/"):
        tidy = "/".join(part for part in repo.split("/") if part)
        raise Refused(f"'{text}' has a '/' too many", fix=f"did you mean '{tidy}'?")
    if not name:
        raise _without_org(text, org)
    for part in (org, name):
        if not _NAME.fullmatch(part) or "--" in part or ".." in part or part.endswith(".git"):
            raise Refused(
                f"'{text}' names no repository",
                f"'{part}' must be of letters, digits, '-', '_' and '.', without '--' and '..', "
                "must not start or end with '-' or '.', nor end with '.git'",
                _EXAMPLES,
            )
    if len(repo) > _LONGEST:
        raise Refused(f"'{text}' names no repository", "it is too long", _EXAMPLES)
    return repo


def _revision(text: str, revision: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise Refused(
            f"'{revision}' in '{text}' is no revision",
            fix="name a branch, a tag, a commit or refs/pr/NUMBER",
        )
    return revision


def _split_revision(text: str) -> tuple[str, str]:
    """`main/folder/x.gguf` -> ('main', 'folder/x.gguf'); only refs/… have a '/' unescaped."""
    if special := _SPECIAL_REVISION.match(text):
        return special[0], text[special.end() :].strip("/")
    revision, _, path = text.partition("/")
    return unquote(revision), path.strip("/")


def _file(text: str, repo: str, path: str) -> Reference:
    repo = _repo(text, repo)
    if not path.lower().endswith(".gguf"):
        raise Refused(
            f"'{text}' does not name a GGUF", f"'{path}' is something else", f"name {repo} instead"
        )
    return Reference(repo, filename=path)


def _web(text: str, hosts: Collection[str]) -> Reference | Url:
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError as error:
        raise Refused("the model's URL is malformed", str(error)) from None
    url = Url(text)
    place = f"{host}{parts.path}/"
    for hub in hosts:
        if place.lower().startswith(f"{hub.lower()}/"):
            return _page(url.shown, place[len(hub) :].strip("/"), parts.query)
    if not host or not url.name.lower().endswith(".gguf"):
        raise Refused(
            f"'{url.shown}' does not name a GGUF",
            "its path does not end with .gguf",
            f"name a .gguf file, or {_EXAMPLES} for a repository",
        )
    return url


def _page(text: str, path: str, query: str) -> Reference:
    """A page of the hub: the repository's, one of its folders', a file's, or a file itself."""
    org, _, rest = path.partition("/")
    if org in _OTHER_KINDS:
        raise Refused(f"'{text}' names no model", f"it is of the hub's {org}", _EXAMPLES)
    name, _, rest = rest.partition("/")
    verb, _, rest = rest.partition("/")
    if verb in ("resolve", "blob", "raw"):
        revision, file = _split_revision(rest)
        reference = _file(text, f"{org}/{name}", unquote(file))
        return replace(reference, revision=_revision(text, revision))
    # The hub's viewer of a GGUF's metadata.
    if shown := re.search(r"(?:^|&)show_file_info=([^&]+)", query):
        return _file(text, f"{org}/{name}", unquote(shown[1]))
    reference = _reference(text, f"{org}/{unquote(name)}" if name else org)
    if verb in ("tree", "commit") and rest:
        return replace(reference, revision=_revision(text, _split_revision(rest)[0]))
    return reference


def combine(
    reference: Reference,
    *,
    quantization: str = "",
    revision: str = "",
    filename: str = "",
    pattern: str = "",
    mmproj: str = "",
) -> Wanted:
    """What a reference and the settings beside it ask together.

    Raises Refused where they contradict each other; so leave out settings of a lower level than
    the reference's own.
    """
    _agree(reference, "revision", reference.revision, revision)
    _agree(reference, "filename", reference.filename, filename)
    asked = reference.quantization
    if asked and quantization and not _same_type(asked, quantization):
        raise Refused(
            f"quantization={quantization} contradicts '{reference.repo}:{asked}'",
            fix="name one of them",
        )
    filename = reference.filename or filename
    if filename and pattern:
        raise Refused(
            f"pattern={pattern} does not go with the file {filename}",
            "one file is named already",
            "leave out one of them",
        )
    asked = asked or quantization
    label = label_of(filename)
    if filename and asked and label and match_rank(asked, label) is None:
        raise Refused(
            f"quantization={asked} contradicts the file {filename}",
            f"that is {label.text}",
            "leave out one of them",
        )
    request = Request(asked, filename, pattern, mmproj)
    return Wanted(reference.repo, reference.revision or revision, request)


def _agree(reference: Reference, key: str, own: str, setting: str) -> None:
    if own and setting and own != setting:
        raise Refused(
            f"{key}={setting} contradicts the reference to {reference.repo}",
            f"that says {own}",
            "name one of them",
        )


def _same_type(asked: str, other: str) -> bool:
    try:
        return quantizable(asked) == quantizable(other)
    except Refused:
        return asked.lower() == other.lower()
