"""A run folder of an untrained doped language model: for timing sizes that take days to train.

    python examples/untrained.py --hidden 1500 --compression 20 runs/untrained-1500
    tvm-doping bench runs/untrained-1500 --scope lstm --steps 1
    python examples/untrained.py --hidden 650 --modules lstm output embedding runs/whole-650

S is spread evenly here; after training some rows hold more than others, and such a model can be a little slower.
"""

from __future__ import annotations

import argparse

import torch

from tvm_doping import checkpoint, models


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", help="run folder to write")
    parser.add_argument(
        "--hidden", type=int, default=1500, help="hidden units, and the size of the embedding"
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--compression", type=float, default=20.0, help="of each doped weight, by parameters")
    parser.add_argument(
        "--modules",
        nargs="+",
        default=["lstm"],
        help="what is doped: lstm, output (the projection to words), embedding",
    )
    parser.add_argument(
        "--structure", default="kronecker", help="kronecker, low_rank, hybrid or zero (pruned)"
    )
    parser.add_argument(
        "--pattern", default="unstructured", help="unstructured, nm32, block4, block8 or block16"
    )
    args = parser.parse_args()

    torch.manual_seed(0)
    sizes = {"vocab": args.vocabulary, "embedding": args.hidden, "hidden": args.hidden, "layers": args.layers}
    model = models.LanguageModel(**sizes)
    models.dope(
        model,
        structure=args.structure,
        compression=args.compression,
        pattern=args.pattern,
        modules=args.modules,
    )
    tensors, doped = models.model_tensors(model)
    config = {"task": "language_model", "recipe": "untrained", "model": sizes, "metrics": {}}
    print(checkpoint.save(args.out, config, tensors, doped))


if __name__ == "__main__":
    main()
