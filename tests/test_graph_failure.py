"""Failures: their exit codes, what is said, and what others finish nevertheless."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from graph import Gate, Project, Tools, flip_byte


def test_failed_compilation_shows_the_first_error_and_the_log(bare: Project) -> None:
    bare.checkpoint()
    broken = bare.folder / "llama.cpp" / "llama-server.cpp"
    broken.write_text("int main() { return undeclared_name; }\n" * 40)
    said = bare.doit("build", status=11)
    assert "llama.cpp did not compile" in said
    why = re.search(r"why: (.*)", said)
    assert why and "undeclared_name" in why[1] and "llama-server.cpp:1:" in why[1]
    log = re.search(r"fix: see (.*)", said)
    assert log and "undeclared_name" in Path(log[1]).read_text()
    assert len(said.splitlines()) < 15
    assert "build" in bare.pending("model=m")


def test_one_failure_lets_a_running_step_finish(bare: Project) -> None:
    gate = Gate(bare.folder / "gate")
    bare.checkpoint(gates={"convert": gate})
    (bare.folder / "llama.cpp" / "CMakeLists.txt").write_text("project(broken")
    run = bare.start("prepare", "model=m")
    gate.reached(run)
    run.wait_for("ERROR: build")
    gate.open()
    said = run.end(11)
    assert re.search(r"^convert +done in ", said, re.MULTILINE)
    assert bare.why("model=m")["convert"] == ""
    assert set(bare.files()) == {"model.f16.gguf"}


def test_failed_conversion_says_why(project: Project) -> None:
    folder = project.checkpoint()
    (folder / "tokenizer.json").write_text("{ broken")
    said = project.doit("prepare", "model=m", status=13)
    assert "m could not be converted" in said
    assert "why: json.decoder.JSONDecodeError: Expecting property name" in said
    log = re.search(r"fix: see (.*)", said)
    assert log and "Traceback" in Path(log[1]).read_text()
    assert "Traceback" not in said
    assert not list(project.models.rglob("*.partial"))
    assert project.pending("model=m") == {"convert", "quantize"}


def test_damaged_intermediate_is_made_again_and_not_quantized(prepared: Project) -> None:
    f16 = prepared.gguf("f16")
    f16.write_bytes(f16.read_bytes()[:2000])
    said = prepared.doit("prepare", "model=m", "quantization=q8_0")
    assert re.search(r"^convert +done in ", said, re.MULTILINE)
    assert prepared.pending("model=m") == set()


def test_converter_that_cannot_be_installed(bare: Project) -> None:
    packages = bare.folder / "llama.cpp" / "requirements" / "requirements-convert_hf_to_gguf.txt"
    packages.write_text("./no-such-package\n")
    said = bare.doit("converter", status=12)
    assert "Python packages could not be installed" in said
    assert "no-such-package" in said
    assert not list(bare.bins.rglob("*.partial"))


@pytest.mark.parametrize(
    ("words", "status", "sign"),
    [
        (["modle=m"], 3, "unknown setting 'modle' (did you mean 'model'?)"),
        (["quantization=q4_k_x"], 3, "q4_k_m"),
        (["port=70000"], 3, "bad value '70000' for setting 'port'"),
        (["quantization=iq2_xxs"], 3, "imatrix=FILE"),
        (["quantization=iq2_xxs", "imatrix=none"], 3, "is not a file"),
        (["model=m", "gguf-path=x.gguf"], 3, "more than one model: model and gguf-path"),
        (["gguf-path=good.gguf", "quantization=q8_0"], 3, "does not go with a GGUF file"),
        (["llama-cpp=m"], 10, "it has no CMakeLists.txt"),
        (["gguf-path=none.gguf"], 14, "none.gguf"),
        (["gguf-path=text.gguf"], 14, "not a GGUF"),
        (["gguf-path=short.gguf"], 14, "truncated"),
        (["model=nowhere"], 14, "there is no model 'nowhere'"),
        (["model=pickle"], 14, "is a pickle"),
        (["model=no-config"], 14, "it has no config.json"),
        (["args=--port=1"], 3, "use port="),
    ],
)
def test_request_that_cannot_be_is_refused_before_anything_runs(
    changed: Project, words: list[str], status: int, sign: str
) -> None:
    before = changed.files()
    said = changed.doit("serve", *words, status=status)
    assert said.startswith("ERROR: ")
    assert sign in said
    assert "Traceback" not in said
    assert changed.files() == before


@pytest.fixture(scope="module")
def changed(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which there is something to do, and models that cannot be served."""
    project = Project(tmp_path_factory.mktemp("refused"), tools.bins, tools.tree)
    folder, here = project.checkpoint(), project.folder
    project.doit("prepare", "model=m")
    whole = project.gguf().read_bytes()
    (here / "good.gguf").write_bytes(whole)
    (here / "short.gguf").write_bytes(whole[:-100])
    (here / "text.gguf").write_text("once upon a time " * 100)
    for name, left_out in (("pickle", "model.safetensors"), ("no-config", "config.json")):
        shutil.copytree(folder, here / name)
        (here / name / left_out).unlink()
    (here / "pickle" / "pytorch_model.bin").write_bytes(b"pickle")
    flip_byte(folder / "model.safetensors")
    return project


def test_unwritable_folder(prepared: Project) -> None:
    """A file lies where a folder is needed."""
    (prepared.folder / "file").write_text("")
    said = prepared.doit("prepare", "model=m", "models-dir=file", status=17)
    assert "Traceback" not in said
