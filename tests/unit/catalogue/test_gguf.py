import contextlib
import io
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.catalogue.gguf import BLOCKS, ELEMENTS_COUNT_MAX, BrokenModelFile, Header, parse_header, read_header
from headwater.errors import OperatorError
from tests.unit.catalogue.gguf_files import (
    ARRAY,
    METADATA,
    STRING,
    TENSORS,
    U32,
    U64,
    TensorPlan,
    build_gguf,
    with_metadata,
)

MUTATIONS_COUNT = 12_000


def parse(data: bytes, size_bytes: int | None = None) -> Header:
    return parse_header(io.BytesIO(data), len(data) if size_bytes is None else size_bytes, "tiny.gguf")


def test_a_sound_header_tells_what_serving_needs() -> None:
    data = build_gguf()
    header = parse(data)
    assert (header.version, header.architecture, header.context_tokens) == (3, "qwen2", 512)
    assert header.chat_template == METADATA["tokenizer.chat_template"][1]
    assert header.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2  # layers × KV heads × (key + value) × 2 bytes
    assert [tensor.size_bytes for tensor in header.tensors] == [25_600, 288, 128]
    assert header.tensors[-1].start + header.tensors[-1].size_bytes == len(data)


def test_arrays_of_one_number_per_layer_are_summed() -> None:
    """Models with mixed layers state their KV heads layer by layer; a layer without attention has none."""
    header = parse(build_gguf(with_metadata(qwen2__attention__head_count_kv=(ARRAY, (U32, [2, 0, 4])))))
    assert header.kv_bytes_per_token == (2 + 0 + 4) * (16 + 16) * 2


def test_stated_key_and_value_lengths_win_over_the_embedding() -> None:
    metadata = with_metadata(qwen2__attention__key_length=(U32, 128), qwen2__attention__value_length=(U32, 96))
    assert parse(build_gguf(metadata)).kv_bytes_per_token == 2 * 2 * (128 + 96) * 2


def test_a_model_without_a_template_says_so() -> None:
    assert parse(build_gguf(with_metadata(tokenizer__chat_template=None))).chat_template is None


def test_a_vocabulary_larger_than_the_window_is_walked_over() -> None:
    words = [f"token number {n}" * (1 + n % 7) for n in range(60_000)]
    header = parse(build_gguf(with_metadata(tokenizer__ggml__tokens=(ARRAY, (STRING, words)))))
    assert header.metadata["tokenizer.ggml.tokens"] is None
    assert header.architecture == "qwen2"


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"", "empty"),
        (struct.pack("<Q", 1000) + b'{"__metadata__":', "safetensors"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x80\x02}q\x00" + bytes(60), "pickle"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 1, 1), "version is 4"),
        (b"tjgg" + bytes(60), "before GGUF"),
        (b"nothing known at all", "unknown file"),
    ],
)
def test_a_foreign_file_is_named_for_what_it_is(start: bytes, says: str) -> None:
    with pytest.raises(BrokenModelFile, match=says) as caught:
        parse(start)
    assert caught.value.now


def array_count_lie(count: int, type_number: int) -> bytes:
    """A file whose last metadata array claims more elements than there are."""
    data = build_gguf({"a": (ARRAY, (type_number, []))}, ())
    return data[: data.index(b"a") + 1] + struct.pack("<IIQ", ARRAY, type_number, count)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (build_gguf(tensors_count=2**60), "claims .* tensors"),
        (build_gguf(pairs_count=2**63), "claims .* metadata entries"),
        (build_gguf(pairs_count=65_536), "ends inside its header|unknown type|claims"),
        (array_count_lie(2**62, STRING), f"claims .* {ELEMENTS_COUNT_MAX:,} are the most"),
        (array_count_lie(2**20, STRING), "ends inside its header"),
        (array_count_lie(2**20, U64), "ends inside its header"),
        (build_gguf(with_metadata(x=(ARRAY, (ARRAY, [(U32, [1])])))), "nested type"),
        (build_gguf(with_metadata(general__architecture=None)), "architecture"),
        (build_gguf(with_metadata(qwen2__block_count=None)), "block_count"),
        (build_gguf(with_metadata(qwen2__attention__head_count=(U32, 0))), "is 0"),
        (build_gguf(with_metadata(qwen2__context_length=(STRING, "many"))), "context_length"),
        (build_gguf(with_metadata(general__type=(STRING, "adapter"))), "adapter"),
        (build_gguf(with_metadata(general__architecture=(STRING, "clip"))), "vision"),
        (build_gguf(with_metadata(split__count=(U32, 3))), "one of 3 pieces"),
        (build_gguf(with_metadata(general__alignment=(U32, 48))), "alignment"),
        (build_gguf(with_metadata(general__alignment=(U32, 0))), "alignment"),
        (build_gguf(tensors=()), "no tensors"),
        (build_gguf(tensors=(*TENSORS, TENSORS[0])), "name occurs twice"),
        (build_gguf(tensors=(TensorPlan("t", (64,), 5, 256),)), "unknown type 5"),
        (build_gguf(tensors=(TensorPlan("t", (100,), 12, 256),)), "impossible shape"),
        (build_gguf(tensors=(TensorPlan("t", (2**32, 2**32), 0, 256),)), "impossible shape"),
        (build_gguf(tensors=(TensorPlan("t", (0,), 0, 256),)), "impossible shape"),
        (build_gguf(tensors=(TensorPlan("t", (1, 1, 1, 1, 1), 0, 256),)), "dimensions"),
        (build_gguf(tensors=(TensorPlan("t", (64,), 0, 256, offset=8),)), "not aligned"),
        (build_gguf(tensors=(TensorPlan("t", (64,), 0, 32),)), "ends at byte"),
    ],
)
def test_a_header_that_lies_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(BrokenModelFile, match=says):
        parse(data)


def test_an_offset_beyond_the_file_is_refused() -> None:
    data = build_gguf()
    place = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8 + 4
    for offset in (32 * 2**40, 2**64 - 32, len(data) + -len(data) % 32):
        with pytest.raises(BrokenModelFile, match="but the file ends at"):
            parse(data[:place] + struct.pack("<Q", offset) + data[place + 8 :])


def test_a_file_cut_anywhere_is_refused() -> None:
    data = build_gguf()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        with pytest.raises(BrokenModelFile):
            parse(data[:length])


def test_a_duplicate_key_is_refused() -> None:
    data = build_gguf({"ab": (U32, 1), "ac": (U32, 2)}, ())
    with pytest.raises(BrokenModelFile, match="'ab' occurs twice"):
        parse(data.replace(b"ac", b"ab"))


def test_mutated_headers_are_never_accepted_with_a_range_outside_the_file() -> None:
    """Each ends in a header whose tensors lie in the file or in the one declared error, within bounded memory."""
    whole = build_gguf()
    header_bytes = whole.index(b"w" * 1000)
    rng = random.Random(19)
    accepted_count = 0
    tracemalloc.start()
    try:
        for _ in range(MUTATIONS_COUNT):
            data = mutate(rng, bytearray(whole), header_bytes)
            try:
                header = parse(data)
            except BrokenModelFile:
                continue
            accepted_count += 1
            check_ranges(header, len(data))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert accepted_count > 100, "the mutations must also reach the far side of the parser"
    assert peak_bytes < 64 * 2**20


def mutate(rng: random.Random, data: bytearray, header_bytes: int) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(4, header_bytes)
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                extreme = rng.choice((0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, 2**64 - 32))
                data[at : at + 8] = struct.pack("<Q", extreme)
            case 3:
                del data[at : at + rng.randrange(1, 40)]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def check_ranges(header: Header, size_bytes: int) -> None:
    for tensor in header.tensors:
        assert tensor.start >= 0
        assert tensor.size_bytes > 0
        assert tensor.start + tensor.size_bytes <= size_bytes


@given(st.binary(max_size=300))
def test_arbitrary_bytes_meet_only_the_declared_error(tail: bytes) -> None:
    for data in (tail, b"GGUF\x03\x00\x00\x00" + tail):
        with pytest.raises(BrokenModelFile):
            parse(data)


@given(
    st.sampled_from(sorted(BLOCKS)),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    st.integers(0, 2**64 - 1),
)
def test_any_tensor_place_is_inside_the_file_or_refused(type_number: int, dimensions: list[int], offset: int) -> None:
    plan = TensorPlan("t", dimensions, type_number, 0, offset)
    data = build_gguf(tensors=(plan,))
    with contextlib.suppress(BrokenModelFile):  # the other allowed outcome
        check_ranges(parse(data), len(data))


def test_a_path_that_is_no_readable_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BrokenModelFile, match="is a directory"):
        read_header(tmp_path)
    with pytest.raises(OperatorError, match="can't be read"):
        read_header(tmp_path / "absent.gguf")
