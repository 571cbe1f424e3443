"""Two transformers that divide the noise levels between them, as one policy (Wan 2.2 A14B).

Everything outside sees one module: one optimiser, one adapter with a part in each, one publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn


class TwoExperts(nn.Module, PeftAdapterMixin):  # type: ignore[misc]
    """Sends each row to the expert of its noise level, `high` from the boundary on.

    Ranks may hold rows of different levels, and their collectives must match, so in training both
    experts take part in every forward: one without a row gets gradients of zero, which costs their
    zeros. Where ranks reduce gradients as they come (ZeRO 2 and 3) they must come in one order; see
    `keep_order`.
    """

    def __init__(self, high: nn.Module, low: nn.Module, *, boundary_timestep: float) -> None:
        super().__init__()
        self.high = high
        self.low = low
        self.boundary_timestep = boundary_timestep
        self._keeps_order = False

    def keep_order(self) -> None:
        """Run an expert without a row on one whose answer counts nothing.

        So its gradients come in the order of everyone's. Under ZeRO 3 to read its parameters is a
        collective, and it runs without gradient as well. A micro-batch of few rows pays for it; put
        all that fit into one.
        """
        self._keeps_order = True

    @property
    def config(self) -> Any:
        """Of either expert: they are of one shape."""
        return self.high.config

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward of both."""
        for expert in (self.high, self.low):
            expert.enable_gradient_checkpointing()  # type: ignore[operator]

    def set_attention_backend(self, name: str) -> None:
        """Choose the kernel of both."""
        for expert in (self.high, self.low):
            expert.set_attention_backend(name)  # type: ignore[operator]

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        *,
        return_dict: bool = False,
        **inputs: Tensor,
    ) -> tuple[Tensor]:
        """Return ([B, C, F, H, W],) as an expert does.

        Args:
            hidden_states: [B, C, F, H, W].
            timestep: [B].
            return_dict: must be False.
            inputs: further tensors of B rows.
        """
        assert not return_dict, "the adapters of rlvid ask for a tuple"
        rows = {**inputs, "hidden_states": hidden_states, "timestep": timestep}
        is_high = timestep >= self.boundary_timestep
        of_high, of_low = is_high.nonzero().flatten(), (~is_high).nonzero().flatten()
        if len(of_low) == 0:
            return (self._run(self.high, rows) + self._taking_part(self.low, rows),)
        if len(of_high) == 0:
            # The idle one first: ranks run their experts in one order, whoever is idle.
            nothing = self._taking_part(self.high, rows)
            return (self._run(self.low, rows) + nothing,)
        answers = [
            self._run(expert, {name: tensor[mine] for name, tensor in rows.items()})
            for expert, mine in ((self.high, of_high), (self.low, of_low))
        ]
        places = torch.cat([of_high, of_low]).argsort()
        return (torch.cat(answers)[places],)

    def _run(self, expert: nn.Module, rows: Mapping[str, Tensor]) -> Tensor:
        answer: Tensor = expert(**rows, return_dict=False)[0]
        return answer

    def _taking_part(self, expert: nn.Module, rows: Mapping[str, Tensor]) -> Tensor | float:
        """Return 0, with a gradient of zero for every trained parameter of an idle expert."""
        is_sharded = any(hasattr(parameter, "ds_id") for parameter in expert.parameters())
        if self._keeps_order and (is_sharded or torch.is_grad_enabled()):
            row = {name: tensor[:1] for name, tensor in rows.items()}
            return 0.0 * self._run(expert, row).sum()
        if not torch.is_grad_enabled():
            return 0.0
        trained = [p.flatten()[0] for p in expert.parameters() if p.requires_grad]
        return 0.0 * torch.stack([first.float() for first in trained]).sum() if trained else 0.0
