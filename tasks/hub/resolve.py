"""A reference to one commit and its files: asked of the hub once, then read from the disk."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tasks import files, machine, memory
from tasks.errors import ModelError, Refused
from tasks.gguf_format import Value
from tasks.gguf_header import read_prefix
from tasks.hub import api, choice, manifest
from tasks.hub.checkpoint import convertible
from tasks.hub.errors import explained, unresolved
from tasks.hub.fit import Fit
from tasks.hub.listing import Kind
from tasks.hub.listing import usable as usable_files
from tasks.hub.manifest import Choice, Manifest, Pinned, RemoteFile, Request, choice_key
from tasks.hub.reference import Url
from tasks.layout import Layout
from tasks.quantization import MAX_SAFETENSORS_HEADER, default_intermediate, tensor_entries
from tasks.settings import Settings

_HEADER_BYTES = 256 << 10
"""What decides the context's size stands before the vocabulary, in the first kilobytes."""


class Access(enum.Enum):
    """What the command at hand may do to resolve a reference."""

    NEVER = "this command asks nothing of the hub"
    LOOK = "ask the hub, but write nothing"
    RESOLVE = "ask the hub and keep its answer"


def resolve(
    repo: str,
    revision: str,
    request: Request,
    layout: Layout,
    settings: Settings,
    access: Access,
    role: Kind = Kind.MODEL,
) -> Pinned:
    """The files that answer a request for `org/name`; ModelError where there is no answer.

    What was resolved before is taken as it is, without a look at the network or at the memory.
    """
    revision = revision or api.DEFAULT_REVISION
    key = choice_key(revision, request, "" if role is Kind.MODEL else role.name.lower())
    known = manifest.known(layout, repo)
    made = _latest(known, key)
    refresh = settings.refresh and access is Access.RESOLVE
    if made and not refresh:
        return made
    listed = None if refresh else _listed(known, revision)
    if listed is None:
        if why := barred(settings, access):
            raise unresolved(repo, why)
        listed = api.list_repository(repo, revision, tries=_tries(settings, access))
        # What is never downloaded is not kept: by an unsafe name, a manifest counts as damaged.
        listed = dataclasses.replace(listed, files=tuple(usable_files(listed.files)))
    if made and _same_files(made, listed):
        return made
    try:
        found = _again(made, listed) or _choose(listed, request, settings, access, role)
    except ModelError as error:
        if listed not in known:
            raise
        raise ModelError(error.what, error.why, f"{error.fix}; refresh=yes looks again") from None
    if found.kind == "safetensors":
        tries = _tries(settings, access)
        found = dataclasses.replace(found, intermediate=_type_of(found, listed, known, tries))
    if access is not Access.RESOLVE:
        return Pinned(listed, found)
    tried = any(found.files[0] in one.files for one in listed.choices.values())
    if not tried and not barred(settings, access):
        api.check_access(repo, listed.commit, found.files[0])
    return keep(layout, listed, revision, key, found, known)


def keep(
    layout: Layout,
    listed: Manifest,
    revision: str,
    key: str,
    found: Choice,
    known: list[Manifest],
) -> Pinned:
    """Write a choice to the manifest, with the commit it belongs to."""
    before = {choice.when for one in known for choice in one.choices.values()}
    now = manifest.later_than(known)
    ours = dataclasses.replace(found, when=now)

    def add(one: Manifest) -> Manifest:
        theirs = one.choices.get(key)  # Perhaps of another llamake, while this one asked.
        chosen = theirs if theirs and theirs.when not in before else ours
        return dataclasses.replace(
            one,
            asked={**one.asked, revision: now},
            choices={**one.choices, key: chosen},
        )

    kept = manifest.update(layout, listed, add)
    return Pinned(kept, kept.choices[key])


def barred(settings: Settings, access: Access) -> str:
    """Why the network must not be used; '' where it may."""
    if access is Access.NEVER:
        return str(access.value)
    if settings.offline:
        return "offline=yes forbids asking the hub"
    return "HF_HUB_OFFLINE forbids asking the hub" if api.offline() else ""


def _tries(settings: Settings, access: Access) -> int:
    """How often to ask the hub: 0 where it must not be; who only looks is not kept waiting."""
    if barred(settings, access):
        return 0
    return 1 if access is Access.LOOK else api.TRIES


def _latest(known: list[Manifest], key: str) -> Pinned | None:
    made = [Pinned(one, one.choices[key]) for one in known if key in one.choices]
    return max(made, key=lambda pinned: pinned.choice.when, default=None)


def _listed(known: list[Manifest], revision: str) -> Manifest | None:
    asked = [one for one in known if revision in one.asked]
    if asked:
        return max(asked, key=lambda one: one.asked[revision])
    return next((one for one in known if one.commit == revision), None)


def _same_files(made: Pinned, listed: Manifest) -> bool:
    """True where nothing of a choice changed upstream, whatever else did."""
    there = {file.name: file for file in listed.files}
    names = made.choice.names
    # A shard or a tokenizer file may have come on top.
    if made.choice.kind == "safetensors" and set(convertible(listed.files)) != set(names):
        return False
    return all(there.get(name) == made.manifest.file(name) for name in names)


def _again(made: Pinned | None, listed: Manifest) -> Choice | None:
    """The same GGUFs, or again the safetensors, of a newer commit: a choice once made stays."""
    if made and made.choice.kind == "safetensors":
        names = convertible(listed.files)
        return dataclasses.replace(made.choice, files=names) if names else None
    there = {file.name for file in listed.files}
    return made.choice if made and there.issuperset(made.choice.names) else None


def _choose(
    listed: Manifest, request: Request, settings: Settings, access: Access, role: Kind
) -> Choice:
    tries = _tries(settings, access)

    def context_bytes(file: RemoteFile) -> int:
        metadata: Mapping[str, Value] = {}
        lengths: Mapping[str, int] = {}
        if tries:
            with explained(listed.repo, listed.commit):
                url = api.file_url(listed.repo, listed.commit, file.name)
                header = read_prefix(api.read_start(url, _HEADER_BYTES, tries=tries)[0], file.name)
                metadata, lengths = header.metadata, header.array_lengths
        return memory.context_bytes(
            metadata, lengths, context=settings.ctx_size, file_size=file.size
        )

    fit = Fit(memory.usable(machine.available_memory()), context_bytes)
    return choice.choose(listed.files, request, fit, role=role, repo=listed.repo)


def _type_of(found: Choice, listed: Manifest, known: list[Manifest], tries: int) -> str:
    """The 16-bit type to convert to; the hub is asked only of weights never looked at."""
    weights = next(name for name in found.files if name.endswith(".safetensors"))
    for one in known:
        for other in one.choices.values():
            same = weights in other.files and one.file(weights) == listed.file(weights)
            if same and other.intermediate:
                return other.intermediate
    if not tries:
        raise unresolved(listed.repo, "what its weights are must be asked of the hub")
    return _intermediate(listed, weights, tries)


def _intermediate(listed: Manifest, name: str, tries: int) -> str:
    """The 16-bit type for the tensor types that a safetensors file's header names."""
    url = api.file_url(listed.repo, listed.commit, name)
    with explained(listed.repo, listed.commit):
        start, _ = api.read_start(url, _HEADER_BYTES, tries=tries)
        length = int.from_bytes(start[:8], "little")
        if length > min(MAX_SAFETENSORS_HEADER, listed.file(name).size):
            raise ValueError(f"{name} is not a safetensors file")
        if length > len(start) - 8:
            start, _ = api.read_start(url, 8 + length, tries=tries)
        tensors = tensor_entries(start[8 : 8 + length])
        return default_intermediate({str(entry["dtype"]) for entry in tensors})


def resolve_url(url: Url, layout: Layout, settings: Settings, access: Access) -> Pinned:
    """The GGUF at an address outside of any hub; `sha256=` is what it must have, where given."""
    try:
        files.inside(Path(), url.name)
    except ValueError as error:
        raise Refused(f"{url.shown} cannot be used", str(error)) from None
    known = manifest.known(layout, url.shown)
    query = urlsplit(url.url).query
    # Another query may be another file, or a new signature for the same: its server tells.
    digest = hashlib.sha256(query.encode()).hexdigest()[:8]
    key = f"{api.DEFAULT_REVISION} {digest}" if query else api.DEFAULT_REVISION
    made = _latest(known, key)
    refresh = settings.refresh and access is Access.RESOLVE
    if made and not refresh:
        if not settings.sha256 or made.manifest.files[0].sha256 == settings.sha256:
            return dataclasses.replace(made, url=url.url)
        file = dataclasses.replace(made.manifest.files[0], sha256=settings.sha256)
        found = dataclasses.replace(made.manifest, files=(file,))
    else:
        if why := barred(settings, access):
            raise unresolved(url.shown, why)
        found = _look_at(url, settings.sha256 or "", _tries(settings, access))
        if not (refresh or settings.sha256):  # What it must have was said before.
            found = next((one for one in known if one.commit == found.commit), found)
    pinned = Pinned(found, Choice("gguf", (url.name,)))
    if access is Access.RESOLVE:
        pinned = keep(layout, found, key, key, pinned.choice, known)
    return dataclasses.replace(pinned, url=url.url)


def _look_at(url: Url, sha256: str, tries: int) -> Manifest:
    with explained(url.shown):
        start, answer = api.read_start(url.url, 4, tries=tries)
    if start != b"GGUF":
        raise ModelError(
            f"{url.shown} is not a GGUF file",
            f"it starts with {start!r}",
            "open it in a browser: it may be a page that leads to the file",
        )
    fields = {name.lower(): value for name, value in answer.items()}
    total = fields.get("content-range", "").rpartition("/")[2] or fields.get("content-length", "")
    size = int(total) if total.isdigit() else 0
    version = fields.get("etag") or fields.get("last-modified") or ""
    return Manifest(url.shown, version, (RemoteFile(url.name, size, sha256),))
