"""A call in microbatches is, to the user's loop, a call on the whole batch: at every ZeRO level."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from autopar.errors import ModelError, PlanMismatchError
from autopar.runtime import (
    Axis,
    Input,
    Running,
    all_reduce,
    bind,
    count_targets,
    embedding,
    full_state_dict,
    init_mesh,
    keep_identity,
    local,
    shard_data,
    sum_gradient,
)
from autopar.runtime.batch import local_inputs
from tests.autopar.runtime.test_recompute import Operators
from tests.autopar.runtime.tiny import DATA_AXES, VOCABULARY, Tiny, batch, parallel

SLICES = " ".join(f"{name}:S(0)" for name in DATA_AXES) + " microbatch:S(0)"
INPUTS = [Input(str(place), (8, 5), torch.int64, SLICES) for place in range(2)]


def counts(axes: dict[str, Axis], tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return (count_targets(targets, axes=[axes[name] for name in DATA_AXES]),)


def root(self: nn.Module, tokens: Tensor, targets: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """One microbatch's share of the loss, and its logits."""
    tp, data = self.axes["tp"], [self.axes[name] for name in DATA_AXES]
    x = all_reduce(embedding(tokens, local(self.embed.weight), (tp,), VOCABULARY), tp) * self.scale
    x = x + local(self.shift).sum(0)
    for block in self.layers:
        x = block(x)
    logits = F.linear(sum_gradient(x, tp), local(self.head.weight))
    assert tp.size == 1, "the test's head is whole"
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / count
    for axis in data:
        loss = all_reduce(loss, axis)
    return loss, logits


class Pair(nn.Module):
    """The plain model, which returns its logits too."""

    def __init__(self, tiny: Tiny) -> None:
        super().__init__()
        self.tiny = tiny

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tiny.embed(tokens) * self.tiny.scale + self.tiny.shift.sum(0)
        for block in self.tiny.layers:
            x = block(x)
        logits = self.tiny.head(x)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits


def pair(sizes: dict[str, int], microbatches: int, **options: Any) -> tuple[Pair, Running]:
    torch.manual_seed(0)
    model = Tiny().double()
    plain = Pair(copy.deepcopy(model))
    keep_identity(model)
    mesh, orders = parallel(model, sizes, **options)
    bind(model, {"": root}, mesh.axes)
    structure = _pair_structure()
    running = Running(model, mesh, INPUTS, structure, orders, microbatches, ("sum", "cat 0"), counts=counts)
    return plain, running


def _pair_structure() -> str:
    from autopar.torch_private import flatten_with_paths, write_structure

    return write_structure(flatten_with_paths((0, 0))[1])


def check_equal(running: Running, plain: Pair) -> None:
    wanted = {name: p.grad for name, p in plain.tiny.named_parameters() if p.grad is not None}
    assert_close(running.full_gradients(), wanted, rtol=1e-9, atol=1e-12)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def train(sizes: dict[str, int], microbatches: int, options: dict[str, Any]) -> None:
    plain, running = pair(sizes, microbatches, **options)
    reference, optimizer = adamw(plain), adamw(running.module)
    for number in range(5):
        (expected, logits), (loss, mine) = plain(*batch(number)), running(*batch(number))
        assert_close((loss, mine), _local((expected, logits), running))
        for one in (reference, optimizer):
            one.zero_grad()
        assert all(p.grad is None for p in running.module.parameters())
        (expected / 3).backward()
        (loss / 3).backward()
        check_equal(running, plain)
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        assert_close(running.clip_grad_norm_(0.1), norm)
        reference.step()
        optimizer.step()
    assert_close(full_state_dict(running.module), plain.tiny.state_dict(), rtol=1e-7, atol=1e-9)


MESHES = [{"dp_shard": 4}, {"dp_replicate": 4}, {"dp_replicate": 2, "dp_shard": 2}]


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_five_steps_of_adamw_equal_the_plain_model(pool, sizes, zero):
    pool.run(train, sizes, 2, {"zero": zero})


def test_blocks_may_have_levels_of_their_own(pool):
    pool.run(train, {"dp_shard": 4}, 2, {"zero": {"": 1, "layers.0": 2, "layers.1": 3}})


@pytest.mark.slow
@pytest.mark.parametrize("level", ["selective", "full"])
def test_recomputation_and_compilation_compose(pool, level):
    pool.run(
        train_float, {"dp_shard": 4}, {"zero": 2, "recompute": level, "compile_forwards": True}, timeout_s=300
    )


def train_float(sizes: dict[str, int], options: dict[str, Any]) -> None:
    """In float32: compiled float64 attention fails on torch 2.11."""
    plain, running = pair(sizes, 2, **options)
    plain.float()
    running.module.float()
    for number in range(2):
        running(*batch(number))[0].backward()
        plain(*batch(number))[0].backward()
    wanted = {name: p.grad for name, p in plain.tiny.named_parameters()}
    assert_close(running.full_gradients(), wanted, rtol=1e-3, atol=1e-6)


def test_one_device_trains_in_microbatches():
    train({}, 4, {})
    train({}, 8, {})


def accumulate(sizes: dict[str, int], options: dict[str, Any]) -> None:
    """The user's own accumulation, a forward that is thrown away, a backward that comes late."""
    plain, running = pair(sizes, 2, **options)
    for number in range(3):
        (plain(*batch(number))[0] * (number + 1)).backward()
    first, second = running(*batch(0))[0], running(*batch(1))[0]
    running(*batch(5))
    third = running(*batch(2))[0]
    (second * 2).backward()
    (first + 3 * third).backward()
    check_equal(running, plain)
    with torch.no_grad():
        assert_close(running(*batch(3)), _local(plain(*batch(3)), running))
    assert all(p.grad is not None for p in running.module.parameters())


def _local(outputs: tuple[Tensor, Tensor], running: Running) -> tuple[Tensor, Tensor]:
    loss, logits = outputs
    wanted = [Input("0", tuple(logits.shape), logits.dtype, SLICES)]
    return loss, local_inputs(wanted, running.mesh.axes, (logits,), {})[0]


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("sizes", MESHES[::2], ids=str)
def test_calls_accumulate_in_any_order(pool, sizes, zero):
    pool.run(accumulate, sizes, {"zero": zero})


def test_calls_accumulate_on_one_device():
    accumulate({}, {})


def communicate(sizes: dict[str, int], zero: int, microbatches: int) -> Counter[str]:
    _, running = pair(sizes, microbatches, zero=zero)
    running(*batch(0))[0].backward()
    with Operators() as inside:
        loss = running(*batch(0))[0]
    with Operators() as later:
        loss.backward()
    assert not [name for name in later.counts if "gather" in name or "reduce" in name]
    return inside.counts


@pytest.mark.parametrize(("zero", "gathers", "scatters"), [(3, 4 + 3 + 4 + 3, 8), (2, 4, 8), (1, 4, 4)])
def test_a_level_says_how_often_parameters_and_gradients_travel(pool, zero, gathers, scatters):
    """Three blocks and the root, two microbatches; the root keeps what it gathered for its backward."""
    for found in pool.run(communicate, {"dp_shard": 4}, zero, 2):
        assert found["_allgather_base_"] == gathers
        assert found["_reduce_scatter_base_"] == scatters


def test_replicated_gradients_are_summed_once(pool):
    losses_and_counts = 2 * (1 + 1)
    for found in pool.run(communicate, {"dp_replicate": 4}, 3, 2):
        assert found["allreduce_"] == 4, found
        assert found["all_reduce"] == losses_and_counts, found


def refuse() -> list[str]:
    _, running = pair({}, 2)
    loss, logits = running(*batch(0))
    assert logits.requires_grad
    found = []
    for wrong in (logits.sum(), loss + logits.sum()):
        with pytest.raises(ModelError) as refusal:
            wrong.backward()
        found.append(str(refusal.value))
    loss = running(*batch(0))[0]
    loss.backward(retain_graph=True)
    with pytest.raises(ModelError) as refusal:
        loss.backward()
    return [*found, str(refusal.value)]


def test_backward_from_another_output_is_refused():
    other, mixed, again = refuse()
    assert other == mixed
    assert "output 1 of the model has no backward" in other
    assert "handed over by an earlier backward()" in again


def test_a_model_without_a_loss_runs_forward_alone():
    _, running = pair({}, 2)
    running = Running(
        running.module, running.mesh, INPUTS, running.outputs, {}, 2, ("cat 0", "cat 0"), counts=counts
    )
    bind(running.module, {"": lambda self, *inputs: (self.embed(inputs[0]), inputs[1])}, running.mesh.axes)
    embedded, targets = running(*batch(0))
    assert_close(embedded, running.module.embed(batch(0)[0]))
    assert not targets.requires_grad
    with pytest.raises(ModelError, match="output 0"):
        embedded.sum().backward()


def peak_saved(microbatches: int) -> int:
    """The most bytes that autograd held at one time."""
    _, running = pair({}, microbatches)
    held, peak = [0], [0]

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            held[0] += self.size
            peak[0] = max(peak[0], held[0])

        def __del__(self) -> None:
            held[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        loss = running(*batch(0))[0]
    if microbatches > 1:
        assert held[0] == 0, "nothing is held when the call is over"
    del loss
    return peak[0]


def test_one_microbatch_holds_activations_at_a_time():
    parameters = 8 * sum(p.numel() for p in Tiny().parameters())
    assert peak_saved(8) < peak_saved(1) / 3 + 2 * parameters


def test_a_loss_that_is_thrown_away_takes_its_gradients_along():
    _, running = pair({}, 2)
    loss = running(*batch(0))[0]
    gradient = weakref.ref(loss.grad_fn.kept.gradients[0])
    assert gradient() is not None
    del loss
    assert gradient() is None


def test_a_forward_that_fails_leaves_gradients_as_they_were():
    plain, running = pair({}, 2)
    running(*batch(0))[0].backward()
    plain(*batch(0))[0].backward()
    bind(running.module, {"layers.2": lambda self, x: x.nothing}, running.mesh.axes)
    with pytest.raises(AttributeError, match="nothing"):
        running(*batch(1))
    check_equal(running, plain)


def test_hooks_see_each_gradient_once_and_whole():
    plain, running = pair({}, 4)
    seen = []
    weight = running.module.head.weight
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    weight.register_hook(lambda g: g * 2)
    plain.tiny.head.weight.register_hook(lambda g: g * 2)
    for number in range(2):
        running(*batch(number))[0].backward()
        plain(*batch(number))[0].backward()
    assert len(seen) == 2
    assert_close(seen[1], plain.tiny.head.weight.grad)


def test_gradients_may_be_asked_for_by_name():
    plain, running = pair({}, 4)
    found = torch.autograd.grad(running(*batch(0))[0], list(running.module.parameters()))
    wanted = torch.autograd.grad(plain(*batch(0))[0], list(plain.parameters()))
    assert_close(found, wanted)
    assert all(p.grad is None for p in running.module.parameters())


def test_float16_gradients_do_not_vanish():
    """A gradient of 2⁻²⁶ is zero in float16; scaled by 2¹⁶ it is not."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    def forward(self: Small, x: Tensor) -> Tensor:
        return (x.half() * self.weight.half()).sum().float() * 2.0**-26

    module = Small()
    bind(module, {"": forward}, {})
    inputs = [Input("0", (4, 2), torch.float32, "microbatch:S(0)")]
    mesh = init_mesh({}, "cpu")
    shard_data(module, [], mesh, compute_dtype=torch.float16)
    running = Running(module, mesh, inputs, "tensor", {}, 2, ("sum",))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(module.parameters(), lr=2.0**24)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(running(torch.ones(4, 2))).backward()
        scaler.unscale_(optimizer)
        assert_close(module.weight.grad, torch.full((2,), 4 * 2.0**-26))
        scaler.step(optimizer)
        scaler.update()
    assert_close(module.weight, torch.full((2,), -1.0))


def test_an_overflow_skips_the_step():
    _, running = pair({}, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = adamw(running.module)
    before = copy.deepcopy(running.module.state_dict())
    with torch.no_grad():
        running.module.scale.fill_(torch.inf)
    scaler.scale(running(*batch(0))[0]).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    running.module.load_state_dict(before)
    optimizer.zero_grad()
    running(*batch(0))[0].backward()
    assert not any(p.grad.isnan().all() for p in running.module.parameters())


def test_a_batch_that_does_not_divide_is_refused():
    _, running = pair({}, 3)
    with pytest.raises(
        PlanMismatchError, match=r"dim 0 of input '0' \[8, 5\] does not divide into 3 microbatches"
    ):
        running(*batch(0))


def test_a_level_is_one_of_three(pool):
    assert pool.run(wrong_level) == ["ZeRO level of 'layers.0': 1, 2 or 3, not 4"] * 4


def wrong_level() -> str:
    with pytest.raises(ValueError, match="ZeRO") as refusal:
        pair({"dp_shard": 4}, 2, zero={"layers.0": 4})
    return str(refusal.value)


def test_microbatches_are_no_axis_of_the_mesh():
    each = Input("0", (8, 5), torch.int64, "dp:S(0) microbatch:S(1)")
    assert each.local_shape({"dp": Axis("dp", 2, 0, "")}) == (4, 5)
    assert each.microbatch_dim == 1
    assert Input("0", (8, 5), torch.int64).microbatches(torch.ones(8), 2)[1].shape == (8,)
