"""A model on pipeline stages is, to the user's loop, the plain model: under every schedule and ZeRO level."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.testing import assert_close

from autopar.errors import ModelError, PlanMismatchError
from autopar.runtime import (
    Input,
    Parameter,
    Pipeline,
    Running,
    Stage,
    Wire,
    full_optimizer_state,
    full_state_dict,
    initialize,
    keep_identity,
    load_full_optimizer_state,
    parameter_tree,
)
from autopar.runtime.batch import local_inputs
from autopar.runtime.homes import homes_of, is_elsewhere
from autopar.torch_private import can_split_backward
from tests.autopar.runtime.staged import SLICES, Deep, parameters_of, staged
from tests.autopar.runtime.test_recompute import Operators
from tests.autopar.runtime.tiny import batch
from tests.gloo_pool import GlooPool

SCHEDULES = [
    ("gpipe", 1),
    ("1f1b", 1),
    ("interleaved", 1),
    ("interleaved", 2),
    ("zero-bubble", 1),
    ("zero-bubble", 2),
]
BOTH_DATA = {"pp": 2, "dp_shard": 2}


@pytest.fixture(scope="module")
def two() -> Iterator[GlooPool]:
    with GlooPool(2) as pool:
        yield pool


def pair(
    sizes: dict[str, int], schedule: str, chunks: int, microbatches: int = 4, layers: int = 4, **options: Any
) -> tuple[Deep, Running]:
    """A plain model and the same one on stages; other ranks initialised theirs differently: rank 0 wins."""
    torch.manual_seed(0)
    plain = Deep(layers).double()
    model = copy.deepcopy(plain)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(dist.get_rank())
    keep_identity(model)
    return plain, staged(model, sizes, schedule, chunks, microbatches, **options)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def check_gradients(running: Running, plain: Deep) -> None:
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert_close(running.full_gradients(), wanted, rtol=1e-9, atol=1e-12)


def check_outputs(running: Running, found: Any, wanted: tuple[Tensor, Tensor]) -> None:
    loss, logits = wanted
    (mine,) = local_inputs(
        [Input("0", tuple(logits.shape), logits.dtype, SLICES)], running.mesh.axes, (logits,), {}
    )
    assert_close(tuple(found), (loss, mine))


def train(sizes: dict[str, int], schedule: str, chunks: int, options: dict[str, Any], steps: int = 5) -> None:
    """Optimizers made before the model is put on stages, scaled losses, gradients cleared between."""
    plain, running = pair(sizes, schedule, chunks, **options)
    reference, optimizer = adamw(plain), adamw(running.module)
    for number in range(steps):
        expected, found = plain(*batch(number)), running(*batch(number))
        check_outputs(running, found, expected)
        for one in (reference, optimizer):
            one.zero_grad()
        assert all(p.grad is None for p in running.module.parameters())
        (expected[0] / 3).backward()
        (found[0] / 3).backward()
        check_gradients(running, plain)
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        assert_close(running.clip_grad_norm_(0.1), norm)
        check_gradients(running, plain)
        reference.step()
        optimizer.step()
    whole = full_state_dict(running.module, running.homes)
    assert_close(whole, dict(plain.state_dict()), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("schedule", "chunks"), SCHEDULES)
def test_two_processes_train_as_one(two, schedule, chunks):
    two.run(train, {"pp": 2}, schedule, chunks, {}, 2)


@pytest.mark.parametrize(("schedule", "chunks"), SCHEDULES)
def test_five_steps_of_adamw_equal_the_plain_model(pool, schedule, chunks):
    pool.run(train, BOTH_DATA, schedule, chunks, {})


@pytest.mark.parametrize("zero", [1, 2])
@pytest.mark.parametrize(("schedule", "chunks"), [("1f1b", 1), ("interleaved", 2)])
def test_every_level_composes_with_stages(pool, zero, schedule, chunks):
    pool.run(train, BOTH_DATA, schedule, chunks, {"zero": zero}, 2)


@pytest.mark.parametrize(
    ("sizes", "schedule", "chunks"),
    [
        ({"pp": 2, "dp_replicate": 2}, "1f1b", 1),
        ({"pp": 2, "dp_replicate": 2}, "zero-bubble", 2),
        ({"pp": 2, "tp": 2}, "gpipe", 1),
        ({"pp": 2, "tp": 2}, "interleaved", 2),
        ({"pp": 4}, "1f1b", 1),
    ],
    ids=str,
)
def test_other_meshes_train_alike(pool, sizes, schedule, chunks):
    pool.run(train, sizes, schedule, chunks, {}, 2)


@pytest.mark.parametrize("level", ["selective", "full"])
def test_stages_recompute(pool, level):
    pool.run(train, BOTH_DATA, "1f1b", 1, {"recompute": level, "zero": 2}, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "schedule", "chunks", "zero"),
    [
        ({"pp": 2, "dp_shard": 2, "tp": 2}, "1f1b", 1, 3),
        ({"pp": 2, "dp_replicate": 2, "dp_shard": 2}, "interleaved", 2, 2),
        ({"pp": 4, "dp_shard": 2}, "zero-bubble", 1, 1),
    ],
)
def test_eight_processes_train_as_one(sizes, schedule, chunks, zero):
    with GlooPool(8) as pool:
        pool.run(train, sizes, schedule, chunks, {"zero": zero, "microbatches": 2 if chunks == 2 else 4}, 2)


def train_compiled(level: str | None) -> None:
    """In float32: compiled float64 attention fails on torch 2.11."""
    torch.manual_seed(0)
    plain = Deep()
    model = copy.deepcopy(plain)
    options: dict[str, Any] = {"zero": 1, "recompute": level, "compile_forwards": True}
    running = staged(model, BOTH_DATA, "1f1b", 1, 4, **options)
    for number in range(2):
        plain(*batch(number))[0].backward()
        running(*batch(number))[0].backward()
    wanted = {name: p.grad for name, p in plain.named_parameters()}
    assert_close(running.full_gradients(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, "selective", "full"])
def test_stages_of_compiled_blocks_train_alike(pool, level):
    pool.run(train_compiled, level, timeout_s=300)


def accumulate(sizes: dict[str, int], schedule: str, chunks: int) -> None:
    """The user's own accumulation in any order, a forward thrown away, an evaluation in between."""
    plain, running = pair(sizes, schedule, chunks)
    first, second = running(*batch(0))[0], running(*batch(1))[0]
    running(*batch(5))
    (second * 2).backward()
    with torch.no_grad():
        check_outputs(running, running(*batch(3)), plain(*batch(3)))
        assert not running(*batch(3))[0].requires_grad
    first.backward()
    plain(*batch(0))[0].backward()
    (plain(*batch(1))[0] * 2).backward()
    check_gradients(running, plain)
    _, logits = running(*batch(2))
    with pytest.raises(ModelError, match="output 1 of the model has no backward"):
        logits.sum().backward()
    assert_close(
        running.clip_grad_norm_(0.1, torch.inf), nn.utils.clip_grad_norm_(plain.parameters(), 0.1, torch.inf)
    )


@pytest.mark.parametrize(("schedule", "chunks"), [("1f1b", 1), ("zero-bubble", 2)])
def test_calls_accumulate_in_any_order(pool, schedule, chunks):
    pool.run(accumulate, BOTH_DATA, schedule, chunks)


# Zero bubble


def split(sizes: dict[str, int], chunks: int, options: dict[str, Any]) -> bool:
    _, running = pair(sizes, "zero-bubble", chunks, **options)
    train(sizes, "zero-bubble", chunks, options, 2)
    return running._stages.splits_backward


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize(
    ("sizes", "options", "splits"),
    [
        ({"pp": 2, "dp_shard": 2}, {"zero": 1}, True),
        ({"pp": 2, "dp_replicate": 2}, {}, True),
        ({"pp": 2, "tp": 2}, {}, True),
        ({"pp": 2, "dp_shard": 2}, {"zero": 2}, False),
        ({"pp": 2, "tp": 2}, {"recompute": "full"}, False),
    ],
    ids=str,
)
def test_gradients_of_weights_come_late_where_they_can(pool, sizes, options, splits, chunks):
    assert pool.run(split, sizes, chunks, options) == [splits and can_split_backward()] * 4


# Parameters


def look(sizes: dict[str, int]) -> list[str]:
    """What a rank holds; returns the names of what it holds nothing of."""
    torch.manual_seed(0)
    model = Deep().double()
    keep_identity(model)
    before, shapes = list(model.parameters()), [p.shape for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    running = staged(model, sizes, "1f1b", 1, 4)
    running(*batch(0))[0].backward()
    after = list(model.parameters())
    assert all(a is b for a, b in zip(before, after, strict=True)), "the objects stay"
    assert [p.shape for p in after] == shapes
    assert [name for name, _ in model.named_parameters()] == names
    assert model.head.weight is model.embed.weight
    for parameter in after:
        if is_elsewhere(parameter):
            assert parameter.grad is None
            assert parameter.to_local().untyped_storage().nbytes() <= 8  # a scalar's, at most
        else:
            assert parameter.grad is not None
    return [name for name, p in model.named_parameters() if is_elsewhere(p)]


@pytest.mark.parametrize("sizes", [{"pp": 2, "tp": 2}, BOTH_DATA], ids=str)
def test_ranks_hold_the_parameters_of_their_stages(pool, sizes):
    names = [name for name, _ in Deep().named_parameters()]
    answers = pool.run(look, sizes)
    late = [n for n in names if n.startswith(("layers.2", "layers.3", "again", "gain"))]
    early = [n for n in names if n.startswith(("layers.0", "layers.1", "shift"))]
    assert answers == [late, late, early, early]


def exchange(sizes: dict[str, int], schedule: str, chunks: int, folder: str) -> None:
    """Plain state in, plain state out; a sharded checkpoint read on other stages, and without stages."""
    plain, running = pair(sizes, schedule, chunks)
    model = running.module
    assert_close(full_state_dict(model, running.homes), dict(plain.state_dict()), rtol=0, atol=0)
    torch.manual_seed(1)
    other = Deep().double()
    model.load_state_dict(other.state_dict())
    state = running.whole_state(model.state_dict())
    assert list(state) == list(other.state_dict())
    assert_close(state, dict(other.state_dict()), rtol=0, atol=0)
    with torch.no_grad():
        check_outputs(running, running(*batch(0)), other(*batch(0)))
    again = Deep().double()
    again.load_state_dict(state)

    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder)
    for target in ({"pp": 4}, {"pp": 2, "tp": 2}):
        _, third = pair(target, "1f1b", 1)
        read = third.module.state_dict()
        checkpoint.load({"model": read}, checkpoint_id=folder)
        third.module.load_state_dict(read)
        assert_close(third.whole_state(third.module.state_dict()), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "schedule", "chunks"),
    [(BOTH_DATA, "interleaved", 2), ({"pp": 2, "tp": 2}, "1f1b", 1), ({"pp": 4}, "gpipe", 1)],
    ids=str,
)
def test_state_dicts_are_the_plain_models(pool, tmp_path, sizes, schedule, chunks):
    pool.run(exchange, sizes, schedule, chunks, str(tmp_path / "checkpoint"))


def resume(sizes: dict[str, int], schedule: str, chunks: int) -> None:
    """Train on stages, go on with the optimizer's state on others and without; as if never stopped."""
    plain, running = pair(BOTH_DATA, "1f1b", 1)
    reference, optimizer = adamw(plain), adamw(running.module)
    for number in range(2):
        for model, one in ((plain, reference), (running, optimizer)):
            model(*batch(number))[0].backward()
            one.step()
            one.zero_grad()
    saved = full_optimizer_state(running.module, optimizer, running.orders, running.homes)
    assert {name for name, _ in plain.named_parameters()} == set(saved["state"])
    state = running.whole_state(running.module.state_dict())
    _, following = pair(sizes, schedule, chunks)
    following.module.load_state_dict(state)
    second = torch.optim.AdamW(following.module.parameters(), lr=1.0)
    load_full_optimizer_state(following.module, second, saved, following.orders, following.homes)
    for number in range(2, 4):
        for model, one in ((plain, reference), (following, second)):
            model(*batch(number))[0].backward()
            one.step()
            one.zero_grad()
    whole = full_state_dict(following.module, following.homes)
    assert_close(whole, dict(plain.state_dict()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sizes", [{"pp": 2, "tp": 2}, {"pp": 4}, BOTH_DATA], ids=str)
def test_training_goes_on_under_another_plan(pool, sizes):
    pool.run(resume, sizes, "1f1b", 1)


def overflow() -> list[float]:
    """A gradient of the first stage alone overflows: no rank takes the step. Returns what the scale became."""
    _, running = pair(BOTH_DATA, "1f1b", 1, loss_scale=2.0**16)
    optimizer = torch.optim.SGD(running.module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = running.whole_state(running.module.state_dict())
    scales = []
    for is_broken in (True, False):
        if is_broken:
            hook = running.module.layers[0].register_full_backward_hook(
                lambda *_: (torch.full_like(_[1][0], torch.inf),)
            )
        scaler.scale(running(*batch(0))[0]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        hook.remove()
        is_same = [
            torch.equal(v, before[n]) for n, v in running.whole_state(running.module.state_dict()).items()
        ]
        assert all(is_same) == is_broken
    return scales


def test_an_overflow_on_one_stage_skips_the_step_on_all(pool):
    assert pool.run(overflow) == [[2.0**15, 2.0**15]] * 4


def from_names() -> list[float]:
    """A tree made from names alone, its parameters never in memory on ranks that do not run them."""
    table = parameters_of(Deep().double(), 2)
    model = parameter_tree(table, {"": nn.Module} | {f"layers.{i}": nn.Module for i in range(4)}, "meta")
    keep_identity(model)
    running = staged(model, BOTH_DATA, "1f1b", 1, 4)
    model.to_empty(device="cpu")
    initialize(model, seed=3)
    model.scale.fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(3):
        loss = running(*batch(0))[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert not any(v.isnan().any() for v in running.whole_state(model.state_dict()).values())
    return losses


def test_a_tree_made_from_names_trains(pool):
    answers = pool.run(from_names)
    assert answers.count(answers[0]) == 4
    assert answers[0][2] < answers[0][0]


def test_a_parameter_is_held_where_its_stages_run():
    def held(*stages: tuple[int, ...]) -> tuple[int, ...]:
        return homes_of([Parameter("w", (1,), torch.float32, stages=each) for each in stages], 4)

    assert held((5,)) == (1,)
    assert held((0,), (7,)) == (0, 3)
    assert held((2, 6)) == (2,)
    assert held(()) == (0,)


# Communication


def communicate(zero: int) -> dict[str, int]:
    _, running = pair({"pp": 2, "dp_shard": 2}, "1f1b", 1, zero=zero)
    running(*batch(0))[0].backward()
    with Operators() as operators:
        running(*batch(0))
    return {name: operators.counts[name] for name in ("_allgather_base_", "_reduce_scatter_base_")}


@pytest.mark.parametrize(("zero", "gathers", "scatters"), [(2, 3, 12), (1, 3, 3)])
def test_a_level_says_how_often_parameters_and_gradients_travel(pool, zero, gathers, scatters):
    """Two blocks and the root on each rank, four microbatches."""
    for found in pool.run(communicate, zero):
        assert found == {"_allgather_base_": gathers, "_reduce_scatter_base_": scatters}


# Errors


def refuse(schedule: str, chunks: int, microbatches: int) -> str:
    with pytest.raises(PlanMismatchError) as refusal:
        pair({"pp": 2}, schedule, chunks, microbatches)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("schedule", "chunks", "microbatches", "words"),
    [
        ("1f1b", 2, 4, "cannot run 4 stages on 2 ranks: it takes one stage per rank"),
        ("1f1b", 1, 1, "the schedule 1f1b cannot run 1 microbatches through 2 stages"),
    ],
)
def test_what_a_schedule_cannot_run_is_refused(two, schedule, chunks, microbatches, words):
    for message in two.run(refuse, schedule, chunks, microbatches):
        assert words in message


def test_a_schedule_is_one_of_four():
    with pytest.raises(ValueError, match="gpipe, 1f1b, interleaved, zero-bubble, not 'dualpipe'"):
        Pipeline([], [], "dualpipe")


def test_what_is_sent_is_received():
    wire, other = Wire((1,), torch.float32), Wire((2,), torch.float32)
    with pytest.raises(ValueError, match="stage 0 sends"):
        Pipeline([Stage(print, sends=(wire,)), Stage(print, receives=(other,))], [])
    with pytest.raises(ValueError, match="has no gradient"):
        Wire((1,), torch.int64)
