"""Full fine-tuning: every weight of the model is trained."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import Towers
from vlprompt.learners.weights import WeightLearner
from vlprompt.towers import Clip


class FullFinetune(WeightLearner):
    """Full fine-tuning: all parameters of the towers, word embeddings included, from their pre-trained values.

    The scale of the cosine stays. What is trained is a copy, which is the whole checkpoint.

    Args:
        towers: "image", "text" or "both".
        head, head_start: as in Learner.

    Source: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3 (end-to-end fine-tuning); class
    names as the classifier: Wortsman et al., CVPR 2022, https://arxiv.org/abs/2109.01903.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        self.weights = nn.Module()
        for tower in self.towers:
            for name, tensor in clip.tensors(tower).items():
                if self.trains(name, tower):
                    register(self.weights, name, nn.Parameter(tensor.detach().clone()))

    def trains(self, name: str, tower: str) -> bool:
        """Whether a weight of one tower is trained."""
        return True

    def changed(self, tower: Literal["image", "text"]) -> Mapping[str, Tensor]:
        names = self.clip.tensors(tower)
        return {name: p for name, p in self.weights.named_parameters() if name in names}


def register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, with modules on the way as they are needed."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, parameter)
