"""The short form of `make gate-fair`: the real platform shares a busy upstream fairly, and first come, first served doesn't."""

from gate import fair_platform


async def test_a_quiet_organization_hardly_waits_beside_a_flood() -> None:
    goals = await fair_platform.quiet_tenant(5.0)
    assert all(goal.is_met for goal in goals), list(map(str, goals))


async def test_first_come_first_served_is_caught() -> None:
    goals = await fair_platform.quiet_tenant(5.0, twin="first_come")
    assert all(goal.is_met for goal in goals), list(map(str, goals))
