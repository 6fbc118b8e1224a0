"""Small networks that `torch.func.vmap` can batch, and weights drawn from a seed on the device.

They have no running statistics, unseeded dropout or in-place buffers: one run of a batch must not see another. They
also accept the weights of many runs at once, with a leading axis num_runs that the inputs share: plain batched matrix
products avoid the interpreter overhead of `vmap`, half the cost of a small step.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from metalr import seeding

Activation = Callable[[Tensor], Tensor]
# Functions that act elementwise, and so accept any shape.
_ELEMENTWISE: tuple[Activation, ...] = (
    *(torch.relu, torch.tanh, torch.sigmoid, torch.sin, torch.nn.functional.softplus),
    *(functional.relu, functional.gelu, functional.silu, functional.elu, functional.leaky_relu, functional.selu),
    *(functional.tanh, functional.sigmoid, functional.mish, functional.hardtanh, functional.relu6),
)


def takes_runs(module: nn.Module) -> bool:
    """Whether a module can be called with the weights and inputs of many runs, `(num_runs, …)` each.

    True for this file's own networks with an activation that is known to act elementwise. A subclass may do anything
    in its forward pass, and is left to `vmap`.

    Example:
        >>> from metalr.tasks.models import MLP
        >>> takes_runs(MLP([4, 8, 2])), takes_runs(torch.nn.Linear(4, 2))
        (True, False)
    """
    known = type(module) in (Point, MLP, ResidualMLP, ConvNet, GRUClassifier, ByteTransformer)
    return known and getattr(module, "activation", functional.relu) in _ELEMENTWISE


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Affine map, inputs · weightᵀ + bias.

    Args:
        inputs: `(…, in)`, or `(num_runs, …, in)` if the weights have the axis num_runs.
        weight: `(out, in)` or `(num_runs, out, in)`.
        bias: `(out,)` or `(num_runs, out)`.
    """
    if weight.dim() == 2:
        return functional.linear(inputs, weight, bias)
    outputs = torch.baddbmm(bias[:, None], inputs.flatten(1, -2), weight.mT)
    return outputs.view(*inputs.shape[:-1], outputs.shape[-1])


def _scale_and_shift(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Elementwise inputs · weight + bias along the last axis, for weights `(width,)` or `(num_runs, width)`."""
    if weight.dim() == 1:
        return torch.addcmul(bias, inputs, weight)
    shape = (len(weight), *[1] * (inputs.dim() - 2), -1)
    return torch.addcmul(bias.view(shape), inputs, weight.view(shape))


class Linear(nn.Linear):
    """`nn.Linear` that also accepts many runs at once."""

    def forward(self, inputs: Tensor) -> Tensor:
        return _affine(inputs, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last axis that also accepts many runs at once."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.weight.dim() == 1:
            return super().forward(inputs)
        normal = functional.layer_norm(inputs, self.normalized_shape, eps=self.eps)
        return _scale_and_shift(normal, self.weight, self.bias)


class Embedding(nn.Embedding):
    """`nn.Embedding` that also accepts many runs at once: weights `(num_runs, rows, width)`."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(inputs)
        runs, rows, _ = self.weight.shape
        if inputs.device.type == "cpu":
            first_row = torch.arange(0, runs * rows, rows).view(-1, *[1] * (inputs.dim() - 1))
            return functional.embedding(inputs + first_row, self.weight.flatten(0, 1))
        # A matrix product, because the backward pass of a look-up waits for the host or adds in no fixed order.
        chosen = inputs.flatten(1)[..., None] == torch.arange(rows, device=inputs.device)
        return (chosen.to(self.weight.dtype) @ self.weight).view(*inputs.shape, -1)


def _scale_initial(network: nn.Module, gain: float) -> None:
    """Multiply the freshly initialised linear and convolutional layers of a network by `gain`."""
    if gain == 1.0:
        return
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, _SCALED):
                for parameter in layer.parameters(recurse=False):
                    parameter.mul_(gain)


# Layers whose initial weights and biases a network's gain multiplies.
_SCALED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Point(nn.Module):
    """A bare float64 parameter vector that ignores its input: the "network" of the quadratic tasks.

    Args:
        values: the initial values, `(num_params,)`.

    Example:
        >>> Point([5.0])(torch.zeros(0)).item()
        5.0
    """

    def __init__(self, values: list[float] | Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.as_tensor(values, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.values


class MLP(nn.Module):
    """Linear layers of the given sizes with an activation between them.

    Args:
        sizes: widths from input to output, for example `[40, 32, 32, 10]`.
        activation: a function of a tensor, for example `torch.tanh`.
        gain: factor of the initial weights and biases.

    Example:
        >>> sum(p.numel() for p in MLP([40, 32, 10]).parameters())
        1642
    """

    def __init__(self, sizes: list[int], activation: Activation = functional.relu, gain: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.activation = activation
        self.gain = gain
        _scale_initial(self, gain)

    def forward(self, inputs: Tensor) -> Tensor:
        # With the weights of many runs, the inputs have a leading axis too.
        hidden = self.layers[0](inputs.flatten(self.layers[0].weight.dim() - 1))  # type: ignore[operator]
        for layer in self.layers[1:]:
            hidden = layer(self.activation(hidden))
        return hidden


class ResidualMLP(nn.Module):
    """Residual blocks of one width: hidden + layer(activation(norm(hidden))) (He et al. 2016, arXiv 1603.05027).

    A linear layer leads in, and a normalised and activated one leads out.

    Args:
        sizes: widths from input to output, for example `[40, 32, 32, 32, 10]` for two blocks; all inner ones equal.
        activation: a function of a tensor.
        norm: LayerNorm before each activation.
        gain: factor of the initial weights and biases of the linear layers.

    Raises:
        ValueError: the inner sizes are not one and the same width.

    Example:
        >>> sum(p.numel() for p in ResidualMLP([40, 32, 32, 10], norm=True).parameters())
        2826
    """

    def __init__(
        self, sizes: list[int], activation: Activation = functional.relu, norm: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        if len(sizes) < 3 or len(set(sizes[1:-1])) != 1:
            raise ValueError(
                f"got sizes {sizes}, expected input, one width repeated, and output: "
                "pass [40, 32, 32, 10] for one block of width 32"
            )
        width = sizes[1]
        self.first = Linear(sizes[0], width)
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes[1:]))
        self.norms = nn.ModuleList(LayerNorm(width) if norm else nn.Identity() for _ in self.layers)
        self.activation = activation
        self.gain = gain
        _scale_initial(self, gain)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.flatten(self.first.weight.dim() - 1))
        *blocks, last = zip(self.norms, self.layers, strict=True)
        for norm, layer in blocks:
            hidden = hidden + layer(self.activation(norm(hidden)))
        return last[1](self.activation(last[0](hidden)))


class ConvNet(nn.Module):
    """Strided convolutions with group normalisation, a mean over positions, and a linear read-out.

    Args:
        dimensions: 1 for signals `(batch, in_channels, length)`, 2 for images `(batch, in_channels, height, width)`.
        in_channels: channels of the input.
        channels: channels of each convolution; each convolution halves every side.
        num_classes: number of outputs.
        activation: a function of a tensor.
        gain: factor of the initial weights and biases of the convolutions and the read-out.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        channels: list[int],
        num_classes: int,
        activation: Activation = functional.relu,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d}[dimensions]
        widths = [in_channels, *channels]
        self.convolutions = nn.ModuleList(
            convolution(a, b, kernel_size=3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(4, width), width) for width in channels)
        self.head = Linear(channels[-1], num_classes)
        self.activation = activation
        self.dimensions = dimensions
        self.gain = gain
        _scale_initial(self, gain)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.head.weight.dim() == 3:
            return self._forward_runs(inputs)
        hidden = inputs
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = self.activation(norm(convolution(hidden)))
        return self.head(hidden.flatten(2).mean(-1))

    def _forward_runs(self, inputs: Tensor) -> Tensor:
        """Forward pass for inputs `(num_runs, batch, channels, *sides)`, computed with the channels last.

        A convolution becomes a gather of its windows and a matrix product: the library's grouped convolution, which
        `vmap` would use, takes twice as long for so few channels.
        """
        runs = len(inputs)
        hidden = inputs.flatten(0, 1).movedim(1, -1)  # (num_runs * batch, *sides, channels)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            windows = self._windows(hidden)
            weight = convolution.weight.movedim(2, -1).flatten(2)  # type: ignore[operator]
            hidden = _affine(windows.unflatten(0, (runs, -1)), weight, convolution.bias)  # type: ignore[arg-type]
            hidden = self.activation(self._normalise(hidden, norm))
        return self.head(hidden.flatten(1, -2).mean(1).unflatten(0, (runs, -1)))

    def _windows(self, hidden: Tensor) -> Tensor:
        """Windows of kernel 3, stride 2, padding 1: `(n, *sides, channels)` to `(n, *halves, kernel * channels)`.

        The last axis runs over the kernel's positions, then the channels.
        """
        padded = functional.pad(hidden, (0, 0) + (1, 2) * self.dimensions)
        halves = [(side + 1) // 2 for side in hidden.shape[1:-1]]
        if self.dimensions == 1:
            return torch.cat([padded[:, i : i + 2 * halves[0] : 2] for i in range(3)], -1)
        rows = [padded[:, i : i + 2 * halves[0] : 2] for i in range(3)]
        return torch.cat([row[:, :, j : j + 2 * halves[1] : 2] for row in rows for j in range(3)], -1)

    def _normalise(self, hidden: Tensor, norm: nn.Module) -> Tensor:
        """Group normalisation, `(num_runs, batch, *sides, channels)` to `(num_runs * batch, *sides, channels)`."""
        # With two sides, one of length 1, the library accepts the channels-last layout and copies nothing.
        images = hidden.flatten(0, 1).flatten(1, -2).mT.unsqueeze(2)
        normal = functional.group_norm(images, norm.num_groups, eps=norm.eps)  # type: ignore[arg-type]
        normal = normal.squeeze(2).mT.reshape(hidden.shape)
        return _scale_and_shift(normal, norm.weight, norm.bias).flatten(0, 1)  # type: ignore[arg-type]


class GRUClassifier(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) over a sequence, read out from its last state.

    The cell is written out because fused cells have no second derivative on CUDA.

    Args:
        input_size: features at each position; the input is `(batch, length, input_size)`.
        hidden_size: width of the state.
        num_classes: number of outputs.
        gain: factor of the initial weights and biases.
    """

    def __init__(self, input_size: int, hidden_size: int, num_classes: int, gain: float = 1.0) -> None:
        super().__init__()
        self.from_input = Linear(input_size, 3 * hidden_size)
        self.from_hidden = Linear(hidden_size, 3 * hidden_size)
        self.head = Linear(hidden_size, num_classes)
        self.hidden_size = hidden_size
        self.gain = gain
        _scale_initial(self, gain)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.new_zeros(*inputs.shape[:-2], self.hidden_size)
        for driven in self.from_input(inputs).unbind(-2):
            reset_x, update_x, new_x = driven.chunk(3, -1)
            reset_h, update_h, new_h = self.from_hidden(hidden).chunk(3, -1)
            update = torch.sigmoid(update_x + update_h)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            hidden = new + update * (hidden - new)
        return self.head(hidden)


class TransformerBlock(nn.Module):
    """Pre-norm causal self-attention and a two-layer MLP (Radford et al. 2019): `(…, length, width)` in and out.

    Args:
        width: size of each position's vector, a multiple of `num_heads`.
        num_heads: attention heads.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = LayerNorm(width)
        self.query_key_value = Linear(width, 3 * width)
        self.project = Linear(width, width)
        self.norm_mlp = LayerNorm(width)
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self._mlp(hidden + self._attention(self.norm_attention(hidden)))

    def _mlp(self, hidden: Tensor) -> Tensor:
        return hidden + self.contract(functional.gelu(self.expand(self.norm_mlp(hidden))))

    def _attention(self, hidden: Tensor) -> Tensor:
        # Written out rather than fused: the fused kernels have no second derivative.
        length, width = hidden.shape[-2:]
        head_width = width // self.num_heads
        # One transposition for query, key and value: (3, sequences, num_heads, length, head_width)
        parts = self.query_key_value(hidden).flatten(0, -3).unflatten(-1, (3, self.num_heads, head_width))
        query, key, value = parts.permute(2, 0, 3, 1, 4).flatten(1, 2)  # (sequences * num_heads, length, head_width)
        position = torch.arange(length, device=hidden.device)
        future = (position[:, None] < position).to(hidden.dtype) * -1e9
        scores = torch.baddbmm(future, query, key.mT, alpha=1.0 / math.sqrt(head_width))
        mixed = (scores.softmax(-1) @ value).unflatten(0, (-1, self.num_heads))
        return self.project(mixed.transpose(1, 2).reshape(hidden.shape))


class ByteTransformer(nn.Module):
    """A causal language model over bytes: `(batch, length)` int64 in, `(batch, length, 256)` logits out.

    Args:
        width: size of each position's vector, a multiple of `num_heads`.
        num_layers: transformer blocks.
        num_heads: attention heads of each block.
        max_length: bytes in the longest input.

    Example:
        >>> sum(p.numel() for p in ByteTransformer().parameters())
        120576
    """

    def __init__(self, width: int = 64, num_layers: int = 2, num_heads: int = 4, max_length: int = 64) -> None:
        super().__init__()
        self.bytes = Embedding(256, width)
        self.positions = nn.Embedding(max_length, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads) for _ in range(num_layers))
        self.norm = LayerNorm(width)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.bytes.weight  # (256, width) or (num_runs, 256, width)
        positions = self.positions.weight[..., : inputs.shape[-1], :].unsqueeze(-3)
        hidden = self.bytes(inputs) + positions
        for block in self.blocks:
            hidden = block(hidden)
        # The read-out shares the embedding; the scale makes the first prediction nearly uniform.
        normal = self.norm(hidden) / weight.shape[-1]
        if weight.dim() == 2:
            return functional.linear(normal, weight)
        return (normal.flatten(1, -2) @ weight.mT).unflatten(1, inputs.shape[1:])


def seeded_parameters(module: nn.Module, seeds: Tensor) -> dict[str, Tensor] | None:
    """Draw the weights of `num_runs` copies of a module on the device of `seeds`, without building any of them.

    Linear and convolutional layers get torch's default, uniform within 1/sqrt(fan_in), times the network's gain;
    normalisations start at one and zero; embeddings are normal with standard deviation one, also torch's default.

    Args:
        module: a network of this file, read for names, shapes and layer types; only a `Point` keeps its own values.
        seeds: `(num_runs,)` int64.

    Returns:
        Name -> `(num_runs, *shape)` in the dtype of the module, or None for a module from elsewhere, which may
        initialise its layers differently.
    """
    if type(module).__module__ != __name__:
        return None
    stream, gain = seeding.stream(seeds, "init"), getattr(module, "gain", 1.0)
    drawn: dict[str, Tensor] = {}
    for prefix, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            counter = torch.arange(parameter.numel(), device=seeds.device)
            key = (stream[:, None], len(drawn), counter)
            if isinstance(layer, _SCALED):
                bound = gain / math.sqrt(layer.weight[0].numel())
                flat = (2.0 * seeding.uniform(*key, dtype=parameter.dtype) - 1.0) * bound
            elif isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
                flat = torch.full((len(seeds), parameter.numel()), float(name == "weight"), device=seeds.device)
            elif isinstance(layer, nn.Embedding):
                flat = seeding.normal(*key, dtype=parameter.dtype)
            else:  # a Point, whose values are given
                flat = parameter.detach().to(seeds.device).flatten().expand(len(seeds), -1)
            full_name = f"{prefix}.{name}" if prefix else name
            drawn[full_name] = flat.to(parameter.dtype).view(len(seeds), *parameter.shape)
    return drawn
