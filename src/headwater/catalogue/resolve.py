"""From what a deployment's `model` says, a catalogue name or a path, to a checked file that an engine may open."""

from dataclasses import dataclass
from pathlib import Path

from headwater.catalogue.entries import Entry, find_entry
from headwater.catalogue.gguf import Header, read_header
from headwater.catalogue.store import ModelStore, not_here
from headwater.errors import OperatorError
from headwater.settings.model import ModelStoreSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model file whose header was checked, and what the platform must know to serve it.

    name: the catalogue's, or the file's name without `.gguf`.
    sha256: None for a file given by path (it isn't hashed at a start).
    context_tokens: the longest context the model was made for.
    chat_template: the text to use instead of the file's own template, None to use the file's.
    has_chat_template: False for a model that has neither, most likely a base model.
    kv_bytes_per_token: KV cache at f16 for one token of context; an upper bound for unusual layers.
    """

    name: str
    path: Path
    sha256: str | None
    size_bytes: int
    architecture: str
    context_tokens: int
    chat_template: str | None
    has_chat_template: bool
    kv_bytes_per_token: int


def resolve(model: str, settings: ModelStoreSettings) -> ResolvedModel:
    """Find the file of `model` and check its header; fetches nothing.

    Raises OperatorError: an unknown name, a model that was not pulled, no such file, or (BrokenModelFile) one that
    is no sound GGUF.
    """
    if is_path(model):
        return _from_file(Path(model))
    entry = find_entry(model, settings)
    holding = ModelStore(Path(settings.directory)).holding(entry)
    if holding.state == "damaged":
        raise OperatorError(
            f"The stored file of {entry.name} is damaged.",
            why=f"It has {holding.here_bytes:,} bytes instead of {entry.size_bytes:,}.",
            now=f"`headwater models pull {entry.name}` fetches it again.",
        )
    if holding.state != "ready":
        raise not_here(entry)
    return _resolved(entry.name, holding.path, read_header(holding.path), entry)


def missing_entry(model: str, settings: ModelStoreSettings) -> Entry | None:
    """The catalogue entry that must be pulled before `model` can be resolved; None when it is here or is a path.

    Raises OperatorError for an unknown name.
    """
    if is_path(model):
        return None
    entry = find_entry(model, settings)
    return None if ModelStore(Path(settings.directory)).holding(entry).state == "ready" else entry


def is_path(model: str) -> bool:
    """Whether `model` names a file (it has a `/` or ends in .gguf) and not a catalogue entry."""
    return "/" in model or model.lower().endswith(".gguf")


def _from_file(path: Path) -> ResolvedModel:
    return _resolved(path.name.removesuffix(".gguf"), path.absolute(), read_header(path), None)


def _resolved(name: str, path: Path, header: Header, entry: Entry | None) -> ResolvedModel:
    own_template = entry.chat_template if entry else None
    return ResolvedModel(
        name=name,
        path=path.absolute(),
        sha256=entry.sha256 if entry else None,
        size_bytes=path.stat().st_size,
        architecture=header.architecture,
        context_tokens=entry.context_tokens if entry else header.context_tokens,
        chat_template=own_template,
        has_chat_template=bool(own_template or header.chat_template),
        kv_bytes_per_token=header.kv_bytes_per_token,
    )
