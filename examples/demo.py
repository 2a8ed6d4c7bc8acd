"""Plan a small byte-level GPT for two CPU processes, train it on real text, and compare with one device.

`make demo` runs this file. It starts itself again under torchrun, one process per device.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

PROCESSES = 2
STEPS = 20
BATCH, SEQUENCE = 16, 128
FOLDER = Path("autopar_demo")


def text() -> bytes:
    """The source of Python's standard library: real text that every machine has."""
    folder = Path(sysconfig.get_path("stdlib"))
    return b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))


def train() -> None:
    """What each process does: the user's loop, with one added line."""
    import rich
    import torch
    import torch.distributed as dist

    import autopar
    from autopar.models.gpt import GPT, GPTConfig
    from autopar.report.text import summary

    torch.set_num_threads(1)
    config = GPTConfig(layers=4, hidden=256, heads=8, vocab=256, context=SEQUENCE)
    torch.manual_seed(0)
    model = GPT(config)
    torch.manual_seed(0)
    plain = GPT(config)  # trained beside it on one device, to compare
    model = autopar.parallelize(model, save_to=FOLDER)  # the added line
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    data = torch.frombuffer(bytearray(text()), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        starts = torch.randint(len(data) - SEQUENCE - 1, (BATCH,), generator=generator)
        window = torch.stack([data[start : start + SEQUENCE + 1] for start in starts])
        tokens, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()

        loss = model(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        plain_loss = plain(tokens, targets)
        plain_loss.backward()
        plain_optimizer.step()
        plain_optimizer.zero_grad()
        if dist.get_rank() == 0:
            if step == 0:
                rich.print(summary(model.plan))
                print(f"\n{'step':>4}  {'one device':>10}  {PROCESSES} processes")
            print(f"{step + 1:>4}  {plain_loss.item():>10.6f}  {loss.item():>{11}.6f}", flush=True)
    if dist.get_rank() == 0:
        print(f"\nplan.json and program.py are in {FOLDER.resolve()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        train()
    else:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={PROCESSES}",
        ]
        sys.exit(subprocess.call([*launcher, __file__], env={**os.environ, "OMP_NUM_THREADS": "1"}))
