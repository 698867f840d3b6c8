"""The names of metrics that more than one place reads.

Names are `stage/what`: `reward/pickscore_mean`, `entropy/perceptual_dino`, `diversity/vendi_dino`,
`time/perceive_s`.
"""

from collections.abc import Mapping

REWARD = "reward/mean"
POLICY_ENTROPY = "entropy/policy"
"""Measured on drawn latents."""
SCHEDULE_ENTROPY = "entropy/policy_schedule"
"""Its closed form, a constant of the noise schedule."""
PERCEPTUAL_ENTROPY = "entropy/perceptual_"
"""Followed by the name of the space."""
VENDI = "diversity/vendi_"
"""Followed by the name of the space."""
PIXELS = "diversity/variance_pixel"
"""Trace of a group's covariance of pixels divided by their number."""
SHARED = "movement/shared"
"""Of a probe: how much of the change since the first probe is the same for all pictures."""
FLOOR_OUTSIDE = "ratio/floor_outside"
"""Share of what is learned from that rounding alone moves out of the clip range."""
GRADIENT = "signal/gradient"
"""Squared norm of the expected gradient, estimated; and what chance adds to it."""
NOISE = "signal/noise"
DESCENT = "signal/descent"
"""Cosine of the last update with downhill on fresh images."""
COSINE = "signal/update_cosine"
"""Of the last two updates."""
TAUGHT = "groups/taught"
DIFFER = "groups/differ"
"""Share of the groups whose rewards differ."""
IMAGES_PER_S = "throughput/images_per_s"
STEP_S = "time/step_s"
PROBE = "probe/"
"""Before the name of any metric that was measured on fixed prompts with fixed noise."""


def by_space(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The metrics under `prefix`, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
