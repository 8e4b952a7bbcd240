"""Factors captured inside compiled graphs are those captured without them (trap 1): aot_eager and the default back end."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, EmpiricalFisher, ExactFisher, Reduction
from heatbath.curvature.capture.compiled import arrive, begin, can_watch, watch
from heatbath.optim import KFAC, Policy
from tests.curvature.truth import fill
from tests.laws import noise

POLICY = Policy(factor_every=3, refresh_every=3, patience=0)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, about its parts
        yield
    torch._dynamo.reset()


class Reused(nn.Module):
    """A layer used twice, a normalization, an embedding, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(5, 4), nn.Conv1d(4, 4, 3, padding=1)
        self.middle, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.conv(self.table(tokens).transpose(1, 2)).transpose(1, 2).tanh()
        return self.last(self.norm(self.middle(self.middle(h).tanh())).mean(1))


def deep(layers: int = 10) -> nn.Sequential:
    return nn.Sequential(*[part for _ in range(layers) for part in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 3))


TOKENS = [torch.randint(5, (6, 7), generator=torch.Generator().manual_seed(i)) for i in range(5)]
POINTS = [noise(6, 4, seed=i) for i in range(5)]
Wrap = Callable[[nn.Module], nn.Module]


def run(model: nn.Module, data: list[Tensor], wrap: Wrap, policy: Policy = POLICY) -> tuple[list, list[Tensor]]:
    """Factors before each step and the parameters at the end."""
    model = fill(copy.deepcopy(model))
    optimizer = KFAC(model, lr=0.05, policy=policy)
    wrapped = wrap(model)
    found = []
    for x in data:
        optimizer.zero_grad()
        outputs = optimizer.observe(wrapped(x))
        target = torch.arange(len(x)) % 3
        F.cross_entropy(outputs, target, reduction="sum" if policy.reduction is Reduction.SUM else "mean").backward()
        found.append([(s.sums.left, s.sums.right, [dict(vars(c)) for c in s.sums.counts]) for s in optimizer.stacks])
        found[-1] = [(None if a is None else a.clone(), None if b is None else b.clone(), c) for a, b, c in found[-1]]
        terms = dict(optimizer.capture.terms)
        found[-1].append(sorted(terms.values()))
        optimizer.step()
    return found, [p.detach() for p in model.parameters()]


def agree(a, b) -> None:
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            agree(x, y)
    elif isinstance(a, dict) and "examples" in a:  # pass numbers may start elsewhere
        assert sorted(a["examples"].values()) == sorted(b["examples"].values())
        assert {k: v for k, v in a.items() if k != "examples"} == {k: v for k, v in b.items() if k != "examples"}
    else:
        assert a == b


def compiled(backend: str, **options) -> Wrap:
    return lambda model: torch.compile(model, backend=backend, **options)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("model,data", [(Reused(), TOKENS), (deep(), POINTS)], ids=["reused", "deep"])
def test_trap_1_factors_of_a_compiled_model_are_those_of_the_model(backend, model, data):
    plain, compiled_ = run(model, data, lambda m: m), run(model, data, compiled(backend))
    assert [any(c["rows"] for *_, cs in step[:-1] for c in cs) for step in plain[0]] == [True, False, False, True, False]
    agree(plain, compiled_)


@pytest.mark.slow
def test_the_whole_model_is_one_graph_with_and_without_capture():
    """`fullgraph=True` refuses any break; two graphs, one for the steps that capture, one for the rest.

    PyTorch compiles the hooks of the outermost module apart, so on capturing steps there are two tiny graphs more.
    """
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    plain, one = (
        run(Reused(), TOKENS, lambda m: m),
        run(Reused(), TOKENS, lambda m: torch.compile(m, backend=counter, fullgraph=True)),
    )
    agree(plain, one)
    assert counter.frame_count == 4


@pytest.mark.slow
def test_steps_that_capture_nothing_run_a_graph_without_a_trace_of_capture():
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    run(deep(2), POINTS, lambda m: torch.compile(m, backend=counter))
    watching, bare = [sum("heatbath" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]
    assert watching > 0
    assert bare == 0


@pytest.mark.slow
def test_layers_compiled_one_by_one_share_their_code():
    """Regional compilation of more layers than the compiler's limit on recompilations of one function."""

    def wrap(model: nn.Module) -> nn.Module:
        for layer in model:
            layer.compile(backend="aot_eager")
        return model

    variants = 8  # first, inner and last Linear, and Tanh, each watched and unwatched; torch 2.15 counts them together
    with torch._dynamo.config.patch(recompile_limit=variants, fail_on_recompile_limit_hit=True):
        agree(run(deep(12), POINTS, lambda m: m), run(deep(12), POINTS, wrap))


@pytest.mark.slow
@pytest.mark.parametrize("fisher", [EmpiricalFisher(), ExactFisher(Categorical())], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("reduction", [None, Reduction.SUM], ids=str)
def test_observed_outputs_and_sums_of_a_compiled_model(fisher, reduction):
    policy = Policy(factor_every=3, refresh_every=3, patience=0, fisher=fisher, reduction=reduction)
    agree(run(deep(2), POINTS, lambda m: m, policy), run(deep(2), POINTS, compiled("aot_eager"), policy))


@pytest.mark.slow
def test_attention_breaks_the_graph_and_is_captured_all_the_same():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None] * torch.ones(3, 1, dtype=x.dtype)
            return self.last(self.attend(x, x, x, need_weights=False)[0].mean(1))

    agree(run(Attention(), POINTS, lambda m: m), run(Attention(), POINTS, compiled("aot_eager")))


def test_what_can_be_watched_inside_a_graph():
    """Tensors in, one tensor out; the arguments of a pass go through an operator, the first that has a batch."""
    x, table = noise(2, 3).requires_grad_(), torch.tensor(1.0)
    assert can_watch((x, x), {}, x)
    assert not can_watch((x, None), {}, x)
    assert not can_watch((x,), {"mask": x}, x)
    assert not can_watch((x,), {}, (x, x))
    args, kwargs = begin((None, table, x), {"scale": x}, 10**9)
    assert args[0] is None
    assert args[1] is table
    assert torch.equal(args[2], x)
    assert args[2] is not x
    assert kwargs["scale"] is x
    args, kwargs = begin((None,), {"flag": True, "input": x}, 10**9)
    assert torch.equal(kwargs["input"], x)
    assert kwargs["input"] is not x
    assert begin((None,), {"flag": True}, 10**9) is None


def test_outputs_without_a_gradient_are_not_watched():
    x = noise(2, 3)
    assert watch(x, [x], torch.tensor(0), 10**9) is None
    assert arrive(x, 10**9) is None
    x.requires_grad_()
    assert torch.equal(watch(x, [x], torch.tensor(0), 10**9), x)
    assert torch.equal(arrive(x, 10**9), x)


def test_a_capture_that_is_gone_is_not_missed():
    """Operators look their capture up by number; outputs and gradients pass through where there is none."""
    x, y = noise(2, 3).requires_grad_(), noise(2, 3)
    out, note = torch.ops.heatbath.watch(x, [y], torch.tensor(0), 10**9)
    assert torch.equal(out, x)
    out.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
    assert torch.equal(torch.ops.heatbath.begin(y, 10**9), y)
    x.grad = None
    torch.ops.heatbath.arrive(x, 10**9)[0].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert note.tolist() == [0, 10**9, 0, 0]


@pytest.mark.parametrize("op,args", [("begin", (0,)), ("arrive", (0,)), ("watch", ([noise(2, 3)], torch.tensor(0), 0))])
def test_operators_keep_torchs_rules_for_operators(op, args):
    """Fakes agree with the real thing, gradients are registered, nothing is aliased."""
    x = noise(2, 3).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.heatbath, op).default, (x, *args))


def counted(optimizer: KFAC) -> int:
    return sum(c.rows for stack in optimizer.stacks for c in stack.sums.counts)


@pytest.mark.parametrize("built_first", [True, False])
def test_the_second_model_of_an_architecture_has_curvature(built_first):
    """Dynamo would use the graph of the first, which was made without hooks, as it does by default."""
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    early = KFAC(deep(2).double(), policy=POLICY) if built_first else None
    plain, x = torch.compile(deep(2).double(), backend="aot_eager"), POINTS[0]
    plain(x).sum().backward()
    for _ in range(2):  # and the third
        model = fill(deep(2))
        optimizer = KFAC(model, policy=POLICY)
        torch.compile(model, backend="aot_eager")(x).sum().backward()
        assert counted(optimizer) == 3 * len(x)
    plain(x).sum().backward()
    assert counted(optimizer) == 3 * len(x)
    assert early is None or counted(early) == 0


def test_an_optimizer_built_after_the_first_compiled_call_has_curvature():
    model, x = fill(deep(2)), POINTS[0]
    run = torch.compile(model, backend="aot_eager")
    run(x).sum().backward()
    optimizer = KFAC(model, policy=POLICY)
    run(x).sum().backward()
    assert counted(optimizer) == 3 * len(x)


def test_a_graph_without_hooks_is_named_where_it_is_used_all_the_same():
    model, x = fill(deep(2)), POINTS[0]
    optimizer = KFAC(model, policy=POLICY)
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    try:
        torch.compile(deep(2).double(), backend="aot_eager")(x)
        torch.compile(model, backend="aot_eager")(x).sum().backward()
    finally:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
    with pytest.warns(
        UserWarning, match=r"no call of the model reached.*skip_nnmodule_hook_guards.*There is no curvature yet, so none"
    ):
        optimizer.step()
