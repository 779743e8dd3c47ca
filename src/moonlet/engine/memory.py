"""How many pages of the latent cache this machine's memory holds."""

import os

from moonlet.model import Model

SHARE = 0.5  # of what is free once the weights are loaded
CONTEXTS = 8  # full contexts; more is never of use to so few people as one machine serves


def page_budget(model: Model, page_size: int, max_seq_len: int) -> int:
    """Pages for the latent cache; they take memory only once they are written to."""
    row = model.new_cache(1, 1).rows
    page_bytes = row.numel() * row.element_size() * page_size
    enough = -(-max_seq_len // page_size) * CONTEXTS
    return max(min(enough, int(available_bytes() * SHARE) // page_bytes), 1)


def available_bytes() -> int:
    """Memory that can be had without swapping; all of it where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
