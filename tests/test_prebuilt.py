"""The Windows programs: hostile and damaged archives, and the real ones at work under Wine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import doit, missing

from tasks.errors import SourceError, StorageError
from tasks.prebuilt import PROGRAMS, unpack_prebuilt
from tasks.process import finish, start, terminate
from tasks.vendor import PREBUILT

GOOD = {name: name.encode() * 20 for name in (*PROGRAMS, "ggml.dll")}


def make_zip(path: Path, *extra: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """A zip of the programs, compressed, and of the `extra` entries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (*GOOD.items(), *extra):
            archive.writestr(name, content)
    return path


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo()
    info.filename = name  # as it is: the constructor cuts it off at a NUL
    info.external_attr = mode << 16
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_file_is_unpacked_beside_what_the_folder_holds(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("licenses/", b""), ("licenses/MIT", b"free"))
    bins = tmp_path / "bins"
    bins.mkdir()
    (bins / ".state.json").write_bytes(b"{}")
    (bins / ".lock").write_bytes(b"")

    paths = unpack_prebuilt(archive, bins)

    expected = {**GOOD, "licenses/MIT": b"free"}
    assert contents(bins) == {**expected, ".state.json": b"{}", ".lock": b""}
    assert paths == sorted(bins / name for name in expected)


def test_another_version_is_replaced_and_its_libraries_are_gone(tmp_path: Path) -> None:
    bins = tmp_path / "bins"
    unpack_prebuilt(make_zip(tmp_path / "old.zip", ("ggml-cpu-OLD.DLL", b"old")), bins)
    (bins / "ggml.dll").write_bytes(b"old")
    (bins / ".prebuilt.1.partial").mkdir()

    unpack_prebuilt(make_zip(tmp_path / "new.zip"), bins)

    assert contents(bins) == GOOD
    assert sorted(path.name for path in bins.iterdir()) == sorted(GOOD)


HOSTILE = {
    "parent": ("../evil.dll", "leads out"),
    "parent inside": ("sub/../../evil.dll", "leads out"),
    "absolute": ("/evil.dll", "leads out"),
    "drive": ("C:/evil.dll", "leads out"),
    "drive, relative": ("C:evil.dll", "leads out"),
    "stream": ("ggml.dll:evil", "leads out"),
    "backslash parent": ("..\\evil.dll", "leads out"),
    "backslash root": ("\\\\host\\share\\evil.dll", "leads out"),
    "backslash folder": ("sub\\evil.dll", "not a plain"),
    "folder outside": ("../evil/", "leads out"),
    "our own state": (".state.json", "not a plain"),
    "dot folder": ("./ggml.dll", "not a plain"),
    "doubled slash": ("sub//evil.dll", "not a plain"),
    "final dot": ("ggml.dll.", "not a plain"),
    "final blank": ("ggml.dll ", "not a plain"),
    "device": ("NUL.dll", "device"),
    "same name": ("ggml.dll", "twice"),
    "same name but for case": ("GGML.DLL", "twice"),
    "file as folder": ("Ggml.dll/evil.dll", "both a file and a folder"),
    "name after NUL": (entry("plain.dll\0/../evil.dll"), "leads out"),
    "link": (entry("link.dll", stat.S_IFLNK | 0o777), "link"),
    "named pipe": (entry("pipe.dll", stat.S_IFIFO | 0o666), "link"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("name", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_entry_is_refused_before_anything_is_written(
    tmp_path: Path, name: str | zipfile.ZipInfo, reason: str
) -> None:
    archive = make_zip(tmp_path / "a.zip", (name, b"../../evil"))
    bins = tmp_path / "deep" / "bins"
    with pytest.raises(SourceError, match=reason):
        unpack_prebuilt(archive, bins)
    assert os.listdir(tmp_path) == ["a.zip"]


def patch_header(path: Path, name: str, field: int, size: int, value: int) -> None:
    """Overwrite one field of the central directory's entry for `name` (offsets: zip APPNOTE)."""
    data = bytearray(path.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + field : at + field + size] = value.to_bytes(size, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("field", "size", "value", "reason"),
    [
        pytest.param(24, 4, 3_000_000_000, "3.0 GB", id="declares too much"),
        pytest.param(24, 4, 10, "CRC", id="holds more than declared"),
        pytest.param(24, 4, 1_000_001, "were declared", id="holds less than declared"),
        pytest.param(16, 4, 0xBAD, "CRC", id="other checksum"),
        pytest.param(8, 2, 1, "encrypted", id="encrypted"),
        pytest.param(10, 2, zipfile.ZIP_LZMA, "unusual", id="other compression"),
    ],
)
def test_an_entry_is_not_what_its_header_declares(
    tmp_path: Path, field: int, size: int, value: int, reason: str
) -> None:
    archive = make_zip(tmp_path / "a.zip", ("bomb.dll", bytes(1_000_000)))
    patch_header(archive, "bomb.dll", field, size, value)
    with pytest.raises(SourceError, match=reason):
        unpack_prebuilt(archive, tmp_path / "bins")
    assert contents(tmp_path / "bins") == {}


def test_damage_anywhere_is_found_or_harmless(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "whole.zip").read_bytes()
    archive, bins = tmp_path / "a.zip", tmp_path / "bins"
    damaged = [whole[:length] for length in range(0, len(whole), 20)]
    for at, byte in enumerate(whole):
        damaged.append(whole[:at] + bytes([byte ^ 1 << at % 8]) + whole[at + 1 :])
    refused = 0
    for data in damaged:
        archive.write_bytes(data)
        shutil.rmtree(bins, ignore_errors=True)
        try:
            unpack_prebuilt(archive, bins)
        except SourceError:
            refused += 1
            assert not bins.exists() or not os.listdir(bins)
        else:
            # A flipped date or comment changes no file, and is not told from a real one.
            assert contents(bins) == GOOD
    assert refused > len(damaged) / 2


@pytest.mark.parametrize("absent", PROGRAMS)
def test_a_missing_program_is_named(tmp_path: Path, absent: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in sorted(GOOD.keys() - {absent}):
            file.writestr(name, GOOD[name])
    with pytest.raises(SourceError, match=f"a.zip holds no {absent}"):
        unpack_prebuilt(archive, tmp_path / "bins")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_no_zip_at_all(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        unpack_prebuilt(tmp_path / "a.zip", tmp_path / "bins")
    (tmp_path / "a.zip").write_text("<html>not found</html>")
    with pytest.raises(SourceError, match="is damaged"):
        unpack_prebuilt(tmp_path / "a.zip", tmp_path / "bins")


def test_a_library_that_cannot_be_replaced_is_named_and_no_program_follows(tmp_path: Path) -> None:
    bins = tmp_path / "bins"
    (bins / "ggml.dll" / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot replace .*ggml\.dll"):
        unpack_prebuilt(make_zip(tmp_path / "a.zip"), bins)
    assert os.listdir(bins) == ["ggml.dll"]


@dataclass(frozen=True)
class Wine:
    """A Windows of its own, without a display; `prefix` holds its drive C."""

    prefix: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "WINEPREFIX": str(self.prefix),
            "WINEDEBUG": "-all",
            # Without these a fresh prefix asks in a window whether to download .NET and HTML.
            "WINEDLLOVERRIDES": "mscoree=;mshtml=",
            "DISPLAY": "",
        }

    def run(self, *argv: str | Path, cwd: Path, limit_s: float = 120) -> tuple[int, str]:
        """Run a Windows program to its end: its exit status and all its output."""
        output = cwd / "wine-output.txt"
        with open(output, "wb") as sink:
            child = start(
                ["wine", *map(str, argv)], env=self.env, cwd=cwd, stdout=sink, stderr=sink
            )
            try:
                status = child.wait(limit_s)
            finally:
                terminate(child)
                finish(child)
        return status, output.read_text(errors="replace")

    def stop(self) -> None:
        """End every Windows program, Windows' own services included, and wait until they did."""
        for option in ("-k", "-w"):
            subprocess.run(["wineserver", option], env={**os.environ, **self.env}, timeout=60)


@pytest.fixture(scope="session")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    if not shutil.which("wine"):
        missing("Wine", "apt-get install --no-install-recommends wine wine64")
    folder = tmp_path_factory.mktemp("wine")
    windows = Wine(folder / "prefix")
    try:
        # The first start copies 700 MB of libraries, and ends only when they are all there.
        status, output = windows.run("wineboot", "--init", cwd=folder, limit_s=300)
        assert status == 0, output
        yield windows
    finally:
        windows.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def windows_bins(vendor_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    [archive] = (vendor_tree / PREBUILT).glob("*-bin-win-cpu-x64.zip")
    folder = tmp_path_factory.mktemp("windows") / "windows-x64"
    unpack_prebuilt(archive, folder)
    return folder


@pytest.fixture(scope="session")
def windows_q4(wine: Wine, windows_bins: Path, demo_gguf: Path) -> Path:
    """The demo model as the Windows llama-quantize makes it."""
    path = windows_bins.parent / "model.q4_k_m.gguf"
    quantize = windows_bins / "llama-quantize.exe"
    status, output = wine.run(quantize, demo_gguf, path, "Q4_K_M", cwd=path.parent)
    assert status == 0, output
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


@contextmanager
def serving(
    argv: Sequence[str | Path], model: Path, log: Path, env: Mapping[str, str]
) -> Iterator[str]:
    """A llama-server that answers: its URL."""
    port = free_port()
    options = f"--host 127.0.0.1 --port {port} --ctx-size 512 --threads 1".split()
    with open(log, "wb") as sink:
        command = [*map(str, argv), "--model", str(model), *options]
        child = start(command, env=env, stdout=sink, stderr=sink)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    try:
        while True:
            assert child.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            try:
                if ask(f"{url}/health") == {"status": "ok"}:
                    break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        terminate(child)
        finish(child)


def test_the_pinned_zip_unpacks_whole(windows_bins: Path) -> None:
    names = os.listdir(windows_bins)
    assert {"llama-server.exe", "llama-quantize.exe", "llama.dll", "ggml-cpu-x64.dll"} <= {*names}
    assert all((windows_bins / name).read_bytes()[:2] == b"MZ" for name in PROGRAMS)
    assert not [name for name in names if name.startswith(".")]


def test_wine_quantizes_as_linux_does(windows_q4: Path, real_bins: Path, demo_gguf: Path) -> None:
    here = windows_q4.with_name("linux.gguf")
    quantize = real_bins / "llama-quantize"
    subprocess.run([quantize, demo_gguf, here, "Q4_K_M"], check=True, capture_output=True)
    windows, linux = windows_q4.read_bytes(), here.read_bytes()
    assert len(windows) == len(linux) < demo_gguf.stat().st_size / 2
    # Equal to the last byte where both compilers round alike, as they did for the pinned build.
    assert sum(map(int.__ne__, windows, linux)) < len(linux) / 1000


def test_wine_serves_what_linux_serves(
    wine: Wine, windows_bins: Path, windows_q4: Path, real_bins: Path, tmp_path: Path
) -> None:
    chat = {
        "messages": [{"role": "user", "content": "Tell me a story about a cat."}],
        "max_tokens": 32,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }

    # One request each: under Wine 8 a request waits seconds for its turn, since the server's
    # threads miss each other's wake-ups and go by their timeouts; the computing itself is fast.
    def answer(argv: Sequence[str | Path], name: str, env: Mapping[str, str]) -> Any:
        with serving(argv, windows_q4, tmp_path / f"{name}.log", env) as url:
            choice = ask(f"{url}/v1/chat/completions", chat)["choices"][0]
        first = choice["logprobs"]["content"][0]["top_logprobs"]
        return choice["message"]["content"], {token["id"]: token["logprob"] for token in first}

    text, logprobs = answer(["wine", windows_bins / "llama-server.exe"], "windows", wine.env)
    _, expected = answer([real_bins / "llama-server"], "linux", {})
    assert len(text.split()) > 3
    best = max(expected, key=lambda token: expected[token])
    assert max(logprobs, key=lambda token: logprobs[token]) == best
    assert logprobs[best] == pytest.approx(expected[best], abs=0.05)


def test_doitw_cmd_without_python_says_what_to_install(wine: Wine, tmp_path: Path) -> None:
    script = tmp_path / "check out" / "doitw.cmd"
    script.parent.mkdir()
    shutil.copy(Path(__file__).parents[1] / "doitw.cmd", script)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    windows_path = "Z:" + str(script).replace("/", "\\")

    status, output = wine.run("cmd", "/c", windows_path, "serve", cwd=elsewhere)

    assert status == 3
    assert [line.split(":")[0].strip() for line in output.splitlines()] == ["ERROR", "why", "fix"]
    assert "3.10" in output
    assert "install" in output
    assert os.listdir(script.parent) == ["doitw.cmd"]


def test_doitw_cmd_has_the_line_ends_that_goto_needs() -> None:
    lines = (Path(__file__).parents[1] / "doitw.cmd").read_bytes().split(b"\n")
    assert all(line.endswith(b"\r") for line in lines[:-1])
    assert not lines[-1]


def test_the_graph_unpacks_the_windows_programs_and_skips_them_when_present(
    vendor_tree: Path, tmp_path: Path
) -> None:
    assert vendor_tree.exists()
    places = [f"{kind}-dir={tmp_path / kind}" for kind in ("bins", "logs")]
    words = ["build", "platform=windows-x64", *places]
    assert "unpack llama.cpp" in doit(*words)
    folder = tmp_path / "bins" / "windows-x64"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.exe")}
    assert {path.name for path in before} >= set(PROGRAMS)
    assert re.search(r"^build +fresh", doit(*words), re.M)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*.exe")}


def test_windows_programs_are_not_served_elsewhere(tmp_path: Path) -> None:
    said = doit("serve", "platform=windows-x64", f"bins-dir={tmp_path}", status=3)
    assert said.startswith("ERROR: binaries for windows-x64 do not run on this machine\n")
    assert list(tmp_path.iterdir()) == []
