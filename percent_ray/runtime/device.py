"""Where a role's models live."""

import torch


def best_device() -> torch.device:
    """The first GPU that this process may see, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
