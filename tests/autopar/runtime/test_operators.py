"""Sharded embedding, cross-entropy and attention equal the whole operator, value and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autopar.runtime import Axis, attention, cross_entropy, embedding
from tests.autopar.runtime.meshes import mesh_axes, piece, total

SHARDED = st.sampled_from([((4,), (0,)), ((2, 2), (0, 1)), ((2, 2), (1,)), ((2, 2), (0,)), ((1, 4), (0, 1))])
"""A mesh of four ranks, and which of its axes shard the dim."""
quick = settings(max_examples=30, deadline=None, derandomize=True)


def is_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    return actual.shape == expected.shape and torch.allclose(
        actual, expected, tolerance, tolerance, equal_nan=True
    )


def chosen(sharded: tuple) -> tuple[Axis, ...]:
    shape, positions = sharded
    return tuple(mesh_axes(shape)[position] for position in positions)


def run_embedding(sharded, tokens: tuple, rows: int, padding: int | None, seed: int) -> tuple[bool, bool]:
    axes = chosen(sharded)
    vocabulary = rows * 4
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(vocabulary, 3, dtype=torch.float64, generator=random, requires_grad=True)
    indices = torch.randint(0, vocabulary, tokens, generator=random)
    gradient = torch.randn(*tokens, 3, dtype=torch.float64, generator=random)
    expected = F.embedding(indices, table, padding)
    expected.backward(gradient)
    mine = piece(table.detach(), axes, 0).clone().requires_grad_()
    partial = embedding(indices, mine, axes, vocabulary, padding)
    partial.backward(gradient)
    return is_close(total(partial, axes), expected.detach()), is_close(mine.grad, piece(table.grad, axes, 0))


def test_embedding_of_a_sharded_vocabulary(pool):
    tokens = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)

    @quick
    @given(SHARDED, tokens, st.integers(1, 3), st.sampled_from([None, 0, 2]), st.integers(0, 99))
    def check(sharded, tokens, rows, padding, seed):
        assert pool.run(run_embedding, sharded, tokens, rows, padding, seed) == [(True, True)] * 4

    check()


def run_cross_entropy(
    mesh: tuple,
    batch: tuple[int, ...],
    vocabulary: tuple[int, ...],
    shape: tuple[int, ...],
    options: dict,
    ignored: float,
    seed: int,
) -> tuple[bool, bool]:
    """``shape`` is (tokens, classes, …); tokens are sharded over ``batch``, classes over ``vocabulary``."""
    batch_axes, vocabulary_axes = (chosen((mesh, positions)) for positions in (batch, vocabulary))
    random = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(shape, dtype=torch.float64, generator=random)).requires_grad_()
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=random)
    is_ignored = torch.rand(target.shape, generator=random) < ignored
    target[is_ignored] = options.get("ignore_index", -100)
    weight = torch.rand(shape[1], dtype=torch.float64, generator=random) if options.get("weight") else None
    options = {**options, "weight": weight}
    expected = F.cross_entropy(logits, target, **options)
    expected.sum().backward()

    mine = piece(piece(logits.detach(), batch_axes, 0), vocabulary_axes, 1).clone().requires_grad_()
    if weight is not None:
        options["weight"] = piece(weight, vocabulary_axes, 0)
    axes = {"batch_axes": batch_axes, "vocabulary_axes": vocabulary_axes}
    share = cross_entropy(mine, piece(target, batch_axes, 0), **axes, **options)
    share.sum().backward()
    is_whole = options["reduction"] != "none"
    value = total(share, batch_axes) if is_whole else share.detach()
    wanted = expected.detach() if is_whole else piece(expected.detach(), batch_axes, 0)
    wanted_gradient = piece(piece(logits.grad, batch_axes, 0), vocabulary_axes, 1)
    return is_close(value, wanted), is_close(mine.grad, wanted_gradient)


WHERE = st.sampled_from(
    [
        ((4,), (), ()),
        ((4,), (0,), ()),
        ((4,), (), (0,)),
        ((2, 2), (0,), (1,)),
        ((2, 2), (1,), (0,)),
        ((2, 2), (0, 1), ()),
        ((2, 2), (), (0, 1)),
    ]
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_of_sharded_tokens_and_classes(pool, reduction):
    @quick
    @given(
        WHERE,
        st.integers(1, 3),
        st.integers(1, 4),
        st.sampled_from([(), (2,), (3, 1)]),
        st.fixed_dictionaries(
            {
                "weight": st.booleans(),
                "ignore_index": st.sampled_from([-100, 1]),
                "label_smoothing": st.sampled_from([0.0, 0.1]),
            }
        ),
        st.sampled_from([0.0, 0.6]),
        st.integers(0, 99),
    )
    def check(where, tokens, classes, inner, options, ignored, seed):
        shape = (tokens * 4, classes * 4, *inner)
        options = {**options, "reduction": reduction}
        assert pool.run(run_cross_entropy, *where, shape, options, ignored, seed) == [(True, True)] * 4

    check()


@pytest.mark.parametrize("where", [((4,), (0,), ()), ((4,), (), (0,)), ((2, 2), (0,), (1,))])
def test_the_mean_of_ignored_tokens_is_nan(pool, where):
    answers = pool.run(run_cross_entropy, *where, (8, 4), {"reduction": "mean"}, 1.0, 0)
    assert all(value for value, _ in answers)


def run_probabilities() -> bool:
    axes = mesh_axes((4,))
    whole = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    target = whole.softmax(-1).flip(0)
    share = cross_entropy(piece(whole, axes, 0), piece(target, axes, 0), batch_axes=axes)
    return is_close(total(share, axes), F.cross_entropy(whole, target), 1e-6)


def test_class_probabilities_shard_by_tokens_only(pool):
    assert pool.run(run_probabilities) == [True] * 4
    with pytest.raises(ValueError, match="shard tokens instead"):
        cross_entropy(torch.ones(2, 4), torch.ones(2, 4), vocabulary_axes=(Axis("tp", 2, 0, ""),))


def run_low_precision(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    """Many tokens: the sum alone would overflow float16, and bfloat16 would lose its small digits."""
    data, vocabulary = mesh_axes((2, 2))
    random = torch.Generator().manual_seed(0)
    whole = (3 * torch.randn(16384, 16, generator=random)).to(dtype)
    target = torch.randint(0, 16, (16384,), generator=random)
    exact = F.cross_entropy(whole.double(), target)
    tokens = piece(target, (data,), 0)
    of_tokens = cross_entropy(piece(whole, (data,), 0), tokens, batch_axes=(data,))
    mine = piece(piece(whole, (data,), 0), (vocabulary,), 1)
    of_both = cross_entropy(mine, tokens, batch_axes=(data,), vocabulary_axes=(vocabulary,))
    results = [total(share.double(), (data,)) for share in (of_tokens, of_both)]
    return of_both.dtype is dtype, *(bool((result - exact).abs() < 0.01 * exact) for result in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_losses_accumulate_in_float32(pool, dtype):
    assert pool.run(run_low_precision, dtype) == [(True, True, True)] * 4


def run_attention(
    sharded, queries: int, keys: int, heads: tuple, is_causal: bool, masked: bool, seed: int
) -> list:
    axes = chosen(sharded)
    random = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(2, count, length, 8, dtype=torch.float64, generator=random)
        for count, length in zip((heads[0], heads[1], heads[1]), (queries, keys, keys), strict=True)
    )
    mask = torch.randn(2, 1, queries, keys, dtype=torch.float64, generator=random) if masked else None
    options = {"is_causal": is_causal, "enable_gqa": heads[0] != heads[1], "scale": 0.3}
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*whole, attn_mask=mask, **options)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=random)
    expected.backward(gradient)

    local = [x.clone().requires_grad_() for x in (piece(q, axes, 2), k, v)]
    local_mask = None if mask is None else piece(mask, axes, 2)
    result = attention(*local, query_axes=axes, attn_mask=local_mask, **options)
    result.backward(piece(gradient, axes, 2))
    return [
        is_close(result.detach(), piece(expected.detach(), axes, 2)),
        is_close(local[0].grad, piece(whole[0].grad, axes, 2)),
        *(
            is_close(total(mine.grad, axes), all_.grad)
            for mine, all_ in zip(local[1:], whole[1:], strict=True)
        ),
    ]


def test_attention_of_sharded_queries(pool):
    kinds = st.sampled_from([(True, False), (False, True), (False, False)])

    @quick
    @given(
        SHARDED,
        st.integers(1, 4),
        st.integers(1, 20),
        st.sampled_from([(2, 2), (4, 2)]),
        kinds,
        st.integers(0, 99),
    )
    def check(sharded, queries, keys, heads, kind, seed):
        assert pool.run(run_attention, sharded, queries * 4, keys, heads, *kind, seed) == [[True] * 4] * 4

    check()


def block(x: Tensor, table: Tensor, target: Tensor, data: Axis, model: Axis) -> Tensor:
    """The three operators in one graph."""
    rows = embedding(x, table, (model,), 16)
    q = rows.unflatten(-1, (2, 4)).transpose(1, 2)
    y = attention(q, q.repeat(1, 1, 2, 1), q.repeat(1, 1, 2, 1), query_axes=(data,), is_causal=True)
    logits = F.linear(y.transpose(1, 2).flatten(2), table)
    return cross_entropy(
        logits.flatten(0, 1),
        target.flatten(),
        batch_axes=(data,),
        vocabulary_axes=(model,),
        label_smoothing=0.1,
    )


def compare_compiled(backend: str) -> list[bool]:
    data, model = mesh_axes((2, 2))
    torch.manual_seed(3)
    x, target, table = (
        torch.randint(0, 16, (2, 4)),
        torch.randint(0, 16, (2, 4)),
        torch.randn(8, 8, requires_grad=True),
    )
    results = []
    for function in (block, torch.compile(block, fullgraph=True, backend=backend, dynamic=False)):
        loss = function(x, table, target, data, model)
        results.append((loss.detach(), *torch.autograd.grad(loss, (table,))))
    return [is_close(compiled, eager, 1e-4) for eager, compiled in zip(*results, strict=True)]


def test_operators_trace_into_one_graph(pool):
    assert pool.run(compare_compiled, "aot_eager") == [[True] * 2] * 4


@pytest.mark.slow
def test_operators_compile_with_inductor(pool):
    assert pool.run(compare_compiled, "inductor", timeout_s=300) == [[True] * 2] * 4


def test_a_table_that_is_no_equal_shard_is_refused():
    with pytest.raises(ValueError, match="5 rows on each of 2 ranks are not a vocabulary of 11"):
        embedding(torch.tensor([0]), torch.ones(5, 2), (Axis("tp", 2, 0, ""),), 11)
