"""A convolution whose derivatives of every order are convolutions of the same kind.

A gradient penalty differentiates twice. PyTorch's own second derivative turns to a convolution whose kernel is as large
as the feature map, which is slow (in bf16 on a CPU 2 to 5 times at 64x64 and above). Here the convolution and its two
gradients, with respect to input and weight, are three functions, each bilinear, and each one's derivatives are the
other two:

    y = conv(x, w)        dx = input_gradient(dy, w)    dw = weight_gradient(x, dy)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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


def conv2d(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Convolve with stride 1, as ``torch.nn.functional.conv2d`` does, differentiable any number of times.

    Under autocast, images and weight are rounded to its type first, as autocast would.

    Args:
        images: (N, C, H, W).
        weight: (O, C, k, k).
        bias: (O,) or None.
        padding: Zeros on every side, at most k - 1.
    """
    device = images.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        images, weight = images.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    return _Convolution.apply(images, weight, bias, padding, _derivatives_in.get())


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, derivatives_in: torch.dtype | None
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.padding, ctx.derivatives_in = padding, derivatives_in
        with torch.autocast(images.device.type, enabled=False):
            return F.conv2d(images, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        wants_images, wants_weight, wants_bias, _, _ = ctx.needs_input_grad
        grad_of_bias = grad.sum(dim=(0, 2, 3)) if wants_bias else None
        if ctx.derivatives_in is not None:
            grad, images, weight = (tensor.to(ctx.derivatives_in) for tensor in (grad, images, weight))
        return (
            _InputGradient.apply(grad, weight, ctx.padding) if wants_images else None,
            _WeightGradient.apply(images, grad, weight.shape[-1], ctx.padding) if wants_weight else None,
            grad_of_bias,
            None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """The gradient with respect to the images: the transposed convolution."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.padding = padding
        with torch.autocast(grad.device.type, enabled=False):
            return F.conv_transpose2d(grad, weight, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_of_output, weight = ctx.saved_tensors
        wants_grad, wants_weight, _ = ctx.needs_input_grad
        return (
            _Convolution.apply(grad, weight, None, ctx.padding, None) if wants_grad else None,
            _WeightGradient.apply(grad, grad_of_output, weight.shape[-1], ctx.padding) if wants_weight else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """The gradient with respect to the weight."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grad: Tensor, kernel: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, grad)
        ctx.padding = padding
        shape_only = images.new_empty(grad.shape[1], images.shape[1], kernel, kernel)
        _, weight_gradient, _ = torch.ops.aten.convolution_backward(
            grad, images, shape_only, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, [False, True, False]
        )
        return weight_gradient

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, grad_of_output = ctx.saved_tensors
        wants_images, wants_grad, _, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(grad_of_output, grad, ctx.padding) if wants_images else None,
            _Convolution.apply(images, grad, None, ctx.padding, None) if wants_grad else None,
            None,
            None,
        )
