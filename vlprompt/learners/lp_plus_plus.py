"""LP++: a linear probe that mixes in the class names, fitted without a learning rate."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Learner, at_least_single, check_every_class, normalize
from vlprompt.towers import PLAIN, Clip, expand_templates


class LPPlusPlus(Learner):
    """A linear probe that mixes in the class names, with step sizes from the features. Works for the training classes
    only.

    logits = f (w + alpha t) + b, with unit image features f and frozen text features t; w, b and alpha, one number a
    class, are learned. An epoch is one step on all images; of those that are best on the validation images the last
    remains, without such images the last of all.

    Args:
        templates: one, a list, or a published one by name. Of several, normalised features are averaged.
        n_views: augmented views of each training image, all of them examples.
        iterations: epochs.
        start: alpha starts at this many times the mean cosine between images and their class's text.

    Source: Huang et al., CVPR 2024, https://arxiv.org/abs/2404.02285, section 3, and the authors' code
    (https://github.com/FereshteShakeri/FewShot-CLIP-Strong-Baseline at f81054f), whose numbers it reproduces.
    """

    revision = 2
    augmented = True
    class_bound = True
    closed_form = True
    uses_validation = True
    neutral_settings = None  # it starts with sums of features

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        n_views: int = 1,
        iterations: int = 300,
        start: float = 250.0,
    ) -> None:
        super().__init__(clip, classes)
        if n_views < 1 or iterations < 0:
            raise UserError(f"method.n_views={n_views}, iterations={iterations}: allowed are at least 1, and 0 or more")
        self.templates, self.n_views, self.iterations = expand_templates(templates), n_views, iterations
        self.start = start
        n_classes, width = len(self.classes), clip.image.embed_dim
        self.weight = nn.Parameter(torch.zeros(n_classes, width))
        self.bias = nn.Parameter(torch.empty(n_classes).uniform_(-(width**-0.5), width**-0.5))
        self.alpha = nn.Parameter(torch.full((n_classes,), clip.scale))

    def encode_classes(self) -> Float[Tensor, "C e"]:
        """w + alpha t, whose length counts."""
        texts = normalize(self.zero_shot_features(self.templates))
        return self.select(self.weight) + self.select(self.alpha)[:, None] * texts

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        assert class_features is not None
        with torch.autocast(class_features.device.type, enabled=False):
            return normalize(features) @ at_least_single(class_features).T + self.select(self.bias)

    def prepare(self, train: Batches, val: Batches | None) -> None:
        passes = [self.collect_features(train) for _ in range(self.n_views)]
        features = normalize(torch.cat([features for features, _ in passes]))
        labels = torch.cat([labels for _, labels in passes])
        check_every_class(self, labels)
        seen = self.collect_features(val) if val else None
        most, best = -1, self.state_dict()
        for _ in self.descend(features, labels):
            with torch.no_grad():
                right = 0 if seen is None else int(self.n_right(*seen))
            if right >= most:
                most, best = right, {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self.load_state_dict(best)

    def n_right(self, features: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> Tensor:
        return (self.compare(features, self.encode_classes()).argmax(-1) == labels).sum()

    def descend(self, features: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> Iterator[Tensor]:
        """The steps, from the start that `features` (of length one) give; yields the loss before each of them.

        w and b take steps of 4N / (largest eigenvalue) with momentum. alpha moves at every tenth epoch, along the sum
        of its gradients so far, by N / (4 times the largest sum of squared cosines to a class's text).
        """
        wanted = F.one_hot(labels, len(self.classes)).to(features.dtype)
        cosines = features @ normalize(self.zero_shot_features(self.templates)).T
        with torch.no_grad():
            self.weight.copy_(wanted.T @ features)
            self.alpha.fill_(self.start * ((wanted * cosines).sum(0) / wanted.sum(0)).mean())
        gram = (features.T @ features).cpu()  # Apple's GPU finds no eigenvalues
        step = 4 * len(features) / torch.linalg.eigvalsh(gram)[-1].item()
        step_alpha = len(features) / (4 * cosines.square().sum(0).max())
        optimizer = torch.optim.SGD([self.weight, self.bias], lr=step, momentum=0.9)
        for epoch in range(1, self.iterations + 1):
            optimizer.zero_grad()  # of w and b: alpha's gradients add up
            loss = F.cross_entropy(self.compare(features, self.encode_classes()), labels)
            loss.backward()
            optimizer.step()
            if epoch % 10 == 0 and self.alpha.grad is not None:
                self.alpha.data -= step_alpha * self.alpha.grad
            yield loss.detach()
        self.alpha.grad = None
