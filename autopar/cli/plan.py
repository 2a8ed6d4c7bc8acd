"""``autopar plan``: the best plan for a model on a cluster, found without a GPU or the model's memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli.cache import cached_plan, keep_plan, question_key
from autopar.cli.console import log, only_results_on_stdout, print_json, print_result
from autopar.cli.sizes import parse_bytes
from autopar.errors import PlanError

if TYPE_CHECKING:
    from autopar.plan.schema import Plan
    from autopar.planning import PlanOptions
    from cost_models.cluster import Cluster

__all__ = ["plan"]

MODEL_HELP = (
    "gpt:layers=4,hidden=256 (also llama:, mlp:), gpt2, llama3-8b, llama3-70b, llama3-405b (each with "
    ":key=value,…), hf:ClassName[:config.json], or path/file.py:factory, where factory() returns "
    "(module, inputs)."
)
CLUSTER_HELP = "h100:8, h100:2x8 (nodes × devices), cpu:4, local, or a TOML file."


def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)],
    cluster: Annotated[str, typer.Option("--cluster", help=CLUSTER_HELP, show_default=False)],
    global_batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences (or samples) of one step, all devices together.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw")] = "adamw",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "fp32",
    memory: Annotated[
        str | None,
        typer.Option(help="Limit per device instead of its capacity: 80GB, 512MiB.", show_default=False),
    ] = None,
    pin: Annotated[
        str, typer.Option(help="Choices taken out of the search: tp=2,dp_shard=4,zero=3.", show_default=False)
    ] = "",
    objective: Annotated[
        str,
        typer.Option(
            help="time, memory (the smallest peak), or throughput-per-device (on fewer devices where that pays)."
        ),
    ] = "time",
    compile_program: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="torch.compile for blocks and the loss head: on GPUs, not on CPUs, unless given.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for the plan.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan itself, and nothing else.")] = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Answer from plans that were made before.")
    ] = True,
) -> None:
    """Find the fastest plan to train MODEL on a cluster, or the one best by another objective."""
    memory_bytes = parse_bytes(memory) if memory is not None else None
    _check_place(output)
    from autopar.clusters import cluster_named

    devices = cluster_named(cluster)
    question = {
        "cluster": devices,
        "batch": global_batch,
        "seq": seq_len,
        "optimizer": optimizer,
        "precision": precision,
        "memory": memory_bytes,
        "pin": pin,
        "objective": objective,
        "compile": compile_program,
    }
    key = question_key(model, question) if cache else None
    found = _known(key)
    if found is None:
        from autopar.plan.files import format_plan
        from autopar.planning import PlanOptions, check_options

        options = PlanOptions(
            pin,
            memory_bytes,
            optimizer,
            precision,
            source=model,
            objective=objective,
            compile=compile_program,
        )
        check_options(options)
        found = _plan(devices, options, global_batch, seq_len)
        if key is not None:
            keep_plan(key, format_plan(found))
    _write(found, devices, output, as_json=json)


def _check_place(output: Path | None) -> None:
    """Raises ``PlanError`` where no file can be written: before the search, not after it."""
    if output is None:
        return
    if not output.parent.is_dir():
        raise PlanError(f"the plan cannot be written to {output}: there is no folder {output.parent}.")
    if output.is_dir():
        raise PlanError(f"the plan cannot be written to {output}, which is a folder: name a file in it.")


def _known(key: str | None) -> Plan | None:
    """The plan that was kept for a question; a damaged one counts as none."""
    from autopar.plan.files import parse_plan

    text = cached_plan(key) if key is not None else None
    if text is None:
        return None
    try:
        found = parse_plan(text)
    except PlanError:
        return None
    log("planned before: this is the plan that was kept (--no-cache plans again)")
    return found


def _plan(cluster: Cluster, options: PlanOptions, global_batch: int | None, seq_len: int | None) -> Plan:
    from autopar.models import parse_model
    from autopar.planning import plan_model

    source = parse_model(options.source)
    log(f"building {options.source} on the meta device")
    with only_results_on_stdout():
        built = source.build(global_batch=global_batch, seq_len=seq_len)
        log(f"capturing it, and searching the meshes of {cluster.name}")
        return plan_model(built.module, built.args, built.kwargs, cluster, options)


def _write(found: Plan, cluster: Cluster, output: Path | None, *, as_json: bool) -> None:
    from autopar.plan.files import format_plan, write_plan

    if output is not None:
        write_plan(found, output)
    if as_json:
        print_json(format_plan(found))
        return
    from autopar.report.text import summary

    is_whole = found.cluster.name == cluster.name
    print_result(summary(found, cluster=cluster if is_whole else None))
    if output is None:
        log("the plan is not saved: add -o plan.json to keep it, or --json to print it")
    else:
        log(f"wrote {output}; next: autopar run {output}, or autopar emit {output} -o DIR")
