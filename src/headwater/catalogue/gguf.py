"""Reading a GGUF file's header with suspicion, before an engine is allowed to map the file.

Every count is bounded, and every tensor must lie inside the file: engines have trusted declared sizes and read other
memory (CVE-2026-7482, CVE-2026-27940). The weights themselves are not read.
Source: the GGUF specification, version 3, and ggml's table of block sizes.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from headwater.errors import OperatorError

PAIRS_COUNT_MAX: Final = 65_536
TENSORS_COUNT_MAX: Final = 65_536
ELEMENTS_COUNT_MAX: Final = (
    8 * 2**20
)  # of all arrays together; the largest vocabularies have some 260,000 in each of three
STRING_BYTES_MAX: Final = 4 * 2**20
KEPT_BYTES_MAX: Final = 16 * 2**20  # text kept in memory from one header
KEY_BYTES_MAX: Final = 65_535
ALIGNMENT_MAX: Final = 2**20
_SMALL_ARRAY: Final = 4096  # arrays of numbers up to this length are kept: one number per layer
_WINDOW_BYTES: Final = 2**20

# ggml type → (values in a block, bytes of a block). A type that isn't here can't be measured, so its file is refused.
BLOCKS: Final[Mapping[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2),  # F32 F16
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),  # Q2_K to Q6_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),  # IQ2_XXS … IQ3_S
    22: (256, 82), 23: (256, 136),  # IQ2_S IQ4_XS
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),  # integers of 8 to 64 bits, F64
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),  # IQ1_M … Q1_0
}  # fmt: skip

_SCALARS: Final[Mapping[int, struct.Struct]] = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]

_FOREIGN: Final = (
    (b"PK\x03\x04", "a zip archive (perhaps a PyTorch checkpoint or a wheel)"),
    (b"\x80", "a pickle (perhaps a PyTorch checkpoint)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"<", "a web page; perhaps a login or error page was saved in the model's place"),
    (b"\x89HDF", "an HDF5 file"),
    (b"tjgg", "a GGML file of the time before GGUF"),
    (b"lmgg", "a GGML file of the time before GGUF"),
    (b"fmgg", "a GGML file of the time before GGUF"),
)

Value = int | float | bool | str | tuple[int | float | bool, ...] | None


class BrokenModelFile(OperatorError):
    """A file that is no GGUF model, or one whose header doesn't fit the file."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies: bytes `start` to `start + size_bytes` of the file, always inside it."""

    name: str
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was checked against its file.

    metadata: texts, numbers and short arrays of numbers; None stands for an array that was checked and not kept.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as `qwen2`."""
        return str(self.metadata["general.architecture"])

    @property
    def context_tokens(self) -> int:
        """The context length the model was made for."""
        return self._number("context_length")

    @property
    def chat_template(self) -> str | None:
        """The file's own chat template, or None: without one it is most likely a base model, not made for chat."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache at f16 for one token of context, over all layers.

        An upper bound for models whose layers don't all keep the whole context (sliding windows, recurrent layers).
        """
        layers, heads = self._number("block_count"), self._number("attention.head_count")
        width = self._number("embedding_length") // heads
        written = self.metadata.get(f"{self.architecture}.attention.head_count_kv", heads)
        heads_of_layers = (
            sum(int(count) for count in written) if isinstance(written, tuple) else layers * self._whole(written)
        )
        key_width = self._number("attention.key_length", width)
        return heads_of_layers * (key_width + self._number("attention.value_length", width)) * 2

    def _number(self, key: str, default: int | None = None) -> int:
        """A positive whole number of this architecture; of an array (one per layer) the largest."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return max(int(number) for number in value) if isinstance(value, tuple) and value else self._whole(value)

    @staticmethod
    def _whole(value: Value) -> int:
        if not isinstance(value, int):
            raise TypeError("the parser lets only whole numbers through here")
        return value


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF model, no weights. Raises BrokenModelFile, which names what is wrong."""
    try:
        with path.open("rb") as file:
            return parse_header(file, path.stat().st_size, str(path))
    except IsADirectoryError as error:
        raise BrokenModelFile(
            f"{path} is a directory, not a model file.", now="Name the .gguf file itself; other formats are not served."
        ) from error
    except OSError as error:
        raise OperatorError(
            f"The model file {path} can't be read.", why=f"{error.strerror}.", now="Check the path."
        ) from error


def parse_header(file: BinaryIO, size_bytes: int, name: str) -> Header:
    """Check the header of `file`, `size_bytes` long; `name` stands for it in messages. Raises BrokenModelFile."""
    return _Parser(file, size_bytes, name).header()


class _Parser:
    """Walks the header once, through a window of 1 MiB, so that memory doesn't grow with what the file claims."""

    def __init__(self, file: BinaryIO, size_bytes: int, name: str) -> None:
        self._file, self._size_bytes, self._name = file, size_bytes, name
        self._window, self._window_start, self._at = b"", 0, 0
        self._elements_left, self._kept_left = ELEMENTS_COUNT_MAX, KEPT_BYTES_MAX

    def header(self) -> Header:
        version = self._preamble()
        tensors_count = self._count("tensors", TENSORS_COUNT_MAX)
        pairs_count = self._count("metadata entries", PAIRS_COUNT_MAX)
        metadata: dict[str, Value] = {}
        for _ in range(pairs_count):
            key = self._string("a metadata key", KEY_BYTES_MAX)
            if key in metadata:
                raise self._broken(f"the metadata key {_shown(key)} occurs twice")
            metadata[key] = self._value(key, self._scalar(_U32))
        self._check_metadata(metadata)
        return Header(version, metadata, self._tensors(tensors_count, metadata))

    def _preamble(self) -> int:
        start = self._peek(64)
        if not start:
            raise self._broken("the file is empty")
        if start[:4] != b"GGUF":
            raise self._broken(f"it is {_looks_like(start)}, not GGUF", foreign=True)
        self._at = 4
        version = self._scalar(_U32)
        if version and version & 0xFFFF == 0:
            raise self._broken("it was written for big-endian machines; convert it to little-endian", foreign=True)
        if version not in (2, 3):
            raise self._broken(f"its GGUF version is {version}; versions 2 and 3 are read", foreign=True)
        return version

    def _check_metadata(self, metadata: Mapping[str, Value]) -> None:
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._broken("it doesn't name its architecture")
        kind = metadata.get("general.type", "model")
        if kind != "model" or architecture == "clip":
            what = "projector of a vision model" if architecture == "clip" else _shown(kind)
            raise self._broken(f"it holds no language model but a {what}", foreign=True)
        split = metadata.get("split.count", 0)
        if isinstance(split, int) and split > 1:
            raise self._broken(f"it is one of {split} pieces; join them first (llama-gguf-split --merge)", foreign=True)
        for key in ("context_length", "block_count", "embedding_length", "attention.head_count"):
            self._check_number(metadata, f"{architecture}.{key}", required=True)
        for key in ("attention.head_count_kv", "attention.key_length", "attention.value_length"):
            self._check_number(metadata, f"{architecture}.{key}", required=False)

    def _check_number(self, metadata: Mapping[str, Value], key: str, *, required: bool) -> None:
        if key not in metadata and not required:
            return
        value = metadata.get(key)
        numbers = value if isinstance(value, tuple) else (value,)
        zero_allowed = isinstance(value, tuple)  # a layer without attention has no heads
        if not numbers or not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
            raise self._broken(f"its {_shown(key)} should be a whole number, and is {_shown(value)}")
        if not any(numbers) or not (zero_allowed or all(numbers)):
            raise self._broken(f"its {_shown(key)} is 0")

    def _tensors(self, tensors_count: int, metadata: Mapping[str, Value]) -> tuple[Tensor, ...]:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
            raise self._broken(f"its alignment is {_shown(alignment)}, not a power of two from 8 to {ALIGNMENT_MAX:,}")
        if not tensors_count:
            raise self._broken("it has no tensors (a vocabulary without a model)", foreign=True)
        places = [self._tensor_place(alignment) for _ in range(tensors_count)]
        if len({name for name, _, _ in places}) != len(places):
            raise self._broken("a tensor's name occurs twice")
        data_start = -(-self._at // alignment) * alignment
        tensors = tuple(Tensor(name, data_start + offset, size_bytes) for name, offset, size_bytes in places)
        for tensor in tensors:
            if tensor.start + tensor.size_bytes > self._size_bytes:
                raise self._broken(
                    f"tensor {_shown(tensor.name)} ends at byte {tensor.start + tensor.size_bytes:,}, "
                    f"but the file ends at {self._size_bytes:,}; perhaps its download was cut"
                )
        return tensors

    def _tensor_place(self, alignment: int) -> tuple[str, int, int]:
        """Name, offset within the data and size in bytes of the next tensor."""
        name = self._string("a tensor's name", KEY_BYTES_MAX)
        dimensions_count = self._scalar(_U32)
        if not 1 <= dimensions_count <= 4:
            raise self._broken(f"tensor {_shown(name)} has {dimensions_count} dimensions; 1 to 4 are possible")
        dimensions = [self._scalar(_U64) for _ in range(dimensions_count)]
        type_number, offset = self._scalar(_U32), self._scalar(_U64)
        if type_number not in BLOCKS:
            raise self._broken(f"tensor {_shown(name)} has the unknown type {type_number}")
        values_per_block, block_bytes = BLOCKS[type_number]
        values_count = 1
        for dimension in dimensions:
            values_count *= dimension
        if not 0 < values_count < 2**63 or dimensions[0] % values_per_block:
            raise self._broken(f"tensor {_shown(name)} has the impossible shape {dimensions}")
        if offset % alignment:
            raise self._broken(f"tensor {_shown(name)} is not aligned to {alignment} bytes")
        return name, offset, values_count // values_per_block * block_bytes

    def _value(self, key: str, type_number: int) -> Value:
        if type_number == _STRING:
            return self._string(f"metadata {_shown(key)}", STRING_BYTES_MAX)
        if type_number == _ARRAY:
            return self._array(key)
        if type_number not in _SCALARS:
            raise self._broken(f"metadata {_shown(key)} has the unknown type {type_number}")
        return self._scalar(_SCALARS[type_number])

    def _array(self, key: str) -> Value:
        type_number, count = self._scalar(_U32), self._scalar(_U64)
        if count > self._elements_left:
            raise self._broken(
                f"metadata {_shown(key)} claims {count:,} elements; {ELEMENTS_COUNT_MAX:,} are the most in all"
            )
        self._elements_left -= count
        if type_number == _STRING:
            self._skip_strings(key, count)
            return None
        if type_number not in _SCALARS:
            raise self._broken(f"metadata {_shown(key)} is an array of the unknown or nested type {type_number}")
        scalar = _SCALARS[type_number]
        if count <= _SMALL_ARRAY:
            self._keep(32 * count)  # what a number takes in memory
            return tuple(self._scalar(scalar) for _ in range(count))
        self._skip(count * scalar.size)
        return None

    def _skip_strings(self, key: str, count: int) -> None:
        # 450,000 strings in a common vocabulary: the loop stays inside the window and leaves it only at its edge.
        unpack = _U64.unpack_from
        while count:
            window, start, at = self._window, self._window_start, self._at - self._window_start
            end = len(window) - 8
            while count and 0 <= at <= end:
                length = unpack(window, at)[0]
                if length > STRING_BYTES_MAX:
                    raise self._broken(f"metadata {_shown(key)} holds a string of {length:,} bytes")
                at += 8 + length
                count -= 1
            self._at = start + at
            if self._at > self._size_bytes:
                raise self._cut()
            if count:
                length = self._scalar(_U64)
                if length > STRING_BYTES_MAX:
                    raise self._broken(f"metadata {_shown(key)} holds a string of {length:,} bytes")
                self._skip(length)
                count -= 1

    def _count(self, what: str, most: int) -> int:
        count: int = self._scalar(_U64)
        if count > most:
            raise self._broken(f"it claims {count:,} {what}; {most:,} are the most that are read")
        return count

    def _string(self, what: str, bytes_max: int) -> str:
        length: int = self._scalar(_U64)
        if length > bytes_max:
            raise self._broken(f"{what} claims {length:,} bytes; {bytes_max:,} are the most")
        self._keep(length)
        data = self._peek_exactly(length)
        self._at += length
        return data.decode("utf-8", "replace")

    def _keep(self, size_bytes: int) -> None:
        self._kept_left -= size_bytes
        if self._kept_left < 0:
            raise self._broken(f"its header holds over {KEPT_BYTES_MAX:,} bytes of texts and numbers")

    def _scalar(self, scalar: struct.Struct) -> int:
        data = self._peek_exactly(scalar.size)
        self._at += scalar.size
        value: int = scalar.unpack(data)[0]
        return value

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > self._size_bytes:
            raise self._cut()

    def _peek_exactly(self, count: int) -> bytes:
        data = self._peek(count)
        if len(data) < count:
            raise self._cut()
        return data

    def _peek(self, count: int) -> bytes:
        """The next bytes without moving; fewer at the end of the file."""
        at = self._at - self._window_start
        if not 0 <= at <= len(self._window) - count:
            self._file.seek(self._at)
            self._window, self._window_start, at = self._file.read(max(count, _WINDOW_BYTES)), self._at, 0
        return self._window[at : at + count]

    def _cut(self) -> BrokenModelFile:
        return self._broken(f"it ends inside its header, at byte {self._size_bytes:,}; perhaps its download was cut")

    def _broken(self, what: str, *, foreign: bool = False) -> BrokenModelFile:
        now = (
            "Name a GGUF model file."
            if foreign
            else "Fetch the file again, and compare its SHA-256 with the publisher's."
        )
        return BrokenModelFile(f"{self._name} can't be served.", why=f"As a model file it is wrong: {what}.", now=now)


def _looks_like(start: bytes) -> str:
    if len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "a safetensors file"
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            return what
    return f"an unknown file that begins with {start[:4].hex(' ')}"


def _shown(value: object) -> str:
    """A value from the file, short and without control characters, fit for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
