#!/usr/bin/env python3
"""A convert_hf_to_gguf.py that needs the standard library only and takes milliseconds.

The GGUF it writes is valid and depends on every byte and name in the checkpoint's folder, which
are listed under `tiny.staged`. Text settings in config.json whose keys start with "tiny." become
metadata. Code in the folder is run, as the real converter's trust_remote_code would. A pipe named
as "tiny.gate.convert" is read to its end first, so a test decides how long a conversion takes;
llama-quantize and llama-server look for "tiny.gate.quantize" and "tiny.gate.serve" likewise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import runpy
import struct
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger("hf-to-gguf")

U32, F32, I32, STRING, ARRAY = 4, 6, 5, 8, 9
"""Numbers of the GGUF format for value types."""
TENSOR_TYPE = {"f32": 0, "f16": 1, "bf16": 30}
FILE_TYPE = {"f32": 0, "f16": 1, "bf16": 32}
ALIGNMENT = 32
VOCABULARY, HIDDEN = 4, 256


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert a checkpoint to a tiny GGUF file")
    parser.add_argument("model", type=Path, help="directory containing the checkpoint")
    parser.add_argument("--outfile", type=Path, required=True, help="path to write to")
    parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "auto"], default="auto")
    parser.add_argument("--model-name", help="name of the model; default: its directory's")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


def files_of(folder: Path) -> list[str]:
    """The names of all files below `folder`, links included, sorted, with forward slashes."""
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def run_remote_code(folder: Path, names: list[str]) -> None:
    """Execute every Python file of the checkpoint, and each module that an auto_map names."""
    modules = {name for name in names if name.endswith(".py")}
    for name in names:
        if name.endswith(".json"):
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            auto_map = content.get("auto_map", {}) if isinstance(content, dict) else {}
            for entry in auto_map.values():
                classes = entry if isinstance(entry, list) else [entry]
                modules |= {f"{word.split('.')[0]}.py" for word in classes if word}
    for module in sorted(modules):
        runpy.run_path(str(folder / module))


def safetensors_dtype(path: Path) -> str:
    """The type of a file's first tensor; ValueError where the file is damaged."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 + size:
        raise ValueError(f"{path.name}: header is truncated")
    tensors = json.loads(content[8 : 8 + size])
    tensors.pop("__metadata__", None)
    if len(content) != 8 + size + max(tensor["data_offsets"][1] for tensor in tensors.values()):
        raise ValueError(f"{path.name}: data is truncated")
    return str(next(iter(tensors.values()))["dtype"])


def outtype_of(folder: Path, names: list[str], wanted: str) -> str:
    """`wanted`, or for "auto" the 16-bit type nearest to the checkpoint's own."""
    dtypes = [safetensors_dtype(folder / name) for name in names if name.endswith(".safetensors")]
    if not dtypes:
        raise FileNotFoundError(f"no safetensors file in {folder}")
    if wanted != "auto":
        return wanted
    return "f16" if dtypes[0] == "F16" else "bf16"


def digest_of(folder: Path, names: list[str]) -> bytes:
    digest = hashlib.sha256()
    for name in names:
        digest.update(hashlib.sha256(name.encode() + b"\0" + (folder / name).read_bytes()).digest())
    return digest.digest()


def metadata(
    config: dict[str, Any], model_name: str, file_type: int, names: list[str]
) -> dict[str, tuple[int, Any]]:
    """Each key's value type and value; an array's value is (item type, items)."""
    heads = config.get("num_attention_heads", 4)
    return {
        "general.architecture": (STRING, "llama"),
        "general.type": (STRING, "model"),
        "general.name": (STRING, model_name),
        "general.file_type": (U32, file_type),
        "general.quantization_version": (U32, 2),
        "llama.context_length": (U32, config.get("max_position_embeddings", 512)),
        "llama.block_count": (U32, config.get("num_hidden_layers", 1)),
        "llama.embedding_length": (U32, config.get("hidden_size", HIDDEN)),
        "llama.feed_forward_length": (U32, config.get("intermediate_size", 2 * HIDDEN)),
        "llama.attention.head_count": (U32, heads),
        "llama.attention.head_count_kv": (U32, config.get("num_key_value_heads", heads)),
        "llama.attention.layer_norm_rms_epsilon": (F32, config.get("rms_norm_eps", 1e-5)),
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, ["<unk>", "<s>", "</s>", "a"])),
        "tokenizer.ggml.scores": (ARRAY, (F32, [0.0, 0.0, 0.0, -1.0])),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [2, 3, 3, 1])),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tiny.staged": (ARRAY, (STRING, names)),
        **{
            key: (STRING, value)
            for key, value in config.items()
            if key.startswith("tiny.") and isinstance(value, str)
        },
    }


def packed_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def packed(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return packed_text(value)
    if kind == ARRAY:
        item_kind, items = value
        header = struct.pack("<IQ", item_kind, len(items))
        return header + b"".join(packed(item_kind, item) for item in items)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f"}[kind], value)


def tensor_data(digest: bytes, name: str, count: int, outtype: str) -> bytes:
    """`count` numbers in -0.5..0.5 that follow from the digest, exact in every type."""
    blocks = [hashlib.sha256(digest + f"{name} {i}".encode()).digest() for i in range(count // 32)]
    values = [(byte - 128) / 256 for byte in b"".join(blocks)]
    if outtype == "bf16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{count}{'e' if outtype == 'f16' else 'f'}", *values)


def gguf(keys: dict[str, tuple[int, Any]], digest: bytes, outtype: str) -> bytes:
    """A whole GGUF v3 file; one-dimensional tensors stay f32, as in real conversions."""
    tensors = {
        "token_embd.weight": ([HIDDEN, VOCABULARY], outtype),
        "blk.0.attn_norm.weight": ([HIDDEN], "f32"),
        "output_norm.weight": ([HIDDEN], "f32"),
    }
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, (kind, value) in keys.items():
        header += packed_text(key) + struct.pack("<I", kind) + packed(kind, value)
    data = b""
    for name, (shape, dtype) in tensors.items():
        header += packed_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", TENSOR_TYPE[dtype], len(data))
        data += tensor_data(digest, name, math.prod(shape), dtype)
        data += bytes(-len(data) % ALIGNMENT)
    return header + bytes(-len(header) % ALIGNMENT) + data


def write(path: Path, content: bytes) -> None:
    """Write in steps, with a progress meter that rewrites its line."""
    steps = 4
    with open(path, "wb") as file:
        for step in range(1, steps + 1):
            file.write(content[len(content) * (step - 1) // steps : len(content) * step // steps])
            done = f"{step / steps:4.0%}|{'█' * step:<{steps}}| {file.tell()}/{len(content)}"
            print(f"\rWriting: {done} [00:00<00:00]", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO)
    folder: Path = args.model
    if not folder.is_dir():
        logger.error("Error: %s is not a directory", folder)
        sys.exit(1)
    logger.info("Loading model: %s", folder.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "tiny.gate.convert" in config:
        Path(config["tiny.gate.convert"]).read_bytes()
    names = files_of(folder)
    run_remote_code(folder, names)
    outtype = outtype_of(folder, names, args.outtype)
    keys = metadata(config, args.model_name or folder.name, FILE_TYPE[outtype], names)
    logger.info("Set model quantization version")
    write(args.outfile, gguf(keys, digest_of(folder, names), outtype))
    logger.info("Model successfully exported to %s", args.outfile)


if __name__ == "__main__":
    main()
