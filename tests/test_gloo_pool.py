"""The pool of gloo processes reports failures and never hangs."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.gloo_pool import GlooPool, RankFailedError


def add_up(amount: float) -> torch.Tensor:
    result = torch.tensor(amount * dist.get_rank())
    dist.all_reduce(result)
    return result


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise KeyError("the reason")
    dist.barrier()


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(3)


def hang() -> None:
    time.sleep(60)


def test_it_runs_reports_and_starts_afresh():
    with GlooPool(2) as pool:
        assert pool.run(add_up, 2.0) == [torch.tensor(2.0)] * 2
        with pytest.raises(RankFailedError, match=r"(?s)fail_on failed.*rank 1: .*KeyError: 'the reason'"):
            pool.run(fail_on, 1)
        assert pool.run(add_up, 1.0) == [torch.tensor(1.0)] * 2
        with pytest.raises(RankFailedError, match="rank 0: the process died"):
            pool.run(die_on, 0)
        with pytest.raises(RankFailedError, match=r"ranks \[0, 1\] gave no answer within 1 s"):
            pool.run(hang, timeout_s=1.0)
