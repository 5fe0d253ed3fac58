"""BitFit: the biases, and nothing else."""

from vlprompt.learners.full_finetune import FullFinetune


class BitFit(FullFinetune):
    """Bias tuning: all biases of the towers, those of the norms included, from their pre-trained values.

    Args:
        towers: "image", "text" or "both".
        head, head_start: as in Learner.

    Source: Ben Zaken et al., ACL 2022, https://arxiv.org/abs/2106.10199, section 3.
    """

    words = False

    def trains(self, name: str, tower: str) -> bool:
        return name.endswith("bias")
