"""A learner's arguments, derived from the shapes of its tensors and from what the checkpoint's log says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.interop.dassl.facts import Facts
from vlprompt.learners.context import words_of

Arguments = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
PUBLISHED = "a photo of a"  # the initial phrase of every published setting that has one
POSITIONS = ("end", "middle", "front")
NEEDED = "context"


def derive_arguments(
    original: str,
    tensors: Mapping[str, Tensor],
    suffix: Tensor | None,
    facts: Facts,
    path: Path,
    template: str | None = None,
) -> tuple[Arguments, list[str]]:
    """The constructor's arguments, and what was assumed. `suffix` [C, L, d]: the embedded text after the context.

    `template`: ProGrad's on the data set, where it is known.

    Raises:
        UserError: a context of a shape that no setting gives, or a phrase that does not fit it.
    """
    if original == "VPT":
        depth, n_tokens = tensors["tokens"].shape[:2] if tensors["tokens"].ndim == 3 else (0, 0)
        fixed = {"head": "text", "template": PUBLISHED + " {}.", "init": "normal", "project": None, "dropout": 0.0}
        return {"n_tokens": n_tokens, "depth": depth, **fixed}, []
    context = tensors[NEEDED]
    if context.ndim not in (2, 3) or 0 in context.shape or (context.ndim == 3 and original not in ("CoOp", "ProGrad")):
        raise UserError(f"the context in {path} is {list(context.shape)}: needed are [tokens, width] numbers")
    n = context.shape[-2]
    if original == "ProGrad":
        return _prograd(context.ndim == 3, n, suffix, facts, path, template)
    if original == "CoOp":
        return _coop(context.ndim == 3, n, suffix, facts, path)
    phrase, notes = _phrase(n, suffix, facts, path, whole_phrase=original == "CoCoOp")
    arguments: Arguments = {"n_context": n, "ctx_init": phrase}
    if original == "CoCoOp":
        weight = tensors.get("meta_net.linear1.weight")
        if weight is None or weight.ndim != 2 or 0 in weight.shape:
            raise UserError(f"{path} has no first layer of the network that shifts the context: the file is damaged")
        return arguments | {"reduction": weight.shape[1] // weight.shape[0] or 1}, notes
    arguments["depth"] = 1 + sum(name.startswith("deep.") for name in tensors)
    if original == "IVLP":
        image = [tensor for name, tensor in tensors.items() if name.startswith("image_tokens.")]
        arguments |= {"n_tokens": image[0].shape[0] if image and image[0].ndim else 0, "image_depth": len(image)}
    return arguments, notes


def _position(facts: Facts) -> tuple[str, list[str]]:
    position = facts.position or "end"
    if position not in POSITIONS:
        raise UserError(f"the class name stands at '{position}', allowed is {', '.join(POSITIONS)}: give --position")
    if facts.position is None:
        return position, ["nothing says where the class name stands: after the context is assumed (--position)"]
    return position, []


def _prograd(
    class_specific: bool, n: int, suffix: Tensor | None, facts: Facts, path: Path, template: str | None
) -> tuple[Arguments, list[str]]:
    """Its text matters by the tokens of a phrase that the context does not cover: as many as it has commas."""
    position, notes = _position(facts)
    if facts.ctx_init:
        template = " ".join(words_of(facts.ctx_init)) + " {}."
    random = class_specific or facts.ctx_init == ""
    if template is None and not random:
        if left := 0 if suffix is None else _common_tokens(suffix):
            raise UserError(
                f"all texts in {path} have the same {left} tokens after the context: say which data set it was trained "
                "on (--dataset), or the phrase that it was started from (--ctx-init)"
            )
        notes.append(f"nothing says which data set it was trained on: the phrase '{PUBLISHED}' is assumed (--ctx-init)")
    arguments: Arguments = {"n_context": n, "init": "random" if random else "template"}
    arguments |= {"template": template or PUBLISHED + " {}."}
    return arguments | {"class_specific": class_specific, "position": position}, notes


def _coop(class_specific: bool, n: int, suffix: Tensor | None, facts: Facts, path: Path) -> tuple[Arguments, list[str]]:
    position, notes = _position(facts)
    phrase = ""
    if not class_specific:
        phrase, more = _phrase(n, suffix, facts, path, whole_phrase=True)
        notes += more
    return {"n_context": n, "ctx_init": phrase, "class_specific": class_specific, "position": position}, notes


def _phrase(n: int, suffix: Tensor | None, facts: Facts, path: Path, *, whole_phrase: bool) -> tuple[str, list[str]]:
    """The initial phrase, of which what the context does not cover stays in the text as fixed words.

    `whole_phrase`: the context is as long as the phrase has words, so that mostly nothing of it is left.
    """
    left = 0 if suffix is None else _common_tokens(suffix)
    if facts.ctx_init is not None:
        phrase = " ".join(facts.ctx_init.replace("_", " ").split())
        words = len(phrase.split())
        if phrase and (words != n if whole_phrase else words < n):
            if not whole_phrase and n > 4:  # the original takes random values then, whatever the phrase
                return "", []
            raise UserError(
                f"the phrase '{phrase}' has {words} words, the context in {path} {n} tokens: give the phrase that it "
                'was started from (--ctx-init, "" for random values)'
            )
        return phrase, []
    if whole_phrase or n > 4:
        note = f"the texts of all classes continue with the same {left} tokens: give --ctx-init if a phrase ended so"
        return "", [note] if left else []
    if suffix is None:
        return PUBLISHED, [f"nothing says which phrase the context was started from: '{PUBLISHED}' is assumed"]
    rest = len(PUBLISHED.split()) - n
    if left == rest:
        return PUBLISHED, []
    if left == 0:
        return "", []
    raise UserError(
        f"all texts in {path} have the same {left} tokens after the context, '{PUBLISHED}' would leave {rest}: "
        'give the phrase that it was started from (--ctx-init, "" for random values)'
    )


def _common_tokens(suffix: Tensor) -> int:
    """How many tokens after the context are the same for all classes; 0 for a single class or a damaged tensor."""
    claims_more = suffix.untyped_storage().nbytes() < suffix.numel() * suffix.element_size()
    if suffix.ndim != 3 or len(suffix) < 2 or claims_more:
        return 0
    same = (suffix == suffix[:1]).all(dim=-1).all(dim=0)
    return int(torch.cumprod(same.int(), 0).sum())


def expected_shapes(original: str, arguments: Arguments, tensors: Mapping[str, Tensor]) -> Shapes:
    """The shapes that a learner with these arguments has, widths taken from its first tensors."""

    def width(name: str, axis: int) -> int:
        return tensors[name].shape[axis] if name in tensors and tensors[name].ndim else 0

    if original == "VPT":
        return {"tokens": (arguments["depth"], arguments["n_tokens"], width("tokens", -1))}
    text = width(NEEDED, -1)
    n, classes = arguments["n_context"], tensors[NEEDED].shape[:-2]
    shapes: Shapes = {NEEDED: (*classes, n, text)}
    if original == "CoCoOp":
        embed = width("meta_net.linear1.weight", -1)
        hidden = embed // arguments["reduction"]
        shapes |= {"meta_net.linear1.weight": (hidden, embed), "meta_net.linear1.bias": (hidden,)}
        shapes |= {"meta_net.linear2.weight": (text, hidden), "meta_net.linear2.bias": (text,)}
    depth = arguments.get("depth", 1)
    shapes |= {f"deep.{i}": (n, text) for i in range(depth - 1)}
    if original == "MaPLe":
        image = width("coupling.0.weight", 0)
        shapes |= {f"coupling.{i}.weight": (image, text) for i in range(depth)}
        shapes |= {f"coupling.{i}.bias": (image,) for i in range(depth)}
    if original == "IVLP":
        image = width("image_tokens.0", -1)
        shapes |= {f"image_tokens.{i}": (arguments["n_tokens"], image) for i in range(arguments["image_depth"])}
    return shapes
