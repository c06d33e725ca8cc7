"""What `model=` means: files and folders of every kind, and why some cannot be served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from tasks.errors import LlamakeError, ModelError, Refused
from tasks.layout import Layout, local_id
from tasks.model import Checkpoint, GgufFile, Model, Unresolved, checkpoint, resolve_model
from tasks.settings import load

LAYOUT = Layout.of(ROOT, load({}, {}, ROOT))


def safetensors(path: Path, dtype: str = "F32") -> Path:
    """A whole safetensors file with one tensor of 4 bytes."""
    header = {"x": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    return path


def gguf(path: Path) -> Path:
    """The smallest GGUF: a header with an architecture and no tensors."""
    key, value = b"general.architecture", b"llama"
    entry = len(key).to_bytes(8, "little") + key + (8).to_bytes(4, "little")
    entry += len(value).to_bytes(8, "little") + value
    counts = (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + counts + entry)
    return path


def make_checkpoint(folder: Path, dtype: str = "F32") -> Path:
    safetensors(folder / "model.safetensors", dtype)
    (folder / "config.json").write_text("{}")
    return folder


def resolved(here: Path, **words: str) -> Model:
    return resolve_model(load(words, {}, here), LAYOUT, here)


def test_without_a_model_it_is_the_demo(tmp_path: Path) -> None:
    model = resolved(tmp_path)
    assert isinstance(model, Checkpoint)
    assert model.folder == LAYOUT.demo
    assert resolved(tmp_path, model="demo") == model


def test_a_folder_named_demo_is_meant_where_it_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "demo")
    for words, folder in (({"model": "demo"}, tmp_path / "demo"), ({}, LAYOUT.demo)):
        model = resolved(tmp_path, **words)
        assert isinstance(model, Checkpoint)
        assert model.folder == folder


@pytest.mark.parametrize("key", ["model", "safetensors_dir"])
def test_a_checkpoint_is_found_from_where_the_user_stands(key: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a" / "my model")
    (folder / "1_Pooling").mkdir()
    for name in ("tokenizer.model", "1_Pooling/config.json", "chat_template.jinja"):
        (folder / name).write_text("{}")
    for name in ("tokenizer.py", "weights.bin", "README.md", "1_Pooling/other.txt"):
        (folder / name).write_text("")
    model = resolved(tmp_path / "b", **{key: "../a/my model"})
    assert isinstance(model, Checkpoint)
    assert (model.folder, model.name) == (folder, "my model")
    assert model.id.startswith("my_model__")
    assert [path.relative_to(folder).as_posix() for path in model.files] == [
        "1_Pooling/config.json",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]


@pytest.mark.parametrize(("dtype", "intermediate"), [("BF16", "bf16"), ("F16", "f16")])
def test_a_bf16_checkpoint_keeps_its_range(dtype: str, intermediate: str, tmp_path: Path) -> None:
    assert checkpoint(make_checkpoint(tmp_path, dtype)).intermediate == intermediate


@pytest.mark.parametrize("key", ["model", "gguf_path"])
def test_a_gguf_is_used_where_it_lies(key: str, tmp_path: Path) -> None:
    path = gguf(tmp_path / "x.gguf")
    assert resolved(tmp_path, **{key: "x.gguf"}) == GgufFile(path, local_id(path), "x")


def test_a_quantization_for_a_gguf_is_refused_where_it_was_asked_for(tmp_path: Path) -> None:
    gguf(tmp_path / "x.gguf")
    with pytest.raises(Refused, match="quantization=q8_0 does not go with a GGUF file"):
        resolved(tmp_path, model="x.gguf", quantization="q8_0")
    asked = load({"model": "x.gguf"}, {"LLAMA_SERVER_QUANTIZATION": "q8_0"}, tmp_path)
    assert isinstance(resolve_model(asked, LAYOUT, tmp_path), GgufFile)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("no")
    with pytest.raises(ModelError, match=r"x\.gguf"):
        resolved(tmp_path, gguf_path="x.gguf")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ({"model": "none.gguf"}, "there is no model 'none.gguf'"),
        ({"model": "a/b.gguf"}, "there is no model 'a/b.gguf'"),
        ({"model": "~nobody-of-this-name/x/y"}, "there is no model"),
        ({"safetensors_dir": "none"}, "none is not a folder"),
    ],
)
def test_what_is_not_there(words: dict[str, str], what: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=what):
        resolved(tmp_path, **words)


@pytest.mark.parametrize(
    "words", [{"model": "org/name"}, {"model": "org/name:Q4_K_M@v1.0"}, {"hf_model": "org/name"}]
)
def test_a_repository_that_was_never_looked_up(words: dict[str, str], tmp_path: Path) -> None:
    found = resolved(tmp_path, **words)
    assert isinstance(found, Unresolved)
    assert found.name == "org/name"
    assert found.why.endswith("looked up on the hub: this command asks nothing of the hub")


def test_a_local_path_wins_over_a_repository_and_says_so(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "org" / "name")
    found = resolved(tmp_path, model="org/name")
    assert isinstance(found, Checkpoint)
    assert found.folder == folder
    assert found.note == f"{folder} is a local folder: it is taken, not org/name on the hub"
    assert not resolved(tmp_path, model=str(folder)).note  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["filename", "pattern", "revision"])
def test_what_is_asked_of_a_repository_does_not_go_with_a_path(key: str, tmp_path: Path) -> None:
    gguf(tmp_path / "x.gguf")
    with pytest.raises(Refused, match=f"{key}= does not go with a local model"):
        resolved(tmp_path, model="x.gguf", **{key: "y"})


def why_not(folder: Path) -> LlamakeError:
    with pytest.raises(ModelError) as refused:
        checkpoint(folder)
    return refused.value


def test_folders_that_cannot_be_served(tmp_path: Path) -> None:
    assert why_not(tmp_path).why == "it has no config.json"
    gguf(tmp_path / "x.gguf")
    assert why_not(tmp_path).fix == f"name its file: model={tmp_path / 'x.gguf'}"
    (tmp_path / "config.json").write_text("{}")
    assert why_not(tmp_path).why == "there are no weights in it"
    (tmp_path / "pytorch_model.bin").write_text("")
    assert why_not(tmp_path).why.startswith("pytorch_model.bin is a pickle")
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0")
    assert "truncated" in why_not(tmp_path).what
