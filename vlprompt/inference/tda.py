"""TDA: a cache of confident test images, and one of doubtful ones, next to the learner's logits."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.inference.base import Adaptation, Adapter, ImageViews
from vlprompt.inference.views import by_confidence, check_features, check_selection, entropy
from vlprompt.learners.base import Learner, at_least_single, normalize


class TDA(Adaptation):
    """Logits of the learner + those of a cache of confident images - those of a cache of doubtful ones.

    A cache's logits are alpha * sum over its images of exp(-beta (1 - cosine)) * value, where the value of a confident
    image is the class predicted for it, as one-hot, and that of a doubtful one marks the classes it may be of. An image
    enters the caches before it is judged. Caches are empty at the start of each test.

    Args:
        views: where there are several, features, logits and probabilities are means over the surest.
        selection: share of the views, `int(views * selection)` but at least one: those with the lowest entropy.
        positive_shots, negative_shots: images that are kept for each predicted class: those with the lowest entropy.
        positive_alpha, negative_alpha, positive_beta, negative_beta: as above.
        entropy_range: which images are doubtful: those whose entropy in nats, over log2(C), is between these.
        mask_range: which classes are possible for them: those whose probability is between these.

    Source: Karmanov et al., CVPR 2024, https://arxiv.org/abs/2403.18293, section 3; the authors' code.
    """

    name = "tda"
    inference = "online"

    def __init__(
        self,
        *,
        views: int = 1,
        augmix: bool = False,
        selection: float = 0.1,
        positive_shots: int = 3,
        positive_alpha: float = 2.0,
        positive_beta: float = 5.0,
        negative_shots: int = 2,
        negative_alpha: float = 0.117,
        negative_beta: float = 1.0,
        entropy_range: Sequence[float] = (0.2, 0.5),
        mask_range: Sequence[float] = (0.03, 1.0),
    ) -> None:
        super().__init__(views=views, augmix=augmix)
        check_selection(selection)
        if min(positive_shots, negative_shots) < 1 or (len(entropy_range), len(mask_range)) != (2, 2):
            raise UserError(
                f"test_time.positive_shots={positive_shots}, negative_shots={negative_shots}, entropy_range="
                f"{list(entropy_range)}, mask_range={list(mask_range)}: allowed are at least 1, and two numbers"
            )
        self.selection, self.entropy_range, self.mask_range = selection, entropy_range, mask_range
        self.positive = positive_shots, positive_alpha, positive_beta
        self.negative = negative_shots, negative_alpha, negative_beta

    def check(self, learner: Learner) -> None:
        check_features(self.name, learner)

    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Adapter:
        return Stream(self)


class Stream:
    """One pass over the images of a test, and what it remembers of them."""

    def __init__(self, tda: TDA) -> None:
        self.tda = tda
        self.positive: Cache | None = None
        self.negative: Cache | None = None

    def __call__(self, image: ImageViews) -> Float[Tensor, " C"]:
        assert image.logits is not None
        assert image.features is not None
        surest, _ = by_confidence(image.logits, self.tda.selection)
        logits, key = at_least_single(image.logits)[surest], normalize(image.features)[surest].mean(0)
        probabilities, logits = logits.softmax(-1).mean(0), logits.mean(0)
        doubt, predicted, n = entropy(probabilities), logits.argmax(), len(logits)
        if self.positive is None or self.negative is None:
            self.positive, self.negative = (Cache(key, n, *of) for of in (self.tda.positive, self.tda.negative))
        low, high = self.tda.entropy_range
        least, most = self.tda.mask_range
        with torch.autocast(key.device.type, enabled=False):
            self.positive.add(predicted, doubt, key, F.one_hot(predicted, n))
            if low < doubt / math.log2(n) < high:  # of a single class it is NaN, and no image is doubtful
                self.negative.add(predicted, doubt, key, (probabilities > least) & (probabilities < most))
            return logits + self.positive.logits(key) - self.negative.logits(key)


class Cache:
    """Of each predicted class the images of lowest entropy, at most `shots`. An empty place has a value of zeros.

    `like` is a key, as long and where the images' are.
    """

    def __init__(self, like: Float[Tensor, " e"], n_classes: int, shots: int, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self.entropy = like.new_full((n_classes, shots), math.inf)
        self.keys = like.new_zeros(n_classes, shots, len(like))
        self.values = like.new_zeros(n_classes, shots, n_classes)

    def add(
        self,
        predicted: Int[Tensor, ""],
        entropy: Float[Tensor, ""],
        key: Float[Tensor, " e"],
        value: Shaped[Tensor, " C"],
    ) -> None:
        """Next to the images of the same class, of which the last gives way; of equal ones the first comes first."""
        ranked = torch.cat([self.entropy[predicted], entropy[None]]).argsort(stable=True)[:-1]
        for rows, new in ((self.entropy, entropy), (self.keys, key), (self.values, value)):
            rows[predicted] = torch.cat([rows[predicted], new[None].to(rows)])[ranked]

    def logits(self, key: Float[Tensor, " e"]) -> Float[Tensor, " C"]:
        affinity = torch.exp(-self.beta * (1 - self.keys @ key))
        return self.alpha * (affinity.flatten() @ self.values.flatten(0, 1))
