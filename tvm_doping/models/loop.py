"""The loop of a training run: epochs, validation, the best checkpoint, and the state to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError, DataError, DopingError, RecipeError
from tvm_doping.models.anneal import Annealing
from tvm_doping.models.cmr import CmrSchedule
from tvm_doping.models.doping import dope
from tvm_doping.models.loading import load_model, model_tensors
from tvm_doping.models.metrics import MetricsLog
from tvm_doping.models.recipe import Recipe
from tvm_doping.models.resume import FILE as STATE
from tvm_doping.models.resume import load_state, save_state
from tvm_doping.models.tasks import language_model as lm
from tvm_doping.models.tasks.text import Corpus

ANEW = "Use another folder, or start anew with resume=False (--no-resume)."


class TrainingError(DopingError, ArithmeticError):
    """Training whose loss is no longer a number."""


@dataclass
class Position:
    """Where a run stands: what is stored with its state."""

    epoch: int = 0
    segment: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    best_final: bool = False
    finished: bool = False
    seconds: float = 0.0
    loss: float = 0.0
    tokens: int = 0
    text: str = ""


class Run:
    """One run of the language-model task."""

    def __init__(
        self, plan: Recipe, folder: Path, corpus: Corpus, accelerator: Accelerator, bar: bool
    ) -> None:
        self.plan, self.folder, self.accelerator = plan, folder, accelerator
        self.shown = Console(stderr=True, quiet=not (bar and accelerator.is_main_process), highlight=False)
        self.corpus, self.at = corpus, Position(text=corpus.sha256)
        self.carried: lm.State | None = None
        settings, loop = plan.model, plan.train
        sizes = settings.model_dump(exclude={"init_radius"})
        self.model_config: dict[str, Any] = {"vocab": len(corpus.vocabulary), **sizes}
        model = lm.LanguageModel(**self.model_config)
        set_seed(loop.seed)
        lm.initialise(model, settings.init_radius, loop.seed)
        if plan.doping is not None:
            dope(model, seed=loop.seed, **plan.doping.model_dump(exclude={"anneal", "cmr"}))
        self.segments = list(lm.segments(self._columns("train"), loop.steps, whole=True))
        if not self.segments:
            got = f"{len(corpus.train)} tokens"
            raise DataError(
                "train split",
                f"more than {loop.batch * loop.steps} tokens",
                got,
                "Lower train.batch or steps.",
            )
        self.total = loop.epochs * len(self.segments)
        self.annealing, self.cmr = self._doping(model)
        self.bare = model
        optimiser = (
            torch.optim.SGD(model.parameters(), lr=loop.lr, weight_decay=loop.weight_decay)
            if loop.optimiser == "sgd"
            else torch.optim.Adam(model.parameters(), lr=loop.lr, weight_decay=loop.weight_decay)
        )
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        if (folder / STATE).is_file():
            carried, stored = load_state(folder, self.bare, self._plain_optimiser(), accelerator.device)
            self.carried = (carried[0], carried[1]) if carried else None
            self.at = Position(**stored)
            if self.at.text != corpus.sha256:
                raise CheckpointError(
                    f"run folder {folder}", "the text it was started with, to be resumed", "another", ANEW
                )
            if self.annealing is not None:
                self.annealing.resume(self.at.step)
        self.log = MetricsLog(folder, self.at.step) if accelerator.is_main_process else None

    def all(self, rival: float | None) -> dict[str, Any]:
        """Every epoch that is left, then the test."""
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            "{task.fields[note]}",
        )
        with Progress(
            *(TextColumn(c) if isinstance(c, str) else c for c in columns),
            console=self.shown,
            disable=self.shown.quiet or not self.shown.is_terminal,
        ) as bar:
            if self.at.step:
                self._say(f"resumed at step {self.at.step} of {self.total}")
            task = bar.add_task(self.plan.name, total=self.total, completed=self.at.step, note="")
            if self.log and not self.at.step:
                self.log.write(
                    "start",
                    step=0,
                    recipe=self.plan.name,
                    steps=self.total,
                    vocabulary=len(self.corpus.vocabulary),
                )
            while self.at.epoch < self.plan.train.epochs and not self._stopped():
                self._epoch(lambda note: bar.update(task, completed=self.at.step, note=note))
            bar.update(task, note="testing")
            self.at.finished = True
            return self.finish(rival)

    def finish(self, rival: float | None) -> dict[str, Any]:
        """Test the best checkpoint, write its metrics into the config, mark the run as finished."""
        if not self.accelerator.is_main_process:
            return {}
        metrics: dict[str, Any] = checkpoint.read_config(self.folder)["metrics"]
        if metrics.get("test_perplexity") is None:
            best = load_model(self.folder)
            device = self.accelerator.device
            best.to(device)
            # one stream, as the published figures are: nothing of the text is left out
            for split in ("valid", "test"):
                data = lm.columns(getattr(self.corpus, split), 1, split)
                metrics[f"{split}_perplexity"] = lm.perplexity(best, data, device=device)
            metrics["perplexity"] = metrics["test_perplexity"]
            if self.log:
                self.log.write(
                    "test",
                    step=self.at.step,
                    **{k: v for k, v in metrics.items() if k.endswith("perplexity")},
                )
        metrics |= {"epochs_done": self.at.epoch, "seconds": round(self.at.seconds, 1), "finished": True}
        if rival is not None:
            metrics["dense_test_perplexity"] = rival
        checkpoint.update_metrics(self.folder, metrics)
        save_state(self.folder, self.bare, self._plain_optimiser(), self.carried, asdict(self.at))
        return metrics

    def _epoch(self, show: Callable[[str], None]) -> None:
        """The rest of the present epoch, its validation, and the checkpoint if it is the best."""
        at, loop = self.at, self.plan.train
        rate = loop.lr * loop.decay ** max(at.epoch + 1 - loop.hold, 0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        started, running = (
            time.perf_counter(),
            torch.zeros((), device=self.accelerator.device, dtype=torch.float64),
        )
        logged, since = time.perf_counter(), 0
        self.model.train()
        for index in range(at.segment, len(self.segments)):
            tokens, targets = self.segments[index]
            running += self._step(tokens, targets)
            since += tokens.numel()
            at.segment, at.step = index + 1, at.step + 1
            last = at.segment == len(self.segments)
            if at.step % loop.log_steps and at.step % loop.save_steps and not last:
                continue
            at.loss, at.tokens = at.loss + self._loss(running), at.tokens + since
            running.zero_()
            now = time.perf_counter()
            speed, logged, since = since / (now - logged), now, 0
            self._write(
                "train",
                epoch=at.epoch + 1,
                lr=rate,
                perplexity=_exp(at.loss / at.tokens),
                tokens_per_s=round(speed),
                **self._density(),
            )
            show(f"epoch {at.epoch + 1}  perplexity {_exp(at.loss / at.tokens):.1f}  {speed:,.0f} tokens/s")
            if at.step % loop.save_steps == 0 and not last:
                at.seconds, started = at.seconds + now - started, now
                self._save_state()
        at.seconds += time.perf_counter() - started
        self._validate(show)

    def _step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """One update; returns the summed loss of the segment's tokens, detached."""
        device, loop = self.accelerator.device, self.plan.train
        if self.cmr is not None:
            self.cmr.apply(self.bare, self.at.step)
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.precision == "bf16"):
            loss, state = lm.segment_loss(self.model, tokens.to(device), targets.to(device), self.carried)
        self.carried = (state[0].detach(), state[1].detach())
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), loop.clip)
        self.optimiser.step()
        if self.annealing is not None:
            self.annealing.step()
        return loss.detach() * tokens.shape[1]

    def _validate(self, show: Callable[[str], None]) -> None:
        at = self.at
        show("validating")
        data = self._columns("valid", whole=True)
        valid = lm.perplexity(self.bare, data, device=self.accelerator.device)
        self._finite("validation perplexity", valid)
        final = self.annealing is None or self.annealing.finished
        at.epoch, at.segment = at.epoch + 1, 0
        self._write(
            "epoch",
            epoch=at.epoch,
            valid_perplexity=valid,
            train_perplexity=_exp(at.loss / at.tokens),
            seconds=round(at.seconds, 1),
        )
        if not self.shown.is_terminal:  # there the bar says it
            self._say(
                f"epoch {at.epoch} of {self.plan.train.epochs}, step {at.step}: perplexity "
                f"{_exp(at.loss / at.tokens):.2f} train, {valid:.2f} valid, {at.seconds:.0f} s"
            )
        at.loss, at.tokens, self.carried = 0.0, 0, None
        if at.best is None or (final, -valid) > (at.best_final, -at.best):
            at.best, at.best_epoch, at.best_final = valid, at.epoch, final
            if self.accelerator.is_main_process:
                self._save_best(valid, final)
        # after the checkpoint: killed in between, the epoch's end is repeated
        self._save_state()

    def _save_best(self, valid: float, final: bool) -> None:
        tensors, doped = model_tensors(self.bare)
        metrics = {
            "valid_perplexity": valid,
            "test_perplexity": None,
            "best_epoch": self.at.epoch,
            "epochs_done": self.at.epoch,
            "epochs_planned": self.plan.train.epochs,
            "annealed": final,
            "finished": False,
        }
        config = {
            "task": self.plan.task,
            "recipe": self.plan.name,
            "model": self.model_config,
            "doping": None if self.plan.doping is None else self.plan.doping.model_dump(mode="json"),
            "precision": self.plan.train.precision,
            "metrics": metrics,
            "tokens": self.corpus.tokens,
            "vocabulary": list(self.corpus.vocabulary),
        }
        checkpoint.save(self.folder, config, tensors, doped)

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            save_state(self.folder, self.bare, self._plain_optimiser(), self.carried, asdict(self.at))

    def _stopped(self) -> bool:
        """Whether early stopping is due."""
        at, patience = self.at, self.plan.train.patience
        return bool(patience and at.best_final and at.epoch - at.best_epoch >= patience)

    def _loss(self, running: Tensor) -> float:
        """The sum since the last look, over all processes. Raises TrainingError when it is not finite."""
        return self._finite("loss", float(self.accelerator.reduce(running, reduction="mean")))

    def _finite(self, what: str, value: float) -> float:
        if not math.isfinite(value):
            raise TrainingError(
                f"{what} of {self.plan.name} at step {self.at.step}",
                "a finite number",
                f"{value}",
                "Lower train.lr or train.clip; the last sound state and the best checkpoint are untouched.",
            )
        return value

    def _doping(self, model: nn.Module) -> tuple[Annealing | None, CmrSchedule | None]:
        doping = self.plan.doping
        if doping is None:
            return None, None
        anneal, cmr = doping.anneal, doping.cmr
        annealing = Annealing(
            model,
            start=int(anneal.start * self.total),
            end=int(anneal.end * self.total),
            frequency=anneal.frequency,
            scope=anneal.scope,
        )
        schedule = CmrSchedule(
            structured=cmr.structured,
            sparse=cmr.sparse,
            start=cmr.start * self.total,
            end=cmr.end * self.total,
            fade=cmr.fade,
        )
        return annealing, schedule if cmr.structured or cmr.sparse else None

    def _columns(self, split: str, *, whole: bool = False) -> Tensor:
        """The split as (length, N): in training each process has its share of the streams."""
        batch = self.plan.train.batch
        data = lm.columns(getattr(self.corpus, split), batch, split)
        processes = self.accelerator.num_processes
        if whole or processes == 1:
            return data
        if batch % processes:
            raise RecipeError(
                "train.batch", f"a multiple of the {processes} processes", f"{batch}", "Change one of them."
            )
        width = batch // processes
        begin = self.accelerator.process_index * width
        return data[:, begin : begin + width].contiguous()

    def _density(self) -> dict[str, float]:
        return {} if self.annealing is None else {"density": self.annealing.density}

    def _plain_optimiser(self) -> torch.optim.Optimizer:
        optimiser: torch.optim.Optimizer = getattr(self.optimiser, "optimizer", self.optimiser)
        return optimiser

    def _say(self, line: str) -> None:
        self.shown.print(line, soft_wrap=True)

    def _write(self, event: str, **values: Any) -> None:
        if self.log:
            self.log.write(event, step=self.at.step, **values)


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf
