"""Features of the unedited image tower, computed once."""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.data.cache.feature_files import FeatureFiles, Rows
from vlprompt.data.cache.image_keys import image_key
from vlprompt.data.cache.images import ImageCache
from vlprompt.data.dataset import Item, Split
from vlprompt.data.transforms import PUBLISHED, Augment, seed_of
from vlprompt.data.views import Batches, Views
from vlprompt.towers import Clip, Images
from vlprompt.towers.precision import autocast

BATCH = 128
CROP = "crop"  # the name of the centre crop


@dataclass
class Use:
    """Features that were read from the disk, and computed."""

    read: int = 0
    computed: int = 0


class FeatureCache:
    """Un-normalised features of images by view, in memory, and on disk where `files` are given: the feature bank.

    View None is the centre crop. Any other is drawn from `seed` and `augment`, as `Views` does.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        precision: str,
        workers: int,
        cache: ImageCache | None = None,
        files: FeatureFiles | None = None,
    ) -> None:
        self.clip, self.precision, self.workers, self.cache, self.files = clip, precision, workers, cache, files
        self.use = Use()
        self._rows: dict[str, Rows] = {}  # by name of the view and key of the image

    def with_new_counts(self) -> "FeatureCache":
        """The same features; their use is counted from zero."""
        other = copy(self)
        other.use = Use()
        return other

    def features(
        self, split: Split, view: int | None = None, *, seed: int = 0, augment: Augment = PUBLISHED
    ) -> Float[Tensor, "N e"]:
        """Features of a split's images in one view, on the model's device."""
        self.fill(split, [view], seed=seed, augment=augment)
        rows = self._rows[view_name(view, seed, augment)]
        return torch.stack([rows[image_key(split, item.image)] for item in split.items]).to(self.clip.device)

    def fill(
        self,
        split: Split,
        views: Iterable[int | None] = (None,),
        *,
        seed: int = 0,
        augment: Augment = PUBLISHED,
        done: Callable[[int], object] = lambda n: None,
    ) -> None:
        """Read, or compute, what is missing of these features; `done` hears how many more are there."""
        items = {image_key(split, item.image): item for item in split.items}
        missing: dict[int | None, list[str]] = {}
        for view in views:
            missing[view] = self._missing(view_name(view, seed, augment), items)
            done(len(split) - len(missing[view]))
        if any(missing.values()):
            drawn = Views(split, self.clip.preprocess, seed=seed, augment=augment, cache=self.cache)
            self._compute(drawn, missing, items, lambda view: view_name(view, seed, augment), done)

    def rows(self, name: str, split: Split) -> Rows:
        """Features of a split's images in a view that is in memory, by key."""
        return {key: self._rows[name][key] for key in (image_key(split, item.image) for item in split.items)}

    def forget(self, views: Iterable[int], *, seed: int, augment: Augment) -> None:
        """Let go of views in memory."""
        for view in views:
            self._rows.pop(view_name(view, seed, augment), None)

    def _missing(self, name: str, keys: Iterable[str]) -> list[str]:
        """The keys of a view that are neither in memory nor on disk; those on disk come into memory."""
        known = self._rows.setdefault(name, {})
        missing = [key for key in keys if key not in known]
        if missing and self.files is not None:
            width = self.clip.image.embed_dim  # a foreign bank may hold anything
            stored = {key: row for key, row in self.files.read(name, missing).items() if len(row) == width}
            known |= {key: row.to(self.clip.device) for key, row in stored.items()}
            self.use.read += len(stored)
        return [key for key in missing if key not in known]

    @torch.no_grad()
    def _compute(
        self,
        views: Views,
        missing: dict[int | None, list[str]],
        items: dict[str, Item],
        name_of: Callable[[int | None], str],
        done: Callable[[int], object],
    ) -> None:
        """One pass over all that is missing, so that worker processes start once; a view is stored when it is whole."""
        keys = list(items)
        views.split = replace(views.split, items=tuple(items.values()))
        indices = {key: index for index, key in enumerate(keys)}
        order = [(view, indices[key]) for view, of_view in missing.items() for key in of_view]
        device, start, rows = self.clip.device, 0, torch.empty(0)
        fresh: dict[str, Tensor] = {}
        for pixels, _ in Batches(views, order, batch_size=BATCH, workers=self.workers, device=device):
            with autocast(device, self.precision):
                rows = self.clip.image(Images(pixels))
            for (view, index), row in zip(order[start : start + len(rows)], rows, strict=True):
                fresh[keys[index]] = row
                if len(fresh) == len(missing[view]):
                    self._store(name_of(view), fresh)
                    fresh = {}
            start += len(rows)
            self.use.computed += len(rows)
            done(len(rows))

    def _store(self, name: str, rows: dict[str, Tensor]) -> None:
        self._rows[name] |= rows
        if self.files is not None:
            self.files.write(name, rows)


def view_name(view: int | None, seed: int, augment: Augment) -> str:
    """What a view depends on apart from the image; the centre crop on nothing."""
    if view is None:
        return CROP
    parts = (augment.scale, augment.flip) + (("center",) if augment.crop == "center" else ())
    parts += ("augmix",) if augment.augmix else ()
    drawn = "" if augment == PUBLISHED else f"-{seed_of(*parts) % 16**8:08x}"
    return f"seed{seed}{drawn}-view{view:04d}"


def tower_key(clip: Clip, precision: str) -> str:
    """The name of a frozen image tower's folder: of its weights, its precision, and how images are made for it."""
    return f"{seed_of(clip.image_fingerprint, precision, clip.preprocess):016x}"
