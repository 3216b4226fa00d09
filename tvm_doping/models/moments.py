"""What the weights of a model meet on sample inputs: the second moments of the vectors that each one multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tvm_doping.errors import InvalidInput

Float64 = NDArray[np.float64]

_RIDGE = 1e-2  # of the mean second moment: inputs to come are not quite the samples


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of one weight (m, n): `gram` (n, n), the sum of x x^T over the vectors x it multiplied; of an embedding's table `rows`
    (m,), how often each row was looked up."""

    gram: Float64 | None = None
    rows: Float64 | None = None

    def output_error(self, W: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        """||X (W - other)^T|| / ||X W^T|| over the samples X."""
        return float(np.sqrt(self._squared(W - other) / (self._squared(W) or 1.0)))

    def refit(
        self, W: NDArray[np.float32], base: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The S (m, n), nonzero where the mask says, of least output error of base + S: what is not in S is made up for by
        what is, as far as the inputs of both go together (row by row a least-squares problem)."""
        left = np.where(mask, W - base, 0)
        if self.gram is None:
            return left  # rows that are looked up have nothing to do with each other
        E = (W - base).astype(np.float64)
        floor = _RIDGE * float(np.diag(self.gram).mean()) + float(np.finfo(np.float32).tiny)
        G = self.gram + np.diag(np.full(len(self.gram), floor))
        S = np.zeros_like(E)
        for row, kept in enumerate(mask):
            here = np.flatnonzero(kept)
            if len(here):
                S[row, here] = np.linalg.solve(G[np.ix_(here, here)], G[here] @ E[row])
        return S.astype(np.float32)

    def _squared(self, A: NDArray[np.float32]) -> float:
        if self.gram is not None:
            return max(float(((A @ self.gram) * A).sum()), 0.0)
        assert self.rows is not None
        return float((np.square(A, dtype=np.float64).sum(1) * self.rows).sum())


@torch.no_grad()
def moments(model: nn.Module, samples: Iterable[Any]) -> dict[str, Moments]:
    """Run a dense model on the samples; the moments of every weight of its nn.LSTM, nn.Linear and nn.Embedding modules.

    samples: inputs of the model, each a tensor or a tuple of arguments. InvalidInput where there is none, or one is refused.
    """
    sums: dict[str, Float64] = {}
    tables: set[str] = set()
    was_training, any_ = model.training, False
    model.eval()
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if isinstance(module, nn.LSTM | nn.Linear | nn.Embedding):
                prefix = f"{path}." if path else ""
                if isinstance(module, nn.Embedding):
                    tables.add(f"{prefix}weight")
                hook = module.register_forward_pre_hook(_Look(prefix, sums), with_kwargs=True)
                hooks.callback(hook.remove)
        for sample in samples:
            run(model, sample)
            any_ = True
    model.train(was_training)
    if not any_:
        raise InvalidInput(
            "samples", "at least one input of the model", "none", "Give some, or leave them out."
        )
    return {
        path: Moments(rows=total) if path in tables else Moments(gram=total)
        for path, total in sums.items()
        if np.isfinite(total).all()
    }


def run(model: nn.Module, sample: Any) -> Any:
    """The model's output for one sample, a tensor or a tuple of arguments. InvalidInput where it fails."""
    arguments = sample if isinstance(sample, tuple) else (sample,)
    try:
        return model(*arguments)
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        what = ", ".join(
            str(tuple(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in arguments
        )
        raise InvalidInput(
            "samples",
            f"inputs that a {type(model).__name__} takes",
            f"{what}: {str(error)[:300]}",
            "Correct them.",
        ) from error


class _Look:
    """A hook that adds up what a module is called with."""

    def __init__(self, prefix: str, sums: dict[str, Float64]) -> None:
        self.prefix, self.sums = prefix, sums

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        x = given[0]
        if isinstance(module, nn.Embedding):
            counts = torch.bincount(x.flatten().cpu(), minlength=module.num_embeddings)
            self._add("weight", counts.double())
        elif isinstance(module, nn.LSTM):
            self._lstm(module, x, given[1] if len(given) > 1 else None)
        else:
            self._gram("weight", x)

    def _lstm(self, module: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None) -> None:
        """Layer by layer, since the module shows neither what is between its layers nor the states of its steps."""
        if not isinstance(x, Tensor):
            raise InvalidInput(
                f"input of {self.prefix.rstrip('.') or 'the nn.LSTM'}",
                "a tensor",
                type(x).__name__,
                "Pad it.",
            )
        H, D = module.hidden_size, 2 if module.bidirectional else 1
        if x.ndim == 2:
            x, state = x.unsqueeze(1), state and (state[0].unsqueeze(1), state[1].unsqueeze(1))
        elif module.batch_first:
            x = x.transpose(0, 1)
        zeros = x.new_zeros(D * module.num_layers, x.shape[1], H)
        h, c = state or (zeros, zeros)
        for layer in range(module.num_layers):
            one = nn.LSTM(
                x.shape[-1], H, bias=module.bias, bidirectional=module.bidirectional, device=x.device
            )
            one.load_state_dict(
                {name: getattr(module, name.replace("_l0", f"_l{layer}")) for name in one._flat_weights_names}
            )
            own = slice(layer * D, (layer + 1) * D)
            y, _ = one(x, (h[own].contiguous(), c[own].contiguous()))
            for direction, ending in enumerate(("", "_reverse")[:D]):
                part, first = y[..., direction * H : (direction + 1) * H], h[layer * D + direction][None]
                before = torch.cat([part[1:], first]) if direction else torch.cat([first, part[:-1]])
                self._gram(f"weight_ih_l{layer}{ending}", x)
                self._gram(f"weight_hh_l{layer}{ending}", before)
            x = y

    def _gram(self, name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).double()
        self._add(name, flat.T @ flat)

    def _add(self, name: str, value: Tensor) -> None:
        path = self.prefix + name
        self.sums[path] = self.sums.get(path, 0.0) + value.cpu().numpy()
