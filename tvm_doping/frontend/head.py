"""A model whose first output, its logits, is replaced by what is wanted of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tvm_doping.errors import InvalidInput
from tvm_doping.frontend.swap import describe
from tvm_doping.heads import Head


@contextmanager
def headed(model: nn.Module, head: Head | None) -> Iterator[None]:
    """For as long as it lasts, the model returns the head of its first output (..., V) in that output's place.

    A hook, not a module around it: the paths of its modules, which layers are named by, and its forward stay as they are.
    Raises InvalidInput, when the model is called, where its first output has no V logits, or fewer than top_k needs.
    """
    if head is None:
        yield
        return
    handle = model.register_forward_hook(lambda _, __, output: _replaced(model, output, head))
    try:
        yield
    finally:
        handle.remove()


def _replaced(model: nn.Module, output: Any, head: Head) -> Any:
    several = isinstance(output, tuple | list) and len(output) > 0
    first, rest = (output[0], tuple(output[1:])) if several else (output, ())
    if not isinstance(first, Tensor) or first.dim() < 1 or first.dtype != torch.float32:
        got = f"{first.dtype} {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise _unfit(model, head, "float32 logits (..., V)", got)
    if head.k > first.shape[-1]:
        raise _unfit(model, head, f"at least {head.k} logits", f"{first.shape[-1]}")
    new = _apply(head, first)
    return (new, *rest) if several else new


def _apply(head: Head, logits: Tensor) -> Any:
    if head.kind == "argmax":
        return logits.argmax(-1)
    if head.kind == "top_k":
        return tuple(logits.topk(head.k, dim=-1))
    function = torch.log_softmax if head.kind == "log_softmax" else torch.softmax
    return function(logits, -1)


def _unfit(model: nn.Module, head: Head, needs: str, got: str) -> InvalidInput:
    return InvalidInput(
        f"head {str(head)!r} of {describe('', model)}",
        f"{needs} as its first output",
        got,
        "Leave the head out, or return logits first.",
    )
