"""A small classifier trained on the user's images: it gives a sample's class, and its features are used for FID.

It learns one additional class, "nothing", from noisy images, scrambled images and noise. So noise does not count as a
hit of any class, and the features are sensitive to noise.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.trojdiff.data import ImageSet, to_signed
from retarget.trojdiff.stored import read_tensors, write_tensors

FEATURES = 64


class Classifier(nn.Module):
    """Convolutions that halve the side down to 4 (or average it to 4×4), 64 hidden features, and a head.

    Args:
        shape: (channels, height, width) of the images, square, with a side of at least 4.
        num_classes: number of classes; the class "nothing" comes after them.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, side, width = shape
        halvings = (side // 4).bit_length() - 1
        if side != width or side < 4:
            raise UserError(f"the classifier needs square images of side 4 or more, not {side}×{width}")
        self.shape, self.num_classes = shape, num_classes
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        wide = 32
        for _ in range(halvings):
            layers += [nn.Conv2d(wide, 64, 3, padding=1, stride=2), nn.ReLU()]
            wide = 64
        layers += [nn.Conv2d(wide, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
        layers += [nn.Linear(1024, FEATURES), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, num_classes + 1)
        # The spread of real images, so that distances in feature space have the same unit for every classifier.
        self.register_buffer("spread", torch.ones(FEATURES))
        self.spread: Tensor

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Logits of images in [-1, 1]; the last one is of the class "nothing"."""
        return self.head(self.body(images))


class Features(nn.Module):
    """The classifier's hidden layer f on uint8 images, as log(1 + f / spread), with the spread of real images.

    Without the logarithm the few images with the largest features would dominate KID's cubic kernel: it would then vary
    more between draws of real images than it changes for a missing class.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: UInt8[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Features [N, 64]."""
        return (self.classifier.body(to_signed(images)) / self.classifier.spread).log1p()


def rejects(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Examples of the class "nothing" from images in [-1, 1]: half noisy (σ 0.25 to 1), a quarter scrambled, a quarter
    noise.

    Scrambling permutes the pixels of an image; noise has a diffusion's strength or less. Drawn from torch's global
    generator and clamped to [-1, 1], as samples are.
    """
    kind = torch.rand(len(images), 1, 1, 1)
    strength = 0.25 + 0.75 * torch.rand(len(images), 1, 1, 1)
    noise = strength * torch.randn_like(images)
    flat = images.flatten(2)
    order = torch.rand(len(images), 1, flat.shape[2]).argsort(dim=2)
    scrambled = flat.gather(2, order.expand_as(flat)).view_as(images)
    return torch.where(kind < 0.5, images + noise, torch.where(kind < 0.75, scrambled, noise)).clamp(-1, 1)


def train_classifier(images: ImageSet, epochs: int, seed: int, noise: float = 0.1) -> Classifier:
    """Train with Adam 1e-3, batches of 64 images and 32 of "nothing", half a cosine, and a little noise on the images,
    so that a slightly noisy sample keeps its class."""
    torch.manual_seed(seed)
    model = Classifier(images.shape, len(images.names))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = epochs * -(-len(images) // 64)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            x, y = images.take(rows)
            nothing = rejects(x[: -(-len(x) // 2)])
            x = torch.cat([(x + noise * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)).clamp(-1, 1), nothing])
            y = torch.cat([y, torch.full((len(nothing),), len(images.names))])
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    model.eval()
    with torch.no_grad():
        some = to_signed(images.images[torch.randperm(len(images))[:2000]])
        model.spread.copy_(model.body(some).std(dim=0).clamp(min=1e-3))
    return model


@torch.no_grad()
def predict(
    model: Classifier, images: Float[Tensor, "count channels height width"]
) -> tuple[Int[Tensor, "count"], Float[Tensor, "count"]]:
    """The class and its probability, for each image."""
    probabilities = torch.cat([model(batch).softmax(dim=1) for batch in images.split(512)])
    confidence, label = probabilities.max(dim=1)
    return label, confidence


def accuracy(model: Classifier, images: ImageSet) -> float:
    """Share of real images that are classified correctly, in %."""
    label, _ = predict(model, to_signed(images.images))
    return 100 * float((label == images.labels).float().mean())


def class_accuracies(model: Classifier, images: ImageSet) -> list[dict[str, str | float | int]]:
    """Accuracy in % and number of images of each class, by its number; classes without images are left out."""
    label, _ = predict(model, to_signed(images.images))
    found: list[dict[str, str | float | int]] = []
    for number, name in enumerate(images.names):
        of_class = images.labels == number
        if bool(of_class.any()):
            right = 100 * float((label[of_class] == number).float().mean())
            found.append({"number": number, "class": name, "accuracy": right, "count": int(of_class.sum())})
    return found


def save_classifier(model: Classifier, path: Path) -> None:
    """Write the weights as safetensors."""
    write_tensors(path, model.state_dict())


def load_classifier(path: Path, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """Read the weights.

    Raises:
        UserError: the file is damaged, or belongs to other images or classes.
    """
    model = Classifier(shape, num_classes)
    model.load_state_dict(read_tensors(path, {name: tuple(v.shape) for name, v in model.state_dict().items()}))
    return model.eval()


def join(inside: ImageSet, outside: ImageSet) -> ImageSet:
    """One image set with the classes of both, the second set's after the first's."""
    return ImageSet(
        torch.cat([inside.images, outside.images]),
        torch.cat([inside.labels, outside.labels + len(inside.names)]),
        inside.names + outside.names,
    )
