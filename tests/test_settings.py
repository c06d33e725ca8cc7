"""Settings: every parser's good and bad values, precedence, and hints for typing errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks import settings
from tasks.errors import Refused
from tasks.settings import COMMAND_LINE, ENVIRONMENT_PREFIX, SOURCE_KEYS, Settings, keys, load

HERE = Path("/stand/here")


def test_defaults() -> None:
    found = load({}, {}, HERE)
    assert found == Settings()
    assert (found.port, found.host, found.keep_f16) == (8080, "127.0.0.1", True)
    assert found.origin == {}


GOOD: list[tuple[str, str, Any]] = [
    ("model", "org/name", "org/name"),
    ("gguf-path", "a/../b.gguf", HERE / "b.gguf"),
    ("gguf-path", "/x/b.gguf", Path("/x/b.gguf")),
    ("safetensors-dir", ".", HERE),
    ("bins-dir", "~/bins", Path.home() / "bins"),
    ("quantization", "Q4_K_M", "q4_k_m"),
    ("quantization", "q4_k", "q4_k_m"),
    ("quantization", "auto", None),
    ("keep-f16", "no", False),
    ("keep-f16", "YES", True),
    ("keep-f16", "0", False),
    ("port", "auto", None),
    ("port", "1", 1),
    ("port", "65535", 65535),
    ("ctx-size", "8192", 8192),
    ("gpu-layers", "0", 0),
    ("device", "CUDA", "cuda"),
    ("args", "--temp 0.5 --alias 'a b'", ("--temp", "0.5", "--alias", "a b")),
    ("args", "", ()),
]


@pytest.mark.parametrize(("key", "value", "expected"), GOOD)
def test_good_values(key: str, value: str, expected: Any) -> None:
    found = load({key: value}, {}, HERE)
    assert getattr(found, key.replace("-", "_")) == expected
    assert found.origin == {key: COMMAND_LINE}


BAD = [
    ("model", "", "it is empty"),
    ("model", "  ", "it is empty"),
    ("gguf-path", "", "it is empty"),
    ("bins-dir", "~nobody-of-this-name/x", "home"),
    ("keep-f16", "maybe", "it takes yes or no"),
    ("port", "0", "whole number from 1 to 65535, or auto"),
    ("port", "65536", "whole number from 1 to 65535, or auto"),
    ("port", "80.5", "whole number"),
    ("port", "9" * 5000, "whole number"),
    ("threads", "-1", "whole number from 1 to 4096, or auto"),
    ("device", "cdua", "one of auto, cpu, cuda, metal, vulkan (did you mean 'cuda'?)"),
    ("args", "'open", "a shell could not split it: no closing quotation"),
]


@pytest.mark.parametrize(("key", "value", "reason"), BAD)
def test_bad_values(key: str, value: str, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        load({key: value}, {}, HERE)
    assert refused.value.what.startswith(f"bad value '{value}' for setting '{key}': ")
    assert reason in str(refused.value)


def test_a_bad_value_from_the_environment_names_the_variable() -> None:
    with pytest.raises(Refused, match=r"\(from LLAMA_SERVER_CTX_SIZE\)"):
        load({}, {"LLAMA_SERVER_CTX_SIZE": "much"}, HERE)


def test_an_unknown_quantization_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused, match=r"unknown quantization 'q4_k_n' .did you mean 'q4_k_"):
        load({"quantization": "q4_k_n"}, {}, HERE)


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused) as refused:
        load({"modle": "x"}, {}, HERE)
    assert str(refused.value) == "unknown setting 'modle' (did you mean 'model'?)"
    with pytest.raises(Refused) as refused:
        load({"zzzzzz": "x"}, {}, HERE)
    assert str(refused.value) == "unknown setting 'zzzzzz'"
    assert Refused.exit_code == 3


def test_the_command_line_wins_over_the_environment_over_the_default() -> None:
    environ = {"LLAMA_SERVER_PORT": "1111", "LLAMA_SERVER_KEEP_F16": "no"}
    found = load({"port": "2222"}, environ, HERE)
    assert (found.port, found.keep_f16, found.host) == (2222, False, "127.0.0.1")
    assert found.origin == {"port": COMMAND_LINE, "keep-f16": "LLAMA_SERVER_KEEP_F16"}


def test_what_is_overridden_need_not_be_good() -> None:
    assert load({"port": "2222"}, {"LLAMA_SERVER_PORT": "bad"}, HERE).port == 2222


def test_unknown_and_empty_variables_are_ignored() -> None:
    environ = {"LLAMA_SERVER_NONE": "x", "LLAMA_SERVER_PORT": "", "OTHER_PORT": "7"}
    assert load({}, environ, HERE) == Settings()


def test_underscores_are_as_good_as_dashes() -> None:
    assert load({"ctx_size": "64"}, {}, HERE).ctx_size == 64


@pytest.mark.parametrize("key", SOURCE_KEYS)
def test_a_source_replaces_any_of_a_lower_level(key: str) -> None:
    environ = {ENVIRONMENT_PREFIX + k.upper().replace("-", "_"): "env" for k in SOURCE_KEYS}
    found = load({key: "given"}, environ, HERE)
    assert [name for name in SOURCE_KEYS if name in found.origin] == [key]
    assert getattr(found, key.replace("-", "_")) in ("given", HERE / "given")


def test_two_sources_of_one_level_are_refused() -> None:
    with pytest.raises(Refused, match="more than one model: model and gguf-path"):
        load({"model": "a", "gguf-path": "b"}, {}, HERE)
    with pytest.raises(Refused, match="more than one model"):
        load({}, {"LLAMA_SERVER_MODEL": "a", "LLAMA_SERVER_HF_MODEL": "b"}, HERE)


@pytest.mark.parametrize("key", keys())
def test_every_setting_has_help_and_can_be_shown(key: str) -> None:
    item = keys()[key]
    assert item.metadata["help"].strip()
    assert not item.metadata["help"].endswith(".")
    assert "\n" not in item.metadata["help"]
    assert settings.show(item, item.default)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("args", ("--a", "b c"), "--a 'b c'"),
        ("args", (), "-"),
        ("keep-f16", False, "no"),
        ("port", None, "auto"),
        ("gguf-path", None, "-"),
        ("gguf-path", HERE, str(HERE)),
    ],
)
def test_values_are_shown_as_they_are_written(key: str, value: Any, shown: str) -> None:
    assert settings.show(keys()[key], value) == shown


any_text = st.text(max_size=40) | st.sampled_from(["auto", "~", "~x", "'", "1_0", "٣", "\0", "-"])


@given(key=st.sampled_from(list(keys())) | any_text, value=any_text, variable=st.booleans())
@example(key="port", value="9" * 10_000, variable=True)
@example(key="bins-dir", value="~\0", variable=False)
@example(key="gguf-path", value="\ud800", variable=False)
def test_no_text_raises_anything_but_refused(key: str, value: str, variable: bool) -> None:
    environ = {ENVIRONMENT_PREFIX + key.upper().replace("-", "_"): value} if variable else {}
    try:
        found = load({} if variable else {key: value}, environ, HERE)
    except Refused as refused:
        assert refused.what
    else:
        assert isinstance(found, Settings)
        for item in keys().values():
            settings.show(item, getattr(found, item.name))


def test_paths_are_absolute_and_the_process_may_stand_elsewhere(tmp_path: Path) -> None:
    found = load({"models-dir": "m"}, {}, tmp_path)
    assert found.models_dir == tmp_path / "m"
    assert Path(os.getcwd()) != tmp_path
