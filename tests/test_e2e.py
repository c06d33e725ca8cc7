"""The demo model end to end: the real converter, llama-quantize and llama-server."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, doit, missing
from server import (
    DEADLINE_S,
    Server,
    convert_directly,
    ended,
    folders,
    plant_code,
    serving,
    until,
)

if TYPE_CHECKING:
    from openai import OpenAI

DEMO = ROOT / "models" / "demo"
PROMPTS = ("Tell me a story.", "Hello!", "Tell me a story about a cat.", "What is a bee?")


@pytest.fixture(scope="module")
def words(real_bins: Path, demo_gguf: Path) -> tuple[str, ...]:
    """Settings with which the demo is converted already."""
    return folders(real_bins.parent, demo_gguf.parents[2])


@pytest.fixture(scope="module")
def demo(words: tuple[str, ...]) -> Iterator[Server]:
    """The demo model as `doit serve` serves it by default."""
    with serving(*words) as server:
        yield server


def client(server: Server) -> OpenAI:
    from openai import OpenAI

    key = server.key or "none is needed"
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=DEADLINE_S)


def ask(server: Server, prompt: str) -> tuple[str, str | None]:
    """What the model says, and why it stopped."""
    answer = client(server).chat.completions.create(
        model="demo", messages=[{"role": "user", "content": prompt}], seed=1
    )
    choice = answer.choices[0]
    return choice.message.content or "", choice.finish_reason


def known_share(text: str) -> float:
    """Which part of a text's words stands in the model's training vocabulary."""
    vocabulary = set((DEMO / "vocabulary.txt").read_text(encoding="utf-8").split())
    found = re.findall(r"[a-z]+", text.lower())
    assert len(found) >= 3, f"hardly a word in {text!r}"
    return sum(word in vocabulary for word in found) / len(found)


# --- answers


@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_in_the_words_it_was_trained_on(demo: Server, prompt: str) -> None:
    text, reason = ask(demo, prompt)
    assert known_share(text) > 0.9, text
    assert reason == "stop"


def test_streams(demo: Server) -> None:
    chunks = client(demo).chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Tell me a story about a dog."}],
        stream=True,
        seed=1,
    )
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    pieces = [choice.delta.content for choice in choices if choice.delta.content]
    assert len(pieces) > 10
    assert known_share("".join(pieces)) > 0.9, pieces
    assert choices[-1].finish_reason == "stop"


def test_remembers_the_conversation(demo: Server) -> None:
    """A question and its answer take tokens of the next prompt: the chat template is used."""
    first = [{"role": "user", "content": "Hello!"}]
    more = [*first, {"role": "assistant", "content": "Hello to you."}, *first]
    used = []
    for messages in (first, more):
        status, text = demo.request(
            "/v1/chat/completions", {"messages": messages, "max_tokens": 1, "seed": 1}
        )
        assert status == 200, text
        used.append(json.loads(text)["usage"]["prompt_tokens"])
    assert used[1] > 2 * used[0]


def test_printed_curl_line_answers(demo: Server) -> None:
    if not shutil.which("curl"):
        missing("curl", "apt install curl")
    line = demo.summary["try"]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert known_share(answer) > 0.9, answer


# --- the summary and the logs


def test_summary_says_what_is_served(demo: Server, demo_gguf: Path, real_bins: Path) -> None:
    rows = demo.summary
    product = demo_gguf.with_name("model.q4_k_m.gguf")
    argv = demo.llama_server().cmdline()
    assert list(rows) == [
        *("model", "file", "quantization", "size", "device", "threads", "context"),
        *("API", "web UI", "log", "try"),
    ]
    assert rows["model"] == "demo (llama)"
    assert rows["file"] == str(product) == argv[argv.index("--model") + 1]
    assert rows["quantization"] == "Q4_K_M"
    assert rows["size"] == f"{product.stat().st_size / 1e6:.1f} MB"
    assert rows["device"].partition(":")[0] == (real_bins.name.split("-")[2:] or ["cpu"])[0]
    assert rows["threads"] == argv[argv.index("--threads") + 1]
    assert rows["context"] == "1024 tokens", "what the demo was trained for, below the usual 4096"
    assert rows["API"] == f"{demo.url}/v1"
    assert rows["web UI"] == f"{demo.url}/"


def test_logs_to_stdout_and_to_a_file(demo: Server) -> None:
    log = Path(demo.summary["log"])
    assert re.fullmatch(r"run-server-\d{8}-\d{6}(-\d+)?\.log", log.name)
    line = demo.wait_for(r"listening on http://.*").string
    assert line in log.read_text(encoding="utf-8")


def test_context_is_the_one_of_the_summary(demo: Server) -> None:
    status, text = demo.request("/props")
    assert status == 200
    assert json.loads(text)["default_generation_settings"]["n_ctx"] == 1024


# --- settings reach the server


def test_settings_and_arguments_reach_the_server(words: tuple[str, ...]) -> None:
    settings = ("ctx-size=256", "alias=storyteller", "threads=1", "args=--metrics --parallel 1")
    with serving(*words, *settings) as server:
        argv = server.llama_server().cmdline()
        assert argv[argv.index("--threads") + 1] == "1"
        status, text = server.request("/props")
        assert (status, json.loads(text)["default_generation_settings"]["n_ctx"]) == (200, 256)
        models = client(server).models.list().data
        assert [model.id for model in models] == ["storyteller"]
        status, metrics = server.request("/metrics")
        assert status == 200
        assert "llamacpp:" in metrics
        rows = server.summary
    assert (rows["threads"], rows["context"]) == ("1", "256 tokens")
    assert rows["model"] == "storyteller (llama)"


def test_no_metrics_unless_asked_for(demo: Server) -> None:
    assert demo.request("/metrics")[0] == 501


def test_key_is_wanted_and_shown_nowhere(words: tuple[str, ...]) -> None:
    from openai import AuthenticationError

    secret = "a-secret-of-the-tests"
    with serving(*words, f"api-key={secret}", key=secret) as server:
        assert known_share(ask(server, "Hello!")[0]) > 0.9
        server.key = ""
        with pytest.raises(AuthenticationError):
            ask(server, "Hello!")
        assert server.request("/props")[0] == 401
        assert secret not in " ".join(server.llama_server().cmdline())
    assert secret not in server.output
    assert "$KEY" in server.summary["try"]


@pytest.mark.parametrize(
    "quantization", ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16"]
)
def test_every_type_is_made_and_answers(words: tuple[str, ...], quantization: str) -> None:
    with serving(*words, f"quantization={quantization}") as server:
        assert Path(server.summary["file"]).name == f"model.{quantization}.gguf"
        text, _ = ask(server, "Tell me a story about a bear.")
    assert known_share(text) > (0.9 if quantization != "q2_k" else 0.7), text
    found = server.summary["quantization"].lower()
    assert found == quantization
    assert "convert     fresh" in server.output, "every type is made from one conversion"


# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(words: tuple[str, ...], number: signal.Signals) -> None:
    with serving(*words) as server:
        child = server.llama_server()
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        assert ended(child)
    assert server.output.endswith("serve       stopped")
    assert "second interrupt" not in server.output


def test_ctrl_c_reaches_the_whole_terminal(words: tuple[str, ...]) -> None:
    """A second Ctrl-C of an impatient user changes nothing."""
    with serving(*words) as server:
        child = server.llama_server()
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        assert ended(child)
    assert "Traceback" not in server.output


def test_killed_doit_leaves_no_server(words: tuple[str, ...]) -> None:
    with serving(*words) as server:
        child = server.llama_server()
        assert not ended(child)
        server.process.kill()
        until(lambda: ended(child), "llama-server ends with doit")


def test_killed_server_is_a_failure(words: tuple[str, ...]) -> None:
    with serving(*words) as server:
        server.llama_server().kill()
        assert server.process.wait(30) == 15
    assert "the server died: llama-server was killed by SIGKILL" in server.output
    assert "the whole log is" in server.output or f"see {server.summary['log']}" in server.output


# --- what is made once is not made again


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file() and "logs" not in path.parts
    }


def test_second_serve_runs_serve_only(words: tuple[str, ...], demo_gguf: Path) -> None:
    with serving(*words):
        pass
    before = snapshot(demo_gguf.parents[2])
    with serving(*words) as server:
        pass
    assert snapshot(demo_gguf.parents[2]) == before
    assert "done in" not in server.output
    for step in ("vendor", "build", "converter", "convert", "quantize"):
        assert re.search(rf"^{step} +fresh$", server.output, re.MULTILINE), server.output


def test_list_is_true_while_a_server_runs(demo: Server, words: tuple[str, ...]) -> None:
    rows = dict(re.findall(r"^(\w+)\S* +(fresh|pending) ", doit("list", *words), re.MULTILINE))
    assert rows.pop("serve") == "pending"
    assert set(rows.values()) == {"fresh"}, rows


def test_port_in_use_is_refused_with_its_holder(demo: Server, words: tuple[str, ...]) -> None:
    port = demo.url.rpartition(":")[2]
    output = doit("serve", *words, f"port={port}", status=16)
    assert f"port {port} is in use" in output
    assert f"llama-server (pid {demo.llama_server().pid})" in output


# --- conversion


def test_conversion_follows_from_the_files_alone(
    real_bins: Path, demo_gguf: Path, tmp_path: Path
) -> None:
    """A copy elsewhere, with a model's own code beside it, gives the same bytes."""
    copy = tmp_path / "elsewhere" / "demo"
    shutil.copytree(DEMO, copy)
    mark = plant_code(copy, "transformers", "LlamaTokenizerFast")
    doit("convert", f"model={copy}", *folders(real_bins.parent, tmp_path))
    (made,) = tmp_path.glob("gguf/demo__*/model.f16.gguf")
    assert made != demo_gguf
    assert sha256(made) == sha256(demo_gguf)
    assert not mark.exists()


def test_code_that_comes_with_the_model_is_not_run(
    real_bins: Path, converter_python: Path, vendor_tree: Path, tmp_path: Path
) -> None:
    """The converter loads a tokenizer of this class with trust_remote_code, whatever the model."""
    copy = tmp_path / "demo"
    shutil.copytree(DEMO, copy)
    mark = plant_code(copy, "transformers", "LlamaTokenizerFast")
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "tokenizer_class": "HybridDNATokenizer"}))

    convert_directly(vendor_tree, converter_python, copy, tmp_path / "direct.gguf")
    assert mark.exists(), "the converter runs a model's code; else this test tests nothing"
    mark.unlink()

    # The class exists only in the code that is not run, so there is no way to convert this one.
    output = doit("convert", f"model={copy}", *folders(real_bins.parent, tmp_path), status=13)
    assert "demo could not be converted" in output
    assert not mark.exists()
    assert not list(tmp_path.glob("gguf/*/model.f16.gguf"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- models that cannot be served


def unheard_of(path: Path) -> Path:
    """A sound GGUF of an architecture that llama.cpp does not know."""
    import numpy
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "unheardof")
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 32), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_model_that_the_server_refuses(words: tuple[str, ...], tmp_path: Path) -> None:
    model = unheard_of(tmp_path / "unheard-of.gguf")
    output = doit("serve", "port=auto", *words, f"model={model}", status=15)
    assert "the server did not start: llama-server ended with exit code 1" in output
    assert re.search(r"^  \| .*unknown model architecture: 'unheardof'", output, re.MULTILINE)
    assert "why: this llama.cpp is too old for the model" in output
    log = re.search(r"the whole log is (\S+)", output)
    assert log
    assert "unheardof" in Path(log[1]).read_text(encoding="utf-8")
    assert "ready in" not in output


def test_truncated_model_is_refused_before_anything_runs(
    words: tuple[str, ...], demo_gguf: Path, tmp_path: Path
) -> None:
    model = tmp_path / "half.gguf"
    content = demo_gguf.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    output = doit("serve", "port=auto", *words, f"model={model}", status=14)
    assert "half.gguf" in output
    assert "fresh" not in output
