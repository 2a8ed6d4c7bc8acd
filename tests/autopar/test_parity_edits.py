"""Plans whose stages, schedule, recomputation or ZeRO level were edited by hand train alike, or say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from autopar.errors import PlanError
from autopar.plan.files import format_plan, parse_plan
from autopar.planning import generate_program
from tests.autopar.parity import Case, case_plan, measure, worst
from tests.autopar.test_parity import LOSS_AND_GRADIENT_TOLERANCE, PARAMETER_TOLERANCE
from tests.gloo_pool import GlooPool

STAGED = Case("gpt-4", "cpu:2", "pp=2,schedule=1f1b,microbatch=2,recompute=none", uneven=True)
CHUNKED = Case("gpt-4", "cpu:2", "pp=2,schedule=interleaved,chunks=2,microbatch=2,recompute=none")
FEW = Case("gpt-4", "cpu:2", "pp=2,schedule=gpipe,microbatch=8,recompute=none")
SLICED = Case("gpt-4", "cpu:2", "dp_shard=2,zero=2,microbatch=2,recompute=none", uneven=True)

Data = dict[str, Any]
Edit = Callable[[Data], object]


@pytest.fixture(scope="module")
def pool() -> Iterator[GlooPool]:
    with GlooPool(2) as pool:
        yield pool


@cache
def _text(case: Case) -> str:
    return format_plan(case_plan(case))


def _edited(case: Case, edit: Edit) -> str:
    data = json.loads(_text(case))
    edit(data)
    return json.dumps(data)


def _set(part: str, index: int | None = None, **values: object) -> Edit:
    """Change fields of a section, or of one of its entries (all with -1)."""

    def edit(data: Data) -> None:
        entries = data[part] if isinstance(data[part], list) else [data[part]]
        for entry in entries if index in (None, -1) else [entries[index]]:
            entry.update(values)

    return edit


def _move(data: Data) -> None:
    """The last segment of the first stage runs on the second one."""
    first, second = data["stages"][:2]
    second["segments"].insert(0, first["segments"].pop())


def _move_back(data: Data) -> None:
    """All but the last segment of the last stage run on the one before."""
    before, last = data["stages"][-2:]
    before["segments"] += last["segments"][:-1]
    del last["segments"][:-1]


SOUND: dict[str, tuple[Case, Edit]] = {
    "a block on the next stage": (STAGED, _move),
    "blocks on the stage before": (STAGED, _move_back),
    "one stage recomputes": (STAGED, _set("stages", 0, recompute="full")),
    "stages recompute differently": (
        STAGED,
        lambda data: [
            _set("stages", 0, recompute="full")(data),
            _set("stages", 1, recompute="selective")(data),
        ],
    ),
    "gpipe": (STAGED, _set("schedule", name="gpipe")),
    "interleaved": (STAGED, _set("schedule", name="interleaved")),
    "zero-bubble": (STAGED, _set("schedule", name="zero-bubble")),
    "a chunk on the next rank": (CHUNKED, _move),
    "zero-bubble with chunks": (CHUNKED, _set("schedule", name="zero-bubble")),
    "zero 1": (SLICED, _set("stages", -1, zero=1)),
    "zero 3": (SLICED, _set("stages", -1, zero=3)),
    "replicated": (
        SLICED,
        lambda data: [_set("mesh", 0, parameters="replicate")(data), _set("stages", 0, zero=0)(data)],
    ),
    "an input sliced otherwise": (SLICED, _set("inputs", 1, layout="")),
    "all recomputes": (SLICED, _set("stages", 0, recompute="full")),
}


@pytest.mark.parametrize(("case", "edit"), SOUND.values(), ids=list(SOUND))
def test_sound_edits_train_alike(case: Case, edit: Edit, pool: GlooPool) -> None:
    errors = worst(pool.run(measure, case, _edited(case, edit)))
    assert errors.loss <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.gradient <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.parameter <= PARAMETER_TOLERANCE, errors


def _exchange(data: Data) -> None:
    data["stages"].reverse()


def _lose(data: Data) -> None:
    data["stages"][0]["segments"].pop()


def _repeat(data: Data) -> None:
    data["stages"][1]["segments"].insert(0, data["stages"][0]["segments"][-1])


def _clear(data: Data) -> None:
    data["stages"][1]["segments"] = data["stages"][0]["segments"] + data["stages"][1]["segments"]
    data["stages"][0]["segments"] = []


def _merge(data: Data) -> None:
    data["stages"][0]["segments"] += data["stages"].pop()["segments"]


UNSOUND: dict[str, tuple[Case, Edit, str]] = {
    "stages exchanged": (STAGED, _exchange, "'layers.2' reads 'layers_1', which nothing before it makes"),
    "a segment lost": (STAGED, _lose, "reads 'layers_1', which nothing before it makes"),
    "a segment twice": (STAGED, _repeat, "two segments make 'layers_1'"),
    "an empty stage": (STAGED, _clear, "stage 0 has no segments"),
    "a stage too few": (STAGED, _merge, "1 stages cannot be dealt to 2 pipeline ranks"),
    "another schedule": (STAGED, _set("schedule", name="dualpipe"), "legal are 1f1b, gpipe, interleaved, zero-bubble"),
    "no schedule": (STAGED, _set("schedule", name="none"), "'none' does not run 2 stages"),
    "a schedule without stages": (SLICED, _set("schedule", name="1f1b"), "legal are none"),
    "a schedule of one chunk": (CHUNKED, _set("schedule", name="1f1b"), "legal are interleaved, zero-bubble"),
    "another level": (STAGED, _set("stages", 0, recompute="some"), "legal are none, selective, full"),
    "different zero levels": (STAGED, _set("stages", 0, zero=3), "stages have different ZeRO levels"),
    "more microbatches": (STAGED, _set("schedule", microbatches=8), "written for another number of microbatches"),
    "one microbatch": (SLICED, _set("schedule", microbatches=1), "written for another number of microbatches"),
    "microbatches that do not divide": (SLICED, _set("schedule", microbatches=3), "cannot be cut along dim 0 into 3"),
    "an input not cut": (SLICED, _set("schedule", dims={}), "written for another number of microbatches"),
    "a cut of nothing": (SLICED, _set("schedule", dims={"tokens": 0, "targets": 0, "x": 0}), "cuts 'x', which is no"),
    "no microbatches": (SLICED, _set("schedule", microbatches=0), "has 0 microbatches: it needs at least 1"),
    "other ranks": (STAGED, _set("stages", 1, ranks=[0, 0]), "stage 1 has ranks [0, 0], but the mesh gives it [1, 1]"),
    "whole parameters on a shard axis": (
        SLICED,
        _set("stages", -1, zero=0),
        "zero 0, but the mesh axis dp_shard keeps parameters as 'shard': legal levels are 1, 2 and 3",
    ),
    "shards on no axis": (STAGED, _set("stages", -1, zero=3), "zero 3, but no axis of the mesh keeps parameters"),
    "stages along another name": (STAGED, _set("mesh", 0, axis="x"), "of the stages, and no other, is called pp"),
    "another axis called pp": (SLICED, _set("mesh", 0, axis="pp"), "of the stages, and no other, is called pp"),
    "an axis that is a keyword": (SLICED, _set("mesh", 0, axis="class"), "an axis has a plain name"),
    "1f1b of too few microbatches": (
        FEW,
        _set("schedule", name="1f1b"),
        "'1f1b' does not run 1 microbatches on 2 pipeline ranks: legal are gpipe, interleaved, zero-bubble",
    ),
    "another batch": (SLICED, _set("training", global_batch=16), "global_batch 16 and tokens 128, but the inputs have"),
    "another precision": (SLICED, _set("training", precision="int4"), "precision 'int4': legal are fp32, bf16, fp16"),
    "another optimizer": (SLICED, _set("training", optimizer="lion"), "optimizer 'lion': legal are adamw"),
    "other nodes": (SLICED, _set("cluster", nodes=2), "cpu, 1, 2, its entry says cpu, 2, 2"),
    "no memory": (SLICED, _set("cluster", memory_limit_bytes=0), "memory_limit_bytes is 0"),
    "an input that is a sum": (SLICED, _set("inputs", 0, layout="dp_shard:R|P"), "legal are S(dim) and R"),
    "a parameter along the engine's axis": (
        SLICED,
        _set("parameters", -1, layout="dp_shard:S(0)"),
        "but the mesh says how parameters rest along dp_shard: 'shard'",
    ),
    "numbers with gradients": (
        SLICED,
        lambda data: data["segments"][0]["boundaries"].update(tokens="dp_shard:R|P"),
        "tokens has no gradient, so it cannot be laid out as dp_shard:R|P",
    ),
    "an operator without a name": (
        SLICED,
        lambda data: data["segments"][0]["operators"][0].update(call=""),
        "'' is no call; write library.operator.overload",
    ),
    "an unlisted constant": (
        SLICED,
        lambda data: data["segments"][0]["constants"].update(x=1),
        "has no entry 'x' under values",
    ),
    "a value without elements": (
        SLICED,
        lambda data: data["segments"][1]["values"].update(q="float32[0, 3]"),
        "is not called as it should be",
    ),
    "an input listed otherwise": (
        SLICED,
        lambda data: data["outer_values"].update(tokens="int64[1, 1]"),
        "outer_values has 'tokens' as int64[1, 1], but one microbatch of that input is int64[4, 16]",
    ),
    "no joins": (SLICED, _set("schedule", joins=[]), "of 0 outputs how slices join, the model has 1"),
    "a number concatenated": (SLICED, _set("schedule", joins=["cat 0"]), "along dim 0, but it has 0 dims"),
    "targets not counted": (SLICED, _set("schedule", counted={}), "does not count 'target_count'"),
    "other targets counted": (
        SLICED,
        _set("schedule", counted={"target_count": "Root1.x"}),
        "'Root1.x', which is no cross-entropy",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "edit", "message"), UNSOUND.values(), ids=list(UNSOUND))
def test_unsound_edits_are_named(case: Case, edit: Edit, message: str) -> None:
    with pytest.raises(PlanError) as refusal:
        generate_program(parse_plan(_edited(case, edit)))
    assert message in str(refusal.value)
