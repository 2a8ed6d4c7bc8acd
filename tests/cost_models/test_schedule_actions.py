"""Actions are text that round-trips, and what has to be sent, gathered and reduced follows from an order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import _Action

from cost_models.schedule_actions import (
    KINDS,
    ScheduledAction,
    parse_action,
    with_gathers,
    with_optimizer,
    with_transfers,
)

ACTIONS = st.builds(
    ScheduledAction, st.integers(0, 999), st.sampled_from(list(KINDS)), st.none() | st.integers(0, 999)
)


def order(text: str) -> list[ScheduledAction]:
    return [parse_action(each) for each in text.split()]


def text(actions: list[ScheduledAction]) -> str:
    return " ".join(map(str, actions))


@settings(max_examples=200, derandomize=True)
@given(ACTIONS)
def test_an_action_is_what_its_text_says(action: ScheduledAction) -> None:
    assert parse_action(str(action)) == action


@pytest.mark.parametrize("written", ["2F0", "0SEND_F1", "3W12", "1UNSHARD", "1REDUCE_GRAD", "0RECV_B3"])
def test_torch_reads_and_writes_the_same_text(written: str) -> None:
    assert str(_Action.from_str(written)) == str(parse_action(written)) == written


@pytest.mark.parametrize("written", ["", "F0", "2G0", "2F0x", "-1F0", "2 F 0"])
def test_other_text_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="2F0"):
        parse_action(written)


def test_a_send_follows_what_another_rank_needs_and_nothing_within_a_rank() -> None:
    two_ranks = with_transfers([order("0F0 2F0 2B0 0B0"), order("1F0 1B0")], stages=3)
    assert text(two_ranks[0]) == "0F0 0SEND_F0 2RECV_F0 2F0 2B0 2SEND_B0 0RECV_B0 0B0"
    assert text(two_ranks[1]) == "1RECV_F0 1F0 1SEND_F0 1RECV_B0 1B0 1SEND_B0"
    assert text(with_transfers([order("0F0 1F0 1B0 0B0")], stages=2)[0]) == "0F0 1F0 1B0 0B0"


def test_orders_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="0B0, 1F1 need what comes after"):
        with_transfers([order("0F0 0B0 0F1"), order("1F1 1F0 1B0")], stages=2)


def test_stages_beyond_the_active_ones_are_freed() -> None:
    gathered = with_gathers(order("0F0 1F0 2F0 1B0"), active_stages=2)
    assert text(gathered) == "0UNSHARD 1UNSHARD 0F0 0RESHARD 2UNSHARD 1F0 2F0 2RESHARD 1B0 1RESHARD"


def test_the_optimizer_comes_last_for_each_stage() -> None:
    assert text(with_optimizer(order("2F0 0F0"))) == "2F0 0F0 0OPTIMIZER 2OPTIMIZER"
