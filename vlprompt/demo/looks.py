"""How pictures are drawn: three styles of the data set, and others that the backbone was trained on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """How a style draws. A pair is a range that is drawn from for every image; a tuple of words is a choice."""

    backgrounds: tuple[str, ...] = ("flat", "gradient")
    ground_value: tuple[float, float] = (0.05, 0.98)
    ground_saturation: float = 0.25  # at most
    second: tuple[str, ...] = ("light", "dark")  # the pattern's other colour; "ground" lets the background through
    contours: tuple[str, ...] = ("none",)  # or "dark", "light", "own"
    radius: tuple[float, float] = (0.24, 0.36)  # of the image
    rotation: float = 30.0  # degrees, either way
    stretch: float = 0.08  # log ratio of the axes, and shear
    wobble: tuple[float, float] = (0.0, 0.01)  # of the radius
    density: tuple[float, float] = (1.0, 1.35)  # pattern periods in a radius
    hue: float = 0.012  # standard deviation of the colour's hue
    shade: float = 0.1  # of its saturation and value
    clutter: tuple[int, int] = (0, 3)  # small things around
    bars: tuple[int, int] = (0, 0)  # thin bars in front
    light: tuple[float, float] = (0.0, 0.15)  # strength of a lighting gradient
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # colour of the light
    cast: float = 0.0  # standard deviation of a colour cast
    blur: tuple[float, float] = (0.0, 0.6)  # pixels
    noise: tuple[float, float] = (0.0, 0.03)
    finish: str = ""  # "pencil" or "blocks"


# The data set's styles. No picture in one of these was shown to the backbone.
STYLES = {
    "scene": Look(  # in cool, uneven light on busy grounds; patterns in deeper shades of their own colour
        backgrounds=("clouds", "halves", "boards", "grain"),
        ground_saturation=0.4,
        second=("deep",),
        radius=(0.29, 0.42),
        stretch=0.1,
        wobble=(0.0, 0.015),
        density=(0.85, 1.15),
        shade=0.12,
        clutter=(1, 4),
        light=(0.1, 0.35),
        tint=(0.7, 0.85, 1.2),
        cast=0.02,
        blur=(0.2, 0.6),
        noise=(0.01, 0.03),
    ),
    "sketch": Look(
        backgrounds=("flat",),
        ground_value=(0.85, 0.98),
        ground_saturation=0.05,
        second=("ground", "tint"),
        contours=("own", "dark"),
        radius=(0.24, 0.38),
        wobble=(0.02, 0.05),
        clutter=(0, 2),
        blur=(0.0, 0.3),
        noise=(0.01, 0.03),
        finish="pencil",
    ),
    "mosaic": Look(
        backgrounds=("clouds", "gradient", "halves"),
        ground_saturation=0.3,
        second=("light", "dark"),
        radius=(0.3, 0.42),
        density=(0.8, 1.1),
        hue=0.02,
        shade=0.15,
        clutter=(0, 3),
        noise=(0.0, 0.03),
        finish="blocks",
    ),
}

PRETRAINING_LOOKS = {
    "card": Look(),
    "poster": Look(
        backgrounds=("gradient", "halves", "boards"), second=("light", "tint"), contours=("dark", "light"),
        wobble=(0.0, 0.0), rotation=15.0, blur=(0.0, 0.3), noise=(0.0, 0.01),
    ),
    "chalk": Look(
        backgrounds=("flat", "grain"), ground_value=(0.02, 0.3), second=("ground",), contours=("own", "light"),
        wobble=(0.01, 0.05), clutter=(0, 5), noise=(0.02, 0.06), blur=(0.3, 0.9),
    ),
    "paint": Look(
        backgrounds=("clouds", "grain"), ground_saturation=0.35, second=("light", "dark", "tint"),
        wobble=(0.02, 0.06), clutter=(0, 4),
        stretch=0.14, rotation=45.0, hue=0.02, shade=0.18, blur=(0.4, 1.2),
    ),
    "snapshot": Look(
        backgrounds=("gradient", "clouds", "boards"), second=("light", "dark"), light=(0.1, 0.45), cast=0.07,
        noise=(0.02, 0.07), blur=(0.2, 1.0), radius=(0.2, 0.42), clutter=(1, 6), rotation=40.0, stretch=0.12,
    ),
    "wide": Look(  # a little of everything, patterns coarse to fine
        backgrounds=("flat", "gradient", "clouds", "halves"), second=("light", "dark", "ground", "tint"),
        contours=("none", "dark", "light", "own"), density=(0.9, 1.7), radius=(0.18, 0.44), hue=0.02, shade=0.18,
        wobble=(0.0, 0.03), cast=0.05, bars=(0, 1), clutter=(0, 5),
    ),
}  # fmt: skip
VALIDATION_LOOK = Look(  # never trained on: the checkpoint is chosen on it
    backgrounds=("halves", "grain", "clouds"), ground_saturation=0.4, second=("dark", "tint"),
    contours=("none", "own"), stretch=0.15, rotation=45.0, density=(0.9, 1.5), light=(0.1, 0.5), cast=0.1, hue=0.02,
    shade=0.18, bars=(0, 2), clutter=(2, 7), blur=(0.3, 1.1), noise=(0.02, 0.06), radius=(0.22, 0.34),
)  # fmt: skip
