"""One real platform for all acceptance tests that only ask it things, and the figures they measure."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.acceptance.person import QWEN, SMOL, Up, up, weights

CONFIG = f"""
[gateway]
listen = "127.0.0.1:0"

[[deployments]]
name = "qwen"
model = "{QWEN}"
slots = 4
context_tokens = 4096
threads = 1

[[deployments]]
name = "smol"
model = "{SMOL}"
slots = 4
context_tokens = 2048
threads = 1

[[deployments]]          # so small that its context and its one slot are soon full
name = "tiny"
model = "{SMOL}"
slots = 1
context_tokens = 256
threads = 1

[[prices]]
model = "qwen"
input = "0.10"
cached_input = "0.01"
output = "0.30"

[[prices]]
model = "smol"
input = "0.02"
output = "0.04"

[[prices]]
model = "tiny"
input = "0.02"
output = "0.04"
"""

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session", autouse=True)
def _weights() -> None:
    weights(QWEN)
    weights(SMOL)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, _weights: None) -> Iterator[Up]:
    """The platform with Qwen 0.5B (`qwen`), SmolLM2 (`smol`) and SmolLM2 with a context of 256 and one slot (`tiny`)."""
    with up(tmp_path_factory.mktemp("real"), config=CONFIG, arguments=["--no-first-question"]) as platform:
        platform.wait_ready()
        yield platform


@pytest.fixture
def client(real: Up) -> Iterator[OpenAI]:
    """The official SDK, synchronous; it doesn't retry, so that an error is seen."""
    with OpenAI(base_url=real.base_url, api_key=real.api_key, max_retries=0, timeout=240) as made:
        yield made


@pytest.fixture
async def async_client(real: Up) -> AsyncIterator[AsyncOpenAI]:
    """The official SDK, asynchronous."""
    async with AsyncOpenAI(base_url=real.base_url, api_key=real.api_key, max_retries=0, timeout=240) as made:
        yield made


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a measured figure; all are printed at the end of the run."""
    figures = request.config.stash[FIGURES]
    return lambda text: figures.append(f"{Path(request.node.path).stem}: {text}")


@pytest.fixture(scope="module")
def figure_of_module(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """The same for fixtures that a module shares."""
    figures = request.config.stash[FIGURES]
    return lambda text: figures.append(f"{Path(request.node.path).stem}: {text}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    if config.stash[FIGURES]:
        terminalreporter.section("measured")
        for line in config.stash[FIGURES]:
            terminalreporter.write_line(line)
