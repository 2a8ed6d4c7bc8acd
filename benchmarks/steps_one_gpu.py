"""Measures real training steps on one GPU: step time, tokens/s and peak memory of many configurations.

    PYTHONPATH=. python benchmarks/steps_one_gpu.py -o steps.json [--limit-s 320] [--only llama] [--kernels]

What is run, for every configuration: a model of ``autopar.models`` in float32, its forward under
``torch.autocast`` to bfloat16 (so weights are cast in each block), backward, fused AdamW (float32 states,
learning rate 1e-4), ``zero_grad(set_to_none=True)``. ``compiled`` means ``torch.compile(dynamic=False)`` per
block and for the head (final norm, logits and loss together); the embedding stays eager. ``full`` recompute
is ``torch.utils.checkpoint`` (not reentrant, no random state kept) around every block. Tokens are random and
stay the same. Step time is the median of CUDA events between steps, with no synchronisation inside the loop.

``--kernels`` adds where the GPU's time goes by kernel name (torch.profiler, two steps after the timed ones).
The file is rewritten after every configuration, so that a run that is cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autopar.models.gpt import GPT, GPTConfig
from autopar.models.llama import Llama, LlamaConfig, rotations

WARM_UP_STEPS = 3
TIMED_STEPS = 20
LEARNING_RATE = 1e-4
TOP_KERNELS = 40


@dataclass(frozen=True, slots=True)
class Size:
    """A model's sizes under a name."""

    family: str
    layers: int
    hidden: int
    heads: int
    vocab: int
    kv_heads: int = 0
    ffn: int = 0

    def build(self, seq: int) -> GPT | Llama:
        """The model with random parameters, on the default device."""
        if self.family == "gpt":
            return GPT(GPTConfig(self.layers, self.hidden, self.heads, self.vocab, context=seq))
        sizes = (self.layers, self.hidden, self.heads, self.kv_heads, self.ffn, self.vocab)
        return Llama(LlamaConfig(*sizes))


SIZES = {
    "gpt-124m": Size("gpt", 12, 768, 12, 50_257),
    "gpt-350m": Size("gpt", 24, 1024, 16, 50_304),
    "gpt-1.3b": Size("gpt", 24, 2048, 16, 50_304),
    "llama-110m": Size("llama", 12, 768, 12, 32_000, ffn=2048),
    "llama-370m": Size("llama", 24, 1024, 16, 32_000, ffn=2816),
    "llama-370m-128k": Size("llama", 24, 1024, 16, 128_256, ffn=2816),
    "llama-1.1b": Size("llama", 22, 2048, 32, 32_000, kv_heads=4, ffn=5632),
    "llama-1.2b-128k": Size("llama", 16, 2048, 32, 128_256, kv_heads=8, ffn=8192),
    "llama-3b": Size("llama", 28, 3072, 24, 32_000, kv_heads=8, ffn=8192),
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One training step."""

    model: str
    """A key of ``SIZES``."""
    batch: int
    """Sequences."""
    seq: int
    is_compiled: bool = True
    recompute: str = "none"
    """``none`` or ``full``."""

    def __str__(self) -> str:
        mode = "compiled" if self.is_compiled else "eager"
        return f"{self.model} {self.batch}×{self.seq} {mode} recompute={self.recompute}"


CONFIGURATIONS = (
    Configuration("llama-370m", 16, 1024),
    Configuration("gpt-124m", 8, 1024),
    Configuration("llama-1.1b", 4, 2048),
    Configuration("llama-370m", 16, 1024, recompute="full"),
    Configuration("llama-370m", 16, 1024, is_compiled=False),
    Configuration("gpt-350m", 16, 1024),
    Configuration("llama-3b", 2, 2048, recompute="full"),
    Configuration("llama-1.2b-128k", 4, 2048),
    Configuration("gpt-1.3b", 4, 1024),
    Configuration("llama-370m", 4, 512),
    Configuration("llama-110m", 16, 1024),
    Configuration("llama-370m-128k", 16, 1024),
    Configuration("llama-1.1b", 4, 2048, recompute="full"),
    Configuration("llama-370m", 4, 4096),
    Configuration("gpt-124m", 32, 1024),
    Configuration("gpt-124m", 8, 1024, is_compiled=False),
    Configuration("llama-1.1b", 4, 2048, is_compiled=False),
    Configuration("llama-3b", 2, 2048),
    Configuration("gpt-350m", 16, 1024, recompute="full"),
    Configuration("gpt-350m", 8, 1024, is_compiled=False),
    Configuration("llama-1.2b-128k", 4, 2048, recompute="full"),
    Configuration("llama-370m", 2, 8192, recompute="full"),
    Configuration("gpt-1.3b", 8, 1024, recompute="full"),
    Configuration("llama-110m", 4, 512),
    Configuration("llama-1.1b", 1, 8192),
    Configuration("llama-3b", 4, 2048, is_compiled=False, recompute="full"),
    Configuration("gpt-124m", 32, 1024, recompute="full"),
    Configuration("gpt-1.3b", 4, 1024, is_compiled=False),
)
"""In the order in which they are run: what is left out when time runs short is at the end."""

TINY = {
    name: replace(size, layers=2, hidden=64, heads=4, kv_heads=min(size.kv_heads, 2), ffn=128, vocab=256)
    for name, size in SIZES.items()
}
"""The same families for a machine without a GPU: to try the script, not to measure."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one configuration; times in seconds, memory in bytes."""

    configuration: Configuration
    size: Size
    parameters: int
    """Distinct parameters: a tied head counts once."""
    step_s: float
    """Median."""
    step_low_s: float
    """10th percentile."""
    step_high_s: float
    """90th percentile."""
    issue_s: float
    """Median host time to issue one step; at most the step itself, because queues fill up."""
    tokens_per_s: float
    peak_allocated_bytes: int
    """Largest sum of live tensors in the timed steps."""
    peak_reserved_bytes: int
    """Largest sum of the allocator's segments in the timed steps."""
    used_bytes: int
    """In use on the device after the timed steps, context included."""
    first_step_s: float
    """Compilation included."""
    kernels: dict[str, list[float]] | None = None
    """By name: seconds per step and launches per step."""


class Step:
    """One training step of one configuration, called again and again."""

    def __init__(self, configuration: Configuration, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        with device:
            self.model = size.build(configuration.seq)
            text = torch.randint(size.vocab, (configuration.batch, configuration.seq + 1))
        self.tokens, self.targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.device = device
        compiled = functools.partial(torch.compile, dynamic=False) if configuration.is_compiled else _as_is
        self.blocks = [compiled(block) for block in self.model.layers]
        self.head = compiled(head_loss)
        self.is_recomputed = configuration.recompute == "full"

    def __call__(self) -> Tensor:
        """Run forward, backward and update; return the loss."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.forward()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def forward(self) -> Tensor:
        x, extra = embed(self.model, self.tokens)
        for block in self.blocks:
            if self.is_recomputed:
                x = checkpoint(block, x, *extra, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, *extra)
        return self.head(self.model.norm, self.model.head, x, self.targets)


def _as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def embed(model: GPT | Llama, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Embedded tokens ``[batch, seq, hidden]``, and what every block takes besides."""
    if isinstance(model, GPT):
        return model.tokens(tokens) + model.positions(torch.arange(tokens.shape[1], device=tokens.device)), ()
    config = model.config
    head_dim = config.hidden // config.heads
    return model.tokens(tokens), rotations(tokens.shape[1], head_dim, config.rope_theta, tokens.device)


def head_loss(norm: nn.Module, head: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    return F.cross_entropy(head(norm(x)).flatten(0, 1), targets.flatten())


def measure(configuration: Configuration, size: Size, device: torch.device, *, with_kernels: bool) -> Result:
    """Builds, warms up and times one configuration."""
    step = Step(configuration, size, device)
    started_s = time.perf_counter()
    step()
    _wait(device)
    first_s = time.perf_counter() - started_s
    for _ in range(WARM_UP_STEPS - 1):
        step()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps_s, issues_s = timed_steps(step, device)
    allocated, reserved, used = memory(device)
    low_s, high_s = (statistics.quantiles(steps_s, n=10)[index] for index in (0, -1))
    step_s = statistics.median(steps_s)
    return Result(
        configuration,
        size,
        sum(parameter.numel() for parameter in step.model.parameters()),
        step_s,
        low_s,
        high_s,
        statistics.median(issues_s),
        configuration.batch * configuration.seq / step_s,
        allocated,
        reserved,
        used,
        first_s,
        kernel_times(step, device) if with_kernels else None,
    )


def timed_steps(step: Step, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of each step, and seconds in which the host issued it."""
    marks, issues_s = [_mark(device)], []
    for _ in range(TIMED_STEPS):
        started_s = time.perf_counter()
        step()
        issues_s.append(time.perf_counter() - started_s)
        marks.append(_mark(device))
    _wait(device)
    return [_between_s(first, second) for first, second in itertools.pairwise(marks)], issues_s


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between_s(first: Any, second: Any) -> float:
    return second - first if isinstance(first, float) else first.elapsed_time(second) * 1e-3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> tuple[int, int, int]:
    """(peak allocated, peak reserved, in use on the device)."""
    if device.type != "cuda":
        return 0, 0, 0
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return (
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        total_bytes - free_bytes,
    )


def kernel_times(step: Step, device: torch.device, steps: int = 2) -> dict[str, list[float]]:
    """Seconds and launches per step of the kernels that take most of it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            step()
        _wait(device)
    rows = sorted(profile.key_averages(), key=_device_us, reverse=True)[:TOP_KERNELS]
    return {row.key[:160]: [_device_us(row) * 1e-6 / steps, row.count / steps] for row in rows}


def _device_us(row: Any) -> float:
    return float(row.self_device_time_total or row.self_cpu_time_total)


def attempt(
    configuration: Configuration, size: Size, device: torch.device, *, with_kernels: bool
) -> dict[str, Any]:
    """The result as a table, or why there is none; leaves the device's memory empty."""
    try:
        return asdict(measure(configuration, size, device, with_kernels=with_kernels))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:300]}"
        return {"configuration": asdict(configuration), "size": asdict(size), "error": reason}
    finally:
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def describe(device: torch.device) -> dict[str, Any]:
    """The circumstances."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "date": datetime.date.today().isoformat(),
        "command": " ".join(sys.argv),
        "precision": "bfloat16 by torch.autocast, float32 parameters, gradients and AdamW states",
        "steps": TIMED_STEPS,
    }


def line(result: dict[str, Any]) -> str:
    """One result for people."""
    name = str(Configuration(**result["configuration"]))
    if "error" in result:
        return f"{name}: {result['error']}"
    return (
        f"{name}: {result['step_s'] * 1e3:.1f} ms ({result['step_low_s'] * 1e3:.1f} to "
        f"{result['step_high_s'] * 1e3:.1f}, issued in {result['issue_s'] * 1e3:.1f}), "
        f"{result['tokens_per_s']:,.0f} tokens/s, peak {result['peak_allocated_bytes'] / 2**30:.2f} GiB "
        f"({result['peak_reserved_bytes'] / 2**30:.2f} reserved), first step {result['first_step_s']:.1f} s"
    )


def write(path: Path, circumstances: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """One result per line."""
    lines = ",\n".join(json.dumps(result) for result in results)
    path.write_text(f'{{"circumstances": {json.dumps(circumstances)},\n"results": [\n{lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--limit-s", type=float, default=320.0, help="start no configuration after this time")
    parser.add_argument("--only", default="", help="configurations whose description contains this")
    parser.add_argument("--kernels", action="store_true", help="where the GPU's time goes, by kernel")
    parser.add_argument("--tiny", action="store_true", help="tiny models: to try the script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device, started_s = torch.device(options.device), time.monotonic()
    circumstances, results = describe(device), []
    for configuration in (each for each in CONFIGURATIONS if options.only in str(each)):
        if time.monotonic() - started_s > options.limit_s:
            print(f"{configuration}: left out, {options.limit_s:.0f} s are over", flush=True)
            continue
        size = (TINY if options.tiny else SIZES)[configuration.model]
        chosen = replace(configuration, batch=2, seq=64) if options.tiny else configuration
        results.append(attempt(chosen, size, device, with_kernels=options.kernels))
        write(options.output, circumstances, results)
        print(f"{time.monotonic() - started_s:6.1f} s  {line(results[-1])}", flush=True)


if __name__ == "__main__":
    main()
