"""Linear layers on a CPU for the few rows that decoding has.

A step of decoding multiplies 1 to 8 rows by the weights, which are read from memory once whatever the
number. Stock kernels do not know that: for 2 to 5 rows they take two to three times as long as for one.
The same product written as W x^T, four columns at a time, is bound by memory again (measurements in
benchmarks/LOG.md). Every row goes through the same kernel at the same width, so that a token's logits do
not depend on the block it is verified in, and greedy speculation gives the target's own tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COLUMNS = 4
MOST_ROWS = 8


class FewRowsLinear(nn.Linear):
    """`nn.Linear` with the same weights and another order of multiplication for up to `MOST_ROWS` rows."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply `[..., in_features]` by the weights and add the bias."""
        rows = input.reshape(-1, self.in_features)
        n = rows.shape[0]
        if n > MOST_ROWS:
            return F.linear(input, self.weight, self.bias)
        padded = F.pad(rows, (0, 0, 0, -n % COLUMNS))
        parts = [torch.mm(self.weight, chunk.T).T for chunk in padded.split(COLUMNS)]
        # Contiguous whatever n is: strided results would take other vector code in the layers after this one.
        out = (parts[0] if len(parts) == 1 else torch.cat(parts))[:n].contiguous()
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*input.shape[:-1], self.out_features)


def use_few_rows(model: nn.Module) -> None:
    """Switch every plain linear layer of a model over; weights stay where they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
