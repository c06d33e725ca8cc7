"""Layout: every path, with what the settings put elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.layout import Layout, executable, local_id, python_of, safe_name
from tasks.settings import Settings

ROOT = Path("/project")


def test_the_folders_of_a_project() -> None:
    layout = Layout.of(ROOT, Settings())
    assert layout.vendored_source == ROOT / "vendor/llama.cpp"
    assert layout.pin == ROOT / "vendor/llama.cpp.json"
    assert layout.demo == ROOT / "models/demo"
    assert layout.binaries("linux-x86_64", "cpu") == ROOT / "bins/linux-x86_64"
    assert layout.binaries("linux-x86_64", "cuda") == ROOT / "bins/linux-x86_64-cuda"
    assert layout.build_tree("linux-x86_64", "cuda") == ROOT / "bins/build/linux-x86_64-cuda"
    assert layout.converter() == ROOT / "bins/converter"
    assert layout.converter("12ab") == ROOT / "bins/converter-12ab"
    assert layout.gguf_folder("a__b") == ROOT / "models/gguf/a__b"
    assert layout.server_log("20260101-000000") == ROOT / "logs/run-server-20260101-000000.log"


def test_folders_that_lie_elsewhere_take_all_that_is_made() -> None:
    layout = Layout.of(
        ROOT, Settings(bins_dir=Path("/b"), models_dir=Path("/m"), logs_dir=Path("/l"))
    )
    made = [
        layout.binaries("x", "cpu"),
        layout.build_tree("x", "cpu"),
        layout.converter(),
        layout.zig,
        layout.test_environment,
        layout.gguf_folder("i"),
        layout.log("n"),
        layout.server_log("s"),
    ]
    assert not [path for path in made if ROOT in path.parents]
    # The bundled model does not move.
    assert layout.demo == ROOT / "models/demo"


def test_a_step_with_odd_characters_logs_to_one_plain_file() -> None:
    log = Layout.of(ROOT, Settings()).log("convert-../ä b:c")
    assert log.parent == ROOT / "logs"
    assert log.name == "convert-.._b_c.log"


@pytest.mark.parametrize(
    ("name", "safe"),
    [("a-B_1.0", "a-B_1.0"), ("a b/ü:c", "a_b_c"), ("..", "model"), ("", "model"), ("_x.", "x")],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_models_of_one_name_in_two_folders_are_two() -> None:
    one, two = local_id(Path("/a/model x")), local_id(Path("/b/model x"))
    assert one != two
    assert one == local_id(Path("/a/model x"))
    assert [name.split("__")[0] for name in (one, two)] == ["model_x", "model_x"]
    assert len(one.split("__")[1]) == 8


def test_programs_are_named_as_the_platform_names_them() -> None:
    assert executable(ROOT, "llama-server", "linux") == ROOT / "llama-server"
    assert executable(ROOT, "llama-server", "win32") == ROOT / "llama-server.exe"
    assert python_of(ROOT).parent.name in ("bin", "Scripts")
