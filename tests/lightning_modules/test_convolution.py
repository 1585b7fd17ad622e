from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.networks.convolution import conv2d, conv_transpose2d, float32_forward

# Stride, padding, kernel, size of the images and groups: every pair of values of two of them occurs.
GRID = [
    (1, 0, (4, 4), (6, 6), 2),
    (1, 1, (2, 3), (5, 4), 4),
    (1, 1, (3, 3), (7, 5), 2),
    (1, 3, (1, 1), (6, 6), 1),
    (2, 0, (2, 3), (6, 6), 2),
    (2, 0, (3, 3), (5, 4), 1),
    (2, 1, (1, 1), (5, 4), 4),
    (2, 3, (4, 4), (7, 5), 4),
    (3, 0, (1, 1), (7, 5), 2),
    (3, 0, (4, 4), (5, 4), 1),
    (3, 1, (2, 3), (7, 5), 1),
    (3, 3, (3, 3), (6, 6), 4),
    (4, 0, (3, 3), (6, 6), 4),
    (4, 1, (1, 1), (7, 5), 1),
    (4, 1, (4, 4), (6, 6), 2),
    (4, 3, (2, 3), (5, 4), 2),
]
CHANNELS = {1: (3, 2), 2: (2, 4), 4: (4, 4)}  # of input and output, by groups; four groups are depthwise
on_the_grid = pytest.mark.parametrize("stride, padding, kernel, size, groups", GRID)
transposed_or_not = pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])


def pair(transposed, stride, padding, groups=1, output_padding=0):
    """Return our function and torch's, of images, weight and bias."""
    if transposed:
        return (
            lambda x, w, b=None: conv_transpose2d(x, w, b, padding, stride, output_padding, groups),
            lambda x, w, b=None: F.conv_transpose2d(x, w, b, stride, padding, output_padding, groups),
        )
    return (
        lambda x, w, b=None: conv2d(x, w, b, padding, stride, groups),
        lambda x, w, b=None: F.conv2d(x, w, b, stride, padding, groups=groups),
    )


def case(transposed, stride, padding, kernel, size, groups, dtype):
    """Return our function, torch's and their arguments; a transposed one starts from what a convolution leaves."""
    random = torch.Generator().manual_seed(0)
    inputs, outputs = CHANNELS[groups]
    weight = (inputs, outputs // groups, *kernel) if transposed else (outputs, inputs // groups, *kernel)
    if transposed:
        size = [(side + 2 * padding - k) // stride + 1 for side, k in zip(size, kernel, strict=True)]
    tensors = [
        torch.randn(*shape, generator=random, dtype=dtype).requires_grad_()
        for shape in ((2, inputs, *size), weight, (outputs,))
    ]
    return *pair(transposed, stride, padding, groups, stride - 1), tensors


def derivatives(function, tensors, orders):
    """Return the value and one set of gradients per order, each of a function of all that the order before returned."""
    found = [(function(*tensors),)]
    for _ in range(orders):
        found.append(torch.autograd.grad(sum(part.tanh().sum() for part in found[-1]), tensors, create_graph=True))
    return found


@transposed_or_not
@on_the_grid
def test_first_and_second_derivatives_are_those_of_differences(transposed, stride, padding, kernel, size, groups):
    function, _, tensors = case(transposed, stride, padding, kernel, size, groups, torch.double)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@on_the_grid
def test_three_derivatives_are_torchs(stride, padding, kernel, size, groups):
    function, torchs, tensors = case(False, stride, padding, kernel, size, groups, torch.double)
    torch.testing.assert_close(derivatives(function, tensors, 3), derivatives(torchs, tensors, 3))


@on_the_grid
def test_three_derivatives_of_a_transposed_convolution(stride, padding, kernel, size, groups):
    """Torch's own third derivative raises where there is an output_padding."""
    function, _, tensors = case(True, stride, padding, kernel, size, groups, torch.double)

    def spread_and_convolved(images, weight, bias):
        """Put the pixels on a grid of zeros and convolve it with the mirrored kernel."""
        spread = images.new_zeros(*images.shape[:2], *((side - 1) * stride + 1 for side in images.shape[2:]))
        spread[:, :, ::stride, ::stride] = images
        (bottom, right), added = (k - 1 - padding for k in kernel), stride - 1
        spread = F.pad(spread, (right, right + added, bottom, bottom + added))
        mirrored = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
        return F.conv2d(spread, mirrored, bias, groups=groups)

    torch.testing.assert_close(derivatives(function, tensors, 3), derivatives(spread_and_convolved, tensors, 3))


@transposed_or_not
@on_the_grid
def test_values_and_two_derivatives_are_torchs_in_float32(transposed, stride, padding, kernel, size, groups):
    function, torchs, tensors = case(transposed, stride, padding, kernel, size, groups, torch.float32)
    found, expected = (derivatives(each, tensors, 2) for each in (function, torchs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@transposed_or_not
@pytest.mark.parametrize("stride", [1, 2])
def test_penalty_gradients_are_those_of_the_native_convolution(transposed, stride):
    """Third order: the parameters' gradient of the gradient's norm."""
    images, weight = torch.randn(2, 3, 8, 8, dtype=torch.double), torch.randn(3, 3, 3, 3, dtype=torch.double)
    found = []
    for function in pair(transposed, stride, 1):
        x, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x, w).tanh().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append((w.grad, x.grad))
    torch.testing.assert_close(found[0], found[1])


# Cost -----------------------------------------------------------------------------------------------------------------


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are computed and notes their types and, of those that have one, kernels."""

    def __init__(self):
        super().__init__()
        self.count, self.kernels, self.types = Counter(), set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.count["transposed" if args[6] else "convolution"] += 1
            self.kernels.add(tuple(args[1].shape[2:]))
            self.types.add(args[0].dtype)
        elif function is torch.ops.aten.convolution_backward.default:
            images, weight, _ = args[10]
            self.count.update({"input gradient": int(images), "weight gradient": int(weight)})
            self.types.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


def penalty(function, images, weight):
    (gradient,) = torch.autograd.grad(function(images, weight).square().sum(), images, create_graph=True)
    gradient.square().sum().backward()


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
@transposed_or_not
def test_penalty_is_six_convolutions_with_small_kernels(transposed, stride, groups, leaves):
    """A computed weight, as equalised convolutions have, or a parameter itself."""
    ours, torchs = pair(transposed, stride, 1, groups)
    weight = torch.randn(4, 4 // groups, 3, 3).requires_grad_()
    images = torch.randn(2, 4, 17, 16).requires_grad_()
    with Convolutions() as seen:
        penalty(ours if leaves else lambda x, w: ours(x * 2, w * 2), images, weight)
    assert +seen.count == {"convolution": 2, "transposed": 2, "weight gradient": 2}
    assert seen.kernels == {(3, 3)}
    with Convolutions() as seen:
        penalty(torchs, images, weight)
    assert max(seen.kernels) > (3, 3)  # as large as the feature map


@transposed_or_not
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_gradient_that_is_asked_for_is_computed(transposed, wanted):
    function, _ = pair(transposed, 2, 1)
    tensors = [torch.randn(*shape, requires_grad=True) for shape in ((2, 4, 9, 8), (4, 4, 3, 3), (4,))]
    out = function(*tensors).sum()
    with Convolutions() as seen:
        torch.autograd.grad(out, tensors[wanted])
    of_images = "convolution" if transposed else "transposed"
    assert +seen.count == [{of_images: 1}, {"weight gradient": 1}, {}][wanted]


# Types ----------------------------------------------------------------------------------------------------------------


def float32_case():
    random = torch.Generator().manual_seed(0)
    shapes = (2, 4, 9, 8), (4, 4, 3, 3), (4,)
    return [torch.randn(*shape, generator=random).requires_grad_() for shape in shapes]


def two_derivatives(out, tensors):
    """Return the first derivatives, and the types of all convolutions of two orders."""
    with Convolutions() as seen:
        first = torch.autograd.grad(out.float().square().sum(), tensors, create_graph=True)
        torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors)
    return first, seen.types


@transposed_or_not
@pytest.mark.parametrize("stride", [1, 2])
def test_autocast_computes_values_and_derivatives_in_its_type(transposed, stride):
    function, torchs = pair(transposed, stride, 1)
    tensors = float32_case()
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = function(*tensors), torchs(*tensors)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, expected)
    first, types = two_derivatives(out, tensors)
    assert types == {torch.bfloat16}
    assert all(gradient.dtype is torch.float32 for gradient in first)


@transposed_or_not
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("autocast, type_of_derivatives", [(False, torch.float32), (True, torch.bfloat16)])
def test_float32_forward_leaves_only_the_derivatives_to_autocast(transposed, stride, autocast, type_of_derivatives):
    function, torchs = pair(transposed, stride, 1)
    tensors = float32_case()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), float32_forward(torch.device("cpu")):
        out = function(*tensors)
    expected = torchs(*tensors)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out, expected)
    first, types = two_derivatives(out, tensors)
    assert types == {type_of_derivatives}
    exact = torch.autograd.grad(expected.square().sum(), tensors)
    for gradient, reference in zip(first, exact, strict=True):
        assert float((gradient - reference).detach().norm() / reference.norm()) < 0.01


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride, output_padding", [(1, 1), (2, 2), (2, 3), (2, -1), (0, 0)])
def test_output_padding_must_be_less_than_the_stride(stride, output_padding):
    images, weight = torch.randn(2, 4, 6, 5), torch.randn(4, 3, 3, 3)
    with pytest.raises(ValueError, match=f"output_padding is {output_padding}; .* less than stride, {stride}"):
        conv_transpose2d(images, weight, None, 1, stride, output_padding)


def test_a_transposed_convolution_must_leave_a_pixel():
    images, weight = torch.randn(2, 4, 2, 3), torch.randn(4, 3, 3, 3)
    assert conv_transpose2d(images, weight, None, 2, 2, 1).shape == (2, 3, 2, 4)
    with pytest.raises(ValueError, match="padding is 2, which leaves 0 x 1 pixels"):
        conv_transpose2d(images, weight, None, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stride": 0}, "non-positive stride"),
        ({"padding": -1}, "negative padding"),
        ({"groups": 3}, "groups=3"),
        ({"groups": 2}, "groups=2"),
        ({"weight": torch.randn(4, 3, 3, 3)}, "to have 3 channels"),
        ({"weight": torch.randn(4, 4, 9, 3)}, "Kernel size can't be greater"),
        ({"bias": torch.zeros(3)}, "expected bias"),
    ],
)
def test_impossible_convolutions_raise(arguments, message):
    possible = {"images": torch.randn(2, 4, 6, 5), "weight": torch.randn(4, 4, 3, 3), "bias": None, "padding": 1}
    assert conv2d(**possible).shape == (2, 4, 6, 5)
    with pytest.raises(RuntimeError, match=message):
        conv2d(**possible | arguments)
