"""Signals and kills at every place: no orphan, no doubt about what was made, no rubbish."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from graph import Gate, Project, Tools, gone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["convert", "quantize", "serve"])
def test_signal_before_healthy_ends_everything(
    project: Project, place: str, number: signal.Signals
) -> None:
    gate = Gate(project.folder / "gate")
    project.checkpoint(gates={place: gate})
    run = project.start("serve", "model=m", "port=auto")
    gate.reached(run)
    children = run.children()
    assert children
    said = run.stop(number, status=130)
    gone(children)
    assert "Traceback" not in said
    gate.open()
    assert not list(project.folder.rglob("*.partial"))
    steps = ["convert", "quantize", "serve"]
    assert project.pending("model=m") == set(steps[steps.index(place) :]) - {"serve"}


def test_one_who_waits_for_another_can_be_stopped(project: Project) -> None:
    gate = Gate(project.folder / "gate")
    project.checkpoint(gates={"convert": gate})
    first = project.start("prepare", "model=m")
    gate.reached(first)
    second = project.start("prepare", "model=m")
    second.wait_for("waiting for it")
    second.stop(signal.SIGINT, status=130)
    gate.open()
    first.end()
    assert project.pending("model=m") == set()


@pytest.mark.parametrize("place", ["convert", "quantize", "serve"])
def test_kill_leaves_no_orphan_and_no_doubt(project: Project, place: str) -> None:
    """SIGKILL for the whole group: list is true after it, and the next run takes up the work."""
    gate = Gate(project.folder / "gate")
    project.checkpoint(gates={place: gate})
    run = project.start("serve", "model=m", "port=auto")
    gate.reached(run)
    children = run.children()
    assert children
    run.kill_group()
    gone(children)
    gate.open()
    steps = ["convert", "quantize", "serve"]
    assert project.pending("model=m") == set(steps[steps.index(place) :]) - {"serve"}
    again = project.start("prepare", "model=m")
    if place != "serve":
        gate.reached(again)
        gate.open()
    again.end()
    assert project.pending("model=m") == set()
    assert not list(project.folder.rglob("*.partial*"))


def test_kill_of_a_healthy_server(prepared: Project) -> None:
    server = prepared.start("serve", "model=m", "port=auto")
    server.wait_for("ready in ")
    children = server.children()
    server.kill_group()
    gone(children)
    assert prepared.pending("model=m") == set()


def gate_in_compilation(project: Project) -> Gate:
    """A gate at which CMake waits."""
    gate = Gate(project.folder / "gate")
    assert project.tree
    with open(project.tree / "CMakeLists.txt", "a") as script:
        script.write(f'execute_process(COMMAND cat "{gate.path}")\n')
    return gate


def test_signal_while_compiling(bare: Project) -> None:
    bare.checkpoint()
    gate = gate_in_compilation(bare)
    run = bare.start("serve", "model=m", "port=auto")
    gate.reached(run)
    run.wait_for("convert     done in")
    children = run.children()
    run.stop(signal.SIGINT, status=130)
    gone(children)
    assert bare.pending("model=m") == {"build", "quantize"}


def test_kill_while_compiling(bare: Project) -> None:
    bare.checkpoint()
    gate = gate_in_compilation(bare)
    run = bare.start("prepare", "model=m")
    gate.reached(run)
    run.wait_for("convert     done in")
    children = run.children()
    run.kill_group()
    gone(children)
    gate.open()
    assert bare.pending("model=m") == {"build", "quantize"}
    again = bare.start("prepare", "model=m")
    gate.reached(again)
    gate.open()
    assert "convert     fresh" in again.end()
    assert bare.pending("model=m") == set()


def test_kill_while_installing_packages(tools: Tools, tmp_path: Path) -> None:
    """pip waits at the gate, which it is told to read its configuration from."""
    project = Project(tmp_path, tmp_path / "bins", tools.tree)
    gate = Gate(tmp_path / "gate")
    run = project.start("converter", env={"PIP_CONFIG_FILE": str(gate.path)})
    gate.reached(run)
    children = run.children()
    run.kill_group()
    gone(children)
    assert "converter" in project.pending()
    assert list(project.bins.glob(".converter*.partial"))
    project.doit("converter")
    assert "converter" not in project.pending()
    assert not list(project.bins.glob(".converter*.partial"))
