"""Conversion's pure parts: no code of a model gets to the converter, and what went wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.convert import decisive_line, output_path, source_note, staged, without_code
from tasks.errors import ConversionError
from tasks.layout import Layout
from tasks.model import Checkpoint
from tasks.settings import Settings

HIDDEN = r'{"\u0061uto_map": {"AutoTokenizer": "evil.T"}, "a": 1}'


def test_the_stage_holds_links_and_no_code(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "sub" / "evil.py").write_text("raise SystemExit")
    (folder / "model.safetensors").write_text("weights")
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.C"}, "a": 1}')
    (folder / "tokenizer_config.json").write_text(HIDDEN)
    (folder / "sub" / "config.json").write_text('{"x": [{"auto_map": 1, "b": 2}]}')
    (folder / "plain.json").write_text('{"a": 1}')
    inputs = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    stage_root = tmp_path / "stage"
    with staged(inputs, stage_root / "model") as stage:
        names = sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file())
        assert names == [
            "config.json",
            "model.safetensors",
            "plain.json",
            "sub/config.json",
            "tokenizer_config.json",
        ]
        read = {name: json.loads((stage / name).read_text()) for name in names if "json" in name}
        assert read == {
            "config.json": {"a": 1},
            "plain.json": {"a": 1},
            "sub/config.json": {"x": [{"b": 2}]},
            "tokenizer_config.json": {"a": 1},
        }
        # Gigabytes are linked, and what was cleaned is not the user's file.
        assert (stage / "model.safetensors").samefile(folder / "model.safetensors")
        assert not (stage / "config.json").samefile(folder / "config.json")
    assert not stage_root.exists()
    assert "auto_map" in (folder / "config.json").read_text()
    assert (folder / "model.safetensors").read_text() == "weights"


def test_the_stage_goes_when_the_conversion_fails(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    inputs = {"config.json": tmp_path / "config.json"}
    with pytest.raises(RuntimeError), staged(inputs, tmp_path / "s" / "model"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": "\\u0061b"}', "not json", '["auto", "map"]'])
def test_a_file_without_code_is_linked_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert without_code(path) is None


@pytest.mark.parametrize("text", [HIDDEN, '[[{"auto_map": {}}]]', '{"a": {"b": {"auto_map": 0}}}'])
def test_code_is_taken_out_wherever_it_stands(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    clean = without_code(path)
    assert clean
    assert "auto_map" not in json.dumps(json.loads(clean))


@pytest.mark.parametrize("text", ['{"auto_map": ', "[" * 100_000 + '"auto_map"'])
def test_what_cannot_be_cleaned_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConversionError, match=r"x\.json is not JSON"):
        without_code(path)


@pytest.mark.parametrize(
    ("tail", "line"),
    [
        (["Traceback", "  File x", "ValueError: bad size", "", "  "], "ValueError: bad size"),
        (
            ["KeyError: 1", "During handling", "a.b.ModelError: 2", "sys:1: Warning"],
            "a.b.ModelError: 2",
        ),
        (
            ["ERROR:hf-to-gguf:Model Foo is not supported", "bye"],
            "ERROR:hf-to-gguf:Model Foo is not supported",
        ),
        (["error: unknown type"], "error: unknown type"),
        (["Killed"], "Killed"),
        ([" "], "it said nothing"),
        ([], "it said nothing"),
    ],
)
def test_the_line_that_decides(tail: list[str], line: str) -> None:
    assert decisive_line(tail) == line


def test_where_a_result_lies_and_where_it_came_from(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "m", "m__12345678", (), "bf16")
    layout = Layout.of(tmp_path, Settings())
    assert output_path(checkpoint, layout, "q8_0") == (
        tmp_path / "models" / "gguf" / "m__12345678" / "model.q8_0.gguf"
    )
    note = source_note(checkpoint)
    assert note == {"type": "safetensors", "reference": str(tmp_path / "m"), "revision": None}
