"""From nothing to prepared, and then nothing: what runs, what is remembered, what `list` says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from conftest import ROOT, missing
from graph import Gate, Project, Tools, flip_byte, gone, own_tools

from tasks.files import sha256_of

STEPS = {"vendor", "toolchain", "build", "converter", "download", "convert", "quantize", "serve"}
TASKS = sorted(STEPS | {"prepare", "test"})


@pytest.mark.parametrize("name", [*STEPS, "prepare", "test"])
def test_task_exists(ready: Project, name: str) -> None:
    info = ready.start("info", name, "model=m")
    assert info.process.wait() in (0, 1)  # 1: it would run
    assert f"\n{name}\n" in info.output


def test_prepare_makes_everything_and_then_nothing(tools: Tools, tmp_path: Path) -> None:
    """From nothing at all: the converter's environment too."""
    project = Project(tmp_path, tmp_path / "bins", tools.tree)
    project.checkpoint()
    everything = {"build", "converter", "convert", "quantize"}
    assert project.pending("model=m") == everything
    first = project.doit("prepare", "model=m")
    for step in everything:
        assert re.search(rf"^{step} +done in ", first, re.MULTILINE)

    def snapshot() -> dict[Path, int]:
        """Every file but locks and this test's own notes."""
        found = [path for path in tmp_path.rglob("*") if path.is_file()]
        left_out = (".lock", ".log")
        return {path: path.stat().st_mtime_ns for path in found if path.suffix not in left_out}

    before = snapshot()
    second = project.doit("prepare", "model=m")
    for step in everything:
        assert re.search(rf"^{step} +fresh$", second, re.MULTILINE)
    assert "done in" not in second
    assert snapshot() == before
    assert project.pending("model=m") == set()


def test_list_shows_each_step(ready: Project) -> None:
    assert set(ready.why("model=m")) == {*STEPS}
    rows = ready.doit("list", "quantize", "model=m").splitlines()
    assert len(rows) == 2
    assert re.match(r"quantize:m__[0-9a-f]{8} +fresh +\S", rows[1])


def test_default_model_is_the_demo(project: Project) -> None:
    project.doit("convert")
    assert project.gguf("f16", "demo").exists()
    assert project.state("demo")["source"]["reference"] == str(ROOT / "models" / "demo")


def test_doit_keeps_no_database(ready: Project) -> None:
    assert not [*ready.folder.rglob(".doit.db*"), *ROOT.glob(".doit.db*")]


def test_warm_serve_runs_only_serve_without_network(ready: Project, tmp_path: Path) -> None:
    """In a network namespace with loopback alone; asking for anything else ends the process."""
    if subprocess.run(["unshare", "-rn", "true"], stderr=subprocess.DEVNULL).returncode:
        missing("a network namespace", "util-linux's unshare is not allowed here")
    launcher = tmp_path / "launcher.py"
    launcher.write_text(_LAUNCHER)
    places = {"bins-dir": ready.bins, "llama-cpp": ready.tree, "models-dir": ready.models}
    words = [f"{key}={path}" for key, path in places.items()]
    argv = ["unshare", "-rn", sys.executable, str(launcher), "-f", str(ROOT / "dodo.py")]
    argv += ["serve", "model=m", "port=auto", f"logs-dir={ready.logs}", *words]
    with subprocess.Popen(argv, cwd=ready.folder, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout
        said = ""
        for line in served.stdout:
            said += line
            if line.startswith("ready in "):
                served.terminate()
    assert served.returncode == 0, said
    for step in ("build", "converter", "convert", "quantize"):
        assert re.search(rf"^{step} +fresh$", said, re.MULTILINE)
    assert "done in" not in said


_LAUNCHER = """
import fcntl, os, socket, struct, sys
from doit.doit_cmd import DoitMain
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS: IFF_UP

def stay_home(event, arguments):
    asked = {"socket.connect": lambda: arguments[1][0], "socket.getaddrinfo": lambda: arguments[0]}
    if event in asked and str(asked[event]()) not in ("127.0.0.1", "localhost"):
        print("asked the network for", asked[event](), flush=True)
        os._exit(99)

sys.addaudithook(stay_home)
sys.exit(DoitMain(config_filenames=()).run(sys.argv[1:]))
"""


# --- .state.json


def test_state_says_what_was_made_of_what(ready: Project) -> None:
    state = ready.state()
    checkpoint = ready.folder / "m"
    assert state["source"]["type"] == "safetensors"
    assert state["source"]["reference"] == str(checkpoint)
    convert, quantize = state["steps"]["convert:f16"], state["steps"]["quantize:q4_k_m"]
    for path in checkpoint.iterdir():
        noted = convert["inputs"][path.name]
        assert (noted["sha256"], noted["size"]) == (sha256_of(path), path.stat().st_size)
    for record, kind in ((convert, "f16"), (quantize, "q4_k_m")):
        noted, path = record["outputs"][f"model.{kind}.gguf"], ready.gguf(kind)
        assert (noted["sha256"], noted["size"]) == (sha256_of(path), path.stat().st_size)
        assert datetime.fromisoformat(record["made"]).tzinfo
    assert quantize["parameters"]["quantization"] == "q4_k_m"
    assert quantize["tool"]["build"]["platform"] == convert["tool"]["platform"]
    assert quantize["tool"]["build"]["llama.cpp"].startswith("version: ")
    assert "-DCMAKE_BUILD_TYPE=Release" in quantize["tool"]["build"]["flags"]


def test_state_is_written_after_each_step(project: Project) -> None:
    """While quantize still runs, the conversion stands in the file already."""
    gate = Gate(project.folder / "gate")
    project.checkpoint(gates={"quantize": gate})
    run = project.start("prepare", "model=m")
    gate.reached(run)
    assert set(project.state()["steps"]) == {"convert:f16"}
    assert project.why("model=m")["convert"] == ""
    gate.open()
    run.end()
    assert set(project.state()["steps"]) == {"convert:f16", "quantize:q4_k_m"}


# --- steps that do not apply


def test_steps_that_do_not_apply_say_so_and_succeed(ready: Project) -> None:
    model = f"model={ready.gguf()}"
    for words, sign in (
        (("download", "model=m"), "is a local folder"),
        (("quantize", "model=m", "quantization=f16"), "f16 is what convert makes"),
        (("download", model), "is a local file"),
        (("convert", model), "is a GGUF already"),
        (("quantize", model), "is used as it is"),
        (("vendor", model), "your own source"),
    ):
        lines = [line for line in ready.doit(*words).splitlines() if line.startswith(words[0])]
        assert len(lines) == 1
        assert sign in lines[0]
    assert ready.pending(model) == set()
    assert "nothing to forget" in ready.doit("forget", model)
    assert ready.pending(model) == set()


def test_gguf_is_used_in_place_and_needs_no_converter(ready: Project) -> None:
    model, elsewhere = ready.folder / "mine.gguf", ready.folder / "elsewhere"
    model.write_bytes(ready.gguf().read_bytes())
    words = ("gguf-path=mine.gguf", f"models-dir={elsewhere}")
    assert "converter" not in ready.doit("prepare", *words)
    assert ready.why(*words)["serve"] == f"starts {model}"
    assert not elsewhere.exists()


# --- at the same time


def test_build_and_convert_run_at_once_and_for_one_of_two_terminals(
    tools: Tools, tmp_path: Path
) -> None:
    """Both tools stand at their gates before either may go on, then a second terminal comes."""
    project = own_tools(tools, tmp_path)
    gates = {name: Gate(tmp_path / name) for name in ("configure", "convert")}
    project.checkpoint(gates={"convert": gates["convert"]})
    with open(tmp_path / "llama.cpp" / "CMakeLists.txt", "a") as script:
        script.write(f'execute_process(COMMAND cat "{gates["configure"].path}")\n')
    first = project.start("prepare", "model=m")
    for gate in gates.values():
        gate.reached(first)
    second = project.start("prepare", "model=m")
    for step in ("build", "convert"):
        line = re.compile(rf"^{step} +another llamake is making this; waiting", re.MULTILINE)
        second.wait_until(lambda line=line: bool(line.search(second.output)))  # type: ignore[misc]
    for gate in gates.values():
        gate.open()
    outputs = [first.end(), second.end()]
    for step in ("build", "convert"):
        assert f"{step:<10}  made by another llamake meanwhile" in outputs[1]
    assert "configuring" in outputs[0]
    assert "configuring" not in outputs[1]
    commands = [line for line in (project.logs / "build.log").open() if line.startswith("+ ")]
    assert len(commands) == 2  # configure and compile, once
    assert project.pending("model=m") == set()


def test_waiting_one_takes_over_from_one_that_was_killed(project: Project) -> None:
    gate = Gate(project.folder / "gate")
    project.checkpoint(gates={"convert": gate})
    first = project.start("prepare", "model=m")
    gate.reached(first)
    second = project.start("prepare", "model=m")
    second.wait_for("waiting for it")
    children = first.children()
    first.kill_group()
    gone(children)
    gate.open()
    gate.reached(second)
    gate.open()
    assert "made by another" not in second.end().split("quantize ")[0]
    assert project.pending("model=m") == set()


def test_two_servers_at_once(ready: Project) -> None:
    servers = [ready.start("serve", "model=m", "port=auto") for _ in range(2)]
    assert len({server.url for server in servers}) == 2
    assert len({server.field("log") for server in servers}) == 2
    for server in servers:
        server.stop()


# --- another place


def test_files_copied_elsewhere_are_adopted(ready: Project, tmp_path: Path) -> None:
    """Other inodes and times, the same sha256; forgotten ones are not adopted."""
    copy = tmp_path / "elsewhere"
    os.makedirs(copy / "gguf")
    subprocess.run(["cp", "-r", str(ready.models / "gguf"), str(copy)], check=True)
    before = ready.files()
    assert ready.pending("model=m", f"models-dir={copy}") == set()
    assert "done in" not in ready.doit("prepare", "model=m", f"models-dir={copy}")
    ready.doit("forget", "quantize", "model=m", f"models-dir={copy}")
    assert ready.pending("model=m", f"models-dir={copy}") == {"quantize"}
    assert ready.pending("model=m") == set()
    assert ready.files() == before


def test_damaged_artifact_is_not_adopted(prepared: Project, tmp_path: Path) -> None:
    flip_byte(prepared.gguf())
    assert prepared.why("model=m")["quantize"] == "model.q4_k_m.gguf was changed"
    prepared.gguf("f16").unlink()
    assert prepared.why("model=m")["convert"] == "model.f16.gguf is missing"


def test_moved_tools_are_adopted(tools: Tools, tmp_path: Path) -> None:
    bins = tmp_path / "bins"
    subprocess.run(["cp", "-r", str(tools.bins), str(bins)], check=True)
    project = Project(tmp_path, bins, tools.tree)
    project.checkpoint()
    assert project.pending("model=m") == {"convert", "quantize"}
