"""What the pages tell a reader to type is true: configurations load, commands parse, Python compiles, examples compute."""

import ast
import doctest
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from headwater.cli.main import app
from headwater.settings import load
from tests.unit.docs.pages import DOCS, Block, all_pages, blocks, name_of, prose

_COMMAND = re.compile(r"(?:^|\$\(|\(umask 077; |; |&& )(headwater(?: [^)|&;>#\n]*)?)", re.MULTILINE)
_INLINE = re.compile(r"`(headwater [^`]+)`")


def _toml_blocks() -> list[Block]:
    found = [block for page in all_pages() for block in blocks(page, "toml")]
    return [block for block in found if "[[models]]" not in block.text]  # a catalogue, not a configuration


def _id(block: Block) -> str:
    return f"{name_of(block.page)}:{block.text.splitlines()[0]}"


@pytest.mark.parametrize("block", _toml_blocks(), ids=_id)
def test_every_configuration_in_the_docs_loads(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for secret in re.findall(r'file = "([^"]+)"', block.text):
        Path(secret).parent.mkdir(parents=True, exist_ok=True)
        Path(secret).write_text("sk-test")
    path = tmp_path / "headwater.toml"
    path.write_text(block.text, encoding="utf-8")
    environ = dict.fromkeys(re.findall(r'env = "([^"]+)"', block.text), "sk-test")
    assert load(config_path=path, environ=environ).settings.deployments is not None


def _commands() -> Iterator[tuple[str, str]]:
    for page in all_pages():
        for block in blocks(page, "sh"):
            for command in _COMMAND.findall(block.text.replace("\\\n", " ")):
                yield name_of(page), command
        if page.name == "cli.md":  # it is made from the commands; its headings name them without arguments
            continue
        for command in _INLINE.findall(prose(page)):
            yield name_of(page), command


def test_there_are_commands_to_check() -> None:
    assert len(set(_commands())) > 30


@pytest.mark.parametrize(("page", "command"), sorted(set(_commands())))
def test_every_command_in_the_docs_parses(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    parse(typer.main.get_command(app), words)


def parse(command: Any, words: list[str]) -> None:
    """Parse words as the command would, without running it; a usage error is raised."""
    if words and not words[0].startswith("-") and hasattr(command, "commands"):
        assert words[0] in command.commands, words[0]
        parse(command.commands[words[0]], words[1:])
    elif words or not hasattr(command, "commands"):
        if "--help" in words or "--version" in words:
            return
        command.make_context(command.name, list(words))


@pytest.mark.parametrize(
    "words", [["keys", "make"], ["usage", "--by", "colour"], ["models", "pull"], ["up", "--port", "1"]]
)
def test_a_wrong_command_is_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r".+"):
        parse(typer.main.get_command(app), words)


def test_every_python_example_compiles() -> None:
    found = [block for page in all_pages() for block in blocks(page, "python") if ">>>" not in block.text]
    assert found
    for block in found:
        ast.parse(re.sub(r"\bawait |async (?=with)", "", block.text), filename=name_of(block.page))


def test_the_worked_examples_compute_what_they_say() -> None:
    text = "\n".join(block.text for block in blocks(DOCS / "explanation" / "usage.md", "python"))
    test = doctest.DocTestParser().get_doctest(text, {}, "usage.md", "usage.md", 0)
    assert len(test.examples) > 10
    results = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test)
    assert results.failed == 0


def test_every_json_example_is_json() -> None:
    for page in all_pages():
        for block in blocks(page, "json"):
            json.loads(block.text)


def test_a_configuration_block_without_a_language_is_noticed() -> None:
    for page in all_pages():
        for block in blocks(page, ""):
            with pytest.raises(tomllib.TOMLDecodeError):
                tomllib.loads(block.text)
