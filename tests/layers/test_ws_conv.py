"""The kept standardized weight is never that of another weight, and folding changes no result."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gnws_d2 import layers
from gnws_d2.layers import StandardizedConv, WSConv2d, fold, standardize_weight

X = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def uncached(conv: nn.Module) -> torch.Tensor:
    """The layer's output from its weight as it is now."""
    weight = conv.weight.detach().double()
    std, mean = torch.std_mean(weight, (1, 2, 3), keepdim=True)
    return F.conv2d(X, (weight - mean) / (std + conv.eps), conv.bias.double())


class Chain:
    """A layer under test, what an optimizer and an average know of it, and operations on it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.use(WSConv2d(4, 6, 3).double())
        self.average = torch.optim.swa_utils.AveragedModel(self.conv)

    def use(self, conv: nn.Module) -> None:
        self.conv = conv
        self.optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9)

    def forward(self, mode: Callable = torch.no_grad) -> torch.Tensor:
        with mode():
            return self.conv(X.to(self.conv.weight.dtype))

    def optimizer_step(self) -> None:
        self.conv.requires_grad_(True)
        self.forward(torch.enable_grad).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def load_state_dict(self, assign: bool = False) -> None:
        state = {n: torch.randn_like(t) for n, t in self.conv.state_dict().items()}
        self.conv.load_state_dict(state, assign=assign)
        self.use(self.conv)

    @torch.no_grad()
    def edit_in_place(self) -> None:
        self.conv.weight.mul_(1.5).add_(torch.randn_like(self.conv.weight))

    def edit_one_number_through_the_state_dict(self) -> None:
        self.conv.state_dict()["weight"][0, 0, 0, 0] += 5

    def assign_data(self) -> None:
        self.conv.weight.data = torch.randn_like(self.conv.weight)

    def assign_a_parameter(self) -> None:
        self.conv.weight = nn.Parameter(torch.randn_like(self.conv.weight))
        self.use(self.conv)

    def change_eps(self) -> None:
        self.conv.eps *= 10

    def to_float_and_back(self) -> None:
        self.conv.float()
        self.forward()
        self.conv.double()

    def average_weights(self) -> None:
        self.average.update_parameters(self.conv)
        self.conv.load_state_dict(self.average.module.state_dict())

    def copy(self) -> None:
        original = self.conv
        self.use(copy.deepcopy(original))
        with torch.no_grad():
            original.weight.zero_()


METHODS = {name: value for name, value in vars(Chain).items() if not name.startswith("__")}
OPERATIONS: list[Callable[[Chain], object]] = [
    *(value for name, value in METHODS.items() if name not in ("use", "forward")),
    lambda chain: chain.forward(torch.enable_grad),
    lambda chain: chain.forward(torch.no_grad),
    lambda chain: chain.forward(torch.inference_mode),
    lambda chain: chain.load_state_dict(assign=True),
    lambda chain: chain.conv.to(memory_format=torch.channels_last),
    lambda chain: chain.conv.train(),
    lambda chain: chain.conv.eval(),
    lambda chain: chain.conv.requires_grad_(False),
    lambda chain: chain.conv.requires_grad_(True),
    lambda chain: chain.use(pickle.loads(pickle.dumps(chain.conv))),
]


@given(operations=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_after_any_operations_the_result_is_that_of_the_weight_as_it_is(operations):
    chain = Chain()
    for operation in operations:
        operation(chain)
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            found = chain.forward(mode).detach().clone()
            torch.testing.assert_close(found, uncached(chain.conv), rtol=1e-10, atol=1e-10)
        assert list(chain.conv.state_dict()) == ["weight", "bias"]


def test_it_is_standardized_once_in_evaluation_and_where_it_is_frozen(monkeypatch):
    calls, original = [], StandardizedConv._standardize
    monkeypatch.setattr(
        StandardizedConv, "_standardize", lambda c, weight: calls.append(c) or original(c, weight)
    )
    conv = WSConv2d(4, 6, 3).double().eval()
    for mode in (torch.no_grad, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            conv(X)
    assert len(calls) == 1
    frozen, x = WSConv2d(4, 6, 3).double().requires_grad_(False), X.clone().requires_grad_()
    with torch.inference_mode():  # what is kept from here on serves training, too
        frozen(X)
    for _ in range(3):
        frozen(x).sum().backward()
    assert calls == [conv, frozen] and x.grad is not None


def test_nothing_kept_is_copied_or_saved():
    conv = WSConv2d(4, 6, 3).double().eval()
    size = len(pickle.dumps(conv))
    with torch.no_grad():
        conv(X)
    assert conv._kept is not None
    assert copy.deepcopy(conv)._kept is None and len(pickle.dumps(conv)) == size
    conv.train()
    assert conv._kept is None


def test_weights_of_a_plain_convolution_are_warned_of(tmp_path):
    """Whoever loads them: state dicts remember which modules they are of."""
    plain, ws = nn.Conv2d(4, 6, 3), WSConv2d(4, 6, 3)
    for state in (plain.state_dict(), nn.Sequential(plain).state_dict()):
        torch.save(state, tmp_path / "file.pth")
        target = ws if "weight" in state else nn.Sequential(ws)
        with pytest.warns(UserWarning, match="without Weight Standardization are loaded"):
            target.load_state_dict(torch.load(tmp_path / "file.pth", weights_only=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(ws.state_dict(), tmp_path / "file.pth")
        state = torch.load(tmp_path / "file.pth", weights_only=True)
        WSConv2d(4, 6, 3).load_state_dict(state)
        plain.load_state_dict(state)
        for assign in (False, True):  # says nothing of its modules
            ws.load_state_dict(dict(plain.state_dict()), assign=assign)


def test_a_compiled_module_follows_its_weight():
    conv = WSConv2d(4, 6, 3).double().eval()
    compiled = torch.compile(conv, backend="eager", fullgraph=True)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(compiled(X), uncached(conv), rtol=1e-10, atol=1e-10)
            conv.weight.mul_(2).add_(torch.randn_like(conv.weight))
    torch.testing.assert_close(compiled(X).detach(), uncached(conv), rtol=1e-10, atol=1e-10)


KINDS = [("Conv1d", (7,)), ("Conv2d", (7, 6)), ("Conv3d", (4, 5, 3))]
KINDS += [(name.replace("Conv", "ConvTranspose"), size) for name, size in KINDS]
OPTIONS = [dict(stride=2, padding=1, groups=groups) for groups in (1, 2)]
OPTIONS_2D = [
    dict(stride=2, dilation=2, padding=2, bias=False),
    dict(groups=2, padding="same"),
    dict(padding=1, padding_mode="reflect"),
]


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [(*kind, options) for kind in KINDS for options in OPTIONS]
    + [(*KINDS[1], options) for options in OPTIONS_2D],
)
def test_every_kind_standardizes_each_filter(name, size, options):
    """A filter is all that makes one output channel, whichever way the weight is laid out."""
    torch.manual_seed(0)
    ws, plain = getattr(layers, f"WS{name}"), getattr(nn, name)
    conv, reference = (kind(4, 6, 3, **options).double() for kind in (ws, plain))
    reference.load_state_dict(conv.state_dict())  # the same names and shapes
    inputs, outputs = 4 // conv.groups, 6 // conv.groups  # of a group
    for out in range(6):
        first = out // outputs * inputs
        transposed = (slice(first, first + inputs), out % outputs)
        index = transposed if "Transpose" in name else (out,)
        filt = conv.weight.data[index]
        reference.weight.data[index] = (filt - filt.mean()) / (filt.std() + 1e-5)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(conv(x), reference(x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(conv, {"weight": w}, x[:1]), conv.weight
    )
    with torch.no_grad():
        torch.testing.assert_close(fold(conv)(x), conv(x))
    assert type(fold(conv)) is plain and b"gnws_d2" not in pickle.dumps(fold(conv))


def test_transposed_takes_an_output_size():
    conv = layers.WSConvTranspose2d(4, 6, 3, stride=2)
    assert conv(torch.randn(1, 4, 5, 5), output_size=[12, 12]).shape[2:] == (12, 12)


@pytest.mark.parametrize("name", [name for name, _ in KINDS])
def test_a_fan_in_of_one_is_refused(name):
    with pytest.raises(ValueError, match="fan-in of 1"):
        getattr(layers, f"WS{name}")(4, 4, 1, groups=4)
    with pytest.raises(ValueError, match=r"\(3, 1\).*fan-in of 1"):
        standardize_weight(torch.randn(3, 1))
