"""The subjects of the gateway benchmark: how each is configured, started and called."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import peers
from bench.load import Target
from bench.process import Program, cpu_s, free_port, start

Name = Literal["bare", "headwater", "headwater-capped", "headwater-before", "litellm", "portkey"]
NAMES: tuple[Name, ...] = ("bare", "headwater", "headwater-capped", "litellm", "portkey")
BEFORE: Name = "headwater-before"
"""Headwater as it was at an earlier commit: only beside another run of it, with `--against`."""
PATH = "/v1/chat/completions"
PEER_KEY = "sk-bench-0123456789abcdef"


@dataclass(slots=True)
class Subject:
    """One running gateway; `bare` is the upstream called directly, and has no program of its own."""

    name: Name
    target: Target
    model_prefix: str
    program: Program | None = None
    metrics_url: str | None = None

    def cpu_s(self) -> float:
        """CPU seconds its processes have used; 0 for `bare`."""
        return cpu_s(self.program.pid) if self.program else 0.0

    def stop(self) -> None:
        if self.program:
            self.program.stop()


def bare(upstream_port: int) -> Subject:
    """The upstream itself: the floor for latency and the ceiling of what the load can ask for."""
    return Subject("bare", Target(upstream_port, PATH, (f"authorization: Bearer {PEER_KEY}",)), "")


def headwater(directory: Path, upstream_port: int, core: int, *, name: Name = "headwater") -> Subject:
    """Headwater as it is used: keys, prices and durable usage records on, database on the disk under `directory`.

    name: of `headwater-capped` the key belongs to an organization that pays beforehand, under budgets of organization, project
    and key; `headwater-before` is the commit that `peers.earlier` laid out.
    """
    env = dict(os.environ) | ({"PYTHONPATH": str(peers.EARLIER / "src")} if name == BEFORE else {})
    port = free_port()
    config = directory / "bench.toml"
    models = ("instant", "instant20", "stream")
    lines = [
        "[gateway]",
        f'listen = "127.0.0.1:{port}"',
        "[store]",
        f'url = "sqlite:///{directory / "headwater.db"}"',
        "[[upstreams]]",
        'name = "bench"',
        'kind = "openai"',
        f'base_url = "http://127.0.0.1:{upstream_port}/v1"',
        f"models = {json.dumps(models)}",
    ]
    for model in models:
        lines += ["[[prices]]", f'model = "bench/{model}"', 'input = "0.10"', 'output = "0.30"']
    config.write_text("\n".join(lines) + "\n")
    program = start(
        [sys.executable, "-m", "headwater", "up", "--config", str(config), "--no-first-question"],
        log=directory / "headwater.log",
        core=core,
        ready_url=f"http://127.0.0.1:{port}/ready",
        timeout_s=60,
        env=env,
    )
    try:
        key = capped_key(config) if name == "headwater-capped" else headwater_key(config, env)
    except BaseException:
        program.stop()
        raise
    target = Target(port, PATH, (f"authorization: Bearer {key}",))
    return Subject(name, target, "bench/", program, f"http://127.0.0.1:{port}/metrics")


def headwater_key(config: Path, env: Mapping[str, str] | None = None) -> str:
    """Create an API key with the CLI, while the platform runs. env: of the platform's version, None for this one."""
    key: str = _cli(config, "keys", "create", "--name", "bench", env=env)["key"]
    return key


def capped_key(config: Path) -> str:
    """A key whose every request is held against three budgets and the credit of its organization."""
    _cli(config, "organizations", "create", "payer", "--prepaid")
    _cli(config, "grants", "create", "--organization", "payer", "--amount", "1000000", "--expires", "90d")
    _cli(config, "grants", "create", "--organization", "payer", "--amount", "1000000")
    key = _cli(config, "keys", "create", "--name", "bench", "--organization", "payer", "--project", "default")
    for scope in (
        ("--organization", "payer"),
        ("--project", "default", "--organization", "payer"),
        ("--key", str(key["id"])),
    ):
        _cli(config, "budgets", "create", "--limit", "1000000", "--per", "month", *scope)
    return str(key["key"])


def _cli(config: Path, *arguments: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    argv = [sys.executable, "-m", "headwater", *arguments, "--config", str(config), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=env)
    if done.returncode:
        raise RuntimeError(f"`headwater {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def litellm(directory: Path, upstream_port: int, core: int) -> Subject:
    """LiteLLM's proxy at its lightest that still checks a key: a master key, no database, no budgets, one worker."""
    home, port, config = peers.litellm(), free_port(), directory / "litellm.json"
    settings = {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {
                    "model": f"openai/{model}",
                    "api_base": f"http://127.0.0.1:{upstream_port}/v1",
                    "api_key": "sk-upstream",
                },
            }
            for model in ("instant", "stream")
        ],
        "general_settings": {"master_key": PEER_KEY},
        "litellm_settings": {"telemetry": False},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no download at start-up
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
    }
    program = start(
        [
            str(home / "bin/litellm"),
            *("--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        ],
        log=directory / "litellm.log",
        core=core,
        ready_url=f"http://127.0.0.1:{port}/health/liveliness",
        timeout_s=120,
        env=env,
    )
    return Subject("litellm", Target(port, PATH, (f"authorization: Bearer {PEER_KEY}",)), "", program)


def portkey(directory: Path, upstream_port: int, core: int) -> Subject:
    """Portkey's gateway as its package ships it, without the console: it has no accounts to switch on."""
    home, port = peers.portkey(), free_port()
    program = start(
        [
            "node",
            str(home / "node_modules/@portkey-ai/gateway/build/start-server.js"),
            *(f"--port={port}", "--headless"),
        ],
        log=directory / "portkey.log",
        core=core,
        ready_url=f"http://127.0.0.1:{port}/",
        timeout_s=60,
        env=dict(os.environ) | {"NODE_ENV": "production"},
    )
    headers = (
        f"authorization: Bearer {PEER_KEY}",
        "x-portkey-provider: openai",
        f"x-portkey-custom-host: http://127.0.0.1:{upstream_port}/v1",
    )
    return Subject("portkey", Target(port, PATH, headers), "", program)


def launch(name: Name, directory: Path, upstream_port: int, core: int) -> Subject:
    """Start the subject called `name`; its files lie under `directory`, its processes on `core`."""
    if name == "bare":
        return bare(upstream_port)
    home = directory / name
    home.mkdir(parents=True, exist_ok=True)
    if name.startswith("headwater"):
        return headwater(home, upstream_port, core, name=name)
    return {"litellm": litellm, "portkey": portkey}[name](home, upstream_port, core)
