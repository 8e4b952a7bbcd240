"""Recurrent layers: two linear layers at every time step.

With p_t = W_ih x_t + b_ih and q_t = W_hh h_{t−1} + b_hh (σ the logistic function, ∘ elementwise):

    RNN    h_t = tanh(p + q), or relu
    LSTM   i, f, o = σ(p + q), g = tanh(p + q), each its quarter;  c_t = f∘c_{t−1} + i∘g;  h_t = o∘tanh(c_t)
    GRU    r, z = σ(p + q), n = tanh(p + r∘q), each its third;     h_t = (1 − z)∘n + z∘h_{t−1}

and where an LSTM is projected (`proj_size`), h_t = W_hr (o∘tanh(c_t)). So W_ih, W_hh and W_hr are linear layers whose shared
dimension is time (Martens, Ba & Johnson 2018, "Kronecker-factored
curvature approximations for recurrent neural networks"). `nn.LSTM` and its kin compute all steps in one call, so the call is
run again step by step, and the gradients at all p_t and q_t are one vector–Jacobian product with the captured gradients of
the sequence and the last states. Packed sequences are padded; their padding gives rows of zeros.

Dropout between stacked layers is left out of the second run: then the rows are those of the network without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from heatbath.layers.affine import Affine, AffineRule, batched, is_plain, trained_name
from heatbath.layers.base import Call, Rows
from heatbath.layers.replay import as_gradients, pull_back, replaying
from heatbath.operators import upload

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
KINDS: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.LSTM, nn.GRU)

State = tuple[Tensor, ...]  # (h,), or (h, c) for an LSTM


@dataclass(frozen=True)
class RecurrentRule(AffineRule):
    """`nn.RNN`, `nn.LSTM`, `nn.GRU`: stacked, bidirectional, batch first or not, batched or not, padded or packed.

    Two blocks for each layer and direction: `[1, gates·H, I + 1]` on the inputs and `[1, gates·H, H + 1]` on the states; for a
    projected LSTM a third, `[1, proj_size, H]`, on what is projected.
    """

    def supports(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.RNNBase):
            return False
        parts = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
        names = [part + suffix for suffix in _suffixes(module) for part in parts]
        return any(is_plain(module, kind, names) for kind in KINDS)

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        assert isinstance(module, nn.RNNBase)
        return tuple(affine for suffix in _suffixes(module) for affine in _maps(module, suffix))

    def outputs(self, module: nn.Module, output: Any) -> tuple[Tensor, ...]:  # Any: as in the base class
        sequence, last = output
        sequence = sequence.data if isinstance(sequence, PackedSequence) else sequence
        return (sequence, *(last if isinstance(last, tuple) else (last,)))

    def rows(self, module: nn.Module, call: Call, grad: Any) -> tuple[Rows, ...]:  # Any: as in the base class
        assert isinstance(module, nn.RNNBase)
        given, start = call.argument(0, "input"), call.argument(1, "hx")
        x, lengths = _time_first(module, given, given)
        active = None if lengths is None else upload(torch.arange(len(x))[:, None] < lengths, x.device)[..., None]
        sequence, *last = as_gradients(grad)
        sequence = None if sequence is None else _time_first(module, given, sequence)[0]
        last = [g if g is None or g.ndim == 3 else g.unsqueeze(1) for g in last]
        with replaying(None, x.device):
            outputs, traces = _run_layers(module, x, _start(module, x, start), active)
            inner = [tensor for trace in traces for tensor in (trace.p, *trace.q, *trace.r)]
            gradients = iter(pull_back(outputs, [sequence, *last], inner))
        pairs = []
        for trace in traces:
            pairs += [(trace.x, next(gradients)), (torch.stack(trace.h), torch.stack([next(gradients) for _ in trace.q]))]
            if trace.r:
                pairs.append((torch.stack(trace.m), torch.stack([next(gradients) for _ in trace.r])))
        own = [(affine, a, g) for affine, (a, g) in zip(self.maps(module), pairs, strict=True) if affine.parameters]
        return tuple(_rows(affine, a.detach(), g, active, lengths) for affine, a, g in own)


@dataclass(frozen=True)
class RecurrentCellRule(AffineRule):
    """`nn.RNNCell`, `nn.LSTMCell` and `nn.GRUCell`: each call is one step, so a loop over time is a layer used several times.

    An LSTM cell that PyTorch composes of small operations (on the CPU) makes h_t from c_t, so the gradient that arrives at c_t
    includes what flows through h_t; where one kernel computes both (on CUDA) it does not. `Call.chained` tells.
    """

    def supports(self, module: nn.Module) -> bool:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return any(is_plain(module, kind, names) for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell))

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        return _maps(module, "")

    def outputs(self, module: nn.Module, output: Any) -> Any:  # Any: as in the base class
        return tuple(y for y in output if y.requires_grad) if isinstance(module, nn.LSTMCell) else output

    def rows(self, module: nn.Module, call: Call, grad: Any) -> tuple[Rows, ...]:  # Any: as in the base class
        assert isinstance(module, nn.RNNCell | nn.LSTMCell | nn.GRUCell)
        mode = _cell_mode(module)
        x, given = batched(call.argument(0, "input").detach(), 2), call.argument(1, "hx")
        parts = given if isinstance(given, tuple | list) else (given,) * _states(mode)
        zeros = x.new_zeros(x.shape[0], module.hidden_size)
        state = tuple(zeros if part is None else batched(part.detach(), 2) for part in parts)
        with replaying(None, x.device):
            p, q = _watched(_linear(module, "ih", x)), _watched(_linear(module, "hh", state[0]))
            new = _step(mode, p, q, tuple(part.to(q.dtype) for part in state), apart=call.chained)
            gradients = pull_back(new, [None if g is None else batched(g, 2) for g in as_gradients(grad)], (p, q))
        triples = zip(self.maps(module), (x, state[0]), gradients, strict=True)
        return tuple(_rows(affine, a[None], g[None], None, None) for affine, a, g in triples if affine.parameters)


@dataclass(frozen=True, eq=False)
class _Trace:
    """One layer in one direction, run again: x `[T, B, I]`, p `[T, B, ·]`, and for each time h_{t−1} and q_t `[B, ·]`.

    Where it is projected also m_t = o∘tanh(c_t) and r_t = W_hr m_t `[B, ·]`.
    """

    x: Tensor
    p: Tensor
    h: list[Tensor]
    q: list[Tensor]
    m: list[Tensor]
    r: list[Tensor]


def _run_layers(module: nn.RNNBase, x: Tensor, start: State, active: Tensor | None) -> tuple[list[Tensor], list[_Trace]]:
    """The whole stack again: sequence and last states (as `outputs` has them), and a trace for each layer and direction."""
    traces: list[_Trace] = []
    last: list[State] = []
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        sequences = []
        for direction in range(directions):
            index = layer * directions + direction
            state = tuple(part[index] for part in start)
            sequence, state, trace = _run(module, _suffixes(module)[index], x, state, active)
            sequences.append(sequence)
            last.append(state)
            traces.append(trace)
        x = torch.cat(sequences, dim=-1)
    return [x, *(torch.stack(parts) for parts in zip(*last, strict=True))], traces


def _run(module: nn.RNNBase, suffix: str, x: Tensor, state: State, active: Tensor | None) -> tuple[Tensor, State, _Trace]:
    """One layer in one direction. Where a sequence is over its state stays, and no gradient comes back."""
    p = _watched(_linear(module, f"ih{suffix}", x))
    steps = p.unbind(0)
    times = range(len(steps))
    hidden, watched, outputs = [state[0]] * len(times), [p] * len(times), [p] * len(times)
    projected = [p] * len(times) if module.proj_size else []
    reduced = list(projected)
    for t in reversed(times) if suffix.endswith("_reverse") else times:
        hidden[t] = state[0]
        watched[t] = _watched(_linear(module, f"hh{suffix}", state[0]))
        new = _step(module.mode, steps[t], watched[t], state)
        if module.proj_size:
            projected[t] = new[0]
            reduced[t] = _linear(module, f"hr{suffix}", new[0])
            new = (reduced[t], *new[1:])
        if active is not None:
            new = tuple(torch.where(active[t], now, before) for now, before in zip(new, state, strict=True))
        outputs[t], state = new[0], new
    return torch.stack(outputs), state, _Trace(x, p, hidden, watched, projected, reduced)


def _step(mode: str, p: Tensor, q: Tensor, state: State, *, apart: bool = False) -> State:
    """One time step from the two linear layers' outputs; `apart` keeps h_t's gradient from flowing through c_t."""
    if mode == "LSTM":
        i, f, g, o = (p + q).chunk(4, dim=-1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * (c.detach() if apart else c).tanh(), c
    if mode == "GRU":
        (pr, pz, pn), (qr, qz, qn) = p.chunk(3, dim=-1), q.chunk(3, dim=-1)
        z = (pz + qz).sigmoid()
        return ((1 - z) * (pn + (pr + qr).sigmoid() * qn).tanh() + z * state[0],)
    return ((p + q).relu() if mode == "RNN_RELU" else (p + q).tanh(),)


def _maps(module: nn.Module, suffix: str) -> tuple[Affine, ...]:
    """The two linear layers of one layer and direction, or three where it is projected."""
    affines = []
    for side in ("ih", "hh", "hr") if getattr(module, "proj_size", 0) else ("ih", "hh"):
        rows, columns = module.get_parameter(f"weight_{side}{suffix}").shape
        names = (trained_name(module, f"weight_{side}{suffix}"), trained_name(module, f"bias_{side}{suffix}"))
        affines.append(Affine(*names, (1, rows, columns)))
    return tuple(affines)


def _cell_mode(module: nn.RNNCell | nn.LSTMCell | nn.GRUCell) -> str:
    """What `nn.RNNBase.mode` would say of a cell."""
    if isinstance(module, nn.RNNCell):
        return f"RNN_{module.nonlinearity.upper()}"
    return "LSTM" if isinstance(module, nn.LSTMCell) else "GRU"


def _linear(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """What comes of x through `weight_name` and `bias_name`, which get no gradient."""
    weight, bias = module.get_parameter(f"weight_{name}").detach(), getattr(module, f"bias_{name}", None)
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.detach())


def _watched(tensor: Tensor) -> Tensor:
    """The same tensor, one that gradients can be taken at."""
    return tensor if tensor.requires_grad else tensor.requires_grad_()


def _suffixes(module: nn.RNNBase) -> list[str]:
    """What the names of the parameters of each layer and direction end in."""
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]


def _time_first(module: nn.RNNBase, given: Any, values: Any) -> tuple[Tensor, Tensor | None]:  # Any: a tensor or packed
    """Inputs, or gradients of a sequence laid out like them, as `[T, B, ·]` and, where packed, the lengths `[B]`."""
    if isinstance(given, PackedSequence):
        values = values.data if isinstance(values, PackedSequence) else values
        packed = PackedSequence(values.detach(), given.batch_sizes, given.sorted_indices, given.unsorted_indices)
        return pad_packed_sequence(packed)
    if values.ndim == 2:
        return values.detach().unsqueeze(1), None
    return (values.transpose(0, 1) if module.batch_first else values).detach(), None


def _start(module: nn.RNNBase, x: Tensor, given: Any) -> State:  # Any: None, h, or (h, c)
    """The initial state, `[layers·directions, B, H]` for each part."""
    dtype = module.get_parameter("weight_hh_l0").dtype
    if given is None:
        sizes = (module.proj_size or module.hidden_size, module.hidden_size)
        count = len(_suffixes(module))
        return tuple(x.new_zeros(count, x.shape[1], size, dtype=dtype) for size in sizes[: _states(module.mode)])
    parts = given if isinstance(given, tuple) else (given,)
    return tuple((part if part.ndim == 3 else part.unsqueeze(1)).detach().to(dtype) for part in parts)


def _rows(affine: Affine, a: Tensor, g: Tensor, active: Tensor | None, lengths: Tensor | None) -> Rows:
    """Rows `[1, B, T, ·]` from `[T, B, ·]`, zero where a sequence is over."""
    a = affine.homogeneous(a)
    if active is None or lengths is None:
        return Rows(a.transpose(0, 1)[None], g.transpose(0, 1)[None])
    empty = active.shape[0] * active.shape[1] - int(lengths.sum())
    return Rows((a * active).transpose(0, 1)[None], g.transpose(0, 1)[None], empty=(empty,) if empty else ())


def _states(mode: str) -> int:
    return 2 if mode == "LSTM" else 1
