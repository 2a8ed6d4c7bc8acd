"""Which operators of a segment become one kernel, and what each kernel reads and writes.

Compiled: pointwise operators, norms, casts and the loss that follow each other between two products are one
kernel, as Inductor fuses them: it reads what others made, writes what others read or the backward keeps, and
its gradient is one kernel too. Gradients that meet are added inside it. Operator by operator: every call is
a kernel, and so is every addition of gradients that meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autopar.planner.execution import Execution
from autopar.planner.flow import Flow, Place
from autopar.planner.kept import Kept
from autopar.planner.traffic import Traffic
from autopar.shardings.calls import Call

__all__ = ["Fusion"]

_PASSES_GRADIENT = ("aten.add.Tensor", "aten.sub.Tensor")
"""The gradient of an operand of the result's shape and dtype is that of the result: no kernel."""
_JOINS = ("aten.cat.default", "aten.concat.default", "aten.stack.default")
_OWN_FAMILIES = {"aten.rms_norm.default": "rms_norm", "aten.gelu.default": "gelu"}
_RANK = ("free", "copy", "elementwise", "reduction", "activation", "norm", "cross_entropy")
"""Families from the least to the most telling one of a group."""


@dataclass(frozen=True)
class Fusion:
    """The kernels of one segment under one execution."""

    kept: Kept

    @property
    def flow(self) -> Flow:
        return self.kept.flow

    @property
    def execution(self) -> Execution:
        return self.kept.execution

    @cached_property
    def traffic(self) -> Mapping[str, Traffic]:
        """By operator name."""
        return {call.operator.name: self._traffic(place, call) for place, call in enumerate(self.flow.calls)}

    def _traffic(self, place: int, call: Call) -> Traffic:
        if self.flow.is_epilogue(place):
            return Traffic(
                "free", summed_bias=True, weights=self._weights(place), casts_again=self._casts_again
            )
        if not self.flow.is_work(place):
            return Traffic("free")
        if self.flow.is_product(place) or not self.is_fusible(place):
            return self._alone(place)
        return self._member(place)

    def is_fusible(self, place: int) -> bool:
        """True for calls that Inductor fuses with their neighbours."""
        return self.execution.is_compiled and self.flow.is_work(place) and not self.flow.is_product(place)

    @property
    def _casts_again(self) -> bool:
        return self.execution.recompute != "none"

    # A call with a kernel of its own.

    def _alone(self, place: int) -> Traffic:
        call, saved = self.flow.calls[place], self.kept.saved[place]
        operands = tuple(range(len(call.operands)))
        trained = self._trained_operands(place)
        made = tuple(position for position, value in enumerate(call.results) if value is not None)
        has_backward = bool(trained) and not all(self._passes(Place(place, p)) for p in trained)
        return Traffic(
            self._own_family(place),
            reads=operands,
            writes=made,
            kernels=1,
            gradient_reads=tuple((position, len(trained)) for position in made) if has_backward else (),
            saved_operands=tuple(sorted(saved.operands)) if has_backward else (),
            saved_results=made if saved.keeps_result and has_backward else (),
            gradient_writes=tuple(p for p in trained if not self._passes(Place(place, p))),
            backward_kernels=sum(not self._passes(Place(place, p)) for p in trained),
            sums=self._own_sums(place),
            narrowed=tuple(p for p in trained if self._narrows(place, p)),
            weights=self._weights(place),
            runs_again=place in self.kept.run_again,
            casts_again=self._casts_again,
        )

    def _own_family(self, place: int) -> str:
        """Of a call with a kernel of its own: what is slow unless it is compiled has a family of its own."""
        family, call = self.flow.families[place], self.flow.calls[place]
        if call.operator.target in _OWN_FAMILIES:
            return _OWN_FAMILIES[call.operator.target]
        if family == "cross_entropy":
            return "log_softmax"
        if call.operator.target in _JOINS:
            return "join"
        shapes = {value.shape for value in call.operands}
        is_mixed = len(shapes) > 1 and len({value.dtype for value in (*call.operands, call.result)}) > 1
        return "strided" if family == "elementwise" and is_mixed else family

    def _trained_operands(self, place: int) -> tuple[int, ...]:
        call = self.flow.calls[place]
        return tuple(
            position
            for position, value in enumerate(call.operands)
            if value.requires_grad and any(v is not None and v.requires_grad for v in call.results)
        )

    def _passes(self, place: Place) -> bool:
        call, value = self.flow.calls[place.call], self.flow.operand(place)
        return (
            call.operator.target in _PASSES_GRADIENT
            and value.shape == call.result.shape
            and value.dtype == call.result.dtype
        )

    def _narrows(self, place: int, operand: int) -> bool:
        call = self.flow.calls[place]
        is_cast = call.operator.target.startswith("aten.to.")
        is_wider = call.operands[operand].dtype != call.result.dtype and call.result.dtype == "float32"
        return is_wider and not is_cast and not self.flow.is_product(place)

    def _weights(self, place: int) -> tuple[int, ...]:
        """Parameters that the call reads in 16 bits. In a fused kernel their cast costs nothing."""
        call = self.flow.calls[place]
        return tuple(
            position
            for position, value in enumerate(call.operands)
            if value.name in self.flow.parameters
            and value.dtype in ("bfloat16", "float16")
            and (len(value.shape) > 1 or not self.execution.is_compiled)
        )

    def _own_sums(self, place: int) -> tuple[tuple[int, int], ...]:
        """Additions of gradients charged to the first reader of each storage, where no kernel does them."""
        found = []
        for operand, value in enumerate(self.flow.calls[place].operands):
            storage = self.flow.storage[value.name]
            readers = self.flow.readers[storage] if storage in self.flow.trained else ()
            is_first = bool(readers) and readers[0] == Place(place, operand)
            if is_first and not self._sums_inside(storage) and (pieces := self._pieces(storage)) > 1:
                found.append((operand, pieces - 1))
        return tuple(found)

    def _sums_inside(self, storage: str) -> bool:
        """True where a fused kernel adds up the gradients of a storage: its maker's or a reader's."""
        makers = [self.flow.maker[storage]] if storage in self.flow.maker else []
        return any(
            self.is_fusible(p) for p in (*makers, *(r.call for r in self.flow.readers.get(storage, ())))
        )

    def _pieces(self, storage: str) -> int:
        """Gradients of a storage that are made apart and must be added."""
        readers = [place for place in self.flow.readers.get(storage, ()) if self._is_trained(place)]
        groups = {self.groups[r.call] for r in readers if self.is_fusible(r.call)}
        single = [r for r in readers if not self.is_fusible(r.call)]
        return len(groups) + len(single) + (storage in self.flow.outputs)

    def _is_trained(self, place: Place) -> bool:
        return place.operand in self._trained_operands(place.call)

    # Groups of fused calls.

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """How many products lie before each call, on the longest way from the segment's inputs."""
        found: list[int] = []
        for call in self.flow.calls:
            level = 0
            for value in call.operands:
                place = self.flow.maker.get(self.flow.storage[value.name])
                if place is not None and place < len(found):
                    level = max(level, found[place] + (not self.is_fusible(place)))
            found.append(level)
        return tuple(found)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """For each call the first call of its group: fusible calls of one level joined by what they pass on."""
        leader = list(range(len(self.flow.calls)))

        def find(place: int) -> int:
            while leader[place] != place:
                place = leader[place]
            return place

        for storage, maker in self.flow.maker.items():
            for reader in self.flow.readers.get(storage, ()):
                is_joined = self.is_fusible(maker) and self.is_fusible(reader.call)
                if is_joined and self.levels[maker] == self.levels[reader.call]:
                    first, second = sorted((find(maker), find(reader.call)))
                    leader[second] = first
        return tuple(find(place) for place in range(len(leader)))

    @cached_property
    def members(self) -> Mapping[int, tuple[int, ...]]:
        """Places of the calls of each group, by its first."""
        found: dict[int, list[int]] = {}
        for place, group in enumerate(self.groups):
            if self.is_fusible(place):
                found.setdefault(group, []).append(place)
        return {group: tuple(places) for group, places in found.items()}

    def _family(self, group: int) -> str:
        families = [self.flow.families[place] for place in self.members[group]]
        known = [family for family in families if family in _RANK]
        return max(known, key=_RANK.index, default="elementwise")

    def _joins(self, group: int) -> bool:
        """True where the group joins parts of a tensor that others made."""
        return any(self.flow.calls[place].operator.target in _JOINS for place in self.members[group])

    def _is_inside(self, storage: str, group: int) -> bool:
        place = self.flow.maker.get(storage)
        return place is not None and self.is_fusible(place) and self.groups[place] == group

    def is_written(self, storage: str, group: int) -> bool:
        """True for a storage of the group that others read, or the backward."""
        return (
            storage in self.flow.outputs
            or storage in self.kept.for_backward
            or any(
                not self.is_fusible(reader.call) or self.groups[reader.call] != group
                for reader in self.flow.readers.get(storage, ())
            )
        )

    def _member(self, place: int) -> Traffic:
        group = self.groups[place]
        call = self.flow.calls[place]
        reads = self._group_reads(group)
        writes = tuple(
            position
            for position, name in enumerate(call.operator.results)
            if name is not None and self.is_written(name, group)
        )
        backward = self._group_backward(group)
        is_last = place == self.members[group][-1]
        return Traffic(
            self._family(group),
            reads=tuple(p.operand for p in reads if p.call == place),
            writes=writes,
            kernels=int(is_last),
            gradient_reads=tuple(
                (position, backward.pieces[name])
                for position, name in enumerate(call.operator.results)
                if name is not None and name in backward.pieces
            ),
            saved_operands=tuple(p.operand for p in backward.saved if p.call == place),
            gradient_writes=tuple(p.operand for p in backward.writes if p.call == place),
            operand_gradient_reads=tuple(
                (p.operand, count) for p, count in backward.others.items() if p.call == place
            ),
            backward_kernels=int(is_last and bool(backward.writes)),
            copied=tuple(p.operand for p in backward.writes if p.call == place and self._joins(group)),
            weights=self._weights(place),
            runs_again=place in self.kept.run_again,
            casts_again=self._casts_again,
        )

    def _group_reads(self, group: int) -> tuple[Place, ...]:
        """One mention of every storage that the group reads: the largest, or all parts where none is whole."""
        return self._distinct(
            Place(place, operand)
            for place in self.members[group]
            for operand, value in enumerate(self.flow.calls[place].operands)
            if not self._is_inside(self.flow.storage[value.name], group)
        )

    def _distinct(self, places: object) -> tuple[Place, ...]:
        by_storage: dict[str, dict[str, Place]] = {}
        for place in places:  # type: ignore[attr-defined]
            value = self.flow.operand(place)
            by_storage.setdefault(self.flow.storage[value.name], {}).setdefault(value.name, place)
        found: list[Place] = []
        for storage, mentions in by_storage.items():
            whole = [
                p for p in mentions.values() if _size(self.flow, p) >= _count(self.flow.value(storage).shape)
            ]
            found += whole[:1] or list(mentions.values())
        return tuple(found)

    def _group_backward(self, group: int) -> _Backward:
        if group not in self._backwards:
            self._backwards[group] = _BackwardOf(self, group).found()
        return self._backwards[group]

    @cached_property
    def _backwards(self) -> dict[int, _Backward]:
        return {}


def _count(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _size(flow: Flow, place: Place) -> int:
    return _count(flow.operand(place).shape)


@dataclass(frozen=True, slots=True)
class _Backward:
    """The one kernel of a group's backward."""

    pieces: Mapping[str, int]
    """Gradients of the group's results that it reads."""
    saved: tuple[Place, ...]
    """What it reads of the forward."""
    writes: tuple[Place, ...]
    """Operands whose gradient it writes."""
    others: Mapping[Place, int]
    """Gradients of these operands that others made and that it adds."""


class _BackwardOf:
    """Works out the backward of one group."""

    def __init__(self, fusion: Fusion, group: int) -> None:
        self.fusion, self.flow, self.group = fusion, fusion.flow, group
        self.members = fusion.members[group]

    def found(self) -> _Backward:
        writes, others = self._writes()
        if not writes:
            return _Backward({}, (), (), {})
        return _Backward(self._outside_pieces(), self._saved(), writes, others)

    def _outside_pieces(self) -> dict[str, int]:
        names = [name for place in self.members for name in self.flow.calls[place].operator.results]
        pieces = {name: self._pieces_of(name) for name in names if name in self.flow.trained}
        return {name: count for name, count in pieces.items() if count}

    def _pieces_of(self, name: str) -> int:
        """Gradients of one of the group's results that come from outside it."""
        return self.fusion._pieces(name) - bool(self._inner_readers(name))

    def _inner_readers(self, name: str) -> list[Place]:
        return [
            place
            for place in self.flow.readers.get(name, ())
            if place.call in self.members and self.fusion._is_trained(place)
        ]

    def _identity(self, name: str) -> tuple[str, str]:
        """Which tensor the whole gradient of a result is: one that came in as it is, or one made here."""
        inner, outside = self._inner_readers(name), self._pieces_of(name)
        if outside == 1 and not inner:
            return "outside", name
        if not outside and len(inner) == 1 and self.fusion._passes(inner[0]):
            return self._identity(self._result_of(inner[0]))
        return "made", name

    def _result_of(self, place: Place) -> str:
        names = self.flow.calls[place.call].operator.results
        return next(name for name in names if name is not None)

    def _writes(self) -> tuple[tuple[Place, ...], dict[Place, int]]:
        """Every gradient of an operand from outside that is made here, once."""
        by_storage: dict[str, list[Place]] = {}
        for call in self.members:
            for operand in self.fusion._trained_operands(call):
                place = Place(call, operand)
                storage = self.flow.storage[self.flow.operand(place).name]
                if not self.fusion._is_inside(storage, self.group) and storage not in self.flow.parameters:
                    by_storage.setdefault(storage, []).append(place)
        found: dict[tuple[str, str], Place] = {}
        others: dict[Place, int] = {}
        for storage, places in by_storage.items():
            extra = self._others(storage)
            passes = len(places) == 1 and not extra and self.fusion._passes(places[0])
            key = self._identity(self._result_of(places[0])) if passes else ("sum", storage)
            if key[0] != "outside":
                place = found.setdefault(key, max(places, key=lambda each: _size(self.flow, each)))
                if extra:
                    others[place] = extra
        return tuple(found.values()), others

    def _others(self, storage: str) -> int:
        """Gradients of an operand that this group adds to its own: it is the last to run backward."""
        maker = self.flow.maker.get(storage)
        if maker is not None and self.fusion.is_fusible(maker):
            return 0
        levels = self.fusion.levels
        readers = [r.call for r in self.flow.readers.get(storage, ()) if self.fusion.is_fusible(r.call)]
        first = min(readers, key=lambda call: (levels[call], call))
        if self.fusion.groups[first] != self.group:
            return 0
        return self.fusion._pieces(storage) - 1 - (storage in self.flow.outputs)

    def _saved(self) -> tuple[Place, ...]:
        """What is read of the forward: what is at hand of what the members need."""
        wanted = [
            storage
            for call in self.members
            if self.fusion._trained_operands(call)
            for storage in self.fusion.kept.needs(call)
        ]
        at_hand = self._at_hand(wanted)
        mentions = [
            Place(call, operand)
            for call in self.members
            for operand, value in enumerate(self.flow.calls[call].operands)
            if self.flow.storage[value.name] in at_hand
        ]
        seen = {self.flow.storage[self.flow.operand(place).name] for place in mentions}
        elsewhere = [
            self.flow.readers[storage][0] for storage in at_hand - seen if self.flow.readers.get(storage)
        ]
        return self.fusion._distinct([*mentions, *elsewhere])

    def _at_hand(self, wanted: Sequence[str]) -> set[str]:
        """Storages in memory from which the wanted ones are computed."""
        found: set[str] = set()
        waiting, seen = list(wanted), set()
        while waiting:
            storage = waiting.pop()
            maker = self.flow.maker.get(storage)
            is_there = storage in self.fusion.kept.for_backward or maker is None
            if is_there and storage not in self.flow.parameters:
                found.add(storage)
            elif maker is not None and storage not in seen:
                seen.add(storage)
                waiting += [self.flow.storage[value.name] for value in self.flow.calls[maker].operands]
        return found
