"""Train on a folder of photos, one subfolder a class, and classify new ones.

    python examples/own_photos.py my_photos new.jpg another.jpg --method coop --epochs 20

Everything is that of `vlprompt run dataset=folder` and `vlprompt predict`; docs/own_data.md says how folders may look.
"""

import argparse
import sys

import vlprompt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a subfolder of images for each class, whose name is the class's")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="new ones to classify")
    parser.add_argument("--method", default="coop", help="`vlprompt list methods` names them")
    parser.add_argument("--backbone", default="vit_b16", help="`vlprompt list backbones` names them")
    parser.add_argument("--shots", default="all", help="labelled images a class to train on, or all")
    parser.add_argument("--epochs", type=int, help="length of the training; default: the method's own")
    parser.add_argument("--top", type=int, default=3, help="how many classes of each photo to show")
    parser.add_argument("--settings", nargs="*", default=[], help="any others, such as fit.lr=0.001")
    given = parser.parse_args(arguments)

    settings = [f"method={given.method}", f"backbone={given.backbone}", f"shots={given.shots}", *given.settings]
    settings += [f"fit.epochs={given.epochs}"] if given.epochs is not None else []
    try:
        record = vlprompt.benchmark("dataset=folder", f"dataset.root={given.folder}", "protocol=few_shot", *settings)
        test = record.scores["test"]
        print(f"accuracy on the folder's test photos: {test['accuracy']:.1%} of {test['total']}")

        model = vlprompt.load(record)
        for photo, likely in zip(given.photos, model.predict(given.photos, top=given.top), strict=True):
            print(photo, *(f"{name} {probability:.1%}" for name, probability in likely), sep="  ")
    except vlprompt.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
