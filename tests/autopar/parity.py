"""What the parity tests run: models, forced strategies, and how far a parallel module is from the plain one.

Errors are norm-wise, ‖found − expected‖ / ‖expected‖, with a floor under the denominator, for some gradients
are zero but for rounding (softmax cancels a bias of the keys). Element for element, a gradient counts as no
smaller than ``NOISE_FLOOR`` times the root mean square of all gradients, and a parameter as no smaller than
the way that AdamW can go in ``STEPS`` steps, ``STEPS × LEARNING_RATE``.

AdamW runs with an epsilon of 1e-6. It divides a gradient by its own size, so with the default of 1e-8 it
turns rounding noise (1e-10 to 1e-9 here) into steps of up to a tenth of the learning rate, and even two
single-device runs that sum in another order part by more than 1e-4 in such a bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from autopar import parallelize
from autopar.capture import fingerprint
from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.plan.files import parse_plan
from autopar.plan.schema import Plan
from autopar.planner.assemble import Question, make_plan
from autopar.planner.mesh import MODEL, MeshAxis
from autopar.planner.operators import PlannedOperator
from autopar.planner.pins import parse_pins
from autopar.planner.search import Found, Options, Tried, search
from autopar.shardings.strategy import Strategy
from cost_models.cluster import Cluster

__all__ = ["FORCES", "MODELS", "Case", "Errors", "all_cases", "case_plan", "measure", "worst"]

NOISE_FLOOR = 1e-3
STEPS = 5
LEARNING_RATE = 1e-3
EPSILON = 1e-6
SEQ_LEN = 16
TWO_AXES = "tp=2,pp=1"
"""Of four devices, where the search did not try two axes otherwise."""

MODELS: Mapping[str, str] = {
    "gpt": "gpt:layers=2,hidden=32,heads=4,vocab=64",
    "llama": "llama:layers=2,hidden=64,heads=8,kv_heads=4,vocab=64,ffn=128",
    "mlp": "mlp:layers=2,hidden=32,classes=8",
    "hf-gpt2": "hf:GPT2LMHeadModel:tests/models/gpt2.json",
    "hf-llama": "hf:LlamaForCausalLM:tests/models/llama.json",
    "hf-bert": "hf:BertForMaskedLM:tests/models/bert.json",
    "hf-vit": "hf:ViTForImageClassification:tests/models/vit.json",
    "two-tower": "tests/models/fused_two_tower.py:factory",
}
"""By the name that tests give them. The ViT sees 3 × 5 patches and a class token: 16 positions divide."""
DEEP_MODELS: Mapping[str, str] = {
    "gpt-4": "gpt:layers=4,hidden=32,heads=4,vocab=64",
    "llama-4": "llama:layers=4,hidden=32,heads=4,kv_heads=2,vocab=64,ffn=64",
    "mlp-4": "mlp:layers=4,hidden=32,classes=8",
    "hf-t5": "hf:T5ForConditionalGeneration:tests/models/t5.json",
    "hf-whisper": "hf:WhisperForConditionalGeneration:tests/models/whisper.json",
}
"""Those of four blocks, for pipelines; the last two have an encoder that every block of their decoder reads."""

Force = Callable[[PlannedOperator, Strategy, int], bool]
"""Whether a strategy does what is wanted along one (model) axis."""


def _norms_by_sequence(operator: PlannedOperator, strategy: Strategy, axis: int) -> bool:
    if operator.call.operator.target not in ("aten.layer_norm.default", "aten.rms_norm.default"):
        return True
    placement = strategy.results[0][axis]
    return placement.is_shard and placement.dim == 1


def _vocabulary(operator: PlannedOperator, strategy: Strategy, axis: int) -> bool:
    target = operator.call.operator.target
    if target not in ("aten.embedding.default", "aten.cross_entropy_loss.default"):
        return True
    return strategy.factors[axis] == "v"


def _weights_by(factor: str) -> Force:
    def force(operator: PlannedOperator, strategy: Strategy, axis: int) -> bool:
        is_product = operator.call.operator.target in ("aten.linear.default", "aten.addmm.default")
        return not is_product or strategy.factors[axis] == factor

    return force


FORCES: Mapping[str, Force] = {
    "sequence": _norms_by_sequence,
    "vocabulary": _vocabulary,
    "rows": _weights_by("i"),
    "columns": _weights_by("o"),
}
"""What pins by role cannot say, along every axis of tensor parallelism."""


@dataclass(frozen=True)
class Case:
    """One model on one mesh in one way."""

    model: str
    cluster: str
    """``cpu:4``, ``h100:2x2``…: what is planned for; the processes are those of this machine."""
    pins: str = ""
    force: str = ""
    """Keys of ``FORCES``, joined by ``+``."""
    batch: int = 8
    uneven: bool = False
    """Targets do not count in the first half of the batch, nor in the first quarter of the next sequence."""
    axes: int = 0
    """Take the best plan whose mesh has this many axes; 0 for the best of all."""
    precision: str = "fp32"
    compile: bool = False

    @property
    def world(self) -> int:
        return cluster_named(self.cluster).devices

    def __str__(self) -> str:
        batch = f" batch={self.batch}" * (self.batch != 8) + " uneven" * self.uneven
        batch += f" {self.precision}" * (self.precision != "fp32") + " compiled" * self.compile
        way = " ".join(filter(None, (self.pins, self.force))) or ("own" + f" {self.axes}-d" * bool(self.axes))
        return f"{self.model} {self.cluster} {way}{batch}"


WAYS: tuple[dict[str, Any], ...] = (
    {"cluster": "cpu:2"},
    {"cluster": "cpu:2", "pins": "dp_replicate=2"},
    {"cluster": "cpu:2", "pins": "dp_shard=2"},
    {"cluster": "cpu:2", "pins": "tp=2"},
    {"cluster": "cpu:2", "pins": "tp=2", "force": "sequence+vocabulary"},
    {"cluster": "cpu:2", "pins": "cp=2"},
    {"cluster": "cpu:4"},
    {"cluster": "h100:4", "batch": 1},
    {"cluster": "cpu:4", "pins": "dp_replicate=4"},
    {"cluster": "cpu:4", "pins": "dp_shard=4"},
    {"cluster": "cpu:4", "pins": "tp=4"},
    {"cluster": "cpu:4", "pins": "tp=4", "force": "columns"},
    {"cluster": "cpu:4", "pins": "tp=4", "force": "rows"},
    {"cluster": "cpu:4", "pins": "tp=4", "force": "sequence"},
    {"cluster": "cpu:4", "pins": "tp=4", "force": "vocabulary"},
    {"cluster": "cpu:4", "pins": "cp=4"},
    {"cluster": "cpu:2x2", "axes": 2},
    {"cluster": "h100:2x2", "axes": 2, "batch": 2},
    {"cluster": "cpu:2x2", "pins": "dp_replicate=2,dp_shard=2"},
    {"cluster": "cpu:2x2", "pins": "dp_replicate=2,tp=2"},
    {"cluster": "cpu:2x2", "pins": "dp_shard=2,tp=2", "force": "sequence+vocabulary"},
    {"cluster": "cpu:2x2", "pins": "dp_replicate=2,cp=2"},
    {"cluster": "cpu:2x2", "pins": "dp_shard=2,cp=2"},
    {"cluster": "cpu:2x2", "pins": "cp=2,tp=2"},
    {"cluster": "cpu:2x2", "pins": "cp=2,tp=2", "force": "sequence"},
    {"cluster": "cpu:4", "pins": "dp_shard=4", "uneven": True},
    {"cluster": "cpu:2x2", "pins": "dp_replicate=2,tp=2", "force": "vocabulary", "uneven": True},
    {"cluster": "cpu:4", "pins": "cp=4", "uneven": True, "batch": 1},
)
"""Every way in which every model is trained, where it applies."""


def all_cases() -> list[Case]:
    """Every model in every way that it has: an MLP has no sequence, a file says its own batch."""
    return [Case(model, **way) for model in MODELS for way in WAYS if _applies(model, way)]


def _applies(model: str, way: Mapping[str, Any]) -> bool:
    has_sequence = model != "mlp" or not ("cp" in way.get("pins", "") or "sequence" in way.get("force", ""))
    token_models = ["gpt", "llama", "hf-gpt2", "hf-llama"] + ["hf-bert"] * ("batch" not in way)
    has_targets = model in token_models or not way.get("uneven")  # of one sequence BERT would have none left
    return has_sequence and has_targets and (model != "two-tower" or "batch" not in way)


@dataclass(frozen=True)
class Errors:
    """How far the parallel module is from the plain one; all relative."""

    loss: float
    gradient: float
    gradient_of: str
    """The parameter with the largest error."""
    parameter: float
    """After ``STEPS`` steps of AdamW."""
    parameter_of: str


def build(model: str, batch: int, uneven: bool) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The plain module and a global batch, the same in every process."""
    source = parse_model({**MODELS, **DEEP_MODELS}[model])
    sizes = {} if model == "two-tower" else {"global_batch": batch, "seq_len": SEQ_LEN}
    built = source.build(device="cpu", seed=0, **sizes)
    args, kwargs = built.args, dict(built.kwargs)
    if uneven:
        ignored = (kwargs.get("labels", args[-1] if args else None)).clone()
        ignored[: batch // 2] = -100
        ignored[batch // 2, : SEQ_LEN // 4] = -100
        args, kwargs = ((*args[:-1], ignored), kwargs) if args else ((), {**kwargs, "labels": ignored})
    return built.module, args, kwargs


@cache
def _graph(model: str, batch: int, uneven: bool, precision: str) -> Graph:
    module, args, kwargs = build(model, batch, uneven)
    return capture_in(precision, module, args, kwargs)


def case_plan(case: Case) -> Plan:
    """The plan of a case. Raises ``AutoparError`` where there is none."""
    graph = _graph(case.model, case.batch, case.uneven, case.precision)
    cluster = cluster_named(case.cluster)
    forces = [FORCES[name] for name in filter(None, case.force.split("+"))]

    def keep(operator: PlannedOperator, strategy: Strategy, axes: tuple[MeshAxis, ...]) -> bool:
        places = [place for place, axis in enumerate(axes) if axis.kind == MODEL]
        return all(force(operator, strategy, place) for force in forces for place in places)

    options = Options(parse_pins(case.pins), keep=keep if forces else None, is_compiled=case.compile)
    found = _search(graph, cluster, options, case.axes)
    question = Question(
        source="",
        fingerprint=fingerprint(graph),
        cluster=cluster,
        memory_limit_bytes=cluster.device.memory_bytes,
        precision=case.precision,
        optimizer="adamw",
        pins=case.pins,
        version="",
        compile=case.compile,
    )
    return make_plan(graph, question, found)


def _search(graph: Graph, cluster: Cluster, options: Options, axes: int) -> Found:
    """The best plan, or the best one on a mesh of so many axes."""
    found = search(graph, cluster, options)
    if axes and not _with_axes(found, axes):
        found = search(graph, cluster, replace(options, pins=parse_pins(TWO_AXES)))
    best = _with_axes(found, axes)[0] if axes else found.best
    tried = [found.best, *found.runner_ups]
    return replace(found, best=best, runner_ups=tuple(each for each in tried if each is not best))


def _with_axes(found: Found, axes: int) -> list[Tried]:
    return [each for each in (found.best, *found.runner_ups) if len(each.realized.sharded.axes) == axes]


@dataclass(frozen=True)
class _Training:
    """Loss, gradients and parameters of one run."""

    loss: float
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]


def measure(case: Case, plan_text: str) -> Errors:
    """Train by the plan and plainly, and compare. Runs on every rank of the case's world."""
    torch.set_num_threads(1)
    expected, found = _plain(case.model, case.batch, case.uneven), _parallel(case, plan_text)
    gradients = relative_errors(found.gradients, expected.gradients, NOISE_FLOOR * _mean(expected.gradients))
    parameters = relative_errors(found.parameters, expected.parameters, STEPS * LEARNING_RATE)
    gradient_of, parameter_of = max(gradients, key=gradients.get), max(parameters, key=parameters.get)  # type: ignore[arg-type]
    return Errors(
        abs(found.loss - expected.loss) / abs(expected.loss),
        gradients[gradient_of],
        gradient_of,
        parameters[parameter_of],
        parameter_of,
    )


@cache
def _plain(model: str, batch: int, uneven: bool) -> _Training:
    module, args, kwargs = build(model, batch, uneven)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, eps=EPSILON)
    loss = _step(module, args, kwargs)
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    _finish(module, optimizer, args, kwargs)
    return _Training(loss, gradients, {name: p.detach().clone() for name, p in module.named_parameters()})


def _parallel(case: Case, plan_text: str) -> _Training:
    module, args, kwargs = build(case.model, case.batch, case.uneven)
    names = [name for name, _ in module.named_parameters()]
    module = parallelize(module, plan=parse_plan(plan_text))
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, eps=EPSILON)
    loss = _step(module, args, kwargs)
    gradients = module.running.full_gradients()
    _finish(module, optimizer, args, kwargs)
    state = module.state_dict()
    return _Training(loss, gradients, {name: state[name] for name in names})


def _step(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    loss = module(*args, **kwargs)
    loss.backward()
    return loss.item()


def _finish(module: nn.Module, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: Any) -> None:
    """The rest of ``STEPS`` steps, whose first has its gradients already."""
    for step in range(STEPS):
        if step:
            _step(module, args, kwargs)
        optimizer.step()
        optimizer.zero_grad()


def _mean(tensors: Mapping[str, Tensor]) -> float:
    """Root mean square of all elements."""
    square = sum(tensor.double().square().sum().item() for tensor in tensors.values())
    return (square / sum(tensor.numel() for tensor in tensors.values())) ** 0.5


def relative_errors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], floor: float
) -> dict[str, float]:
    """Error by name; ``floor`` is for one element. A name that one side lacks is infinitely wrong."""
    errors = dict.fromkeys(found.keys() ^ expected.keys(), math.inf)
    for name in found.keys() & expected.keys():
        wanted, given = expected[name].double(), found[name].double()
        error = (given - wanted).norm().item() / max(wanted.norm().item(), floor * wanted.numel() ** 0.5)
        errors[name] = error if math.isfinite(error) else math.inf
    return errors


def worst(errors: Sequence[Errors]) -> Errors:
    """The largest errors that any rank found."""
    gradient = max(errors, key=lambda each: each.gradient)
    parameter = max(errors, key=lambda each: each.parameter)
    return Errors(
        max(each.loss for each in errors),
        gradient.gradient,
        gradient.gradient_of,
        parameter.parameter,
        parameter.parameter_of,
    )
