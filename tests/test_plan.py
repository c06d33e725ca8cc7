"""The plan: which steps there are, what each depends on, and requests that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from test_model import gguf, make_checkpoint

from tasks import machine, plan, state
from tasks.convert import source_note
from tasks.errors import PortInUse, Refused
from tasks.model import Checkpoint, checkpoint
from tasks.plan import Plan, make_plan
from tasks.port import free_port
from tasks.settings import load
from tasks.state import Record


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A source tree in which nothing has to be unpacked or read for long."""
    tree = tmp_path / "llama.cpp"
    tree.mkdir()
    for name in ("CMakeLists.txt", "convert_hf_to_gguf.py"):
        (tree / name).write_text("")
    return tree


def planned(own: Path, *argv: str, **words: str) -> Plan:
    here = own.parent
    given = {
        "models-dir": str(here / "m"),
        "bins-dir": str(here / "b"),
        "logs-dir": str(here / "l"),
    }
    given |= {"llama-cpp": str(own), "device": "cpu", **words}
    return make_plan(ROOT, load(given, {}, here), here, argv)


def test_the_steps_of_a_checkpoint(own: Path) -> None:
    found = planned(own)
    assert [step.kind for step in found.steps] == [
        "vendor",
        "toolchain",
        "build",
        "converter",
        "download",
        "convert",
        "quantize",
    ]
    convert, quantize = found.model.convert, found.model.quantize
    assert found.model.product.name == "model.q4_k_m.gguf"
    assert {step.kind for step in convert.upstream()} == {"convert", "vendor", "converter"}
    assert quantize.data_from == (convert,)
    assert quantize.tools == (found.build,), "a rebuilt program requantizes nothing"
    assert found.prepared_by == [
        "vendor",
        "build",
        "converter",
        *(step.name for step in found.model.steps),
    ]
    assert convert.name == f"convert:{found.model.model.id}"


def test_a_gguf_needs_no_converter_and_its_steps_do_not_apply(own: Path) -> None:
    gguf(own.parent / "x.gguf")
    found = planned(own, model="x.gguf")
    assert found.model.product == own.parent / "x.gguf"
    assert "converter" not in found.prepared_by
    for step in found.model.steps:
        assert step.skip
        assert not step.why_pending()
        assert not step.forget()


def test_the_checkpoints_own_type_needs_no_quantize_step(own: Path) -> None:
    make_checkpoint(own.parent / "c", "BF16")
    found = planned(own, model="c", quantization="bf16")
    assert found.model.quantize.skip
    assert found.model.product == next(iter(found.model.convert.outputs.values()))


def test_every_task_is_one_that_doit_takes(own: Path) -> None:
    from doit.task import dict_to_task

    found = planned(own)
    for step in (*found.steps, found.test_environment):
        task = step.task()
        task["name"] = step.name
        task.pop("basename", None)
        assert dict_to_task(task).name == step.name
    assert [task["name"] for task in found.tasks("convert")] == [found.model.convert.model_id]


def remember(found: Plan, model: Checkpoint, quantization: str, made: str) -> None:
    path = found.layout.gguf_folder(model.id) / ".state.json"
    record = Record(made, 0.0, {"quantization": quantization}, {}, {})
    state.put(path, f"quantize:{quantization}", record, source_note(model))


def test_known_models_are_planned_where_they_are_asked_for(own: Path) -> None:
    other = checkpoint(make_checkpoint(own.parent / "other"))
    lost = checkpoint(make_checkpoint(own.parent / "lost"))
    for model in (other, lost):
        remember(planned(own), model, "q6_k", "2026-01-01")
        remember(planned(own), model, "q8_0", "2026-01-02")
        # Was made with an importance matrix, which nobody names now.
        remember(planned(own), model, "iq1_s", "2026-01-03")
    (lost.folder / "config.json").unlink()
    state.put(own.parent / "m" / "gguf" / "odd" / ".state.json", "x", Record("", 0, {}, {}, {}), {})
    assert len(planned(own).models) == 1
    for found in (planned(own, all="yes"), planned(own, f"quantize:{other.id}")):
        assert [one.model for one in found.models[1:]] == [other]
        assert found.models[1].product.name == "model.q8_0.gguf"
    assert len(planned(own, "quantize:unknown").models) == 1


def test_serving_is_refused_before_anything_is_made(own: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortInUse):
            planned(own, port=str(taken.getsockname()[1])).check_serve()
    free = str(free_port("127.0.0.1"))
    planned(own, port=free).check_serve()
    with pytest.raises(Refused, match="args= must not contain --port"):
        planned(own, port=free, args="--port 9").check_serve()


@pytest.mark.skipif(machine.platform_name().startswith("windows"), reason="they do run here")
def test_binaries_for_another_system_are_made_but_not_served(own: Path) -> None:
    found = planned(own, platform="windows-x64", port="auto")
    assert found.build.folder.name == "windows-x64"
    with pytest.raises(Refused, match="do not run on this machine"):
        found.check_serve()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"modle": "x"}, 3),
        ({"port": "x"}, 3),
        ({"model": "none.gguf"}, 14),
        ({"model": "x" * 300}, 3),
    ],
)
def test_a_request_that_cannot_be_ends_with_its_code(
    words: dict[str, str], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan.load(ROOT, str(tmp_path), words)
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith("ERROR: ")
