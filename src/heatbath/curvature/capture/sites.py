"""The modules of a model whose curvature is captured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from heatbath.curvature.sharding import is_sharded, stands_for
from heatbath.layers import Block, LayerRule, rule_for


@dataclass(frozen=True, eq=False)
class Site:
    """A module whose curvature is captured.

    Args:
        name: qualified name in the model.
        module: the module.
        rule: how it becomes outer products.
        blocks: its matrices, fixed when the site was found.
        held: the parameters that its blocks treat, by their names within the module.
        twins: further modules of the same kind that share all its parameters (tied weights); their calls are uses of the same
            weights, so their rows go to the same blocks.
    """

    name: str
    module: nn.Module
    rule: LayerRule
    blocks: tuple[Block, ...]
    held: Mapping[str, nn.Parameter]
    twins: tuple[nn.Module, ...] = ()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters that its blocks treat, by their names within the module."""
        return self.held

    def is_itself(self) -> bool:
        """Whether the module computes with these parameters now, not with others lent to it (`torch.func.functional_call`)."""
        return all(stands_for(_attribute(self.module, name), parameter) for name, parameter in self.held.items())

    def is_sharded(self) -> bool:
        """Whether its parameters lie in pieces over processes."""
        return any(is_sharded(parameter) for parameter in self.held.values())

    def leaves(self) -> list[Any]:  # Any: nodes of the autograd graph
        """Where gradients of its parameters are accumulated now; none while they lie in pieces."""
        present = [_attribute(self.module, name) for name in self.held]
        return [get_gradient_edge(p).node for p in present if isinstance(p, Tensor) and p.requires_grad and not is_sharded(p)]


def find_sites(
    model: nn.Module, rules: Sequence[LayerRule], skip: Callable[[str, nn.Module], bool] | None = None
) -> list[Site]:
    """The modules of a model that have a rule, outermost first.

    A module inside a treated module is not treated again (attention owns its output projection). Parameters tied between
    modules are treated where the modules are alike; where they are not (an embedding and the output layer), the sum of two
    Kronecker products would be needed, and nobody treats them.

    Args:
        model: the model.
        rules: rules to try, first match wins.
        skip: `skip(name, module)` is true for modules to leave to the fallback.
    """
    found: list[Site] = []
    owners: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{owner}.") or owner == "" for owner in owners):
            continue
        rule = rule_for(module, rules)
        if rule is None or (skip is not None and skip(name, module)):
            continue
        blocks = rule.blocks(module)
        if blocks and all(block.places and math.prod(block.domain) for block in blocks):  # else there is nothing to solve
            owners.append(name)
            held = {key: module.get_parameter(key) for block in blocks for key in block.parameters}
            found.append(Site(name, module, rule, blocks, held))
    return _without_disagreement(_join_twins(found), model)


def _attribute(module: nn.Module, name: str) -> object:
    """What stands in a parameter's place; dotted names reach into children."""
    *parents, leaf = name.split(".")
    for parent in parents:
        module = getattr(module, parent)
    return getattr(module, leaf, None)


def _join_twins(sites: Sequence[Site]) -> list[Site]:
    """Sites that share all parameters by the same rule as one."""
    joined: dict[tuple[object, ...], Site] = {}
    for site in sites:
        key = (type(site.rule), site.blocks, *(id(p) for p in site.parameters().values()))
        first = joined.get(key)
        joined[key] = site if first is None else replace(first, twins=(*first.twins, site.module))
    return list(joined.values())


def _without_disagreement(sites: Sequence[Site], model: nn.Module) -> list[Site]:
    """Sites none of whose parameters is used by a module that is not one of the site's own."""
    uses: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses.setdefault(id(parameter), set()).add(id(module))

    def alone(site: Site) -> bool:
        own = {id(inner) for module in (site.module, *site.twins) for inner in module.modules()}
        return all(uses[id(p)] <= own for p in site.parameters().values())

    return [site for site in sites if alone(site)]
