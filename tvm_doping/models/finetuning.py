"""What a training loop of one's own is given to fine-tune a compressed model: one object, two calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import nn

from tvm_doping.errors import InvalidInput, UnfinishedWarning
from tvm_doping.models.anneal import Annealing
from tvm_doping.models.cmr import CmrSchedule, set_cmr
from tvm_doping.models.doping import close_masks


class Finetuning:
    """Thins S and sets the co-matrix dropout while a loop of the user's own trains the model.

        def finetune(model, finetuning):
            optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
            finetuning.start(len(batches))     # how many steps there will be
            for x, wanted in batches:
                optimiser.zero_grad()
                loss(model(x), wanted).backward()
                optimiser.step()
                finetuning.step()              # after each step of the optimiser

    The model comes in training mode, on the device that it was on; its weights are parametrized, so all of
    `model.parameters()` is what there is to train. `start` opens S: the model then computes what the dense one did; from there S is
    thinned to its final size over the first `anneal` of the steps. Without `start` S has that size from the beginning.
    A loop that is given fewer steps than it said ends with S cut at once, and a warning.

    anneal     the share of the steps after which S has its final number of entries;
    frequency  steps between two thinnings;
    cmr        rate of co-matrix dropout, for both parts, until the end of the annealing.
    """

    def __init__(
        self, model: nn.Module, *, anneal: float = 0.5, frequency: int = 20, cmr: float = 0.0
    ) -> None:
        if not 0 <= anneal <= 1:
            raise InvalidInput("anneal", "a share of the steps, from 0 to 1", f"{anneal}", "For example 0.5.")
        if frequency < 1:
            raise InvalidInput("frequency", "at least 1", f"{frequency}", "Give steps of the optimiser.")
        if not 0 <= cmr < 1:
            raise InvalidInput(
                "cmr", "a probability in [0, 1)", f"{cmr}", "For example 0.1, or 0 to switch it off."
            )
        self.model, self._share, self._frequency, self._rate = model, anneal, frequency, cmr
        self._annealing: Annealing | None = None
        self._cmr: CmrSchedule | None = None
        self.steps = self.taken = 0

    def start(self, steps: int) -> None:
        """Say how many steps of the optimiser will follow; opens S."""
        if steps < 1:
            raise InvalidInput(
                "steps of the fine-tuning", "at least 1", f"{steps}", "Count those of the optimiser."
            )
        if self._annealing is not None:
            raise InvalidInput(
                "Finetuning.start", "to be called once", "a second call", "Say the number of all steps."
            )
        self.steps = steps
        end = round(self._share * steps)
        if end:
            self._annealing = Annealing(
                self.model, start=0, end=end, frequency=min(self._frequency, max(end // 10, 1))
            )
            self._cmr = CmrSchedule(structured=self._rate, sparse=self._rate, end=end)
            self._cmr.apply(self.model, 0)

    def step(self) -> None:
        """Count a step of the optimiser, and thin S where it is time."""
        self.taken += 1
        if self._annealing is not None:
            self._annealing.step()
        if self._cmr is not None:
            self._cmr.apply(self.model, self.taken)

    @property
    def finished(self) -> bool:
        """Whether S has its final size."""
        return self._annealing is None or self._annealing.finished

    @property
    def density(self) -> float:
        """Open entries of S as a share of the weights' sizes."""
        return 0.0 if self._annealing is None else self._annealing.density

    def run(self, loop: Callable[[nn.Module, Finetuning], object]) -> None:
        """Have a loop train the model, and cut S where the loop took fewer steps than it said; the model is left in evaluation
        mode."""
        self.model.train()
        loop(self.model, self)
        set_cmr(self.model, 0.0)
        self.model.eval()
        if not self.taken:
            warnings.warn(
                "the fine-tuning never called step(): S was not thinned while it trained, and is cut now.",
                UnfinishedWarning,
                stacklevel=3,
            )
        elif not self.finished:
            warnings.warn(
                f"the fine-tuning took {self.taken} of the {self.steps} steps that it announced: S is cut at once to its final "
                "size, at some loss of accuracy.",
                UnfinishedWarning,
                stacklevel=3,
            )
        if not self.finished:
            close_masks(self.model)
