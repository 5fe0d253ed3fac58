"""What 2SFS calls BitFit."""

from vlprompt.learners.ln_tuning import LNTuning, layer_of


class BlockBiases(LNTuning):
    """The biases of the blocks, but those of q, k and v, and of the norms around them, as in the authors' code."""

    def trains(self, name: str, tower: str) -> bool:
        if not name.endswith(".bias") or ".qkv." in name:  # elsewhere that of q, k and v is called in_proj_bias
            return False
        layer = layer_of(name)
        if layer is None:
            return self.is_norm(name) and ("pre" not in name or self.first[tower] == 0)
        return layer >= self.first[tower]
