"""How much memory serving a model takes beside its file, from what its header says."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.arguments import DEFAULT_CONTEXT, cache_mib
from tasks.gguf_format import Value

_SLOTS = 4
"""Sequences that llama-server keeps unless told otherwise; they share the cache's cells."""
_CELLS = 256
"""llama.cpp rounds the cache up to multiples of it."""
_UBATCH = 512
_BATCH = 2048
"""llama-server's default; the physical batch is never larger."""
_F16, _F32 = 2, 4
_PROCESS = 64 << 20
"""Program, threads and buffers of no particular size (measured: 35 MB)."""
_PER_TOKEN = 200
"""Bytes in the tables of the tokenizer per token, or per merge of two (measured: 167)."""
_MOST_LAYERS = 4096
_LARGEST = 1 << 40
"""Above it a number in a header is a mistake, and no estimate."""


def usable(available: int) -> int:
    """Bytes of `available` memory for a model and its context.

    What llama-server's prompt cache may grow to is left out; until it is full that is the
    headroom for everything else.
    """
    return max(0, available - (cache_mib(available) << 20))


def context_bytes(
    metadata: Mapping[str, Value],
    array_lengths: Mapping[str, int],
    context: int | None,
    file_size: int,
    *,
    ubatch: int = _UBATCH,
) -> int:
    """Bytes that llama-server takes beside the weights for `context` tokens.

    None is the default context. Without the essential metadata it is a share of the file's size.
    Rather too much than too little: layers with a window count in full unless the file says
    which they are, layers without attention both as attention and as state.
    """
    architecture = metadata.get("general.architecture")
    model = _Numbers(metadata, architecture if isinstance(architecture, str) else "")
    trained = model.one("context_length", DEFAULT_CONTEXT)
    tokens = context or min(DEFAULT_CONTEXT, trained or DEFAULT_CONTEXT)
    layers, width = model.one("block_count", 0), model.one("embedding_length", 0)
    if not layers or not width:
        return _guess(file_size, tokens)
    ubatch = min(ubatch, _BATCH, tokens)
    vocabulary = array_lengths.get("tokenizer.ggml.tokens") or model.one("vocab_size", 0)
    merges = array_lengths.get("tokenizer.ggml.merges", vocabulary)
    return (
        _cache(model, layers, width, tokens, ubatch)
        + _state(model, layers, width)
        + _compute(model, width, tokens, ubatch)
        + _SLOTS * (vocabulary + width) * _F32 * 2
        + _PER_TOKEN * (vocabulary + merges)
        + _PROCESS
    )


class _Numbers:
    """The numbers of an architecture; what is absent or absurd is the default."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self._metadata, self._architecture = metadata, architecture

    def values(self, key: str) -> tuple[int, ...]:
        """One number, or one per layer; () where there is none."""
        value = self._metadata.get(f"{self._architecture}.{key}")
        values = value if isinstance(value, tuple) else (value,)
        good = [each for each in values if isinstance(each, int) and 0 <= each <= _LARGEST]
        return tuple(good) if len(good) == len(values) else ()

    def one(self, key: str, default: int) -> int:
        """The largest of the layers' numbers."""
        return max(self.values(key), default=default)


def _padded(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS


def _cache(model: _Numbers, layers: int, width: int, tokens: int, ubatch: int) -> int:
    """Keys and values of every token in 16 bits."""
    heads = model.one("attention.head_count", 0 if model.values("ssm.state_size") else 1)
    head = width // max(1, heads)
    per_head = model.one("attention.key_length", head) + model.one("attention.value_length", head)
    kv_heads = model.values("attention.head_count_kv") or (heads,)
    window = model.one("attention.sliding_window", 0)
    windowed = model.values("attention.sliding_window_pattern")
    cells = _padded(tokens)
    short = min(cells, _padded(window * _SLOTS + ubatch)) if window else cells
    is_short = windowed if len(windowed) == layers else (False,)

    def of(values: tuple[int, ...], layer: int) -> int:
        return values[layer] if len(values) == layers else max(values)

    return sum(
        (short if of(is_short, layer) else cells) * of(kv_heads, layer) * per_head * _F16
        for layer in range(min(layers, _MOST_LAYERS))
    )


def _state(model: _Numbers, layers: int, width: int) -> int:
    """What layers without attention (Mamba, RWKV) keep per sequence, in 32 bits."""
    state, inner = model.one("ssm.state_size", 0), model.one("ssm.inner_size", 0)
    convolution = model.one("ssm.conv_kernel", 0)
    numbers = state * inner
    numbers += max(0, convolution - 1) * (inner + 2 * model.one("ssm.group_count", 0) * state)
    numbers += width * model.one("wkv.head_size", 0)
    return numbers * layers * _SLOTS * _F32


def _compute(model: _Numbers, width: int, tokens: int, ubatch: int) -> int:
    """The buffer of one layer at work on a physical batch, with flash attention.

    4 x width + 3 x feed-forward is to the byte what llama-server logs for Llama; the mask has
    16 bits. Experts work side by side. 16 bits more of the feed-forward: the input of a
    multiplication, converted.
    """
    used = model.one("expert_used_count", 0)
    inner = max(
        model.one("feed_forward_length", 4 * width),
        model.one("expert_feed_forward_length", 0) * used,
    )
    numbers = (4 + 2 * used) * width + 3 * inner
    return ubatch * (numbers * _F32 + inner * _F16 + _padded(tokens) * _F16)


def _guess(file_size: int, tokens: int) -> int:
    """A quarter of the file at the default context: less than old models, more than most."""
    return (256 << 20) + (file_size // 4 + (128 << 20)) * tokens // DEFAULT_CONTEXT
