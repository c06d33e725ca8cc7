"""What a change redoes, and above all what it does not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from graph import Project, Tools, edit_config, flip_byte, own_tools
from tiny.checkpoint import make_checkpoint

Q4, F16 = "model.q4_k_m.gguf", "model.f16.gguf"


def ran(output: str) -> list[str]:
    """The steps that a run made, in the order in which they ended."""
    return re.findall(r"^(\S+) +done in ", output, re.MULTILINE)


def test_another_quantization_runs_only_quantize_and_going_back_nothing(prepared: Project) -> None:
    before = prepared.files()
    assert prepared.why("model=m", "quantization=q8_0")["quantize"] == "not made yet"
    assert ran(prepared.doit("prepare", "model=m", "quantization=q8_0")) == ["quantize"]
    after = prepared.files()
    assert set(after) - set(before) == {"model.q8_0.gguf"}
    assert ran(prepared.doit("prepare", "model=m")) == []
    assert ran(prepared.doit("prepare", "model=m", "quantization=f16")) == []
    assert prepared.files() == after


def test_going_back_to_a_model_runs_nothing(prepared: Project) -> None:
    prepared.checkpoint("other")
    assert ran(prepared.doit("prepare", "model=other")) == ["convert", "quantize"]
    for model in ("m", "other"):
        assert ran(prepared.doit("prepare", f"model={model}")) == []


def test_touching_redoes_nothing(prepared: Project) -> None:
    """Neither a new time nor a new inode of an input, nor of an output."""
    before = prepared.gguf().stat().st_mtime_ns
    for path in [*(prepared.folder / "m").iterdir(), prepared.gguf("f16")]:
        os.utime(path, ns=(1, 1))
        shutil.copyfile(path, path.with_suffix(".copy"))
        os.replace(path.with_suffix(".copy"), path)
    assert prepared.pending("model=m") == set()
    assert ran(prepared.doit("prepare", "model=m")) == []
    assert prepared.gguf().stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_one_byte_of_an_input_redoes_what_depends_on_it(prepared: Project, name: str) -> None:
    path = prepared.folder / "m" / name
    if name.endswith(".json"):
        path.write_text(path.read_text() + " ")
    else:
        flip_byte(path)
    why = prepared.why("model=m")
    assert (why["convert"], why["quantize"]) == (f"{name} changed", "after convert")
    assert prepared.pending("model=m") == {"convert", "quantize"}
    assert ran(prepared.doit("prepare", "model=m")) == ["convert", "quantize"]
    assert prepared.pending("model=m") == set()


def test_added_and_removed_inputs_are_changes(prepared: Project) -> None:
    added = prepared.folder / "m" / "chat_template.jinja"
    added.write_text("{{ messages }}")
    assert prepared.why("model=m")["convert"] == "chat_template.jinja added"
    prepared.doit("prepare", "model=m")
    assert prepared.pending("model=m") == set()
    added.unlink()
    assert prepared.why("model=m")["convert"] == "chat_template.jinja removed"


def test_another_imatrix_requantizes(project: Project) -> None:
    project.checkpoint()
    imatrix = project.folder / "imatrix.gguf"
    imatrix.write_text("importance")
    words = ("model=m", "quantization=iq2_xxs", "imatrix=imatrix.gguf")
    assert ran(project.doit("prepare", *words)) == ["convert", "quantize"]
    assert project.pending(*words) == set()
    flip_byte(imatrix)
    assert project.pending(*words) == {"quantize"}


def test_bf16_checkpoint_keeps_its_range(project: Project) -> None:
    make_checkpoint(project.folder / "m", dtype="BF16")
    project.doit("prepare", "model=m")
    assert set(project.files()) == {"model.bf16.gguf", Q4}
    tensor = GGUFReader(project.gguf("bf16")).tensors[0]
    assert tensor.tensor_type.name == "BF16"


# --- keep-f16=no


def test_intermediate_goes_and_comes_back_only_when_needed(project: Project) -> None:
    project.checkpoint()
    words = ("model=m", "keep-f16=no")
    assert ran(project.doit("prepare", *words)) == ["convert", "quantize"]
    assert set(project.files()) == {Q4}
    for request in (words, ("model=m",)):
        assert project.pending(*request) == set()
        assert ran(project.doit("prepare", *request)) == []
    assert project.pending(*words, "quantization=q8_0") == {"convert", "quantize"}
    assert ran(project.doit("prepare", *words, "quantization=q8_0")) == ["convert", "quantize"]
    assert set(project.files()) == {Q4, "model.q8_0.gguf"}
    assert project.pending(*words) == set()


def test_intermediate_that_was_kept_goes_later(prepared: Project) -> None:
    before = prepared.files()
    assert ran(prepared.doit("prepare", "model=m", "keep-f16=no")) == []
    assert prepared.files() == {Q4: before[Q4]}
    assert prepared.pending("model=m") == set()


def test_16_bit_product_stays(project: Project) -> None:
    project.checkpoint()
    words = ("model=m", "keep-f16=no", "quantization=f16")
    for expected in (["convert"], []):
        assert ran(project.doit("prepare", *words)) == expected
        assert set(project.files()) == {F16}
    assert project.pending(*words) == set()


def test_forgotten_quantize_needs_the_removed_intermediate(project: Project) -> None:
    project.checkpoint()
    words = ("model=m", "keep-f16=no")
    project.doit("prepare", *words)
    project.doit("forget", "quantize", *words)
    assert project.pending(*words) == {"convert", "quantize"}
    assert ran(project.doit("prepare", *words)) == ["convert", "quantize"]
    assert set(project.files()) == {Q4}


def test_changed_input_is_seen_although_the_intermediate_is_gone(project: Project) -> None:
    project.checkpoint()
    project.doit("prepare", "model=m", "keep-f16=no")
    flip_byte(project.folder / "m" / "model.safetensors")
    assert project.pending("model=m") == {"convert", "quantize"}


# --- the tools


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tree: _append(tree / "llama-server.cpp", "\n// changed\n"), ["build"]),
        (
            lambda tree: _append(tree / "convert_hf_to_gguf.py", "\n# changed\n"),
            ["build", "convert", "quantize"],
        ),
    ],
)
def test_changed_tree_redoes_what_comes_from_it(
    changed: Project, change: Callable[[Path], None], expected: list[str]
) -> None:
    assert changed.tree
    before = changed.files()
    change(changed.tree)
    assert changed.pending("model=m") == set(expected)
    assert sorted(ran(changed.doit("prepare", "model=m"))) == expected
    assert changed.pending("model=m") == set()
    assert (changed.files() == before) == ("quantize" not in expected)


def test_forgotten_build_is_compiled_anew_and_nothing_else(changed: Project) -> None:
    before = changed.files()
    changed.doit("forget", "build", "model=m")
    assert changed.pending("model=m") == {"build"}
    assert ran(changed.doit("prepare", "model=m")) == ["build"]
    assert changed.files() == before
    assert changed.pending("model=m") == set()


def test_another_cpu_compiles_again_instead_of_crashing(changed: Project) -> None:
    (path,) = changed.bins.glob("*/llama-server")
    record = path.with_name(".state.json")
    state = json.loads(record.read_text(encoding="utf-8"))
    state["steps"]["build"]["parameters"]["cpu"] = ["avx512f"]
    record.write_text(json.dumps(state), encoding="utf-8")
    assert changed.why("model=m")["build"] == "cpu changed"
    assert ran(changed.doit("prepare", "model=m")) == ["build"]
    assert changed.pending("model=m") == set()


def test_another_compiler_compiles_again(changed: Project) -> None:
    wrapper = changed.folder / "my-c++"
    wrapper.write_text(f'#!/bin/sh\nexec "{shutil.which("c++")}" "$@"\n')
    wrapper.chmod(0o755)
    env = {"CXX": str(wrapper)}
    assert re.search(r"^build +pending +compiler changed", changed.doit("list", env=env), re.M)
    assert ran(changed.doit("prepare", "model=m", env=env)) == ["build"]


def test_compilation_goes_on_where_its_folder_was_moved(changed: Project) -> None:
    """CMake refuses a build tree that it did not make at this very place."""
    assert changed.tree
    _append(changed.tree / "CMakeLists.txt", "\n# moved\n")
    os.rename(changed.bins, changed.folder / "moved")
    words = ("build", f"bins-dir={changed.folder / 'moved'}")
    assert ran(changed.doit(*words)) == ["build"]
    os.rename(changed.folder / "moved", changed.bins)


@pytest.fixture(scope="module")
def changed(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A prepared project with a tree of its own, changed a little more by each test."""
    project = own_tools(tools, tmp_path_factory.mktemp("changed"))
    project.checkpoint()
    project.doit("prepare", "model=m")
    return project


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


# --- code that comes with a model


def test_code_of_a_model_is_never_run(project: Project) -> None:
    """The tiny converter runs what the real one would: any Python file, and what auto_map names."""
    folder, planted = project.checkpoint(), project.folder / "planted"
    code = f"open({str(planted)!r}, 'w')\nclass Tokenizer: pass\n"
    (folder / "tokenization_planted.py").write_text(code)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.py").write_text(code)
    (folder / "sub" / "config.json").write_text('{"auto_map": {"A": "more.Tokenizer"}}')
    mapped = {"AutoTokenizer": ["tokenization_planted.Tokenizer", None]}
    edit_config(folder, {"auto_map": mapped})
    escaped = '{"\\u0061uto_map": {"AutoTokenizer": ["tokenization_planted.Tokenizer", null]}}'
    (folder / "tokenizer_config.json").write_text(escaped)
    project.doit("prepare", "model=m")
    assert not planted.exists()
    staged = GGUFReader(project.gguf()).fields["tiny.staged"].contents()
    assert staged == [
        "config.json",
        "model.safetensors",
        "sub/config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
