"""What a request leaves behind besides its record: one log line, a few counters. At most 40 µs a request (see bench)."""

import asyncio
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headwater.gateway.routing import ModelDirectory
from headwater.gateway.stop import LiveRequests
from headwater.ledger.rows import Settlement
from headwater.ledger.writer import LedgerWriter
from headwater.replica import ReplicaState
from headwater.scheduling.bands import Band, band_of_record

log = structlog.get_logger()

TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
ITL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
DURATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class _ModelMetrics:
    """The children of one model's series, looked up once."""

    def __init__(self, telemetry: "Telemetry", model: str) -> None:
        self.requests = {
            outcome: telemetry.requests.labels(model, outcome)
            for outcome in ("ok", "client_gone", "upstream_error", "timeout", "rejected")
        }
        self.input = telemetry.tokens.labels(model, "input")
        self.cache_read = telemetry.tokens.labels(model, "cache_read")
        self.output = telemetry.tokens.labels(model, "output")
        self.ttft = telemetry.ttft.labels(model)
        self.queue = [telemetry.queue.labels(model, band.name.lower()) for band in Band]
        self.duration = telemetry.duration.labels(model)
        self.unpriced = telemetry.unpriced.labels(model)


class Telemetry:
    """Metrics of the gateway, in a registry of its own. Labels have few values: a configured model, an outcome; never a key."""

    def __init__(self, writer: LedgerWriter) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` line beside every series says nothing here and doubles the page
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "headwater_gateway_requests", "Requests with a usage record.", ("model", "outcome"), registry=registry
        )
        self.refusals = Counter(
            "headwater_gateway_refusals", "Requests refused without a record.", ("code",), registry=registry
        )
        self.tokens = Counter(
            "headwater_gateway_tokens", "Tokens on usage records.", ("model", "kind"), registry=registry
        )
        self.ttft = Histogram(
            "headwater_gateway_ttft_seconds",
            "Request received to first output sent, queueing included.",
            ("model",),
            registry=registry,
            buckets=TTFT_BUCKETS_S,
        )
        self.inter_token = Histogram(
            "headwater_gateway_inter_token_seconds",
            "Mean time between the content events of one call, after its first.",
            ("model",),
            registry=registry,
            buckets=ITL_BUCKETS_S,
        )
        self.queue = Histogram(
            "headwater_gateway_queue_seconds",
            "Longest wait of a request's attempts for a place.",
            ("model", "band"),
            registry=registry,
            buckets=TTFT_BUCKETS_S,
        )
        self.duration = Histogram(
            "headwater_gateway_request_seconds",
            "Request received to the end of the engine's work on it.",
            ("model",),
            registry=registry,
            buckets=DURATION_BUCKETS_S,
        )
        self.unpriced = Counter(
            "headwater_gateway_unpriced_requests",
            "Requests whose model has no price: used, recorded, not charged.",
            ("model",),
            registry=registry,
        )
        self.absorbed = Counter(
            "headwater_gateway_absorbed_units",
            "Cost above what was reserved, borne by the platform, in whole units of the currency.",
            registry=registry,
        )
        self.budget_thresholds = Counter(
            "headwater_gateway_budget_thresholds",
            "Thresholds that the spending of a budget has reached.",
            ("scope",),
            registry=registry,
        )
        self.rate_limit_refusals = Counter(
            "headwater_gateway_rate_limit_refusals",
            "Requests that a rate limit refused.",
            ("scope", "limited"),
            registry=registry,
        )
        self.webhooks = Counter(
            "headwater_gateway_webhooks",
            "Tries to send a notice to a webhook.",
            ("outcome",),
            registry=registry,
        )
        # Known beforehand, so these series are there before anything happens.
        for scope in ("organization", "project", "key", "tag"):
            self.budget_thresholds.labels(scope)
        for scope in ("organization", "project", "key", "model"):
            for limited in ("requests", "tokens", "concurrency"):
                self.rate_limit_refusals.labels(scope, limited)
        for outcome in ("delivered", "failed", "given_up"):
            self.webhooks.labels(outcome)
        self.replays = Counter(
            "headwater_gateway_idempotent_replays",
            "Requests answered from what was kept for their idempotency key.",
            registry=registry,
        )
        self.bad_lines = Counter(
            "headwater_gateway_upstream_bad_lines", "Unreadable lines passed over in engine streams.", registry=registry
        )
        self.verified = Gauge(
            "headwater_ledger_verified",
            "1 when the last verification found every row and sum as the log says, 0 when not.",
            registry=registry,
        )
        self.verified_at = Gauge(
            "headwater_ledger_verified_timestamp_seconds", "When the books were last verified.", registry=registry
        )
        self.loop_lag = Histogram(
            "headwater_gateway_event_loop_lag_seconds",
            "How late the event loop was, sampled twenty times a second.",
            registry=registry,
            buckets=LAG_BUCKETS_S,
        )
        self.shed = Counter(
            "headwater_gateway_shed_requests", "Requests refused by the overload guards.", ("band",), registry=registry
        )
        for band in ("interactive", "standard", "batch"):
            self.shed.labels(band)
        self.shed_level = Gauge(
            "headwater_gateway_shed_level", "Bands refused by the overload guards; 0 when healthy.", registry=registry
        )
        self.memory_bytes_max = Gauge(
            "headwater_gateway_memory_max_bytes", "Bound of the process's resident memory.", registry=registry
        )
        self.connections = Gauge(
            "headwater_gateway_connections", "Connections of clients that are open.", registry=registry
        )
        self.connections_refused = Counter(
            "headwater_gateway_refused_connections", "Connections over the bound, answered 503.", registry=registry
        )
        self.tasks = Gauge("headwater_gateway_tasks", "Tasks of the event loop.", registry=registry)
        self.tasks.set_function(lambda: len(asyncio.all_tasks()))
        ProcessCollector(registry=registry)
        self.live = Gauge("headwater_gateway_live_requests", "Requests being served or queued.", registry=registry)
        registry.register(_LedgerCollector(writer))
        self._models: dict[str, _ModelMetrics] = {}
        self._paces: dict[str, Histogram] = {}

    def watch(self, models: Callable[[], ModelDirectory], live: LiveRequests) -> None:
        """Also export the queues and replicas of these models, and how many requests live."""
        self.registry.register(_PoolCollector(models))
        self.registry.register(_GuardCollector(models))
        self.live.set_function(lambda: len(live))

    def settled(self, settlement: Settlement) -> None:
        """Count and log one settled request."""
        record = settlement.record
        metrics = self._models.get(record.model)
        if metrics is None:
            metrics = self._models[record.model] = _ModelMetrics(self, record.model)
        usage = record.usage
        metrics.requests[record.outcome].inc()
        if usage.input or usage.output:
            metrics.input.inc(usage.uncached_input + usage.cache_write)
            metrics.cache_read.inc(usage.cache_read)
            metrics.output.inc(usage.output)
        if record.ttft_ms is not None:
            metrics.ttft.observe(record.ttft_ms / 1000)
        if record.cost_nanos is None:
            metrics.unpriced.inc()
        metrics.queue[band_of_record(record.service_tier)].observe(record.queue_ms / 1000)
        metrics.duration.observe(record.duration_ms / 1000)
        log.info(
            "request_settled",
            request_id=record.request_id,
            client_request_id=record.client_request_id,
            organization=record.organization_id,
            project=record.project_id,
            key=record.key_id,
            model=record.model,
            dialect=record.dialect,
            is_stream=record.is_stream,
            choices_count=record.choices_count,
            outcome=record.outcome,
            error_code=record.error_code,
            input_tokens=usage.input,
            cache_read_tokens=usage.cache_read,
            output_tokens=usage.output,
            usage_source=record.usage_source,
            cost_nanos=record.cost_nanos,
            queue_ms=record.queue_ms,
            ttft_ms=record.ttft_ms,
            duration_ms=record.duration_ms,
        )

    def call_ended(self, model: str, tokens_count: int, decode_s: float) -> None:
        """Count the pace of one call. decode_s: from its first content to its end."""
        if tokens_count > 1:
            pace = self._paces.get(model)
            if pace is None:
                pace = self._paces[model] = self.inter_token.labels(model)
            pace.observe(decode_s / (tokens_count - 1))

    def refused(self, code: str) -> None:
        """Count a request that left no record."""
        self.refusals.labels(code).inc()


class _LedgerCollector(Collector):
    """The writer's counters, read when asked."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer

    def collect(self) -> list[Metric]:
        commits = CounterMetricFamily("headwater_ledger_commits", "Commits of the ledger writer, one fsync each.")
        commits.add_metric((), self._writer.commits_count)
        settlements = CounterMetricFamily("headwater_ledger_settlements", "Settlements made durable.")
        settlements.add_metric((), self._writer.settlements_count)
        failed = GaugeMetricFamily("headwater_ledger_failed", "1 after an I/O error stopped the ledger.")
        failed.add_metric((), int(self._writer.failure is not None))
        return [commits, settlements, failed]


class _PoolCollector(Collector):
    """Queues and replicas of every model, read when asked."""

    def __init__(self, models: Callable[[], ModelDirectory]) -> None:
        self._models = models

    def collect(self) -> list[Metric]:
        queued = GaugeMetricFamily("headwater_gateway_queued", "Attempts waiting for a place.", labels=("pool",))
        busy = GaugeMetricFamily("headwater_gateway_busy_slots", "Places taken.", labels=("pool",))
        gap = GaugeMetricFamily(
            "headwater_gateway_fairness_gap_tokens",
            "Weighted tokens between the least and the most served organization that waits.",
            labels=("pool",),
        )
        sharing = CounterMetricFamily(
            "headwater_gateway_prefix_sharing",
            "Requests held back for a prompt being read, states saved and restored, and failures of these.",
            labels=("pool", "what"),
        )
        for pool in {id(target.pool): target.pool for target in self._models().all() if target.is_own}.values():
            for what in ("held", "saved", "restored", "failed"):
                sharing.add_metric((pool.name, what), getattr(pool.sharing, what))
        for pool in {id(target.pool): target.pool for target in self._models().all()}.values():
            queued.add_metric((pool.name,), pool.queued_count)
            busy.add_metric((pool.name,), pool.busy_count)
            gap.add_metric((pool.name,), pool.fairness_gap)
        replicas = GaugeMetricFamily(
            "headwater_replicas", "Replicas of a deployment by state.", labels=("model", "state")
        )
        restarts = CounterMetricFamily("headwater_replica_restarts", "Restarts of replicas.", labels=("model",))
        for target in self._models().all():
            if not target.is_own:
                continue
            for state in ReplicaState:
                count = sum(status.state is state for status in target.pool.statuses)
                replicas.add_metric((target.name, state.value), count)
            restarts.add_metric((target.name,), sum(status.restarts_count for status in target.pool.statuses))
        return [queued, busy, gap, sharing, replicas, restarts]


class _GuardCollector(Collector):
    """Breakers, retries and failovers of every upstream and deployment, read when asked."""

    def __init__(self, models: Callable[[], ModelDirectory]) -> None:
        self._models = models

    def collect(self) -> list[Metric]:
        state = GaugeMetricFamily(
            "headwater_gateway_breaker_state",
            "0 closed, 1 slow start, 2 half open, 3 open.",
            labels=("pool",),
        )
        opened = CounterMetricFamily("headwater_gateway_breaker_opened", "Times it opened.", labels=("pool",))
        retries = CounterMetricFamily("headwater_gateway_retries", "Calls made again.", labels=("pool",))
        failovers = CounterMetricFamily(
            "headwater_gateway_failovers", "Times a route's next target was asked instead.", labels=("pool",)
        )
        for target in {id(one.guard): one for one in self._models().all()}.values():
            guard = target.guard
            if guard is None:
                continue
            state.add_metric((guard.name,), guard.breaker.state.value)
            opened.add_metric((guard.name,), guard.breaker.opened_count)
            retries.add_metric((guard.name,), guard.retries_count)
            failovers.add_metric((guard.name,), guard.failovers_count)
        return [state, opened, retries, failovers]
