"""Hard prompts: the wording of the class names as a choice; nothing is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, Overridden
from vlprompt.textfiles import path_of, read_json
from vlprompt.towers import Clip, expand_templates

TEXTS_AT_ONCE = 1024  # in one pass of the text tower
DESCRIPTION = "{description}"


class HardPrompts(Learner):
    """Hard prompts: the frozen model with each class in several texts, templates and descriptions with equal weights.

    class feature = mean over its texts of the normalised text features

    Args:
        templates: one template, a list of them, a published list by name (`openai_80`, `openai_7`), or None.
        descriptions: a JSON file of texts for each class, {"class name": ["a text", "another"]}, as written by people
            or by a language model. Names are compared without regard to case and underscores.
        phrase: what is made of each of these texts: `{description}` is the text, `{}` the class name. Whole sentences
            need nothing else; "{}, which has {description}" suits a list of features.

    Source: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.1.4; Pratt et al., ICCV 2023,
    https://arxiv.org/abs/2209.03320, section 3 (CuPL); Menon and Vondrick, ICLR 2023, https://arxiv.org/abs/2210.07183
    (lists of features; there the cosines are averaged, not the features).
    Differs: a text that is longer than the tower takes loses its last words.

    Raises:
        UserError: no text at all, or a file that cannot be read. While encoding: a class that the file does not have.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] | None = "a photo of a {}.",
        descriptions: str | None = None,
        phrase: str = DESCRIPTION,
    ) -> None:
        super().__init__(clip, classes)
        self.templates = list(expand_templates(templates)) if templates else []
        if DESCRIPTION not in phrase:
            raise UserError(
                f"method.phrase is '{phrase}': {DESCRIPTION} is missing, which stands for a text of the file"
            )
        self.file, self.phrase = descriptions, phrase
        self.described = {} if descriptions is None else read_descriptions(path_of(descriptions))
        if not self.templates and descriptions is None:
            raise UserError("no wording: give method.templates, method.descriptions or both")

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if settings["descriptions"] is not None:
            return {}
        return {"phrase": ("method.descriptions", "whose texts it is for: drop it, or give a file")}

    @classmethod
    def takes_steps(cls, settings: Mapping[str, Any]) -> bool:
        return False

    def texts(self) -> list[list[str]]:
        """The texts of each bound class, as they are encoded."""
        if lacking := [name for name in self.classes if self.file and spelt(name) not in self.described]:
            raise UserError(
                f"{self.file} describes {len(self.described)} classes, but not {len(lacking)} of these "
                f"{len(self.classes)}: {', '.join(lacking[:5])}; add them under these names"
            )
        return [self._texts(name.replace("_", " ")) for name in self.classes]

    def _texts(self, name: str) -> list[str]:
        worded = [template.replace("{}", name) for template in self.templates]
        phrase = self.phrase.replace("{}", name)
        described = [phrase.replace(DESCRIPTION, text) for text in self.described.get(spelt(name), ())]
        return [self._cut(text) for text in worded + described]

    def _cut(self, text: str) -> str:
        room = len(self.text.positions) - 2  # without start and end
        words = text.split(" ")
        while len(words) > 1 and self.text.count(" ".join(words)) > room:
            words.pop()
        return " ".join(words)

    def encode_classes(self) -> Float[Tensor, "C e"]:
        if () not in self._cache:
            self._cache[()] = self._encode(self.texts())
        return self._cache[()]

    @torch.no_grad()
    def _encode(self, texts: list[list[str]]) -> Float[Tensor, "C e"]:
        flat = [text for of_class in texts for text in of_class]
        parts = [flat[i : i + TEXTS_AT_ONCE] for i in range(0, len(flat), TEXTS_AT_ONCE)]
        features = [F.normalize(self.text(self.text.prompts(part, template="{}")), dim=-1) for part in parts]
        return torch.stack([each.mean(0) for each in torch.cat(features).split([len(t) for t in texts])])


def spelt(name: str) -> str:
    """A class name without what files spell differently."""
    return " ".join(name.replace("_", " ").lower().split())


def read_descriptions(path: Path) -> dict[str, list[str]]:
    """Texts by class name.

    Raises:
        UserError: no such file, no JSON, or another form.
    """
    content = read_json(path, f"method.descriptions={path}")
    form = f'method.descriptions={path} has another form than {{"class name": ["a text", ...]}}'
    if not isinstance(content, dict):
        raise UserError(f"{form}: it holds no names")
    spellings: dict[str, str] = {}
    for name in content:
        if (other := spellings.setdefault(spelt(name), name)) != name:
            raise UserError(f"method.descriptions={path} describes '{other}' and '{name}', which are one: join them")
    texts = {spelt(name): [of_class] if isinstance(of_class, str) else of_class for name, of_class in content.items()}
    for name, of_class in texts.items():
        if not (isinstance(of_class, list) and of_class and all(isinstance(t, str) and t.strip() for t in of_class)):
            raise UserError(f"{form}: see '{name}'")
    return {name: [" ".join(text.split()) for text in of_class] for name, of_class in texts.items()}
