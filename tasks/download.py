"""A model's files from the hub, or from any other server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files
from tasks.errors import ModelError
from tasks.files import FileSum, human_size
from tasks.hub import api, manifest
from tasks.hub.errors import explained, shown_endpoint
from tasks.hub.manifest import Pinned, RemoteFile
from tasks.layout import Layout, hub_id
from tasks.settings import Settings
from tasks.state import Json
from tasks.step import Step

if TYPE_CHECKING:
    from tasks.transfer.incomplete import Wanted


def folder_of(pinned: Pinned, layout: Layout) -> Path:
    """Where a choice's files are downloaded to."""
    if pinned.choice.kind == "gguf":
        return layout.gguf_folder(pinned.manifest.id)
    return layout.safetensors_folder(pinned.manifest.id)


def download_step(pinned: Pinned, model_id: str, layout: Layout, settings: Settings) -> Step:
    """Download the files of a choice, and have them all verified before one gets its name."""
    folder = folder_of(pinned, layout)
    wanted = pinned.manifest.files_of(pinned.choice)
    total = human_size(sum(file.size for file in wanted))
    label = pinned.choice.quantization or pinned.choice.kind
    name = pinned.name

    def make() -> Mapping[str, Json]:
        record = step.record
        same = record is not None and record.parameters == step.parameters
        unsure = record is not None and not all(file.checksum for file in wanted)
        anew = record is not None and (record.forgotten or (unsure and not same))
        known = record.outputs if record and same and not anew else {}
        jobs = [_wanted(pinned, file, folder, known, anew) for file in wanted]
        for job in jobs:
            _refuse_link(job.target.parent, folder)
        _download(pinned, jobs, layout, settings)
        return {"from": shown_endpoint() if "://" not in name else name}

    step = Step(
        "download",
        f"download {name} {label} ({total})",
        model_id=model_id,
        folder=folder,
        key=f"download:{_what(pinned)}",
        parameters={
            "repository": name,
            "revision": pinned.manifest.commit,
            "files": {file.name: file.checksum or str(file.size) for file in wanted},
        },
        outputs={file.name: files.inside(folder, file.name) for file in wanted},
        make=make,
        source=pinned.source,
        unmade=f"not downloaded: {total}",
    )
    return step


def _what(pinned: Pinned) -> str:
    chosen = pinned.choice
    if chosen.kind == "safetensors":
        return "safetensors"
    return f"{chosen.files[0]} {chosen.mmproj}".strip()


def _wanted(
    pinned: Pinned, file: RemoteFile, folder: Path, known: Mapping[str, FileSum], anew: bool
) -> Wanted:
    from tasks.transfer.incomplete import Wanted

    made = known.get(file.name)
    name = pinned.name
    # Where only the model's id is named, its address is known without what may be secret.
    address = name if "://" in name else api.file_url(name, pinned.manifest.commit, file.name)
    return Wanted(
        pinned.url or address,
        files.inside(folder, file.name),
        file.size or None,
        # Where nobody said what it must be, it must be what it was.
        file.sha256 or (made.sha256 if made and not file.git_sha1 else ""),
        file.git_sha1,
        file.name,
        anew,
    )


def _refuse_link(place: Path, folder: Path) -> None:
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"{place} leads out of the model's folder",
            "it is a link, and nothing is downloaded to elsewhere",
            "remove it, or put all models elsewhere with models-dir=",
        )


def _download(pinned: Pinned, jobs: Sequence[Wanted], layout: Layout, settings: Settings) -> None:
    from tasks.transfer.fetch import fetch, reuse

    repo, commit = pinned.manifest.repo, pinned.manifest.commit
    missing = []
    for job in jobs:
        found = None if job.anew else reuse(list(_copies(pinned, job, layout)), job)
        if found:
            files.note_sum(job.target, found)
        else:
            missing.append(job)
    if not missing:
        return
    if settings.offline or api.offline():
        raise ModelError(
            f"{missing[0].label} of {repo} is not on this machine",
            "offline=yes or HF_HUB_OFFLINE forbids downloading it",
            f"download it once with a network: doit prepare model={repo}",
        )
    ours = api.headers() if "://" not in repo else {}
    with explained(repo, commit):
        for path, found in fetch(missing, headers=ours, client=api.client()).items():
            files.note_sum(path, found)


def _copies(pinned: Pinned, job: Wanted, layout: Layout) -> Iterator[Path]:
    """Files on this machine that may hold what is wanted: their content will tell."""
    ours = pinned.manifest
    if "://" in ours.repo:
        return
    file = ours.file(job.label)
    if blob := api.cached(ours.repo, file):
        yield blob
    listed = {ours.id}
    for other in manifest.everything(layout):
        if other.id != ours.id:
            listed.add(other.id)
            same = [one.name for one in other.files if _same(one, file)]
            yield from _there(layout, other.id, same)
    # Of what the user deleted the manifest only names tell.
    for folder in sorted(layout.models.glob(f"*/{hub_id(ours.repo, '')}*")):
        if folder.name not in listed:
            yield from _there(layout, folder.name, [file.name])


def _same(one: RemoteFile, other: RemoteFile) -> bool:
    return bool(one.checksum) and (one.checksum, one.size) == (other.checksum, other.size)


def _there(layout: Layout, model_id: str, names: Sequence[str]) -> Iterator[Path]:
    for folder in (layout.gguf_folder(model_id), layout.safetensors_folder(model_id)):
        paths = [files.inside(folder, name) for name in names]
        yield from (path for path in paths if path.is_file())
