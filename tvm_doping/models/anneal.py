"""Annealing: S starts dense and is thinned while training, along Zhu and Gupta's cubic schedule; then entries of it may be
exchanged."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import nn

from tvm_doping.errors import InvalidInput
from tvm_doping.models.doping import close_mask, doped_weights, original
from tvm_doping.sparsity import PATTERNS


class Annealing:
    """Thins S of every doped weight of a model from density 1 to its final number of nonzeros.

        density(t) = final + (1 - final) * (1 - (t - start) / (end - start))^3    for start <= t <= end

    (Zhu and Gupta 2017, arXiv 1710.01878, eq. 1). Call `step()` once after each optimiser step; every
    `frequency` steps the masks are drawn anew from the magnitudes, from `end` on they stay. Closed entries
    get no gradient and keep their last value, so that one may come back while the schedule runs. Making the
    object opens the masks.

    With `regrow`, entries are exchanged after that (RigL; Evci et al. 2020, arXiv 1911.11134): every `frequency` steps after
    `end`, the share

        regrow / 2 * (1 + cos(pi (t - end) / (regrow_end - end)))    for end < t < regrow_end

    of each weight's entries, those of the smallest magnitude, is closed, and as many are opened where the gradient is largest,
    with the value 0. The number of entries stays the same. Call `look()` too, between the backward pass and whatever reads the
    gradients first (clipping, or the optimiser).

    model       a doped model (`models.dope`);
    start, end  steps; scope "matrix" gives each weight its own density, "global" ranks all entries together
                (unstructured only): the total stays the same;
    regrow      the share that is exchanged at first; regrow_end: the step from which on the masks stay.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        start: int,
        end: int,
        frequency: int = 100,
        scope: Literal["matrix", "global"] = "matrix",
        regrow: float = 0.0,
        regrow_end: int = 0,
    ) -> None:
        rows = [(weight, original(module, name)) for _, module, name, weight in doped_weights(model)]
        self._rows = [(weight, S) for weight, S in rows if weight.nonzeros]
        if not 0 <= start <= end or frequency < 1:
            raise InvalidInput(
                "annealing",
                "0 <= start <= end and frequency >= 1",
                f"start={start}, end={end}, frequency={frequency}",
                "Give steps of the optimiser.",
            )
        if not 0 <= regrow <= 1 or (regrow and regrow_end < end):
            raise InvalidInput(
                "regrowing",
                "a share from 0 to 1, and regrow_end >= end",
                f"regrow={regrow}, end={end}, regrow_end={regrow_end}",
                "For example 0.3, to three quarters of the steps; 0 switches it off.",
            )
        if scope not in ("matrix", "global"):
            raise InvalidInput("scope", "matrix or global", repr(scope), "Choose one of these names.")
        patterns = sorted({weight.pattern for weight, _ in self._rows})
        if scope == "global" and patterns not in ([], ["unstructured"]):
            raise InvalidInput(
                "scope global", "pattern unstructured", ", ".join(patterns), "Use scope matrix."
            )
        self.start, self.end, self.frequency, self.scope = start, end, frequency, scope
        self.regrow, self.regrow_end = regrow, regrow_end
        self.steps = 0
        self._gradients: list[np.ndarray] | None = None
        for weight, _ in self._rows:
            weight.mask.fill_(True)

    @property
    def finished(self) -> bool:
        """Whether S has its final density."""
        return not self._rows or self.steps >= self.end

    @property
    def density(self) -> float:
        """Open entries of all masks as a share of their size."""
        size = sum(weight.mask.numel() for weight, _ in self._rows)
        return sum(int(weight.mask.sum()) for weight, _ in self._rows) / size if size else 0.0

    def step(self) -> None:
        """Count one optimiser step, and thin S when it is time."""
        self.steps += 1
        t = self.steps
        if t == self.end or (self.start <= t < self.end and (t - self.start) % self.frequency == 0):
            self._thin(schedule(t, self.start, self.end))
        if self._exchanged(t):
            self._exchange()
        self._ask()

    @torch.no_grad()
    def look(self) -> None:
        """After the backward pass: take note of the gradients of closed entries, where they are asked for, and remove them, so
        that the optimiser does what it always does."""
        if not self._exchanged(self.steps + 1):
            return
        self._gradients = []
        for weight, S in self._rows:
            gradient = torch.zeros_like(S) if S.grad is None else S.grad
            self._gradients.append(_scores(gradient))
            gradient.mul_(weight.mask)

    def resume(self, steps: int) -> None:
        """Go on after `steps` steps; the masks are part of the model's state and are left as they are."""
        self.steps = steps
        self._ask()

    def _exchanged(self, t: int) -> bool:
        """Whether step t ends with an exchange."""
        return bool(self.regrow and self.end < t < self.regrow_end and (t - self.end) % self.frequency == 0)

    def _ask(self) -> None:
        """Have closed entries get a gradient in the step to come, if it ends with an exchange."""
        for weight, _ in self._rows:
            weight.dense_gradient = self._exchanged(self.steps + 1)

    @torch.no_grad()
    def _exchange(self) -> None:
        if self._gradients is None:
            raise InvalidInput(
                "Annealing with regrow",
                "look() between the backward pass and the optimiser's step",
                f"none in step {self.steps}",
                "Call it in every step, before gradients are clipped.",
            )
        done = (self.steps - self.end) / (self.regrow_end - self.end)
        share = self.regrow / 2 * (1 + math.cos(math.pi * done))
        for (weight, S), gradient in zip(self._rows, self._gradients, strict=True):
            choose, before = PATTERNS[weight.pattern], weight.mask.cpu().numpy()
            # of one ranking over all weights, each has a number of its own
            entries = before.sum() if self.scope == "global" else weight.nonzeros
            density = float(entries) / before.size
            kept = choose(np.where(before, _scores(S), 0), density * (1 - share)) & before
            # the kept come first, in sums over blocks too
            after = choose(np.where(kept, 2 * gradient.max() + 1, gradient), density)
            S[torch.from_numpy(after & ~before).to(S.device)] = 0
            weight.mask.copy_(torch.from_numpy(np.ascontiguousarray(after)))
        self._gradients = None

    @torch.no_grad()
    def _thin(self, excess: float) -> None:
        """Keep the final entries and the share `excess` of the others."""
        if self.scope == "global" and self._rows:
            self._thin_together(excess)
            return
        for weight, S in self._rows:
            if excess == 0:
                close_mask(weight, S)
            else:
                final = weight.nonzeros / weight.mask.numel()
                mask = PATTERNS[weight.pattern](_scores(S), final + (1 - final) * excess)
                weight.mask.copy_(torch.from_numpy(np.ascontiguousarray(mask)))

    def _thin_together(self, excess: float) -> None:
        """One ranking over the entries of all weights, with the total of their nonzeros."""
        sizes = [weight.mask.numel() for weight, _ in self._rows]
        final = sum(weight.nonzeros for weight, _ in self._rows)
        kept = final + round((sum(sizes) - final) * excess)
        scores = np.concatenate([_scores(S).reshape(-1) for _, S in self._rows])
        mask = np.zeros(scores.size, bool)
        mask[np.argpartition(-scores, kept - 1)[:kept]] = True
        for (weight, _), part in zip(self._rows, np.split(mask, np.cumsum(sizes)[:-1]), strict=True):
            weight.mask.copy_(torch.from_numpy(part.reshape(tuple(weight.mask.shape))))


def schedule(step: float, start: float, end: float) -> float:
    """(1 - (step - start) / (end - start))^3: what is left to thin; 1 before start, 0 from end on."""
    if step >= end:
        return 0.0
    return float((1 - max(step - start, 0) / (end - start)) ** 3)


def _scores(S: torch.Tensor) -> np.ndarray:
    scores: np.ndarray = S.detach().abs().cpu().numpy()
    return scores
