"""A graph cut into microbatches computes the same: losses and gradients of the slices add up to the whole's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.capture import capture
from autopar.capture.biases import without_biases
from autopar.capture.graph import Graph
from autopar.capture.interpret import interpret
from autopar.models import parse_model
from autopar.planner.microbatches import Cut, batch_size, in_microbatches
from autopar.planner.operators import planned_types


def cut(module: nn.Module, args: tuple[Tensor, ...], count: int) -> Graph | Cut:
    graph = without_biases(capture(module, args, {}))
    return in_microbatches(graph, planned_types(graph), count)


def summed(graph: Graph, module: nn.Module, args: tuple[Tensor, ...], count: int, targets: int) -> Tensor:
    """The loss of all slices, their gradients left on the module."""
    total = torch.zeros(())
    for slices in zip(*(arg.chunk(count) for arg in args), strict=True):
        counted = {i.path: torch.tensor(float(targets)) for i in graph.inputs if i.path.startswith("count:")}
        (loss,) = interpret(graph, module, slices, counted)
        loss.backward()
        total = total + loss.detach()
    return total


class TwoTowers(nn.Module):
    """Two encoders joined per sample, a weighted mean of a squared error and a cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 6)
        self.classes = nn.Linear(12, 5)

    def forward(self, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        left, right = self.left(a).tanh(), self.right(b).tanh()
        logits = self.classes(torch.cat([left, right], -1))
        entropy = F.cross_entropy(logits, target, ignore_index=0, label_smoothing=0.1)
        return F.mse_loss(left, right) + 0.5 * entropy + (left * right).mean()


class Contrastive(nn.Module):
    """Every sample against every other: the batch cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 6)

    def forward(self, a: Tensor, target: Tensor) -> Tensor:
        features = self.encode(a)
        return F.cross_entropy(features @ features.transpose(0, 1), target)


class TokenTypes(nn.Module):
    """A buffer expanded to the batch and embedded, as BERT does with its token types."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(11, 6), nn.Embedding(2, 6)
        self.head = nn.Linear(6, 11)
        self.register_buffer("kind", torch.zeros(1, 4, dtype=torch.int64), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        kinds = self.kinds(self.kind.expand(tokens.shape[0], tokens.shape[1]))
        logits = self.head(self.words(tokens) + kinds)
        return F.cross_entropy(logits.reshape(-1, 11), targets.reshape(-1))


def uneven(targets: Tensor, ignored: int) -> Tensor:
    """Most of the first row and a little of the others ignored."""
    targets = targets.clone()
    targets.view(targets.shape[0], -1)[0, 1:] = ignored
    targets.view(-1)[-1] = ignored
    return targets


def cases() -> dict[str, tuple[nn.Module, tuple[Tensor, ...], int]]:
    torch.manual_seed(3)
    found: dict[str, tuple[nn.Module, tuple[Tensor, ...], int]] = {}
    for text in (
        "gpt:layers=2,hidden=16,heads=2,vocab=23",
        "llama:layers=2,hidden=16,heads=4,kv_heads=2,ffn=24,vocab=23",
    ):
        built = parse_model(text).build(global_batch=4, seq_len=6)
        module = (
            built.module.to_empty(device="cpu")
            if any(p.is_meta for p in built.module.parameters())
            else built.module
        )
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        tokens, targets = torch.randint(23, (4, 6)), uneven(torch.randint(23, (4, 6)), -100)
        found[text.partition(":")[0]] = (module, (tokens, targets), int((targets != -100).sum()))
    target = torch.tensor([0, 3, 0, 1])
    found["two towers"] = (TwoTowers(), (torch.randn(4, 8), torch.randn(4, 8), target), 2)
    targets = uneven(torch.randint(11, (4, 4)), -100)
    found["token types"] = (TokenTypes(), (torch.randint(11, (4, 4)), targets), int((targets != -100).sum()))
    return found


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", ["gpt", "llama", "two towers", "token types"])
def test_slices_add_up_to_the_whole(name: str, count: int) -> None:
    module, args, targets = cases()[name]
    loss = module(*args)
    loss.backward()
    expected = {path: p.grad.clone() for path, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    graph = cut(module, args, count)
    assert isinstance(graph, Graph), graph
    assert graph.microbatches.count == count
    assert graph.microbatches.joins == ("sum",)
    total = summed(graph, module, args, count, targets)
    torch.testing.assert_close(total, loss.detach(), rtol=1e-5, atol=1e-6)
    for path, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[path], rtol=1e-4, atol=1e-6)


def test_a_batch_that_mixes_its_samples_is_not_cut() -> None:
    reason = cut(Contrastive(), (torch.randn(4, 8), torch.arange(4)), 2)
    assert isinstance(reason, Cut)
    assert "mixes the sequences" in reason.reason
    assert "test_microbatches.py" in reason.reason


def test_a_count_that_does_not_divide_is_refused() -> None:
    module, args, _ = cases()["gpt"]
    reason = cut(module, args, 3)
    assert isinstance(reason, Cut)
    assert "4 does not divide into 3" in reason.reason


def test_batch_size_is_that_of_the_tokens() -> None:
    module, args, _ = cases()["gpt"]
    assert batch_size(capture(module, args, {})) == 4
