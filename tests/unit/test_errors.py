import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headwater import errors, errors_reference
from headwater.dialects.openai_chat_answer import error_body
from headwater.errors import ConfigError, OperatorError, PlatformError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "headwater"
_LINE = re.compile(r"\s*(?P<branch>[│ ]*[├└]── )?(?P<name>\w+) +(?P<status>\d{3}) (?P<rest>.*)")


class Drawn:
    """One line of the tree drawn in the docstring."""

    def __init__(self, depth: int, name: str, status: int, words: list[str]) -> None:
        self.depth, self.name, self.status, self.words = depth, name, status, words


def drawn() -> list[Drawn]:
    lines = []
    for line in (errors.__doc__ or "").splitlines():
        if found := _LINE.fullmatch(line[4:]):
            depth = len(found["branch"] or "") // 4
            lines.append(Drawn(depth, found["name"], int(found["status"]), re.split(r"[ ,]+", found["rest"].strip())))
    return lines


def tree(error: type[PlatformError] = PlatformError, depth: int = 0) -> Iterator[tuple[int, type[PlatformError]]]:
    yield depth, error
    for child in error.__subclasses__():
        yield from tree(child, depth + 1)


def test_every_error_is_defined_in_the_one_module() -> None:
    assert {error.__module__ for _, error in tree()} == {errors.__name__}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert [(one.depth, one.name) for one in drawn()] == [(depth, error.__name__) for depth, error in tree()]


def test_every_line_of_the_tree_says_the_right_status_type_and_code() -> None:
    for line, (_, error) in zip(drawn(), tree(), strict=True):
        assert line.status == error.status
        assert error.code in line.words, f"{line.name} is drawn without {error.code}"
        types = {"server_error", "invalid_request_error", "authentication_error", "permission_error"} & set(line.words)
        assert types <= {error.type}, f"{line.name} is drawn with {types}"


def test_every_error_has_a_sentence_a_fitting_status_and_a_code_of_its_own() -> None:
    kinds = [error for _, error in tree()]
    for error in kinds:
        assert error.__doc__
        assert 400 <= error.status <= 599
        assert (error.type == "server_error") == (error.status >= 500)
        assert re.fullmatch(r"[a-z_]+", error.code)
    assert len({error.code for error in kinds}) == len(kinds)


@pytest.mark.parametrize("error", [error for _, error in tree()], ids=lambda error: error.__name__)
def test_an_error_on_the_wire_has_the_one_shape(error: type[PlatformError]) -> None:
    body = msgspec.json.decode(error_body(error("what was wrong", param="messages[0]")))
    assert body == {
        "error": {"message": "what was wrong", "type": error.type, "param": "messages[0]", "code": error.code}
    }


def test_a_code_given_to_one_error_stays_with_it() -> None:
    assert errors.AuthenticationFailed("no", code="revoked_api_key").code == "revoked_api_key"
    assert errors.AuthenticationFailed("no").code == "invalid_api_key"


def test_the_reference_page_is_fresh() -> None:
    assert (ROOT / "docs/reference/errors.md").read_text() == errors_reference.page()


def test_every_code_raised_anywhere_is_on_the_reference_page() -> None:
    page = errors_reference.page()
    used = {code for file in SOURCE.rglob("*.py") for code in re.findall(r'\bcode="([a-z_]+)"', file.read_text())}
    assert used, "no code is given anywhere: the pattern of this test is out of date"
    for code in used | {error.code for _, error in tree()}:
        assert f"| `{code}` |" in page, code


def test_an_operator_error_says_what_happened_why_and_what_now() -> None:
    error = OperatorError("It broke.", why="A cable.", now="Plug it in.")
    assert str(error) == "It broke. A cable. Plug it in."
    assert str(OperatorError("It broke.", now="Look.")) == "It broke. Look."
    assert issubclass(ConfigError, OperatorError)
    assert not issubclass(OperatorError, PlatformError)
