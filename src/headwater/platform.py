"""One process that is the whole platform: ledger, gateway, controller and admin socket, wired, started and stopped in order.

Start: lock ─▶ ledger ─▶ gateway ─▶ engines ─▶ sockets. Stop is the way back: no new requests, drain, engines, ledger, lock.
The caller holds the data directory's lock and the bound sockets (`cli/up.py`).
"""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from starlette.types import ASGIApp

from headwater.admin.administration import Administration
from headwater.admin.books import Books, open_books, publish_prices
from headwater.admin.client import build_administration
from headwater.admin.running import RELOAD, Reload
from headwater.admin.server import OnLoop, build_admin_app
from headwater.catalogue.resolve import ResolvedModel
from headwater.clock import Clock
from headwater.controller.calibration import Calibration
from headwater.controller.engine_log import trim_log
from headwater.controller.replica_task import CHILD_COMMAND
from headwater.controller.supervisor import Supervisor
from headwater.errors import OperatorError
from headwater.gateway.app import Gateway
from headwater.gateway.connections import REFUSED_MAX, Bounds
from headwater.gateway.live import LiveBooks
from headwater.gateway.server import HttpServer
from headwater.gateway.vitals import raise_descriptor_limit
from headwater.gateway.webhooks import Webhooks
from headwater.housekeeping import FIRST_AFTER_S, Housekeeping, every
from headwater.ledger import archive, store
from headwater.ledger.background_verify import BackgroundVerify
from headwater.ledger.load_book import load_book
from headwater.ledger.verify_result import VerifyResult
from headwater.operations import RunningPlatform, deployment_plans
from headwater.replica import ReplicaStatus
from headwater.settings.model import Settings

log = structlog.get_logger()

SOCKET_PATH_BYTES_MAX = 107
"""A Unix socket's address holds 108 bytes, the closing zero among them."""
_ENGINE_SOCKET_NAME_BYTES = 18
ARCHIVE_INTERVAL_S = 3600.0
DESCRIPTORS_RESERVED = 256
"""For the database, logs, engines and the admin socket."""


class Platform:
    """The running platform. Make it, `start()`, serve, `stop()`; all on one event loop."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[ResolvedModel],
        *,
        clock: Clock,
        read_settings: Callable[[], Settings] | None = None,
        engine_command: Sequence[str] = CHILD_COMMAND,
    ) -> None:
        """models: for each deployment its resolved model file, in the same order.

        read_settings: reads the configuration anew, as it was read for this start; None: a reload changes nothing.
        engine_command: the program of the engines' processes; another one only in tests.
        """
        self._settings = settings
        self._clock = clock
        self._plans = deployment_plans(settings, models)
        self._read_settings = read_settings or (lambda: settings)
        self._engine_command = engine_command
        self._loop = asyncio.get_running_loop()
        self._servers: list[HttpServer] = []
        self._books: Books | None = None
        self._housekeeping = Housekeeping()
        self._run_directory: Path | None = None
        self.ledger_failure: asyncio.Future[BaseException] = self._loop.create_future()
        """Resolves when the ledger failed: the process is then to end with a failure."""

    def start_ledger(self) -> Administration:
        """Open the books and the gateway on them, what an earlier process left unfinished resolved; returns their admin."""
        settings, clock = self._settings, self._clock
        self._books = books = open_books(settings.store.path, clock=clock, on_fatal=self._ledger_failed)
        if books.recovered.posted_count or books.recovered.voided_count:
            posted_count, voided_count, charged_nanos = books.recovered
            log.warning(
                "requests_recovered", posted_count=posted_count, voided_count=voided_count, charged_nanos=charged_nanos
            )
        publish_prices(books, settings.prices, settings.costs, currency=settings.billing.currency, clock=clock)
        book = books.read(lambda reader: load_book(reader, keys_count_max=settings.gateway.key_cache_count))
        self.gateway = Gateway(
            settings,
            writer=books.writer,
            database=settings.store.path,
            book=book,
            epoch=books.begin_epoch(clock=clock),
            clock=clock,
        )
        self.gateway.cashier.prices.load(books.read(store.read_prices))
        books.read(self.gateway.limits.load)
        books.read(self.gateway.weights.load)
        live = LiveBooks(
            self.gateway.authenticator,
            self.gateway.cashier,
            self.gateway.idempotency,
            self.gateway.limits,
            self.gateway.weights,
        )
        self.administration = build_administration(settings, books, clock=clock, live=OnLoop(live, self._loop))
        return self.administration

    async def start(self, listener: socket.socket, admin_listener: socket.socket) -> None:
        """Start engines and servers; returns when both sockets answer, engines may still be loading."""
        data_directory = self._settings.store.data_directory.resolve()
        self._run_directory = make_run_directory(data_directory)
        self.supervisor = Supervisor(
            self._plans,
            run_directory=self._run_directory,
            log_directory=data_directory / "logs",
            calibration=Calibration(data_directory / "calibration.json"),
            clock=self._clock,
            gateway=self.gateway,
            command=self._engine_command,
        )
        assert self._books is not None
        self.running = self.administration.operations = RunningPlatform(
            self._settings,
            self._plans,
            read_settings=self._read_settings,
            gateway=self.gateway,
            supervisor=self.supervisor,
            books=self._books,
            clock=self._clock,
            loop=self._loop,
        )
        self.supervisor.start()
        self._keep_house()
        telemetry = self.gateway.telemetry
        bounds = Bounds(self._connections_max(), on_refused=telemetry.connections_refused.inc)
        telemetry.connections.set_function(lambda: len(bounds.open))
        overload = self.gateway.overload

        def shed_early(is_shedding: bool) -> None:
            bounds.refuse_early = overload.refuse_early if is_shedding else None

        overload.on_level = shed_early
        admin = build_admin_app(self.administration)
        faces: list[tuple[ASGIApp, socket.socket, Bounds]] = [
            (self.gateway.app, listener, bounds),
            (admin, admin_listener, Bounds()),
        ]
        for app, bound, its_bounds in faces:
            server = HttpServer(app, bound, bounds=its_bounds)
            await server.start()
            self._servers.append(server)
        host, port = listener.getsockname()[:2]
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        log.info("platform_started", listen=self._settings.gateway.listen, base_url=self.base_url, pid=os.getpid())

    def _connections_max(self) -> int:
        """As many connections of clients as are configured, or as leave file descriptors for everything else."""
        wanted = self._settings.gateway.connections_max
        descriptors_max = raise_descriptor_limit()
        # A request has a connection of its own to each engine it calls.
        others = DESCRIPTORS_RESERVED + self._settings.gateway.concurrent_requests_max + REFUSED_MAX
        possible = max(REFUSED_MAX, descriptors_max - others)
        if possible < wanted:
            log.warning(
                "descriptors_short",
                descriptors_max=descriptors_max,
                connections_max=possible,
                wanted_connections_max=wanted,
            )
        return min(wanted, possible)

    async def reload(self) -> None:
        """Make the configuration true as it is now; what comes of it, a refusal too, is in the log."""
        with contextlib.suppress(OperatorError):  # an impossible one is logged, and nothing was changed
            await asyncio.to_thread(self.administration.perform, RELOAD, Reload())

    @property
    def settings(self) -> Settings:
        """The configuration in force."""
        return self.running.settings if hasattr(self, "running") else self._settings

    def replica_statuses(self) -> list[ReplicaStatus]:
        """How every replica is doing."""
        return self.supervisor.statuses

    async def engines_settled(self) -> None:
        """Wait until every replica is ready or failed (each start has a time-out of its own)."""
        await self.supervisor.settled()

    async def stop(self, *, drain_timeout_s: float, hurry: asyncio.Event) -> None:
        """Drain, then stop everything in order; `hurry` ends the draining. Safe after a start that failed half-way."""
        log.info("platform_stopping", live_requests_count=self.gateway.live_count, drain_timeout_s=drain_timeout_s)
        await self.gateway.drain(drain_timeout_s, hurry=hurry)
        for server in self._servers:
            await server.stop()
        if hasattr(self, "supervisor"):
            await self.supervisor.stop()
        await self._housekeeping.stop()
        await self.gateway.close()
        if self._books is not None:
            await asyncio.to_thread(self._books.close)
        if self._run_directory is not None:
            shutil.rmtree(self._run_directory, ignore_errors=True)
        log.info("platform_stopped")

    def _keep_house(self) -> None:
        """Begin what runs besides serving: holds and credit expire, notices go out, old records leave, the books are proved."""
        settings, books, begin = self._settings, self._books, self._housekeeping.begin
        assert books is not None
        begin("overload", self.gateway.overload.watch)
        begin("expire", self.gateway.cashier.keep_house)
        if settings.webhooks:
            webhooks = Webhooks(
                settings.webhooks,
                database=books.database,
                writer=books.writer,
                telemetry=self.gateway.telemetry,
                clock=self._clock,
            )
            self.gateway.cashier.on_notice = webhooks.wake
            begin("webhooks", webhooks.run)
        directory = settings.store.data_directory / archive.DIRECTORY
        archiver = archive.Archiver(
            books.database, books.writer, directory, settings.store.archive_after_days, self._clock
        )
        verify = BackgroundVerify(books.database, self._verified)
        one_at_a_time = asyncio.Lock()  # what is moved away while the log is read has to be read again

        async def archive_once() -> None:
            async with one_at_a_time:
                await archiver.run_once()

        async def verify_once() -> None:
            async with one_at_a_time:
                await verify.verify_once()

        async def trim_logs() -> None:
            await asyncio.gather(*(asyncio.to_thread(trim_log, one.log_path) for one in self.supervisor.replicas))

        begin("archive", lambda: every(ARCHIVE_INTERVAL_S, archive_once))
        begin("verify", lambda: every(settings.store.verify_interval_s, verify_once))
        begin("logs", lambda: every(FIRST_AFTER_S, trim_logs))

    def _verified(self, result: VerifyResult) -> None:
        """The books were recomputed."""
        telemetry = self.gateway.telemetry
        telemetry.verified.set(int(result.is_ok))
        telemetry.verified_at.set(self._clock.now_s())

    def _ledger_failed(self, failure: BaseException) -> None:
        """Called on the writer's thread."""

        def tell() -> None:
            self.gateway.ledger_failed(failure)
            if not self.ledger_failure.done():
                self.ledger_failure.set_result(failure)

        self._loop.call_soon_threadsafe(tell)


def make_run_directory(data_directory: Path) -> Path:
    """A directory (0700) for the engines' sockets: in the data directory, or a temporary one when that path is too long."""
    directory = data_directory / "run"
    if len(os.fsencode(directory)) + _ENGINE_SOCKET_NAME_BYTES > SOCKET_PATH_BYTES_MAX:
        return Path(tempfile.mkdtemp(prefix="headwater-"))
    shutil.rmtree(directory, ignore_errors=True)  # leftovers of a process that was killed
    directory.mkdir(mode=0o700)
    return directory
