"""Small random systems of actions that can be played: everything needs only what was listed before."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from cost_models.timeline import COMPUTE, DATA, Action

Ranks = tuple[tuple[Action, ...], ...]

SECONDS = st.integers(0, 6).map(lambda halves: halves / 2)


@st.composite
def systems(draw: st.DrawFn) -> Ranks:
    """One to three ranks, up to sixteen actions: compute, data-parallel collectives, sends and receives."""
    ranks: list[list[Action]] = [[] for _ in range(draw(st.integers(1, 3)))]
    names: list[str] = []
    for number in range(draw(st.integers(1, 16))):
        rank = draw(st.integers(0, len(ranks) - 1))
        needs = tuple(draw(st.lists(st.sampled_from(names), max_size=2, unique=True))) if names else ()
        stream = draw(st.sampled_from([COMPUTE, COMPUTE, DATA, "send"]))
        name, kind = f"{rank}.{number}", {COMPUTE: "F", DATA: "UNSHARD"}.get(stream, "SEND_F")
        held = draw(st.integers(0, 5))
        action = Action(name, kind, stream, draw(SECONDS), needs, allocates_bytes=held + 1, frees_bytes=held)
        if stream == "send" and len(ranks) > 1:
            other = (rank + 1) % len(ranks)
            action = replace(action, partner=f"receive {name}")
            ranks[other].append(Action(f"receive {name}", "RECV_F", "receive", 0.0, partner=name))
            names.append(f"receive {name}")
        ranks[rank].append(action)
        names.append(name)
    return tuple(map(tuple, ranks))


def lengthened(ranks: Ranks, position: int, seconds: float) -> Ranks:
    """The same, with one action (counted through all ranks) ``seconds`` longer."""
    every = [action for actions in ranks for action in actions]
    chosen = every[position % len(every)]
    longer = replace(chosen, seconds=chosen.seconds + seconds)
    return tuple(tuple(longer if action is chosen else action for action in actions) for actions in ranks)
