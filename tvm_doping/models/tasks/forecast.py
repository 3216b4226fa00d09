"""Forecasting of time series: the next hours of one column from the past of several, by an LSTM that streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tvm_doping.errors import DataError, InvalidInput
from tvm_doping.models.tasks.protocol import Batch, Loss, Part, Share, Task
from tvm_doping.models.tasks.series import Series, csv_files, sample
from tvm_doping.models.tasks.weather import weather

_EVERY = (
    5  # neighbouring windows tell almost the same; no divisor of a day, so all hours of it have their turn
)


class DataRecipe(Part):
    """Which series, and what is forecast from what."""

    kind: Literal["csv", "pvlib", "sample"] = Field(
        default="csv",
        description="csv: a folder of yours; pvlib: hourly weather of that package; sample: a made-up series",
    )
    columns: list[str] | None = Field(default=None, description="those that the model reads; none: all")
    target: str | None = Field(default=None, description="the column to forecast; none: the first")
    window: int = Field(default=72, ge=1, description="past rows that a forecast is made from, T")
    horizon: int = Field(default=24, ge=1, description="rows to forecast")
    season: int = Field(
        default=24, ge=1, description="rows after which values recur: the forecast to beat repeats them"
    )


class ModelRecipe(Part):
    """The dense model."""

    hidden: int = Field(ge=1, description="hidden units of each LSTM layer, H")
    layers: int = Field(default=1, ge=1, description="LSTM layers, L")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="between the layers and before the output")


class ForecastModel(nn.Module):
    """forecast[t] = x[t, target] + scale[target] * output(dropout(LSTM((x - mean) / scale)))[t], time first.

    It takes and gives values in the units of the data, and forecasts after every time step, from what it has seen so far.

    mean, scale: of each of the I inputs, in the training data; target: which input is forecast, so many steps as the horizon
    says; hidden, layers: sizes H, L; dropout: training only.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        scale: Sequence[float],
        target: int,
        horizon: int,
        hidden: int,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = f"hidden={hidden}, layers={layers}, horizon={horizon}, dropout={dropout}"
        if min(hidden, layers, horizon) < 1 or not 0 <= dropout < 1:
            raise InvalidInput(
                "ForecastModel",
                "sizes of at least 1 and a dropout in [0, 1)",
                sizes,
                "Correct the model's settings.",
            )
        if len(mean) != len(scale) or not 0 <= target < len(mean) or not min(scale) > 0:
            raise InvalidInput(
                "ForecastModel",
                "a mean and a scale above 0 of each input, and a target among the inputs",
                f"{len(mean)} means, {len(scale)} scales, target={target}",
                "Take them from the config of a trained model.",
            )
        self.target, self.horizon = target, horizon
        # of the config, not of the checkpoint: one place says them
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32), persistent=False)
        self.dropout = nn.Dropout(dropout)
        # nn.LSTM warns about a dropout between layers that one layer does not have
        self.lstm = nn.LSTM(len(mean), hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.output = nn.Linear(hidden, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, N, I) -> forecasts (T, N, horizon): [t, n, k] is the target's value k + 1 steps after x[t, n]."""
        y, _ = self.lstm((x - self.mean) / self.scale)
        now = slice(self.target, self.target + 1)
        return x[..., now] + self.scale[now] * self.output(self.dropout(y))

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Values as they occur: others would drive the gates to where all models are alike."""
        random = torch.Generator().manual_seed(0)
        return (self.mean + self.scale * torch.randn(7, 3, len(self.mean), generator=random),)


class Forecasting(Task[Series]):
    """A batch holds windows of the series; the loss is that of the forecasts after every one of their time steps."""

    data_recipe, model_recipe = DataRecipe, ModelRecipe
    best, higher, unit = "rmse", False, "forecasts"

    def model(self, **config: Any) -> ForecastModel:
        return ForecastModel(**config)

    def read(self, recipe: DataRecipe, folder: Path | None, name: str) -> Series:
        chosen = recipe.model_dump(exclude={"kind"})
        if recipe.kind == "sample":
            return sample(**chosen)
        if recipe.kind == "pvlib":
            return weather(**chosen)
        if folder is None:
            raise DataError(f"data of {name}", "a folder with CSV files", "none", "Name it with --data.")
        return csv_files(folder, **chosen)

    def config(self, settings: ModelRecipe, data: Series) -> dict[str, Any]:
        return {
            **data.normalisation(),
            "target": data.columns.index(data.target),
            "horizon": data.horizon,
            **settings.model_dump(),
        }

    def stored(self, data: Series) -> dict[str, Any]:
        return {
            "columns": list(data.columns),
            "target": data.target,
            "window": data.window,
            "horizon": data.horizon,
            "season": data.season,
            "normalisation": data.normalisation(),
        }

    def batches(
        self, data: Series, *, batch: int, steps: int, seed: int, epoch: int, share: Share
    ) -> Sequence[Batch]:
        """Windows overlap by all but a row, so an epoch draws one in `horizon` of them: (x, wanted) as `Series.window_batch`."""
        places = data.places("train")
        random = np.random.default_rng((seed, epoch))
        drawn = random.permutation(len(places))[: math.ceil(len(places) / data.horizon)]
        own, count = share.of(batch), len(drawn) // batch
        if not count:
            got = f"{len(drawn)} windows an epoch"
            raise DataError(
                "train split", f"a batch of {batch} windows", got, "Lower train.batch, or add rows."
            )
        return [
            data.window_batch("train", places[row[own]])
            for row in drawn[: count * batch].reshape(count, batch)
        ]

    def loss(self, model: nn.Module, batch: Batch, carried: tuple[Tensor, ...] | None) -> Loss:
        """The mean square error, with the target's deviation in the training data as the unit."""
        x, wanted = batch
        bare = getattr(model, "module", model)  # "module": of many processes
        assert isinstance(bare, ForecastModel)
        with parametrize.cached():  # each doped weight is computed once a batch
            error = (model(x) - wanted) / bare.scale[bare.target]
        value = functional.mse_loss(error, torch.zeros_like(error))
        count = wanted.shape[0] * wanted.shape[1]
        return Loss(objective=value, total=value.detach() * count, count=count)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, data: Series, split: str, *, batch: int, device: torch.device, final: bool
    ) -> dict[str, float]:
        """Errors of the forecasts after every window of the split (every fifth, unless final), in the target's unit, over all
        steps of the horizon; of persistence, which repeats the last season; and skill = 1 - rmse / persistence_rmse."""
        was_training = model.training
        model.eval()
        places, found = data.places(split)[:: 1 if final else _EVERY], []
        square = repeated = 0.0
        with parametrize.cached():
            for at in range(0, len(places), 256):
                x, wanted = data.window_batch(split, places[at : at + 256])
                error = (model(x.to(device))[-1].cpu() - wanted[-1]).double()
                found.append(error.abs())
                square += float(error.square().sum())
                repeated += float((data.persistence(x) - wanted[-1]).double().square().sum())
        model.train(was_training)
        count = len(places) * data.horizon
        rmse, persistence = math.sqrt(square / count), math.sqrt(repeated / count)
        return {
            "rmse": rmse,
            "mae": float(torch.cat(found).mean()),
            "persistence_rmse": persistence,
            # a series that repeats itself exactly leaves nothing to be better at
            "skill": 1 - rmse / persistence if persistence else -math.inf,
        }
