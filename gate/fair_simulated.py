"""F1, F2, F3, F5 and F6 in virtual time, on the real pool: the same figures at every run."""

from collections.abc import Callable, Sequence

from gate.fair_decisions import decision_times_us
from gate.fair_goals import Goal, at_most
from gate.fair_world import Outcome, Queue, Tenant, World, jain, percentile
from headwater.scheduling.bands import Band
from headwater.scheduling.fair_queue import INPUT_WEIGHT, OUTPUT_WEIGHT, WINDOW_TOKENS, FairQueue
from tests.rig.fair_queues import FirstCome, RoundRobin, WarmestFirst

SLOTS_COUNT = 8
SHORT = Tenant("short", input_tokens=(16, 48), output_tokens=(16, 48))
LONG = Tenant("long", input_tokens=(256, 768), output_tokens=(128, 384))
JAIN_MIN, JAIN_WARM_MIN = 0.99, 0.95
WEIGHT_ERROR_MAX = 0.03
HITS_PART_MIN = 0.9
DECISION_US_MAX, TENANTS_COUNT = 200.0, 1000


def jain_min(outcome: Outcome) -> float:
    """Jain's index of the worst minute."""
    return min(jain(list(served.values())) for served in outcome.windows.values())


def keys_of_one(tenants: Sequence[Tenant]) -> list[Tenant]:
    """The same load, as keys of one organization."""
    return [one._replace(organization="one", key=one.organization, weight=1, key_weight=one.weight) for one in tenants]


def equal_tenants(make: Callable[[], Queue], minutes: int, *, twin: str | None = None) -> list[Goal]:
    """F1: two that always wait, one with short requests, one with long ones."""
    found = []
    for name, tenants in (("F1_jain_min", [SHORT, LONG]), ("F1_keys_jain_min", keys_of_one([SHORT, LONG]))):
        outcome = World(tenants, make()).run(minutes)
        found.append(Goal(name, jain_min(outcome), JAIN_MIN, twin=twin))
        if twin is None and tenants[0] is SHORT:
            most = max(INPUT_WEIGHT * LONG.input_tokens[1], OUTPUT_WEIGHT * SLOTS_COUNT * LONG.output_tokens[1])
            found.append(at_most("F1_gap_tokens", outcome.gap_max, 2 * most + WINDOW_TOKENS))
    return found


def weights(minutes: int) -> list[Goal]:
    """F2: weights of 1, 2 and 4, over the whole run."""
    tenants = [Tenant(f"w{one}", weight=one, input_tokens=(16, 256), output_tokens=(16, 96)) for one in (1, 2, 4)]
    found = []
    for name, load in (("F2_error_max", tenants), ("F2_keys_error_max", keys_of_one(tenants))):
        served = World(load, FairQueue()).run(minutes).of_all()
        total = sum(served.values())
        errors = [abs(cost / total / (one / 7) - 1) for one, cost in zip((1, 2, 4), served.values(), strict=True)]
        found.append(at_most(name, max(errors), WEIGHT_ERROR_MAX))
    return found


def quiet_tenant(make: Callable[[], Queue], minutes: int, *, twin: str | None = None) -> list[Goal]:
    """F3: one at a quarter of the capacity beside one that sends ten times the capacity; also as keys of one organization."""
    capacity_per_s = SLOTS_COUNT / LONG.service_s
    flood = LONG._replace(organization="flood", rate_per_s=10 * capacity_per_s)
    quiet = LONG._replace(organization="quiet", rate_per_s=0.25 * capacity_per_s)
    # Within one organization the bound is shared by arrival, so the flood of a key is kept below it.
    steady = flood._replace(rate_per_s=None, depth=128)
    found = []
    for name, tenants in (("F3", [quiet, flood]), ("F3_keys", keys_of_one([quiet, steady]))):
        outcome = World(tenants, make()).run(minutes)
        waits_s, refused = outcome.waits_s[tenants[0].name], outcome.refused[tenants[0].name]
        found.append(at_most(f"{name}_wait_p95_s", percentile(waits_s, 0.95), LONG.service_s, "s")._replace(twin=twin))
        if twin is None:
            found.append(at_most(f"{name}_refused", refused, 0))
    return found


def warm_prefixes(minutes: int) -> list[Goal]:
    """F5: two tenants with six long shared beginnings each, more than there are slots, on one replica and on two."""
    tenants = [
        Tenant(name, prefixes_count=6, input_tokens=(900, 1100), output_tokens=(16, 96), depth=40) for name in "ab"
    ]
    found = []
    for name, slots in (("F5", (8,)), ("F5_two_replicas", (4, 4))):
        ours = World(tenants, FairQueue(), slots=slots).run(minutes)
        most = World(tenants, WarmestFirst(), slots=slots).run(minutes)
        part = (ours.cached_tokens / ours.prompt_tokens) / (most.cached_tokens / most.prompt_tokens)
        found += [
            Goal(f"{name}_hits_part", part, HITS_PART_MIN),
            Goal(f"{name}_jain_min", jain_min(ours), JAIN_WARM_MIN),
        ]
    return found


def batch_floor(minutes: int) -> list[Goal]:
    """The band at the bottom is served a tenth of the tokens while the others flood."""
    bands = [LONG._replace(organization=band.name, band=band) for band in Band]
    served = World(bands, FairQueue()).run(minutes).of_all()
    return [Goal("floor_part", served["BATCH/key"] / sum(served.values()), 0.09)]


def decisions(count: int) -> list[Goal]:
    """F6: CPU time of a decision with a thousand organizations, and with a thousand keys of one."""
    found = []
    for name, is_one in (("F6_decision_p99_us", False), ("F6_keys_decision_p99_us", True)):
        times = decision_times_us(TENANTS_COUNT, count, is_one_organization=is_one)
        found.append(at_most(name, percentile(times, 0.99), DECISION_US_MAX, " µs"))
    return found


def run(minutes: int) -> list[Goal]:
    """All of it, and the orders that must be caught. minutes: of virtual time, for each load."""
    goals = equal_tenants(FairQueue, minutes) + weights(2 * minutes) + quiet_tenant(FairQueue, 2 * minutes)
    goals += warm_prefixes(minutes) + batch_floor(minutes) + decisions(1000 * minutes)
    goals += equal_tenants(FirstCome, minutes, twin="first_come") + quiet_tenant(FirstCome, minutes, twin="first_come")
    return goals + equal_tenants(RoundRobin, minutes, twin="round_robin")
