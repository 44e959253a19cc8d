"""What an operator can do to a platform while it runs: see and restart its replicas, and change its configuration.

Called in a thread of the administration's, one at a time; whatever touches the gateway or the controller goes to the
event loop. A configuration is checked completely before anything changes.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import structlog

from headwater.admin.administration import Administration
from headwater.admin.books import Books, publish_prices
from headwater.admin.client import callable_names, priced_names
from headwater.admin.running import Reloaded, ReplicaView, refused
from headwater.catalogue.resolve import ResolvedModel, resolve
from headwater.clock import Clock
from headwater.controller.plan import DeploymentPlan
from headwater.controller.supervisor import Supervisor
from headwater.errors import OperatorError
from headwater.gateway.app import Gateway
from headwater.ledger import store
from headwater.ledger.writer import LedgerFailed
from headwater.reload import compare
from headwater.settings.model import DeploymentSettings, Settings

log = structlog.get_logger()

T = TypeVar("T")
LOOP_TIMEOUT_S = 20.0
ENGINE_BYTES = 256 * 2**20
"""What an engine's process takes beside its weights and its KV cache, roughly."""


class RunningPlatform:
    """Satisfies `admin.running.Operations`. settings: those in force."""

    def __init__(
        self,
        settings: Settings,
        plans: Sequence[DeploymentPlan],
        *,
        read_settings: Callable[[], Settings],
        gateway: Gateway,
        supervisor: Supervisor,
        books: Books,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """plans: those of the settings. read_settings: reads the configuration as the start did; raises ConfigError."""
        self.settings = settings
        self._plans = {plan.name: plan for plan in plans}
        self._read_settings = read_settings
        self._gateway = gateway
        self._supervisor = supervisor
        self._books = books
        self._clock = clock
        self._loop = loop

    def replicas(self) -> list[ReplicaView]:
        """See Operations."""
        return self._on_loop(
            lambda: [
                ReplicaView(*one.status[:2], one.status.state.value, *one.status[3:], one.pid)
                for one in self._supervisor.replicas
            ]
        )

    def restart(self, replica_id: str) -> None:
        """See Operations."""
        drain_timeout_s = self.settings.gateway.drain_timeout_s
        self._on_loop(lambda: self._supervisor.restart(replica_id, drain_timeout_s=drain_timeout_s))

    def reload(self, administration: Administration) -> Reloaded:
        """See Operations. Engines are replaced in the background: new ones start before old ones are drained."""
        try:
            difference = compare(self.settings, self._read_settings())
            settings = difference.settings
            plans = deployment_plans(settings, resolve_models(settings), before=(self.settings, self._plans))
            publish_prices(
                self._books, settings.prices, settings.costs, currency=settings.billing.currency, clock=self._clock
            )
        except LedgerFailed as error:
            raise OperatorError(
                "The configuration was not changed.", why=f"The ledger has failed: {error}.", now="See the log."
            ) from error
        except OperatorError as error:
            refusal = refused(error)
            log.warning("reload_refused", error=refusal.why)
            raise refusal from error
        versions = self._books.read(store.read_prices)
        administration.model_names = callable_names(settings)
        administration.priced_in_file = priced_names(settings)

        def apply() -> None:
            self._gateway.apply(settings)
            self._gateway.cashier.prices.load(versions)
            self._supervisor.apply(plans, drain_timeout_s=settings.gateway.drain_timeout_s)

        self._on_loop(apply)
        self.settings, self._plans = settings, {plan.name: plan for plan in plans}
        log.info("reloaded", changed=difference.changed, kept=difference.kept)
        return Reloaded(difference.changed, difference.kept)

    def _on_loop(self, work: Callable[[], T]) -> T:
        """Do it on the event loop and return when it is done."""
        done: Future[T] = Future()

        def on_loop() -> None:
            try:
                done.set_result(work())
            except Exception as error:  # noqa: BLE001 it belongs to the thread that waits
                done.set_exception(error)

        self._loop.call_soon_threadsafe(on_loop)
        return done.result(LOOP_TIMEOUT_S)


def resolve_models(settings: Settings) -> list[ResolvedModel]:
    """The checked file of each deployment's model, in their order; fetches nothing.

    Raises OperatorError for a model that isn't here, and for a context that it was not made for.
    """
    models = [resolve(deployment.model, settings.models) for deployment in settings.deployments]
    for deployment, model in zip(settings.deployments, models, strict=True):
        if deployment.context_tokens > model.context_tokens:
            raise OperatorError(
                f"Deployment {deployment.name!r} asks for a context of {deployment.context_tokens} tokens.",
                why=f"The model {model.name} was made for at most {model.context_tokens}.",
                now="Lower `context_tokens` of that deployment.",
            )
    return models


def deployment_plans(
    settings: Settings,
    models: Sequence[ResolvedModel],
    *,
    before: tuple[Settings, dict[str, DeploymentPlan]] | None = None,
) -> list[DeploymentPlan]:
    """What the controller needs to run each deployment; models: their files, in the same order.

    Threads unset: an even share of the machine's cores but one, which is the gateway's, among all replicas. Engines with
    more threads than cores are slower than with one each: their barriers spin.
    before: the settings and plans in force. A deployment that left its threads to the platform keeps those it has: that
    another one comes or goes is no reason to load its model again.
    """
    replicas_count = sum(deployment.replicas for deployment in settings.deployments)
    share = max(1, ((os.cpu_count() or 2) - 1) // max(1, replicas_count))
    shared = {} if before is None else {d.name: before[1][d.name] for d in before[0].deployments if d.threads is None}
    return [
        _plan(deployment, model, shared[deployment.name].threads if deployment.name in shared else share)
        for deployment, model in zip(settings.deployments, models, strict=True)
    ]


def _plan(deployment: DeploymentSettings, model: ResolvedModel, share: int) -> DeploymentPlan:
    stat = model.path.stat()
    kv_bytes = model.kv_bytes_per_token * deployment.context_tokens * deployment.slots
    return DeploymentPlan(
        name=deployment.name,
        model_path=model.path.resolve(),
        model_digest=model.sha256 or f"{model.path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}",
        chat_template=model.chat_template,
        replicas_count=deployment.replicas,
        slots_count=deployment.slots,
        context_tokens=deployment.context_tokens,
        threads=deployment.threads or share,
        batch_tokens=deployment.batch_tokens,
        start_timeout_s=deployment.start_timeout_s,
        restarts=(deployment.restarts_max, deployment.restart_window_s),
        hang_timeout_s=deployment.hang_timeout_s,
        memory_bytes=model.size_bytes + kv_bytes + ENGINE_BYTES,
    )
