"""Two trainings that must agree, without an oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher, Gaussian, Reduction
from heatbath.operators import Kronecker
from heatbath.optim import KFAC, FactoredDamping, KLClip, Policy, Unclipped
from tests.curvature.truth import exact_passes, fill, optimizer_for, squared_error
from tests.laws import batches, noise
from tests.zoo import OPTIMIZERS, PLAIN


def mlp(seed: int = 0) -> nn.Sequential:
    return fill(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed)


def trained(loss, *, steps: int = 5, scale: float = 1.0, **options) -> list[Tensor]:
    model = mlp()
    optimizer = KFAC(model, **options)
    for x, y in batches(steps):
        optimizer.zero_grad()
        (scale * loss(model(x), y)).backward()
        optimizer.step()
    return list(model.parameters())


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-9) -> None:
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


# A clip that binds hides the length of a gradient, and no clip hides what the clip does with it.
both_trusts = pytest.mark.parametrize("trust", [Unclipped(), KLClip(1e-3)], ids=["unclipped", "clipped"])


@pytest.mark.parametrize("c", [0.1, 7.0])
@both_trusts
def test_a_scaled_loss_with_squared_damping_leaves_the_empirical_direction(c, trust):
    """The empirical Fisher is made of squared gradients: F → c²F. So with damping c²λ the direction is F⁻¹g → F⁻¹g/c, and with
    c·lr the trajectory is the same. The clip bounds lr² vᵀg → c² lr² vᵀg, so κ → c²κ."""
    options = {"lr": 0.05, "damping": 1e-2}
    plain = trained(F.cross_entropy, **options, policy=Policy(trust=trust))
    other = KLClip(trust.kappa * c**2) if isinstance(trust, KLClip) else trust
    scaled = trained(F.cross_entropy, scale=c, lr=0.05 * c, damping=1e-2 * c**2, policy=Policy(trust=other))
    assert_same(plain, scaled)


@pytest.mark.parametrize("c", [0.1, 7.0])
def test_a_scaled_loss_with_scaled_damping_leaves_the_exact_step(c):
    """The exact Fisher is a Hessian: F → cF. With damping cλ the direction, and so the step at the same lr, does not change."""
    steps = []
    for scale in (1.0, c):
        model, x, y = mlp(), noise(9, 4), noise(9, 3, seed=1)
        optimizer = optimizer_for(model, lr=0.3, damping=0.1 * scale)
        columns = lambda outputs: [scale**0.5 * s for s in squared_error(outputs)]  # noqa: B023, E731
        exact_passes(model, x, columns, 9)
        model.zero_grad()
        optimizer.capture.enabled = False
        (scale * F.mse_loss(model(x), y)).backward()
        optimizer.step()
        steps.append(list(model.parameters()))
    assert_same(*steps)


def observed(c: float, fisher, *, lr: float, damping: float) -> list[Tensor]:
    """Five steps on c times the squared error, or c times cross-entropy, with observed outputs."""
    model = mlp()
    optimizer = KFAC(model, lr=lr, damping=damping, policy=Policy(trust=KLClip(), fisher=fisher))
    for x, y in batches(5):
        optimizer.zero_grad()
        outputs = optimizer.observe(model(x))
        squares = isinstance(fisher.likelihood, Gaussian)
        loss = F.mse_loss(outputs, F.one_hot(y, 3).double()) if squares else F.cross_entropy(outputs, y)
        (c * loss).backward()
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize("c", [0.1, 7.0])
def test_a_scaled_loss_of_a_scaled_likelihood_with_scaled_damping_takes_the_same_steps(c):
    """`Gaussian(2c)` says that the loss is c times the squared error: F → cF and g → cg, so with damping cλ, F⁻¹g stays. The
    clip bounds lr² vᵀg → c lr² vᵀg; here it does not bind."""
    free = {"lr": 1e-3, "damping": 0.1}
    plain = observed(1.0, ExactFisher(Gaussian(2.0)), **free)
    assert_same(plain, observed(c, ExactFisher(Gaussian(2.0 * c)), lr=1e-3, damping=0.1 * c))


@pytest.mark.parametrize("c", [0.1, 7.0])
def test_a_scaled_loss_of_an_unscaled_likelihood_scales_the_direction(c):
    """The Fisher is the likelihood's, whatever the loss is multiplied by: g → cg alone, so lr/c undoes it, damping as it was.
    The clip's lr² vᵀg → (lr/c)² c² vᵀg stays too."""
    plain = observed(1.0, ExactFisher(Categorical()), lr=0.05, damping=1e-2)
    assert_same(plain, observed(c, ExactFisher(Categorical()), lr=0.05 / c, damping=1e-2))


def test_permuting_channels_of_a_convolution_commutes_with_training():
    """Groups and their channels renamed before training is renaming them after it."""

    def network() -> nn.Sequential:
        return fill(nn.Sequential(nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(6, 3)))

    def rename(model: nn.Sequential) -> None:
        first, _, second, _, last = model
        inner, outer = torch.tensor([3, 2, 0, 1]), torch.tensor([5, 3, 4, 1, 0, 2])  # the two groups change places
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.copy_(parameter[inner].clone())
            within = torch.tensor([[1, 0], [0, 1]]).repeat_interleave(3, 0)  # order of inputs within each new group
            second.weight.copy_(torch.stack([w[order] for w, order in zip(second.weight[outer], within, strict=True)]))
            second.bias.copy_(second.bias[outer].clone())
            last.weight.copy_(last.weight[:, outer].clone())

    x, y = noise(8, 2, 3, 3), torch.arange(8) % 3
    plain, renamed = network(), network()
    rename(renamed)
    torch.testing.assert_close(plain(x), renamed(x), rtol=1e-12, atol=1e-12)
    for model in (plain, renamed):
        optimizer = KFAC(model, lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    rename(plain)
    assert_same(list(plain.parameters()), list(renamed.parameters()))


@both_trusts
def test_sum_and_mean_agree(trust):
    """The curvature and the gradient of a summed loss are taken per example, so lr, damping and clip mean the same."""
    mean = trained(F.cross_entropy, lr=0.05, damping=1e-2, weight_decay=0.1, policy=Policy(trust=trust))
    total = trained(
        lambda y, t: F.cross_entropy(y, t, reduction="sum"),
        lr=0.05,
        damping=1e-2,
        weight_decay=0.1,
        policy=Policy(reduction=Reduction.SUM, trust=trust),
    )
    assert_same(mean, total)


@both_trusts
def test_sum_and_mean_agree_over_micro_batches_of_unequal_size(trust):
    whole, parts = mlp(), mlp()
    one = KFAC(whole, lr=0.05, damping=1e-2, policy=Policy(trust=trust))
    many = KFAC(parts, lr=0.05, damping=1e-2, policy=Policy(reduction=Reduction.SUM, trust=trust))
    for x, y in batches(15):
        one.zero_grad()
        many.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        for rows in (slice(0, 1), slice(1, 6), slice(6, 8)):
            F.cross_entropy(parts(x[rows]), y[rows], reduction="sum").backward()
        one.step()
        many.step()
    assert_same(list(whole.parameters()), list(parts.parameters()))


@both_trusts
@pytest.mark.parametrize("between", ["evaluation", "inspection"])
def test_passes_without_a_backward_do_not_count_in_a_sum(between, trust):
    """An evaluation, or a forward pass that nobody differentiates, must not change how many examples a sum is over."""
    plain, other = mlp(), mlp()
    policy = Policy(reduction=Reduction.SUM, trust=trust)
    optimizers = [KFAC(m, lr=0.05, damping=1e-2, policy=policy) for m in (plain, other)]
    for x, y in batches(4):
        for model, optimizer in zip((plain, other), optimizers, strict=True):
            optimizer.zero_grad()
            if model is other and between == "evaluation":
                with torch.no_grad():
                    model(noise(100, 4))
            elif model is other:
                model(noise(100, 4))
            F.cross_entropy(model(x), y, reduction="sum").backward()
            optimizer.step()
    assert_same(list(plain.parameters()), list(other.parameters()))


class _Affine(nn.Module):
    """A fixed invertible map x ↦ M x + c."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(size, dtype=torch.float64) + 0.3 * noise(size, size, seed=seed))
        self.register_buffer("shift", noise(size, seed=seed + 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT + self.shift

    def joint(self) -> Tensor:
        """In homogeneous coordinates."""
        size = len(self.shift)
        full = torch.eye(size + 1, dtype=torch.float64)
        full[:size, :size], full[:size, size] = self.matrix, self.shift
        return full


def test_undamped_updates_do_not_depend_on_affine_coordinates_of_activations():
    """Martens & Grosse 2015, Theorem 1: re-express what enters and leaves the activation functions by invertible affine maps,
    and the same network functions come out of training."""
    plain = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    first, last = plain[0], plain[2]
    before, after = _Affine(4, 11), _Affine(4, 21)
    other = nn.Sequential(nn.Linear(3, 4), before, nn.Tanh(), after, nn.Linear(4, 2)).double()
    with torch.no_grad():  # the same function: M (W' x + b') + c = W x + b, and V' (M h + c) + d' = V h + d
        other[0].weight.copy_(torch.linalg.solve(before.matrix, first.weight))
        other[0].bias.copy_(torch.linalg.solve(before.matrix, first.bias - before.shift))
        joint = torch.cat((last.weight, last.bias[:, None]), 1) @ torch.linalg.inv(after.joint())
        other[4].weight.copy_(joint[:, :-1])
        other[4].bias.copy_(joint[:, -1])
    x, y = noise(60, 3), noise(60, 2, seed=1)
    torch.testing.assert_close(plain(x), other(x), rtol=1e-12, atol=1e-12)
    start = plain(x).detach()
    for model in (plain, other):
        optimizer = optimizer_for(model, lr=0.1, damping=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(plain(x), other(x), rtol=1e-8, atol=1e-8)
    assert (plain(x) - start).norm() > 0.1 * start.norm()


def test_damped_updates_do_depend_on_them():
    """Otherwise the law above would hold for gradient descent too."""
    outputs = []
    for scale in (1.0, 3.0):
        model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        with torch.no_grad():
            model[0].weight.mul_(1 / scale)
        optimizer = optimizer_for(model, lr=0.1, damping=1.0)
        x, y = noise(60, 3) * scale, noise(60, 2, seed=1)
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        outputs.append(model(x))
    assert (outputs[0] - outputs[1]).norm() > 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_back_ends_agree_with_a_dense_solve_in_float64(name):
    """One step of each is −lr (damped curvature)⁻¹ g, the damped curvature inverted densely by `eigh`."""
    row, model = OPTIMIZERS[name], mlp()
    optimizer = row.make(model, lr=1.0, damping=0.1, momentum=0.0, policy=PLAIN)
    ((x, y),) = batches(1, examples=30)
    F.cross_entropy(model(x), y).backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    for stack in optimizer.stacks:
        damped = optimizer.damping(stack.mean, torch.full((stack.length,), 0.1, dtype=torch.float64))
        assert isinstance(damped, Kronecker) == isinstance(optimizer.damping, FactoredDamping)
        values, vectors = torch.linalg.eigh(damped.dense())
        for place in stack.places:
            layer, prefix = place.site.module, f"{place.site.name}."
            gradient = torch.cat((layer.weight.grad, layer.bias.grad[:, None]), 1)
            v, w = vectors[place.start], values[place.start]
            truth = -(v @ ((v.mT @ gradient.flatten()) / w)).reshape(gradient.shape)
            moved = [getattr(layer, n).detach() - before[prefix + n] for n in ("weight", "bias")]
            update = torch.cat((moved[0], moved[1][:, None]), 1)
            tolerance = 1e-8 if row.exact else 0.2
            assert (update - truth).norm() <= tolerance * truth.norm()


def test_policies_differ_where_they_should():
    """The judge of the laws above is not blind: another decay gives another trajectory."""
    a = trained(F.cross_entropy, lr=0.05, policy=Policy())
    b = trained(F.cross_entropy, lr=0.05, policy=replace(Policy(), decay=0.5))
    with pytest.raises(AssertionError, match="not close"):
        assert_same(a, b)
