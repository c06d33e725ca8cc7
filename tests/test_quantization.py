from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

from tasks.errors import ModelError, Refused
from tasks.gguf_header import read_header
from tasks.quantization import (
    QUANTIZATIONS,
    USUAL,
    default_intermediate,
    file_type_name,
    parse_quantization,
    safetensors_dtypes,
)


def llama_quantize(bins: Path, *arguments: object) -> tuple[int, str]:
    """Exit status and output of the real tool."""
    command = [str(bins / "llama-quantize"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def add_llama_settings(writer: gguf.GGUFWriter, layers: int, width: int, hidden: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(width // 128)
    writer.add_head_count_kv(width // 512 or 1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")


def llama_shapes(layers: int, width: int, kv: int, hidden: int, vocab: int) -> dict[str, list[int]]:
    shapes = {"token_embd": [vocab, width], "output_norm": [width], "output": [vocab, width]}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm": [width],
            f"blk.{layer}.attn_q": [width, width],
            f"blk.{layer}.attn_k": [kv, width],
            f"blk.{layer}.attn_v": [kv, width],
            f"blk.{layer}.attn_output": [width, width],
            f"blk.{layer}.ffn_norm": [width],
            f"blk.{layer}.ffn_gate": [hidden, width],
            f"blk.{layer}.ffn_up": [hidden, width],
            f"blk.{layer}.ffn_down": [width, hidden],
        }
    return shapes


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, 256 wide, random weights."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.f16.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_llama_settings(writer, layers=1, width=256, hidden=512)
    writer.add_vocab_size(64)
    randomness = np.random.default_rng(0)
    for name, shape in llama_shapes(1, width=256, kv=128, hidden=512, vocab=64).items():
        kind = np.float32 if len(shape) == 1 else np.float16
        writer.add_tensor(f"{name}.weight", randomness.normal(size=shape).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sparse_llama_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header of an 8B Llama before 16 GB of zeros that take no room on the disk."""
    path = tmp_path_factory.mktemp("sparse") / "llama-8b.f16.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_llama_settings(writer, layers=32, width=4096, hidden=14336)
    writer.add_vocab_size(128256)
    data = 0
    for name, shape in llama_shapes(32, 4096, kv=1024, hidden=14336, vocab=128256).items():
        kind = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        size = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(f"{name}.weight", shape, kind, size)
        data += size  # all are multiples of the alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    with open(path, "rb+") as file:
        file.truncate(start + data)
    return path


def test_the_table_is_the_list_of_the_real_tool(real_bins: Path) -> None:
    _, help_text = llama_quantize(real_bins, "--help")
    listed = re.findall(r"^ +(\d+)  or  (\S+) *:", help_text, re.MULTILINE)
    table = {row.name: row.file_type for row in QUANTIZATIONS.values()}
    aliases = {alias: row.file_type for row in QUANTIZATIONS.values() for alias in row.aliases}
    assert {name.lower(): int(number) for number, name in listed} == table | aliases


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_real_tool_agrees_on_what_needs_an_importance_matrix(
    name: str, real_bins: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.gguf"
    status, log = llama_quantize(real_bins, tiny_llama, output, name, 1)
    if QUANTIZATIONS[name].needs_imatrix:
        assert status != 0
        assert "requires an importance matrix" in log
    else:
        assert status == 0, log
        assert read_header(output).quantization == name.upper()


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_bits_per_weight_are_those_of_an_8b_llama(
    name: str, real_bins: Path, sparse_llama_8b: Path
) -> None:
    _, log = llama_quantize(real_bins, "--dry-run", sparse_llama_8b, name)
    [(mebibytes, bits)] = re.findall(r"quant size *= *([\d.]+) MiB \(([\d.]+) BPW\)", log)
    assert QUANTIZATIONS[name].bits_per_weight == float(bits)
    parameters = read_header(sparse_llama_8b).parameters
    expected = pytest.approx(float(mebibytes) * 2**20, rel=0.01)
    assert QUANTIZATIONS[name].file_size(parameters) == expected
    assert ("require an imatrix" in log) == QUANTIZATIONS[name].needs_imatrix


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("q4_k_m", "q4_k_m"),
        ("Q4_K_M", "q4_k_m"),
        ("q4-k-m", "q4_k_m"),
        (" Q4_K ", "q4_k_m"),
        ("q3-K", "q3_k_m"),
        ("q5_k", "q5_k_m"),
        ("IQ2-XXS", "iq2_xxs"),
        ("BF16", "bf16"),
    ],
)
def test_spellings(text: str, name: str) -> None:
    assert parse_quantization(text) == name


@pytest.mark.parametrize(
    ("text", "nearest"), [("q4_k_n", "q4_k"), ("q4km", "q4_k_m"), ("fp16", "f16"), ("q80", "q8_0")]
)
def test_an_unknown_type_is_refused_with_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(Refused, match=f"unknown quantization '{text}'.*did you mean '{nearest}"):
        parse_quantization(text)


@pytest.mark.parametrize("text", ["", "copy", "zzz", "15"])
def test_what_is_no_type_is_refused_with_the_usual_ones(text: str) -> None:
    with pytest.raises(Refused) as failure:
        parse_quantization(text)
    assert ", ".join(USUAL) in failure.value.fix


def test_usual_types_work_without_an_importance_matrix() -> None:
    assert not [name for name in USUAL if QUANTIZATIONS[name].needs_imatrix]


def test_file_types_are_those_of_the_reference() -> None:
    for file_type in gguf.LlamaFileType:
        expected = file_type.name.replace("MOSTLY_", "").replace("ALL_", "")
        if expected != "GUESSED":
            assert file_type_name(int(file_type)) == expected
            assert file_type_name(int(file_type) | int(gguf.LlamaFileType.GUESSED)) == expected
    assert file_type_name(200) == "file type 200"


@pytest.mark.parametrize(
    ("dtypes", "intermediate"),
    [
        (["BF16"], "bf16"),
        (["BF16", "F32"], "bf16"),
        (["bfloat16"], "bf16"),
        (["torch.bfloat16"], "bf16"),
        ("bfloat16", "bf16"),
        (["F16"], "f16"),
        (["F32"], "f16"),
        ("float32", "f16"),
        ([], "f16"),
    ],
)
def test_bf16_checkpoints_keep_their_range(dtypes: list[str], intermediate: str) -> None:
    assert default_intermediate(dtypes) == intermediate


def safetensors(path: Path, header: object, data: int = 0, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<Q", len(raw) if length is None else length)
    path.write_bytes(start + raw + bytes(data))
    return path


def test_dtypes_of_a_safetensors_file(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
    path = tmp_path / "model.safetensors"
    assert safetensors_dtypes(safetensors(path, header, data=12)) == {"BF16", "F32"}
    with pytest.raises(ModelError, match=r"it has \d+ bytes, its header says \d+ are needed"):
        safetensors_dtypes(safetensors(path, header, data=11))
    assert safetensors_dtypes(safetensors(path, {})) == set()


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"3", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b"{}", 3),
        (b"{}", 2**63),
        ({"a": 1}, None),
        ({"a": []}, None),
        ({"a": {"dtype": "F32"}}, None),
        ({"a": {**ENTRY, "dtype": 3}}, None),
        ({"a": {**ENTRY, "dtype": []}}, None),
        ({"a": {**ENTRY, "data_offsets": [0]}}, None),
        ({"a": {**ENTRY, "data_offsets": [0, "4"]}}, None),
        (b'{"a": {"dtype": "F32", "data_offsets": [0, NaN]}}', None),
        (b'{"a": {"dtype": "F32", "data_offsets": [0, Infinity]}}', None),
    ],
)
def test_a_damaged_safetensors_file(header: object, length: int | None, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "model.safetensors", header, 4, length)
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        safetensors_dtypes(path)


def test_no_safetensors_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelError, match="is not a file"):
            safetensors_dtypes(path)
    short = tmp_path / "short"
    short.write_bytes(b"abc")
    with pytest.raises(ModelError, match="truncated"):
        safetensors_dtypes(short)
    endless = safetensors(tmp_path / "endless", b"{}", length=2**31)
    with open(endless, "rb+") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match="no possible length"):
        safetensors_dtypes(endless)
