"""Serving's parts that need no llama-server: its command line, its summary, why it ended."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tasks import machine
from tasks.arguments import Launch, Served, cache_mib, check_arguments, launch_of
from tasks.errors import Refused
from tasks.gguf_header import GgufHeader
from tasks.serve import answers, hint, summary
from tasks.settings import Settings, load

HEADER = GgufHeader(
    3,
    {"general.architecture": "llama", "llama.context_length": 512, "general.file_type": 15},
    {},
    0,
    0,
    0,
    {},
    (),
)
LAUNCH = Launch(
    program=Path("/bins/llama-server"),
    model=Served(Path("/models/a b.gguf"), "a"),
    alias="a",
    host="127.0.0.1",
    port=8080,
    threads=3,
    context=512,
    gpu_layers=0,
    cache_mib=100,
    api_key="secret",
    extra=("--temp", "0.5"),
)


def launched(settings: Settings, device: str = "cpu", header: GgufHeader = HEADER) -> Launch:
    return launch_of(
        settings, header, program=Path("/p"), model=Served(Path("/m"), "name"), device=device
    )


def after(argv: list[str], word: str) -> str:
    return argv[argv.index(word) + 1]


def test_the_command_line() -> None:
    argv = LAUNCH.argv
    assert argv[:3] == ["/bins/llama-server", "--model", "/models/a b.gguf"]
    expected = {
        "--alias": "a",
        "--host": "127.0.0.1",
        "--port": "8080",
        "--threads": "3",
        "--ctx-size": "512",
        "--cache-ram": "100",
        "--n-gpu-layers": "0",
    }
    assert {word: after(argv, word) for word in expected} == expected
    assert argv[-2:] == ["--temp", "0.5"]
    assert "secret" not in argv, "everyone on the machine may read command lines"


def test_what_is_loaded_besides_the_model() -> None:
    adapters = (Path("/l/1.gguf"), Path("/l/2.gguf"))
    served = Served(Path("/m.gguf"), "m", Path("/mmproj.gguf"), Path("/draft.gguf"), adapters)
    argv = replace(LAUNCH, model=served).argv
    assert after(argv, "--mmproj") == "/mmproj.gguf"
    assert after(argv, "--model-draft") == "/draft.gguf"
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--lora"] == [
        "/l/1.gguf",
        "/l/2.gguf",
    ]
    assert not {"--mmproj", "--model-draft", "--lora"} & set(LAUNCH.argv)


def test_what_llama_server_decides_better_is_left_to_it() -> None:
    assert "--n-gpu-layers" not in replace(LAUNCH, gpu_layers=None).argv


@pytest.mark.parametrize("word", ["--embeddings", "--embedding", "--rerank"])
def test_embeddings_take_a_whole_context_in_one_batch(word: str) -> None:
    argv = replace(LAUNCH, extra=(word,)).argv
    assert after(argv, "--ubatch-size") == after(argv, "--batch-size") == "512"
    assert "--ubatch-size" not in LAUNCH.argv


def test_what_the_settings_leave_open_the_machine_and_the_model_decide() -> None:
    launch = launched(Settings())
    assert launch.alias == "name"
    assert launch.threads == machine.server_threads()
    assert launch.context == 512
    assert launch.gpu_layers == 0
    assert launched(Settings(), device="cuda").gpu_layers is None
    long = replace(HEADER, metadata={**HEADER.metadata, "llama.context_length": 1 << 17})
    assert launched(Settings(), header=long).context == 4096
    unknown = replace(HEADER, metadata={"general.architecture": "llama"})
    assert launched(Settings(), header=unknown).context == 4096


def test_settings_win() -> None:
    words = {"threads": "2", "ctx-size": "9000", "gpu-layers": "5", "alias": "me", "port": "1234"}
    launch = launched(load({**words, "args": "--x 'y z'"}, {}, Path("/")))
    assert (launch.threads, launch.context, launch.gpu_layers) == (2, 9000, 5)
    assert (launch.alias, launch.port, launch.extra) == ("me", 1234, ("--x", "y z"))


def test_a_free_port_is_found_for_auto() -> None:
    assert launched(Settings(port=None)).port > 0


@pytest.mark.parametrize("word", ["-m", "--model", "--port", "--host=1.2.3.4", "--api-key", "-c"])
def test_arguments_that_a_setting_is_there_for(word: str) -> None:
    with pytest.raises(Refused, match=f"args= must not contain {word.split('=')[0]}"):
        check_arguments(Settings(args=("--temp", "1", word)))
    check_arguments(Settings(args=("--threads-draft", "--hostile", "port")))


@pytest.mark.parametrize(
    ("available", "mib"),
    [(0, 0), (1 << 30, 256), (16 << 30, 4096), (32 << 30, 8192), (1 << 40, 8192)],
)
def test_the_prompt_cache_leaves_room(available: int, mib: int) -> None:
    assert cache_mib(available) == mib


def test_the_url() -> None:
    assert LAUNCH.url == "http://127.0.0.1:8080"
    assert replace(LAUNCH, host="0.0.0.0").url == "http://127.0.0.1:8080"
    assert replace(LAUNCH, extra=("--api-prefix", "/x/")).url == "http://127.0.0.1:8080/x"
    assert replace(LAUNCH, host="::").url == "http://[::1]:8080"
    assert replace(LAUNCH, extra=("--ssl-cert-file", "x")).url == "https://127.0.0.1:8080"


def test_the_summary_has_all_a_user_asks_for(tmp_path: Path) -> None:
    parts = [tmp_path / f"a b-0000{part}-of-00002.gguf" for part in (1, 2)]
    for path, size in zip(parts, (25_000_000, 300_000), strict=True):
        path.touch()
        os.truncate(path, size)
    served = Served(parts[0], "a", Path("/m/mmproj.gguf"), Path("/d.gguf"), (Path("/l.gguf"),))
    launch = replace(LAUNCH, model=served)
    text = summary(launch, HEADER, "cpu", Path("/logs/x.log"), 0.25)
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  "))
    assert "ready in 0.25 s: http://127.0.0.1:8080" in text
    assert rows["model"] == "a (llama)"
    assert rows["file"] == str(parts[0])
    assert rows["mmproj"] == "/m/mmproj.gguf"
    assert "  draft model   /d.gguf\n" in text
    assert rows["LoRA"] == "/l.gguf"
    assert rows["quantization"] == "Q4_K_M"
    assert rows["size"] == "25.3 MB"
    assert rows["context"] == "512 tokens"
    assert rows["API"] == "http://127.0.0.1:8080/v1"
    assert rows["log"] == "/logs/x.log"
    assert rows["try"].startswith("curl http://127.0.0.1:8080/v1/chat/completions -H")
    assert "secret" not in text
    embeddings = replace(launch, extra=("--embeddings",), api_key=None)
    text = summary(embeddings, HEADER, "cpu", Path("/logs/x.log"), 0.25)
    assert "curl http://127.0.0.1:8080/v1/embeddings -d" in text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ggml_backend_cpu: failed to ALLOCATE buffer", "too little memory"),
        ("error: invalid argument: --tmp", "does not know an argument"),
        ("unknown model architecture: 'new'", "too old for the model"),
        ("couldn't bind HTTP server socket", "port was taken"),
        ("main: failed to load model", "cannot load this file"),
    ],
)
def test_why_it_ended(line: str, why: str) -> None:
    found, fix = hint(["main: loading", line, "main: exiting"])
    assert why in found
    assert fix


def test_an_end_that_nobody_knows() -> None:
    assert hint(["hello"]) == hint([]) == ("", "")


@contextmanager
def server(status: int | None) -> Iterator[str]:
    """A server that answers each request with a status, or closes the connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health"
            if status:
                self.send_response(status)
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "ready"), [(200, True), (401, True), (503, False), (None, False)]
)
def test_a_server_that_still_loads_does_not_answer(status: int | None, ready: bool) -> None:
    with server(status) as url:
        assert answers(url) is ready


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not answers(f"http://127.0.0.1:{unused.getsockname()[1]}")
