"""A plain multilayer perceptron that classifies vectors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "MLPBlock", "MLPConfig"]


@dataclass(frozen=True, slots=True)
class MLPConfig:
    """Sizes of an MLP. ``ffn`` 0 stands for 4 × ``hidden``; ``inputs`` 0 for ``hidden``."""

    layers: int = 4
    hidden: int = 256
    inputs: int = 0
    ffn: int = 0
    classes: int = 16
    dropout: float = 0.0


class MLPBlock(nn.Module):
    """``[batch, hidden]`` through ``ffn`` units and back."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        ffn = config.ffn or 4 * config.hidden
        self.up = nn.Linear(config.hidden, ffn)
        self.down = nn.Linear(ffn, config.hidden)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(F.relu(self.down(F.relu(self.up(x)))))


class MLP(nn.Module):
    """``forward(x, targets)``: mean cross-entropy of float ``[batch, inputs]`` and int64 ``[batch]``."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(config.inputs or config.hidden, config.hidden)
        self.layers = nn.ModuleList(MLPBlock(config) for _ in range(config.layers))
        self.head = nn.Linear(config.hidden, config.classes)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x), targets)
