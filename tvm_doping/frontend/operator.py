"""`doping::lstm`: one LSTM layer in one direction as one PyTorch operator, opaque to `torch.export`.

`torch.export` fixes the number of time steps of `nn.LSTM` and unrolls it; a custom operator keeps T and N symbolic and arrives in
the imported graph as one call.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("doping::lstm", mutates_args=())
def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    reverse: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, N, I), h0 and c0 (N, H), w_ih (4H, I), w_hh (4H, H), b_ih and b_hh (4H,) or None to y (T, N, H), h and c (N, H).

    reverse reads x from its end; y stays in the order of x. name is the layer's, for reports.
    """
    weights = [w_ih, w_hh] if b_ih is None or b_hh is None else [w_ih, w_hh, b_ih, b_hh]
    steps, state = x.flip(0) if reverse else x, (h0[None].contiguous(), c0[None].contiguous())
    y, h, c = torch._VF.lstm(steps, state, weights, len(weights) == 4, 1, 0.0, False, False, False)  # type: ignore[attr-defined]
    return y.flip(0) if reverse else y.clone(), h[0].clone(), c[0].clone()


@lstm.register_fake
def _(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    reverse: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, inputs = x.shape
    hidden = w_hh.shape[1]
    # These make the batch of a state given by the user the same symbol as that of x.
    for state in (h0, c0):
        torch._check(state.shape[0] == batch)
        torch._check(state.shape[1] == hidden)
    torch._check(inputs == w_ih.shape[1])
    return x.new_empty(steps, batch, hidden), x.new_empty(batch, hidden), x.new_empty(batch, hidden)
