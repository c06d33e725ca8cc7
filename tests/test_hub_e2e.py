"""Models from a hub end to end: the real converter, llama-quantize and llama-server."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from conftest import ROOT, doit
from hub import Hub
from server import Server, folders, plant_code, serving
from test_e2e import ask, known_share
from test_minilm import SENTENCES, embed
from test_minilm import minilm as minilm

from tasks.arguments import speculation
from tasks.gguf_header import read_header
from tasks.layout import executable

DEMO = ROOT / "models" / "demo"
STORY = "Tell me a story."
CONVERTED = {
    *("config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json"),
    *("tokenizer.model", "tokenizer_config.json", "training_log.json", "vocabulary.txt"),
}
"""What conversion takes of the demo's folder."""
WIDTH, FEED_FORWARD = 256, 768
"""Of the demo model."""
PATCHES = 16
"""Tokens that an image takes in the projector made here."""


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """This whole environment, for the processes started in the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - wanted.keys():
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub that every process here takes for the real one."""
    with Hub() as hub, environment(hub.environment()):
        yield hub


@pytest.fixture
def words(real_bins: Path, tmp_path: Path) -> tuple[str, ...]:
    """Settings with a models folder that is empty."""
    return folders(real_bins.parent, tmp_path / "models")


@pytest.fixture(scope="module")
def ggufs(
    real_bins: Path, demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The demo model in several types, as llama-quantize makes them."""
    folder = tmp_path_factory.mktemp("ggufs")
    made = {"F16": demo_gguf}
    for name in ("Q4_K_M", "Q6_K", "Q8_0"):
        made[name] = folder / f"{name}.gguf"
        argv = [executable(real_bins, "llama-quantize"), demo_gguf, made[name], name]
        subprocess.run([str(word) for word in argv], check=True, capture_output=True)
    return made


def put(hub: Hub, repo: str, files: Mapping[str, Path], folder: Path, **more: Any) -> str:
    """Have a repository on the hub with these files; its commit."""
    source = folder / repo.replace("/", "__")
    for name, path in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, source / name)
    hub.reset()
    return hub.add(repo, source, **more)


def fetched(hub: Hub, repo: str) -> set[str]:
    """The files of a repository that more than a look was taken at."""
    there = hub.repos[repo].commits[hub.commit(repo)]
    sent: dict[str, int] = {}
    for record in [*hub.asked("cdn", method="GET"), *hub.asked("resolve", method="GET")]:
        if record.status in (200, 206):
            sent[record.name] = sent.get(record.name, 0) + record.sent
    return {name for name, file in there.items() if sent.get(name, 0) >= file.size}


def reply(server: Server, content: object = STORY) -> dict[str, Any]:
    """A whole answer to a message; of the likeliest words, so the same in every run."""
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 60}
    status, text = server.request("/v1/chat/completions", body)
    assert status == 200, text
    return dict(json.loads(text))


def said(answer: Mapping[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def assert_answers(server: Server) -> None:
    text, _ = ask(server, STORY)
    assert known_share(text) > 0.9, text


# --- GGUF


def test_the_best_type_that_fits_the_memory_is_served(
    hub: Hub, ggufs: dict[str, Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    """Q8_0 comes first, but no machine has the memory for this one."""
    names = {f"demo-{name}.gguf": path for name, path in ggufs.items()}
    huge = tmp_path / "org__demo-GGUF" / "demo-Q8_0.gguf"
    huge.parent.mkdir()
    huge.touch()
    os.truncate(huge, 1 << 41)
    del names["demo-Q8_0.gguf"]
    put(hub, "org/demo-GGUF", names, tmp_path, sums={huge.name: "0" * 64})

    with serving(*words, "model=org/demo-GGUF") as server:
        why = server.wait_for(r"^model +(.*)$")[1]
        assert_answers(server)
        rows = server.summary
    assert re.fullmatch(r"Q6_K: 1\.\d MB \+ \d+\.\d MB context fits .*; Q8_0 would not", why)
    assert rows["model"] == "org/demo-GGUF (llama)"
    assert rows["quantization"] == "Q6_K"
    assert Path(rows["file"]).read_bytes() == ggufs["Q6_K"].read_bytes()
    assert fetched(hub, "org/demo-GGUF") == {"demo-Q6_K.gguf"}

    hub.reset()
    with serving(*words, "model=org/demo-GGUF") as server:
        assert_answers(server)
    assert re.search(r"^download +fresh$", server.output, re.MULTILINE)
    assert not hub.requests


def test_a_type_that_is_asked_for_is_served(
    hub: Hub, ggufs: dict[str, Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    names = {f"demo-{name}.gguf": path for name, path in ggufs.items()}
    put(hub, "org/asked-GGUF", names, tmp_path)
    with serving(*words, "model=org/asked-GGUF:q4_k_m") as server:
        assert_answers(server)
        assert server.summary["quantization"] == "Q4_K_M"
    assert fetched(hub, "org/asked-GGUF") == {"demo-Q4_K_M.gguf"}


def split(model: Path, folder: Path, stem: str, count: int) -> list[Path]:
    """A GGUF in parts, as llama-gguf-split makes them: the first has all the metadata."""
    from gguf import GGUFReader, GGUFWriter

    whole, paths = GGUFReader(model), []
    total = len(whole.tensors)
    for number in range(count):
        paths.append(folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf")
        writer = GGUFWriter(paths[-1], "llama")
        for field in whole.fields.values() if number == 0 else ():
            if not field.name.startswith(("GGUF.", "general.architecture")):
                of = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], of)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", total)
        for tensor in whole.tensors[number * total // count : (number + 1) * total // count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        write(writer)
    return paths


def write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_all_parts_of_a_split_model_are_served(
    hub: Hub, ggufs: dict[str, Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    parts = split(ggufs["Q8_0"], tmp_path, "demo-Q8_0", 3)
    names = {f"Q8_0/{path.name}": path for path in parts}
    put(hub, "org/split-GGUF", {**names, "demo-Q4_K_M.gguf": ggufs["Q4_K_M"]}, tmp_path)
    with serving(*words, "model=org/split-GGUF:Q8_0") as server:
        assert_answers(server)
        rows = server.summary
    first = Path(rows["file"])
    assert first.parts[-2:] == ("Q8_0", "demo-Q8_0-00001-of-00003.gguf")
    assert rows["size"] == f"{sum(path.stat().st_size for path in parts) / 1e6:.1f} MB"
    assert fetched(hub, "org/split-GGUF") == set(names)


# --- safetensors


def test_a_checkpoint_is_converted_quantized_and_served(
    hub: Hub, words: tuple[str, ...], tmp_path: Path
) -> None:
    names = {path.name: path for path in DEMO.iterdir()}
    weights = DEMO / "model.safetensors"
    others = ("pytorch_model.bin", "onnx/model.onnx", "original/model.safetensors")
    put(hub, "org/demo", {**names, **dict.fromkeys(others, weights)}, tmp_path)
    with serving(*words, "model=org/demo") as server:
        assert_answers(server)
        rows = server.summary
    assert rows["model"] == "org/demo (llama)"
    assert Path(rows["file"]).name == "model.q4_k_m.gguf"
    assert rows["quantization"] == "Q4_K_M"
    assert fetched(hub, "org/demo") == CONVERTED
    folder = next((tmp_path / "models" / "safetensors").glob("org__demo__*"))
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == CONVERTED


def test_embeddings_of_a_checkpoint_and_of_its_gguf_are_alike(
    request: pytest.FixtureRequest, hub: Hub, words: tuple[str, ...], tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue("minilm")
    hub.reset()
    hub.add("org/all-MiniLM-L6-v2", folder)
    embeddings = ("args=--embeddings",)
    with serving(*words, "model=org/all-MiniLM-L6-v2:q8_0", *embeddings) as server:
        of_checkpoint, _ = embed(server, *SENTENCES)
        assert Path(server.summary["file"]).name == "model.q8_0.gguf"
    assert {"model.safetensors", "1_Pooling/config.json"} < fetched(hub, "org/all-MiniLM-L6-v2")

    (converted,) = (tmp_path / "models").glob("gguf/*/model.f16.gguf")
    put(hub, "org/MiniLM-GGUF", {"all-MiniLM-L6-v2-ggml-model-f16.gguf": converted}, tmp_path)
    with serving(*words, "model=org/MiniLM-GGUF", *embeddings) as server:
        of_gguf, _ = embed(server, *SENTENCES)
        assert server.summary["quantization"] == "F16"
    alike = of_checkpoint @ of_gguf.T
    assert alike.shape == (len(SENTENCES), len(SENTENCES))
    assert alike.diagonal().min() > 0.99
    assert (alike - numpy.diag(alike.diagonal())).max() < 0.8, "different sentences differ"


def test_code_of_a_repository_is_neither_downloaded_nor_run(
    hub: Hub, words: tuple[str, ...], tmp_path: Path
) -> None:
    copy = tmp_path / "planted"
    shutil.copytree(DEMO, copy)
    mark = plant_code(copy, "transformers", "LlamaTokenizerFast")
    (copy / "tokenization_planted.json.py").write_text("raise SystemExit")
    hub.reset()
    hub.add("org/planted", copy)
    with serving(*words, "model=org/planted") as server:
        assert_answers(server)
    assert fetched(hub, "org/planted") == CONVERTED
    assert not hub.asked(name="*.py")
    assert not mark.exists()

    # A tokenizer class that is nowhere but in that code: the converter would load it.
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "tokenizer_class": "HybridDNATokenizer"}))
    hub.add("org/planted-class", copy)
    output = doit("convert", "model=org/planted-class", *words, status=13)
    assert "org/planted-class could not be converted" in output
    assert not mark.exists()
    assert not list((tmp_path / "models").rglob("*.py"))


# --- what goes along with a model


def random(*shape: int, dtype: Any = numpy.float32) -> Any:
    return (numpy.random.default_rng(1).standard_normal(shape) * 0.2).astype(dtype)


def adapter(path: Path) -> Path:
    """A LoRA of rank 4 for the demo model, as convert_lora_to_gguf.py writes them."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for name, width in (("attn_q", WIDTH), ("ffn_down", FEED_FORWARD)):
        for layer in range(2):
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", random(4, width))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", random(WIDTH, 4))
    write(writer)
    return path


def test_an_adapter_is_served_along(
    hub: Hub, ggufs: dict[str, Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    put(hub, "org/plain-GGUF", {"demo-Q8_0.gguf": ggufs["Q8_0"]}, tmp_path)
    with serving(*words, "model=org/plain-GGUF") as server:
        without = said(reply(server))
        assert json.loads(server.request("/lora-adapters")[1]) == []

    lora = adapter(tmp_path / "adapter.gguf")
    put(hub, "org/nonsense", {"demo-nonsense-lora-F32.gguf": lora}, tmp_path)
    with serving(*words, "model=org/plain-GGUF", "lora=org/nonsense") as server:
        assert said(reply(server)) != without
        (listed,) = json.loads(server.request("/lora-adapters")[1])
        assert server.summary["LoRA"] == listed["path"]
    assert listed["scale"] == 1.0
    assert Path(listed["path"]).read_bytes() == lora.read_bytes()


def test_a_draft_model_drafts(
    hub: Hub, ggufs: dict[str, Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    put(hub, "org/target-GGUF", {"demo-F16.gguf": ggufs["F16"]}, tmp_path)
    put(hub, "org/small-GGUF", {"demo-Q8_0.gguf": ggufs["Q8_0"]}, tmp_path)
    with serving(*words, "model=org/target-GGUF", "draft-model=org/small-GGUF") as server:
        answer = reply(server)
        rows = server.summary
        server.wait_for(r"loading draft model '.*demo-Q8_0\.gguf'")
    assert known_share(said(answer)) > 0.9
    assert Path(rows["file"]).name == "demo-F16.gguf"
    assert Path(rows["draft model"]).name == "demo-Q8_0.gguf"
    # Of the same model, so much of what it drafts is right.
    assert answer["timings"]["draft_n_accepted"] > 0


@pytest.mark.parametrize(
    ("architecture", "own_layers", "wanted"),
    [
        ("llama", 0, "draft-simple"),
        ("eagle3", 0, "draft-eagle3"),
        # What llama-server sees itself.
        ("dflash", 0, ""),
        ("glm4moe", 1, ""),
    ],
)
def test_how_a_draft_model_drafts(
    tmp_path: Path, architecture: str, own_layers: int, wanted: str
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "draft.gguf", architecture)
    writer.add_uint32(f"{architecture}.nextn_predict_layers", own_layers)
    writer.add_tensor("token_embd.weight", random(4, 32))
    write(writer)
    assert speculation(read_header(tmp_path / "draft.gguf")) == wanted


def projector(path: Path) -> Path:
    """A vision encoder of two small layers that ends in vectors as wide as the demo's."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    numbers = {"embedding_length": 32, "feed_forward_length": 64, "block_count": 2}
    numbers |= {"attention.head_count": 2, "image_size": 32, "patch_size": 8}
    for key, value in {**numbers, "projection_dim": WIDTH}.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    shapes: dict[str, tuple[int, ...]] = {
        "v.position_embd.weight": (PATCHES, 32),
        "mm.0.weight": (WIDTH, 32),
        "mm.0.bias": (WIDTH,),
        "mm.2.weight": (WIDTH, WIDTH),
        "mm.2.bias": (WIDTH,),
    }
    for layer in range(2):
        block = f"v.blk.{layer}"
        shapes |= {f"{block}.attn_{name}.weight": (32, 32) for name in ("q", "k", "v", "out")}
        norms = [f"{block}.{name}" for name in ("ln1", "ln2")]
        shapes |= {f"{norm}.{kind}": (32,) for norm in norms for kind in ("weight", "bias")}
        shapes |= {f"{block}.ffn_up.weight": (64, 32), f"{block}.ffn_down.weight": (32, 64)}
    writer.add_tensor("v.patch_embd.weight", random(32, 3, 8, 8, dtype=numpy.float16))
    for name, shape in shapes.items():
        writer.add_tensor(name, random(*shape))
    write(writer)
    return path


def image() -> str:
    """A red square of 32 pixels, as the URL of a PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    pixels = zlib.compress((b"\0" + b"\xff\0\0" * 32) * 32)
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    return f"data:image/png;base64,{base64.b64encode(png + chunk(b'IEND', b'')).decode()}"


def test_a_vision_model_sees(
    hub: Hub, ggufs: dict[str, Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    names = {"demo-Q8_0.gguf": ggufs["Q8_0"]}
    names["mmproj-demo-f16.gguf"] = projector(tmp_path / "projector.gguf")
    put(hub, "org/vision-GGUF", names, tmp_path)
    with serving(*words, "model=org/vision-GGUF") as server:
        assert json.loads(server.request("/props")[1])["modalities"]["vision"] is True
        text = {"type": "text", "text": STORY}
        blind = reply(server, [text])
        seeing = reply(server, [text, {"type": "image_url", "image_url": {"url": image()}}])
        rows = server.summary
    assert Path(rows["file"]).name == "demo-Q8_0.gguf"
    assert Path(rows["mmproj"]).name == "mmproj-demo-f16.gguf"
    assert known_share(said(blind)) > 0.9
    tokens = [answer["usage"]["prompt_tokens"] for answer in (blind, seeing)]
    assert tokens[1] - tokens[0] == PATCHES
    assert seeing["usage"]["completion_tokens"] > 0


# --- without a network


@contextmanager
def cut_off(*, endpoint: str) -> Iterator[None]:
    """A network in which everything leads to a port where nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        gone = dict.fromkeys(names, dead)
        alive = {name: text for name, text in os.environ.items() if name.upper() != "NO_PROXY"}
        with environment({**alive, **gone, "HF_ENDPOINT": endpoint}):
            yield


def test_what_was_resolved_is_served_without_a_network(
    ggufs: dict[str, Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    lora = adapter(tmp_path / "adapter.gguf")
    model = ("model=org/demo", "lora=org/nonsense", "draft-model=org/small-GGUF")
    with Hub() as hub:
        with environment(hub.environment()):
            put(hub, "org/nonsense", {"demo-nonsense-lora-F32.gguf": lora}, tmp_path)
            put(hub, "org/small-GGUF", {"demo-Q8_0.gguf": ggufs["Q8_0"]}, tmp_path)
            hub.add("org/demo", DEMO)
            doit("prepare", *model, *words)
        client = hub.environment()
    with environment(client):
        with cut_off(endpoint=hub.endpoint):
            assert "refused" in doit("list", "model=org/never-seen", *words)
            server = Server(*words, *model)
        try:
            server.wait_for(r"^  try  ")
            assert server.request("/health")[0] == 200
            assert said(reply(server))
            (listed,) = json.loads(server.request("/lora-adapters")[1])
            assert Path(listed["path"]).name == "demo-nonsense-lora-F32.gguf"
        finally:
            server.stop()
    assert re.search(r"^download +fresh$", server.output, re.MULTILINE)
