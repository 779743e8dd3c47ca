"""`python -m moonlet.nano`: measure the embedded model, or another one trained by its recipe.

The table goes to stderr as it grows, one JSON document to stdout.
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

from moonlet.errors import MoonletError
from moonlet.nano import folder


def main() -> int:
    parser = ArgumentParser(prog="python -m moonlet.nano", description="Held-out accuracy of nano.")
    parser.add_argument(
        "--model", type=Path, default=folder(), help="checkpoint folder (default: the embedded one)"
    )
    parser.add_argument("--cases", type=int, default=500, help="cases of each skill")
    parser.add_argument("--seed", type=int, default=1, help="which cases")
    parser.add_argument("--mistakes", action="store_true", help="show wrong answers")
    parser.add_argument(
        "--write-card", action="store_true", help="put the figures into the model's card"
    )
    args = parser.parse_args()
    if args.cases < 1:
        parser.error("--cases must be at least 1")
    try:
        return _measure(args.model, args.cases, args.seed, args.mistakes, args.write_card)
    except MoonletError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _measure(model: Path, cases: int, seed: int, mistakes: bool, card: bool) -> int:
    from moonlet.nano.card import write_card  # these load PyTorch
    from moonlet.nano.evaluate import evaluate

    scores = []
    for score in evaluate(model, cases, seed):
        scores.append(score)
        print(
            f"{score.skill:16} {score.correct:5} of {score.cases}  {score.accuracy:6.1%}",
            file=sys.stderr,
        )
        for mistake in score.mistakes if mistakes else ():
            print(f"    {mistake}", file=sys.stderr)
    if card:
        write_card(model, scores, seed)
    skills = {
        s.skill: {"correct": s.correct, "cases": s.cases, "accuracy": s.accuracy} for s in scores
    }
    print(json.dumps({"model": str(model), "seed": seed, "skills": skills}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
