"""A checkpoint of a few kilobytes in Hugging Face layout, for the tiny converter."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path

VOCABULARY, HIDDEN = 4, 256
_TORCH_NAME = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def make_checkpoint(folder: Path, seed: int = 0, dtype: str = "F16") -> Path:
    """Write config.json, tokenizer.json and model.safetensors (F16, BF16 or F32) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": _TORCH_NAME[dtype],
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-05,
        "vocab_size": VOCABULARY,
    }
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    tokenizer = {"version": "1.0", "model": {"type": "BPE", "vocab": words, "merges": []}}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(_safetensors(random.Random(seed), dtype))
    return folder


def _safetensors(source: random.Random, dtype: str) -> bytes:
    """Two tensors of random multiples of 1/256 in -0.5..0.5, exact in all three types."""
    shapes = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        values = [source.randint(-128, 128) / 256 for _ in range(math.prod(shape))]
        start = len(data)
        data += b"".join(_packed(value, dtype) for value in values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _packed(value: float, dtype: str) -> bytes:
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    return struct.pack({"F16": "<e", "F32": "<f"}[dtype], value)
