"""Where everything lies: which site goes to which stacks, and who trains which parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from heatbath.curvature import Sharing, Site, find_sites
from heatbath.layers import rule_for
from heatbath.optim.packing import Packing
from heatbath.optim.policy import Policy
from heatbath.optim.stacks import Stack, build_stacks, carry_over, find_places

Groups = Sequence[dict[str, Any]]  # Any: torch's own type


class Layout:
    """Sites, their stacks, and everything that is found by the identity of a parameter.

    Parameters of sites that have no curvature yet (before the first capture, or never called as a module) are *strays*, which
    AdamW trains meanwhile.

    Args:
        sites: modules treated by curvature.
        stacks: their blocks.
        groups: the optimizer's parameter groups.
    """

    def __init__(self, sites: Sequence[Site], stacks: Sequence[Stack], groups: Groups) -> None:
        self.sites, self.stacks = list(sites), list(stacks)
        self.ready: set[str] = set()  # names of sites whose solver state rests on data
        self.uncalled: set[str] = set()  # names of sites that have gradients, but through no call of their module
        self.index(groups)

    @staticmethod
    def of(model: nn.Module, groups: Groups, policy: Policy, old: Layout | None = None) -> Layout:
        """The layout of a model's sites whose parameters are all in groups, with what an old one knows about them.

        Args:
            model: the model.
            groups: the optimizer's parameter groups.
            policy: says which rules, which blocks and which sides.
            old: the layout before.

        Raises:
            ValueError: the policy shares positions in a way that cannot be.
        """
        check_sharing(model, policy)
        group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        sites = find_sites(model, policy.rules, policy.skip)
        sites = [site for site in sites if all(id(p) in group_of for p in site.parameters().values())]
        stacks = build_stacks(sites, group_of, inputs_only=policy.fisher.inputs_only, max_dim=policy.max_dim)
        if old is not None:
            carry_over(old.stacks, stacks)
        return Layout(sites, stacks, groups)

    def index(self, groups: Groups) -> None:
        """Find everything by identity, anew after a copy."""
        self._groups = groups
        group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        self.places = find_places(self.stacks)
        self.packing = Packing(self.sites, self.stacks, self.places, group_of)
        treated = {id(p) for site in self.sites for p in site.parameters().values()}
        self.fallback = [[p for p in group["params"] if id(p) not in treated] for group in groups]
        self.settle()

    def settle(self) -> None:
        """Note who is absent, after `ready` changed."""
        absent = [site for site in self.sites if site.name not in self.ready]
        self.absent = {id(site) for site in absent}
        strays = {id(p) for site in absent for p in site.parameters().values()}
        self.strays = [[p for p in group["params"] if id(p) in strays] for group in self._groups]

    def welcome(self) -> list[Site]:
        """Count sites as ready whose blocks have all seen data; returns those that have gradients nevertheless."""
        for site in self.sites:
            if all(stack.ages[place.index] for stack, place in self.places[id(site)]):
                self.ready.add(site.name)
        self.settle()
        late = [site for site in self.sites if id(site) in self.absent]
        late = [site for site in late if any(p.grad is not None for p in site.parameters().values())]
        self.uncalled = {site.name for site in late}
        return late

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        return {"sites": self.sites, "stacks": self.stacks, "ready": self.ready, "uncalled": self.uncalled}


def check_sharing(model: nn.Module, policy: Policy) -> None:
    """Refuse choices of `Sharing` for modules that do not exist or cannot follow them.

    Raises:
        ValueError: a name that is none of the model's, or an embedding that is to reduce.
    """
    modules = dict(model.named_modules())
    for name, how in policy.sharing.items():
        if name not in modules:
            raise ValueError(f"sharing names {name!r}, which is no module of this model: use names as in model.named_modules()")
        rule = rule_for(modules[name], policy.rules)
        if how is Sharing.REDUCE and rule is not None and any(b.diagonal_inputs for b in rule.blocks(modules[name])):
            raise ValueError(f"{name}: reduce cannot average one-hot inputs; use Sharing.EXPAND for embeddings")
