"""Following a layer through input derivatives inside a loss.

A pass of `torch.autograd.grad(u, x, create_graph=True)` builds, for each layer z = W a, the product v_a = Wᵀ v_z, on which the
loss may depend; a pass through that one builds ż = W ȧ with ȧ, ż the gradients that arrive at v_a and leave for v_z, and so on:
each pass through a use of W builds a use of the opposite kind (`heatbath.layers.derivative`). So a use hangs a hook on its
output. A pass that trains brings the gradient there, and rows go out. Another one that builds a graph is followed: the
gradient is passed on under a name of its own, so that nothing else takes it, and what then arrives at the use's input is the
product. Derivatives in forward mode (`torch.autograd.forward_ad`) make ż = W ȧ at once, beside the forward call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.utils.hooks import RemovableHandle

from heatbath.curvature.capture.recorder import Capture
from heatbath.curvature.capture.sites import Site
from heatbath.curvature.capture.views import ITSELF, View, source_of
from heatbath.layers import Call, product_rows, trains_weight


@dataclass(eq=False)
class Use:
    """One product with a layer's weight.

    Args:
        capture: where rows go.
        site: the layer.
        module: the layer, or the twin of it that was called.
        call: its forward call, detached.
        pass_number: the model's forward pass.
        taken: what the product is taken of, with its graph, and used by nothing else.
        view: how `taken` is read, where it is the source of what the product is taken of.
        order: how often it was differentiated: 0 is the forward call, whose rows its hook delivers;
            odd ones are products with Wᵀ.
    """

    capture: Capture
    site: Site
    module: nn.Module
    call: Call
    pass_number: int
    taken: Tensor
    order: int = 0
    view: View = ITSELF
    _waiting: RemovableHandle | None = None

    def watch(self, product: Tensor, view: View) -> None:
        """Hang a hook on what came of it, or on what that is a view of."""
        product.register_hook(partial(self.arrive, view))

    def arrive(self, view: View, grad: Tensor) -> Tensor | None:
        """Deliver the gradient at the product, read by `view` off that of its source, or follow it."""
        if self.capture.wants(self.site):
            self._deliver(view.read(grad.detach()))
        elif torch.is_grad_enabled():
            return self.follow(view, grad)
        return None

    def follow(self, view: View, grad: Tensor) -> Tensor | None:
        """Follow a pass that builds a graph to what it makes of the product; returns the gradient under a name of its own."""
        if self._goes_on():
            alone = grad.view_as(grad)
            self._waiting = self.taken.register_hook(partial(self._follow, alone, view))
            return alone
        return None

    @torch.no_grad()
    def _deliver(self, grad: Tensor) -> None:
        """Rows of this use."""
        rule, taken, call = self.site.rule, self.view.read(self.taken.detach()), self.call
        if self.capture.turns(self.site, self.module, grad):
            call, grad, taken = call.transposed(), grad.transpose(0, 1), taken.transpose(0, 1)
        transposed = self.order % 2 == 1
        pair = (grad, taken) if transposed else (taken, grad)
        rows = product_rows(rule, self.module, *pair, like=call if transposed else None)
        self.capture.hand_over(self.site, self.pass_number, rows)

    def _goes_on(self) -> bool:
        """Whether the pass that runs now comes to what the product is taken of, and the weight trains."""
        node = self.taken.grad_fn
        return (
            node is not None and trains_weight(self.site.rule, self.module) and bool(torch._C._will_engine_execute_node(node))
        )

    def _follow(self, alone: Tensor, view: View, back: Tensor) -> None:
        """The pass has made a product of the opposite kind."""
        assert self._waiting is not None
        self._waiting.remove()
        if back.requires_grad:
            self.capture.derived = True
            Use(self.capture, self.site, self.module, self.call, self.pass_number, alone, self.order + 1, view).watch(
                back, self.view
            )


def watch_tangents(use: Use, output: Tensor) -> None:
    """Watch ż = W ȧ of a forward call under forward-mode differentiation.

    Args:
        use: the call.
        output: what came of it.
    """
    before, after = unpack_dual(use.taken).tangent, unpack_dual(output).tangent
    if before is not None and after is not None and after.requires_grad and trains_weight(use.site.rule, use.site.module):
        use.capture.derived = True
        source = source_of(after)
        replace(use, taken=before, order=2).watch(source, View.of(after, source))
