"""What `model=` means: a GGUF file, a safetensors checkpoint, or a repository on the hub."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks import download, files
from tasks.errors import LlamakeError, ModelError, Refused
from tasks.gguf_header import read_header
from tasks.hub import reference, resolve
from tasks.hub.errors import endpoint
from tasks.hub.labels import quantizable
from tasks.hub.listing import Kind
from tasks.hub.manifest import Pinned
from tasks.hub.resolve import Access
from tasks.layout import Layout, local_id, safe_name
from tasks.quantization import default_intermediate, safetensors_dtypes
from tasks.settings import COMMAND_LINE, Settings

_INPUT_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*/config.json")


@dataclass(frozen=True)
class GgufFile:
    """A GGUF that is used as it is, where it lies or where it is downloaded to."""

    path: Path
    id: str
    name: str
    """What to call it in the API."""
    mmproj: Path | None = None
    """The projector of a vision model."""
    pinned: Pinned | None = None
    """Where it is downloaded from."""
    note: str = ""
    """What else its name could have meant."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with safetensors, to be converted and quantized."""

    folder: Path
    id: str
    files: tuple[Path, ...]
    intermediate: str
    """The 16-bit type to convert to: f16, or bf16 where the checkpoint is in bf16."""
    pinned: Pinned | None = None
    """Where it is downloaded from."""
    quantization: str = ""
    """The type that its reference asks for (`org/name:Q5_K_M`)."""
    note: str = ""
    """What else its name could have meant."""

    @property
    def name(self) -> str:
        """What to call it in the API."""
        return self.pinned.name if self.pinned else self.folder.name


@dataclass(frozen=True)
class Unresolved:
    """A repository of which it is not known here what it holds, and why not."""

    name: str
    id: str
    why: str


Model = GgufFile | Checkpoint | Unresolved


def resolve_model(
    settings: Settings, layout: Layout, here: Path, access: Access = Access.NEVER
) -> Model:
    """The model that the settings name; `here` is where the user stands.

    Raises ModelError for one that cannot be served, Refused for settings that contradict it.
    """
    projector, request_mmproj = _projector(settings, here)
    if settings.gguf_path:
        found: Model = _gguf(settings.gguf_path, settings)
    elif settings.safetensors_dir:
        found = checkpoint(settings.safetensors_dir)
    elif settings.hf_model:
        found = _remote(settings.hf_model, settings, layout, access, request_mmproj, is_hub=True)
    else:
        path = _path(settings.model, here)
        if "model" not in settings.origin or (settings.model == "demo" and not path.exists()):
            found = checkpoint(layout.demo)
        else:
            found = named(settings.model, settings, layout, here, access, request_mmproj)
    if projector:
        if not isinstance(found, GgufFile):
            raise Refused("mmproj= goes only with a GGUF", fix="name a GGUF as the model")
        found = dataclasses.replace(found, mmproj=projector)
    if isinstance(found, (GgufFile, Checkpoint)) and not found.pinned:
        for key in ("filename", "pattern", "revision", "sha256"):
            if settings.origin.get(key) == COMMAND_LINE:
                raise Refused(f"{key}= does not go with a local model", fix=f"leave out {key}=")
    return found


def named(
    text: str,
    settings: Settings,
    layout: Layout,
    here: Path,
    access: Access,
    mmproj: str = "",
    role: Kind = Kind.MODEL,
) -> Model:
    """The model that a word names: a path where there is one, else a reference or an address."""
    path = _path(text, here)
    if path.exists():
        found = checkpoint(path) if path.is_dir() else _gguf(path, settings)
        try:
            also = reference.parse(text)
        except LlamakeError:
            also = None
        if isinstance(also, reference.Reference):
            kind = "folder" if path.is_dir() else "file"
            note = f"{path} is a local {kind}: it is taken, not {also.repo} on the hub"
            return dataclasses.replace(found, note=note)
        return found
    return _remote(text, settings, layout, access, mmproj, role)


def companions(
    settings: Settings, layout: Layout, here: Path, access: Access
) -> Iterator[tuple[Kind, Model]]:
    """What is served along with the model: a draft model, LoRA adapters."""
    # What is asked of the model's own repository says nothing of theirs.
    bare = dataclasses.replace(
        settings,
        quantization=None,
        revision=None,
        filename=None,
        pattern=None,
        sha256=None,
        origin={},
    )
    wanted = [(Kind.DRAFT, settings.draft_model)] if settings.draft_model else []
    adapters = (settings.lora or "").split(",")
    wanted += [(Kind.ADAPTER, text.strip()) for text in adapters if text.strip()]
    for role, text in wanted:
        found = named(str(text), bare, layout, here, access, "no", role)
        if role is Kind.ADAPTER and isinstance(found, Checkpoint):
            raise Refused(
                f"lora={text} is a safetensors folder",
                "adapters are not converted here",
                "convert it with convert_lora_to_gguf.py of llama.cpp and name the GGUF",
            )
        yield role, found


def _path(text: str, here: Path) -> Path:
    try:
        return Path(os.path.abspath(here / os.path.expanduser(text)))
    except (ValueError, RuntimeError):
        return here / safe_name(text)


def _projector(settings: Settings, here: Path) -> tuple[Path | None, str]:
    """A local mmproj file, or what to ask of the repository."""
    text = settings.mmproj or ""
    if text and text.lower() != "no" and (path := _path(text, here)).is_file():
        read_header(path)
        return path, "no"
    return None, text.lower() if text.lower() == "no" else text


def _remote(
    text: str,
    settings: Settings,
    layout: Layout,
    access: Access,
    mmproj: str = "",
    role: Kind = Kind.MODEL,
    is_hub: bool = False,
) -> Model:
    found = reference.parse(text, [endpoint().partition("://")[2]], is_hub=is_hub)
    if found is None:
        raise ModelError(
            f"there is no model '{text}'",
            "no file or folder has that name, and no repository could have it",
            "name a GGUF file, a folder with config.json and *.safetensors, or org/name",
        )
    if isinstance(found, reference.Url):
        url = found
        return _or_unresolved(
            lambda: resolve.resolve_url(url, layout, settings, access), url.shown, layout, access
        )
    if settings.sha256:
        raise Refused(
            "sha256= goes only with an address (https://…)",
            "the hub itself says what its files must be",
            "leave it out",
        )

    line = {key for key, origin in settings.origin.items() if origin == COMMAND_LINE}

    def given(key: str, *instead: object) -> str:
        # The environment does not contradict what the reference and the command line say.
        return getattr(settings, key) or "" if key in line or not any(instead) else ""

    filename = given("filename", found.filename, found.quantization, "quantization" in line)
    file = found.filename or filename
    wanted = reference.combine(
        found,
        quantization=given("quantization", found.quantization, file),
        revision=given("revision", found.revision),
        filename=filename,
        pattern=given("pattern", file),
        mmproj=mmproj,
    )
    return _or_unresolved(
        lambda: resolve.resolve(
            wanted.repo, wanted.revision, wanted.request, layout, settings, access, role
        ),
        wanted.repo,
        layout,
        access,
        wanted.request.quantization,
    )


def _or_unresolved(
    ask: Callable[[], Pinned], name: str, layout: Layout, access: Access, quantization: str = ""
) -> Model:
    try:
        pinned = ask()
    except ModelError as error:
        if access is Access.RESOLVE:
            raise
        why = ": ".join(filter(None, (error.what, error.why)))
        return Unresolved(name, safe_name(name.replace("/", "__")), why)
    return model_of(pinned, layout, quantization)


def model_of(pinned: Pinned, layout: Layout, quantization: str = "") -> GgufFile | Checkpoint:
    """The model that a choice from a repository is, downloaded already or not."""
    folder, chosen = download.folder_of(pinned, layout), pinned.choice
    paths = tuple(files.inside(folder, name) for name in chosen.files)
    if chosen.kind == "gguf":
        projector = files.inside(folder, chosen.mmproj) if chosen.mmproj else None
        name = paths[0].stem if "://" in pinned.name else pinned.name
        return GgufFile(paths[0], pinned.manifest.id, name, projector, pinned)
    asked = quantizable(quantization) if quantization else ""
    return Checkpoint(
        folder, pinned.manifest.id, tuple(sorted(paths)), chosen.intermediate, pinned, asked
    )


def _gguf(path: Path, settings: Settings) -> GgufFile:
    if settings.quantization and settings.origin.get("quantization") == COMMAND_LINE:
        raise Refused(
            f"quantization={settings.quantization} does not go with a GGUF file",
            f"{path.name} is served as it is",
            "leave out quantization=, or name the safetensors folder it was made from",
        )
    read_header(path)
    return GgufFile(path, local_id(path), path.stem)


def checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; ModelError says why it is none."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder", fix="name the folder that holds config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        raise ModelError(
            f"{folder} is not a checkpoint",
            "it has no config.json",
            f"name its file: model={ggufs[0]}"
            if ggufs
            else "name the folder of a Hugging Face checkpoint",
        )
    if not weights:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        raise ModelError(
            f"{folder} holds no *.safetensors",
            f"{pickles[0].name} is a pickle, which can run code when it is read"
            if pickles
            else "there are no weights in it",
            "use the safetensors version of the model",
        )
    found = {path for pattern in _INPUT_PATTERNS for path in folder.glob(pattern)}
    dtypes = {dtype for path in weights for dtype in safetensors_dtypes(path)}
    return Checkpoint(
        folder,
        local_id(folder),
        tuple(sorted(path for path in found if path.is_file())),
        default_intermediate(dtypes),
    )
