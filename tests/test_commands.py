"""Commands that look at the graph or manage it: the real doit on this checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import doit, doit_argv

from tasks.settings import keys


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """Settings that keep all that is made away from the checkout's own."""
    return (
        f"models-dir={tmp_path / 'm'}",
        f"bins-dir={tmp_path / 'b'}",
        f"logs-dir={tmp_path / 'l'}",
        "device=cpu",
    )


def rows(output: str) -> dict[str, str]:
    return {line.split()[0]: line for line in output.splitlines() if line.split()}


def test_help_has_every_setting_task_and_exit_code() -> None:
    found = rows(doit("help"))
    assert set(keys()) <= set(found)
    assert {"serve", "build", "convert", "quantize", "list", "forget", "130"} <= set(found)


def test_help_on_a_task_shows_its_settings_and_on_a_setting_only_that() -> None:
    task, setting = rows(doit("help", "convert")), rows(doit("help", "port"))
    assert {"convert", *keys()} <= set(task)
    assert "quantize" not in task
    assert "8080" in setting["port"]
    assert "host" not in setting


def test_help_on_nothing_we_know() -> None:
    assert doit("help", "sreve", status=3) == "ERROR: no help on 'sreve' (did you mean 'serve'?)\n"


def test_settings_with_their_values_and_where_they_came_from(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_SERVER_CTX_SIZE", "77")
    monkeypatch.setenv("LLAMA_SERVER_PORT", "9")
    output = doit("settings", *words, "port=auto", "api-key=secret", "args=--a 'b c'")
    found = {name: line.split(maxsplit=2) for name, line in rows(output).items()}
    assert set(found) == {"SETTING", *keys()}
    assert found["ctx-size"][1:] == ["77", "LLAMA_SERVER_CTX_SIZE"]
    assert found["port"][1:] == ["auto", "command line"]
    assert found["host"][1:] == ["127.0.0.1", "default"]
    assert found["gguf-path"][1:] == ["-", "default"]
    assert found["models-dir"][1:] == [str(tmp_path / "m"), "command line"]
    assert "secret" not in output
    assert "--a 'b c'" in output


@pytest.mark.parametrize("command", ["settings", "list", "serve", "forget"])
def test_a_typing_error_is_refused_by_every_command(command: str) -> None:
    output = doit(command, "modle=x", status=3)
    assert output == "ERROR: unknown setting 'modle' (did you mean 'model'?)\n"


def test_list_shows_each_step_and_what_does_not_apply(words: tuple[str, ...]) -> None:
    found = rows(doit("list", *words))
    demo = next(name for name in found if name.startswith("quantize:demo__"))
    assert found[demo].split()[1] == "pending"
    assert "does not apply" in found[demo.replace("quantize", "download")]
    assert found["serve"].split()[1] == "pending"
    only = rows(doit("list", *words, "quantize"))
    assert set(only) == {"STEP", demo}


@pytest.mark.parametrize("command", ["list", "forget"])
def test_a_step_that_is_not_there(command: str, words: tuple[str, ...]) -> None:
    output = doit(command, *words, "quantise", status=3)
    assert output.startswith("ERROR: 'quantise' is not a step (did you mean 'quantize'?)")


def test_forgetting_what_was_not_made(words: tuple[str, ...]) -> None:
    assert doit("forget", *words, "quantize") == "nothing to forget: it was not made yet\n"


@pytest.mark.parametrize("command", ["help", "settings", "list"])
def test_a_reader_that_went_away_is_no_error(command: str, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            doit_argv(command, *words), stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert (done.stderr, done.returncode) == ("", 0)
