"""Trained parameters at ViT-B/16 as the papers count them; random weights, nothing is run."""

import pydoc

import pytest
import torch

from vlprompt import demo
from vlprompt.config.compose import compose
from vlprompt.learners.base import Learner
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.towers import Clip, Images, load_clip

CLASSES = ["cat"] * 100
COUNTS = {
    "method=coop protocol=base_to_novel": 2_048,
    "method=coop recipe=coop/ijcv": 8_192,
    "method=coop recipe=coop/ijcv method.class_specific=true": 100 * 8_192,
    "method=cocoop": 35_360,
    "method=maple": 3_555_072,
    "method=maple method.depth=3": 1_185_024,
    "method=vpt_deep": 73_728,
    "method=vpt_shallow": 6_144,
    "method=ivlp": 30_720,
    "method=ivlp recipe=ivlp/promptsrc": 46_080,
    "method=language_prompts": 24_576,
    "method=prefix_tuning": 12 * 2 * 4 * (768 + 512),
    "method=prefix_tuning method.reparameterise=true": 4_132_096,
    "method=adapter": 12 * (2 * 16 * (768 + 512) + 2 * 16 + 768 + 512),
    "method=adapter method.sites=attn_mlp": 1_014_528,
    "method=lora": 12 * 2 * 2 * 8 * (768 + 512),
    "method=clip_lora": 184_320,
    "method=lora_plus": 491_520,  # as lora
    "method=dylora": 491_520,  # those of the largest rank
    "method=dylora recipe=dylora/original": 491_520,
    "method=p_tuning method.encoder=none": 2_048,  # as coop
    "method=p_tuning method.encoder=mlp": 2_048 + 148_224,  # 512 -> 128 -> 128 -> 512, with biases
    "method=p_tuning": 2_048 + 657_408 + 395_264 + 197_376,  # two bidirectional layers of 128, 256 -> 256 -> 512
    "method=p_tuning recipe=p_tuning/original": 1_536 + 2 * 1_576_960 + 2 * 262_656,  # layers of 256, two maps of 512
    "method=llama_adapter": 10 * 10 * (768 + 512) + 10 * (12 + 8),
    "method=hard_prompts": 0,
    "method=kgcoop": 2_048,
    "method=dept": 8_192 + 4 * 512 + 100 * 513,  # scale and shift of two kinds of features, a head with a bias
    "method=dept recipe=dept/maple": 3_555_072 + 4 * 512 + 100 * 513,
    "method=prograd": 8_192,
    "method=plot_plus_plus": 4 * 4 * 512 + 4 * 2 * 768,
    "method=promptsrc": 46_080,
    "method=promptsrc protocol=domain_generalization dataset=imagenet": 15_360,
    "method=clip_adapter": 131_072,
    "method=taskres protocol=few_shot": 100 * 512,
    "method=tip_adapter protocol=few_shot": 0,
    "method=gda protocol=few_shot": 0,
    "method=ss_text protocol=few_shot": 0,
    "method=tcp": 2_048 + 512 * 128 + 128 + 128 * 2_048 + 2_048,
    "method=mma": 674_560,
    "method=mmrl": 5 * 512 + 7 * (512 * 768 + 768 + 512 * 512 + 512) + 768 * 512,
    # the tokens; of each tower one map, and of 7 layers the residuals of rank 4 and biases; a projection's residual
    "method=mmrl_plus_plus": 5 * 512 + 1280 * 512 + 7 * (4 * (1280 + 2 * 512) + 1280) + 64 * 1280,
    "method=lp_plus_plus protocol=few_shot": 100 * 512 + 100 + 100,  # with a bias
    "method=zs_lp protocol=few_shot": 100 * 512,
    "method=clap protocol=few_shot": 100 * 512,
    "method=cross_modal protocol=few_shot": 100 * 512,
    "method=cross_modal protocol=few_shot recipe=cross_modal/adapter": 100 * 512 + 131_072,  # clip_adapter's bottleneck
    "method=zero_shot": 0,
    "method=full_finetune": 149_620_736,  # all of ViT-B/16 but the scale
    "method=full_finetune method.towers=image": 86_192_640,
    "method=ln_tuning": 61_440,  # of 65,536 that the authors' optimiser is given
    "method=two_stage": 61_440 + 100 * 512,
    "method=two_stage method.stage1=lora": 184_320 + 100 * 512,
    "method=two_stage method.stage1=bitfit": 12 * 8 * (768 + 512) + 2 * 768 + 512 + 100 * 512,
    "method=flyp": 149_620_736 + 1,  # and the scale
    "method=bitfit": 171_008,  # 12 blocks of 11 (768 + 512), and of the norms around them
    "method=intrinsic_dimension": 200,
    "method=qlora": 12 * 8 * (18 * 768 + 18 * 512),  # rank 8: 2 d for each of q, k, v, o; 5 d for fc1 and for fc2
    "method=prolip": 768 * 512,
    "method=linear_head": 100 * (512 + 1),
    "method=linear_probe": 100 * (512 + 1),
}


def test_a_trained_cache_has_a_key_for_each_image(clip: Clip) -> None:
    learner = TipAdapter(clip, ["cat", "dog"], finetune=True)
    learner.prepare([(Images(features=torch.randn(5, 512)), torch.tensor([0, 1, 0, 1, 1]))], None)
    assert learner.n_trained == 5 * 512


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("ViT-B-16-quickgelu")


@pytest.mark.parametrize("overrides", COUNTS)
def test_trained_parameters(overrides, clip):
    if overrides == "method=intrinsic_dimension":  # as many on every backbone; a projection of this one takes its time
        clip = load_clip(str(demo.BACKBONES["shapes_vit"]), "random")
    # no demo recipes: another data set and the published backbone
    config = compose(["dataset=caltech101", *overrides.split()])
    target = pydoc.locate(config["method"].pop("_target_"))
    assert isinstance(target, type)
    assert issubclass(target, Learner)
    learner = target(clip, CLASSES, **config["method"])
    assert sum(p.numel() for p in learner.parameters()) == COUNTS[overrides]
