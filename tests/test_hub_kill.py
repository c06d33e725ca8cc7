"""Downloads that are killed again and again: what it costs, and what is there in the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import missing
from graph import Project, Run, Tools, gone, own_tools
from hub import Hub
from tiny.checkpoint import make_checkpoint

from tasks.files import sha256_of

MIB = 1 << 20
GIB = 1 << 30
A_KILL = 16 * MIB
"""Bytes that one may cost of a file."""
MODEL = "model=org/model"
UNFINISHED = ("*.incomplete*", "*.journal*", "*.partial*", "*.mismatch", "*.replaced")


class Killed:
    """doit in process groups that are killed, on a project whose models come from a hub."""

    def __init__(self, hub: Hub, project: Project, source: Path) -> None:
        self.hub, self.project, self.source = hub, project, source
        self.kills = 0
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        self.draw = random.Random(seed)

    def start(self, *words: str) -> Run:
        return self.project.start(*(words or ("download",)), MODEL)

    def kill(self, reached: Callable[[Run], bool], *words: str) -> None:
        """Start a run, and kill it as soon as something is reached, unless it was done before."""
        run = self.start(*words)
        run.wait_until(lambda: reached(run) or run.process.poll() == 0)
        if run.process.poll() is None:
            children = run.children()
            run.kill_group()
            gone(children)
            self.kills += 1

    def kill_at(self, moment: int) -> None:
        """Kill a run when the hub has sent so many bytes in all, and some to this run."""
        before = self.hub.bytes_sent
        self.kill(lambda _: self.hub.bytes_sent >= max(moment, before + 1))

    def moments(self, count: int, end: int) -> list[int]:
        """Numbers of bytes, by chance."""
        return sorted(self.draw.randrange(end) for _ in range(count))

    def finish(self, *words: str) -> None:
        """Run to the end, after which nothing but what was wanted may be left."""
        self.start(*words).end()
        folder = self.project.folder
        models = self.project.models
        assert [path for glob in UNFINISHED for path in models.rglob(glob)] == []
        running = [process.info for process in psutil.process_iter(["pid", "cmdline"])]
        assert [each for each in running if str(folder) in " ".join(each["cmdline"] or ())] == []

    def there(self, kind: str = "gguf") -> dict[str, Path]:
        """The files that have their names, by these."""
        found = self.project.models.glob(f"{kind}/org__model__*/*")
        return {path.name: path for path in found if path.name[0] != "."}


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killed]:
    """A hub and an empty project; nothing of both stays on the disk."""
    with Hub() as hub:
        environment = hub.environment()
        for name in os.environ.keys() - environment.keys():
            monkeypatch.delenv(name)
        project = Project(tmp_path, tmp_path / "bins", None, env=environment)
        source = tmp_path / "source"
        source.mkdir()
        yield Killed(hub, project, source)
        project.close()
    shutil.rmtree(tmp_path)


def big_gguf(path: Path, size: int) -> None:
    """A GGUF of one tensor, about so many bytes; no part of it is like another at its place."""
    from gguf import GGMLQuantizationType, GGUFWriter

    if shutil.disk_usage(path.parent).free < 3 * size:
        missing(f"{3 * size >> 20} MiB in {path.parent}", "free some space")
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    shape = (size // 1024, 1024)
    writer.add_tensor_info(
        "token_embd.weight", shape, "int8", size, raw_dtype=GGMLQuantizationType.I8
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    block = random.randbytes(8 * MIB - 7)
    with path.open("ab") as file:
        left = size
        while left:
            left -= file.write(block[:left])


def test_ten_kills_of_a_gibibyte_cost_little(killed: Killed) -> None:
    hub, big = killed.hub, killed.source / "model-Q8_0.gguf"
    big_gguf(big, GIB)
    hub.add("org/model", killed.source)
    size = big.stat().st_size
    hub.fault("rate", where="cdn", bytes_per_s=16 * MIB)
    # The last one leaves enough to be still at work when it comes.
    for moment in killed.moments(10, size - 256 * MIB):
        killed.kill_at(moment)
        assert not killed.there()
    assert killed.kills == 10
    hub.clear_faults()
    killed.finish()
    print(f"{hub.bytes_sent - size >> 20} MiB more than one clean download")
    assert hub.bytes_sent <= size + 10 * A_KILL
    (made,) = killed.there().values()
    assert sha256_of(made) == sha256_of(big)
    before = hub.bytes_sent
    killed.finish()
    assert hub.bytes_sent == before


def test_a_kill_while_it_is_verified_and_named_costs_nothing(killed: Killed) -> None:
    hub, big = killed.hub, killed.source / "model-Q8_0.gguf"
    big_gguf(big, 128 * MIB)
    hub.add("org/model", killed.source)
    size = big.stat().st_size

    def is_reading(run: Run) -> bool:
        try:
            found = psutil.Process(run.process.pid).open_files()
        except psutil.Error:
            return False
        return any(file.path.endswith(".incomplete") for file in found)

    killed.kill(lambda _: hub.bytes_sent >= size)
    for _ in range(3):
        killed.kill(is_reading)
    killed.kill(lambda _: bool(killed.there()))
    for _ in range(2):
        killed.kill(lambda run: "download" in run.output)
    assert killed.kills
    killed.finish()
    assert hub.bytes_sent <= size + A_KILL
    (made,) = killed.there().values()
    assert sha256_of(made) == sha256_of(big)


def checkpoint(folder: Path, shards: int, shard_bytes: int) -> None:
    """A checkpoint of many files; nobody will look into its weights."""
    weights: dict[str, str] = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        end = shard_bytes + number
        tensor = {"dtype": "U8", "shape": [end], "data_offsets": [0, end]}
        header = json.dumps({f"t{number}": tensor}).encode()
        content = len(header).to_bytes(8, "little") + header + random.randbytes(end)
        (folder / name).write_bytes(content)
        weights[f"t{number}"] = name
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for number in range(40):
        (folder / f"part-{number}.json").write_text(json.dumps({"number": number}))


def test_kills_among_many_files_lose_none_that_was_there(killed: Killed) -> None:
    hub = killed.hub
    checkpoint(killed.source, 32, 2 * MIB)
    hub.add("org/model", killed.source)
    total = sum(path.stat().st_size for path in killed.source.iterdir())
    hub.fault("rate", where="cdn", bytes_per_s=16 * MIB)
    landed: set[str] = set()
    for moment in killed.moments(6, total - 16 * MIB):
        before = len(hub.requests)
        killed.kill_at(moment)
        asked = {record.name for record in hub.requests[before:] if record.method == "GET"}
        # One whose header was read to choose is asked for as it is resolved.
        assert not landed & asked
        landed |= set(killed.there("safetensors"))
    assert killed.kills >= 3
    hub.clear_faults()
    before = len(hub.requests)
    killed.finish()
    assert not landed & {record.name for record in hub.requests[before:]}
    assert hub.bytes_sent <= total + killed.kills * A_KILL
    there = killed.there("safetensors")
    assert set(there) == {path.name for path in killed.source.iterdir()}
    for name, path in there.items():
        assert path.read_bytes() == (killed.source / name).read_bytes()


@pytest.mark.long
def test_fifty_kills_of_the_whole_graph(killed: Killed, tools: Tools) -> None:
    """Build, download, convert, quantize: at random times, and never a doubt about what is made.

    What all of it has survived is thrown away, and made once more.
    """
    make_checkpoint(killed.source)
    (killed.source / "padding.txt").write_text(random.randbytes(64 * MIB).hex())
    killed.hub.add("org/model", killed.source)
    killed.hub.fault("rate", where="cdn", bytes_per_s=16 * MIB)
    folder, environment = killed.project.folder, killed.project.env
    clean = own_tools(tools, folder / "clean")
    clean.env = environment
    begun = time.monotonic()
    clean.doit("prepare", MODEL)
    took = time.monotonic() - begun
    cost = killed.hub.bytes_sent
    rounds = 0
    while killed.kills < 50:
        rounds += 1
        kills, sent = killed.kills, killed.hub.bytes_sent
        killed.project = own_tools(tools, folder / f"round-{rounds}")
        killed.project.env = environment
        for _ in range(12):
            end = time.monotonic() + killed.draw.uniform(0, took)
            killed.kill(lambda _, end=end: time.monotonic() > end, "prepare")  # type: ignore[misc]
        killed.finish("prepare")
        assert killed.project.pending(MODEL) == set()
        kills = killed.kills - kills
        print(f"round {rounds}: {kills} kills")
        # What is downloaded to choose (the start of a file) comes on top, each time.
        assert killed.hub.bytes_sent - sent <= cost + kills * (A_KILL + MIB)
        made, wanted = (
            {path.name: path.read_bytes() for path in one.models.glob("gguf/*/*.gguf")}
            for one in (killed.project, clean)
        )
        assert len(made) == 2
        assert made == wanted
        shutil.rmtree(killed.project.folder)
