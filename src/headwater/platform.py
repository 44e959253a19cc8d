"""One process that is the whole platform: ledger, gateway, controller and admin socket, wired, started and stopped in order.

Start: lock ─▶ ledger ─▶ gateway ─▶ engines ─▶ sockets. Stop is the way back: no new requests, drain, engines, ledger, lock.
The caller holds the data directory's lock and the bound sockets (`cli/up.py`).
"""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog
from starlette.types import ASGIApp

from headwater.admin.administration import Administration
from headwater.admin.books import Books, open_books, publish_prices
from headwater.admin.client import build_administration
from headwater.admin.server import OnLoop, build_admin_app
from headwater.catalogue.resolve import ResolvedModel
from headwater.clock import Clock
from headwater.controller.calibration import Calibration
from headwater.controller.supervisor import DeploymentPlan, Supervisor, trim_log
from headwater.gateway.app import Gateway
from headwater.gateway.live import LiveBooks
from headwater.gateway.server import HttpServer
from headwater.gateway.webhooks import Webhooks
from headwater.housekeeping import FIRST_AFTER_S, Housekeeping, every
from headwater.ledger import archive, store
from headwater.ledger.background_verify import BackgroundVerify
from headwater.ledger.load_book import load_book
from headwater.ledger.verify_result import VerifyResult
from headwater.replica import ReplicaStatus
from headwater.settings.model import DeploymentSettings, Settings

log = structlog.get_logger()

SOCKET_PATH_BYTES_MAX = 107
"""A Unix socket's address holds 108 bytes, the closing zero among them."""
_ENGINE_SOCKET_NAME_BYTES = 18
ARCHIVE_INTERVAL_S = 3600.0


class Platform:
    """The running platform. Make it, `start()`, serve, `stop()`; all on one event loop."""

    def __init__(self, settings: Settings, models: Sequence[ResolvedModel], *, clock: Clock) -> None:
        """models: for each deployment its resolved model file, in the same order."""
        self._settings = settings
        self._clock = clock
        replicas_count = sum(deployment.replicas for deployment in settings.deployments)
        self._plans = [
            deployment_plan(deployment, model, replicas_count=replicas_count)
            for deployment, model in zip(settings.deployments, models, strict=True)
        ]
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
        live = LiveBooks(self.gateway.authenticator, self.gateway.cashier, self.gateway.idempotency)
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
        )
        self.supervisor.start()
        self._keep_house()
        admin = build_admin_app(self.administration)
        faces: list[tuple[ASGIApp, socket.socket]] = [(self.gateway.app, listener), (admin, admin_listener)]
        for app, bound in faces:
            server = HttpServer(app, bound)
            await server.start()
            self._servers.append(server)
        host, port = listener.getsockname()[:2]
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        log.info("platform_started", listen=self._settings.gateway.listen, base_url=self.base_url, pid=os.getpid())

    def replica_statuses(self) -> list[ReplicaStatus]:
        """How every replica is doing."""
        return [replica.status for replica in self.supervisor.replicas]

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


def deployment_plan(deployment: DeploymentSettings, model: ResolvedModel, *, replicas_count: int) -> DeploymentPlan:
    """What the controller needs to run a deployment.

    Threads unset: an even share of the machine's cores but one, which is the gateway's, among all replicas_count replicas
    of the platform. Engines with more threads than cores are slower than with one each: their barriers spin.
    """
    stat = model.path.stat()
    return DeploymentPlan(
        name=deployment.name,
        model_path=model.path.resolve(),
        model_digest=model.sha256 or f"{model.path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}",
        chat_template=model.chat_template,
        replicas_count=deployment.replicas,
        slots_count=deployment.slots,
        context_tokens=deployment.context_tokens,
        threads=deployment.threads or max(1, ((os.cpu_count() or 2) - 1) // replicas_count),
        batch_tokens=deployment.batch_tokens,
        start_timeout_s=deployment.start_timeout_s,
        restarts=(deployment.restarts_max, deployment.restart_window_s),
    )


def make_run_directory(data_directory: Path) -> Path:
    """A directory (0700) for the engines' sockets: in the data directory, or a temporary one when that path is too long."""
    directory = data_directory / "run"
    if len(os.fsencode(directory)) + _ENGINE_SOCKET_NAME_BYTES > SOCKET_PATH_BYTES_MAX:
        return Path(tempfile.mkdtemp(prefix="headwater-"))
    shutil.rmtree(directory, ignore_errors=True)  # leftovers of a process that was killed
    directory.mkdir(mode=0o700)
    return directory
