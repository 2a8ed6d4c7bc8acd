"""Predicted beside measured on one GPU: autopar's own program for many configurations.

    PYTHONPATH=. python benchmarks/one_gpu.py -o one_gpu.json [--profile PROFILE.toml] [--limit-s 500]

Every configuration is planned (compilation and recomputation pinned), its generated program built with random
parameters and trained with fused AdamW on random tokens. Step time is the median of CUDA events between
steps, with no synchronisation inside the loop; peak memory is ``max_memory_allocated`` of the timed steps:
what torch's allocator gave out, cuBLAS workspaces included, the driver's context not. Predictions use the
profile alone: nothing is fitted on steps.

The JSON file is rewritten after every configuration. ``--predict`` measures nothing: it predicts the rows of
the file again, with the profile of ``--cluster``. ``--table FILE.md`` writes the table of errors.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from steps_one_gpu import SIZES, Size, describe, kernel_times, memory, timed_steps

from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.plan.schema import Plan
from autopar.planning import PlanOptions, generate_program, plan_model
from autopar.runtime.running import Running
from autopar.runtime.source import load_source
from cost_models.cluster import Cluster

WARM_UP_STEPS = 3
LEARNING_RATE = 1e-4
GPU_BOUND_MEDIAN, GPU_BOUND_WORST = 0.04, 0.12
MEMORY_UNDER, MEMORY_MEDIAN = 0.01, 0.04


@dataclass(frozen=True, slots=True)
class Configuration:
    """One training step."""

    model: str
    """A key of ``steps_one_gpu.SIZES``, or a model as ``autopar plan`` takes it."""
    batch: int
    seq: int
    is_compiled: bool = True
    recompute: str = "none"
    precision: str = "bf16"

    def __str__(self) -> str:
        mode = "compiled" if self.is_compiled else "eager"
        return f"{self.model} {self.batch}×{self.seq} {self.precision} {mode} recompute={self.recompute}"

    @property
    def source(self) -> str:
        """The model as ``autopar plan`` takes it."""
        return source_of(SIZES[self.model]) if self.model in SIZES else self.model


CONFIGURATIONS = (
    Configuration("llama-370m", 16, 1024),
    Configuration("gpt-350m", 16, 1024),
    Configuration("llama-1.1b", 4, 2048),
    Configuration("llama-370m", 16, 1024, recompute="full"),
    Configuration("llama-370m", 16, 1024, recompute="selective"),
    Configuration("llama-370m", 16, 1024, is_compiled=False),
    Configuration("llama-1.2b-128k", 4, 2048),
    Configuration("llama-3b", 2, 2048, recompute="full"),
    Configuration("gpt-124m", 32, 1024),
    Configuration("gpt-1.3b", 4, 1024),
    Configuration("llama-370m-128k", 16, 1024),
    Configuration("llama-110m", 16, 1024),
    Configuration("llama-370m", 4, 512),
    Configuration("llama:layers=20,hidden=1536,heads=12,kv_heads=4,ffn=4096,vocab=64000", 6, 2048),
    Configuration("gpt:layers=36,hidden=1280,heads=20,vocab=50257", 6, 1024),
    Configuration("llama-1.1b", 4, 2048, recompute="selective"),
    Configuration("llama-1.1b", 4, 2048, recompute="full"),
    Configuration("llama-1.1b", 4, 2048, is_compiled=False),
    Configuration("gpt-350m", 16, 1024, recompute="selective"),
    Configuration("gpt-350m", 8, 1024, is_compiled=False),
    Configuration("llama-370m", 4, 4096),
    Configuration("llama-370m", 2, 8192, recompute="full"),
    Configuration("llama-3b", 2, 2048),
    Configuration("gpt-1.3b", 8, 1024, recompute="full"),
    Configuration("gpt-124m", 8, 1024, is_compiled=False),
    Configuration("gpt-124m", 8, 1024),
    Configuration("llama-1.2b-128k", 4, 2048, recompute="full"),
    Configuration("gpt-1.3b", 4, 1024, is_compiled=False),
    Configuration("llama-3b", 4, 2048, is_compiled=False, recompute="full"),
    Configuration("llama-370m", 16, 1024, is_compiled=False, recompute="selective"),
    Configuration("llama-110m", 4, 512, is_compiled=False),
    Configuration("gpt-124m", 4, 512, precision="fp32", is_compiled=False),
    Configuration("llama-110m", 8, 1024, precision="fp32"),
    Configuration("llama-1.1b", 1, 8192),
)
"""In the order in which they are run: what is left out when time runs short is at the end."""


def source_of(size: Size) -> str:
    """A size as ``autopar plan`` takes it."""
    sizes = {"layers": size.layers, "hidden": size.hidden, "heads": size.heads, "vocab": size.vocab}
    sizes |= {"kv_heads": size.kv_heads} if size.kv_heads else {}
    sizes |= {"ffn": size.ffn} if size.ffn else {}
    return f"{size.family}:" + ",".join(f"{key}={value}" for key, value in sizes.items())


def planned(configuration: Configuration, cluster: Cluster) -> Plan:
    """The plan of a configuration."""
    built = parse_model(configuration.source).build(
        global_batch=configuration.batch, seq_len=configuration.seq
    )
    options = PlanOptions(
        pins=f"recompute={configuration.recompute},microbatch={configuration.batch}",
        precision=configuration.precision,
        source=configuration.source,
        compile=configuration.is_compiled,
    )
    return plan_model(built.module, built.args, built.kwargs, cluster, options)


class Step:
    """One training step of a plan's program, called again and again."""

    def __init__(self, plan: Plan, configuration: Configuration, device: torch.device) -> None:
        program = load_source(generate_program(plan))
        self.running: Running = program.build(compile=plan.training.compile)
        torch.manual_seed(0)
        vocab = next(p.shape[0] for p in program.PARAMETERS if p.name == "tokens.weight")
        text = torch.randint(vocab, (configuration.batch, configuration.seq + 1), device=device)
        self.tokens, self.targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
        self.optimizer = torch.optim.AdamW(self.running.module.parameters(), lr=LEARNING_RATE, fused=True)

    def __call__(self) -> torch.Tensor:
        """Run forward, backward and update; return the loss."""
        loss = self.running(self.tokens, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def measure(
    plan: Plan, configuration: Configuration, device: torch.device, *, kernels: bool
) -> dict[str, Any]:
    """Builds, warms up and times one program."""
    step = Step(plan, configuration, device)
    for _ in range(WARM_UP_STEPS):
        loss = step()
    _wait(device)
    resting = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps_s, issues_s = timed_steps(step, device)  # type: ignore[arg-type]
    allocated, reserved, _ = memory(device)
    low_s, high_s = (statistics.quantiles(steps_s, n=10)[index] for index in (0, -1))
    return {
        "step_s": statistics.median(steps_s),
        "step_low_s": low_s,
        "step_high_s": high_s,
        "issue_s": statistics.median(issues_s),
        "peak_bytes": allocated,
        "reserved_bytes": reserved,
        "resting_bytes": resting,
        "loss": loss.item(),
        "kernels": kernel_times(step, device) if kernels else None,  # type: ignore[arg-type]
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attempt(
    configuration: Configuration, cluster: Cluster, device: torch.device, *, kernels: bool
) -> dict[str, Any]:
    """One row: the configuration, what was predicted, and what was measured or why it was not."""
    row: dict[str, Any] = {"configuration": asdict(configuration)}
    try:
        plan = planned(configuration, cluster)
        row["predicted"] = predicted(plan)
        row["measured"] = measure(plan, configuration, device, kernels=kernels)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error).strip()[:400]}"
    release(device)
    return row


def predicted(plan: Plan) -> dict[str, Any]:
    """The plan's promises."""
    promise = plan.predicted
    fields = ("step_time_s", "step_time_low_s", "step_time_high_s", "peak_memory_bytes", "limit")
    found = {name: getattr(promise, name) for name in fields if hasattr(promise, name)}
    entry = promise.memory[0]
    return found | {"memory": {name: getattr(entry, name) for name in entry.__struct_fields__}}


def release(device: torch.device) -> None:
    """Leaves the device empty for the next configuration."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def write(path: Path, circumstances: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """One row per line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"circumstances": {json.dumps(circumstances)},\n"rows": [\n{lines}\n]}}\n')


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    name = str(Configuration(**row["configuration"]))
    if "error" in row:
        return f"{name}: {row['error']}"
    promise, found = row["predicted"], row["measured"]
    return (
        f"{name}: step {promise['step_time_s'] * 1e3:.1f} / {found['step_s'] * 1e3:.1f} ms "
        f"({promise['step_time_s'] / found['step_s'] - 1:+.1%}, issued in {found['issue_s'] * 1e3:.1f}), peak "
        f"{promise['peak_memory_bytes'] / 1e9:.2f} / {found['peak_bytes'] / 1e9:.2f} GB "
        f"({promise['peak_memory_bytes'] / max(found['peak_bytes'], 1) - 1:+.1%})"
    )


def run(options: argparse.Namespace) -> None:
    """Plan, build and time the configurations."""
    device, started_s = torch.device(options.device), time.monotonic()
    cluster = cluster_named(options.cluster)
    circumstances, rows = describe(device) | {"cluster": options.cluster}, []
    for configuration in (each for each in CONFIGURATIONS if options.only in str(each)):
        if time.monotonic() - started_s > options.limit_s:
            print(f"{configuration}: left out, {options.limit_s:.0f} s are over", flush=True)
            continue
        chosen = tiny(configuration) if options.tiny else configuration
        rows.append(attempt(chosen, cluster, device, kernels=options.kernels))
        write(options.output, circumstances, rows)
        print(f"{time.monotonic() - started_s:6.1f} s  {line(rows[-1])}", flush=True)


def predict_again(options: argparse.Namespace) -> None:
    """New predictions for the rows of a file, on any machine."""
    data, cluster = json.loads(options.output.read_text()), cluster_named(options.cluster)
    for row in data["rows"]:
        row["predicted"] = predicted(planned(Configuration(**row["configuration"]), cluster))
        print(line(row), flush=True)
    write(options.output, data["circumstances"] | {"cluster": options.cluster}, data["rows"])


def table(data: dict[str, Any], command: str) -> str:
    """Predicted beside measured, and the errors, as Markdown."""
    rows = [row for row in data["rows"] if "measured" in row]
    where = data["circumstances"]
    head = f"# Predicted beside measured: {where['device']}, torch {where['torch']}, {where['date']}"
    return (
        "\n".join([head, "", f"`{command}`", "", *summary(rows), "", *_HEADER, *map(table_row, rows)]) + "\n"
    )


_HEADER = (
    "| configuration | step, predicted | range | measured | error | limit | peak, predicted | measured | error |",
    "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
)


def table_row(row: dict[str, Any]) -> str:
    """One row in ms and GB."""
    promise, found = row["predicted"], row["measured"]
    low, high = promise["step_time_low_s"] * 1e3, promise["step_time_high_s"] * 1e3
    ends = f"{low:.1f} to {high:.1f}" if high > low else ""
    return (
        f"| {Configuration(**row['configuration'])} | {promise['step_time_s'] * 1e3:.1f} | {ends} | "
        f"{found['step_s'] * 1e3:.1f} | {step_error(row):+.1%} | {promise['limit']} | "
        f"{promise['peak_memory_bytes'] / 1e9:.2f} | {found['peak_bytes'] / 1e9:.2f} | {memory_error(row):+.1%} |"
    )


def step_error(row: dict[str, Any]) -> float:
    """Predicted over measured, less 1."""
    return row["predicted"]["step_time_s"] / row["measured"]["step_s"] - 1.0


def memory_error(row: dict[str, Any]) -> float:
    """Predicted over measured, less 1."""
    return row["predicted"]["peak_memory_bytes"] / row["measured"]["peak_bytes"] - 1.0


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows show together."""
    device = [abs(step_error(row)) for row in rows if row["predicted"]["limit"] == "device"]
    host = [row for row in rows if row["predicted"]["limit"] == "host"]
    held = [row for row in host if is_held(row)]
    memory_errors = [memory_error(row) for row in rows]
    return [
        f"- {len(device)} steps that the plan says the device limits: median error {statistics.median(device):.1%}, "
        f"worst {max(device):.1%}.",
        f"- {len(host)} that it says the host limits: the range holds {len(held)}.",
        f"- Peak memory: median error {statistics.median(memory_errors):+.1%}, from {min(memory_errors):+.1%} to "
        f"{max(memory_errors):+.1%}.",
        "- Kendall's tau of the step times within a model, lowest: "
        f"{lowest_tau([row for row in rows if row not in host]):.2f} over steps that the device limits, "
        f"{lowest_tau(rows):.2f} over all.",
    ]


def is_held(row: dict[str, Any]) -> bool:
    """True where the measured step lies in the predicted range."""
    promise = row["predicted"]
    return promise["step_time_low_s"] <= row["measured"]["step_s"] <= promise["step_time_high_s"]


def lowest_tau(rows: Sequence[dict[str, Any]]) -> float:
    """The lowest rank correlation over models with at least three rows."""
    by_model: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        pair = (row["predicted"]["step_time_s"], row["measured"]["step_s"])
        by_model.setdefault(row["configuration"]["model"], []).append(pair)
    return min((kendall(pairs) for pairs in by_model.values() if len(pairs) >= 3), default=1.0)


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau: concordant less discordant pairs, over all pairs."""
    signs = [
        1.0 if (first[0] - second[0]) * (first[1] - second[1]) > 0 else -1.0
        for first, second in itertools.combinations(pairs, 2)
    ]
    return statistics.mean(signs)


def tiny(configuration: Configuration) -> Configuration:
    """The same on a model of next to nothing, to try the script."""
    family = configuration.source.partition(":")[0]
    source = f"{family}:layers=2,hidden=64,heads=4,vocab=256"
    return Configuration(
        source, 2, 64, configuration.is_compiled, configuration.recompute, configuration.precision
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--cluster", default="h100:1", help="what is predicted for: a name or a TOML file")
    parser.add_argument("--limit-s", type=float, default=500.0, help="start no configuration after this time")
    parser.add_argument("--only", default="", help="configurations whose description contains this")
    parser.add_argument("--kernels", action="store_true", help="where the GPU's time goes, by kernel")
    parser.add_argument("--predict", action="store_true", help="predict the rows of the file again")
    parser.add_argument("--table", type=Path, help="Markdown table of predicted beside measured")
    parser.add_argument("--tiny", action="store_true", help="tiny models: to try the script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    (predict_again if options.predict else run)(options)
    if options.table:
        command = f"python benchmarks/one_gpu.py -o {options.output.name}"
        options.table.write_text(table(json.loads(options.output.read_text()), command), encoding="utf-8")


if __name__ == "__main__":
    main()
