"""A byte-level GPT on real text, in plain PyTorch on one device: Python's own standard library is the text."""

import os
import sysconfig
from pathlib import Path

import torch

from autopar.models.gpt import GPT, GPTConfig

STEPS, BATCH, SEQUENCE = 10, 8, 64


def read_text() -> torch.Tensor:
    """Every byte of the standard library's top-level modules, as numbers."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(
        bytearray(b"\n".join(path.read_bytes() for path in files)), dtype=torch.uint8
    ).long()


def main() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=2, hidden=128, heads=4, vocab=256, context=SEQUENCE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    text = read_text()
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        starts = torch.randint(len(text) - SEQUENCE - 1, (BATCH,), generator=generator)
        windows = torch.stack([text[start : start + SEQUENCE + 1] for start in starts])
        loss = model(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if os.environ.get("RANK", "0") == "0":
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
