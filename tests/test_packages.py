"""pip: what decides in its output, and a wheel that is not what was pinned."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tasks.errors import ConverterError, SourceError
from tasks.files import sha256_of
from tasks.packages import download_wheel, explain_pip

LOG = Path("/logs/converter.log")


@pytest.mark.parametrize(
    ("tail", "why", "fix"),
    [
        (
            [
                "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
                "    pkg from x: Expected sha256 aa, Got bb",
            ],
            "THESE PACKAGES DO NOT MATCH THE HASHES",
            "the download is not what was pinned",
        ),
        (
            [
                "WARNING: Retrying after connection broken by 'NewConnectionError'",
                "ERROR: Could not find a version that satisfies the requirement torch",
                "ERROR: No matching distribution found for torch",
            ],
            "Could not find a version that satisfies the requirement torch",
            "check the network",
        ),
        (
            ["ERROR: Could not install packages due to an OSError: No space left on device"],
            "No space left",
            "free some space",
        ),
        (["Building wheel", "it went wrong"], "it went wrong", "see /logs/converter.log"),
        ([], "", "see /logs/converter.log"),
    ],
)
def test_what_decides_in_pips_output(tail: list[str], why: str, fix: str) -> None:
    error = explain_pip(tail, LOG, ConverterError)
    assert isinstance(error, ConverterError)
    assert why in error.why
    assert not error.why.startswith("ERROR")
    assert error.fix.startswith(fix)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one real wheel, which is all that pip looks at."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "tinypkg-1.0-py3-none-any.whl", "w") as wheel:
        info = "tinypkg-1.0.dist-info/"
        wheel.writestr(f"{info}METADATA", "Metadata-Version: 2.1\nName: tinypkg\nVersion: 1.0\n")
        wheel.writestr(f"{info}WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}RECORD", "")
        wheel.writestr("tinypkg.py", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def test_a_wheel_is_downloaded_with_its_checksum(shelf: Path, tmp_path: Path) -> None:
    (wheel,) = shelf.iterdir()
    target = tmp_path / "target"
    target.mkdir()
    log = tmp_path / "logs" / "vendor.log"
    found = download_wheel("tinypkg==1.0", sha256_of(wheel), target, log=log)
    assert found.parent == target
    assert found.read_bytes() == wheel.read_bytes()


def test_a_wheel_that_is_not_the_pinned_one(shelf: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(SourceError) as refused:
        download_wheel("tinypkg==1.0", "ab" * 32, target, log=tmp_path / "x.log")
    assert "HASHES" in refused.value.why
    assert not list(target.glob("*.whl"))


def test_a_wheel_that_nobody_has(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"tinypkg==2\.0"):
        download_wheel("tinypkg==2.0", "ab" * 32, tmp_path, log=tmp_path / "x.log")
