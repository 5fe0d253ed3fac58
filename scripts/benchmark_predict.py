"""How long it takes to classify photographs: `Model.predict`, and the loop that everybody writes around open_clip.

    python scripts/benchmark_predict.py --images 1000

The same random ViT-B/32, files, batches and worker processes; in turn, round after round. Files are JPEGs of 1/f noise,
224 to 500 pixels wide, made anew. Prints the medians, as wall and as CPU time; the probabilities have to agree.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from benchmark_loading import QUALITY, noise
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlprompt.api import Model, load_clip
from vlprompt.data.photos import BATCH
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.training.device import default_workers

NAME, CLASSES = "ViT-B-32", [f"kind {n}" for n in range(100)]
SIZES = ((224, 224), (320, 240), (400, 300), (500, 375))


def make_photos(folder: Path, n: int) -> list[Path]:
    generator = np.random.default_rng(0)
    pictures = [noise(*size, generator) for size in SIZES]
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        Image.fromarray(np.roll(pictures[i % len(SIZES)], 37 * i, axis=1)).save(path, quality=QUALITY)
    return paths


class Photos(Dataset[Tensor]):
    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]))


@torch.inference_mode()
def plain(model: open_clip.CLIP, photos: Photos, device: torch.device) -> Tensor:
    """Probabilities [N, C]."""
    tokens = open_clip.get_tokenizer(NAME)([f"a photo of a {name}." for name in CLASSES]).to(device)
    classes, rows = F.normalize(model.encode_text(tokens), dim=-1), []
    for pixels in DataLoader(photos, batch_size=BATCH, num_workers=default_workers()):
        features = F.normalize(model.encode_image(pixels.to(device)), dim=-1)
        rows.append((model.logit_scale.exp() * features @ classes.T).softmax(-1).cpu())
    return torch.cat(rows)


def now() -> np.ndarray:
    """Seconds on the clock, and of CPU time in this process and in workers that have ended."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths, weights = make_photos(Path(folder), options.images), Path(folder) / "random.pt"
        torch.manual_seed(0)
        theirs, _, transform = open_clip.create_model_and_transforms(NAME)
        torch.save(theirs.state_dict(), weights)
        clip = load_clip(NAME, str(weights))
        theirs, photos = theirs.to(clip.device).eval(), Photos(paths, transform)
        times: dict[str, list[np.ndarray]] = {"predict": [], "plain": []}
        for _ in range(options.rounds):
            start = now()
            ours = Model(ZeroShot(clip, CLASSES)).probabilities(paths)
            times["predict"].append(now() - start)
            start = now()
            expected = plain(theirs, photos, clip.device)
            times["plain"].append(now() - start)
            torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)
    medians = {name: np.median(rounds, axis=0) for name, rounds in times.items()}
    for name, (wall, cpu) in medians.items():
        print(f"{name}: {wall:.1f} s, of CPU time {cpu:.1f} s")
    wall, cpu = medians["predict"] / medians["plain"]
    print(f"predict / plain: {wall:.2f}, of CPU time {cpu:.2f}")


if __name__ == "__main__":
    main()
