"""A real `doit serve` for the tests: started, waited for, and always ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from conftest import doit_argv

DEADLINE_S = 240.0
"""How long a test waits for what must come, before it fails."""


class Server:
    """A running `doit serve port=auto WORDS`; `key` is what its clients must send."""

    def __init__(self, *words: str, key: str = "") -> None:
        # What a user set for llamake or llama-server is no business of the tests.
        environ = {name: os.environ[name] for name in os.environ if not name.startswith("LLAMA_")}
        self.key = key
        self.process = subprocess.Popen(
            doit_argv("serve", "port=auto", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environ,
        )
        self._lines: list[str] = []
        self._closed = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        """What it printed so far."""
        with self._news:
            return "\n".join(self._lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line that `pattern` matches; fails where doit ends before it comes."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self._find(pattern), DEADLINE_S)
            found = self._find(pattern)
        assert found, f"no line {pattern!r} (exit code {self.process.poll()}) in:\n{self.output}"
        return found

    def _find(self, pattern: str) -> re.Match[str] | None:
        return next((m for line in self._lines if (m := re.search(pattern, line))), None)

    @property
    def summary(self) -> dict[str, str]:
        """The rows of the printed summary, by their labels."""
        _, _, after = self.output.partition("\nready in ")
        return dict(re.findall(r"^  (\w[\w ]{0,11}\w) {2,}(\S.*)$", after, re.MULTILINE))

    @property
    def url(self) -> str:
        """The served URL, as printed."""
        return self.wait_for(r"^ready in .*: (http://127\.0\.0\.1:\d+)$")[1]

    def request(self, path: str, body: object = None) -> tuple[int, str]:
        """The status and the text of an answer."""
        request = urllib.request.Request(self.url + path)
        request.data = json.dumps(body).encode() if body is not None else None
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def llama_server(self) -> psutil.Process:
        """The llama-server that doit started."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = [child for child in children if child.name() == "llama-server"]
        return found

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its guard ends its children
                self.process.wait()
        self._reader.join(DEADLINE_S)


@contextmanager
def serving(*words: str, key: str = "") -> Iterator[Server]:
    """A server that is ready when the block starts and gone when it is left."""
    server = Server(*words, key=key)
    try:
        server.wait_for(r"^  try  ")
        yield server
    finally:
        server.stop()


def folders(bins: Path, models: Path) -> tuple[str, ...]:
    """The settings with which doit compiles nothing and writes into no folder of the user's."""
    return f"bins-dir={bins}", f"models-dir={models}", f"logs-dir={models / 'logs'}"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what no event tells; fails where it does not come."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def ended(process: psutil.Process) -> bool:
    """True where a process that is not our child runs no more."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def plant_code(checkpoint: Path, module: str, base: str) -> Path:
    """Give a checkpoint a tokenizer of its own, made from `base`; the file it leaves if it runs."""
    mark = checkpoint.with_name(f"{checkpoint.name}-was-run")
    (checkpoint / "tokenization_planted.py").write_text(
        f"from {module} import {base}\n"
        f"open({str(mark)!r}, 'w').close()\n"
        f"class PlantedTokenizer({base}):\n"
        "    pass\n"
    )
    planted = "tokenization_planted.PlantedTokenizer"
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        config["auto_map"] = {"AutoTokenizer": [planted, planted]}
        (checkpoint / name).write_text(json.dumps(config), encoding="utf-8")
    return mark


def convert_directly(
    vendor_tree: Path, python: Path, checkpoint: Path, outfile: Path
) -> subprocess.CompletedProcess[str]:
    """Run the vendored converter on a checkpoint where it lies, as the graph never does."""
    argv = [python, vendor_tree / "convert_hf_to_gguf.py", checkpoint, "--outfile", outfile]
    cache = outfile.with_name("hf-home")
    return subprocess.run(
        [*map(str, argv), "--outtype", "f16"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
