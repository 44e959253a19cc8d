import os
import subprocess
import sys

import pytest

from headwater import __version__
from tests.rig.twins import ENVIRONMENT, TWINS, wrapper


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_breaks_the_product_as_it_is_now_and_runs_its_command_line(name: str) -> None:
    """What a twin patches must still be there; else it is a sound build that no test could catch."""
    for command in (["--version"], [sys.executable, "-m", "headwater", "--version"]):
        done = subprocess.run(
            [*wrapper(name), *command], capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT
        )
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"headwater {__version__}", "")


def test_an_unknown_twin_is_refused() -> None:
    with pytest.raises(KeyError, match="there is no twin"):
        wrapper("perfect")
