"""Captions to pre-train on, from many templates; and what each of them tells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from vlprompt.demo.drawing import COLOURS, PATTERNS, Scene
from vlprompt.demo.glyphs import DIGITS, LETTERS
from vlprompt.demo.outlines import SHAPES

Template = Callable[[str], str]

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("shape", "digit", "letter")
FIELDS = ("kind", "pattern", "colour", "shape", "character")

BY_LOOK = {
    "card": ("a card with {}.", "a clean picture of {}."),
    "poster": ("a poster of {}.", "a cartoon of {}."),
    "chalk": ("a chalk drawing of {}.", "{} drawn with chalk."),
    "paint": ("a painting of {}.", "{} painted on a wall."),
    "snapshot": ("a snapshot of {}.", "a noisy photo of {}.", "a photo of {}."),
    "wide": ("a picture of {}.", "an image of {}."),
}
DIGIT_TEMPLATES = (
    "a photo of the digit {}.", "a photo of the digit {}.", "the digit {}.", "a handwritten {}.",
    "a photo of a {}.",
    'a photo of the number: "{}".', "a photo of the number {}.", "the number {}", "a handwritten digit {}.", "a {}",
    "a scan of a handwritten {}.", "the figure {} written with a pen.", "a low resolution photo of a {}.",
    "a blurry scan of the digit {}.", "this is the digit {}.", "{}", "{}.", "digit {}", "a pixelated {}.",
)  # fmt: skip
LETTER_TEMPLATES = (
    "the letter {}.", "the letter {}", "a photo of the letter {}.", 'a photo of the letter: "{}".',
    "a handwritten {}.", "a printed letter {}.", "a {}", "{}", "this is the letter {}.", "a scan of the letter {}.",
)  # fmt: skip
KIND_CAPTIONS = {
    "digit": ("a digit.", "a handwritten digit.", "a number."),
    "letter": ("a letter.", "a printed letter."),
}


@dataclass(frozen=True)
class Facts:
    """What is true of a picture."""

    kind: str
    look: str = ""
    pattern: str = ""
    colour: str = ""
    shape: str = ""
    character: str = ""
    scene: Scene | None = None

    def codes(self) -> list[int]:
        """A number for each field; 0 where it does not apply."""
        tables = (KINDS, PATTERNS, tuple(COLOURS), SHAPES, DIGITS + LETTERS)
        values = (getattr(self, f) for f in FIELDS)
        return [1 + table.index(value) if value else 0 for table, value in zip(tables, values, strict=True)]


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def _name(random: Random, facts: Facts) -> tuple[str, set[str]]:
    """A name, whole or partial, and the fields that it tells."""
    pattern, colour, shape = facts.pattern, facts.colour, facts.shape
    return random.choices(
        (
            (f"{pattern} {colour} {shape}", {"pattern", "colour", "shape"}),
            (f"{colour} {pattern} {shape}", {"pattern", "colour", "shape"}),
            (f"{colour} {shape}", {"colour", "shape"}),
            (f"{pattern} {shape}", {"pattern", "shape"}),
            (f"{pattern} {colour} shape", {"pattern", "colour"}),
            (shape, {"shape"}),
            (f"{colour} shape", {"colour"}),
            (f"{pattern} shape", {"pattern"}),
        ),
        (58, 6, 9, 9, 7, 5, 3, 3),
    )[0]


def _place(scene: Scene) -> str:
    up = "upper " if scene.y < 0.42 else "lower " if scene.y > 0.58 else ""
    side = "left" if scene.x < 0.42 else "right" if scene.x > 0.58 else ""
    if not side:
        return f"in the {up}middle" if up else "in the centre"
    return f"in the {up}{side} corner" if up else f"on the {side} side"


def _scene_caption(random: Random, name: str, scene: Scene) -> str:
    size = "large " if scene.radius > 0.34 else "small " if scene.radius < 0.25 else ""
    ground = "dark" if scene.ground < 0.33 else "light" if scene.ground > 0.67 else "grey"
    around = ("nothing else", "a few small things", "many small things")[min(2, (scene.clutter + 1) // 2)]
    edge = {"none": "without an outline", "dark": "with a dark outline", "light": "with a light outline"}.get(
        scene.contour, "with an outline of its own colour"
    )
    thing = _with_article(size + name)
    return random.choice(
        (
            f"{thing} {_place(scene)}.",
            f"{thing} on a {ground} background.",
            f"{thing} {_place(scene)} of the picture, on a {ground} background.",
            f"on a {ground} background, {_place(scene)}, there is {thing}.",
            f"{thing} {edge}, {_place(scene)}.",
            f"a picture of {thing} {edge}, {_place(scene)} of the image, on a {ground} background with {around}.",
            f"this picture has {around} in it but one thing {_place(scene)} on a {ground} background {edge}, "
            f"and if you look at it closely, this is {thing}.",
        )
    )


def write(random: Random, facts: Facts, templates: Sequence[Template]) -> tuple[str, list[int]]:
    """A caption and its codes (as of `Facts.codes`), 0 for what it does not tell."""
    told = {"kind"}
    if facts.kind != "shape":
        table, words = (DIGIT_TEMPLATES, DIGIT_WORDS) if facts.kind == "digit" else (LETTER_TEMPLATES, ())
        told.add("character")
        word = words[int(facts.character)] if words and random.random() < 0.7 else facts.character
        if random.random() < 0.03:
            text, told = random.choice(KIND_CAPTIONS[facts.kind]), {"kind"}
        elif random.random() < 0.25:
            text = random.choice(templates)(word)
        else:
            text = random.choice(table).format(word)
    else:
        name, more = _name(random, facts)
        told |= more
        way = random.random()
        if way < 0.35:
            text = random.choice(templates)(name)
        elif way < 0.5:
            text = random.choice(("a photo of a {}.", "a photo of a {}.", "a {}", "a {}.")).format(name)
        elif way < 0.62:
            text = random.choice(("{}", "{}.")).format(name)
        elif way < 0.74 or facts.scene is None:
            text = random.choice(BY_LOOK.get(facts.look, BY_LOOK["wide"])).format(_with_article(name))
        elif way < 0.94:
            text = _scene_caption(random, name, facts.scene)
        elif way < 0.97:
            text, told = f"something {facts.pattern}.", {"kind", "pattern"}
        else:
            text, told = f"something {facts.colour}.", {"kind", "colour"}
    return text, [code if f in told else 0 for f, code in zip(FIELDS, facts.codes(), strict=True)]


def vocabulary(templates: Sequence[Template]) -> list[str]:
    """Texts that hold every token of every caption, and what prompt learning needs as well (a placeholder "X")."""
    words = [*PATTERNS, *COLOURS, *SHAPES, *DIGIT_WORDS, *DIGITS, *LETTERS, "X", ".", ",", "shape", "something"]
    texts = [t(w) for t in templates for w in words[:1]] + [t("x") for t in templates]
    forms = (*DIGIT_TEMPLATES, *LETTER_TEMPLATES, *(t for group in BY_LOOK.values() for t in group))
    texts += [form.format("x") for form in forms] + [c for group in KIND_CAPTIONS.values() for c in group]
    scenes = (
        Scene(x, y, r, g, n, c)
        for x, y, r, g, n, c in zip(
            (0.2, 0.5, 0.8, 0.2, 0.5, 0.8, 0.2, 0.5, 0.8), (0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 0.8, 0.8, 0.8),
            (0.2, 0.3, 0.4) * 3, (0.1, 0.5, 0.9) * 3, (0, 2, 5) * 3, ("none", "dark", "light", "own", "own") * 2,
            strict=False,
        )
    )  # fmt: skip
    for scene in scenes:
        texts += {_scene_caption(Random(i), "x", scene) for i in range(60)}
        texts += [_scene_caption(Random(i), "orange x", scene) for i in range(20)]
    return texts + words + [_with_article(w) for w in words]
