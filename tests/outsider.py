"""Third-party networks, algorithm, loss, optimizer, augmentation, policy, rule, compressor,
detector, extractor, metric and tracker."""

from pathlib import Path

import torch
from torch import nn

from fedgan_mpi.algorithms.aggregation.compressors import Compressor
from fedgan_mpi.algorithms.aggregation.detectors import Detector
from fedgan_mpi.algorithms.aggregation.rules import Rule
from fedgan_mpi.algorithms.aggregation.server_optimizer import ServerOptimizer
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.base import Algorithm, AveragingAlgorithm
from fedgan_mpi.evaluation.metrics import Metric
from fedgan_mpi.federation.policies import Policy
from fedgan_mpi.nn.augment import Augmentation
from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.optimizers import SGD, Optimizer
from fedgan_mpi.trackers import Tracker

with open(Path(__file__).with_name("imported"), "a") as file:
    file.write("x")  # each import leaves a trace


class G(nn.Module):
    def __init__(self, image_shape, nz, width):
        super().__init__()
        self.image_shape = image_shape
        channels, height, columns = image_shape
        self.layers = nn.Sequential(
            nn.Linear(nz, width),
            nn.ReLU(),
            nn.Linear(width, channels * height * columns),
            nn.Tanh(),
        )

    def forward(self, z, *classes):
        return self.layers(torch.cat([z, *classes], 1)).view(-1, *self.image_shape)


class D(nn.Module):
    fails = False

    def __init__(self, image_shape, classes, width):
        super().__init__()
        channels, height, columns = image_shape
        self.layers = nn.Sequential(
            nn.Linear(channels * height * columns + classes, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, images, *classes):
        if self.fails and self.training and len(images) > 2:
            raise RuntimeError("boom")
        return self.layers(torch.cat([images.flatten(1), *classes], 1)).flatten()


def build(image_shape, nz, classes, *, width: int = 8):
    """Two small networks."""
    return G(image_shape, nz + classes, width), D(image_shape, classes, width)


def build_and_fail(image_shape, nz, classes):
    networks = build(image_shape, nz, classes)
    networks[1].fails = True
    return networks


def build_one(image_shape, nz, classes):
    return G(image_shape, nz, 8)


def build_flat(image_shape, nz, classes):
    return nn.Linear(nz, 3), D(image_shape, classes, 8)


def build_wide(image_shape, nz, classes):
    networks = build(image_shape, nz, classes)
    networks[0].layers[3] = nn.Identity()
    nn.init.constant_(networks[0].layers[2].bias, 5)
    return networks


class Mine(AveragingAlgorithm):
    """Serial rounds of `ren`, by the public interface alone."""

    @property
    def trains_generator_last(self):
        return True

    def round(self, t):
        self.link.broadcast(self.flat.gan)
        self.train_participants(t)
        self.link.average(self.uplink, into=self.flat.discriminator)
        self.link.prefetch(self.flat.discriminator)
        if self.server:
            self.train_generator()

    def train(self, device, t):
        return device.train_discriminator(t), None

    def make_uplink(self):
        return Uplink(self.rank_state, self.flat.discriminator)


class Logs(Mine):
    """Mine, with numbers in stats.jsonl."""

    def __init__(self, rank_state, *, factor: float, under: str = "twice_the_index"):
        super().__init__(rank_state)
        self.factor, self.under = factor, under

    def train(self, device, t):
        self.log(self.under, self.factor * device.index)
        return super().train(device, t)


class Fails(Mine):
    def train(self, device, t):
        raise RuntimeError("boom")


class NoRound(Algorithm):
    pass


class Noise(Augmentation):
    """Adds one number to a whole image."""

    def __init__(self, *, size: float = 0.1):
        self.size = size

    def __call__(self, images, numbers):
        return images + self.size * (numbers[:, :, None, None] - 0.5)


class Halves(Augmentation):
    def __call__(self, images, numbers):
        return images[..., : images.shape[-1] // 2]


class Countless(Noise):
    numbers = 0.5


class FailsToAugment(Noise):
    def __call__(self, images, numbers):
        if len(images) > 2:
            raise RuntimeError("boom")
        return images


class Halfway(ServerOptimizer):
    """Half of the update."""

    def __init__(self, *, part: float = 0.5):
        self.part = part

    def change(self, update, state):
        return self.part * update


class Signs(Compressor):
    """Only the sign of each number, in a byte."""

    def __init__(self, *, scale: float = 0.01):
        super().__init__()
        self.scale = scale

    def floats(self, count):
        return 0

    def bits(self, count, bits_per_number):
        return 8 * count

    def encode(self, update, message, stream):
        message.copy_(update.sign() + 1)

    def decode(self, message, update):
        update.copy_(message).sub_(1).mul_(self.scale)


class Highest(Detector):
    """The highest loss."""

    def outliers(self, t, losses, stream):
        return [max(losses, key=losses.get)]


class Odd(Policy):
    """Devices with odd numbers."""

    def choose(self, t, available):
        return [device for device in available if device % 2 == 1]


class Nobody(Policy):
    def choose(self, t, available):
        return [] if t else available


class FailsToChoose(Policy):
    def choose(self, t, available):
        if t:
            raise RuntimeError("boom")
        return available


class Shares(Rule):
    """The weighted mean."""

    def __init__(self, *, factor: float = 1.0):
        self.factor = factor

    def combine(self, vectors, shares):
        return self.factor * (shares @ vectors)


class Scalar(Rule):
    def combine(self, vectors, shares):
        return vectors.mean()


class FailsToCombine(Rule):
    def combine(self, vectors, shares):
        if vectors.abs().sum() > 0:
            raise RuntimeError("boom")
        return vectors[0]


class Pool(nn.Module):
    def __init__(self, cells):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(cells)

    def forward(self, images):
        return self.pool(images.float()).flatten(1)


def cells(image_shape, *, side: int = 2):
    """Mean brightness of cells."""
    return Pool(side)


def whole_images(image_shape):
    return nn.Identity()


def moody(image_shape):
    class Moody(nn.Module):
        def forward(self, images):
            return torch.rand(len(images), 4)

    return Moody()


class MeanGap(Metric):
    """Largest difference of the features' means."""

    needs_features = True

    def __init__(self, *, scale: float = 1.0):
        self.scale = scale

    def compute(self, fake, real, link):
        return {"gap": self.scale * float(abs(fake.rows.mean(0) - real.rows.mean(0)).max())}


class Text(Metric):
    def compute(self, fake, real, link):
        return {"text": "much"}


class FailsToScore(Metric):
    def compute(self, fake, real, link):
        raise RuntimeError("boom")


def margin(*, size: float = 1.0):
    """Hinge with a margin."""
    return Loss(
        real=lambda x: (size - x).relu(), fake=lambda x: (size + x).relu(), generator=lambda x: -x
    )


class Slower(SGD):
    """Gradient descent with a part of the rate."""

    def __init__(self, parameters, lr, *, part: float = 0.5):
        super().__init__(parameters, part * lr)


class Stubborn(Optimizer):
    def step(self):
        self.vector.sub_(self.lr * self.gradient)


number = 3


class Journal(Tracker):
    """A file of events in the run directory."""

    def on_run_begin(self, run, done):
        self.path = run / "journal"
        self.write("begin")

    def on_round_end(self, round, metrics):
        self.write("round")

    def close(self):
        self.write("close")

    def write(self, event):
        with self.path.open("a") as file:
            file.write(event + "\n")
