"""dope(): put doped weights in place of the weights of any `nn.LSTM`, `nn.Linear` and `nn.Embedding`, and
take them away again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tvm_doping.errors import InvalidInput, UnsupportedModel
from tvm_doping.models.factors import nearest_start, sizes_of, start
from tvm_doping.models.parametrizations import WEIGHTS, DopedWeight
from tvm_doping.sparsity import PATTERNS

Model = TypeVar("Model", bound=nn.Module)
StructureName = Literal["kronecker", "low_rank", "hybrid", "zero"]
_ONE_WEIGHT = (nn.Linear, nn.Embedding)  # modules whose one matrix is called "weight"
_SMALLER = "Lower compression, or leave the module out through modules=."


def dope(
    model: Model,
    *,
    structure: StructureName = "kronecker",
    compression: float = 20.0,
    pattern: str = "unstructured",
    modules: Sequence[str] | str | None = None,
    cmr: float = 0.0,
    init: Literal["random", "nearest"] = "random",
    structured_scale: float = 0.2,
    factors: tuple[int, int] | None = None,
    rank: int | None = None,
    sparse: bool = True,
    seed: int = 0,
) -> Model:
    """Dope a model in place and return it: each chosen weight W (m, n) becomes `structured + S * mask`.

    structure         what the structured part is; "zero" is pruning alone;
    compression       m*n / (parameters of the factors + nonzeros of S), for every weight by itself;
    pattern           where S may have entries: a key of `sparsity.PATTERNS`;
    modules           globs over the paths of modules ("encoder.*") or weights ("lstm.weight_hh_*"); None:
                      every `nn.LSTM` and `nn.Linear` (an `nn.Embedding` only where it is named);
    cmr               co-matrix dropout: the rate for both parts (see `models.cmr.set_cmr`);
    init              "random": S starts as the weight was and the factors as noise; "nearest": factors and S come
                      nearest to the weight together (`models.nearest`);
    structured_scale  with "random": standard deviation of the structured part, as a share of the weight's
                      own;
    factors           B's shape (m1, n1) for "kronecker", (k, r) for "hybrid"; None chooses: with "random" for speed, with
                      "nearest" for the least error;
    rank              r for "low_rank"; None chooses likewise;
    sparse            False leaves S out: the structured part alone has the whole budget;
    seed              of the factors' noise.

    The masks start at their final density with the largest entries of S, so the compression holds at once; an
    `Annealing` opens them first and closes them while training. Raises InvalidInput for an impossible
    compression, factors that do not divide a weight, unknown names, weights that are doped already, and
    shared ones of which `modules` names some only. A weight that an nn.Embedding and an nn.Linear share (tied) is
    doped once, and stays shared.
    """
    _check(structure, compression, pattern, cmr, structured_scale, init)
    random = np.random.default_rng(seed)
    planned = []  # all of them before the first is doped: a refused one leaves the model as it was
    for path, module, name in chosen_weights(model, modules):
        W = getattr(module, name).detach().cpu().numpy().astype(np.float32)
        budget = budget_of(W.size, compression)
        sizes = _sizes(structure, path, W, compression, sparse, factors, rank)
        if init == "nearest":
            search = factors is None and rank is None
            fit = nearest_start(structure, W, sizes, budget, sparse=sparse, pattern=pattern, search=search)
            base, mask = fit.base, torch.from_numpy(np.ascontiguousarray(fit.mask))
        else:
            base, mask = start(structure, W, sizes, structured_scale if sparse else 1.0, random), None
        nonzeros = budget - base.parameters
        if nonzeros < int(sparse):
            raise InvalidInput(
                f"compression of {path}",
                f"at most {W.size / (base.parameters + bool(sparse)):.4g}, as the {structure} factors of "
                f"{W.shape[0]}x{W.shape[1]} alone have {base.parameters} parameters",
                f"{compression:g}",
                f"Choose smaller factors or another structure. {_SMALLER}",
            )
        weight = WEIGHTS[structure](W.shape, base.arrays(), nonzeros if sparse else 0, pattern)
        planned.append((module, name, weight, mask))
    for module, name, weight, mask in planned:
        _register(model, module, name, weight, keep=mask is None)
        weight.cmr_structured = weight.cmr_sparse = cmr
        if mask is None:
            close_mask(weight, original(module, name))
        else:
            weight.mask.copy_(mask)
    return model


def undope(model: Model) -> Model:
    """Fold every doped weight to a plain dense parameter of the same value, in place; returns the model."""
    was_training = model.training
    model.eval()  # the value without CMR
    folded: set[DopedWeight] = set()
    for _, module, name, weight in list(doped_weights(model, shared=True)):
        # a second module of a tied weight takes the parameter that holds the value already
        parametrize.remove_parametrizations(module, name, leave_parametrized=weight not in folded)
        folded.add(weight)
        if isinstance(module, nn.LSTM) and not parametrize.is_parametrized(module):
            hook = module.__dict__.pop("_doping_hook", None)
            if hook is not None:
                hook.remove()
            module._init_flat_weights()
    return model.train(was_training)


def extract(model: nn.Module) -> dict[str, Any]:
    """The doped weights of a model as `structures.Doped`, by parameter name ("lstm.weight_hh_l0")."""
    return {
        path: weight.structure(original(module, name)) for path, module, name, weight in doped_weights(model)
    }


def doped_weights(
    model: nn.Module, *, shared: bool = False
) -> Iterator[tuple[str, nn.Module, str, DopedWeight]]:
    """Every doped weight: (parameter name, its module, its name there, the parametrization).

    One that modules share (tied weights) comes once, by its first name; with `shared` by each of its names.
    """
    seen: set[DopedWeight] = set()
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            for name, chain in chains.items():
                if isinstance(chain[0], DopedWeight) and (shared or chain[0] not in seen):
                    seen.add(chain[0])
                    yield (f"{prefix}.{name}" if prefix else name), module, name, chain[0]


def put(
    model: nn.Module,
    doped: dict[str, Any],
    patterns: dict[str, str] | None = None,
    nonzeros: dict[str, int] | None = None,
) -> None:
    """Put known structures (`structures.Doped`, by parameter name) into an undoped model: the inverse of
    `extract`.

    nonzeros: how many entries S is to have when annealing is over; as many as it has, if left out.
    """
    for path, structure in doped.items():
        prefix, _, name = path.rpartition(".")
        module = model.get_submodule(prefix)
        base, S = structure.base, structure.S
        weight = WEIGHTS[base.kind](
            base.shape,
            base.arrays(),
            (nonzeros or {}).get(path, int(S.nnz)),
            (patterns or {}).get(path, "unstructured"),
        )
        dense = S.toarray()
        _register(model, module, name, weight, keep=False)
        with torch.no_grad():
            original(module, name).copy_(torch.from_numpy(dense))
            weight.mask.copy_(torch.from_numpy(dense != 0))


def original(module: nn.Module, name: str) -> Tensor:
    """The trained S (dense) behind the doped weight `name` of a module."""
    chains: Any = module.parametrizations
    S: Tensor = chains[name].original
    return S


def budget_of(size: int, compression: float) -> int:
    """Parameters that a weight of so many entries may have: those of its structured part, and the nonzeros of S."""
    return int(size / compression)


def close_masks(model: nn.Module) -> None:
    """Let S of every doped weight keep its planned number of entries, the largest: ends an annealing at once."""
    for _, module, name, weight in doped_weights(model):
        close_mask(weight, original(module, name))


def close_mask(weight: DopedWeight, S: Tensor) -> None:
    """Let the mask keep the weight's final number of entries, those of S with the largest magnitudes."""
    shape = tuple(weight.mask.shape)
    if weight.nonzeros == 0:
        weight.mask.zero_()
        return
    scores = S.detach().abs().cpu().numpy()
    mask = PATTERNS[weight.pattern](scores, weight.nonzeros / (shape[0] * shape[1]))
    weight.mask.copy_(torch.from_numpy(np.ascontiguousarray(mask)))


def _sizes(
    structure: str,
    path: str,
    W: np.ndarray,
    compression: float,
    sparse: bool,
    factors: tuple[int, int] | None,
    rank: int | None,
) -> dict[str, Any]:
    """What `sizes_of` gives; a weight too small for its budget is refused by its name and shape."""
    what = f"{path}, of shape {W.shape[0]}x{W.shape[1]}"
    budget = budget_of(W.size, compression)
    if budget < 1:
        raise InvalidInput(what, f"a compression of at most {W.size}", f"{compression:g}", _SMALLER)
    try:
        m, n = W.shape
        return sizes_of(structure, path, (m, n), budget, sparse, factors, rank)
    except InvalidInput as error:
        if factors is not None or rank is not None:
            raise  # about these arguments
        got = f"{error.got} (compression {compression:g})"
        raise InvalidInput(what, error.needs, got, _SMALLER) from error


def _check(structure: str, compression: float, pattern: str, cmr: float, scale: float, init: str) -> None:
    """Raise InvalidInput for arguments that no weight could satisfy."""
    for what, value, table in (("structure", structure, WEIGHTS), ("pattern", pattern, PATTERNS)):
        if value not in table:
            raise InvalidInput(what, f"one of {', '.join(table)}", repr(value), "Choose one of these names.")
    if init not in ("random", "nearest"):
        raise InvalidInput("init", "random or nearest", repr(init), "Choose one of these names.")
    if not (math.isfinite(compression) and compression > 1):
        raise InvalidInput(
            "compression", "a number above 1", f"{compression}", "For example 20: twenty times fewer."
        )
    if not 0 <= cmr < 1:
        raise InvalidInput(
            "cmr", "a probability in [0, 1)", f"{cmr}", "For example 0.1, or 0 to switch it off."
        )
    if not scale >= 0:
        raise InvalidInput("structured_scale", "a number >= 0", f"{scale}", "For example 0.2.")


def chosen_weights(model: nn.Module, modules: Sequence[str] | str | None) -> list[tuple[str, nn.Module, str]]:
    """(parameter name, module, name) of every weight that the globs choose; no glob may be useless."""
    globs = [modules] if isinstance(modules, str) else None if modules is None else list(modules)
    unused, rows = set(globs or ()), []
    for prefix, module in model.named_modules():
        for name in _weight_names(module):
            path = f"{prefix}.{name}" if prefix else name
            hits = {glob for glob in globs or () if fnmatchcase(prefix, glob) or fnmatchcase(path, glob)}
            unused -= hits
            if hits or (globs is None and not isinstance(module, nn.Embedding)):
                rows.append((path, module, name))
    available = [
        path for prefix, module in model.named_modules() for path in [prefix] if _weight_names(module)
    ]
    if unused or not rows:
        raise InvalidInput(
            "modules",
            "names of nn.LSTM, nn.Linear or nn.Embedding modules, or of their weights, in the model",
            ", ".join(sorted(unused)) or f"a {type(model).__name__} that has none",
            f"The model has: {', '.join(name or '(itself)' for name in available) or 'none of them'}.",
        )
    chosen = {path for path, _, _ in rows}
    for path, module, name in rows:
        _check_weight(model, path, module, name, chosen)
    once = {id(getattr(module, name)): (path, module, name) for path, module, name in reversed(rows)}
    return [row for row in rows if once[id(getattr(row[1], row[2]))] == row]


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.LSTM):
        return [name for name in module._flat_weights_names if name.startswith("weight_")]
    # exact type: torch subclasses Linear for modules that read .weight without calling forward
    plain = type(module) in _ONE_WEIGHT
    return ["weight"] if plain or _is_parametrized(module) else []


def _is_parametrized(module: nn.Module) -> bool:
    return isinstance(module, _ONE_WEIGHT) and parametrize.is_parametrized(module)


def _check_weight(model: nn.Module, path: str, module: nn.Module, name: str, chosen: set[str]) -> None:
    """Raise where a weight is doped already, shared with another one, or of an LSTM with projections."""
    if isinstance(module, nn.LSTM) and module.proj_size:
        raise UnsupportedModel(
            path,
            "an nn.LSTM without projections",
            f"proj_size={module.proj_size}",
            "Leave it out with modules=...",
        )
    if isinstance(module, nn.Embedding):
        _check_embedding(path, module)
    if parametrize.is_parametrized(module, name):
        raise InvalidInput(
            path, "a plain weight", "a parametrized one", "Call undope(model) first, or leave it out."
        )
    W = getattr(module, name)
    owners = _owners(model, W)
    tied = all(isinstance(other, _ONE_WEIGHT) for _, other, _ in owners)
    if len(owners) > 1 and not (tied and {owner for owner, _, _ in owners} <= chosen):
        raise InvalidInput(
            path,
            "a weight of its own, or one tied between nn.Embedding and nn.Linear modules that are all named",
            f"one shared by {', '.join(owner for owner, _, _ in owners)}",
            "Name all of them in modules=, untie it, or leave it out.",
        )
    if W.dtype != torch.float32:
        raise InvalidInput(path, "float32", str(W.dtype).removeprefix("torch."), "Call model.float() first.")


def _check_embedding(path: str, module: nn.Embedding) -> None:
    """Raise for options under which the table itself is changed, or its gradient is not that of the look-ups."""
    for option, off in (
        ("max_norm", None),
        ("padding_idx", None),
        ("sparse", False),
        ("scale_grad_by_freq", False),
    ):
        if getattr(module, option) != off:
            raise UnsupportedModel(
                path,
                f"an nn.Embedding with {option}={off}",
                f"{option}={getattr(module, option)}",
                "Leave it out with modules=..., or change the option.",
            )


def _owners(model: nn.Module, W: Tensor) -> list[tuple[str, nn.Module, str]]:
    """(parameter name, module, name there) of every place in a model where the parameter W stands."""
    return [
        (f"{prefix}.{key}" if prefix else key, module, key)
        for prefix, module in model.named_modules()
        for key, value in module.named_parameters(recurse=False)
        if value is W
    ]


def _register(model: nn.Module, module: nn.Module, name: str, weight: DopedWeight, *, keep: bool) -> None:
    """Put the parametrization on, wherever the weight stands; keep: S is the weight as it was, else what the structured
    part leaves."""
    W = getattr(module, name)
    weight.to(W.device)
    others = [owner for owner in _owners(model, W) if owner[1] is not module]
    S = W.detach().clone() if keep else weight.right_inverse(W.detach()).clone()
    weight.train(module.training)
    parametrize.register_parametrization(module, name, weight)
    chains: Any = module.parametrizations
    for _, other, key in others:
        # registered a second time the parameter would lose the structured part twice: the chain itself is shared
        parametrize.register_parametrization(other, key, weight)
        parallel: Any = other.parametrizations
        parallel[key] = chains[name]
    with torch.no_grad():
        original(module, name).copy_(S)
    if isinstance(module, nn.LSTM) and "_doping_hook" not in module.__dict__:
        module.__dict__["_doping_hook"] = module.register_forward_hook(_forget_weights)


def _forget_weights(module: nn.Module, args: Any, output: Any) -> None:
    """Drop the computed weights that nn.LSTM keeps after a call.

    They belong to that call's autograd graph: kept, they hold its memory, and copy.deepcopy refuses the
    module. nn.LSTM reads the weights anew when a reference no longer answers.
    """
    state: Any = module
    state._flat_weights = [None if W is None else W.detach() for W in state._flat_weights]
    state._flat_weight_refs = [_gone] * len(state._flat_weights)


def _gone() -> None:
    """A reference whose tensor is gone."""
