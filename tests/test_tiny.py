"""The tiny llama.cpp tree behaves as the real one where the graph's tests rely on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from tiny.checkpoint import make_checkpoint

SOURCE = Path(__file__).parent / "tiny" / "llama.cpp"


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ folder of a build with flags of the real llama.cpp."""
    folder = tmp_path_factory.mktemp("tiny")
    source, build = folder / "llama.cpp", folder / "build"
    shutil.copytree(SOURCE, source)
    flags = ["GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_NUMBER=4711"]
    configure = [
        "cmake",
        "-S",
        str(source),
        "-B",
        str(build),
        "-G",
        "Ninja",
        *(f"-D{f}" for f in flags),
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    targets = ["--target", "llama-server", "llama-quantize"]
    subprocess.run(
        ["cmake", "--build", str(build), *targets], check=True, stdout=subprocess.DEVNULL
    )
    return build / "bin"


def convert(folder: Path, outfile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = SOURCE / "convert_hf_to_gguf.py"
    argv = [sys.executable, "-I", str(script), str(folder), "--outfile", str(outfile), *options]
    return subprocess.run(argv, capture_output=True, text=True, encoding="utf-8")


def converted(folder: Path, outfile: Path, *options: str) -> Path:
    convert(folder, outfile, *options).check_returncode()
    return outfile


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    return converted(checkpoint, tmp_path / "model.f16.gguf", "--outtype", "f16")


def fields(path: Path) -> dict[str, Any]:
    """A GGUF's metadata as the public reader sees it; it checks the tensors' bounds too."""
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


# --- convert_hf_to_gguf.py


@pytest.mark.parametrize(
    ("outtype", "dtype", "file_type", "tensor_type"),
    [
        ("f16", "BF16", 1, "F16"),
        ("bf16", "F16", 32, "BF16"),
        ("f32", "F16", 0, "F32"),
        ("auto", "F16", 1, "F16"),
        ("auto", "BF16", 32, "BF16"),
    ],
)
def test_converter_writes_a_gguf(
    tmp_path: Path, outtype: str, dtype: str, file_type: int, tensor_type: str
) -> None:
    from gguf import GGUFReader

    folder = make_checkpoint(tmp_path / "checkpoint", dtype=dtype)
    outfile = converted(folder, tmp_path / "model.gguf", "--outtype", outtype)
    found = fields(outfile)
    assert found["general.architecture"] == "llama"
    assert found["general.name"] == "checkpoint"
    assert found["general.file_type"] == file_type
    assert found["llama.context_length"] == 512
    assert found["llama.block_count"] == 1
    assert found["llama.embedding_length"] == 256
    assert found["tiny.staged"] == ["config.json", "model.safetensors", "tokenizer.json"]
    embedding = GGUFReader(outfile).tensors[0]
    assert embedding.name == "token_embd.weight"
    assert embedding.shape.tolist() == [256, 4]
    assert embedding.tensor_type.name == tensor_type


def test_projects_own_reader_reads_the_output(model: Path) -> None:
    from tasks.gguf_header import read_header

    assert read_header(model)


def test_converter_reports_progress_and_result(checkpoint: Path, tmp_path: Path) -> None:
    outfile = tmp_path / "model.gguf"
    done = convert(checkpoint, outfile, "--model-name", "Some Name")
    assert re.findall(r"Writing: +(\d+)%\|", done.stderr) == ["25", "50", "75", "100"]
    assert f"Model successfully exported to {outfile}" in done.stderr
    assert fields(outfile)["general.name"] == "Some Name"


def test_output_follows_from_the_input_alone(checkpoint: Path, tmp_path: Path) -> None:
    again = make_checkpoint(tmp_path / "elsewhere" / "checkpoint")
    other = make_checkpoint(tmp_path / "other" / "checkpoint", seed=1)
    first, second, third = (
        converted(folder, tmp_path / f"{i}.gguf").read_bytes()
        for i, folder in enumerate([checkpoint, again, other])
    )
    assert first == second
    assert first != third


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_byte_of_the_input_changes_the_tensors(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    from gguf import GGUFReader

    before = converted(checkpoint, tmp_path / "before.gguf")
    content = bytearray((checkpoint / name).read_bytes())
    if name.endswith(".json"):
        content += b"\n"
    else:
        content[-1] ^= 1
    (checkpoint / name).write_bytes(content)
    after = converted(checkpoint, tmp_path / "after.gguf")
    old, new = (GGUFReader(path).tensors[0].data.tobytes() for path in (before, after))
    assert old != new


def test_linked_files_are_seen(checkpoint: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged" / "checkpoint"
    (staged / "1_Pooling").mkdir(parents=True)
    for path in checkpoint.iterdir():
        (staged / path.name).symlink_to(path)
    (staged / "1_Pooling" / "config.json").write_text("{}")
    names = fields(converted(staged, tmp_path / "model.gguf"))["tiny.staged"]
    assert names == ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: (folder / "config.json").unlink(), "FileNotFoundError"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors file"),
        (lambda folder: os.truncate(folder / "model.safetensors", 900), "data is truncated"),
        (lambda folder: os.truncate(folder / "model.safetensors", 90), "header is truncated"),
        (lambda folder: edit_config(folder, auto_map={"AutoTokenizer": "gone.Tok"}), "gone.py"),
    ],
)
def test_converter_fails_as_the_real_one(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], error: str
) -> None:
    damage(checkpoint)
    done = convert(checkpoint, tmp_path / "model.gguf")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert error in done.stderr.splitlines()[-1]
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("mapped", [False, True])
def test_code_in_the_checkpoint_runs(checkpoint: Path, tmp_path: Path, mapped: bool) -> None:
    planted = tmp_path / "planted"
    code = f"from pathlib import Path\nPath({str(planted)!r}).touch()\n"
    (checkpoint / "tokenizer_planted.py").write_text(code)
    if mapped:
        edit_config(checkpoint, auto_map={"AutoTokenizer": ["tokenizer_planted.Tok", None]})
    converted(checkpoint, tmp_path / "model.gguf")
    assert planted.exists()


# --- llama-quantize


def quantize(binaries: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [str(word) for word in (binaries / "llama-quantize", *arguments)]
    return subprocess.run(argv, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("word", "file_type"), [("Q4_K_M", 15), ("q8_0", 7), ("IQ2_XXS", 19), ("Q3_K", 12), ("2", 2)]
)
def test_quantize_sets_the_type(
    binaries: Path, model: Path, tmp_path: Path, word: str, file_type: int
) -> None:
    outputs = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for output in outputs:
        done = quantize(binaries, model, output, word, 2)
        assert done.returncode == 0, done.stderr
    progress = re.findall(r"^\[ +(\d)/ +3\] (\S+) +- \[", done.stdout, re.MULTILINE)
    assert [name for _, name in progress] == [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "output_norm.weight",
    ]
    assert fields(outputs[0]) == {**fields(model), "general.file_type": file_type}
    assert outputs[0].read_bytes() == outputs[1].read_bytes() != model.read_bytes()


def test_quantize_takes_an_importance_matrix(binaries: Path, model: Path, tmp_path: Path) -> None:
    imatrix, output = tmp_path / "imatrix.gguf", tmp_path / "out.gguf"
    options = ["--allow-requantize", "--imatrix", imatrix]
    assert quantize(binaries, *options, model, output, "Q4_K_M").returncode == 1
    assert not output.exists()
    imatrix.touch()
    assert quantize(binaries, *options, model, output, "Q4_K_M").returncode == 0
    assert output.exists()


def test_quantize_lists_its_types(binaries: Path) -> None:
    table = quantize(binaries, "--help").stdout
    listed = dict(re.findall(r"^ +\d+ +or +(\S+) +(:)", table, re.MULTILINE))
    assert {"Q2_K", "Q4_K_M", "IQ1_S", "BF16", "F32"} <= set(listed)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["Q9_X"], "invalid ftype 'Q9_X'"),
        ([], "usage:"),
        (["Q4_0", "2", "more"], "usage:"),
    ],
)
def test_quantize_refuses_a_wrong_command_line(
    binaries: Path, model: Path, tmp_path: Path, arguments: list[str], error: str
) -> None:
    output = tmp_path / "out.gguf"
    done = quantize(binaries, model, output, *arguments)
    assert done.returncode == 1
    assert error in done.stdout + done.stderr
    assert not output.exists()
    assert quantize(binaries, "--no-such-flag", model, output, "Q4_0").returncode == 1


@pytest.mark.parametrize(
    ("size", "error"),
    [(0, "truncated"), (200, "truncated"), (-100, "not within the file bounds")],
)
def test_quantize_refuses_a_damaged_file(
    binaries: Path, model: Path, tmp_path: Path, size: int, error: str
) -> None:
    output = tmp_path / "out.gguf"
    os.truncate(model, size if size >= 0 else model.stat().st_size + size)
    done = quantize(binaries, model, output, "Q4_0")
    assert done.returncode == 1
    assert error in done.stderr
    assert not output.exists()


def test_quantize_refuses_what_is_no_gguf(binaries: Path, tmp_path: Path) -> None:
    (tmp_path / "in.gguf").write_text("this is no GGUF file")
    done = quantize(binaries, tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_0")
    assert done.returncode == 1
    assert "invalid magic" in done.stderr


# --- llama-server


@dataclass
class Server:
    """A running tiny server; `log` is the rest of its stderr, not yet read."""

    process: subprocess.Popen[str]
    log: IO[str]
    url: str = ""

    def request(self, path: str, body: object = None, key: str = "") -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        request = urllib.request.Request(self.url + path)
        request.data = json.dumps(body).encode() if body is not None else None
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def wait_until_listening(self) -> Server:
        for line in self.log:
            if found := re.search(r"server is listening on (http://127\.0\.0\.1:\d+)$", line):
                self.url = found[1]
                return self
        raise AssertionError("the server ended")


Launch = Callable[..., Server]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def launch(binaries: Path) -> Iterator[Launch]:
    """Starts servers that end with the test."""
    started: list[Server] = []

    def run(model: Path, *options: str, port: int = 0, **env: str) -> Server:
        program = str(binaries / "llama-server")
        argv = [program, "--model", str(model), "--port", str(port), *options]
        process = subprocess.Popen(
            argv, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
        )
        assert process.stderr is not None
        started.append(Server(process, process.stderr))
        return started[-1]

    yield run
    for server in started:
        server.process.kill()
        server.process.wait()
        server.log.close()


def test_server_answers(launch: Launch, model: Path) -> None:
    options = "--host 127.0.0.1 --threads 2 -ngl 0 --ctx-size 256 --cache-ram 0 --no-mmap"
    server = launch(model, *options.split(), "--alias", 'my "model"').wait_until_listening()
    assert server.request("/health") == (200, {"status": "ok"})
    status, models = server.request("/v1/models")
    assert (status, models["data"][0]["id"]) == (200, 'my "model"')
    status, props = server.request("/props")
    assert (status, props["default_generation_settings"]["n_ctx"]) == (200, 256)
    assert props["model_path"] == str(model)
    assert props["tiny.arguments"][-2:] == ["--alias", 'my "model"']
    question = {"messages": [{"role": "user", "content": "x" * 100_000}]}
    status, completion = server.request("/v1/chat/completions", question)
    assert (status, completion["object"]) == (200, "chat.completion")
    assert "tiny llama-server" in completion["choices"][0]["message"]["content"]
    assert server.request("/nothing")[0] == 404


def test_server_names_the_model_after_its_file(launch: Launch, model: Path) -> None:
    server = launch(model).wait_until_listening()
    assert server.request("/v1/models")[1]["data"][0]["id"] == "model.f16.gguf"


def test_server_is_unavailable_while_it_loads(launch: Launch, model: Path, tmp_path: Path) -> None:
    """The model comes through a pipe, so loading lasts until this test has looked."""
    pipe, port = tmp_path / "pipe.gguf", free_port()
    os.mkfifo(pipe)
    server = launch(pipe, port=port, LLAMA_API_KEY="secret")
    server.url = f"http://127.0.0.1:{port}"
    assert any("loading model" in line for line in server.log)
    loading = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    assert server.request("/health") == (503, {"error": loading})
    assert server.request("/props", key="secret") == (503, {"error": loading})
    pipe.write_bytes(model.read_bytes())
    assert server.wait_until_listening().request("/health") == (200, {"status": "ok"})


def test_server_wants_the_key(launch: Launch, model: Path) -> None:
    server = launch(model, LLAMA_API_KEY="secret").wait_until_listening()
    assert server.request("/health")[0] == 200
    assert server.request("/v1/models")[0] == 200
    assert server.request("/props")[0] == 401
    assert server.request("/props", key="wrong")[0] == 401
    assert server.request("/props", key="secret")[0] == 200
    assert server.request("/v1/chat/completions", {}, key="secret")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_server_cleanly(
    launch: Launch, model: Path, number: signal.Signals
) -> None:
    server = launch(model).wait_until_listening()
    server.process.send_signal(number)
    assert server.process.wait(30) == 0
    assert "cleaning up before exit" in server.log.read()


def test_server_refuses_a_damaged_model(launch: Launch, model: Path) -> None:
    model.write_bytes(b"JUNK" + model.read_bytes()[4:])
    server = launch(model)
    assert server.process.wait(30) == 1
    assert "error: failed to load model\n" in server.log.read()


def test_server_refuses_a_port_in_use(launch: Launch, model: Path) -> None:
    first = launch(model).wait_until_listening()
    second = launch(model, port=int(first.url.rpartition(":")[2]))
    assert second.process.wait(30) == 1
    assert "couldn't bind HTTP server socket" in second.log.read()


def test_server_dies_on_request(launch: Launch, model: Path) -> None:
    server = launch(model).wait_until_listening()
    with pytest.raises(OSError):
        server.request("/crash")
    assert server.process.wait(30) == -signal.SIGABRT


def test_server_dies_while_loading(
    binaries: Path, launch: Launch, checkpoint: Path, tmp_path: Path
) -> None:
    """The mark goes from config.json through conversion and quantization to the server."""
    edit_config(checkpoint, **{"tiny.crash": "load"})
    model = converted(checkpoint, tmp_path / "crash.f16.gguf")
    quantize(binaries, model, tmp_path / "crash.gguf", "Q4_K_M").check_returncode()
    server = launch(tmp_path / "crash.gguf")
    assert server.process.wait(30) == -signal.SIGABRT
    assert "error: tiny crash while loading" in server.log.read()


def test_server_prints_the_version_it_was_built_as(binaries: Path) -> None:
    argv = [str(binaries / "llama-server"), "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("version: 4711 ")
