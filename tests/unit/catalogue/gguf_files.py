"""Small GGUF files for tests, right ones and nearly right ones."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", 5: "i", F32: "f", BOOL: "?", U64: "Q", 11: "q", 12: "d"}

Typed = tuple[int, object]  # (GGUF type, value); an array's value is (element type, elements)

METADATA: Mapping[str, Typed] = {
    "general.architecture": (STRING, "qwen2"),
    "general.name": (STRING, "Tiny"),
    "qwen2.block_count": (U32, 2),
    "qwen2.context_length": (U32, 512),
    "qwen2.embedding_length": (U32, 64),
    "qwen2.attention.head_count": (U32, 4),
    "qwen2.attention.head_count_kv": (U32, 2),
    "qwen2.rope.freq_base": (F32, 1e6),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, [f"token {n}" for n in range(100)])),
    "tokenizer.ggml.scores": (ARRAY, (F32, [0.5] * 100)),
    "tokenizer.ggml.add_bos_token": (BOOL, False),
    "tokenizer.chat_template": (STRING, "{% for message in messages %}{{ message.content }}{% endfor %}"),
}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor as the header will describe it; offset: None puts it after the one before, aligned."""

    name: str
    dimensions: Sequence[int]
    type_number: int = 0
    data_bytes: int = 0
    offset: int | None = None


TENSORS = (
    TensorPlan("token_embd.weight", (64, 100), 0, 64 * 100 * 4),
    TensorPlan("blk.0.attn_q.weight", (256, 2), 12, 2 * 144),
    TensorPlan("output_norm.weight", (64,), 1, 128),
)


def build_gguf(
    metadata: Mapping[str, Typed] = METADATA,
    tensors: Sequence[TensorPlan] = TENSORS,
    *,
    version: int = 3,
    tensors_count: int | None = None,
    pairs_count: int | None = None,
    fill: bytes = b"w",
) -> bytes:
    """A GGUF file; the counts can be made to lie. fill: one byte, repeated as the weights."""
    header = [b"GGUF", struct.pack("<I", version)]
    header.append(struct.pack("<QQ", _or(tensors_count, len(tensors)), _or(pairs_count, len(metadata))))
    for key, (type_number, value) in metadata.items():
        header += [_string(key), struct.pack("<I", type_number), encode(type_number, value)]
    end = 0
    for plan in (placed := _place(tensors)):
        dimensions = struct.pack(f"<I{len(plan.dimensions)}Q", len(plan.dimensions), *plan.dimensions)
        header += [_string(plan.name), dimensions, struct.pack("<IQ", plan.type_number, plan.offset)]
    for plan in placed:
        if plan.data_bytes:  # an offset may lie; only what has data takes room
            end = max(end, (plan.offset or 0) + plan.data_bytes)
    written = b"".join(header)
    return written + bytes(-len(written) % 32) + fill * end


def with_metadata(**changes: Typed | None) -> dict[str, Typed]:
    """METADATA with some keys changed (`__` stands for `.`) or, given None, left out."""
    changed = dict(METADATA)
    for written, typed in changes.items():
        key = written.replace("__", ".")
        if typed is None:
            del changed[key]
        else:
            changed[key] = typed
    return changed


def encode(type_number: int, value: object) -> bytes:
    """One metadata value as GGUF stores it."""
    if type_number == STRING:
        return _string(str(value))
    if type_number == ARRAY:
        assert isinstance(value, tuple)
        element_type, elements = value
        return struct.pack("<IQ", element_type, len(elements)) + b"".join(encode(element_type, e) for e in elements)
    return struct.pack("<" + _CODES[type_number], value)


def _place(tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
    placed, next_offset = [], 0
    for plan in tensors:
        offset = _or(plan.offset, next_offset)
        placed.append(replace(plan, offset=offset))
        next_offset = offset + plan.data_bytes + -(offset + plan.data_bytes) % 32
    return placed


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
