"""The kept standardized weight is never that of another weight, and folding changes no result."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gnws_d2.layers import (
    StandardizedConv,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
    fold,
    standardize_weight,
)

X = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def uncached(conv: nn.Module) -> torch.Tensor:
    """The layer's output from its weight as it is now."""
    weight = conv.weight.detach().double()
    flat = weight.flatten(1)
    n = flat.shape[1]
    mean = flat.sum(1, keepdim=True) / n
    std = ((flat - mean).square().sum(1, keepdim=True) / (n - 1)).sqrt()
    return F.conv2d(X, ((flat - mean) / (std + conv.eps)).view_as(weight), conv.bias.double())


class Chain:
    """A layer under test, what an optimizer and an average know of it, and operations on it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.conv = WSConv2d(4, 6, 3).double()
        self.new_optimizer()
        self.average = torch.optim.swa_utils.AveragedModel(self.conv)

    def new_optimizer(self) -> None:
        self.optimizer = torch.optim.SGD(self.conv.parameters(), lr=0.1, momentum=0.9)

    def forward_with_grad(self) -> None:
        self.conv(X.to(self.conv.weight.dtype))

    def forward_without_grad(self) -> None:
        with torch.no_grad():
            self.conv(X.to(self.conv.weight.dtype))

    def forward_in_inference_mode(self) -> None:
        with torch.inference_mode():
            self.conv(X.to(self.conv.weight.dtype))

    def optimizer_step(self) -> None:
        self.conv.requires_grad_(True)
        self.conv(X.to(self.conv.weight.dtype)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def load_state_dict(self) -> None:
        state = {n: torch.randn_like(t) for n, t in self.conv.state_dict().items()}
        self.conv.load_state_dict(state)

    def load_and_assign(self) -> None:
        state = {n: torch.randn_like(t) for n, t in self.conv.state_dict().items()}
        self.conv.load_state_dict(state, assign=True)
        self.new_optimizer()

    def edit_in_place(self) -> None:
        with torch.no_grad():
            self.conv.weight.mul_(1.5).add_(torch.randn_like(self.conv.weight))

    def edit_one_number_through_the_state_dict(self) -> None:
        self.conv.state_dict()["weight"][0, 0, 0, 0] += 5

    def assign_data(self) -> None:
        self.conv.weight.data = torch.randn_like(self.conv.weight)

    def assign_a_parameter(self) -> None:
        self.conv.weight = nn.Parameter(torch.randn_like(self.conv.weight))
        self.new_optimizer()

    def change_eps(self) -> None:
        self.conv.eps *= 10

    def to_float_and_back(self) -> None:
        self.conv.float()
        self.forward_without_grad()
        self.conv.double()

    def to_channels_last(self) -> None:
        self.conv.to(memory_format=torch.channels_last)

    def train(self) -> None:
        self.conv.train()

    def eval(self) -> None:
        self.conv.eval()

    def freeze(self) -> None:
        self.conv.requires_grad_(False)

    def unfreeze(self) -> None:
        self.conv.requires_grad_(True)

    def average_weights(self) -> None:
        self.average.update_parameters(self.conv)
        self.conv.load_state_dict(self.average.module.state_dict())

    def copy(self) -> None:
        original, self.conv = self.conv, copy.deepcopy(self.conv)
        with torch.no_grad():
            original.weight.zero_()
        self.new_optimizer()

    def pickle(self) -> None:
        self.conv = pickle.loads(pickle.dumps(self.conv))
        self.new_optimizer()


OPERATIONS = sorted(name for name in vars(Chain) if name not in ("__init__", "new_optimizer"))
OPERATIONS = [name for name in OPERATIONS if not name.startswith("__")]


@given(names=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_after_any_operations_the_result_is_that_of_the_weight_as_it_is(names):
    chain = Chain()
    for name in names:
        getattr(chain, name)()
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                found = chain.conv(X)
            torch.testing.assert_close(
                found.detach().clone(), uncached(chain.conv), rtol=1e-10, atol=1e-10
            )
        assert list(chain.conv.state_dict()) == ["weight", "bias"]


def count_standardizations(monkeypatch) -> list:
    calls = []
    original = StandardizedConv._standardize

    def counted(self, weight):
        calls.append(1)
        return original(self, weight)

    monkeypatch.setattr(StandardizedConv, "_standardize", counted)
    return calls


def test_in_evaluation_it_is_standardized_once(monkeypatch):
    calls = count_standardizations(monkeypatch)
    conv = WSConv2d(4, 6, 3).double().eval()
    for mode in (torch.no_grad, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            conv(X)
    assert len(calls) == 1


def test_a_frozen_convolution_is_standardized_once_in_training(monkeypatch):
    calls = count_standardizations(monkeypatch)
    conv = WSConv2d(4, 6, 3).double().requires_grad_(False)
    x = X.clone().requires_grad_()
    with torch.inference_mode():  # what is kept from here on serves training, too
        conv(X)
    for _ in range(3):
        conv(x).sum().backward()
    assert len(calls) == 1 and x.grad is not None


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
        ws.load_state_dict(dict(plain.state_dict()))  # says nothing of its modules


def test_a_compiled_module_follows_its_weight():
    conv = WSConv2d(4, 6, 3).double().eval()
    compiled = torch.compile(conv, backend="eager", fullgraph=True)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(compiled(X), uncached(conv), rtol=1e-10, atol=1e-10)
            conv.weight.mul_(2).add_(torch.randn_like(conv.weight))
    torch.testing.assert_close(compiled(X).detach(), uncached(conv), rtol=1e-10, atol=1e-10)


def test_vectorized_over_weights():
    conv = WSConv2d(4, 6, 3, bias=False).double().eval()
    weights = torch.randn(3, *conv.weight.shape, dtype=torch.float64)
    with torch.no_grad():
        found = torch.func.vmap(lambda w: torch.func.functional_call(conv, {"weight": w}, (X,)))(
            weights
        )
        expected = [F.conv2d(X, standardize_weight(w)) for w in weights]
    torch.testing.assert_close(found, torch.stack(expected))


TRANSPOSED = [
    (WSConvTranspose1d, nn.ConvTranspose1d, (7,)),
    (WSConvTranspose2d, nn.ConvTranspose2d, (7, 6)),
    (WSConvTranspose3d, nn.ConvTranspose3d, (4, 5, 3)),
]
FORWARD = [
    (WSConv1d, nn.Conv1d, (7,)),
    (WSConv2d, nn.Conv2d, (7, 6)),
    (WSConv3d, nn.Conv3d, (4, 5, 3)),
]


@pytest.mark.parametrize(("ws", "plain", "size"), FORWARD + TRANSPOSED)
@pytest.mark.parametrize("groups", [1, 2])
def test_every_kind_standardizes_each_filter(ws, plain, size, groups):
    """A filter is all that makes one output channel, whichever way the weight is laid out."""
    torch.manual_seed(0)
    conv = ws(4, 6, 3, stride=2, padding=1, groups=groups).double()
    weight = conv.weight.detach().clone()
    transposed = ws.__name__.startswith("WSConvTranspose")
    for out in range(6):
        if transposed:
            rows = slice(
                out // (6 // groups) * (4 // groups), (out // (6 // groups) + 1) * (4 // groups)
            )
            index = (rows, out % (6 // groups))
        else:
            index = (out,)
        filt = weight[index]
        weight[index] = (filt - filt.mean()) / (filt.std() + 1e-5)
    reference = plain(4, 6, 3, stride=2, padding=1, groups=groups).double()
    reference.load_state_dict({"weight": weight, "bias": conv.bias.detach()})
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(conv(x), reference(x))
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(conv, {"weight": w}, x[:1]), conv.weight
    )
    assert ws(4, 6, 3).state_dict().keys() == plain(4, 6, 3).state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(fold(conv)(x), conv(x))
    assert type(fold(conv)) is plain


def test_transposed_takes_an_output_size():
    conv = WSConvTranspose2d(4, 6, 3, stride=2)
    assert conv(torch.randn(1, 4, 5, 5), output_size=[12, 12]).shape[2:] == (12, 12)


@pytest.mark.parametrize("ws", [WSConv1d, WSConv2d, WSConv3d, WSConvTranspose2d])
def test_a_fan_in_of_one_is_refused(ws):
    with pytest.raises(ValueError, match="fan-in of 1"):
        ws(4, 4, 1, groups=4)


def test_folded_is_plain_and_equal_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Sequential(
        WSConv2d(3, 8, 3), nn.ReLU(), WSConv2d(8, 4, 1, norm=nn.GroupNorm(2, 4), activation=F.relu)
    ).eval()
    x = torch.randn(2, 3, 9, 9)
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    with torch.no_grad():
        assert torch.equal(folded(x), model(x))
    assert not any(isinstance(m, StandardizedConv) for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters()) and not folded.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    buffer = io.BytesIO()
    torch.save(folded, buffer)
    assert b"gnws_d2" not in buffer.getvalue()
