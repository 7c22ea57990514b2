import torch
from torch import nn

from granvit.train.debug.nonfinite import Watch, nonfinite_weights


class Root(nn.Module):
    """Its gradient at zero is infinite, its value is not."""

    def forward(self, x):
        return x.clamp(min=0).sqrt()


class Pair(nn.Module):
    """Returns what modules of transformers return: more than one tensor, in containers."""

    def forward(self, x):
        return {"hidden": (x, None), "length": torch.tensor(3)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.root, self.pair = nn.Linear(4, 4), nn.Linear(4, 4), Root(), Pair()

    def forward(self, x):
        return self.pair(self.root(self.second(self.first(x))))["hidden"][0].sum()


def watched(net, x):
    watch = Watch()
    with watch.over(net):
        net(x).backward()
    return watch


def test_nothing_is_found_where_all_is_finite():
    net = Net()
    nn.init.constant_(net.second.bias, 100.0)
    assert watched(net, torch.ones(2, 4)) == Watch() and nonfinite_weights(net) == []


def test_the_first_module_is_named_and_whether_it_is_to_blame():
    net = Net()
    with torch.no_grad():
        net.second.weight[1, 2] = torch.inf
    watch = watched(net, torch.ones(2, 4))
    assert watch.output.startswith("second (Linear): ") and watch.output.endswith("; its inputs were finite")
    assert nonfinite_weights(net) == ["second.weight: 0 nan and 1 inf of 16"]
    came_in = watched(net, torch.full((2, 4), torch.nan)).output
    assert came_in == "first (Linear): 8 nan and 0 inf of 8; its inputs were not finite either"


def test_a_gradient_alone_is_found_at_the_output_in_front_of_its_cause():
    net = Net()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    watch = watched(net, torch.ones(2, 4))
    assert watch.output is None
    assert watch.gradient.startswith("second (Linear): ")
    assert watch.parameter.startswith("second."), "going back, the second layer's come first"


def test_nothing_stays_hooked():
    net = Net()
    watched(net, torch.ones(2, 4))
    assert not any(m._forward_hooks for m in net.modules())
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
