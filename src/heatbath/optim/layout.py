"""Where everything lies: which site goes to which stacks, and who trains which parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from heatbath.curvature import Sharing, Site, check_sharding, find_sites
from heatbath.layers import AffineRule, rule_for
from heatbath.optim.packing import Packing, packs_as_views
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
        sharing: how shared positions of sites enter; expand for those left out.
    """

    def __init__(self, sites: Sequence[Site], stacks: Sequence[Stack], groups: Groups, sharing: Mapping[Site, Sharing]) -> None:
        self.sites, self.stacks, self.sharing = list(sites), list(stacks), sharing
        self.ready: set[str] = set()  # names of sites whose solver state rests on data
        self.packing = Packing(self.sites, self.stacks, find_places(self.stacks))
        self.uncalled: set[str] = set()  # names of sites that have gradients, but through no call of their module
        self.index(groups)

    @staticmethod
    def of(model: nn.Module, groups: Groups, policy: Policy, old: Layout | None = None, *, whole: bool = False) -> Layout:
        """The layout of a model's sites, of what of them is in groups, with what an old one knows about them.

        Args:
            model: the model.
            groups: the optimizer's parameter groups.
            policy: says which rules, which blocks and which sides.
            old: the layout before.
            whole: hold all factors in full, whatever the policy says.

        Raises:
            ValueError: the policy shares positions in a way that cannot be.
        """
        if check_sharding(model) and (policy.fisher.observes or policy.quadratic is not None):
            raise ValueError(
                "the parameters lie in pieces over processes (fully_shard), where observed outputs cannot be pulled back: use "
                "EmpiricalFisher or InputOnly, and no quadratic model"
            )
        group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        sites = find_sites(model, policy.rules, policy.skip)
        own = [own_part(site, group_of) for site in sites]
        sites = [site for site in own if site is not None and packs_as_views(site)]
        stacks = build_stacks(
            sites,
            group_of,
            inputs_only=policy.fisher.inputs_only,
            max_dim=None if whole else policy.max_dim,
            rank=policy.rank,
            parts=policy.parts,
        )
        if old is not None:
            carry_over(old.stacks, stacks)
        return Layout(sites, stacks, groups, find_sharing(model, sites, policy))

    def index(self, groups: Groups) -> None:
        """Find everything by identity, anew after a copy."""
        self._groups = groups
        self.places = find_places(self.stacks)
        treated = {id(p) for site in self.sites for p in site.parameters().values()}
        self.fallback = [[p for p in group["params"] if id(p) not in treated] for group in groups]
        self.settle()

    def settle(self) -> None:
        """Note who is absent, after `ready` changed."""
        self.absent = {site for site in self.sites if site.name not in self.ready}
        strays = {id(p) for site in self.absent for p in site.parameters().values()}
        ready = [site for site in self.sites if site not in self.absent]
        self.treated = list({id(p): p for site in ready for p in site.parameters().values()}.values())
        self.strays = [[p for p in group["params"] if id(p) in strays] for group in self._groups]

    def wake(self, captures: Sequence[bool]) -> set[Site]:
        """Note which stacks capture at the present step; returns the sites none of whose stacks does."""
        for stack, awake in zip(self.stacks, captures, strict=True):
            stack.awake = awake
        return {site for site in self.sites if not any(stack.awake for stack, _ in self.places[id(site)])}

    def has_newcomers(self, stack: Stack) -> bool:
        """Whether a stack has rows of blocks for which its solver was not prepared yet."""
        new = (place for place in stack.places if place.site in self.absent)
        return any(stack.ages[place.index] for place in new)

    def welcome(self) -> list[Site]:
        """Count sites as ready whose blocks have all seen data; returns those that have gradients nevertheless."""
        for site in self.sites:
            if all(stack.ages[place.index] for stack, place in self.places[id(site)]):
                self.ready.add(site.name)
        self.settle()
        late = [site for site in self.sites if site in self.absent]
        late = [site for site in late if any(p.grad is not None for p in site.parameters().values())]
        self.uncalled = {site.name for site in late}
        return late

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        return {
            "sites": self.sites,
            "stacks": self.stacks,
            "sharing": self.sharing,
            "ready": self.ready,
            "uncalled": self.uncalled,
            "packing": self.packing,
        }


def own_part(site: Site, group_of: Mapping[int, int]) -> Site | None:
    """A site with the parameters that are in groups alone: the others belong to another optimizer.

    Args:
        site: a site of the model.
        group_of: parameter id to index of its parameter group.

    Returns:
        The site; None where no parameter is in a group, or its rule knows only all of them.
    """
    held = {name: p for name, p in site.held.items() if id(p) in group_of}
    if len(held) == len(site.held):
        return site
    if not held or not isinstance(site.rule, AffineRule):
        return None
    rule = site.rule.only(held)
    return replace(site, rule=rule, blocks=rule.blocks(site.module), held=held)


def find_sharing(model: nn.Module, sites: Sequence[Site], policy: Policy) -> dict[Site, Sharing]:
    """The sharing chosen for sites, by the name of their module or of one tied to it; expand for those left out.

    Raises:
        ValueError: a name that is no layer's, tied layers that differ, or an embedding that is to reduce.
    """
    modules = dict(model.named_modules())
    site_of = {id(module): site for site in sites for module in (site.module, *site.twins)}
    chosen: dict[Site, Sharing] = {}
    for name, how in policy.sharing.items():
        if name not in modules:
            raise ValueError(f"sharing names {name!r}, which is no module of this model: use names as in model.named_modules()")
        rule = rule_for(modules[name], policy.rules)
        if rule is None:
            kind = type(modules[name]).__name__
            raise ValueError(f"sharing names {name!r}, a {kind} without curvature of its own: name the layers inside it")
        if how is Sharing.REDUCE and any(b.diagonal_inputs for b in rule.blocks(modules[name])):
            raise ValueError(f"{name}: reduce cannot average one-hot inputs; use Sharing.EXPAND for embeddings")
        site = site_of.get(id(modules[name]))  # None for what is frozen, or left to AdamW
        if site is not None and chosen.setdefault(site, how) is not how:
            raise ValueError(f"{name} is tied to a layer for which sharing says {chosen[site].name}: choose one for both")
    return chosen
