"""Features of the unedited image tower, computed once in a run."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.data.dataset import Split
from vlprompt.data.images import Views, loader
from vlprompt.towers import Clip, Images

BATCH = 128


class Bank:
    """Un-normalised features of one data set's images, in memory: by image, view and the seed that views depend on."""

    def __init__(self, clip: Clip, *, precision: str, workers: int) -> None:
        self.clip, self.precision, self.workers = clip, precision, workers
        self._rows: dict[tuple[str, int | None, int], Float[Tensor, " e"]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def features(self, split: Split, view: int | None = None, *, seed: int = 0) -> Float[Tensor, "N e"]:
        """Features of a split's images in one view (None: the centre crop), on the model's device."""
        self.fill(split, view, seed=seed)
        seed = 0 if view is None else seed
        return torch.stack([self._rows[item.image, view, seed] for item in split.items])

    def fill(
        self,
        split: Split,
        view: int | None = None,
        *,
        seed: int = 0,
        done: Callable[[int], object] = lambda n: None,
    ) -> None:
        """Compute what is missing of these features; `done` hears how many images are dealt with."""
        seed = 0 if view is None else seed
        missing = [item for item in split.items if (item.image, view, seed) not in self._rows]
        done(len(split) - len(missing))
        if missing:
            rows = self._compute(replace(split, items=tuple(missing)), view, seed, done)
            self._rows |= {(item.image, view, seed): row for item, row in zip(missing, rows, strict=True)}

    @torch.no_grad()
    def _compute(
        self, split: Split, view: int | None, seed: int, done: Callable[[int], object]
    ) -> Float[Tensor, "N e"]:
        views = Views(split, self.clip.preprocess, seed=seed)
        order = [(view, index) for index in range(len(split))]
        device, out = self.clip.device, []
        for pixels, _ in loader(views, order, batch_size=BATCH, workers=self.workers):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                out.append(self.clip.image(Images(pixels.to(device, non_blocking=True))))
            done(len(pixels))
        return torch.cat(out)
