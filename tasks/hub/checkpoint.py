"""Which files of a repository without GGUFs conversion needs; or why nothing in it can be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from tasks.errors import ModelError
from tasks.hub.manifest import RemoteFile

_INDEX = "model.safetensors.index.json"
_PART = re.compile(r"model(?:\.safetensors)?-0*(\d{1,5})-of-0*(\d{1,5})\.safetensors")
# Nothing that is code, and nothing that is data of another library.
_BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.jsonl", "*.tiktoken", "tokenizer.model.v*")
_DEEPER = "*/config.json"
"""sentence-transformers keep the kind of pooling there."""
_NOT_BESIDE = re.compile(r"(?:readme|licen[sc]e|notice|requirements|use_policy).*", re.I)
_NOT_BELOW = ("original", "onnx", "openvino", "coreml", "gguf")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_PICKLES = re.compile(r"(?:.*/)?(?:openvino|training_args|optimizer|scheduler|rng_state).*")
_MODELS_ELSEWHERE = "look on huggingface.co for a GGUF of this model: its page lists quantizations"


def convertible(files: Sequence[RemoteFile]) -> tuple[str, ...]:
    """What `checkpoint_files` finds, () where there is none, or not all of it."""
    try:
        return checkpoint_files(files)
    except ModelError:
        return ()


def checkpoint_files(files: Sequence[RemoteFile], repo: str = "the repository") -> tuple[str, ...]:
    """Everything that conversion needs: config.json first, the others by name.

    Raises ModelError that says what the repository holds instead.
    """
    root = [file.name for file in files if "/" not in file.name]
    weights = _weights(root, repo)
    if not weights:
        raise _nothing(files, repo)
    if "config.json" not in root:
        raise ModelError(
            f"{repo} holds safetensors that cannot be converted",
            "it has no config.json, which says how the model is built",
            _MODELS_ELSEWHERE,
        )
    beside = {name for name in root if _is_beside(name)}
    deeper = {
        file.name
        for file in files
        if fnmatchcase(file.name, _DEEPER)
        and file.name.count("/") == 1
        and file.name.split("/")[0].lower() not in _NOT_BELOW
    }
    others = beside | deeper | set(weights)
    return ("config.json", *sorted(others - {"config.json"}))


def _is_beside(name: str) -> bool:
    return any(fnmatchcase(name, each) for each in _BESIDE) and not _NOT_BESIDE.fullmatch(name)


def _weights(root: Sequence[str], repo: str) -> list[str]:
    """The safetensors that llama.cpp's converter reads: it wants `model*`, and only one copy."""
    names = [name for name in root if name.endswith(".safetensors")]
    parts = {name: match for name in names if (match := _PART.fullmatch(name))}
    if "model.safetensors" in names and not (parts and _INDEX in root):
        return ["model.safetensors"]
    if parts:
        counts = {int(match[2]) for match in parts.values()}
        numbers = {int(match[1]) for match in parts.values()}
        missing = sorted(set(range(1, max(counts) + 1)) - numbers)
        if len(counts) > 1 or missing:
            raise ModelError(
                f"the safetensors of {repo} are incomplete",
                f"of {max(counts)} parts number {missing[0]} is missing"
                if missing
                else "their names give different numbers of parts",
                "name another revision=, or wait until the upload is finished",
            )
        return sorted(parts)
    weights = [name for name in names if not name.startswith(("consolidated", "adapter_"))]
    if any(name.startswith("model") for name in weights):
        return weights
    if not names:
        return []
    if all(name.startswith("adapter_") for name in names):
        raise ModelError(
            f"{repo} holds no model, but a LoRA adapter for one",
            f"{names[0]} is all its weights",
            "name the model it was made for, and a GGUF of the adapter with lora=",
        )
    raise ModelError(
        f"{repo} holds safetensors that cannot be converted",
        f"the weights must be called model*.safetensors, but there is {names[0]}",
        _MODELS_ELSEWHERE,
    )


def _nothing(files: Sequence[RemoteFile], repo: str) -> ModelError:
    """Why a repository without GGUF and safetensors cannot be served."""
    names = [file.name for file in files]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    pickles = [name for name in pickles if not _NO_PICKLES.fullmatch(name)]
    if pickles:
        return ModelError(
            f"{repo} holds only pickles",
            f"{pickles[0]} is a pickle, and a pickle can run code when it is read",
            "use a safetensors or GGUF version of the model",
        )
    deeper = [name for name in names if name.endswith(".safetensors")]
    if deeper:
        return ModelError(
            f"{repo} holds no model in its root",
            f"there is {deeper[0]}, as pipelines of several models have it",
            _MODELS_ELSEWHERE,
        )
    kinds = Counter(PurePosixPath(name).suffix or PurePosixPath(name).name for name in names)
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
    return ModelError(
        f"{repo} holds neither GGUF nor safetensors",
        f"its files are {held}" if held else "it is empty",
        _MODELS_ELSEWHERE,
    )
