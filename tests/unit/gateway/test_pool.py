import asyncio
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headwater.errors import NoReplica, Overloaded, TimedOut
from headwater.gateway.placing import Place, Placing
from headwater.gateway.pool import Ask, Lease, Member, Pool
from headwater.replica import ReplicaState, ReplicaStatus
from tests.unit.gateway.fake_time import FakeTimeLoop, run

ONE = "org_1"


def member(member_id: str = "rep_1", places_count: int = 1, *, is_slotted: bool = True) -> Member[str]:
    return Member(member_id, f"endpoint of {member_id}", places_count, is_slotted=is_slotted)


def pool(*members: Member[str], queued_max: int = 100) -> Pool[str]:
    made = Pool[str]("m", queued_max=queued_max)
    for one in members:
        made.add_member(one)
    return made


def status(state: ReplicaState, reason: str = "") -> ReplicaStatus:
    return ReplicaStatus("rep_1", "m", state, reason, 0)


def of(organization_id: str = ONE, prefix: tuple[int, ...] = (), **changes: Any) -> Ask:
    """An ask of a key of this organization."""
    return Ask(organization_id, f"key of {organization_id}", prefix=prefix, **changes)


def ask(
    one: Pool[str], organization_id: str = ONE, prefix: tuple[int, ...] = (), **changes: Any
) -> "asyncio.Task[Lease[str]]":
    return asyncio.ensure_future(one.lease(of(organization_id, prefix, **changes)))


async def turn() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_first_come_first_served() -> None:
    async def work() -> None:
        one = pool(member(places_count=2))
        asked = [ask(one) for _ in range(6)]
        await turn()
        served: list[int] = []
        for _ in range(6):
            number = next(number for number, task in enumerate(asked) if task.done() and number not in served)
            served.append(number)
            one.release(asked[number].result())
            await turn()
        assert served == list(range(6))
        assert (one.queued_count, one.busy_count) == (0, 0)

    run(work())


def test_a_newcomer_does_not_overtake_who_waits() -> None:
    async def work() -> None:
        one = pool(member())
        lease = await one.lease(of())
        waiting = ask(one)
        await turn()
        one.release(lease)  # granted to who waited, though its task hasn't run yet
        newcomer = ask(one)
        await turn()
        assert waiting.done()
        assert not newcomer.done()
        newcomer.cancel()

    run(work())


def test_a_request_waits_for_a_replica_that_is_coming_and_takes_it_the_moment_it_is_ready() -> None:
    async def work() -> None:
        one = pool()
        one.report([status(ReplicaState.STARTING)])
        one.check(1)
        waiting, question = ask(one), asyncio.ensure_future(one.any_member())
        await turn()
        assert not waiting.done()
        assert not question.done()
        one.add_member(member("rep_9"))
        await turn()
        assert waiting.result().member.id == question.result().id == "rep_9"

    run(work())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        one = pool(member(places_count=2), queued_max=3)
        first, second = await one.lease(of()), await one.lease(of())
        await asyncio.sleep(30)
        one.release(first)
        first = await one.lease(of())
        assert one.service_mean_s == 30
        waiting = [ask(one) for _ in range(3)]
        await turn()
        with pytest.raises(Overloaded, match="3 wait, at most 3 may") as refused:
            one.check(1)
        assert refused.value.retry_after_s == 15  # 30 s a request, two places
        one.release(second)
        await turn()
        one.check(1)
        with pytest.raises(Overloaded):
            one.check(2)  # two more don't fit, whoever asks
        assert loop.time() == 1030
        for task in waiting:
            task.cancel()

    run(work())


def test_a_queue_of_none_still_serves_as_many_as_there_are_places() -> None:
    async def work() -> None:
        one = pool(member(places_count=2), queued_max=0)
        one.check(2)
        with pytest.raises(Overloaded):
            one.check(3)
        await one.lease(of())
        one.check(1)
        await one.lease(of())
        with pytest.raises(Overloaded) as refused:
            one.check(1)
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 1

    run(work())


@pytest.mark.parametrize("state", [ReplicaState.FAILED, ReplicaState.STOPPED, ReplicaState.STOPPING])
def test_when_the_last_replica_is_lost_whoever_waits_is_told(state: ReplicaState) -> None:
    async def work() -> None:
        one = pool(member())
        one.report([status(ReplicaState.READY)])
        await one.lease(of())
        waiting = [ask(one) for _ in range(3)]
        await turn()
        one.remove_member("rep_1")
        one.report([status(ReplicaState.BACKING_OFF)])  # it may come back
        question = asyncio.ensure_future(one.any_member())
        await turn()
        assert not any(task.done() for task in waiting)
        one.report([status(state, "the file /secret/path is no model")])
        await turn()
        for task in (*waiting, question):
            error = task.exception()
            assert isinstance(error, NoReplica)
            assert error.retry_after_s == 30
            assert "/secret" not in error.message
        assert one.queued_count == 0

    run(work())


def test_nobody_waits_for_a_replica_that_has_failed_already() -> None:
    async def work() -> None:
        one = pool()
        one.report([status(ReplicaState.FAILED)])
        with pytest.raises(NoReplica):
            one.check(1)
        with pytest.raises(NoReplica):
            await one.lease(of())
        with pytest.raises(NoReplica):
            await one.any_member()

    run(work())


def test_one_replica_of_two_that_is_lost_leaves_the_queue_to_the_other() -> None:
    async def work() -> None:
        one = pool(member("rep_1"), member("rep_2"))
        leases = [await one.lease(of()), await one.lease(of())]
        waiting = ask(one)
        await turn()
        one.remove_member("rep_1")
        one.report([status(ReplicaState.FAILED)])
        gone, kept = sorted(leases, key=lambda lease: lease.member.id)
        one.release(gone)  # a place that is gone is nobody's
        await turn()
        assert not waiting.done()
        one.release(kept)
        await turn()
        assert waiting.result().member.id == "rep_2"

    run(work())


def test_a_cancelled_wait_leaves_the_queue_and_one_granted_in_that_moment_gives_its_place_back() -> None:
    async def work() -> None:
        one = pool(member())
        lease = await one.lease(of())
        first, second, third = ask(one), ask(one), ask(one)
        await turn()
        second.cancel()
        one.release(lease)  # granted to the first …
        first.cancel()  # … which is given up before its task could run
        await turn()
        assert first.cancelled()
        assert second.cancelled()
        assert third.done()
        one.release(third.result())
        assert (one.queued_count, one.busy_count) == (0, 0)

    run(work())


def test_a_wait_cancelled_when_it_was_just_told_of_the_failure_is_simply_cancelled() -> None:
    async def work() -> None:
        one = pool(member())
        await one.lease(of())
        waiting = ask(one)
        await turn()
        one.remove_member("rep_1")
        one.report([status(ReplicaState.FAILED)])
        waiting.cancel()
        await turn()
        assert waiting.cancelled()

    run(work())


def test_the_warm_replica_is_preferred_then_the_least_loaded() -> None:
    async def work() -> None:
        one = pool(member("rep_1", 2), member("rep_2", 2))
        first = await one.lease(of(ONE, (1, 2)))
        one.release(first, prefix=(1, 2, 3))
        again = await one.lease(of(ONE, (1, 2, 9)))
        assert again.member is first.member
        assert again.slot is first.slot
        cold = await one.lease(of(ONE, (7,)))
        assert cold.member is not first.member  # it has more places free

    run(work())


def test_another_organizations_prefix_is_neither_sought_nor_reused() -> None:
    async def work() -> None:
        one = pool(member("rep_1", 2))
        first = await one.lease(of(ONE, (1, 2)))
        assert first.is_prefix_reusable  # nobody's tokens are there
        one.release(first, prefix=(1, 2))
        other = await one.lease(of("org_2", (1, 2)))
        assert other.slot is not first.slot
        assert other.is_prefix_reusable
        third = await one.lease(of("org_2", (1, 2)))
        assert third.slot is first.slot
        assert not third.is_prefix_reusable
        one.release(third, prefix=(1, 2))
        back = await one.lease(of(ONE, (1, 2)))
        assert not back.is_prefix_reusable

    run(work())


def test_slots_in_use_have_different_numbers_below_their_count() -> None:
    async def work() -> None:
        one = pool(member(places_count=4))
        leases = [await one.lease(of(ONE, (number,))) for number in range(4)]
        assert sorted(lease.slot.number for lease in leases) == [0, 1, 2, 3]

    run(work())


def test_an_upstreams_places_are_counted_without_slots() -> None:
    async def work() -> None:
        one = pool(member("acme", 3, is_slotted=False))
        leases = [await one.lease(of()) for _ in range(3)]
        assert one.busy_count == 3
        waiting = ask(one)
        await turn()
        one.release(leases[1])
        assert (await waiting).member.id == "acme"
        assert one.busy_count == 3

    run(work())


def test_the_least_served_organization_is_next_not_the_first_in_line() -> None:
    async def work() -> None:
        one = pool(member())
        lease = await one.lease(of("flood", input_tokens=500))
        flood = [ask(one, "flood", input_tokens=500) for _ in range(5)]
        await turn()
        quiet = ask(one, "quiet", input_tokens=5)
        await turn()
        one.release(lease, input_tokens=500, output_tokens=100)
        await turn()
        assert quiet.done()
        assert not any(task.done() for task in flood)
        assert one.fairness_gap == 0  # only one organization waits
        assert one.shares() == {"flood": 600, "quiet": 5}
        for task in flood:
            task.cancel()

    run(work())


def test_output_counts_as_it_is_made() -> None:
    async def work() -> None:
        one = pool(member(places_count=2))
        long, short = await one.lease(of("long")), await one.lease(of("short"))
        waiting = {name: ask(one, name) for name in ("long", "short")}
        await turn()
        long.charge(160)
        assert (long.charged_tokens, short.charged_tokens) == (160, 0)
        one.release(short, output_tokens=8)
        await turn()
        assert waiting["short"].done()
        assert not waiting["long"].done()

    run(work())


def test_an_ask_leaves_at_its_deadline() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        one = pool(member())
        held = await one.lease(of())
        late, later, never = (ask(one, deadline_s=loop.time() + after_s) for after_s in (5.0, 9.0, math.inf))
        with pytest.raises(TimedOut, match="while it waited"):
            await late
        assert loop.time() == 1005
        assert one.queued_count == 2
        with pytest.raises(TimedOut):
            await later
        assert loop.time() == 1009
        one.release(held)
        one.release(await never)
        assert (one.queued_count, one.busy_count) == (0, 0)

    run(work())


def test_deadlines_of_asks_that_were_served_are_forgotten() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        one = pool(member())
        for _ in range(500):
            lease = await one.lease(of())
            waiting = ask(one, deadline_s=loop.time() + 600)
            await turn()
            one.release(lease)
            one.release(await waiting)
        assert len(one._deadlines) < 100

    run(work())


def test_who_could_not_be_served_in_time_is_refused_at_once_and_told_when_to_come_back() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        one = pool(member(places_count=2))
        lease = await one.lease(of("flood"))
        await asyncio.sleep(10)
        one.release(lease)  # now it is known that a request takes 10 s
        leases = [await one.lease(of("flood")) for _ in range(2)]
        flood = [ask(one, "flood") for _ in range(11)]
        await turn()

        def hopeless(organization_id: str, patience_s: float) -> float | None:
            try:
                one.check(1, of(organization_id, deadline_s=loop.time() + patience_s))
            except Overloaded as refused:
                return refused.retry_after_s
            return None

        assert one.expected_wait_s(of("flood")) == 60  # 11 before it, two places, 10 s each
        assert hopeless("flood", 61) is None
        assert hopeless("flood", 40) == 40  # in 40 s 20 s of waiting are left, half of its patience
        assert one.expected_wait_s(of("quiet")) == 10  # only as long as its turn takes
        assert hopeless("quiet", 11) is None
        assert hopeless("quiet", 8) == 6
        for held in leases:
            one.release(held)
        for task in flood:
            task.cancel()
        await turn()

    run(work())


def test_a_full_queue_makes_room_for_an_organization_that_has_less_of_it() -> None:
    async def work() -> None:
        one = pool(member(), queued_max=4)
        held = await one.lease(of("flood"))
        flood = [ask(one, "flood") for _ in range(4)]
        await turn()
        with pytest.raises(Overloaded, match="4 wait, at most 4 may"):
            one.check(1, of("flood"))
        one.check(1, of("quiet"))
        quiet = ask(one, "quiet")
        with pytest.raises(Overloaded, match="others who wait have less of it"):
            await flood[3]  # the last to come
        assert one.queued_count == 4
        one.check(1, of("quiet"))
        await turn()
        more = ask(one, "quiet")
        await turn()
        with pytest.raises(Overloaded):
            one.check(1, of("quiet"))  # it has its half
        assert [task.done() for task in flood] == [False, False, True, True]
        for task in (*flood[:2], quiet, more):
            task.cancel()
        await turn()
        one.release(held)
        assert (one.queued_count, one.busy_count) == (0, 0)

    run(work())


def test_a_place_that_was_given_up_unused_leaves_the_slot_as_it_was() -> None:
    async def work() -> None:
        one = pool(member())
        one.release(await one.lease(of(ONE, (1, 2))), prefix=(1, 2))
        held = await one.lease(of("org_2", (9,)))
        assert not held.is_prefix_reusable
        one.give_back(held)
        again = await one.lease(of("org_2", (9,)))
        assert not again.is_prefix_reusable, "the first organization's tokens are still in that slot"
        one.give_back(again)
        waiting = ask(one, "org_2", (9,))
        waiting.cancel()
        await turn()
        mine = await one.lease(of(ONE, (1, 2), input_tokens=100))
        assert mine.is_prefix_reusable
        assert mine.warm_tokens == 100
        assert one.shares() == {}

    run(work())


def test_a_grant_that_is_given_up_in_that_moment_leaves_the_slot_as_it_was() -> None:
    async def work() -> None:
        one = pool(member())
        held = await one.lease(of(ONE, (1,)))
        waiting = ask(one, "org_2", (1,), input_tokens=50)
        await turn()
        one.release(held, prefix=(1,))
        waiting.cancel()
        await turn()
        assert one.busy_count == 0
        later = await one.lease(of("org_2", (1,)))
        assert not later.is_prefix_reusable
        assert one.shares() == {}

    run(work())


def test_who_waits_for_something_else_than_a_place_is_served_when_it_is_told() -> None:
    class Choosy(Placing[str]):
        is_open = False

        def place(self, ask: Ask, members: Mapping[str, Member[str]]) -> Place[str] | None:
            return super().place(ask, members) if self.is_open or ask.organization_id == "free" else None

    async def work() -> None:
        placing = Choosy()
        one = Pool[str]("m", queued_max=10, placing=placing)
        one.add_member(member(places_count=2))
        waiting = ask(one)
        await turn()
        free = ask(one, "free")  # the other place isn't kept idle for it
        await turn()
        assert free.done()
        assert not waiting.done()
        placing.is_open = True
        one.serve_waiting()
        await turn()
        assert waiting.done()

    run(work())


def test_the_first_slot_is_kept_for_an_organization_that_was_here_lately() -> None:
    async def work() -> None:
        one = Pool[str]("m", queued_max=100, is_slot_kept=True)
        one.add_member(member(places_count=3))
        alone = [await one.lease(of("flood", input_tokens=9)) for _ in range(3)]  # nobody else was here: all of them
        for lease in alone:
            one.release(lease)
        one.release(await one.lease(of("quiet", input_tokens=9)))
        first = [await one.lease(of("flood", input_tokens=9)) for _ in range(2)]
        more = [ask(one, "flood", input_tokens=9) for _ in range(3)]
        await turn()
        assert not any(task.done() for task in more)
        assert one.free_count == 1
        quiet = ask(one, "quiet", input_tokens=9)  # comes and needn't wait, for the slot that is read first
        await turn()
        assert quiet.result().slot.number == 0
        one.release(first[0])
        await turn()
        assert more[0].done()
        one.release(quiet.result())
        await turn()
        assert not more[1].done(), "it is kept for the next one"
        waiting = [ask(one, "quiet", input_tokens=9) for _ in range(2)]
        await turn()
        assert waiting[0].result().slot.number == 0
        one.release(waiting[0].result())  # it waits now and has no place: the slot isn't for who has two
        await turn()
        assert waiting[1].result().slot.number == 0
        assert not more[1].done()
        for task in more:
            task.cancel()

    run(work())


def test_the_kept_slot_goes_by_weight_to_who_keeps_coming() -> None:
    async def work() -> None:
        one = Pool[str]("m", queued_max=100, is_slot_kept=True)
        one.add_member(member(places_count=2))
        one.release(await one.lease(of("greedy", input_tokens=9)))
        held = await one.lease(of("flood", input_tokens=9))
        waiting = {name: [ask(one, name, input_tokens=1500) for _ in range(9)] for name in ("flood", "greedy")}
        firsts = []
        for _ in range(12):  # always with a place of flood's, and none of greedy's
            await turn()
            name, task = next((name, task) for name in waiting for task in waiting[name] if task.done())
            waiting[name].remove(task)
            firsts.append(name)
            one.release(task.result())
        assert firsts.count("flood") >= 5, "the other goes ahead by a window at most, and then they take turns"
        one.release(held)
        for task in (*waiting["flood"], *waiting["greedy"]):
            task.cancel()

    run(work())


def test_a_kept_slot_is_given_when_nobody_was_here_for_a_minute() -> None:
    async def work() -> None:
        one = Pool[str]("m", queued_max=100, is_slot_kept=True)
        one.add_member(member(places_count=2))
        one.release(await one.lease(of("quiet", input_tokens=9)))
        held = await one.lease(of("flood", input_tokens=9))
        assert held.slot.number == 1, "the engine is idle: any other slot does"
        waiting = [ask(one, "flood", input_tokens=9) for _ in range(2)]
        await turn()
        assert not any(task.done() for task in waiting)
        await asyncio.sleep(100)
        one.release(held)
        await turn()
        assert all(task.done() for task in waiting)

    run(work())


class PoolMachine(RuleBasedStateMachine):
    """Any order of leases, cancellations (in any moment), releases, replicas that come and go: no place is lost or doubled."""

    @initialize(queued_max=st.integers(0, 5))
    def begin(self, queued_max: int) -> None:
        self.runner = asyncio.Runner(loop_factory=FakeTimeLoop)
        self.made = 0
        self.tasks: list[asyncio.Task[Lease[str]]] = []
        self.held: list[Lease[str]] = []
        self.cancelled: set[asyncio.Task[Lease[str]]] = set()

        async def make() -> None:
            self.pool = pool(queued_max=queued_max)
            self.pool.report([status(ReplicaState.STARTING)])

        self.runner.run(make())

    def do(self, action: Any, *arguments: Any) -> None:
        async def act() -> None:
            action(*arguments)

        self.runner.run(act())

    @rule(organization=st.sampled_from(["org_1", "org_2"]), prefix=st.tuples(st.integers(0, 2)))
    def ask(self, organization: str, prefix: tuple[int, ...]) -> None:
        self.do(lambda: self.tasks.append(ask(self.pool, organization, prefix)))

    @rule(places_count=st.integers(1, 3))
    def replica_comes(self, places_count: int) -> None:
        self.made += 1
        self.do(self.pool.add_member, member(f"rep_{self.made}", places_count))

    @precondition(lambda self: self.pool.members)
    @rule(data=st.data())
    def replica_goes(self, data: st.DataObject) -> None:
        self.do(self.pool.remove_member, data.draw(st.sampled_from(sorted(self.pool.members))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.do(self.pool.release, lease)

    @precondition(lambda self: self.held and self.tasks)
    @rule(data=st.data(), is_release_first=st.booleans())
    def release_and_cancel_in_one_turn(self, data: st.DataObject, is_release_first: bool) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        task = data.draw(st.sampled_from(self.tasks))
        self.cancelled.add(task)

        def both() -> None:
            if is_release_first:
                self.pool.release(lease)
                task.cancel()
            else:
                task.cancel()
                self.pool.release(lease)

        self.do(both)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        self.cancelled.add(task)
        self.do(task.cancel)

    @rule()
    def settle(self) -> None:
        """Everything runs that can; granted places are then held."""
        self.runner.run(turn())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if not task.cancelled():
                self.held.append(task.result())

    @invariant()
    def places_are_conserved_when_all_is_settled(self) -> None:
        self.settle()
        members = self.pool.members
        for one in members.values():
            leases = [lease for lease in self.held if lease.member is one]
            assert one.places_count - one.free_count == len(leases)
            assert len({lease.slot.number for lease in leases}) == len(leases)
            assert {slot.number for slot in one.slots if slot.is_busy} == {lease.slot.number for lease in leases}
        waiting = [task for task in self.tasks if task not in self.cancelled]
        assert self.pool.queued_count == len(waiting)
        assert not waiting or not any(one.free_count for one in members.values()), "a place is free and somebody waits"

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for task in self.tasks:
                self.do(task.cancel)
            self.settle()
            for lease in self.held:
                self.do(self.pool.release, lease)
            assert (self.pool.queued_count, self.pool.busy_count) == (0, 0)
            self.runner.close()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
