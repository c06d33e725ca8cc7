"""What `model=` means: a GGUF file, a safetensors checkpoint, or a repository on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import LlamakeError, ModelError, Refused
from tasks.gguf_header import read_header
from tasks.layout import Layout, local_id
from tasks.quantization import default_intermediate, safetensors_dtypes
from tasks.settings import COMMAND_LINE, Settings

_INPUT_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*/config.json")
_HUB_REFERENCE = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?$")


@dataclass(frozen=True)
class GgufFile:
    """A GGUF that is used where it lies."""

    path: Path

    @property
    def name(self) -> str:
        """What to call it in the API."""
        return self.path.stem


@dataclass(frozen=True)
class Checkpoint:
    """A local folder with safetensors, to be converted and quantized."""

    folder: Path
    id: str
    files: tuple[Path, ...]
    intermediate: str
    """The 16-bit type to convert to: f16, or bf16 where the checkpoint is in bf16."""

    @property
    def name(self) -> str:
        """What to call it in the API."""
        return self.folder.name


Model = GgufFile | Checkpoint


def resolve(settings: Settings, layout: Layout, here: Path) -> Model:
    """The model that the settings name; `here` is where the user stands.

    Raises ModelError for a path that cannot be served, Refused for settings that contradict it.
    """
    if settings.gguf_path:
        return _gguf(settings.gguf_path, settings)
    if settings.safetensors_dir:
        return checkpoint(settings.safetensors_dir)
    if settings.hf_model:
        raise _no_hub(settings.hf_model)
    return _any(settings, layout, here)


def _any(settings: Settings, layout: Layout, here: Path) -> Model:
    reference = settings.model
    path = Path(os.path.abspath(here / os.path.expanduser(reference)))
    if "model" not in settings.origin or (reference == "demo" and not path.exists()):
        return checkpoint(layout.demo)
    if path.is_dir():
        return checkpoint(path)
    if path.exists():
        return _gguf(path, settings)
    if _HUB_REFERENCE.match(reference) and not reference.endswith((".gguf", ".safetensors")):
        raise _no_hub(reference)
    raise ModelError(
        f"there is no model '{reference}'",
        f"{path} does not exist",
        "name a GGUF file or a folder with config.json and *.safetensors",
    )


def _no_hub(reference: str) -> LlamakeError:
    return ModelError(
        f"'{reference}' names a Hugging Face repository",
        "this version serves local models only; no file or folder has that name here",
        "download it yourself and name the GGUF file or the safetensors folder",
    )


def _gguf(path: Path, settings: Settings) -> GgufFile:
    if settings.quantization and settings.origin.get("quantization") == COMMAND_LINE:
        raise Refused(
            f"quantization={settings.quantization} does not go with a GGUF file",
            f"{path.name} is served as it is",
            "leave out quantization=, or name the safetensors folder it was made from",
        )
    read_header(path)
    return GgufFile(path)


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
    files = {path for pattern in _INPUT_PATTERNS for path in folder.glob(pattern)}
    dtypes = {dtype for path in weights for dtype in safetensors_dtypes(path)}
    return Checkpoint(
        folder,
        local_id(folder),
        tuple(sorted(path for path in files if path.is_file())),
        default_intermediate(dtypes),
    )
