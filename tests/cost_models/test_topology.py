"""Mesh axes are laid over the cluster as ranks count: row-major, one node after the other."""

from __future__ import annotations

import pytest

from cost_models.cluster import joined_path, mesh_axes, parse_cluster


def spreads(text: str, sizes: list[int]) -> list[tuple[int, int, int]]:
    return [(path.ranks, path.ranks_per_node, path.nodes) for path in mesh_axes(parse_cluster(text), sizes)]


def test_the_innermost_axis_stays_inside_a_node() -> None:
    assert spreads("h100:4x8", [4, 8]) == [(4, 1, 4), (8, 8, 1)]
    assert spreads("h100:4x8", [4, 2, 4]) == [(4, 1, 4), (2, 2, 1), (4, 4, 1)]


def test_an_axis_larger_than_a_node_uses_all_its_devices() -> None:
    assert spreads("h100:4x8", [2, 16]) == [(2, 1, 2), (16, 8, 2)]
    assert spreads("h100:4x8", [16, 2]) == [(16, 4, 4), (2, 2, 1)]


def test_axes_that_do_not_divide_a_node_take_their_worst_group() -> None:
    assert spreads("h100:3x8", [8, 3])[1] == (3, 1, 2)


def test_a_mesh_without_axes_has_no_paths() -> None:
    assert mesh_axes(parse_cluster("cpu:1"), []) == ()


def test_axes_join_to_the_group_of_all_their_ranks() -> None:
    outer, _, inner = mesh_axes(parse_cluster("h100:4x8"), [4, 2, 4])
    joined = joined_path([outer, inner])
    assert (joined.ranks, joined.ranks_per_node, joined.nodes) == (16, 4, 4)
    assert joined.crosses_nodes
    assert joined.link.name == outer.inter.name


def test_a_mesh_larger_than_the_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 × 4 needs 16 ranks: the cluster h100:8 has 8"):
        mesh_axes(parse_cluster("h100:8"), [4, 4])
