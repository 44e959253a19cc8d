"""`/health` (the process answers), `/ready` (and why not), `/metrics`."""

from collections.abc import Callable

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from headwater.gateway.http import Answer, Scope
from headwater.gateway.routing import ModelDirectory
from headwater.gateway.telemetry import Telemetry
from headwater.ledger.writer import LedgerWriter
from headwater.replica import ReplicaState
from headwater.request import Principal


class _ReplicaWire(msgspec.Struct, omit_defaults=True):
    replica: str
    state: str
    reason: str = ""


class _ReadyWire(msgspec.Struct):
    ready: bool
    reasons: list[str]
    deployments: dict[str, list[_ReplicaWire]]


def not_ready_reasons(models: ModelDirectory, writer: LedgerWriter, *, is_draining: bool) -> list[str]:
    """Why this gateway should get no traffic; empty when it should. One deployment without a replica is reason enough."""
    reasons: list[str] = []
    if is_draining:
        reasons.append("the gateway is shutting down")
    if writer.failure is not None:
        reasons.append(f"the ledger failed: {writer.failure}")
    for target in models.all():
        if not target.is_own or target.pool.members:
            continue
        states = "; ".join(f"{status.replica_id} {status.state}: {status.reason}" for status in target.pool.statuses)
        reasons.append(f"deployment {target.name!r} has no ready replica ({states or 'not started yet'})")
    return reasons


class Health:
    """Handlers of the three operator endpoints; none needs a key, none shows a secret."""

    def __init__(
        self, *, models: ModelDirectory, writer: LedgerWriter, telemetry: Telemetry, is_draining: Callable[[], bool]
    ) -> None:
        self._models = models
        self._writer = writer
        self._telemetry = telemetry
        self._is_draining = is_draining

    async def health(self, _scope: Scope, _principal: Principal | None) -> Answer:
        """200 as long as the event loop turns."""
        return Answer(b'{"status":"ok"}')

    async def ready(self, _scope: Scope, _principal: Principal | None) -> Answer:
        """200 when every model can be called; else 503 and the reasons."""
        reasons = not_ready_reasons(self._models, self._writer, is_draining=self._is_draining())
        deployments = {
            target.name: [
                _ReplicaWire(status.replica_id, ReplicaState(status.state).value, status.reason)
                for status in target.pool.statuses
            ]
            for target in self._models.all()
            if target.is_own
        }
        body = msgspec.json.encode(_ReadyWire(not reasons, reasons, deployments))
        return Answer(body, 503 if reasons else 200)

    async def metrics(self, _scope: Scope, _principal: Principal | None) -> Answer:
        """Everything in the Prometheus text format."""
        return Answer(generate_latest(self._telemetry.registry), content_type=CONTENT_TYPE_LATEST.encode())
