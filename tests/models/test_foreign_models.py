"""Whole models of PyTorch Geometric and Transformers, made here and not downloaded; skipped where the package is absent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb
from tests.curvature.test_rows import check
from tests.models.networks import CLASSES, LENGTH, NETWORKS, TOKENS

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch_geometric"
)


def train(model: nn.Module, loss: Callable[[], Tensor], steps: int) -> tuple[list[float], hb.Coverage]:
    """Losses, and the coverage after it; every parameter has moved."""
    before = [p.clone() for p in model.parameters()]
    optimizer = hb.KFAC(model, lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    return losses, optimizer.coverage()


# --- PyTorch Geometric -------------------------------------------------------------------------------------------------------

CONVOLUTIONS = ["GCNConv", "SAGEConv", "GATConv", "GATv2Conv", "GINConv", "GraphConv", "TransformerConv", "ResGatedGraphConv"]


class Graphs(nn.Module):
    """Two convolutions of one kind, mean pooling and a head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import torch_geometric.nn as geometric

        make = getattr(geometric, kind)

        def convolution(inputs: int, outputs: int) -> nn.Module:
            if kind == "GINConv":
                return make(nn.Sequential(geometric.Linear(inputs, outputs), nn.ReLU(), geometric.Linear(outputs, outputs)))
            return make(inputs, outputs)

        self.first, self.second, self.head = convolution(2, 8), convolution(8, 8), geometric.Linear(8, CLASSES)
        self.pool = geometric.global_mean_pool

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        x = self.second(self.first(x, edges).tanh(), edges).tanh()
        return self.head(self.pool(x, graph))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_rows_inside_torch_geometric_make_up_the_gradient(kind):
    pytest.importorskip("torch_geometric", exc_type=ImportError)
    torch.manual_seed(0)
    model = Graphs(kind).double()
    *inputs, y = NETWORKS["gin"].examples(5, torch.float64)
    check(model, lambda: F.cross_entropy(model(*inputs), y))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_torch_geometric_trains_by_curvature(kind):
    """Linear layers by K-FAC, attention vectors and free-standing biases by AdamW, nothing by nobody."""
    pytest.importorskip("torch_geometric", exc_type=ImportError)
    torch.manual_seed(0)
    model = Graphs(kind)
    *inputs, y = NETWORKS["gin"].examples(30)
    losses, coverage = train(model, lambda: F.cross_entropy(model(*inputs), y), 25)
    assert min(losses[-5:]) < 0.9 * losses[0]
    treated = {r.name for r in coverage.rows if r.treatment.startswith("kfac")}
    linear = {name for name, module in model.named_modules() if type(module).__name__ == "Linear"}
    assert treated == linear
    assert all(r.name.endswith(("bias", "att_src", "att_dst", "att")) for r in coverage.rows if r.treatment == "adamw")


# --- Transformers ------------------------------------------------------------------------------------------------------------


def gpt2() -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=12, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    import transformers

    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=TOKENS, max_position_embeddings=LENGTH, num_labels=2, **sizes)
    return transformers.BertForSequenceClassification(config)


def words() -> tuple[Tensor, Tensor, Tensor]:
    """Walks around a ring, what comes next, and on which side they start."""
    tokens, after = NETWORKS["gpt"].examples(24)
    return tokens, after, (tokens[:, 0] > TOKENS // 2).long()


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_rows_inside_transformers_make_up_the_gradient(kind):
    pytest.importorskip("transformers", exc_type=ImportError)
    torch.manual_seed(0)
    tokens, _, label = words()
    model = {"gpt2": gpt2, "bert": bert}[kind]().double()
    if kind == "gpt2":
        check(model, lambda: model(input_ids=tokens, labels=tokens).loss)
    else:
        check(model, lambda: model(input_ids=tokens, labels=label).loss)


def test_gpt2_trains_by_curvature():
    """Its `Conv1D` layers and norms by K-FAC; the embedding tied to the head by AdamW."""
    pytest.importorskip("transformers", exc_type=ImportError)
    torch.manual_seed(0)
    model, (tokens, after, _) = gpt2(), words()
    losses, coverage = train(model, lambda: F.cross_entropy(model(tokens).logits.mT, after), 40)
    assert losses[-1] < 0.5 * losses[0]
    assert {r.kind for r in coverage.rows if r.treatment.startswith("kfac")} == {"Conv1D", "LayerNorm", "Embedding"}
    tied = [(r.name, r.treatment) for r in coverage.rows if r.treatment.startswith("adamw")]
    assert tied == [("transformer.wte.weight", "adamw, tied: transformer.wte and lm_head")]


def test_bert_trains_by_curvature():
    pytest.importorskip("transformers", exc_type=ImportError)
    torch.manual_seed(0)
    model, (tokens, _, label) = bert(), words()
    losses, coverage = train(model, lambda: model(input_ids=tokens, labels=label).loss, 20)
    assert min(losses[-5:]) < 0.5 * losses[0]
    assert coverage.count("adamw") == 0
