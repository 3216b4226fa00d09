"""The loop of a training run: epochs, validation, the best checkpoint, and the state to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
from tvm_doping.errors import CheckpointError, DopingError
from tvm_doping.models.anneal import Annealing
from tvm_doping.models.cmr import CmrSchedule, cancellation
from tvm_doping.models.distil import Teacher
from tvm_doping.models.doping import dope
from tvm_doping.models.loading import load_model, model_tensors
from tvm_doping.models.metrics import MetricsLog
from tvm_doping.models.recipe import Recipe
from tvm_doping.models.resume import FILE as STATE
from tvm_doping.models.resume import fit_factors, load_state, own_state, save_state
from tvm_doping.models.starting import start_from
from tvm_doping.models.tasks import TASKS, Task
from tvm_doping.models.tasks.protocol import Batch, Data, Loss, Share

ANEW = "Use another folder, or start anew with resume=False (--no-resume)."


class TrainingError(DopingError, ArithmeticError):
    """Training whose loss is no longer a number."""


@dataclass
class Position:
    """Where a run stands: what is stored with its state.

    batch: of the epoch; step: of the optimiser; loss, items: summed over the epoch so far; data: sha256 of what is trained
    on; processes: how many share the run; teacher: sha256 of its weights.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    best_final: bool = False
    finished: bool = False
    seconds: float = 0.0
    loss: float = 0.0
    items: int = 0
    data: str = ""
    processes: int = 1
    teacher: str = ""


class Run:
    """One run of a task."""

    def __init__(self, plan: Recipe, folder: Path, data: Data, accelerator: Accelerator, bar: bool) -> None:
        self.plan, self.folder, self.accelerator = plan, folder, accelerator
        self.shown = Console(stderr=True, quiet=not (bar and accelerator.is_main_process), highlight=False)
        self.task: Task[Any] = TASKS[plan.task]
        self.data, self.at = data, Position(data=data.sha256, processes=accelerator.num_processes)
        self.stored = self.task.stored(data)
        self.carried: tuple[Tensor, ...] | None = None
        self.teacher: Teacher | None = None
        resumed, loop = (folder / STATE).is_file(), plan.train
        self.model_config = self.task.config(plan.model, data)
        model = self.task.model(**self.model_config)
        set_seed(loop.seed, device_specific=True)  # no two processes draw the same dropout
        self.task.initialise(model, plan.model, loop.seed)
        if loop.start is not None and not resumed:
            start_from(loop.start, model, plan.task, self.stored)
        if plan.doping is not None:
            dope(model, seed=loop.seed, **plan.doping.model_dump(exclude={"anneal", "cmr"}))
            if resumed:
                fit_factors(folder, model)
        self.total = loop.epochs * math.ceil(len(self._batches(0)) / loop.accumulate)
        self.annealing, self.cmr = self._doping(model)
        self.bare = model
        optimiser = (
            torch.optim.SGD(model.parameters(), lr=loop.lr, weight_decay=loop.weight_decay)
            if loop.optimiser == "sgd"
            else torch.optim.Adam(model.parameters(), lr=loop.lr, weight_decay=loop.weight_decay)
        )
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        taught = self._resume() if resumed else None
        if loop.teacher is not None and not self.at.finished:
            self.teacher = Teacher(loop.teacher, loop.distil, plan.task, self.stored, accelerator.device)
            self.teacher.carried = taught
            self._same("teacher", self.at.teacher if resumed else self.teacher.sha256, self.teacher.sha256)
            self.at.teacher = self.teacher.sha256
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
                    **{name: len(value) for name, value in self.stored.items() if isinstance(value, list)},
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
        best = self.task.best
        if metrics.get(f"test_{best}") is None:
            model = load_model(self.folder).to(self.accelerator.device)
            tested: dict[str, float] = {}
            for split in ("valid", "test"):
                found = self._evaluate(model, split, final=True)
                tested |= {f"{split}_{name}": value for name, value in found.items()}
            tested[best] = tested[f"test_{best}"]
            metrics |= tested
            self._write("test", **tested)
        metrics |= {"epochs_done": self.at.epoch, "seconds": round(self.at.seconds, 1), "finished": True}
        if rival is not None:
            metrics[f"dense_test_{best}"] = rival
        checkpoint.update_metrics(self.folder, metrics)
        save_state(self.folder, self.bare, self._plain_optimiser(), [own_state()], asdict(self.at))
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
        batches = self._batches(at.epoch)
        for begin in range(at.batch, len(batches), loop.accumulate):
            group = [batches[i] for i in range(begin, min(begin + loop.accumulate, len(batches)))]
            since += self._step(group, running)
            at.batch, at.step = begin + len(group), at.step + 1
            last = at.batch == len(batches)
            if at.step % loop.log_steps and at.step % loop.save_steps and not last:
                continue
            loss, items = self._sums(running, since)
            at.loss, at.items = at.loss + loss, at.items + items
            running.zero_()
            now = time.perf_counter()
            speed, logged, since = items / (now - logged), now, 0
            name, value = self.task.shown(at.loss / at.items)
            self._write(
                "train",
                epoch=at.epoch + 1,
                lr=rate,
                **{name: value, f"{self.task.unit}_per_s": round(speed)},
                **self._density(),
            )
            show(f"epoch {at.epoch + 1}  {name} {value:#.4g}  {speed:,.0f} {self.task.unit}/s")
            if at.step % loop.save_steps == 0 and not last:
                at.seconds, started = at.seconds + now - started, now
                self._save_state()
        at.seconds += time.perf_counter() - started
        self._validate(show)

    def _step(self, group: Sequence[Batch], running: Tensor) -> int:
        """One update, by the mean of the batches' objectives; adds the summed loss of their items to `running`, and returns how
        many they are."""
        if self.cmr is not None:
            self.cmr.apply(self.bare, self.at.step)
        self.optimiser.zero_grad()
        count = 0
        for left, batch in zip(range(len(group) - 1, -1, -1), group, strict=True):
            # processes average their gradients once a group
            with self.accelerator.no_sync(self.model) if left else nullcontext():
                loss = self._objective(batch)
                self.accelerator.backward(loss.objective / len(group))
            running += loss.total
            count += loss.count
        if self.annealing is not None:
            self.annealing.look()
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.train.clip)
        self.optimiser.step()
        if self.annealing is not None:
            self.annealing.step()
        return count

    def _objective(self, batch: Batch) -> Loss:
        """The loss of a batch, whose LSTM state is carried on to the next one."""
        device, bf16 = self.accelerator.device, self.plan.train.precision == "bf16"
        batch = tuple(part.to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = self.task.loss(self.model, batch, self.carried)
        self.carried = None if loss.carried is None else tuple(part.detach() for part in loss.carried)
        return loss if self.teacher is None else self.teacher.teach(loss, batch)

    def _validate(self, show: Callable[[str], None]) -> None:
        at, best = self.at, self.task.best
        show("validating")
        valid = self._finite(f"validation {best}", self._evaluate(self.bare, "valid", final=False)[best])
        final = self.annealing is None or self.annealing.finished
        at.epoch, at.batch = at.epoch + 1, 0
        name, value = self.task.shown(at.loss / at.items)
        self._write(
            "epoch",
            epoch=at.epoch,
            **{f"valid_{best}": valid, f"train_{name}": value},
            seconds=round(at.seconds, 1),
        )
        if not self.shown.is_terminal:  # there the bar says it
            both = f"{name} {value:#.4g} train, {'' if name == best else f'{best} '}{valid:#.4g} valid"
            self._say(
                f"epoch {at.epoch} of {self.plan.train.epochs}, step {at.step}: {both}, {at.seconds:.0f} s"
            )
        at.loss, at.items, self.carried = 0.0, 0, None
        if self.teacher is not None:
            self.teacher.carried = None
        sign = 1 if self.task.higher else -1
        if at.best is None or (final, sign * valid) > (at.best_final, sign * at.best):
            at.best, at.best_epoch, at.best_final = valid, at.epoch, final
            if self.accelerator.is_main_process:
                self._save_best(valid, final)
        # after the checkpoint: killed in between, the epoch's end is repeated
        self._save_state()

    def _evaluate(self, model: nn.Module, split: str, *, final: bool) -> dict[str, float]:
        device, batch = self.accelerator.device, self.plan.train.batch
        return self.task.evaluate(model, self.data, split, batch=batch, device=device, final=final)

    def _save_best(self, valid: float, final: bool) -> None:
        tensors, doped = model_tensors(self.bare)
        metrics = {
            f"valid_{self.task.best}": valid,
            f"test_{self.task.best}": None,
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
            **self.stored,
        }
        checkpoint.save(self.folder, config, tensors, doped)

    def _save_state(self) -> None:
        own = own_state(self.carried, None if self.teacher is None else self.teacher.carried)
        every = [own]
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            both = {key: self.accelerator.gather(value.to(device)[None]) for key, value in own.items()}
            every = [{key: part[i] for key, part in both.items()} for i in range(self.at.processes)]
        if self.accelerator.is_main_process:
            save_state(self.folder, self.bare, self._plain_optimiser(), every, asdict(self.at))

    def _stopped(self) -> bool:
        """Whether early stopping is due."""
        at, patience = self.at, self.plan.train.patience
        return bool(patience and at.best_final and at.epoch - at.best_epoch >= patience)

    def _sums(self, loss: Tensor, items: int) -> tuple[float, int]:
        """Both since the last look, over all processes. Raises TrainingError when the loss is not finite."""
        both = self.accelerator.reduce(torch.stack([loss, loss.new_tensor(items)]), reduction="sum")
        return self._finite("loss", float(both[0])), int(both[1])

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
            regrow=anneal.regrow,
            regrow_end=int(anneal.regrow_end * self.total),
        )
        schedule = CmrSchedule(
            structured=cmr.structured,
            sparse=cmr.sparse,
            start=cmr.start * self.total,
            end=cmr.end * self.total,
            fade=cmr.fade,
        )
        return annealing, schedule if cmr.structured or cmr.sparse else None

    def _batches(self, epoch: int) -> Sequence[Batch]:
        """This process's part of an epoch."""
        loop = self.plan.train
        share = Share(index=self.accelerator.process_index, count=self.accelerator.num_processes)
        return self.task.batches(
            self.data, batch=loop.batch, steps=loop.steps, seed=loop.seed, epoch=epoch, share=share
        )

    def _resume(self) -> tuple[Tensor, ...] | None:
        """Go on where the run in the folder stopped; returns the LSTM state of its teacher."""
        device, process = self.accelerator.device, self.accelerator.process_index
        self.carried, taught, stored = load_state(
            self.folder, self.bare, self._plain_optimiser(), device, process
        )
        try:
            self.at = Position(**stored)
        except TypeError as error:
            raise CheckpointError(
                f"run folder {self.folder}", "a state of this version", str(error), ANEW
            ) from error
        self._same("data", self.at.data, self.data.sha256)
        processes = self.accelerator.num_processes
        if self.at.processes != processes and not self.at.finished:
            needs, got = f"the {self.at.processes} processes it was started with", f"{processes}"
            raise CheckpointError(f"run folder {self.folder}", f"{needs}, to be resumed", got, ANEW)
        if self.annealing is not None:
            self.annealing.resume(self.at.step)
        return taught

    def _same(self, what: str, before: str, now: str) -> None:
        if before != now:
            raise CheckpointError(
                f"run folder {self.folder}", f"the {what} it was started with, to be resumed", "another", ANEW
            )

    def _density(self) -> dict[str, float]:
        if self.annealing is None:
            return {}
        return {"density": self.annealing.density, "cancellation": cancellation(self.bare)}

    def _plain_optimiser(self) -> torch.optim.Optimizer:
        optimiser: torch.optim.Optimizer = getattr(self.optimiser, "optimizer", self.optimiser)
        return optimiser

    def _say(self, line: str) -> None:
        self.shown.print(line, soft_wrap=True)

    def _write(self, event: str, **values: Any) -> None:
        if self.log:
            self.log.write(event, step=self.at.step, **values)
