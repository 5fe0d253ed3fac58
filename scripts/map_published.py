"""Rewrite a collection of published results in this project's names, one CSV for each protocol.

python scripts/map_published.py COLLECTED.csv results/published

The collection has the columns source, protocol, dataset, method, backbone, shots, metric, value, in the words of the
papers. A name that is not in the lists below stops the script: nothing is passed over.
"""

import argparse
from pathlib import Path

import pandas as pd

COLUMNS = ["source", "protocol", "dataset", "method", "backbone", "shots", "metric", "value", "recipe", "printed"]
PROTOCOLS = {
    "base-to-novel": "base_to_novel",
    "few-shot": "few_shot",
    "zero-shot": "few_shot",  # with 0 shots
    "cross-dataset": "cross_dataset",
    "domain-generalisation": "domain_generalization",
    "vtab-1k": "vtab_1k",
}
DATASETS = {
    "ImageNet": "imagenet",
    "Caltech101": "caltech101",
    "OxfordPets": "oxford_pets",
    "StanfordCars": "stanford_cars",
    "Flowers102": "flowers102",
    "Food101": "food101",
    "FGVCAircraft": "fgvc_aircraft",
    "SUN397": "sun397",
    "DTD": "dtd",
    "EuroSAT": "eurosat",
    "UCF101": "ucf101",
    "ImageNetV2": "imagenet_v2",
    "ImageNet-Sketch": "imagenet_sketch",
    "ImageNet-A": "imagenet_a",
    "ImageNet-R": "imagenet_r",
    "VTAB-1k dmlab": "vtab_dmlab",
    "VTAB-1k eurosat": "vtab_eurosat",
    "VTAB-1k sun397": "vtab_sun397",
    "Average-11": "average_11",
    "Average-10-targets": "average_10_targets",
    "Average-4-targets": "average_4_targets",
    "OOD-Average-4": "average_4_targets",
    "Average-5": "average_5",  # the source and its four variants
}
BACKBONES = {
    "CLIP ViT-B/16 (OpenAI)": "vit_b16",
    "CLIP RN50 (OpenAI)": "rn50",
    "ViT-B/16 supervised ImageNet-21k": "vit_b16_in21k",
}
METRICS = {"acc": "accuracy", "base": "base", "new": "novel", "H": "H"}
METHODS = {
    "CLIP zero-shot": "zero_shot",
    "CLIP zero-shot (single template)": "zero_shot",
    "CLIP zero-shot (Tip-Adapter templates)": "zero_shot",
    "CLIP 80-template ensemble": "zero_shot",
    "CoOp": "coop",
    "CoOp (as re-run by KgCoOp)": "coop",
    "CoOp (as re-run by MaPLe)": "coop",
    "CoOp M=16 end": "coop",
    "CoOp M=16 end (mean of 3 seeds; std 0.15)": "coop",
    "CoCoOp": "cocoop",
    "MaPLe": "maple",
    "Deep Vision Prompting (VPT for CLIP, 8 tokens x 12 layers)": "vpt_deep",
    "VPT-deep": "vpt_deep",
    "VPT for CLIP (as run by DPT [48])": "vpt",
    "Deep Language Prompting (4 tokens x 12 layers)": "language_prompts",
    "IVLP 2+2 (5 epochs)": "ivlp",
    "IVLP 4+4 depth9 (20 epochs)": "ivlp",
    "PromptSRC": "promptsrc",
    "PromptKD": "promptkd",
    "PromptKD (transductive, ViT-L/14 teacher)": "promptkd",
    "ProDA": "proda",
    "ProDA (as printed there; others print novel 72.30)": "proda",
    "KgCoOp": "kgcoop",
    "ProGrad (as re-run by KgCoOp)": "prograd",
    "ProGrad (as printed there)": "prograd",
    "RPO": "rpo",
    "DePT": "dept",
    "DePT+PromptSRC": "dept_promptsrc",
    "TCP": "tcp",
    "MMA": "mma",
    "2SFS": "two_stage",
    "HPT": "hpt",
    "CoPrompt": "coprompt",
    "MMRL": "mmrl",
    "ProLIP": "prolip",
    'ProLIP with "a photo of a {}."': "prolip",
    "LASP": "lasp",
    "LASP-V": "lasp_v",
    "ProText (text-only)": "protext",
    "CuPL": "cupl",
    "Linear probe CLIP": "linear_probe",
    "PLOT++": "plot_plus_plus",
    "Tip-Adapter": "tip_adapter",
    "Tip-Adapter-F": "tip_adapter_f",
    "CLIP-Adapter": "clip_adapter",
}
BY_PROTOCOL = {  # what these sources print under these names has the settings of the method's default recipe
    "CLIP zero-shot": ("MaPLe", "OnPoKD", "ProText", "DiscoVL"),  # the hand-written template of each data set
    "CLIP zero-shot (single template)": ("ProText",),
    "CLIP zero-shot (Tip-Adapter templates)": ("Tip-Adapter",),  # but for ImageNet, see below
    "CoOp": ("MaPLe", "OnPoKD", "ProText"),  # reprinted from CoCoOp's paper
    "DePT": ("Awesome",),  # around CoOp
    "PLOT++": ("PLOT",),
    "CoCoOp": ("MaPLe", "OnPoKD", "ProText", "CasPL"),  # others' few-shot results have the same setting
    "MaPLe": ("MaPLe", "OnPoKD", "ProText"),
    "Deep Vision Prompting (VPT for CLIP, 8 tokens x 12 layers)": ("MaPLe",),
    "Deep Language Prompting (4 tokens x 12 layers)": ("MaPLe",),
    "IVLP 2+2 (5 epochs)": ("MaPLe",),
    "2SFS": ("Awesome",),  # reprinted from the paper, which has one setting for all
    "ProLIP": ("ProLIP",),
    "MMA": ("Awesome",),  # as its authors' README prints it; their code has no settings for transfer
}
NAMED = {  # recipes that are asked for by name
    "CLIP 80-template ensemble": "zero_shot/openai_80",
    "CoOp M=16 end": "coop/ijcv",
    "CoOp M=16 end (mean of 3 seeds; std 0.15)": "coop/ijcv",
    "IVLP 4+4 depth9 (20 epochs)": "ivlp/promptsrc",
    'ProLIP with "a photo of a {}."': "prolip/one_template",
}
SOURCES = {  # how the sources above are told
    "MaPLe": "github:muzairkhattak/multimodal-prompt-learning README.md",
    "OnPoKD": "OnPoKD paper",
    "ProText": ("ProText paper", "github:muzairkhattak/ProText"),
    "DiscoVL": "DiscoVL paper",
    "Tip-Adapter": "github:gaopengcuhk/Tip-Adapter",
    "Awesome": "github:zhengli97/Awesome-Prompt-Adapter-Learning-for-VLMs",
    "ProLIP": "github:astra-vision/ProLIP",
    "CasPL": "github:megvii-research/CasPL",
    "PLOT": "github:CHENGY12/PLOT",
}
MAPLE_RERUN = "github:muzairkhattak/multimodal-prompt-learning issue 31"
ALSO = [  # not in the collection: averages that MaPLe's authors got for CoOp; their settings are not told
    (MAPLE_RERUN, "base-to-novel", "Average-11", "CoOp (as re-run by MaPLe)", "CLIP ViT-B/16 (OpenAI)", "16", metric, v)
    for metric, v in (("base", "80.85"), ("new", "70.02"), ("H", "75.04"))
]


def recipe(row: pd.Series) -> str:
    """The recipe that has the settings of a printed number; empty where the source does not tell them."""
    printed = row["method"]
    if printed == "CLIP zero-shot (Tip-Adapter templates)" and row["dataset"] == "ImageNet":
        return "zero_shot/openai_7"
    if printed in NAMED:
        return NAMED[printed]
    told = [SOURCES[name] for name in BY_PROTOCOL.get(printed, ())]
    if any(row["source"].startswith(start) for start in told):
        return f"{METHODS[printed]}/{PROTOCOLS[row['protocol']]}"
    return ""


def rewrite(collected: pd.DataFrame) -> pd.DataFrame:
    """Raises: KeyError on a name that the lists above do not have."""
    also = pd.DataFrame(ALSO, columns=COLUMNS[:8])
    rows = pd.concat([collected, also], ignore_index=True)
    return pd.DataFrame(
        {
            "source": rows["source"],
            "protocol": [PROTOCOLS[name] for name in rows["protocol"]],
            "dataset": [DATASETS[name] for name in rows["dataset"]],
            "method": [METHODS[name] for name in rows["method"]],
            "backbone": [BACKBONES[name] for name in rows["backbone"]],
            "shots": rows["shots"],
            "metric": [METRICS[name] for name in rows["metric"]],
            "value": [f"{float(value):.2f}" for value in rows["value"]],
            "recipe": rows.apply(recipe, axis=1),
            "printed": rows["method"],
        },
        columns=COLUMNS,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collected", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    collected = pd.read_csv(options.collected, dtype=str, keep_default_na=False)
    rows = rewrite(collected)
    for protocol, part in rows.groupby("protocol", sort=False):
        part.to_csv(options.folder / f"{protocol}.csv", index=False, lineterminator="\n")
        print(f"{protocol}.csv: {len(part)} rows, {(part['recipe'] != '').sum()} with a recipe")


if __name__ == "__main__":
    main()
