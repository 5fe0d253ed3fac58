"""Features of the unedited image tower, computed once in a run."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.data.dataset import Split
from vlprompt.data.image_cache import ImageCache
from vlprompt.data.images import PUBLISHED, Augment, Batches, Views
from vlprompt.towers import Clip, Images

BATCH = 128


class Bank:
    """Un-normalised features of images, in memory: by data set, image and view.

    View None is the centre crop. Any other is drawn from `seed` and `augment`, as `Views` does.
    """

    def __init__(self, clip: Clip, *, precision: str, workers: int, cache: ImageCache | None = None) -> None:
        self.clip, self.precision, self.workers, self.cache = clip, precision, workers, cache
        self._rows: dict[tuple[str, str, int | None, int, Augment], Float[Tensor, " e"]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def features(
        self, split: Split, view: int | None = None, *, seed: int = 0, augment: Augment = PUBLISHED
    ) -> Float[Tensor, "N e"]:
        """Features of a split's images in one view, on the model's device."""
        self.fill(split, view, seed=seed, augment=augment)
        drawn = _drawn(view, seed, augment)
        keys = ((split.origin, item.image, *drawn) for item in split.items)
        return torch.stack([self._rows[key] for key in keys])

    def fill(
        self,
        split: Split,
        view: int | None = None,
        *,
        seed: int = 0,
        augment: Augment = PUBLISHED,
        done: Callable[[int], object] = lambda n: None,
    ) -> None:
        """Compute what is missing of these features; `done` hears how many images are dealt with."""
        drawn = _drawn(view, seed, augment)
        missing = tuple(item for item in split.items if (split.origin, item.image, *drawn) not in self._rows)
        done(len(split) - len(missing))
        if missing:
            left = replace(split, items=missing)
            views = Views(left, self.clip.preprocess, seed=seed, augment=augment, cache=self.cache)
            rows = self._compute(views, view, done)
            self._rows |= {(split.origin, item.image, *drawn): row for item, row in zip(missing, rows, strict=True)}

    @torch.no_grad()
    def _compute(self, views: Views, view: int | None, done: Callable[[int], object]) -> Float[Tensor, "N e"]:
        order = [(view, index) for index in range(len(views.split))]
        device, out = self.clip.device, []
        for pixels, _ in Batches(views, order, batch_size=BATCH, workers=self.workers, device=device):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                out.append(self.clip.image(Images(pixels)))
            done(len(pixels))
        return torch.cat(out)


def _drawn(view: int | None, seed: int, augment: Augment) -> tuple[int | None, int, Augment]:
    """What a view depends on beside the image; the centre crop on nothing."""
    return (None, 0, PUBLISHED) if view is None else (view, seed, augment)
