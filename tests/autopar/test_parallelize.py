"""``autopar.parallelize`` leaves the user's module and training loop what they are, on four processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

import autopar
from autopar.errors import AutoparError, CaptureError, PlanMismatchError
from autopar.parallel import Parallel
from tests.gloo_pool import GlooPool
from tests.models import small

PINS = ["dp_replicate=4", "dp_shard=4", "tp=4", "dp_shard=2,tp=2", "dp_replicate=2,cp=2"]
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def pool() -> Iterator[GlooPool]:
    with GlooPool(4) as pool:
        yield pool


def _pair(kind: type[nn.Module], *args: Any, **options: Any) -> tuple[nn.Module, Any]:
    """A plain module, and the same one made parallel."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = kind(*args)
    torch.manual_seed(0)
    other = kind(*args)
    return plain, autopar.parallelize(other, **options)


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2, eps=1e-6)


def _steps(module: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Any]) -> list[float]:
    """The user's loop."""
    losses = []
    for batch in batches:
        loss = module(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _gradients(plain: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in plain.named_parameters()}


def _check_same_training(plain: nn.Module, module: nn.Module, optimizer: Any = None) -> None:
    batches = [small.token_batch(seed) for seed in range(3)]
    expected = _steps(plain, _adamw(plain), batches)
    found = _steps(module, optimizer or _adamw(module), batches)
    assert_close(found, expected, **TOLERANCE)
    assert_close(module.state_dict(), plain.state_dict(), **TOLERANCE)


def _refused(kind: type[Exception], action: Any) -> str:
    """The message of the error that ``action`` raises."""
    with pytest.raises(kind) as refusal:
        action()
    assert refusal.type is kind
    return str(refusal.value)


# Forms of the call


def _train_lazily(pin: str, optimizer_first: bool) -> None:
    plain, module = _pair(small.Language, pin=pin)
    before = list(module.parameters())
    optimizer = _adamw(module) if optimizer_first else None
    _refused(AutoparError, lambda: module.plan)
    if not optimizer_first:
        module(*small.token_batch())
    _check_same_training(plain, module, optimizer)
    assert all(p is q for p, q in zip(before, module.parameters(), strict=True))
    assert {axis.axis for axis in module.plan.mesh} == {item.split("=")[0] for item in pin.split(",")}


@pytest.mark.parametrize("pin", PINS)
def test_the_optimizer_may_be_made_before_the_first_call(pool: GlooPool, pin: str) -> None:
    pool.run(_train_lazily, pin, True)


@pytest.mark.parametrize("pin", PINS[2:4])
def test_the_optimizer_may_be_made_after_the_first_call(pool: GlooPool, pin: str) -> None:
    pool.run(_train_lazily, pin, False)


def _train_class(form: str) -> None:
    torch.set_num_threads(1)
    kinds = {
        "bare": autopar.parallelize(small.Language),
        "empty": autopar.parallelize()(small.Language),
        "options": autopar.parallelize(pin="tp=4")(small.Language),
        "class and options": autopar.parallelize(small.Language, pin="tp=4"),
        "inputs": autopar.parallelize(inputs=small.token_batch())(small.Language),
    }
    kind = kinds[form]
    assert issubclass(kind, small.Language)
    assert kind.__name__ == "Language"
    assert kind.__doc__ == small.Language.__doc__
    torch.manual_seed(0)
    plain = small.Language()
    torch.manual_seed(0)
    module = kind(dropout=0.0)
    assert isinstance(module, small.Language)
    assert isinstance(module, Parallel)
    _check_same_training(plain, module)


@pytest.mark.parametrize("form", ["bare", "empty", "options", "class and options", "inputs"])
def test_a_class_becomes_parallel_by_decorator_or_call(pool: GlooPool, form: str) -> None:
    pool.run(_train_class, form)


def _train_ahead(folder: str) -> None:
    plain, module = _pair(small.Language, inputs=small.token_batch(), pin="dp_shard=2,tp=2", save_to=folder)
    assert [axis.axis for axis in module.plan.mesh] == ["dp_shard", "tp"]
    _check_same_training(plain, module)
    dist.barrier()
    assert (Path(folder) / "program.py").read_text()
    for plan in (Path(folder) / "plan.json", str(Path(folder) / "plan.json"), module.plan):
        again, loaded = _pair(small.Language, plan=plan)
        _check_same_training(again, loaded)
        assert loaded.plan.mesh == module.plan.mesh


def test_a_plan_is_made_ahead_saved_and_given(pool: GlooPool, tmp_path: Path) -> None:
    pool.run(_train_ahead, str(tmp_path))


def _train_keywords() -> None:
    plain, module = _pair(small.Keywords, pin="dp_replicate=2,tp=2")
    tokens, targets = small.token_batch()
    batch, weight = {"tokens": tokens, "targets": targets}, torch.tensor(3.0)
    expected = plain(batch, weight=weight)
    expected.backward()
    found = module(batch, weight=weight)
    found.backward()
    assert_close(found, expected, **TOLERANCE)
    gradients = module.running.full_gradients()
    assert_close(gradients, _gradients(plain), **TOLERANCE)
    local = module.shard(batch, weight=weight)
    assert isinstance(local, tuple)
    assert_close(module(local[0], weight=weight), expected, **TOLERANCE)


def test_inputs_may_be_nested_and_by_keyword(pool: GlooPool) -> None:
    pool.run(_train_keywords)


def test_without_a_launcher_one_process_trains() -> None:
    plain, module = _pair(small.Language)
    _check_same_training(plain, module)
    assert module.plan.mesh == []
    assert (module.data_rank, module.data_size) == (0, 1)


# What survives


def _keep_everything(pin: str) -> None:
    plain, module = _pair(small.Language, pin=pin)
    calls: list[str] = []
    block = module.blocks[0]
    block.register_forward_hook(lambda *_: calls.append("block"))
    module.register_forward_pre_hook(lambda *_: calls.append("root"))
    module.head.weight.register_post_accumulate_grad_hook(lambda _: calls.append("gradient"))
    children = dict(module.named_modules())
    module(*small.token_batch()).backward()
    assert calls[:2] == ["root", "block"]
    assert "gradient" in calls
    assert isinstance(module, small.Language)
    assert isinstance(block, small.Block)
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [p.shape for p in module.parameters()] == [p.shape for p in plain.parameters()]
    assert [n for n, _ in module.named_modules()] == [n for n, _ in plain.named_modules()]
    assert all(children[name] is child for name, child in module.named_modules())
    assert module.head.weight is module.tokens.weight, "tied weights stay one object"


@pytest.mark.parametrize("pin", PINS)
def test_names_objects_and_hooks_survive(pool: GlooPool, pin: str) -> None:
    pool.run(_keep_everything, pin)


def _exchange_states(pin: str) -> None:
    plain, module = _pair(small.Language, pin=pin)
    state = plain.state_dict()
    _check_state(module.state_dict(), state)
    module(*small.token_batch())
    _check_state(module.state_dict(), state)
    torch.manual_seed(1)
    other = small.Language()
    module.load_state_dict(other.state_dict())
    _check_state(module.state_dict(), other.state_dict())
    batch = small.token_batch()
    assert_close(module(*batch), other(*batch), **TOLERANCE)
    plain.load_state_dict(module.state_dict())
    assert_close(plain(*batch), other(*batch), **TOLERANCE)
    wrong = dict(other.state_dict())
    wrong["blocks.0.up.weight"] = torch.zeros(3, 3)
    assert "blocks.0.up.weight" in _refused(RuntimeError, lambda: module.load_state_dict(wrong))


def _check_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert type(tensor.detach()) is Tensor, name
        assert_close(tensor, expected[name], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("pin", PINS)
def test_state_dicts_are_the_plain_modules(pool: GlooPool, pin: str) -> None:
    pool.run(_exchange_states, pin)


def _checkpoint_across_plans(folder: str, saved: str, loaded: str) -> None:
    plain, module = _pair(small.Language, pin=saved, inputs=small.token_batch())
    _check_same_training(plain, module)
    checkpoint.save({"model": module.sharded_state_dict()}, checkpoint_id=folder)
    _, other = _pair(small.Language, pin=loaded, inputs=small.token_batch())
    state = {"model": other.sharded_state_dict()}
    assert all(isinstance(tensor, DTensor) for tensor in state["model"].values())
    checkpoint.load(state, checkpoint_id=folder)
    other.load_state_dict(state["model"])
    _check_state(other.state_dict(), module.state_dict())


@pytest.mark.parametrize(("saved", "loaded"), [("dp_shard=2,tp=2", "tp=4"), ("tp=4", "dp_shard=4")])
def test_a_distributed_checkpoint_goes_from_plan_to_plan(
    pool: GlooPool, tmp_path: Path, saved: str, loaded: str
) -> None:
    pool.run(_checkpoint_across_plans, str(tmp_path), saved, loaded)


def _clip(pin: str) -> None:
    plain, module = _pair(small.Language, pin=pin)
    _, twin = _pair(small.Language, pin=pin)
    batch = small.token_batch()
    for each in (plain, module, twin):
        each(*batch).backward()
    expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
    wanted = _gradients(plain)
    assert_close(twin.clip_grad_norm_(0.05), expected, **TOLERANCE)
    assert_close(twin.running.full_gradients(), wanted, **TOLERANCE)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.05)
    assert_close(norm.full_tensor() if isinstance(norm, DTensor) else norm, expected, **TOLERANCE)
    assert_close(module.running.full_gradients(), wanted, **TOLERANCE)


@pytest.mark.parametrize("pin", PINS)
def test_clipping_sees_the_norm_of_all_gradients(pool: GlooPool, pin: str) -> None:
    pool.run(_clip, pin)


# The loop


def _read_own_slice(pin: str, slices: int) -> tuple[int, int]:
    plain, module = _pair(small.Language, pin=pin)
    batch = small.token_batch()
    local = module.shard(*batch)
    assert module.data_size == slices
    assert local[0].shape[0] == small.BATCH // slices
    start = module.data_rank * small.BATCH // slices
    assert torch.equal(local[0][:, 0], batch[0][start : start + small.BATCH // slices, 0])
    expected, found = plain(*batch), module(*local)
    assert_close(found, expected, **TOLERANCE)
    return module.data_rank, module.data_size


@pytest.mark.parametrize(("pin", "slices"), [("dp_shard=4", 4), ("dp_shard=2,tp=2", 2), ("tp=4", 1)])
def test_a_rank_may_read_its_own_slice(pool: GlooPool, pin: str, slices: int) -> None:
    found = pool.run(_read_own_slice, pin, slices)
    assert sorted(found) == sorted((rank * slices // 4, slices) for rank in range(4))


def _evaluate(pin: str) -> None:
    plain, module = _pair(small.Language, 0.5, pin=pin)
    batch = small.token_batch()
    module(*batch).backward()
    plain.eval()
    module.eval()
    with torch.no_grad():
        expected, found = plain(*batch), module(*batch)
    assert_close(found, expected, **TOLERANCE)
    assert not found.requires_grad
    module.train()
    assert module(*batch).requires_grad


@pytest.mark.parametrize("pin", PINS)
def test_evaluation_drops_nothing_out(pool: GlooPool, pin: str) -> None:
    pool.run(_evaluate, pin)


def _evaluate_first() -> None:
    plain, module = _pair(small.Language, 0.5, pin="tp=4")
    batch = small.token_batch()
    plain.eval()
    module.eval()
    with torch.no_grad():
        assert_close(module(*batch), plain(*batch), **TOLERANCE)
    module.train()
    first, second = module(*batch), module(*batch)
    assert first.requires_grad
    assert first.item() != second.item(), "dropout is active again"


def test_the_first_call_may_be_an_evaluation(pool: GlooPool) -> None:
    pool.run(_evaluate_first)


def _accumulate(pin: str) -> None:
    plain, module = _pair(small.Language, pin=pin)
    for each in (plain, module):
        for seed in range(3):
            (each(*small.token_batch(seed)) / 3).backward()
    expected = _gradients(plain)
    assert_close(module.running.full_gradients(), expected, **TOLERANCE)


@pytest.mark.parametrize("pin", PINS)
def test_gradients_accumulate_over_calls(pool: GlooPool, pin: str) -> None:
    pool.run(_accumulate, pin)


def _drop_out(pin: str) -> tuple[list[float], list[Tensor]]:
    _, module = _pair(small.Language, 0.3, pin=pin)
    torch.manual_seed(100 + dist.get_rank())
    losses = _steps(module, _adamw(module), [small.token_batch()] * 3)
    return losses, [p.full_tensor().detach() for p in module.parameters()]


@pytest.mark.parametrize("pin", PINS)
def test_ranks_agree_where_dropout_is_active(pool: GlooPool, pin: str) -> None:
    results = pool.run(_drop_out, pin)
    for losses, parameters in results[1:]:
        assert losses == results[0][0]
        assert_close(parameters, results[0][1], rtol=0.0, atol=0.0)


def _forward_twice(pin: str) -> None:
    """Two forwards before one backward; then a forward without one, a step, and a forward again."""
    plain, module = _pair(small.Language, pin=pin)
    for each in (plain, module):
        optimizer = _adamw(each)
        (each(*small.token_batch(0)) + each(*small.token_batch(1))).backward()
        each(*small.token_batch(2))
        optimizer.step()
        each.zero_grad()
        each(*small.token_batch(3)).backward()
    assert_close(module(*small.token_batch()), plain(*small.token_batch()), **TOLERANCE)
    assert_close(module.running.full_gradients(), _gradients(plain), **TOLERANCE)


@pytest.mark.parametrize("pin", PINS)
def test_forwards_and_backwards_need_not_alternate(pool: GlooPool, pin: str) -> None:
    pool.run(_forward_twice, pin)


def _compile() -> None:
    _, module = _pair(small.Language, pin="dp_shard=2,tp=2", compile=True)
    _, eager = _pair(small.Language, pin="dp_shard=2,tp=2")
    batches = [small.token_batch(seed) for seed in range(3)]
    assert_close(_steps(module, _adamw(module), batches), _steps(eager, _adamw(eager), batches), **TOLERANCE)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(pool: GlooPool) -> None:
    pool.run(_compile, timeout_s=300.0)


def _return_everything(pin: str) -> None:
    plain, module = _pair(small.Outputs, pin=pin)
    batch = small.token_batch()
    expected, found = plain(*batch), module(*batch)
    assert type(found) is dict
    assert_close(found, expected, **TOLERANCE)
    expected["loss"].backward()
    found["loss"].backward()
    wanted = _gradients(plain)
    assert_close(module.running.full_gradients(), wanted, **TOLERANCE)


@pytest.mark.parametrize("pin", PINS)
def test_outputs_come_back_whole_and_packed_as_they_were(pool: GlooPool, pin: str) -> None:
    pool.run(_return_everything, pin)


def _own_loss(pin: str) -> None:
    plain, module = _pair(small.Logits, pin=pin)
    tokens, targets = small.token_batch()
    for each in (plain, module):
        logits = each(tokens)
        assert logits.shape == (small.BATCH, small.TOKENS, small.VOCAB)
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    wanted = _gradients(plain)
    assert_close(module.running.full_gradients(), wanted, **TOLERANCE)


@pytest.mark.parametrize("pin", PINS)
def test_the_loss_may_be_the_users_own_on_whole_logits(pool: GlooPool, pin: str) -> None:
    pool.run(_own_loss, pin)


# Kinds of modules


def _init_differently(pin: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(dist.get_rank())
    module = autopar.parallelize(small.Scaled(), pin=pin)
    torch.manual_seed(0)
    plain = small.Scaled()
    batch = small.vector_batch()
    assert_close(module(*batch), plain(*batch), **TOLERANCE)
    _check_state(module.state_dict(), plain.state_dict())


@pytest.mark.parametrize("pin", ["dp_replicate=4", "tp=4"])
def test_the_values_of_rank_0_win(pool: GlooPool, pin: str) -> None:
    pool.run(_init_differently, pin)


def _train_vectors(kind: type[nn.Module], pin: str) -> None:
    plain, module = _pair(kind, pin=pin)
    batches = [small.vector_batch(seed) for seed in range(3)]
    expected, found = (_steps(each, _adamw(each), batches) for each in (plain, module))
    assert_close(found, expected, **TOLERANCE)
    _check_same_state(module, plain)


def _check_same_state(module: nn.Module, plain: nn.Module) -> None:
    found, expected = module.state_dict(), plain.state_dict()
    assert list(found) == list(expected)
    assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("pin", PINS[:4])
def test_frozen_parameters_and_buffers_stay_what_they_are(pool: GlooPool, pin: str) -> None:
    pool.run(_train_vectors, small.Scaled, pin)


@pytest.mark.parametrize("pin", PINS[:4])
def test_batch_statistics_are_those_of_the_global_batch(pool: GlooPool, pin: str) -> None:
    pool.run(_train_vectors, small.Normalized, pin)


# Errors


def _pass_another_batch() -> str:
    _, module = _pair(small.Language, pin="dp_shard=2,tp=2")
    module(*small.token_batch())
    tokens, targets = small.token_batch()
    return _refused(PlanMismatchError, lambda: module(tokens[:6], targets[:6]))


def test_a_batch_of_another_shape_is_refused(pool: GlooPool) -> None:
    for message in pool.run(_pass_another_batch):
        assert "[6, 8]" in message
        assert "[8, 8]" in message


def _use_foreign_plan() -> str:
    _, module = _pair(small.Language, pin="tp=4", inputs=small.token_batch())
    return _refused(
        PlanMismatchError, lambda: _pair(small.Scaled, plan=module.plan, inputs=small.vector_batch())
    )


def test_a_plan_for_another_model_is_refused(pool: GlooPool) -> None:
    for message in pool.run(_use_foreign_plan):
        assert "input '0'" in message


def _use_larger_plan() -> tuple[str, str]:
    own = _refused(PlanMismatchError, _plan_for_eight)
    plan = _plan_of_two()
    return own, _refused(
        PlanMismatchError, lambda: _pair(small.Language, plan=plan, inputs=small.token_batch())
    )


def _plan_for_eight() -> None:
    _pair(small.Language, cluster="cpu:8", inputs=small.token_batch())


def _plan_of_two() -> Any:
    from autopar.clusters import cluster_named
    from autopar.planning import PlanOptions, plan_model

    return plan_model(small.Language(), small.token_batch(), {}, cluster_named("cpu:2"), PlanOptions())


def test_a_plan_for_another_world_size_is_refused(pool: GlooPool) -> None:
    for own, given in pool.run(_use_larger_plan):
        assert "cpu:8 has 8 devices" in own
        assert "4 processes" in own
        assert "2 devices" in given


def _fail_to_plan() -> str:
    _, module = _pair(small.Branching)
    return _refused(CaptureError, lambda: module(*small.token_batch()))


def test_an_error_while_planning_reaches_every_rank(pool: GlooPool) -> None:
    for message in pool.run(_fail_to_plan, timeout_s=60.0):
        assert "tokens.sum() > 0" in message


def _parallelize_twice() -> str:
    _, module = _pair(small.Language)
    return _refused(AutoparError, lambda: autopar.parallelize(module))


def test_a_module_is_made_parallel_once() -> None:
    assert "parallel already" in _parallelize_twice()


def test_the_name_is_a_function_whatever_was_imported_before() -> None:
    assert callable(autopar.parallelize)
    assert Parallel.__module__ != "autopar.parallelize", "a module of that name would hide the function"
