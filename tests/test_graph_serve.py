"""`doit serve`: what it starts, what it says, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from graph import Project, edit_config, gone


def ask(url: str, key: str = "") -> Any:
    request = urllib.request.Request(url)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_healthy_server_is_stopped_cleanly(ready: Project, number: signal.Signals) -> None:
    server = ready.start("serve", "model=m", "port=auto")
    assert ask(f"{server.url}/health") == {"status": "ok"}
    children = server.children()
    assert any(child.name() == "llama-server" for child in children)
    said = server.stop(number)
    assert "cleaning up before exit" in said
    assert "ERROR" not in said
    gone(children)


def test_summary_and_log(ready: Project) -> None:
    server = ready.start("serve", "model=m", "port=auto", "ctx-size=256", "threads=1")
    shown = {
        label: server.field(label)
        for label in ("model", "file", "quantization", "size", "threads", "context")
    }
    assert shown == {
        "model": "m (llama)",
        "file": str(ready.gguf()),
        "quantization": "Q4_K_M",
        "size": "5.2 kB",
        "threads": "1",
        "context": "256 tokens",
    }
    assert server.field("device").startswith("cpu")
    port = server.url.rpartition(":")[2]
    assert server.url == f"http://127.0.0.1:{port}"
    assert f"curl {server.url}/v1/chat/completions" in server.output
    log = Path(server.field("log"))
    assert log.parent == ready.logs
    assert re.fullmatch(r"run-server-\d{8}-\d{6}(-\d+)?\.log", log.name)
    said = server.stop()
    lines = log.read_text().splitlines()
    assert any("server is listening on" in line for line in lines)
    assert "cleaning up before exit" in lines[-1]
    assert all(line in said for line in lines)


def test_settings_and_args_reach_the_server(ready: Project) -> None:
    words = ("alias=my model", "ctx-size=128", "args=--verbose --name 'two words'")
    server = ready.start("serve", "model=m", "port=auto", *words)
    props = ask(f"{server.url}/props")
    assert props["model_alias"] == "my model"
    assert props["default_generation_settings"]["n_ctx"] == 128
    assert props["tiny.arguments"][-3:] == ["--verbose", "--name", "two words"]
    server.stop()


def test_environment_gives_settings_and_words_win(ready: Project) -> None:
    environment = {
        "LLAMA_SERVER_MODEL": "nowhere",
        "LLAMA_SERVER_ALIAS": "from-environment",
        "LLAMA_SERVER_CTX_SIZE": "99",
        "LLAMA_SERVER_SLOTS_DEBUG": "llama-server's own",
    }
    server = ready.start("serve", "model=m", "port=auto", "ctx-size=77", env=environment)
    props = ask(f"{server.url}/props")
    assert props["model_alias"] == "from-environment"
    assert props["default_generation_settings"]["n_ctx"] == 77
    server.stop()


def test_paths_are_relative_to_where_the_user_stands(prepared: Project) -> None:
    """The project lies elsewhere; nothing may land there."""
    (prepared.folder / "deep" / "er").mkdir(parents=True)
    below = Project(prepared.folder / "deep" / "er", prepared.bins, prepared.tree)
    words = ("model=../../m", "models-dir=../../models", "logs-dir=../logs")
    assert below.pending(*words) == set()
    below.doit("prepare", *words, env={"LLAMA_SERVER_QUANTIZATION": "q8_0"})
    assert prepared.gguf("q8_0").exists()
    assert [path.name[:8] for path in (prepared.folder / "deep" / "logs").iterdir()] == ["quantize"]


@pytest.mark.parametrize("given", ["environment", "word"])
def test_api_key_is_wanted_and_shown_nowhere(ready: Project, given: str) -> None:
    secret = "s3cret-key"
    words = ["serve", "model=m", "port=auto", *([f"api-key={secret}"] if given == "word" else [])]
    environment = {"LLAMA_SERVER_API_KEY": secret} if given == "environment" else {}
    server = ready.start(*words, env=environment)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(f"{server.url}/props")
    assert ask(f"{server.url}/props", secret)
    processes = server.children()
    if given == "environment":
        processes.append(psutil.Process(server.process.pid))
    assert not [p for p in processes if secret in " ".join(p.cmdline())]
    assert secret not in server.stop()
    for log in ready.logs.iterdir():
        assert secret not in log.read_text()
    assert secret not in ready.doit("settings", *words[1:], status=0, env=environment)


def test_port_in_use_is_explained_before_anything_is_made(bare: Project) -> None:
    bare.checkpoint()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = bare.doit("serve", "model=m", f"port={port}", status=16)
    assert f"port {port} is in use" in said
    assert f"{psutil.Process().name()} (pid {psutil.Process().pid}) listens there" in said
    assert "port=auto" in said
    assert not bare.models.exists()
    assert not bare.logs.exists()


def test_crash_while_loading_shows_the_last_lines(project: Project) -> None:
    edit_config(project.checkpoint(), {"tiny.crash": "load"})
    said = project.doit("serve", "model=m", "port=auto", status=15)
    assert "the server did not start: llama-server was killed by SIGABRT" in said
    assert "| error: tiny crash while loading" in said
    assert re.search(r"fix: .*run-server-\d{8}-\d{6}\.log", said)
    assert "Traceback" not in said
    assert project.pending("model=m") == set()


def test_crash_later_is_a_failure_too(ready: Project) -> None:
    server = ready.start("serve", "model=m", "port=auto")
    with pytest.raises(OSError):
        ask(f"{server.url}/crash")
    assert "the server died: llama-server was killed by SIGABRT" in server.end(15)


def test_unusable_argument_has_a_hint(ready: Project) -> None:
    said = ready.doit("serve", "model=m", "port=auto", "args=--port 1", status=3)
    assert "args= must not contain --port" in said
    assert "use --port" not in said
    assert "use port=" in said
