"""BitFit: the biases, and nothing else."""

from vlprompt.learners.full_finetune import FullFinetune


class BitFit(FullFinetune):
    """All biases of the towers move from their pre-trained values, those of the norms included; all else is frozen.

    Source: Ben Zaken et al., ACL 2022, https://arxiv.org/abs/2106.10199, section 3.
    """

    words = False

    def trains(self, name: str) -> bool:
        return name.endswith("bias")
