"""A leader's call against an engine with slots: cut, saved, gone on with; and everything that can go wrong on the way."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headwater.engines.openai_stream import OpenAIStreamDecoder
from headwater.errors import EngineFailed
from headwater.events import Text, UsageReport
from headwater.gateway.engines import ReplicaEngine
from headwater.gateway.leading import uninterrupted
from headwater.gateway.placing import Member, Place, Placing
from headwater.gateway.pool import Pool
from headwater.gateway.slots import Slot, prefix_chain
from headwater.replica import ReplicaEndpoint
from headwater.request import Chat, Message
from headwater.scheduling.fair_queue import Ask
from headwater.usage import Usage
from tests.unit.gateway.slot_engine import TOKEN_CHARACTERS, SlotEngine

WAIT_S = 10
RULES = "".join(f"Rule {number}: ship {number} may moor at quay {number % 7}. " for number in range(60))
TOTAL = len(RULES + "May the ferry moor?!") // TOKEN_CHARACTERS


def chat(question: str = "May the ferry moor?!", rules: str = RULES) -> Chat:
    return Chat(messages=(Message(role="system", content=rules), Message(role="user", content=question)))


class Replica:
    """The platform's side of one replica: places on it, and calls to it."""

    def __init__(self, engine: SlotEngine, slots_count: int = 4) -> None:
        endpoint = ReplicaEndpoint("rep_1", "smol", engine.path, "key", slots_count, 4096)
        self.server = engine
        self.engine = ReplicaEngine(endpoint, connect_timeout_s=5)
        self.member = Member("rep_1", self.engine, slots_count, is_slotted=True)
        self.placing = Placing[ReplicaEngine]()
        self.changes_count = 0
        self.member.prefixes.on_change = self._changed

    def _changed(self) -> None:
        self.changes_count += 1

    def place(self, asked: Chat, organization_id: str = "org_1") -> Place[ReplicaEngine] | None:
        ask = Ask(organization_id, "key_1", input_tokens=TOTAL, prefix=prefix_chain(asked))
        return self.placing.place(ask, {"rep_1": self.member})

    def placed(self, asked: Chat, organization_id: str = "org_1") -> Place[ReplicaEngine]:
        place = self.place(asked, organization_id)
        assert place is not None
        return place

    async def answer(self, asked: Chat, place: Place[ReplicaEngine]) -> tuple[str, Usage]:
        """The answer's text and the last usage reported, read as the relay reads them; the place is given back."""
        decoder = OpenAIStreamDecoder(place.slot.reading)
        text, usage = "", None
        try:
            response = await self.engine.open(
                asked, model="", attempt_id="a", slot=place.slot, is_prefix_reusable=place.is_prefix_reusable
            )
            try:
                while data := await response.read():
                    for event in decoder.feed(data):
                        if isinstance(event, Text):
                            text += event.text
                        elif isinstance(event, UsageReport):
                            usage = event.usage
            finally:
                response.close()
        finally:
            self.placing.release(place, prefix_chain(asked))
        assert decoder.bad_lines_count == decoder.lying_reports_count == 0
        assert usage is not None
        return text, usage


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SlotEngine]:
    async with SlotEngine(tmp_path / "e.sock").running() as running, asyncio.timeout(WAIT_S):
        yield running


async def lead(replica: Replica) -> tuple[tuple[str, Usage], list[Place[ReplicaEngine]]]:
    """A leader with three followers that came while it was read; its answer, and their places."""
    server = replica.server
    server.prompt_may_go_on.clear()
    place = replica.placed(chat())
    leading = asyncio.ensure_future(replica.answer(chat(), place))
    followers = [chat(f"And ship number {number}?!!") for number in range(3)]
    assert all(replica.place(follower) is None for follower in followers), "they wait"
    server.prompt_may_go_on.set()
    answered = await leading
    return answered, [replica.placed(follower) for follower in followers]


async def test_nobody_waits_and_one_call_is_all(server: SlotEngine) -> None:
    replica = Replica(server)
    text, usage = await replica.answer(chat(), replica.placed(chat()))
    assert text == "Yes, it may."
    assert usage == Usage(uncached_input=TOTAL, output=4)
    assert server.paths == ["/v1/chat/completions"]
    assert replica.changes_count == 0


async def test_a_leader_is_cut_saved_and_gone_on_with_and_its_caller_and_its_bill_see_one_call(
    server: SlotEngine,
) -> None:
    replica = Replica(server)
    (text, usage), _ = await lead(replica)
    assert text == "Yes, it may."
    assert usage == Usage(uncached_input=TOTAL, output=4), "what it read itself is no cached input"
    assert server.paths == ["/v1/chat/completions", "/slots/0?action=save", "/v1/chat/completions"]
    assert server.asked[2][1]["cache_prompt"] is True
    assert replica.changes_count == 1


async def test_followers_get_the_saved_state_and_read_only_their_own_words(server: SlotEngine) -> None:
    replica = Replica(server)
    _, places = await lead(replica)
    first, *others = places
    assert (first.slot.number, first.copied_from) == (0, None), "the leader's own slot, free again"
    assert first.reason.startswith("warm prefix, about ")
    for number, place in enumerate(others, 1):
        assert place.reason.startswith("copied prefix of slot 0, about ")
        text, usage = await replica.answer(chat(f"And ship number {number}?!!"), place)
        assert text == "Yes, it may."
        assert usage.uncached_input < 20
        assert usage.cache_read > TOTAL - 20
    assert replica.member.prefixes.counts.restored == 2
    assert replica.member.prefixes.counts.saved == 1


async def test_another_organization_is_read_anew_in_the_same_slots(server: SlotEngine) -> None:
    replica = Replica(server)
    _, places = await lead(replica)
    for place in places:
        replica.placing.give_back(place)
    for _ in range(4):
        place = replica.placed(chat(), "org_2")
        assert (place.copied_from, place.warm_tokens, place.slot.copy) == (None, 0, None)
        _, usage = await replica.answer(chat(), place)
        assert usage.cache_read == 0
        replica.member.slots[place.slot.number].prefix = ()
        place.slot.owner = "org_3"  # so that the next one can't be warm by this one


async def test_an_engine_that_cannot_save_answers_all_the_same_and_is_not_asked_again(server: SlotEngine) -> None:
    server.save_status = 501
    replica = Replica(server)
    (text, usage), places = await lead(replica)
    assert (text, usage.uncached_input) == ("Yes, it may.", TOTAL)
    assert [place.copied_from for place in places] == [None] * 3
    assert all(place.slot.reading is None for place in places)
    assert replica.member.prefixes.counts.failed == 1


async def test_an_engine_that_cannot_go_back_is_not_asked_again(server: SlotEngine) -> None:
    server.is_reusing = False
    replica = Replica(server)
    (text, usage), places = await lead(replica)
    assert (text, usage) == ("Yes, it may.", Usage(uncached_input=TOTAL, output=4))
    assert replica.member.prefixes.counts.failed == 1
    assert all(place.slot.reading is None for place in places)


async def test_a_state_that_cannot_be_restored_is_read_instead(server: SlotEngine) -> None:
    replica = Replica(server)
    _, places = await lead(replica)
    server.restore_status = 400
    text, usage = await replica.answer(chat("And ship number 1?!!"), places[1])
    assert (text, usage.cache_read) == ("Yes, it may.", 0)
    assert not replica.member.prefixes.copies


async def test_a_slot_that_was_another_organizations_is_not_reused_when_the_restore_failed(server: SlotEngine) -> None:
    replica = Replica(server, slots_count=2)
    await replica.answer(chat("Other?", rules="x" * 600), replica.placed(chat("Other?", rules="x" * 600), "org_2"))
    server.prompt_may_go_on.clear()
    place = replica.placed(chat())
    leading = asyncio.ensure_future(replica.answer(chat(), place))
    assert replica.place(chat("And ship number 1?!!")) is None
    server.prompt_may_go_on.set()
    while not replica.member.prefixes.copies:
        await asyncio.sleep(0)
    follower = replica.place(chat("And ship number 1?!!"))
    assert follower is not None
    assert follower.copied_from is not None
    assert not follower.is_prefix_reusable
    server.restore_status = 400
    await replica.answer(chat("And ship number 1?!!"), follower)
    await leading
    assert server.asked[-1][1]["cache_prompt"] is False or server.asked[-2][1]["cache_prompt"] is False


async def test_a_leader_that_leaves_while_it_is_saved_holds_its_slot_until_that_is_over(server: SlotEngine) -> None:
    server.state_may_be_saved.clear()
    server.prompt_may_go_on.clear()
    replica = Replica(server)
    place = replica.placed(chat())
    leading = asyncio.ensure_future(replica.answer(chat(), place))
    assert replica.place(chat("And ship number 1?!!")) is None
    server.prompt_may_go_on.set()
    await server.is_asked_to_save.wait()
    leading.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert place.slot.is_busy, "the engine may still read the slot"
    server.state_may_be_saved.set()
    with pytest.raises(asyncio.CancelledError):
        await leading
    assert not place.slot.is_busy
    assert not place.slot.is_unknown
    assert not replica.member.prefixes.copies, "nobody answers for what was saved"
    assert replica.place(chat("And ship number 1?!!")) is not None, "who waited leads now"


async def test_an_engine_that_breaks_off_fails_the_leader_and_lets_the_others_go(server: SlotEngine) -> None:
    replica = Replica(server)
    server.prompt_may_go_on.clear()
    leading = asyncio.ensure_future(replica.answer(chat(), replica.placed(chat())))
    assert replica.place(chat("And ship number 1?!!")) is None
    server.state_may_be_saved.clear()
    server.prompt_may_go_on.set()
    await server.is_asked_to_save.wait()
    server.path.unlink()
    server.save_status = 500
    server.state_may_be_saved.set()
    with pytest.raises(EngineFailed):
        await leading
    assert replica.place(chat("And ship number 1?!!")) is not None


async def test_a_change_that_was_never_confirmed_makes_the_slot_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.gateway.leading.STATE_TIMEOUT_S", 0.01)
    slot = Slot(0)
    with pytest.raises(TimeoutError):
        await uninterrupted(slot, asyncio.Event().wait())
    assert slot.is_unknown
    assert not slot.is_reusable_by("org_1")


async def test_twice_cancelled_the_slot_is_unknown_too() -> None:
    slot = Slot(0)
    never = asyncio.Event()
    task = asyncio.ensure_future(uninterrupted(slot, never.wait()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slot.is_unknown
    never.set()


async def test_a_burst_through_a_pool_is_read_once_and_others_pass_by(server: SlotEngine) -> None:
    replica = Replica(server)
    pool = Pool[ReplicaEngine]("smol", queued_max=64)
    pool.add_member(replica.member)
    server.prompt_may_go_on.clear()

    async def ask(asked: Chat, organization_id: str) -> Usage:
        prefix = prefix_chain(asked)
        lease = await pool.lease(Ask(organization_id, "key_1", input_tokens=TOTAL, prefix=prefix))
        decoder = OpenAIStreamDecoder(lease.slot.reading)
        usage = Usage()
        try:
            response = await replica.engine.open(
                asked, model="", attempt_id="a", slot=lease.slot, is_prefix_reusable=lease.is_prefix_reusable
            )
            while data := await response.read():
                for event in decoder.feed(data):
                    if isinstance(event, UsageReport):
                        usage = event.usage
            response.close()
        finally:
            pool.release(lease, prefix=prefix, input_tokens=usage.uncached_input, output_tokens=usage.output)
        return usage

    burst = [asyncio.ensure_future(ask(chat(f"And ship number {number:02}?!"), "org_1")) for number in range(12)]
    while pool.queued_count < 11:
        await asyncio.sleep(0)
    other = asyncio.ensure_future(ask(chat(), "org_2"))
    while len(server.asked) < 2:
        await asyncio.sleep(0)
    assert (pool.busy_count, pool.queued_count) == (2, 11), "the other organization has its place at once"
    server.prompt_may_go_on.set()
    usages = [await one for one in burst]
    assert (await other).cache_read == 0
    leader, *followers = sorted(usage.cache_read for usage in usages)
    assert leader == 0
    assert min(followers) > TOTAL - 20
    assert pool.sharing.held == 11
    assert pool.sharing.saved == 1
    assert (pool.busy_count, pool.queued_count) == (0, 0)
