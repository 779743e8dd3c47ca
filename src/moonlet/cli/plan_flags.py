"""Which flags of `moonlet plan` go together: one that would be ignored is refused."""

from argparse import Namespace

from moonlet.cli.console import UsageError

HARDWARE = (
    "gpu", "ram", "cpu", "cpu_bandwidth", "cores", "sockets", "nvme", "disk", "nodes", "network",
)  # fmt: skip
_TRAINING = (
    "tokens", "sequence", "batch", "micro_batch", "recompute", "fp8_activations", "offload",
)  # fmt: skip
_ANYWHERE = ("json", "run")


def check_flags(args: Namespace) -> None:
    """Raises UsageError that names a flag which has no use beside the others."""
    said = [name for name, value in vars(args).items() if value is not None and value is not False]
    for mode, is_on, uses in (
        ("--check-claims", args.check_claims is not None, ("check_claims",)),
        ("--train paper", args.train == "paper", ("train",)),
        ("--train", args.train is not None, ("train", "model", "measure", *HARDWARE, *_TRAINING)),
    ):
        if is_on:
            for name in said:
                if name not in uses and name not in _ANYWHERE:
                    raise UsageError(
                        f"{_flag(name)} does not go with {mode}: leave one of them out"
                    )
            return
    for name in said:
        if name in _TRAINING:
            raise UsageError(f"{_flag(name)} is of a training run: add --train, or leave it out")
    if args.accepted is not None and args.draft is None:
        raise UsageError("--accepted is a share of drafts: add --draft N, or leave it out")
    if args.measure and any(name in said for name in HARDWARE):
        raise UsageError("--measure is for this machine: leave out what describes another")


def _flag(name: str) -> str:
    return "MODEL" if name == "model" else "--" + name.replace("_", "-")
