from pathlib import Path

import pytest

from headwater.controller.calibration import Calibration
from headwater.engines.child import choose_batch_tokens


def test_what_was_measured_is_found_again_by_model_and_threads(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    Calibration(path).store("digest", 2, 0.004)
    again = Calibration(path)
    assert again.batch_tokens("digest", 2) == choose_batch_tokens(0.004)
    assert again.batch_tokens("digest", 3) is None
    assert again.batch_tokens("other", 2) is None
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]


def test_the_fastest_measurement_counts(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration = Calibration(path)
    for token_s in (0.010, 0.004, 0.008):
        calibration.store("digest", 2, token_s)
    assert calibration.batch_tokens("digest", 2) == choose_batch_tokens(0.004)
    assert Calibration(path).batch_tokens("digest", 2) == choose_batch_tokens(0.004)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": "b"}', b'{"a": -1.0}', b"null"])
def test_a_file_that_can_not_be_read_is_as_good_as_lost(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    calibration = Calibration(path)
    assert calibration.batch_tokens("digest", 2) is None
    calibration.store("digest", 2, 0.004)
    assert Calibration(path).batch_tokens("digest", 2) == choose_batch_tokens(0.004)
