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
from headwater.gateway.fleet import Fleet
from headwater.gateway.guard import Guard
from headwater.gateway.health import Health
from headwater.gateway.http import DirectRoute, Endpoint, internal_error, router_error
from headwater.gateway.idempotency import Idempotency
from headwater.gateway.life import LifeContext
from headwater.gateway.limits import RateLimiter
from headwater.gateway.notices import receiver_id
from headwater.gateway.overload import Overload
from headwater.gateway.pool import Member, Pool
from headwater.gateway.routing import ModelDirectory, Target, Timeouts
from headwater.gateway.settle import Settler
from headwater.gateway.stop import LiveRequests
from headwater.gateway.telemetry import Telemetry
from headwater.gateway.weights import Weights
from headwater.ledger.book import Book
from headwater.ledger.price_list import PriceList
from headwater.ledger.writer import LedgerWriter
from headwater.replica import Progress, ReplicaEndpoint, ReplicaStatus
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
        self._clock = clock
        self._live = LiveRequests()
        self._is_draining = False
        self._fleet = Fleet()
        self._pools: dict[str, Pool[Engine]] = {}
        self._contexts: dict[str, tuple[str, int]] = {}
        self._wished_contexts: dict[str, int] = {}
        self._upstreams: dict[str, UpstreamSettings] = {}
        self._guards: dict[str, Guard] = {}
        self.models = ModelDirectory(self._build_targets(settings), _routes(settings))
        self.settler = Settler(writer)
        self.telemetry = Telemetry(writer)
        self.telemetry.watch(lambda: self.models, self._live)
        self.overload = Overload(
            lag_max_s=limits.event_loop_lag_max_s, memory_bytes_max=limits.memory_bytes_max, telemetry=self.telemetry
        )
        self.authenticator = Authenticator(database, cache_count=limits.key_cache_count, clock=clock)
        self.cashier = Cashier(
            book,
            self.settler,
            PriceList(stand_ins=_first_targets(settings)),
            database=database,
            epoch=epoch,
            currency=settings.billing.currency,
            is_unpriced_refused=settings.billing.unpriced == "refuse",
            receivers=[receiver_id(webhook.url) for webhook in settings.webhooks],
            telemetry=self.telemetry,
            clock=clock,
        )
        self.limits = RateLimiter(telemetry=self.telemetry, clock=clock)
        self.weights = Weights()
        context = LifeContext(
            clock=clock,
            cashier=self.cashier,
            limits=self.limits,
            settler=self.settler,
            telemetry=self.telemetry,
            weights=self.weights,
            live=self._live,
            concurrent_max=limits.concurrent_requests_max,
            output_default_max=limits.output_tokens_default_max,
            is_draining=lambda: self._is_draining,
        )
        self.idempotency = Idempotency(database, settings.billing, clock=clock)
        self._context = context
        self._chat = chat = ChatCompletions(
            limits,
            models=self.models,
            authenticator=self.authenticator,
            context=context,
            idempotency=self.idempotency,
            overload=self.overload,
            clock=clock,
        )
        health = Health(
            models=self.models, writer=writer, telemetry=self.telemetry, is_draining=lambda: self._is_draining
        )
        account = Account(
            models=self.models,
            database=database,
            cashier=self.cashier,
            weights=self.weights,
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

    def apply(self, settings: Settings) -> None:
        """Serve this configuration from the next request on; what is being served keeps what it began with.

        Takes deployments, upstreams, routes, time-outs and the limits that `headwater.reload` says can change. The
        controller brings the replicas: those of a deployment that is gone serve its queue to the end.
        """
        self._limits = limits = settings.gateway
        self.models.replace(self._build_targets(settings), _routes(settings))
        self.cashier.prices.stand_in(_first_targets(settings))
        self._context = self._context._replace(
            concurrent_max=limits.concurrent_requests_max, output_default_max=limits.output_tokens_default_max
        )
        self._chat.apply(limits, self._context)

    def _build_targets(self, settings: Settings) -> dict[str, Target]:
        """What can be called, on the pools there are and those that are missing; what nobody can call any more is left."""
        limits, clock = self._limits, self._clock
        upstreams = {upstream.name: upstream for upstream in settings.upstreams}
        for name in self._upstreams.keys() - upstreams.keys():
            self._fleet.remove(name)
            del self._pools[name]
        names = {deployment.name for deployment in settings.deployments} | upstreams.keys()
        own = {one.name for one in settings.deployments}
        for name in names - self._pools.keys():
            self._pools[name] = Pool[Engine](name, queued_max=limits.queued_requests_max, is_slot_kept=name in own)
        for pool in self._pools.values():
            pool.queued_max = limits.queued_requests_max
        self._fleet.leave(self._pools.keys() - names)
        for name, upstream in upstreams.items():
            if self._upstreams.get(name) != upstream:
                engine = _upstream_engine(upstream, limits)
                member = Member[Engine](name, engine, upstream.concurrency_max, is_slotted=False)
                self._fleet.replace(self._pools[name], member)
                self._guards[name] = Guard(name, failures_max=upstream.failures_max, retries_max=upstream.retries_max)
        for deployment in settings.deployments:  # their supervisor is their breaker
            self._guards.setdefault(deployment.name, Guard(deployment.name, failures_max=0, retries_max=1))
        self._upstreams = upstreams
        self._wished_contexts = {d.name: d.context_tokens for d in settings.deployments}
        return {
            **{d.name: self._own_target(d, clock) for d in settings.deployments},
            **{
                t.name: t._replace(guard=self._guards[u.name])
                for u in settings.upstreams
                for t in _upstream_targets(u, limits, self._pools[u.name], clock)
            },
        }

    def _context_of(self, deployment: str) -> int:
        """What each of its replicas can hold: while a changed deployment has old ones too, the least of them."""
        there = [tokens for name, tokens in self._contexts.values() if name == deployment]
        return min(self._wished_contexts[deployment], *there) if there else self._wished_contexts[deployment]

    def _fit_context(self, deployment: str) -> None:
        """A replica came or went: the requests taken from now on are such as all of those that are there can hold."""
        targets = {target.name: target for target in self.models.all()}
        target = targets.get(deployment)
        if target is not None and target.context_tokens != self._context_of(deployment):
            targets[deployment] = target._replace(context_tokens=self._context_of(deployment))
            self.models.replace(targets)

    def _own_target(self, deployment: DeploymentSettings, clock: Clock) -> Target:
        limits = self._limits
        return Target(
            name=deployment.name,
            engine_model=deployment.name,
            pool=self._pools[deployment.name],
            timeouts=Timeouts(limits.first_byte_timeout_s, limits.idle_timeout_s, limits.total_timeout_s),
            context_tokens=self._context_of(deployment.name),
            is_own=True,
            created_at_s=int(clock.now_s()),
            guard=self._guards[deployment.name],
        )

    # -- what the controller tells and asks; `controller/replica_task.py` says what each means ---------------------------

    def announce(self, endpoint: ReplicaEndpoint) -> None:
        """A replica became ready, or is trusted again: its slots take from the queue."""
        pool, known = self._pools[endpoint.deployment], self._fleet.known(endpoint.replica_id)
        if known is None:
            engine = ReplicaEngine(endpoint, connect_timeout_s=self._limits.connect_timeout_s)
            known = Member[Engine](endpoint.replica_id, engine, endpoint.slots_count, is_slotted=True)
        self._contexts[endpoint.replica_id] = endpoint.deployment, endpoint.context_tokens
        self._fleet.add(pool, known)
        self._fit_context(endpoint.deployment)

    def retire(self, _deployment: str, replica_id: str) -> None:
        """A replica gets no new calls; those running on it go on."""
        self._fleet.retire(replica_id)

    def withdraw(self, deployment: str, replica_id: str) -> None:
        """A replica is gone; calls running on it fail by themselves."""
        self._fleet.withdraw(replica_id)
        self._contexts.pop(replica_id, None)
        self._fit_context(deployment)

    def progress(self, _deployment: str, replica_id: str) -> Progress | None:
        """What a replica's calls show of its being alive; None when it isn't announced."""
        return self._fleet.progress(replica_id)

    def held_count(self, _deployment: str, replica_id: str) -> int:
        """Calls that hold a place on a replica, or that only it can still serve."""
        return self._fleet.held_count(replica_id)

    def report(self, deployment: str, statuses: list[ReplicaStatus]) -> None:
        """The states of a deployment's replicas; none: the last one of a deployment that was taken out is gone."""
        pool = self._pools[deployment]
        pool.report(statuses)
        if not statuses and all(target.pool is not pool for target in self.models.all()):
            del self._pools[deployment]

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
        await self._fleet.close()
        self.authenticator.close()


def _routes(settings: Settings) -> dict[str, tuple[str, ...]]:
    """The names of each route's targets."""
    return {route.name: route.targets for route in settings.routes}


def _first_targets(settings: Settings) -> dict[str, str]:
    """Whose price a route has that has none of its own: callers don't pay for what fails on our side."""
    return {route.name: route.targets[0] for route in settings.routes}


def _upstream_targets(
    upstream: UpstreamSettings, limits: GatewaySettings, pool: Pool[Engine], clock: Clock
) -> list[Target]:
    """One target for each model of an upstream; they share its places and its queue."""
    timeouts = Timeouts(
        upstream.first_byte_timeout_s or limits.first_byte_timeout_s,
        upstream.idle_timeout_s or limits.idle_timeout_s,
        upstream.total_timeout_s or limits.total_timeout_s,
    )
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


def _upstream_engine(upstream: UpstreamSettings, limits: GatewaySettings) -> UpstreamEngine:
    """The client of an upstream, with its credential."""
    headers = {name.lower(): value.reveal() for name, value in upstream.headers.items()}
    if upstream.api_key is not None:
        headers["authorization"] = f"Bearer {upstream.api_key.reveal()}"
    return UpstreamEngine(
        name=upstream.name,
        base_url=upstream.base_url,
        headers=headers,
        output_cap_field=upstream.output_cap_field,
        running_counts=upstream.running_counts,
        connect_timeout_s=upstream.connect_timeout_s or limits.connect_timeout_s,
    )
