"""For as long as it lasts, every `nn.LSTM` of a model computes with `doping::lstm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tvm_doping.errors import InvalidInput, UnsupportedModel
from tvm_doping.frontend import operator

State = tuple[Tensor, Tensor]
NO_CODE = (nn.GRU, nn.RNN)
# The weights of an nn.LSTM a second time, as plain lists.
_KEPT = ("_flat_weights", "_flat_weight_refs")


@contextmanager
def swapped(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode with its LSTMs' forward replaced; everything is as it was afterwards.

    Raises UnsupportedModel, naming module and path, for what cannot be imported: recurrent modules other than nn.LSTM, a
    proj_size, and weights that are not float32 on the CPU.
    """
    check_modules(model)
    modules = dict(model.named_modules())
    training = {module: module.training for module in modules.values()}
    lstms = {
        path: module
        for path, module in modules.items()
        if isinstance(module, nn.LSTM)
        and type(module).forward is nn.LSTM.forward
        and "forward" not in vars(module)
    }
    before = {module: {key: vars(module).get(key) for key in _KEPT} for module in lstms.values()}
    try:
        model.eval()
        for path, module in lstms.items():
            # a hook that reads these while torch.export traces makes constants that nothing uses, and export fails
            vars(module).update(forward=_forward(module, path or "lstm"), **dict.fromkeys(_KEPT, ()))
        yield
    finally:
        for module, kept in before.items():
            vars(module).update(kept)
            vars(module).pop("forward", None)
        for module, mode in training.items():
            module.training = mode


def describe(path: str, module: object) -> str:
    """A module as errors name it."""
    return f"module {path or '(the model itself)'} ({type(module).__name__})"


def check_modules(model: nn.Module) -> None:
    """Raise UnsupportedModel, naming module and path, for what cannot be imported."""
    for path, module in model.named_modules():
        _check(path, module)


def _check(path: str, module: nn.Module) -> None:
    if isinstance(module, NO_CODE):
        raise UnsupportedModel(
            describe(path, module),
            "nn.LSTM as the recurrent layer",
            type(module).__name__,
            "Use an nn.LSTM in its place.",
        )
    if isinstance(module, nn.LSTM) and module.proj_size:
        raise UnsupportedModel(
            describe(path, module),
            "proj_size = 0",
            f"proj_size = {module.proj_size}",
            "Put an nn.Linear after the LSTM.",
        )
    for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        wrong_type = value.is_floating_point() and value.dtype != torch.float32
        if wrong_type or value.device.type != "cpu":
            raise UnsupportedModel(
                f"{name} of {describe(path, module)}",
                "float32 on the CPU",
                f"{value.dtype} on {value.device}",
                "Convert the model: model.float().cpu().",
            )


def _forward(module: nn.LSTM, path: str) -> Callable[..., tuple[Tensor, State]]:
    """nn.LSTM.forward in evaluation mode, one doping::lstm for each layer and direction."""
    calls = 0

    def forward(x: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        nonlocal calls
        if isinstance(x, PackedSequence):
            raise UnsupportedModel(
                describe(path, module),
                "a padded tensor as input",
                "a PackedSequence",
                "Pad the sequences; run them one by one if exact.",
            )
        _check_sizes(module, path, x, hx)
        calls += 1
        prefix = path if calls == 1 else f"{path}.call{calls}"
        unbatched = x.dim() == 2
        if unbatched:
            x, hx = x.unsqueeze(1), hx and (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        elif module.batch_first:
            x = x.transpose(0, 1)
        y, h, c = _layers(module, prefix, x, hx)
        if unbatched:
            return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return y.transpose(0, 1) if module.batch_first else y, (h, c)

    return forward


def _check_sizes(module: nn.LSTM, path: str, x: Tensor, hx: State | None) -> None:
    """InvalidInput for features or a state of another size, where sizes are numbers: torch.export's own error speaks of symbols."""
    layers = module.num_layers * (2 if module.bidirectional else 1)
    wanted = [("an input", x, -1, module.input_size, "input_size")]
    for key, state in zip("hc", hx or (), strict=False):
        wanted += [
            (f"a state {key}", state, -1, module.hidden_size, "hidden_size"),
            (f"a state {key}", state, 0, layers, "layers"),
        ]
    for what, array, axis, size, name in wanted:
        got = array.shape[axis]
        if isinstance(got, int) and got != size:
            raise InvalidInput(
                f"{what} of {describe(path, module)}",
                f"{name} {size} in axis {axis}",
                f"{got}, shape {tuple(array.shape)}",
                "Correct the example, or the model.",
            )


def _layers(module: nn.LSTM, prefix: str, x: Tensor, hx: State | None) -> tuple[Tensor, Tensor, Tensor]:
    """All layers over x (T, N, I), hx of two (L * directions, N, H)."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    hs: list[Tensor] = []
    cs: list[Tensor] = []
    for layer in range(module.num_layers):
        outputs: list[Any] = []
        for suffix in suffixes:
            weights = [
                _weight(module, f"{name}_l{layer}{suffix}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            if hx is None:
                h0 = c0 = x.new_zeros(x.shape[1], module.hidden_size)
            else:
                h0, c0 = hx[0][len(hs)], hx[1][len(hs)]
            y, h, c = operator.lstm(x, h0, c0, *weights, bool(suffix), f"{prefix}.l{layer}{suffix}")
            outputs.append(y)
            hs.append(h)
            cs.append(c)
        x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
    return x, torch.stack(hs), torch.stack(cs)


def _weight(module: nn.LSTM, name: str) -> Tensor | None:
    return getattr(module, name) if module.bias or not name.startswith("bias") else None
