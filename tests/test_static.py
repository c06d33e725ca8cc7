"""Rules on the repository's text: lint, types, sizes, and no registry's name in any file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Not written whole, or this very file would break the rule.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("registry", "npmjs", "org"),
        ("conda", "anaconda", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
)
ALLOWED_INDEX = "https://download.pytorch.org/whl/cpu"


def repository_files() -> list[Path]:
    """Every file that is, or would be, committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name]
    return [path for path in paths if path.is_file()]


def matching(pattern: str, paths: list[Path]) -> list[str]:
    """`FILE:LINE: text` of every line in which a pattern is found."""
    expression = re.compile(pattern.encode(), re.IGNORECASE)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()}"
        for path in paths
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if expression.search(line)
    ]


@pytest.mark.parametrize(
    "argv", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join
)
def test_lint_format_and_types(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_package_registry() -> None:
    pattern = "|".join(re.escape(host) for host in REGISTRIES)
    assert matching(pattern, repository_files()) == []


def test_requirements_hold_no_url() -> None:
    assert matching("://", [p for p in repository_files() if p.parent.name == "requirements"]) == []


def test_the_one_index_is_named_once_in_the_product() -> None:
    product = [path for path in repository_files() if ROOT / "tasks" in path.parents]
    found = matching(r"--(extra-)?index-url|://[^\"]*/(whl|simple)", product)
    urls = [line for line in found if "://" in line]
    assert len(urls) == 1
    assert ALLOWED_INDEX in urls[0]


def test_locked_packages_have_checksums() -> None:
    for name in ("llamake", "test", "zig"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        pins = [number for number, line in enumerate(lines) if "==" in line]
        assert pins
        assert all("--hash=sha256:" in lines[number + 1] for number in pins), name


def test_the_graph_is_one_screen_and_modules_are_short() -> None:
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / "dodo.py", *(ROOT / "tasks").rglob("*.py"))
    }
    assert sizes["dodo.py"] <= 110
    # bootstrap.py runs before anything is installed, and so can import nothing of ours.
    assert {n: s for n, s in sizes.items() if s > 300 and n != "tasks/bootstrap.py"} == {}


def test_every_module_of_the_product_says_what_it_is_for() -> None:
    for path in (ROOT / "dodo.py", *(ROOT / "tasks").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path
