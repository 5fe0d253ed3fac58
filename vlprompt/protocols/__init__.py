"""Benchmark protocols: which images are trained on, which are tested, which numbers sum it up."""

from vlprompt.protocols.base import Protocol
from vlprompt.protocols.base_to_novel import BaseToNovel
from vlprompt.protocols.corruptions import Corruptions
from vlprompt.protocols.cross_dataset import CrossDataset
from vlprompt.protocols.domain_generalization import DomainGeneralization
from vlprompt.protocols.few_shot import FewShot
from vlprompt.protocols.noisy_labels import NoisyLabels
from vlprompt.protocols.train_val import TrainVal

PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (BaseToNovel, FewShot, CrossDataset, DomainGeneralization, TrainVal, Corruptions, NoisyLabels)
}
"""The package's own, by name; what records of others need is in the records."""
