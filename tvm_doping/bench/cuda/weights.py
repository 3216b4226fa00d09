"""The weights of doped layers as a kit carries them: factors and S, a twentieth of what the dense ones that baselines run take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Layers = dict[str, np.ndarray]  # "weight_ih_l0" -> (4H, I), as nn.LSTM names them


def save(path: Path, lstm: Any) -> None:
    """Write a doped nn.LSTM's factors, S and biases."""
    from tvm_doping.models.doping import doped_weights, original

    arrays = {name: value.detach().numpy() for name, value in lstm.named_parameters() if "bias" in name}
    for _, module, name, weight in doped_weights(lstm):
        doped: Any = weight.structure(original(module, name))
        S = doped.S.tocoo()
        arrays |= {f"{name}/B": doped.base.B, f"{name}/C": doped.base.C, f"{name}/values": S.data}
        arrays |= {f"{name}/rows": S.row.astype("int32"), f"{name}/columns": S.col.astype("int32")}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> Layers:
    """The dense weights B (x) C + S, and the biases."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    layers = {name: array for name, array in arrays.items() if "/" not in name}
    for name in {name.partition("/")[0] for name in arrays if "/" in name}:
        dense = np.kron(arrays[f"{name}/B"], arrays[f"{name}/C"])
        dense[arrays[f"{name}/rows"], arrays[f"{name}/columns"]] += arrays[f"{name}/values"]
        layers[name] = dense
    return layers
