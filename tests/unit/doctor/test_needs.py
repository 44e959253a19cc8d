"""What deployments need, from real model headers; and one whole examination."""

import struct
from pathlib import Path

import pytest

from headwater.doctor.examine import examine
from headwater.doctor.needs import find_needs
from headwater.settings import DeploymentSettings, GatewaySettings, ModelStoreSettings, Settings, StoreSettings


def write_gguf(path: Path) -> None:
    """Write a model of 4 layers with 2 KV heads of width 64: 2 × 4 × 2 × 64 × 2 bytes = 2 KiB of KV cache a token."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = {"context_length": 8192, "block_count": 4, "embedding_length": 512, "attention.head_count": 8}
    numbers |= {"attention.head_count_kv": 2}
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(numbers) + 1)
    header += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for key, value in numbers.items():
        header += text(f"llama.{key}") + struct.pack("<II", 4, value)
    header += text("token_embd.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    path.write_bytes(header + b"\0" * 256)


def settings_for(directory: Path, *deployments: DeploymentSettings) -> Settings:
    return Settings(
        gateway=GatewaySettings(listen="127.0.0.1:0"),
        store=StoreSettings(url=f"sqlite:///{directory}/data/books.db"),
        models=ModelStoreSettings(directory=str(directory / "models")),
        deployments=deployments,
    )


def test_needs_of_a_local_file_come_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    settings = settings_for(
        tmp_path, DeploymentSettings(name="own", model=str(path), replicas=2, slots=3, context_tokens=1000)
    )
    needs = find_needs(settings)
    (need,) = needs.deployments
    assert (needs.download_bytes, needs.checks) == (0, ())
    assert (need.kv_bytes, need.is_estimate, need.replicas) == (2048 * 3000, False, 2)
    assert need.weights_bytes == path.stat().st_size


def test_a_context_longer_than_the_models_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    settings = settings_for(tmp_path, DeploymentSettings(name="own", model=str(path), context_tokens=8193))
    (check,) = find_needs(settings).checks
    assert (check.name, check.verdict) == ("context", "warn")
    assert "8192 or less" in check.now


def test_needs_of_a_model_not_here_are_estimated_and_fetched_once(tmp_path: Path) -> None:
    model = "smollm2-135m-instruct"
    settings = settings_for(
        tmp_path, DeploymentSettings(name="a", model=model), DeploymentSettings(name="b", model=model)
    )
    needs = find_needs(settings)
    assert needs.download_bytes == needs.deployments[0].weights_bytes
    assert all(need.is_estimate and need.kv_bytes for need in needs.deployments)


@pytest.mark.parametrize("model", ["qwen-unknown", "./missing.gguf"])
def test_a_model_that_cannot_be_served_is_a_failed_check(model: str, tmp_path: Path) -> None:
    needs = find_needs(settings_for(tmp_path, DeploymentSettings(name="a", model=model)))
    (check,) = needs.checks
    assert (check.name, check.verdict, needs.deployments) == ("model", "fail", ())
    assert "deployment a" in check.what


def test_an_examination_makes_every_check_and_changes_nothing(tmp_path: Path) -> None:
    checks = examine(settings_for(tmp_path), needs=(), download_bytes=None)
    names = ["python", "sqlite", "port", "data", "models", "disk", "memory", "sockets", "commit", "files"]
    assert [check.name for check in checks] == names
    assert list(tmp_path.iterdir()) == []
