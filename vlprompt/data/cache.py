"""Features of the unedited image tower, computed once in a run."""

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.data.dataset import Split
from vlprompt.data.images import Views, loader
from vlprompt.towers import Clip, Images

BATCH = 128


class Bank:
    """Un-normalised features by (image, view), in memory. View None is the centre crop."""

    def __init__(self, clip: Clip, *, precision: str, workers: int, seed: int) -> None:
        self.clip, self.precision, self.workers, self.seed = clip, precision, workers, seed
        self._rows: dict[tuple[str, int | None], Float[Tensor, " e"]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def features(self, split: Split, view: int | None = None) -> Float[Tensor, "N e"]:
        """Features of a split's images, on the model's device; what is missing is computed."""
        missing = [i for i, item in enumerate(split.items) if (item.image, view) not in self._rows]
        if missing:
            part = Split(tuple(split.items[i] for i in missing), split.classes, split.open_image)
            for item, row in zip(part.items, self._compute(part, view), strict=True):
                self._rows[item.image, view] = row
        return torch.stack([self._rows[item.image, view] for item in split.items])

    @torch.no_grad()
    def _compute(self, split: Split, view: int | None) -> Float[Tensor, "N e"]:
        views = Views(split, self.clip.preprocess, seed=self.seed)
        order = [(view, index) for index in range(len(split))]
        device, out = self.clip.device, []
        for pixels, _ in loader(views, order, batch_size=BATCH, workers=self.workers):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                out.append(self.clip.image(Images(pixels.to(device, non_blocking=True))))
        return torch.cat(out)
