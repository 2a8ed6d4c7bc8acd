"""Clusters as users name them: built-in profiles and files, the machine at hand, and the one a plan was made for.

Only the machine at hand needs torch, which is imported then.
"""

from __future__ import annotations

from dataclasses import replace

from autopar.errors import ClusterError, PlanError
from autopar.plan.schema import Plan
from cost_models.cluster import Cluster, ClusterDescriptionError, parse_cluster
from cost_models.profile_text import format_profile
from cost_models.profiles import Profile, ProfileError, parse_profile

__all__ = ["cluster_named", "cluster_of_plan", "local_cluster", "profile_lines"]

_PROFILES_BY_NAME = ("b200", "h200", "h100", "a100-80gb", "a100-40gb", "v100-32gb", "v100-16gb")


def cluster_named(text: str) -> Cluster:
    """The cluster that ``text`` names: ``h100:2x8``, ``cpu:4``, ``local``, or a TOML file. Raises ``ClusterError``."""
    if text.strip().lower() == "local":
        return local_cluster(_devices_at_hand())
    try:
        cluster = parse_cluster(text)
    except ClusterDescriptionError as error:
        raise ClusterError(str(error)) from error
    # A plan repeats what its name does not say; plan with exactly the figures that it will repeat.
    profile = profile_lines(cluster)
    return _with_profile(cluster, profile) if profile else cluster


def _devices_at_hand() -> int:
    import torch

    return max(torch.cuda.device_count(), 1) if torch.cuda.is_available() else 2


def profile_lines(cluster: Cluster) -> list[str]:
    """The cluster's profile as lines of TOML; nothing where its name says it all."""
    if cluster.name.startswith("local:") or _is_named(cluster):
        return []
    profile = Profile(cluster.device, (), cluster.devices_per_node, cluster.intra, cluster.inter)
    return format_profile(profile).splitlines()


def _is_named(cluster: Cluster) -> bool:
    try:
        return not cluster.name.endswith(".toml") and parse_cluster(cluster.name) == cluster
    except ClusterDescriptionError:
        return False


def _with_profile(cluster: Cluster, lines: list[str]) -> Cluster:
    profile = parse_profile("\n".join(lines), f"of cluster {cluster.name}")
    return replace(cluster, device=profile.device, intra=profile.intra, inter=profile.inter)


def local_cluster(devices: int, nodes: int = 1) -> Cluster:
    """``devices`` processes on ``nodes`` machines like this: their GPUs where there are any, their CPUs otherwise.

    Nodes that hold unequal numbers of processes count as one.
    """
    if nodes < 2 or devices % nodes:
        return replace(cluster_named(f"{_local_profile()}:1x{devices}"), name=f"local:{devices}")
    size = f"{nodes}x{devices // nodes}"
    return replace(cluster_named(f"{_local_profile()}:{size}"), name=f"local:{size}")


def _local_profile() -> str:
    """The built-in profile that fits this machine's first device."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    properties = torch.cuda.get_device_properties(0)
    label = properties.name.lower().replace(" ", "-")
    for profile in _PROFILES_BY_NAME:
        model, _, memory = profile.partition("-")
        capacity = int(memory.removesuffix("gb") or 0)
        if model in label and (
            not capacity or abs(properties.total_memory / 10**9 - capacity) < 0.15 * capacity + 1
        ):
            return profile
    raise ClusterError(
        f"there is no profile for {properties.name}: name a cluster, or write a TOML file "
        f"(known: {', '.join(_PROFILES_BY_NAME)})"
    )


def cluster_of_plan(plan: Plan) -> Cluster:
    """The cluster that a plan names. Raises ``PlanError`` where this version does not know it."""
    entry = plan.cluster
    try:
        if entry.profile:
            profile = parse_profile("\n".join(entry.profile), f"of the plan's cluster {entry.name}")
            return Cluster(
                entry.name, profile.device, entry.nodes, entry.devices_per_node, profile.intra, profile.inter
            )
        if entry.name.startswith("local:"):
            return replace(
                cluster_named(f"{entry.device}:{entry.nodes}x{entry.devices_per_node}"), name=entry.name
            )
        return cluster_named(entry.name)
    except (ClusterError, ProfileError, ValueError) as error:
        raise PlanError(f"the plan's cluster is not known here: {error}") from error
