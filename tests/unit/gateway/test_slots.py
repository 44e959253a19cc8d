from hypothesis import given
from hypothesis import strategies as st

from headwater.gateway.slots import BLOCK_CHARACTERS, BLOCKS_MAX, Slot, best_slot, prefix_chain, shared_count
from headwater.request import Chat, FunctionCall, Message, Tool, ToolCall

numbers = st.lists(st.integers(0, 3), max_size=8)


def chain_of(steps: list[int]) -> list[int]:
    """Numbers that stand for everything before them too, as the elements of a prefix chain do."""
    return [hash(tuple(steps[: end + 1])) for end in range(len(steps))]


def slot(number: int, owner: str | None = None, prefix: tuple[int, ...] = (), last_used: int = 0) -> Slot:
    made = Slot(number)
    made.owner, made.prefix, made.last_used = owner, prefix, last_used
    return made


def chat(*contents: str, tools: tuple[Tool, ...] = ()) -> Chat:
    return Chat(messages=tuple(Message(role="user", content=content) for content in contents), tools=tools)


def test_equal_beginnings_have_equal_chains_and_differences_end_them() -> None:
    shared = "The clerk of the harbour knows every ship. " * 24  # 1,032 characters
    one, other = prefix_chain(chat(shared + "Which is the oldest?")), prefix_chain(chat(shared + "And the largest?"))
    assert len(one) == len(other) == -(-len("user" + shared + "Which is the oldest?") // BLOCK_CHARACTERS)
    assert shared_count(one, other) == len(shared) // BLOCK_CHARACTERS
    assert shared_count(one, prefix_chain(chat("x" + shared))) == 0


def test_a_conversation_that_goes_on_begins_with_what_was_before() -> None:
    turns = ["What is a quay? " * 30, "A wall. " * 60, "And a pier? " * 40]
    before, after = prefix_chain(chat(*turns[:2])), prefix_chain(chat(*turns))
    assert len(before) > 5
    assert shared_count(before, after) == len(before) - 1, "all but the block in which the earlier prompt ended"


def test_what_is_far_beyond_any_context_is_not_compared() -> None:
    assert len(prefix_chain(chat("x" * (BLOCKS_MAX + 9) * BLOCK_CHARACTERS))) == BLOCKS_MAX


def test_whatever_changes_the_prompt_changes_the_chain() -> None:
    call = ToolCall("call_1", FunctionCall("f", "{}"))
    first = Message(role="user", content="a")
    variants = [
        Chat(messages=(first,)),
        Chat(messages=(first,), tools=(Tool(name="f"),)),
        Chat(messages=(Message(role="system", content="a"),)),
        Chat(messages=(Message(role="tool", content="a", tool_call_id="call_1"),)),
        Chat(messages=(Message(role="assistant", content="a", tool_calls=(call,)),)),
    ]
    assert len({prefix_chain(variant) for variant in variants}) == len(variants)


@given(numbers, numbers)
def test_the_shared_count_is_that_of_the_longest_common_beginning(first: list[int], second: list[int]) -> None:
    one, other = chain_of(first), chain_of(second)
    count = shared_count(one, other)
    assert one[:count] == other[:count]
    assert count in (len(one), len(other)) or one[count] != other[count]


def test_the_longest_warm_prefix_of_the_same_organization_wins() -> None:
    slots = [slot(0, "org_1", (1,)), slot(1, "org_1", (1, 2)), slot(2, "org_2", (1, 2, 3)), slot(3)]
    best = best_slot(slots, "org_1", (1, 2, 3))
    assert best is not None
    assert best.number == 1


def test_without_a_warm_one_an_unused_is_taken_then_the_longest_unused() -> None:
    used = [
        slot(0, "org_2", (1,), last_used=9),
        slot(1, "org_1", (7,), last_used=4),
        slot(2, "org_2", (1,), last_used=6),
    ]
    best = best_slot([*used, slot(3)], "org_1", (1,))
    assert best is not None
    assert best.number == 3
    best = best_slot(used, "org_1", (1,))
    assert best is not None
    assert best.number == 1


def test_a_busy_slot_is_never_taken() -> None:
    busy = slot(0, "org_1", (1,))
    busy.is_busy = True
    assert best_slot([busy], "org_1", (1,)) is None
    assert best_slot([], "org_1", (1,)) is None


def test_a_slot_whose_cache_may_change_is_warm_for_nobody() -> None:
    unknown = slot(0, "org_1", (1, 2))
    unknown.is_unknown = True
    best = best_slot([unknown, slot(1, "org_1", (1,))], "org_1", (1, 2))
    assert best is not None
    assert best.number == 1
    assert not unknown.is_reusable_by("org_1")
    assert slot(2).is_reusable_by("org_1")
    assert not slot(3, "org_2").is_reusable_by("org_1")
