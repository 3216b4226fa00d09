"""What takes turns on the GPU: the compiled models, PyTorch's LSTM over cuDNN in several ways, FlashRNN, and the dense floor.

An engine is a call without arguments that does T steps of N streams from a fixed input; made by a function of (torch, lstm, x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_doping.bench.cuda.weights import Layers

Call = Callable[[], Any]


def lstm_of(torch: Any, layers: Layers, H: int) -> Any:
    """The dense nn.LSTM on the GPU."""
    return dense_lstm(torch, layers, H).cuda().requires_grad_(False)


def dense_lstm(torch: Any, layers: Layers, H: int) -> Any:
    """The dense nn.LSTM of a kit's weights."""
    lstm = torch.nn.LSTM(H, H, sum(name.startswith("weight_ih_l") for name in layers))
    lstm.load_state_dict({name: torch.from_numpy(array) for name, array in layers.items()})
    return lstm.eval()


def tf32(torch: Any, on: bool) -> None:
    """Whether products of fp32 matrices may round their factors to 10 bits."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on


def doped(session: Any, x: Any) -> Call:
    """A session's own calls: a replayed step at T = 1."""
    if x.shape[0] == 1:
        first = x[0].contiguous()
        return lambda: session.step(first)
    return lambda: session.run(x)


def cudnn(torch: Any, lstm: Any, x: Any) -> Call:
    """nn.LSTM in fp32, without TF32."""
    return lambda: _in(torch, False, lstm, x)


def cudnn_tf32(torch: Any, lstm: Any, x: Any) -> Call:
    """nn.LSTM in TF32."""
    return lambda: _in(torch, True, lstm, x)


def cudnn_fp16(torch: Any, lstm: Any, x: Any) -> Call:
    """nn.LSTM in fp16."""
    half, z = _copy(torch, lstm).half(), x.half()
    half.flatten_parameters()
    return lambda: half(z)


def cudnn_graph(torch: Any, lstm: Any, x: Any) -> Call:
    """nn.LSTM in fp32 as a CUDA graph: without what PyTorch does on the CPU at each call."""
    return _graph(torch, cudnn(torch, lstm, x))


def compiled(torch: Any, lstm: Any, x: Any) -> Call:
    """torch.compile of the nn.LSTM, fp32."""
    made = torch.compile(lstm)

    def call() -> Any:
        tf32(torch, False)
        return made(x)

    call()
    return call


def gemv_floor(torch: Any, lstm: Any, x: Any) -> Call:
    """T times cuBLAS's product of [x, h] with all gate weights of each layer, fp32, as a CUDA graph: no gates, no waiting."""
    steps, batch, H = x.shape
    names = [name.removeprefix("weight_ih_") for name in lstm.state_dict() if name.startswith("weight_ih_")]
    weights = [
        torch.cat([getattr(lstm, f"weight_ih_{n}"), getattr(lstm, f"weight_hh_{n}")], 1).t().contiguous()
        for n in names
    ]
    z = torch.zeros((batch, weights[0].shape[0]), device=x.device)
    outs = [torch.empty((batch, 4 * H), device=x.device) for _ in weights]

    def call() -> None:
        tf32(torch, False)
        for _ in range(steps):
            for weight, out in zip(weights, outs, strict=True):
                torch.mm(z, weight, out=out)

    return _graph(torch, call)


def flashrnn(torch: Any, lstm: Any, x: Any) -> Call:
    """FlashRNN's recurrence of each layer, with the inputs' products by cuBLAS; fp16, one head."""
    from flashrnn import flashrnn as run  # type: ignore[import-not-found]

    steps, batch, H = x.shape
    z = x.half()
    layers = [
        tuple(
            getattr(lstm, f"{kind}_l{n}").half() for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        for n in range(lstm.num_layers)
    ]

    def call() -> Any:
        y = z.transpose(0, 1)
        for w, r, b, c in layers:
            wx = (y @ w.t()).reshape(batch, steps, 4, 1, H)
            states, _ = run(wx, r.reshape(4, 1, H, H), (b + c).reshape(4, 1, H), function="lstm")
            y = states[0].reshape(batch, steps, H)
        return y

    call()
    return call


BASELINES: dict[str, Callable[[Any, Any, Any], Call]] = {
    "cudnn": cudnn,
    "cudnn-tf32": cudnn_tf32,
    "cudnn-fp16": cudnn_fp16,
    "cudnn-graph": cudnn_graph,
    "torch-compile": compiled,
    "gemv-floor": gemv_floor,
    "flashrnn": flashrnn,
}


def _in(torch: Any, on: bool, lstm: Any, x: Any) -> Any:
    tf32(torch, on)
    return lstm(x)


def _copy(torch: Any, lstm: Any) -> Any:
    copy = torch.nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers)
    copy.load_state_dict(lstm.state_dict())
    return copy.eval().to(next(lstm.parameters()).device).requires_grad_(False)


def _graph(torch: Any, call: Call) -> Call:
    """A call as a CUDA graph, after PyTorch's manual: warmed on another stream first."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay
