"""All wiring of the gateway: settings and what it depends on in, one ASGI application out."""

import asyncio
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from headwater.clock import Clock
from headwater.errors import Draining, LedgerUnavailable
from headwater.gateway.account import Account
from headwater.gateway.auth import Authenticator
from headwater.gateway.cashier import Cashier
from headwater.gateway.chat import ChatCompletions
from headwater.gateway.engines import Engine, ReplicaEngine, UpstreamEngine
from headwater.gateway.health import Health
from headwater.gateway.http import DirectRoute, Endpoint, internal_error, router_error
from headwater.gateway.idempotency import Idempotency
from headwater.gateway.life import LifeContext
from headwater.gateway.notices import receiver_id
from headwater.gateway.pool import Member, Pool
from headwater.gateway.routing import ModelDirectory, Target, Timeouts
from headwater.gateway.settle import Settler
from headwater.gateway.stop import LiveRequests
from headwater.gateway.telemetry import Telemetry
from headwater.ledger.book import Book
from headwater.ledger.price_list import PriceList
from headwater.ledger.writer import LedgerWriter
from headwater.replica import ReplicaEndpoint, ReplicaStatus
from headwater.settings.model import DeploymentSettings, GatewaySettings, Settings, UpstreamSettings

log = structlog.get_logger()


class Gateway:
    """The running gateway: its application, and what the platform tells it. Made and used on one event loop."""

    def __init__(
        self, settings: Settings, *, writer: LedgerWriter, database: Path, book: Book, epoch: int, clock: Clock
    ) -> None:
        """book: what may be spent, as the log left it. epoch: the number of this start."""
        limits = settings.gateway
        self._limits = limits
        self._live = LiveRequests()
        self._is_draining = False
        self._closing: set[asyncio.Task[None]] = set()
        self._pools = {
            name: Pool[Engine](name, queued_max=limits.queued_requests_max)
            for name in (deployment.name for deployment in settings.deployments)
        }
        targets = {
            **{d.name: self._own_target(d, clock) for d in settings.deployments},
            **{t.name: t for u in settings.upstreams for t in _upstream_targets(u, limits, clock)},
        }
        self.models = ModelDirectory(targets)
        self.settler = Settler(writer)
        self.telemetry = Telemetry(writer)
        self.telemetry.watch(lambda: self.models, self._live)
        self.authenticator = Authenticator(database, cache_count=limits.key_cache_count, clock=clock)
        self.cashier = Cashier(
            book,
            self.settler,
            PriceList(),
            database=database,
            epoch=epoch,
            currency=settings.billing.currency,
            is_unpriced_refused=settings.billing.unpriced == "refuse",
            receivers=[receiver_id(webhook.url) for webhook in settings.webhooks],
            telemetry=self.telemetry,
            clock=clock,
        )
        context = LifeContext(
            clock=clock,
            cashier=self.cashier,
            settler=self.settler,
            telemetry=self.telemetry,
            live=self._live,
            concurrent_max=limits.concurrent_requests_max,
            output_default_max=limits.output_tokens_default_max,
            is_draining=lambda: self._is_draining,
        )
        self.idempotency = Idempotency(database, settings.billing, clock=clock)
        chat = ChatCompletions(
            limits,
            models=self.models,
            authenticator=self.authenticator,
            context=context,
            idempotency=self.idempotency,
            clock=clock,
        )
        health = Health(
            models=self.models, writer=writer, telemetry=self.telemetry, is_draining=lambda: self._is_draining
        )
        account = Account(
            models=self.models,
            database=database,
            cashier=self.cashier,
            currency=settings.billing.currency,
            clock=clock,
        )
        self.router = self._build_router(chat, health, account)
        self.app = DirectRoute(self.router, method="POST", path="/v1/chat/completions", endpoint=chat)

    def _build_router(self, chat: ChatCompletions, health: Health, account: Account) -> Starlette:
        """The route list IS the application; who needs no key is said here."""

        def public(handler: object) -> Endpoint:
            return Endpoint(handler, authenticator=None, telemetry=self.telemetry)  # type: ignore[arg-type]

        def keyed(handler: object) -> Endpoint:
            return Endpoint(handler, authenticator=self.authenticator, telemetry=self.telemetry)  # type: ignore[arg-type]

        app = Starlette(
            routes=[
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/v1/models", keyed(account.list_models), methods=["GET"]),
                Route("/v1/models/{model:path}", keyed(account.get_model), methods=["GET"]),
                Route("/v1/usage", keyed(account.get_usage), methods=["GET"]),
                Route("/v1/usage/{request_id}", keyed(account.get_receipt), methods=["GET"]),
                Route("/health", public(health.health), methods=["GET"]),
                Route("/ready", public(health.ready), methods=["GET"]),
                Route("/metrics", public(health.metrics), methods=["GET"]),
            ],
            exception_handlers={HTTPException: router_error, Exception: internal_error},
        )
        # A path with a slash too many is 404 in the one shape; a redirect would be built from the caller's Host header.
        app.router.redirect_slashes = False
        return app

    def _own_target(self, deployment: DeploymentSettings, clock: Clock) -> Target:
        limits = self._limits
        return Target(
            name=deployment.name,
            engine_model=deployment.name,
            pool=self._pools[deployment.name],
            timeouts=Timeouts(limits.first_byte_timeout_s, limits.idle_timeout_s, limits.total_timeout_s),
            context_tokens=deployment.context_tokens,
            is_own=True,
            created_at_s=int(clock.now_s()),
        )

    # -- what the controller tells ---------------------------------------------------------------------------------

    def announce(self, endpoint: ReplicaEndpoint) -> None:
        """A replica became ready: its slots take from the queue."""
        engine = ReplicaEngine(endpoint, connect_timeout_s=self._limits.connect_timeout_s)
        member = Member[Engine](endpoint.replica_id, engine, endpoint.slots_count, is_slotted=True)
        self._pools[endpoint.deployment].add_member(member)

    def withdraw(self, deployment: str, replica_id: str) -> None:
        """A replica is gone; calls running on it fail by themselves."""
        member = self._pools[deployment].remove_member(replica_id)
        if member is not None:
            self._close_later(member.endpoint)

    def report(self, deployment: str, statuses: list[ReplicaStatus]) -> None:
        """The states of a deployment's replicas."""
        self._pools[deployment].report(statuses)

    # -- its own end -------------------------------------------------------------------------------------------------

    @property
    def live_count(self) -> int:
        """Requests being served or queued."""
        return len(self._live)

    async def drain(self, timeout_s: float, *, hurry: asyncio.Event) -> None:
        """Take nothing new, let what runs end until the time-out or `hurry`, cut what is left, see all of it settled."""
        self._is_draining = True
        hurried = asyncio.ensure_future(hurry.wait())
        done = asyncio.ensure_future(self._live.empty())
        await asyncio.wait((hurried, done), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        self._live.stop_all("upstream_error", Draining("The gateway was shut down in the middle of this answer."))
        await done
        await self.settler.flush()

    def ledger_failed(self, failure: BaseException) -> None:
        """Nothing can be settled any more: every request being served ends with `ledger_unavailable`."""
        self._is_draining = True
        log.critical("ledger_failed", error=str(failure))
        self._live.stop_all("upstream_error", LedgerUnavailable("The ledger failed; the platform is stopping."))

    async def close(self) -> None:
        """Close every connection to engines and upstreams."""
        engines = {member.endpoint for target in self.models.all() for member in target.pool.members.values()}
        await asyncio.gather(*(engine.close() for engine in engines), *self._closing)
        self.authenticator.close()

    def _close_later(self, engine: Engine) -> None:
        task = asyncio.ensure_future(engine.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _upstream_targets(upstream: UpstreamSettings, limits: GatewaySettings, clock: Clock) -> list[Target]:
    """One target for each model of an upstream; they share its places and its queue."""
    timeouts = Timeouts(
        upstream.first_byte_timeout_s or limits.first_byte_timeout_s,
        upstream.idle_timeout_s or limits.idle_timeout_s,
        upstream.total_timeout_s or limits.total_timeout_s,
    )
    headers = {name.lower(): value.reveal() for name, value in upstream.headers.items()}
    if upstream.api_key is not None:
        headers["authorization"] = f"Bearer {upstream.api_key.reveal()}"
    engine = UpstreamEngine(
        name=upstream.name,
        base_url=upstream.base_url,
        headers=headers,
        output_cap_field=upstream.output_cap_field,
        running_counts=upstream.running_counts,
        connect_timeout_s=upstream.connect_timeout_s or limits.connect_timeout_s,
    )
    pool = Pool[Engine](upstream.name, queued_max=limits.queued_requests_max)
    pool.add_member(Member[Engine](upstream.name, engine, upstream.concurrency_max, is_slotted=False))
    return [
        Target(
            name=f"{upstream.name}/{model}",
            engine_model=model,
            pool=pool,
            timeouts=timeouts,
            context_tokens=upstream.context_tokens,
            is_own=False,
            created_at_s=int(clock.now_s()),
        )
        for model in upstream.models
    ]
