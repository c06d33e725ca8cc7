"""A model's files from the hub, or from any other server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tasks import files, hub, manifest, transfer
from tasks.errors import ModelError
from tasks.files import FileSum, human_size
from tasks.hub_errors import explained, shown_endpoint
from tasks.incomplete import Wanted
from tasks.layout import Layout, hub_id
from tasks.manifest import Pinned, RemoteFile
from tasks.settings import Settings
from tasks.state import Json
from tasks.step import Step


def folder_of(pinned: Pinned, layout: Layout) -> Path:
    """Where a choice's files are downloaded to."""
    if pinned.choice.kind == "gguf":
        return layout.gguf_folder(pinned.manifest.id)
    return layout.safetensors_folder(pinned.manifest.id)


def download_step(pinned: Pinned, model_id: str, layout: Layout, settings: Settings) -> Step:
    """Download the files of a choice, and have them all verified before one gets its name."""
    folder = folder_of(pinned, layout)
    wanted = [pinned.manifest.file(name) for name in pinned.choice.names]
    total = human_size(pinned.manifest.size(pinned.choice))
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
    made = known.get(file.name)
    name = pinned.name
    # Where only the model's id is named, its address is known without what may be secret.
    address = name if "://" in name else hub.file_url(name, pinned.manifest.commit, file.name)
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
    repo, commit = pinned.manifest.repo, pinned.manifest.commit
    missing = []
    for job in jobs:
        found = None if job.anew else transfer.reuse(list(_copies(pinned, job, layout)), job)
        if found:
            files.note_sum(job.target, found)
        else:
            missing.append(job)
    if not missing:
        return
    if settings.offline or hub.offline():
        raise ModelError(
            f"{missing[0].label} of {repo} is not on this machine",
            "offline=yes or HF_HUB_OFFLINE forbids downloading it",
            "download it once with a network: doit prepare",
        )
    ours = hub.headers() if "://" not in repo else {}
    with explained(repo, commit):
        for path, found in transfer.fetch(missing, headers=ours, client=hub.client()).items():
            files.note_sum(path, found)


def _copies(pinned: Pinned, job: Wanted, layout: Layout) -> Iterator[Path]:
    """Files on this machine that hold, by name, what is wanted: their checksum will tell."""
    if "://" in pinned.manifest.repo:
        return
    file = pinned.manifest.file(job.label)
    blob = hub.cached(pinned.manifest.repo, file)
    if blob:
        yield blob
    known = {other.id: other.files for other in manifest.known(layout, pinned.manifest.repo)}
    for folder in sorted(layout.models.glob(f"*/{hub_id(pinned.manifest.repo, '')}*")):
        path = files.inside(folder, file.name)
        if folder.name == pinned.manifest.id or not path.is_file():
            continue
        listed = known.get(folder.name)  # None: the user deleted what was known of it.
        if listed is None or any(one == file for one in listed):
            yield path
