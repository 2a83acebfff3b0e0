# SPDX-License-Identifier: Apache-2.0
"""What is done about things in the kernel that another program removes, as time goes by: no kernel, no clock."""

from __future__ import annotations

from lb.daemon.kernel.repairs import (
    FIGHT_REPAIRS,
    FORGET,
    PAUSE_MOST,
    RETRY_MOST,
    Difference,
    RepairEvent,
    Repairs,
    Saying,
)

TABLE = Difference("nftables", "table inet vipmux_mux1")
RULE = Difference("rule", "ip rule 118")


def undone(repairs: Repairs, now: float, by: str | None = None) -> tuple[bool, list[RepairEvent]]:
    """The table was removed again: whether it is put back at once, and what is said."""
    step = repairs.step(now, [TABLE])
    said = [saying.event for saying in step.sayings]
    if step.repair:
        said += [saying.event for saying in repairs.repaired(now, step.repair, by)]
    return bool(step.repair), said


def fight(repairs: Repairs, now: float = 0.0, by: str | None = None) -> float:
    """Until it is noticed; returns the time of the last repair."""
    for number in range(FIGHT_REPAIRS):
        assert undone(repairs, now + number, by) == (True, [RepairEvent.PUT_BACK])
    assert undone(repairs, now + FIGHT_REPAIRS, by) == (True, [RepairEvent.FIGHT])
    return now + FIGHT_REPAIRS


def test_what_is_missing_is_put_back_at_once_said_with_its_name_and_counted() -> None:
    repairs = Repairs()
    step = repairs.step(10.0, [TABLE])
    assert step.repair == (TABLE,)
    assert step.sayings == ()
    (saying,) = repairs.repaired(10.1, step.repair, "nft (pid 42)")
    assert saying == Saying(RepairEvent.PUT_BACK, (TABLE.name,), {"reason": "it was removed", "by": "nft (pid 42)"})
    assert repairs.counts == {"nftables": 1}
    assert repairs.again_at() is None
    (row,) = repairs.rows(now=20.1, wall=1_000.0)
    assert row == {
        "what": "nftables",
        "name": TABLE.name,
        "became": "was removed",
        "count": 1,
        "last": 990.0,
        "by": "nft (pid 42)",
        "amiss": False,
        "fight": False,
        "failed": None,
    }


def test_where_nothing_differs_nothing_is_done_or_said() -> None:
    repairs = Repairs()
    assert repairs.step(0.0, []) == repairs.step(5.0, [])
    assert repairs.step(9.0, []).repair == ()
    assert repairs.rows(9.0, 0.0) == []


def test_many_things_that_went_together_are_one_line() -> None:
    repairs = Repairs()
    gone = [Difference("address", f"10.0.0.{number} on lo") for number in range(1, 9)]
    (saying,) = repairs.repaired(0.0, repairs.step(0.0, gone).repair)
    assert saying.thing == "10.0.0.1 on lo, 10.0.0.2 on lo, 10.0.0.3 on lo, 10.0.0.4 on lo, 10.0.0.5 on lo and 3 more"
    assert repairs.counts == {"address": 8}


def test_a_fight_is_said_once_with_the_other_program_and_slows_down() -> None:
    repairs = Repairs()
    now = fight(repairs, by="firewalld (pid 7)")
    assert repairs.fights == 1
    pauses = []
    for _ in range(8):  # the other program undoes each repair within a tenth of a second
        assert undone(repairs, now + 0.1) == (False, [])
        again = repairs.again_at()
        assert again is not None
        assert undone(repairs, again) == (True, []), "nothing is said any more"
        pauses.append(round(again - now, 3))
        now = again
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, PAUSE_MOST, PAUSE_MOST, PAUSE_MOST]
    assert repairs.counts == {"nftables": FIGHT_REPAIRS + 1 + 8}
    (row,) = repairs.rows(now, 0.0)
    assert (row["fight"], row["by"]) == (True, "firewalld (pid 7)")


def test_the_end_of_a_fight_is_said_and_then_it_is_put_back_at_once_again() -> None:
    repairs = Repairs()
    now = fight(repairs)
    assert undone(repairs, now + 2.0) == (True, [])
    ends = repairs.again_at()
    assert ends == now + 2.0 + 60.0
    assert repairs.step(ends - 0.1, []).sayings == ()
    (saying,) = repairs.step(ends, []).sayings
    assert saying == Saying(RepairEvent.FIGHT_OVER, (TABLE.name,), {"put_back": FIGHT_REPAIRS + 2})
    assert repairs.fights == 0
    assert undone(repairs, ends + 1.0) == (True, [RepairEvent.PUT_BACK])


def test_repairs_that_are_far_apart_are_no_fight() -> None:
    repairs = Repairs()
    for number in range(50):
        assert undone(repairs, 13.0 * number) == (True, [RepairEvent.PUT_BACK])
    assert repairs.fights == 0


def test_a_fight_over_one_thing_slows_nothing_else() -> None:
    repairs = Repairs()
    now = fight(repairs)
    step = repairs.step(now + 0.1, [TABLE, RULE])
    assert step.repair == (RULE,)
    assert repairs.amiss == 2


def test_what_cannot_be_repaired_is_said_once_for_each_reason_and_tried_ever_more_rarely() -> None:
    repairs = Repairs()
    now, waits = 0.0, []
    for attempt in range(8):
        step = repairs.step(now, [TABLE])
        assert step.repair == (TABLE,)
        sayings = repairs.failed(now, step.repair, "nft is not installed")
        assert [saying.event for saying in sayings] == ([RepairEvent.NOT_PUT_BACK] if attempt == 0 else [])
        again = repairs.again_at()
        assert again is not None
        assert repairs.step(again - 0.1, [TABLE]).repair == ()
        waits.append(again - now)
        now = again
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, RETRY_MOST, RETRY_MOST, RETRY_MOST]
    step = repairs.step(now, [TABLE])
    (saying,) = repairs.failed(now, step.repair, "no space left")
    assert saying.fields["reason"] == "no space left"
    assert repairs.amiss == 1
    assert repairs.rows(now, 0.0)[0]["failed"] == "no space left"


def test_a_repair_that_works_at_last_is_said() -> None:
    repairs = Repairs()
    repairs.failed(0.0, repairs.step(0.0, [TABLE]).repair, "no space left")
    assert undone(repairs, 1.0) == (True, [RepairEvent.PUT_BACK])
    assert repairs.amiss == 0


def test_what_others_put_right_is_said_as_well() -> None:
    repairs = Repairs()
    repairs.failed(0.0, repairs.step(0.0, [TABLE]).repair, "no space left")
    (saying,) = repairs.step(0.5, []).sayings
    assert saying.event is RepairEvent.RIGHT_AGAIN
    assert repairs.again_at() is None


def test_ten_thousand_addresses_that_were_flushed_once_are_not_remembered_for_ever() -> None:
    repairs = Repairs()
    gone = [Difference("address", f"address {number}") for number in range(10_000)]
    repairs.repaired(0.0, repairs.step(0.0, gone).repair)
    repairs.step(FORGET + 1.0, [])
    assert len(repairs.rows(FORGET + 1.0, 0.0)) == 50
    assert len(repairs._things) == 50  # the memory is what this is about
    assert repairs.counts == {"address": 10_000}
