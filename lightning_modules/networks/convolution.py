"""Convolutions whose derivatives of every order are convolutions of the same kind.

A gradient penalty differentiates twice. PyTorch's own second derivative turns to a convolution whose kernel is as large
as the feature map, which is slow (in bf16 on a CPU with AMX 2 to 5 times at 64x64 and above, without AMX 1.1 to 1.2
times, channels last), and its third of a transposed convolution raises where there is an output padding. Here the
convolution and its two gradients, with respect to input and weight, are three functions, each bilinear, and each one's
derivatives are the other two:

    y = conv(x, w)        dx = input_gradient(dy, w)    dw = weight_gradient(x, dy)

since all three are one form, linear in x, w and dy, seen from each of them:

    <conv(x, w), dy>  =  <x, input_gradient(dy, w)>  =  <w, weight_gradient(x, dy)>

This holds for every stride and number of groups. ``input_gradient`` is the transposed convolution, which is offered as
one: its derivatives are in the table already. With a stride, x of several sizes have y of one size; so all three are
told the size of x.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_derivatives_in: ContextVar[torch.dtype | None] = ContextVar("_derivatives_in", default=None)


@contextmanager
def float32_forward(device: torch.device) -> Iterator[None]:
    """Compute forward passes in float32 and leave only the derivatives of convolutions to autocast's type.

    Rounding a forward pass to bf16 turns the sign of the activations next to 0, and with it the slope of their leaky
    ReLU: a gradient penalty's parameter gradient is then off by 4 to 7 %. With the signs of float32 and derivatives in
    bf16 it is off by half a percent (measured at the paper's widths), and one of the penalty's six convolutions is
    float32.
    """
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    token = _derivatives_in.set(dtype)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _derivatives_in.reset(token)


def conv2d(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int = 1, groups: int = 1
) -> Tensor:
    """Convolve as ``torch.nn.functional.conv2d`` does, differentiable any number of times.

    Under autocast, images and weight are rounded to its type first, as autocast would. Impossible arguments raise
    torch's errors.

    Args:
        images: (N, C, H, W).
        weight: (O, C / groups, k, l).
        bias: (O,) or None.
        padding: Zeros on every side, as many as you like.
        stride: Of the windows, along both axes. Rows and columns that the last window does not reach have gradient 0.
        groups: Parts of the channels that are convolved apart; divides C and O.

    Returns:
        (N, O, floor((H + 2 padding - k) / stride) + 1, same with W and l).
    """
    images, weight, bias = _in_autocast_type(images, weight, bias)
    geometry = _Geometry(images.shape[2:], weight.shape[2:], stride, padding, groups)
    return _Convolution.apply(images, weight, bias, geometry, _derivatives_in.get())


def conv_transpose2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    stride: int = 1,
    output_padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve transposed as ``torch.nn.functional.conv_transpose2d`` does, differentiable any number of times.

    Under autocast, images and weight are rounded to its type first, as autocast would.

    Args:
        images: (N, C, H, W).
        weight: (C, O / groups, k, l).
        bias: (O,) or None.
        padding: Of the convolution whose transpose this is: rows and columns cut off on every side.
        stride: Distance between the places where neighbouring pixels put their kernels, along both axes.
        output_padding: Rows and columns added at the bottom and right, less than the stride.
        groups: Parts of the channels that are convolved apart; divides C and O.

    Returns:
        (N, O, (H - 1) stride + k - 2 padding + output_padding, same with W and l).

    Raises:
        ValueError: ``output_padding`` is negative or not less than the stride, or nothing would be left of the images.
            Other impossible arguments raise torch's errors.
    """
    if not 0 <= output_padding < stride:
        raise ValueError(f"output_padding is {output_padding}; expected 0 or more, and less than stride, {stride}")
    added = output_padding - 2 * padding
    sides = zip(images.shape[2:], weight.shape[2:], strict=True)
    size = tuple((side - 1) * stride + kernel + added for side, kernel in sides)
    if min(size) < 1:
        raise ValueError(f"padding is {padding}, which leaves {size[0]} x {size[1]} pixels; expected at least 1 x 1")
    images, weight, bias = _in_autocast_type(images, weight, bias)
    geometry = _Geometry(size, weight.shape[2:], stride, padding, groups)
    return _InputGradient.apply(images, weight, bias, geometry, _derivatives_in.get())


def _in_autocast_type(images: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = images.device.type
    if not torch.is_autocast_enabled(device):
        return images, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return images.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)


class _Geometry(NamedTuple):
    """What the three functions share."""

    size: tuple[int, ...]  # height and width of x, which stride and padding refer to
    kernel: tuple[int, ...]
    stride: int
    padding: int
    groups: int

    @property
    def unreached(self) -> tuple[int, ...]:
        """Rows and columns at the end of the padded x that no window reaches: the transpose's ``output_padding``."""
        sides = zip(self.size, self.kernel, strict=True)
        return tuple((side + 2 * self.padding - kernel) % self.stride for side, kernel in sides)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: _Geometry,
        derivatives_in: torch.dtype | None,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry, ctx.derivatives_in = geometry, derivatives_in
        with torch.autocast(images.device.type, enabled=False):
            return F.conv2d(images, weight, bias, geometry.stride, geometry.padding, groups=geometry.groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wants_images, wants_weight, wants_bias, *_ = _asked_for(ctx)
        grad_of_bias = grad.sum(dim=(0, 2, 3)) if wants_bias else None
        grad, images, weight = _in_derivatives_type(ctx, grad)
        return (
            _InputGradient.apply(grad, weight, None, ctx.geometry, None) if wants_images else None,
            _WeightGradient.apply(images, grad, ctx.geometry) if wants_weight else None,
            grad_of_bias,
            None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """The gradient with respect to the images: the transposed convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: _Geometry,
        derivatives_in: torch.dtype | None,
    ) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.geometry, ctx.derivatives_in = geometry, derivatives_in
        _, _, stride, padding, groups = geometry
        with torch.autocast(grad.device.type, enabled=False):
            return F.conv_transpose2d(grad, weight, bias, stride, padding, geometry.unreached, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wants_grad, wants_weight, wants_bias, *_ = _asked_for(ctx)
        grad_of_bias = grad.sum(dim=(0, 2, 3)) if wants_bias else None
        grad, grad_of_output, weight = _in_derivatives_type(ctx, grad)
        return (
            _Convolution.apply(grad, weight, None, ctx.geometry, None) if wants_grad else None,
            _WeightGradient.apply(grad, grad_of_output, ctx.geometry) if wants_weight else None,
            grad_of_bias,
            None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """The gradient with respect to the weight."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grad: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(images, grad)
        ctx.geometry = geometry
        _, kernel, stride, padding, groups = geometry
        shape_only = images.new_empty(grad.shape[1], images.shape[1] // groups, *kernel)
        how = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups
        _, weight_gradient, _ = torch.ops.aten.convolution_backward(
            grad, images, shape_only, None, *how, [False, True, False]
        )
        return weight_gradient

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, grad_of_output = ctx.saved_tensors
        wants_images, wants_grad, *_ = _asked_for(ctx)
        return (
            _InputGradient.apply(grad_of_output, grad, None, ctx.geometry, None) if wants_images else None,
            _Convolution.apply(images, grad, None, ctx.geometry, None) if wants_grad else None,
            None,
        )


def _asked_for(ctx: Any) -> list[bool]:
    """Return whether this pass asks for the gradients with respect to the two factors and the bias, if there is one.

    A gradient penalty first asks for the images' gradient alone. ``ctx.needs_input_grad`` would be true of the weight
    then too (https://github.com/pytorch/pytorch/issues/174017): one convolution in seven for nothing.
    """
    return [*(_is_asked_for(node) for node, _ in ctx.next_functions), False]


def _is_asked_for(node: Any) -> bool:
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf, and torch.autograd.grad was asked for its gradient
        return True


def _in_derivatives_type(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient and the two tensors that were saved."""
    tensors = grad, *ctx.saved_tensors
    return tensors if ctx.derivatives_in is None else tuple(tensor.to(ctx.derivatives_in) for tensor in tensors)
