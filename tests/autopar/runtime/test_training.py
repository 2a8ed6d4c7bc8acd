"""A sharded model trains as the plain one, under the plain one's names, and speaks its state dicts."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from autopar.runtime import (
    clip_grad_norm,
    full_gradients,
    full_optimizer_state,
    full_state_dict,
    keep_identity,
    load_full_optimizer_state,
)
from tests.autopar.runtime.tiny import LAYERS, Block, Tiny, batch, my_part, parallel

MESHES = [
    {"tp": 4},
    {"dp_shard": 4},
    {"dp_replicate": 4},
    {"dp_shard": 2, "tp": 2},
    {"dp_replicate": 2, "tp": 2},
    {"dp_replicate": 2, "dp_shard": 2},
    {"dp_shard": 2, "cp": 2},
]


def plain_model() -> Tiny:
    torch.manual_seed(0)
    return tiny()


def tiny() -> Tiny:
    """In float64: Adam turns the rounding of gradients that are zero, like a key's bias's, into steps."""
    return Tiny().double()


def difference(actual: dict, expected: dict) -> float:
    """Largest relative difference of norms over all tensors; infinite where names differ."""
    if actual.keys() != expected.keys():
        return float("inf")
    return max(float((actual[n] - expected[n]).norm() / (expected[n].norm() + 1e-12)) for n in expected)


def train(sizes: dict, options: dict, steps: int, dtype: torch.dtype = torch.float64) -> dict:
    """Train plain and sharded side by side; the optimizer is made before the model is sharded."""
    plain = plain_model().to(dtype)
    model = copy.deepcopy(plain)
    with torch.no_grad():  # other ranks initialised theirs differently: rank 0 wins
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(dist.get_rank())
    keep_identity(model)
    objects = list(model.parameters())
    eps = 1e-8 if dtype is torch.float64 else 1e-3  # rounding of zero gradients
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=eps)
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2, eps=eps)
    mesh, orders = parallel(model, sizes, **options)
    found = {"loss": 0.0, "norm": 0.0, "gradient": 0.0}
    for step in range(steps):
        tokens, targets = batch(step)
        expected = plain(tokens, targets)
        expected.backward()
        loss = model(my_part(tokens, mesh.axes), my_part(targets, mesh.axes))
        loss.backward()
        found["loss"] = max(found["loss"], abs(loss.item() - expected.item()))
        wanted = {name: p.grad for name, p in plain.named_parameters()}
        found["gradient"] = max(found["gradient"], difference(full_gradients(model, orders), wanted))
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        found["norm"] = max(found["norm"], abs(clip_grad_norm(model, 0.5).item() - norm.item()))
        for one in (optimizer, reference):
            one.step()
            one.zero_grad()
    return found | {
        "state": difference(full_state_dict(model), plain.state_dict()),
        "same_objects": all(a is b for a, b in zip(model.parameters(), objects, strict=True)),
        "all_dtensors": all(isinstance(p, DTensor) for p in model.parameters()),
        "one_mesh": len({p.device_mesh for p in model.parameters()}) == 1,
        "tied": model.head.weight is model.embed.weight,
        "class": isinstance(model, Tiny) and isinstance(model.layers[0], Block),
        "names": [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()],
    }


def check(answers: list[dict], tolerance: float = 1e-7) -> None:
    for answer in answers:
        wrong = {
            key: value
            for key, value in answer.items()
            if (value is False if isinstance(value, bool) else not value < tolerance)
        }
        assert not wrong, wrong


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_five_steps_of_adamw_equal_the_plain_model(pool, sizes):
    check(pool.run(train, sizes, {}, 5))


@pytest.mark.parametrize("zero", [1, 2])
def test_keeping_gathered_parameters_for_backward_changes_nothing(pool, zero):
    check(pool.run(train, {"dp_shard": 2, "tp": 2}, {"zero": zero}, 2))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"dp_shard": 2, "tp": 2}, {"tp": 4}], ids=str)
def test_compiled_blocks_train_alike(pool, sizes):
    options = {"compile_forwards": True}  # in float32: compiled float64 attention fails on torch 2.11
    check(pool.run(train, sizes, options, 3, torch.float32, timeout_s=300), 1e-5)


def speak(sizes: dict, folder: str) -> dict[str, bool]:
    """Plain state in, plain state out; and a sharded checkpoint read under another plan."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    torch.manual_seed(1)
    source, model, other, third = plain_model(), tiny(), tiny(), tiny()
    mesh, _ = parallel(model, sizes)
    parallel(other, {"tp": 4})
    parallel(third, sizes)
    whole = source.state_dict()
    keys = model.load_state_dict(whole)
    found = {"loaded": difference(full_state_dict(model), whole) == 0 and not keys.missing_keys}
    tokens, targets = batch(0)
    with torch.no_grad():
        loss = model(my_part(tokens, mesh.axes), my_part(targets, mesh.axes))
    found["same loss"] = abs(loss.item() - source(tokens, targets).item()) < 1e-5
    found["after forward"] = difference(full_state_dict(model), whole) == 0
    plain = tiny()
    plain.load_state_dict(full_state_dict(model))
    found["to plain"] = difference(plain.state_dict(), whole) == 0
    state = model.layers[0].state_dict()
    found["of a part"] = torch.equal(state["qkv.weight"].full_tensor(), whole["layers.0.qkv.weight"])

    full = StateDictOptions(full_state_dict=True)
    found["torch full"] = difference(get_model_state_dict(model, options=full), whole) == 0
    set_model_state_dict(third, copy.deepcopy(whole), options=full)
    found["torch set full"] = difference(full_state_dict(third), whole) == 0

    dcp.save(get_model_state_dict(model), checkpoint_id=folder)
    read = get_model_state_dict(other)
    dcp.load(read, checkpoint_id=folder)
    set_model_state_dict(other, read)
    found["other plan"] = difference(full_state_dict(other), whole) == 0
    other.load_state_dict(model.state_dict())
    return found | {"from DTensors": difference(full_state_dict(other), whole) == 0}


@pytest.mark.parametrize("sizes", MESHES[:6], ids=str)
def test_state_dicts_are_the_plain_models(pool, sizes, tmp_path):
    for answer in pool.run(speak, sizes, str(tmp_path / "checkpoint")):
        assert all(answer.values()), answer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, axes: dict | None = None) -> None:
    tokens, targets = batch(number)
    parts = (tokens, targets) if axes is None else (my_part(tokens, axes), my_part(targets, axes))
    model(*parts).backward()
    optimizer.step()
    optimizer.zero_grad()


def resume(sizes: dict) -> float:
    """Train under one plan, go on under another with the optimizer's state; compare with never stopping."""
    plain = plain_model()
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    first, second = copy.deepcopy(plain), tiny()
    mesh, orders = parallel(first, {"tp": 4})
    optimizer = torch.optim.AdamW(first.parameters(), lr=1e-2)
    for number in range(2):
        step(plain, reference, number)
        step(first, optimizer, number, mesh.axes)
    saved = full_optimizer_state(first, optimizer, orders)
    whole = full_state_dict(first)
    mesh, orders = parallel(second, sizes)
    second.load_state_dict(whole)
    following = torch.optim.AdamW(second.parameters(), lr=1e-2)
    load_full_optimizer_state(second, following, saved, orders)
    for number in range(2, 4):
        step(plain, reference, number)
        step(second, following, number, mesh.axes)
    return difference(full_state_dict(second), plain.state_dict())


@pytest.mark.parametrize("sizes", [{"dp_shard": 2, "tp": 2}, {"dp_shard": 4}], ids=str)
def test_training_goes_on_under_another_plan(pool, sizes):
    assert max(pool.run(resume, sizes)) < 1e-4


def test_one_process_needs_no_process_group():
    model, plain = plain_model(), plain_model()
    keep_identity(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    mesh, orders = parallel(model, {})
    for number in range(2):
        step(model, optimizer, number, mesh.axes)
        step(plain, reference, number)
    assert not dist.is_initialized()
    assert orders == {}
    assert len(model.layers) == LAYERS
    assert difference(full_state_dict(model), plain.state_dict()) < 1e-5
