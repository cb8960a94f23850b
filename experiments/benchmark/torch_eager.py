"""The same algorithms in eager PyTorch, one seed after another: what ``benchmark.py --against torch`` compares with.

Written as one would write them in PyTorch, without a compiler and without tricks against it: in-place Adam from
``torch.optim`` (fused implementation), the local updates of all blocks through one autograd graph of detached inputs.
Network, losses, estimator sizes and measurements are those of ``jcredit`` (CIFAR shapes, raw credit).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 10
INPUTS = 3072


@dataclass
class Sizes:
    """Depth L, width D, batch B and the estimator's hidden width."""

    depth: int = 4
    width: int = 256
    batch: int = 128
    hidden: int = 256
    directions: int = 4
    noise_samples: int = 4


class Block(nn.Module):
    """h + GELU(LN(h) W1 + b1) W2 + b2."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.normal_(self.outer.weight, std=0.01)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h):
        """(B, D) -> (B, D)."""
        return h + self.outer(F.gelu(self.inner(F.layer_norm(h, h.shape[-1:]))))


class Net(nn.Module):
    """The residual MLP."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.embed = nn.Linear(INPUTS, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes.width) for _ in range(sizes.depth))
        self.out = nn.Linear(sizes.width, CLASSES)

    def readout(self, h):
        """(B, D) -> logits (B, C)."""
        return self.out(F.layer_norm(h, h.shape[-1:]))


def trunk(sizes: Sizes, outputs: int) -> nn.Module:
    """[LN(h), time features (9), e_T] -> two hidden layers -> outputs."""
    return nn.Sequential(
        nn.Linear(sizes.width + 9 + CLASSES, sizes.hidden), nn.SiLU(), nn.Linear(sizes.hidden, sizes.hidden), nn.SiLU(),
        nn.Linear(sizes.hidden, outputs),
    )  # fmt: skip


def features(h, t, code):
    """Input of a trunk for states (..., B, D) at times (..., B)."""
    phase = math.pi * t[..., None] * torch.arange(1, 5)
    time_ = torch.cat([t[..., None], torch.sin(phase), torch.cos(phase)], -1)
    code = code.expand(*h.shape[:-1], CLASSES)
    return torch.cat([F.layer_norm(h, h.shape[-1:]), time_, code], -1)


class Trainer:
    """One seed of one method."""

    def __init__(self, method: str, sizes: Sizes, seed: int):
        torch.manual_seed(seed)
        self.method, self.sizes = method, sizes
        self.net = Net(sizes)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
        self.feedback = torch.randn(sizes.depth + 1, CLASSES, sizes.width) / CLASSES**0.5
        outputs = {"scalar_bridge": 1, "vector_field": sizes.width}.get(method)
        if outputs:
            self.estimator = trunk(sizes, outputs)
            self.slow = trunk(sizes, outputs)
            self.slow.load_state_dict(self.estimator.state_dict())
            self.estimator_optimizer = torch.optim.Adam(self.estimator.parameters(), lr=1e-3, fused=True)
        self.times = torch.arange(sizes.depth + 1) / sizes.depth

    def step(self, x, y):
        """One optimiser step of network and estimator on a batch."""
        if self.method == "bp":
            h = self.net.embed(x)
            for block in self.net.blocks:
                h = block(h)
            loss = F.cross_entropy(self.net.readout(h), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return
        outputs = [self.net.embed(x)]
        for block in self.net.blocks:
            outputs.append(block(outputs[-1].detach()))
        h = torch.stack([o.detach() for o in outputs])
        last = outputs[-1].detach().requires_grad_()
        logits = self.net.readout(last)
        losses = F.cross_entropy(logits, y, reduction="none")
        error = (torch.softmax(logits, -1) - F.one_hot(y, CLASSES)).detach()
        self.optimizer.zero_grad()
        losses.mean().backward()
        delta = last.grad * len(y)
        credit = self.credit(h, error)
        torch.autograd.backward(outputs, list(credit / len(y)))
        self.optimizer.step()
        if hasattr(self, "estimator"):
            objective = getattr(self, f"fit_{self.method}")(h, error, delta, losses.detach(), y)
            self.estimator_optimizer.zero_grad()
            objective.backward()
            nn.utils.clip_grad_norm_(self.estimator.parameters(), 1.0)
            self.estimator_optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.estimator.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)

    def credit(self, h, error):
        """a_0..a_L."""
        if self.method == "dfa":
            return torch.einsum("bc,lcd->lbd", error, self.feedback)
        times = self.times[:, None].expand(h.shape[:2])
        if self.method == "vector_field":
            with torch.no_grad():
                return self.estimator(features(h, times, error))
        h = h.clone().requires_grad_()
        return torch.autograd.grad(self.estimator(features(h, times, error)).sum(), h)[0]

    def fit_scalar_bridge(self, h, error, delta, losses, y):
        """Terminal value + bridge consistency + terminal gradient."""
        last, one = h[-1].clone().requires_grad_(), torch.ones(h.shape[1])
        value = self.estimator(features(last, one, error))[:, 0]
        slope = torch.autograd.grad(value.sum(), last, create_graph=True)[0]
        times = self.times[:, None].expand(h.shape[:2])
        with torch.no_grad():
            noisy = h[None, 1:] + 0.05 * torch.randn(self.sizes.noise_samples, *h[1:].shape)
            later = times[None, 1:].expand(noisy.shape[:-1])
            target = self.slow(features(noisy, later, error))[..., 0].mean(0)
        here = self.estimator(features(h[:-1], times[:-1], error))[..., 0]
        terminal = ((slope - delta) ** 2).sum() / (delta**2).sum()
        return ((value - losses) ** 2).mean() + ((here - target) ** 2).mean() + terminal

    def loss_at(self, layer, h, y):
        """Loss with the tail re-run from each sample's own layer: h (M, B, D), layer (B,), ascending."""
        for i, block in enumerate(self.net.blocks):
            started = int((layer <= i).sum())
            h = torch.cat([block(h[:, :started]), h[:, started:]], dim=1)
        logits = self.net.readout(h)
        return F.cross_entropy(logits.flatten(0, 1), y.repeat(len(h)), reduction="none").view(len(h), -1)

    def fit_vector_field(self, h, error, delta, losses, y):
        """Central differences along M directions at a random layer per sample, and the terminal gradient."""
        batch, width = h.shape[1:]
        layer, order = torch.arange(batch) * self.sizes.depth // batch, torch.randperm(batch)
        here, dealt_error, dealt_y = h[layer, order], error[order], y[order]
        v, eps = torch.randn(self.sizes.directions, batch, width), 1e-2
        with torch.no_grad():
            moved = [self.loss_at(layer, here + sign * eps * v, dealt_y) for sign in (1, -1)]
            effect = (moved[0] - moved[1]) / (2 * eps)
        a = self.estimator(features(here, self.times[layer], dealt_error))
        terminal = self.estimator(features(h[-1], torch.ones(batch), error))
        directional = (((a * v).sum(-1) - effect) ** 2).sum() / (effect**2).sum()
        return directional + ((terminal - delta) ** 2).sum() / (delta**2).sum()


def crop_and_flip(images):
    """Random crops (padding 4) and flips of a uint8 batch (B, H, W, C), with one gather of pixels."""
    batch, size = images.shape[:2]
    offset, flip = torch.randint(-4, 5, (batch, 2)), torch.rand(batch, 1) < 0.5
    rows, columns = torch.arange(size) + offset[:, :1], torch.arange(size) + offset[:, 1:]
    columns = torch.where(flip, columns.flip(1), columns)
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    rows, columns = rows.clamp(0, size - 1), columns.clamp(0, size - 1)
    pixels = images[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels * inside[..., None]


def measure(method: str, seeds: int, sizes: Sizes, seconds: float, repeats: int) -> list[float]:
    """Seed-steps per second of each repeat: ``seeds`` trainers take steps one after another, gather included."""
    images = torch.randint(0, 256, (3200, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (3200,))
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    trainers = [Trainer(method, sizes, seed) for seed in range(seeds)]

    def rounds(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            for trainer in trainers:
                index = torch.randint(0, len(images), (sizes.batch,))
                x = ((crop_and_flip(images[index]).float() / 255 - mean) / std).flatten(1)
                trainer.step(x, labels[index])
        return time.perf_counter() - start

    pace = rounds(5) / 5
    n = max(1, round(seconds / pace))
    return [n * seeds / rounds(n) for _ in range(repeats)]
