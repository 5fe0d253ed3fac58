"""Trains the demo's backbone: a tiny CLIP, contrastively, on drawn pictures with written captions.

    python scripts/pretrain_demo.py --fonts /usr/share/fonts --out vlprompt/demo/shapes_vit

The published weights took two stages, 54 minutes of training: `--minutes 29` (1276 of 4000 steps), then `--resume` from
there with `--seed 2 --lr 1e-3 --steps 2600 --pool 24000 --minutes 25` (1238 steps, those after 1000 kept).
Drawing 30,000 pictures took 2 minutes, a step of 128 pictures 0.6 s on free cores and up to 3 s on busy ones. All
4000 steps take about 45 minutes on two free cores (estimated from the time of a step) and should do better.
`--minutes` ends the schedule by the clock, so such a run cannot be repeated exactly; without it, it can.

Letters and printed digits are drawn in the fonts found. The published weights used these Debian packages (main):
fonts-breip fonts-cabin fonts-cantarell fonts-comic-neue fonts-dancingscript fonts-dejavu-core fonts-dejavu-extra
fonts-dkg-handwriting fonts-dustin fonts-ecolier-court fonts-freefont-ttf fonts-humor-sans fonts-inconsolata
fonts-isabella fonts-junction fonts-kaushanscript fonts-klee fonts-kristi fonts-lato fonts-liberation fonts-lobster
fonts-lobstertwo fonts-monofur fonts-mononoki fonts-ocr-a fonts-oldstandard fonts-open-sans fonts-opendyslexic
fonts-play fonts-quicksand fonts-roboto-slab fonts-rufscript fonts-sil-andika fonts-tomsontalks fonts-ubuntu-title
fonts-urw-base35 fonts-yusei-magic. With other fonts the result differs slightly; Pillow's own font alone works too.

Of the data sets that it is meant for, it sees nothing: no picture in their styles, none of the 40 combinations of
`vlprompt.demo.shapes.HELD_OUT`, no handwritten digit of scikit-learn's. The weights that are written are those with the
best zero-shot accuracy on held-out pre-training pictures: 24 more combinations that are not trained on, in a look that
is not trained on and in those that are, and digits in fonts that are not trained on. The curve is next to the weights.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vlprompt.demo.captions import DIGIT_WORDS, Facts, vocabulary, write
from vlprompt.demo.drawing import draw
from vlprompt.demo.glyphs import DIGITS, LETTERS, draw_glyph
from vlprompt.demo.looks import PRETRAINING_LOOKS, VALIDATION_LOOK
from vlprompt.demo.shapes import COMBINATIONS, HELD_OUT, Combination, generator

SIDE = 48
MEAN = STD = 0.5
TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES
MODEL = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 4},
}
SMOKE = {"steps": 4, "batch": 16, "pool": 64, "check_every": 2, "validation": 24}


def combinations() -> tuple[list[Combination], list[Combination]]:
    """The combinations to train on and those to validate on: none of the data set's."""
    rest = [c for c in COMBINATIONS if c not in set(HELD_OUT)]
    order = generator("pretraining").permutation(len(rest))
    return [rest[i] for i in order[24:]], [rest[i] for i in order[:24]]


def find_fonts(folders: list[Path]) -> tuple[list[list[str]], list[str]]:
    """Fonts to train on, by folder, and one in twelve to validate with. Without any: Pillow's own."""
    files = sorted(f for d in folders for f in d.rglob("*") if f.suffix.lower() in {".ttf", ".otf"})
    files = [f for f in files if not any(word in f.name for word in ("Symbol", "D050000L", "Math"))]
    held = {f for i, f in enumerate(files) if i % 12 == 5}
    groups: dict[Path, list[str]] = {}
    for f in files:
        if f not in held:
            groups.setdefault(f.parent, []).append(str(f))
    return list(groups.values()) or [[""]], [str(f) for f in sorted(held)] or [""]


@dataclass(frozen=True)
class Source:
    """What pictures are drawn from."""

    seed: str
    looks: tuple[str, ...]
    combinations: tuple[Combination, ...]
    fonts: tuple[tuple[str, ...], ...]
    shares: tuple[float, float, float]  # shapes, digits, letters


def render(source: Source, index: int) -> tuple[np.ndarray, Facts]:
    """Picture number `index`, [SIDE, SIDE, 3] uint8, and what is true of it."""
    rng = generator(source.seed, index)
    kind = rng.choice(3, p=source.shares)
    if kind == 0:
        look = source.looks[int(rng.integers(len(source.looks)))]
        pattern, colour, shape = source.combinations[int(rng.integers(len(source.combinations)))]
        image, scene = draw(rng, pattern, colour, shape, PRETRAINING_LOOKS.get(look, VALIDATION_LOOK))
        facts = Facts("shape", look, pattern, colour, shape, scene=scene)
    else:
        font: str | None = str(rng.choice(source.fonts[int(rng.integers(len(source.fonts)))]))
        if kind == 1:
            character = str(rng.choice(list(DIGITS)))
            font = None if rng.random() < 0.65 else font
        else:
            character = str(rng.choice(list(LETTERS)))
        facts = Facts("digit" if kind == 1 else "letter", character=character)
        image = draw_glyph(rng, character.upper() if kind == 2 and rng.random() < 0.5 else character, font)
    return np.asarray(image.resize((SIDE, SIDE), 3)), facts


@dataclass
class Pictures:
    """Drawn pictures, [N, 3, SIDE, SIDE] uint8, with their facts."""

    pixels: Tensor
    facts: list[Facts]
    codes: Tensor


def paint(source: Source, count: int, workers: Pool) -> Pictures:
    """Draws pictures 0 to count - 1 in parallel."""
    pixels, facts = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8), []
    for i, (image, fact) in enumerate(workers.imap(partial(render, source), range(count), chunksize=64)):
        pixels[i] = torch.from_numpy(image.copy()).permute(2, 0, 1)
        facts.append(fact)
    return Pictures(pixels, facts, torch.tensor([f.codes() for f in facts]))


class Vocabulary:
    """CLIP's tokens, renumbered to those in use; `ids` are the real numbers, in order, so EOT stays the last."""

    def __init__(self) -> None:
        self.tokenizer = open_clip.SimpleTokenizer()
        used = {t for text in vocabulary(TEMPLATES) for t in self.tokenizer.encode(text)}
        used |= {self.tokenizer.encoder[c] for c in DIGITS + LETTERS}  # the inner forms too
        self.ids = [*sorted(used), self.tokenizer.sot_token_id, self.tokenizer.eot_token_id]
        self.row = {t: i for i, t in enumerate(self.ids)}
        self.known: dict[str, list[int]] = {}

    def rows(self, text: str) -> list[int]:
        if text not in self.known:
            tokens = [self.row[t] for t in self.tokenizer.encode(text)]
            self.known[text] = [len(self.ids) - 2, *tokens, len(self.ids) - 1]
        return self.known[text]


def encode_texts(clip: nn.Module, rows: list[list[int]], device: str) -> Tensor:
    """Unit features of captions of like lengths, cut to the longest."""
    length = max(map(len, rows))
    tokens = torch.tensor([r + [0] * (length - len(r)) for r in rows], device=device)
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    ends = torch.tensor([len(r) - 1 for r in rows], device=device)
    x = clip.ln_final(x[torch.arange(len(rows), device=device), ends]) @ clip.text_projection
    return F.normalize(x, dim=-1)


def encode_captions(clip: nn.Module, rows: list[list[int]], device: str) -> Tensor:
    """As `encode_texts`, the longer half by itself: captions differ much in length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    half = len(order) * 2 // 3
    parts = [encode_texts(clip, [rows[i] for i in part], device) for part in (order[:half], order[half:]) if part]
    return torch.cat(parts)[torch.tensor(order, device=device).argsort()]


def normalise(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - MEAN) / STD


def augment(pixels: Tensor, flip: Tensor, random: torch.Generator) -> Tensor:
    """Moves, turns, scales, mirrors (where `flip`), and changes light, contrast and noise."""
    n, device = len(pixels), pixels.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(n, *shape, generator=random)).to(device)

    turn, scale = uniform(-0.2, 0.2), uniform(0.82, 1.15, 2)
    mirror = torch.where(flip & (uniform(0, 1) < 0.5), -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = turn.cos() * scale[:, 0] * mirror, -turn.sin() * scale[:, 1]
    theta[:, 1, 0], theta[:, 1, 1] = turn.sin() * scale[:, 0] * mirror, turn.cos() * scale[:, 1]
    theta[:, :, 2] = uniform(-0.12, 0.12, 2)
    grid = F.affine_grid(theta, [n, 3, SIDE, SIDE], align_corners=False)
    x = F.grid_sample(normalise(pixels), grid, padding_mode="reflection", align_corners=False)
    x = x * uniform(0.75, 1.25, 1, 1, 1) + uniform(-0.2, 0.2, 1, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    return x + uniform(0, 0.08, 1, 1, 1) * torch.randn(x.shape, generator=random).to(device)


def contrast(images: Tensor, texts: Tensor, scale: Tensor, images_codes: Tensor, texts_codes: Tensor) -> Tensor:
    """InfoNCE both ways. Pairs that fit together though they were not drawn together do not count as negatives."""
    fits = ((texts_codes[None] == 0) | (texts_codes[None] == images_codes[:, None])).all(-1)
    fits.fill_diagonal_(False)
    logits = (scale * images @ texts.T).masked_fill(fits, -1e4)
    labels = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@torch.no_grad()
def accuracy(
    clip: nn.Module, words: Vocabulary, pictures: Pictures, names: list[str], labels: Tensor, form: str
) -> float:
    """Zero-shot accuracy among these names."""
    device = str(clip.logit_scale.device)
    texts = encode_texts(clip, [words.rows(form.format(n)) for n in names], device)
    images = [clip.encode_image(normalise(part.to(device))) for part in pictures.pixels.split(256)]
    return ((torch.cat(images) @ texts.T).argmax(1).cpu() == labels).float().mean().item()


class Validation:
    """Zero-shot accuracy on held-out pre-training pictures."""

    def __init__(self, fonts: list[str], count: int, workers: Pool) -> None:
        held = combinations()[1]
        self.parts = {}
        for part, looks in (("new_look", ("validation",)), ("known_looks", tuple(PRETRAINING_LOOKS))):
            pictures = paint(Source(part, looks, tuple(held), ((),), (1.0, 0.0, 0.0)), count, workers)
            label_of = {c: i for i, c in enumerate(held)}
            labels = torch.tensor([label_of[f.pattern, f.colour, f.shape] for f in pictures.facts])
            self.parts[part] = (pictures, [" ".join(c) for c in held], labels, "a photo of a {}.")
        digits = paint(Source("digits", (), (), (tuple(fonts),), (0.0, 1.0, 0.0)), count, workers)
        labels = torch.tensor([int(f.character) for f in digits.facts])
        self.parts["digits"] = (digits, list(DIGIT_WORDS), labels, "a photo of the digit {}.")

    def measure(self, clip: nn.Module, words: Vocabulary) -> dict[str, float]:
        clip.eval()
        accuracies = {part: round(accuracy(clip, words, *what), 4) for part, what in self.parts.items()}
        clip.train()
        return {**accuracies, "mean": round(sum(accuracies.values()) / len(accuracies), 4)}


def save(clip: nn.Module, words: Vocabulary, folder: Path, curve: list[dict[str, float]]) -> None:
    """The backbone as a folder that open_clip reads, save that the table of tokens holds the rows in use alone."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().half().contiguous() for k, v in clip.state_dict().items()}
    state["token_embedding.ids"] = torch.tensor(words.ids, dtype=torch.int32)
    save_file(state, folder / "open_clip_model.safetensors.part")
    (folder / "open_clip_model.safetensors.part").chmod(0o644)
    (folder / "open_clip_model.safetensors.part").replace(folder / "open_clip_model.safetensors")
    preprocess = {"size": [SIDE, SIDE], "mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": MODEL, "preprocess_cfg": {**preprocess, "resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "pretraining.json").write_text("[\n  " + ",\n  ".join(map(json.dumps, curve)) + "\n]\n")


def build(words: Vocabulary, dropped: float) -> nn.Module:
    """The model with a table of the tokens in use. Part of the patches may be left out while training."""
    vision, text = dict(MODEL["vision_cfg"]), dict(MODEL["text_cfg"])
    vision["patch_dropout"], text["vocab_size"] = dropped, len(words.ids)
    return open_clip.CLIP(MODEL["embed_dim"], vision, text, quick_gelu=True)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    fonts, held_fonts = find_fonts(args.fonts)
    words, started = Vocabulary(), time.monotonic()
    seen, _ = combinations()
    source = Source(
        f"train{args.seed}", tuple(PRETRAINING_LOOKS), tuple(seen), tuple(map(tuple, fonts)), (0.53, 0.4, 0.07)
    )
    with get_context("spawn").Pool(args.threads) as workers:
        pool = paint(source, args.pool, workers)
        validation = Validation(held_fonts, args.validation, workers)
    print(f"{len(words.ids)} tokens, {sum(map(len, fonts))} fonts, pictures after {time.monotonic() - started:.0f} s")

    clip = build(words, args.patch_dropout)
    if args.resume:
        state = load_file(args.resume / "open_clip_model.safetensors")
        if state.pop("token_embedding.ids").tolist() != words.ids:
            raise SystemExit(f"the weights in {args.resume} know other tokens than today's captions: train anew")
        clip.load_state_dict({name: value.float() for name, value in state.items()})
    clip.to(args.device)
    decayed = [p for p in clip.parameters() if p.ndim >= 2]
    other = [p for p in clip.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    talk, order, views = random.Random(args.seed), torch.Generator().manual_seed(args.seed), torch.Generator()
    views.manual_seed(args.seed + 1)
    curve: list[dict[str, float]] = []
    begun, progress, step, queue, losses = time.monotonic(), 0.0, 0, torch.empty(0, dtype=torch.long), []
    while progress < 1:
        rate = args.lr * min(1, progress / 0.04 + 1e-2) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = rate
        if progress > args.all_patches_from:
            clip.visual.patch_dropout = nn.Identity()
        if len(queue) < args.batch:
            queue = torch.randperm(args.pool, generator=order)
        batch, queue = queue[: args.batch], queue[args.batch :]
        told = [write(talk, pool.facts[i], TEMPLATES) for i in batch.tolist()]
        codes = pool.codes[batch].to(args.device)
        pixels = augment(pool.pixels[batch].to(args.device), codes[:, 0] == 1, views)
        images = clip.encode_image(pixels, normalize=True)
        texts = encode_captions(clip, [words.rows(text) for text, _ in told], args.device)
        text_codes = torch.tensor([c for _, c in told], device=args.device)
        loss = contrast(images, texts, clip.logit_scale.exp(), codes, text_codes)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
        step += 1
        minutes = (time.monotonic() - begun) / 60
        progress = max(step / args.steps, minutes / args.minutes if args.minutes else 0)
        if step % args.check_every == 0 or progress >= 1:
            point = {"step": step, "minutes": round(minutes, 1), "loss": round(float(np.mean(losses)), 4)}
            point |= {"scale": round(clip.logit_scale.exp().item(), 1), **validation.measure(clip, words)}
            losses.clear()
            curve.append(point)
            print(json.dumps(point), flush=True)
            if point["mean"] >= max(p["mean"] for p in curve):
                save(clip, words, args.out, curve)
    (args.out / "pretraining.json").write_text("[\n  " + ",\n  ".join(map(json.dumps, curve)) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("vlprompt/demo/shapes_vit"), help="folder to write")
    parser.add_argument("--fonts", type=Path, nargs="*", default=[Path("/usr/share/fonts")], help="font folders")
    parser.add_argument("--resume", type=Path, help="folder with weights to start from, instead of random ones")
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--minutes", type=float, default=0, help="end after this time if the steps take longer")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=30_000, help="pictures drawn beforehand")
    parser.add_argument("--validation", type=int, default=400, help="pictures of each of the three parts")
    parser.add_argument("--check-every", type=int, default=200, help="steps between validations")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--patch-dropout", type=float, default=0.0, help="share of patches left out at first")
    parser.add_argument("--all-patches-from", type=float, default=0.8, help="share of the training after which none is")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few pictures: only to see that it runs")
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(SMOKE)
    train(args)


if __name__ == "__main__":
    main()
