"""The memory beside the weights, as the real llama-server counts it."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.arguments import cache_mib
from tasks.gguf_format import Value
from tasks.gguf_header import read_header
from tasks.memory import context_bytes, usable
from tasks.port import free_port

MIB = 1 << 20
GB = 10**9
DEADLINE_S = 120.0

LLAMA_3_8B: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 131072,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.vocab_size": 128256,
}
CACHE_OF_LLAMA_3_8B = 32 * 4096 * 8 * 128 * 2 * 2
LENGTHS = {"tokenizer.ggml.tokens": 128256, "tokenizer.ggml.merges": 280147}


def estimate(context: int | None = 4096, size: int = 0, **changes: Any) -> int:
    own = {f"llama.{key}".replace("__", "."): value for key, value in changes.items()}
    return context_bytes({**LLAMA_3_8B, **own}, LENGTHS, context, size)


def zeros(path: Path, heads: int, head: int, inner: int) -> Path:
    """A Llama of 2 layers and 2 key heads; its weights are holes in a sparse file."""
    width = heads * head
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 1 << 17),
        (writer.add_block_count, 2),
        (writer.add_embedding_length, width),
        (writer.add_feed_forward_length, inner),
        (writer.add_head_count, heads),
        (writer.add_head_count_kv, 2),
        (writer.add_rope_dimension_count, head),
    ):
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{number}" for number in range(741)]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 741])
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), width),
        "output_norm": (width,),
    }
    for layer in range(2):
        of_layer = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (2 * head, width),
            "attn_v": (2 * head, width),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_gate": (inner, width),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    size = 0
    for name, shape in shapes.items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        count = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(f"{name}.weight", shape, dtype, count)
        size += -(-count // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)
    return path


def logged(program: Path, model: Path, context: int, batch: int = 512) -> float:
    """MiB of the cache and of the compute buffer together, as llama-server logs them."""
    argv = [
        str(program),
        "-m",
        str(model),
        "-c",
        str(context),
        "-ub",
        str(batch),
        "--no-warmup",
        "-v",
    ]
    argv += ["--port", str(free_port("127.0.0.1")), "--threads", "1"]
    server = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(DEADLINE_S, server.kill)
    watchdog.start()
    output, cache, compute = "", None, None
    try:
        assert server.stdout
        for line in server.stdout:
            output += line
            cache = cache or re.search(r"kv_cache: size = +([\d.]+) MiB", line)
            compute = compute or re.search(r"compute buffer size = +([\d.]+) MiB", line)
            if cache and compute:
                return float(cache[1]) + float(compute[1])
            if "listening on" in line:
                break
    finally:
        watchdog.cancel()
        server.kill()
        server.communicate()
    pytest.fail(f"llama-server logged no sizes:\n{output}")


@pytest.mark.parametrize(
    ("heads", "head", "inner", "context"),
    [(4, 64, 768, 512), (4, 64, 768, 4000), (16, 128, 8192, 4096), (16, 64, 1024, 16384)],
)
def test_as_the_real_server_counts(
    heads: int, head: int, inner: int, context: int, real_bins: Path, tmp_path: Path
) -> None:
    model = zeros(tmp_path / "a.gguf", heads, head, inner)
    program = next(real_bins.glob("llama-server*"))
    header = read_header(model)

    def estimated(tokens: int, batch: int = 512) -> float:
        lengths = header.array_lengths
        return context_bytes(header.metadata, lengths, tokens, 0, ubatch=batch) / MIB

    counted = logged(program, model, context)
    assert counted < estimated(context) < 1.3 * counted + 70
    # The cache and the mask of a batch are to the byte; the log has two digits.
    longer = logged(program, model, context + 4096) - counted
    assert estimated(context + 4096) - estimated(context) == pytest.approx(longer, abs=0.03)
    # Of what grows with the batch the log leaves out inputs that are converted.
    larger = counted - logged(program, model, context, 256)
    assert larger - 0.03 < estimated(context) - estimated(context, 256) < 1.2 * larger + 0.03


def test_a_usual_model() -> None:
    bytes_ = estimate()
    assert CACHE_OF_LLAMA_3_8B == 512 * MIB
    # The cache, a compute buffer of 129 MiB, the mask, the tokenizer's tables, the program.
    assert CACHE_OF_LLAMA_3_8B + 129 * MIB < bytes_ < CACHE_OF_LLAMA_3_8B + 330 * MIB
    assert estimate(8192) - bytes_ == CACHE_OF_LLAMA_3_8B + 4096 * 512 * 2


def test_the_default_context_is_what_the_server_takes() -> None:
    assert estimate(None) == estimate(4096)
    assert estimate(None, context_length=512) == estimate(512, context_length=512)


@pytest.mark.parametrize(
    ("changes", "cache"),
    [
        ({"attention__head_count_kv": 32}, 4.0),
        ({"attention__head_count_kv": (8,) * 16 + (0,) * 16}, 0.5),
        ({"attention__key_length": 256, "attention__value_length": 128}, 1.5),
        # Four sequences of a small window take fewer cells, where the file says which layers.
        ({"attention__sliding_window": 128}, 1.0),
        (
            {
                "attention__sliding_window": 128,
                "attention__sliding_window_pattern": (True, False) * 16,
            },
            0.5 + 0.5 * 1024 / 4096,
        ),
        (
            {
                "attention__sliding_window": 1024,
                "attention__sliding_window_pattern": (True, False) * 16,
            },
            1.0,
        ),
    ],
)
def test_layers_that_differ(changes: dict[str, Any], cache: float) -> None:
    assert estimate(**changes) - estimate() == (cache - 1) * CACHE_OF_LLAMA_3_8B


def test_states_and_experts_count() -> None:
    state: dict[str, Any] = {"ssm__state_size": 128, "ssm__inner_size": 8192, "ssm__conv_kernel": 4}
    assert estimate(**state) - estimate() == 32 * 4 * 4 * (128 * 8192 + 3 * 8192)
    experts: dict[str, Any] = {"expert_used_count": 8, "expert_feed_forward_length": 2048}
    assert estimate(**experts) > estimate()


@pytest.mark.parametrize("key", ["block_count", "embedding_length"])
def test_without_the_essentials_it_is_a_share_of_the_file(key: str) -> None:
    guess = context_bytes({}, {}, 4096, 8 * GB)
    assert 2 * GB < guess < 3 * GB
    assert context_bytes({}, {}, 16384, 8 * GB) > 3 * guess
    absurdities: tuple[Any, ...] = (0, -1, 1 << 50, "many", (1, "x"), 1.5)
    for absurd in absurdities:
        assert estimate(size=8 * GB, **{key: absurd}) == guess
    # It is no less than what real models take.
    assert context_bytes({}, {}, 4096, 4_700_000_000) > estimate()


KEYS = st.sampled_from([key for key in LLAMA_3_8B if key.startswith("llama.")])
SCALARS = st.integers() | st.booleans() | st.text(max_size=3) | st.floats()


@given(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=40).map(tuple)),
    st.none() | st.integers(1, 1 << 27),
)
def test_whatever_a_header_says_it_is_a_number(
    changes: dict[str, Value], context: int | None
) -> None:
    assert context_bytes({**LLAMA_3_8B, **changes}, LENGTHS, context, GB) >= 64 * MIB


@pytest.mark.parametrize("available", [0, 1 << 20, 4 * GB, 16 * GB, 256 * GB])
def test_room_is_left_for_the_prompt_cache(available: int) -> None:
    assert usable(available) + cache_mib(available) * MIB == available
    assert usable(available) >= available * 3 // 4
