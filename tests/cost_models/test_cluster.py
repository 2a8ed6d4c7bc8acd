"""Cluster descriptions mean what they say, and errors name the text and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cost_models.cluster import ClusterDescriptionError, parse_cluster
from cost_models.profiles import profile_names


@pytest.mark.parametrize(
    ("text", "device", "nodes", "devices_per_node"),
    [
        ("h100:8", "h100", 1, 8),
        ("h100:2x8", "h100", 2, 8),
        ("H100:16", "h100", 2, 8),
        ("cpu:4", "cpu", 1, 4),
        ("cpu:2x2", "cpu", 2, 2),
        ("v100:2", "v100-16gb", 1, 2),
        ("a100:1", "a100-80gb", 1, 1),
        ("a100-80gb:64x8@200Gbps", "a100-80gb", 64, 8),
        (" a100-40gb:4x4@12.5gbps ", "a100-40gb", 4, 4),
    ],
)
def test_a_description_gives_device_and_shape(
    text: str, device: str, nodes: int, devices_per_node: int
) -> None:
    cluster = parse_cluster(text)
    assert (cluster.device.name, cluster.nodes, cluster.devices_per_node) == (device, nodes, devices_per_node)
    assert cluster.devices == nodes * devices_per_node
    assert cluster.name == text.strip()


def test_the_network_is_per_device_and_named() -> None:
    assert parse_cluster("a100:2x8@100Gbps").inter.bytes_per_s == pytest.approx(0.95 * 12.5e9)
    assert "100 Gbit/s" in parse_cluster("a100:2x8@100Gbps").inter.name
    assert parse_cluster("a100:2x8").inter.name == "InfiniBand HDR 200 Gbit/s"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h101:8", "did you mean h100"),
        ("h100", "DEVICE:DEVICES"),
        ("", "DEVICE:DEVICES"),
        ("h100:0", "no devices"),
        ("h100:0x8", "no devices"),
        ("h100:12", "h100:2x8"),
        ("h100:8@0Gbps", "faster than 0"),
        ("h100:-8", "not understood"),
        ("local", "not understood"),
        ("missing.toml", "missing.toml"),
        ("missing.toml:8", "missing.toml"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ClusterDescriptionError, match=says) as error:
        parse_cluster(text)
    assert repr(text) in str(error.value)


def test_an_unknown_device_lists_the_profiles() -> None:
    with pytest.raises(ClusterDescriptionError) as error:
        parse_cluster("tpu:8")
    assert all(name in str(error.value) for name in profile_names())


def test_a_cluster_file_replaces_the_links(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(
        'name = "ours"\ndevice = "h100"\nnodes = 2\ndevices_per_node = 4\n'
        '[inter]\nname = "RoCE"\nlatency_s = 5e-6\nbytes_per_s = 1e10\nsource = "measured"\n'
    )
    cluster = parse_cluster(str(file))
    assert (cluster.name, cluster.nodes, cluster.devices_per_node) == ("ours", 2, 4)
    assert cluster.inter.bytes_per_s == 1e10
    assert cluster.intra == parse_cluster("h100:8").intra


def test_a_profile_file_is_a_device(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "cost_models" / "profiles" / "h100.toml"
    file = tmp_path / "mine.toml"
    file.write_text(source.read_text().replace('name = "h100"', 'name = "mine"', 1))
    assert parse_cluster(f"{file}:2x4").device.name == "mine"
    assert parse_cluster(str(file)).devices == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("device = 3", "unknown device"),
        ('device = "h100"\nnode = 2', "unknown entries"),
        ('device = "h100"\nnodes = 0', "0 nodes"),
        ('device = "h100"\n[inter]\nlatency_s = 1.0', "latency_s, bytes_per_s and source"),
        ("device = ", "Invalid value"),
        ('name = "x"', "missing"),
    ],
)
def test_a_broken_cluster_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(text)
    with pytest.raises(ClusterDescriptionError, match=says):
        parse_cluster(str(file))
