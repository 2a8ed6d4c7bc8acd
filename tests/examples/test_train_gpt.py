"""The example prints the same losses on one device, on four processes, and on two agents of two."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN, PARALLEL = ROOT / "examples" / "train_gpt_plain.py", ROOT / "examples" / "train_gpt.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def losses_of(*processes: subprocess.Popen[str]) -> list[float]:
    """Losses that the first rank printed, in order, whichever agent runs it."""
    printed = ""
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
        printed += output
    return [float(loss) for loss in re.findall(r"step \d+: loss ([0-9.]+)", printed)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def plain_losses() -> list[float]:
    return losses_of(start([sys.executable, str(PLAIN)]))


def test_one_line_is_added_to_a_short_script():
    plain, parallel = PLAIN.read_text().splitlines(), PARALLEL.read_text().splitlines()
    added = [line.strip() for line in parallel[1:] if line not in plain]
    assert added == ["import autopar", "model = autopar.parallelize(model)"]
    assert len(parallel) < 80


@pytest.mark.slow
def test_python(plain_losses):
    assert losses_of(start([sys.executable, str(PARALLEL)])) == pytest.approx(plain_losses, abs=2e-4)


@pytest.mark.slow
def test_torchrun_with_four_processes(plain_losses):
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=4", str(PARALLEL)]
    assert losses_of(start(command)) == pytest.approx(plain_losses, abs=2e-4)


@pytest.mark.slow
def test_two_agents_as_on_two_machines(plain_losses):
    meeting = f"127.0.0.1:{free_port()}"
    common = [
        "--nnodes=2",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={meeting}",
        "--rdzv-id=test",
    ]
    agents = [start([*TORCHRUN, *common, "--local-addr=127.0.0.1", str(PARALLEL)]) for _ in range(2)]
    assert losses_of(*agents) == pytest.approx(plain_losses, abs=2e-4)
