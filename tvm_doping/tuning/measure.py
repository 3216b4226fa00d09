"""One candidate: emitted, packed with the layer's own weights, compiled, compared with NumPy, and timed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping._threads import open_pool
from tvm_doping._tvm import tvm
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.cross import compiler
from tvm_doping.errors import DopingError
from tvm_doping.kernels import LinearPlan, LstmPlan, linear, lstm, traced
from tvm_doping.kernels.pool import export
from tvm_doping.kernels.sparse import ROUNDING
from tvm_doping.linking import images_of, pipeline_of
from tvm_doping.schedules.recorded import illegal
from tvm_doping.targets import Target
from tvm_doping.tuning.device import Device, Local, Remote
from tvm_doping.tuning.gpu import Gpu

Plan = LstmPlan | LinearPlan


@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """Dense loops with these shapes of their arguments, as a trace schedules them; without one as `compile` does by itself."""

    shapes: traced.Shapes
    trace: list[Any] | None

    def to_json(self) -> str:
        return json.dumps({"shapes": self.shapes, "trace": self.trace})

    @classmethod
    def from_json(cls, text: str) -> LoopPlan:
        raw = json.loads(text)
        return cls(shapes=tuple(tuple(shape) for shape in raw["shapes"]), trace=raw["trace"])


_NAME = "candidate"
# Samples of a candidate at each T, and how long one lasts at least: as many short ones as other processes may leave whole.
_ROUNDS, _SAMPLE_US = 20, 1000.0
# A candidate that takes so many times as long as the first plan, in each of the first rounds, is not timed any further.
_HOPELESS, _GLANCE = 1.4, 5
# The first plan's time over its best so far, beyond which a measurement is disturbed and goes on, and how many times as long.
_DISTURBED, _PATIENCE = 1.05, 4
# From NumPy's results, relative to the largest; where a GPU rounds z too, a number of it may be rounded the other way.
_CLOSE, _CLOSE_ROUNDED = 1e-4, 5e-3


@dataclass(frozen=True, kw_only=True)
class Job:
    """How candidates are measured.

    steps    the T of the calls; batch: their streams; threads: of the session;
    cores    to time on; empty: wherever the system puts it;
    locks    files that are held while timing, so that one candidate is timed at a time; building: the one that is shared by
             those who build, and held alone by who times;
    kept     a folder for the libraries, so that what is measured again is not compiled again, or "";
    device   "": this machine; "HOST:PORT KEY": one that a tracker lends.
    """

    steps: tuple[int, ...]
    batch: int
    threads: int
    cores: tuple[int, ...] = ()
    locks: tuple[str, ...] = ()
    building: str = ""
    kept: str = ""
    device: str = ""


def measure(
    plans: Sequence[Plan | LoopPlan],
    weights: Any,
    target: Target,
    job: Job,
    rounds: int = _ROUNDS,
    waiting: Callable[[bool], None] = lambda waits: None,
    known: Mapping[int, float] | None = None,
) -> list[dict[int, list[float]]]:
    """Microseconds a call of each plan, by T: a sample a round, taken in turns.

    A sample of one plan means little without the other's of its round: machines are not always equally fast.
    With no rounds, plans are compiled and compared alone: their libraries are then there (`Job.kept`) for who times them.
    waiting(True) is called before the wait for locks, waiting(False) after it. known: `typical` of the first plan where nothing
    disturbed it; a measurement in which it takes longer goes on, up to four times as long.

    weights: the structures of a layer, by product; of a LoopPlan the module with its function, as TVM's JSON.

    DopingError where a kernel's results differ from those of NumPy on the same packed arrays, or loops with a trace from those
    without.
    """
    with tempfile.TemporaryDirectory(prefix="tvm-doping-tune-") as folder:
        with _held(job.building, fcntl.LOCK_SH):
            plans = [_trimmed(plan, job) for plan in plans]
            kernels = [
                _build(plan, weights, target, Path(job.kept or Path(folder) / str(at)))
                for at, plan in enumerate(plans)
            ]
        with _open(job, target) as device:
            runs = [
                (_LoopRun if isinstance(plan, LoopPlan) else _Run)(plan, arrays, path, job, device)
                for plan, (arrays, path) in zip(plans, kernels, strict=True)
            ]
            for run, (_, path) in zip(runs, kernels, strict=True):
                if not _checked(path):
                    run.check()
                    _checked(path, True)
            samples = [{T: list[float]() for T in job.steps} for _ in runs]
            if not rounds:
                return samples
            waiting(True)
            with _held(job.building, fcntl.LOCK_EX), _all_held(job.locks), _on(job.cores):
                waiting(False)
                for at in range(_PATIENCE * rounds):
                    if at == _GLANCE and rounds == _ROUNDS and _hopeless(samples):
                        break
                    if at >= rounds and not _disturbed(samples[0], known or {}):
                        break
                    for run, own in zip(runs, samples, strict=True):
                        for T in job.steps:
                            own[T].append(float(f"{run.time(T):.5g}"))
    return samples


def typical(samples: Sequence[float]) -> float:
    """The lowest decile of samples: what else a machine does only adds to them."""
    return float(f"{np.percentile(samples, 10):.5g}")


def _disturbed(samples: Mapping[int, Sequence[float]], known: Mapping[int, float]) -> bool:
    return any(typical(samples[T]) > _DISTURBED * us for T, us in known.items() if T in samples)


def _hopeless(samples: Sequence[Mapping[int, Sequence[float]]]) -> bool:
    """Whether every plan but the first is slow beyond doubt, at all T together."""
    best = [math.prod(min(us) for us in own.values()) ** (1 / len(own)) for own in samples]
    return len(best) > 1 and min(best[1:]) > _HOPELESS * best[0]


def _checked(library: Path, now: bool = False) -> bool:
    """Whether a library's results were compared with NumPy's: one that is kept is compared once."""
    mark = library.with_suffix(".checked")
    if now:
        mark.touch()
    return mark.exists()


class _Run:
    """A candidate's function on a device, with its arrays there."""

    def __init__(self, plan: Any, arrays: dict[str, Any], path: Path, job: Job, device: Device) -> None:
        self.plan, self.arrays, self.job, self.device = plan, arrays, job, device
        self.module = device.load(path)
        self.packed = self._packed()
        shared = not isinstance(plan, LoopPlan) and plan.config.shared
        self.pool = open_pool(self.module, job.threads, False) if shared else None
        self.calls: dict[int, Callable[[], float]] = {}

    def _packed(self) -> list[Any]:
        return [self.device.put(array) for array in self.arrays.values()]

    def check(self) -> None:
        """Compare runs with NumPy: enough steps for a tile of them and a rest; on a GPU a single one too, which has a kernel of
        its own."""
        for steps in self._steps():
            self._check(steps)

    def _check(self, steps: int) -> None:
        given, expected = self._case(steps)
        outputs = [aligned_zeros(array.shape, array.dtype) for array in expected]
        arguments = [
            *(self.device.put(a) for a in given),
            *self.packed,
            *(self.device.put(a) for a in outputs),
        ]
        self._run(lambda: self.module.get_function(_NAME, True)(*arguments))
        for got, wanted in zip(arguments[-len(outputs) :], expected, strict=True):
            error = float(np.abs(got.numpy() - wanted).max())
            if not error <= self._close() * max(1.0, float(np.abs(wanted).max())):
                raise DopingError("a candidate", "NumPy's results", f"{error:.2g} off", "Report this kernel.")

    def _steps(self) -> tuple[int, ...]:
        config = self.plan.config
        return (1, 3) if config.grid is not None else (max(config.steps + 2, 2),)

    def _close(self) -> float:
        formats = {getattr(self.plan, name).sparse for name in self.plan.products}
        return _CLOSE_ROUNDED if self.plan.config.grid is not None and formats & ROUNDING else _CLOSE

    def time(self, T: int) -> float:
        """Microseconds of a call, of as many as fill a sample."""
        if T not in self.calls:
            given, expected = self._case(T, compute=False)
            arguments = [
                *(self.device.put(a) for a in given),
                *self.packed,
                *(self.device.put(a) for a in expected),
            ]
            timer = self.device.timer(self.module, _NAME, arguments, T)

            def call(number: int) -> float:
                return float(self._run(lambda: timer(number)))

            call(1)  # pages and caches
            number = max(1, round(_SAMPLE_US / call(1)))
            self.calls[T] = lambda: call(number)
        return self.calls[T]()

    def _run(self, call: Callable[[], Any]) -> Any:
        return call() if self.pool is None else self.pool.run(call)

    def _case(self, steps: int, compute: bool = True) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Inputs, and what NumPy makes of them (or room for it)."""
        rng, plan, batch = np.random.default_rng(steps), self.plan, self.job.batch

        def drawn(*shape: int) -> np.ndarray:
            return aligned_copy(rng.uniform(-1, 1, shape).astype("float32"))

        if isinstance(plan, LinearPlan):
            x = drawn(steps * batch, plan.inputs)
            if compute:
                return [x], linear.reference(plan, self.arrays, x)
            return [x], [aligned_zeros((steps * batch, plan.outputs), "float32")]
        given = [drawn(steps, batch, plan.inputs), drawn(batch, plan.hidden), drawn(batch, plan.hidden)]
        if compute:
            return given, list(lstm.reference(plan, self.arrays, *given))
        shapes = ((steps, batch, plan.hidden), (batch, plan.hidden), (batch, plan.hidden))
        return given, [aligned_zeros(shape, "float32") for shape in shapes]


class _LoopRun(_Run):
    """Dense loops: what those without a trace make of the same numbers is what they have to make."""

    def _packed(self) -> list[Any]:
        return []

    def _steps(self) -> tuple[int, ...]:
        return self.job.steps[:1]

    def _close(self) -> float:
        return _CLOSE

    def _case(self, steps: int, compute: bool = True) -> tuple[list[np.ndarray], list[np.ndarray]]:
        rng = np.random.default_rng(steps)
        *shapes, last = self.plan.shapes
        given = [aligned_copy(rng.uniform(-1, 1, shape).astype("float32")) for shape in shapes]
        result = aligned_zeros(last, "float32")
        if compute:
            arguments = [self.device.put(array) for array in (*given, result)]
            self.device.load(self.arrays["plain"]).get_function(_NAME, True)(*arguments)
            return given, [arguments[-1].numpy()]
        return given, [result]


def _build_loops(plan: LoopPlan, module: str, target: Target, folder: Path) -> tuple[dict[str, Any], Path]:
    """The library, and that of the loops without a trace."""
    mod = tvm.ir.load_json(module)
    plain = _library(mod, f"{module} plain", target, folder)
    if plan.trace is None:
        return {"plain": plain}, plain
    function = traced.with_traces(mod[_NAME], [traced.Traced(shapes=plan.shapes, trace=plan.trace)])
    return {"plain": plain}, _library(tvm.IRModule({_NAME: function}), plan.to_json(), target, folder)


def _build(plan: Plan | LoopPlan, weights: Any, target: Target, folder: Path) -> tuple[dict[str, Any], Path]:
    """The packed arrays, and the library: that in the folder, if it has one of the plan."""
    if isinstance(plan, LoopPlan):
        return _build_loops(plan, weights, target, folder)
    if target.gpu and (why := illegal(plan, target)):
        raise DopingError("a candidate", f"the limits of {target.name}", why, "It is left out.")
    if isinstance(plan, LstmPlan):
        bias = np.linspace(-0.1, 0.1, 4 * plan.hidden, dtype="float32")
        arrays = lstm.pack(plan, weights["input"], weights["recurrent"], bias)
    else:
        bias = np.linspace(-0.1, 0.1, plan.outputs, dtype="float32")
        arrays = linear.pack(plan, weights["product"], bias)
    path = _place(plan.to_json(), folder)
    if path.exists():
        return arrays, path
    function = (
        lstm.prim_func(plan, arrays, _NAME)
        if isinstance(plan, LstmPlan)
        else linear.prim_func(plan, arrays, _NAME)
    )
    return arrays, _library(tvm.IRModule({_NAME: function}), plan.to_json(), target, folder)


def _place(text: str, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def _library(mod: Any, text: str, target: Target, folder: Path) -> Path:
    """The library of a module that the text tells from others; compiled unless the folder has it."""
    path = _place(text, folder)
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_name(f"{os.getpid()}-{path.name}")
    with images_of(target) as pack:
        executable = tvm.compile(mod, target=target.tvm(), tir_pipeline=pipeline_of(target))
        export(executable, mod, fresh, compiler(target), pack)
    os.replace(fresh, path)  # two workers may build the one that is in every measurement
    return path


def _trimmed(plan: Plan | LoopPlan, job: Job) -> Plan | LoopPlan:
    """Without the code for tiles of streams, which is half of what is compiled, where no call has two."""
    if isinstance(plan, LinearPlan | LoopPlan) or job.batch > 1:
        return plan
    return replace(plan, config=replace(plan.config, tile=0, tile_from=0))


@contextmanager
def _open(job: Job, target: Target) -> Iterator[Device]:
    yield Gpu() if target.gpu else Remote(job.device) if job.device else Local()


@contextmanager
def _held(path: str, how: int) -> Iterator[None]:
    if not path:
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _all_held(paths: Sequence[str]) -> Iterator[None]:
    if not paths:
        yield
        return
    with _held(paths[0], fcntl.LOCK_EX), _all_held(paths[1:]):
        yield


@contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """Hold this process to some cores meanwhile."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
