"""The paper's figures of training curves, and the two that it does not show, as charts of any rows.

Each function returns None where none of its rows has measured what it draws.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from percent_ray import metrics
from percent_ray.metrics import PERCEPTUAL_ENTROPY, PROBE, REWARD, VENDI
from percent_ray.monitor.plots import SIGNAL_PANELS
from percent_ray.pages.charts import Chart, Line, Panel
from percent_ray.pages.style import Look, look
from percent_ray.report.law import Law, law
from percent_ray.report.rows import Row, curve

VARIANCE = "diversity/variance_"
STD = "reward/std_in_group"
P_MAX, P_MIN = "advantage/p_max", "advantage/p_min"
LATENT = {"latent": "VAE latents", "pixel": "pixels"}
"""Spaces of variance that no scorer spans."""
NATS = 0.1
"""Least height of an axis of policy entropy."""
FIGURE_2 = "Figure 2: policy entropy is constant, whatever variance does"
FIGURE_4 = "Figure 4: what advantages pull towards; reward std, feature variance"
FIGURE_5 = "Figure 5: the law R = -a exp(-H) + b"
FIGURE_6 = "Figure 6: native and shaped; with and without PCVAE"
FIGURE_7 = "Figure 7: reward, reward std and diversity along the training"
FIGURE_S4 = "Figure S4: policy entropy and perceptual entropy"
FRONTIER = "Diversity at the same reward"
LEARNING = "Was it learning"
SCHEDULE = Look("#555555", (0, (4, 2)), "", width=1.1)


def figure_2(rows: Sequence[Row], rewards: Sequence[str] = ()) -> Chart | None:
    """Policy entropy is constant while the variance falls in every space; `rewards` are the spaces
    of the reward's own scorers."""
    measured: list[Line] = []
    planned: list[Line | None] = []
    for row in rows:
        own = "measured" if len(rows) == 1 else row.label
        measured += row.lines(metrics.POLICY_ENTROPY, own)
        planned.append(row.line(metrics.SCHEDULE_ENTROPY, f"{row.label}, schedule", look=SCHEDULE))
    measured += _schedules([line for line in planned if line])
    panels = [Panel("policy entropy (nats a dimension)", measured, least_height=NATS)]
    panels += _variances(rows, _spaces(rows, VARIANCE), rewards)
    words = (
        "What to look for: policy entropy lies on its dashed line, the constant of the noise "
        "schedule, whatever happens to the pictures. Where the variance falls meanwhile, pictures "
        "of a prompt become alike and policy entropy does not tell."
    )
    return _chart(FIGURE_2, words, panels)


def figure_4(rows: Sequence[Row], rewards: Sequence[str] = ()) -> Chart | None:
    """The distribution that advantages pull towards; reward std, feature variance."""
    pulled: list[Line] = []
    for row in rows:
        for name, metric, style in (
            ("largest", P_MAX, row.look),
            ("least", P_MIN, replace(row.look, dashes=(0, (1, 1.3)), marker="v")),
        ):
            own = name if len(rows) == 1 else f"{row.label}, {name}"
            pulled += row.lines(metric, own, style)
    spaces = [space for space in _spaces(rows, VARIANCE) if space not in LATENT]
    panels = [
        Panel("p_A = softmax(A) in the group", pulled),
        Panel("reward std in the group", [line for row in rows for line in row.lines(STD)]),
        *_variances(rows, spaces, rewards),
    ]
    words = (
        "What to look for: the further the largest p_A stands above the least, the harder a step "
        "pulls a group towards its best pictures. A reward std and a feature variance that shrink "
        "together are the collapse; a reward std that shrinks alone is learning."
    )
    return _chart(FIGURE_4, words, panels)


def figure_5(rows: Sequence[Row]) -> Chart | None:
    """The law R = -a exp(-H) + b over the probes, by space, with the band of its fit."""
    panels: list[Panel] = []
    for space in _spaces(rows, PERCEPTUAL_ENTROPY):
        lines: list[Line] = []
        for row in rows:
            if found := law(*of_law(row, space)):
                points = replace(row.look, dashes="")
                lines.append(Line(row.label, found.x, found.rewards, look=points))
                fit = replace(row.look, marker="", width=1.2)
                low, high = found.y - found.band, found.y + found.band
                label = f"{row.label}, fit"
                lines.append(Line(label, found.x, found.y, low, high, look=fit, in_key=False))
        panels.append(Panel(f"reward over exp(-H), {space} space", lines, xlabel="exp(-H_perc)"))
    words = (
        "What to look for: points of one training on one line mean that reward and perceptual "
        "entropy change together at a fixed rate a, as the paper found. Each point is a probe, the "
        "line is the fit, the shade its 95 % interval. Where that of a holds 0, no law is told."
    )
    return _chart(FIGURE_5, words, panels)


def of_law(row: Row, space: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, R) of the probes of all seeds that have both."""
    found: list[tuple[float, float]] = []
    for steps in row.seeds:
        h, r = (
            dict(zip(*map(np.ndarray.tolist, curve(steps, f"{PROBE}{name}")), strict=True))
            for name in (f"{PERCEPTUAL_ENTROPY}{space}", REWARD)
        )
        found += [(h[step], r[step]) for step in h if step in r]
    entropies, rewards = np.array(found, np.float64).reshape(-1, 2).T
    whole = np.isfinite(entropies) & np.isfinite(rewards)
    return entropies[whole], rewards[whole]


def laws(rows: Sequence[Row]) -> list[tuple[str, str, Law]]:
    """(row, space, fit) of everything that figure 5 draws."""
    spaces = _spaces(rows, PERCEPTUAL_ENTROPY)
    fits = [(row.label, space, law(*of_law(row, space))) for space in spaces for row in rows]
    return [(label, space, fit) for label, space, fit in fits if fit is not None]


WORDS_6 = (
    "What to look for: the same entropy as a part of the reward (shaped) and as a loss of its own "
    "(native). At equal reward the line with more diversity is the better use of it."
)


def figure_6(rows: Sequence[Row]) -> Chart | None:
    """Reward and diversity along rows that `of_figure_6` has chosen."""
    return _chart(FIGURE_6, WORDS_6, _along(rows)) if len(rows) > 1 else None


def of_figure_6(methods: Mapping[str, Mapping[str, Any]], reward: Sequence[str]) -> list[str]:
    """Names of the rows whose methods act on perceptual entropy in the reward's own space: shaped,
    natively (entropy regularisation with a space is PEC's native form), or by PCVAE; relative
    strengths are another scale and left out. `methods` are the recipes' `method` by row."""
    names: list[str] = []
    for name, method in methods.items():
        shaped = method.get("name") in ("pec", "pcvae") and not method.get("relative")
        native = method.get("name") == "entropy_reg" and bool(method.get("spaces"))
        if (shaped or native) and list(method.get("spaces", reward)) == list(reward):
            names.append(name)
    return names


def figure_7(rows: Sequence[Row]) -> Chart | None:
    """Reward, its std in the group, and diversity along the runs."""
    std = Panel("reward std in the group", [line for row in rows for line in row.lines(STD)])
    reward, *vendi = _along(rows)
    words = (
        "What to look for: whether reward rises, and what Vendi, the effective number of different "
        "pictures of a prompt, does meanwhile: flat is kept, falling is lost."
    )
    return _chart(FIGURE_7, words, [reward, std, *vendi])


def figure_s4(rows: Sequence[Row]) -> Chart | None:
    """Policy entropy and perceptual entropy along the runs."""
    policy = [line for row in rows for line in row.lines(metrics.POLICY_ENTROPY)]
    panels = [Panel("policy entropy (nats a dimension)", policy, least_height=NATS)]
    for space in _spaces(rows, PERCEPTUAL_ENTROPY):
        lines = [line for row in rows for line in row.lines(f"{PERCEPTUAL_ENTROPY}{space}")]
        panels.append(Panel(f"perceptual entropy, {space} space (nats)", lines))
    words = (
        "What to look for: policy entropy is the same flat line for all, perceptual entropy moves. "
        "It says how much of a step's noise is seen in the picture."
    )
    return _chart(FIGURE_S4, words, panels)


def frontier(rows: Sequence[Row]) -> Chart | None:
    """Diversity against reward on the probes, in every space; training goes from left to right."""
    panels: list[Panel] = []
    for space in _spaces(rows, f"{PROBE}{VENDI}"):
        lines: list[Line] = []
        for row in rows:
            reward = row.line(f"{PROBE}{REWARD}")
            vendi = row.line(f"{PROBE}{VENDI}{space}")
            if reward and vendi and np.array_equal(reward.x, vendi.x):
                lines.append(Line(row.label, reward.y, vendi.y, look=row.look))
        panels.append(Panel(f"Vendi in the group, {space} space", lines, xlabel="reward, probes"))
    words = (
        "What to look for: at the same reward (the same place from left to right) the higher line "
        "has kept more different pictures. At the same step a slow method only looks diverse."
    )
    return _chart(FRONTIER, words, panels)


def learning(rows: Sequence[Row]) -> Chart | None:
    """Whether steps were signal or noise, and whether all pictures moved alike."""
    panels: list[Panel] = []
    for title, choose in SIGNAL_PANELS.items():
        found: dict[str, list[Line]] = {}
        for row in rows:
            for name, line in _chosen(row, choose):
                found.setdefault(name, []).append(line)
        panels += [
            Panel(f"{title}: {name.partition('/')[2] or name}" if name else title, f)
            for name, f in found.items()
        ]
    words = (
        "What to look for: a shared change that rises means that one move is made in every picture "
        "(a first sign of a collapse); many clipped ratios, a signal near 0, or an update cosine "
        "below 0 mean steps that are too large or groups that are too few."
    )
    return _chart(LEARNING, words, panels)


def _schedules(lines: Sequence[Line]) -> list[Line]:
    """One for all where they are the same constant."""
    if len({float(line.y[0]) for line in lines}) > 1:
        return [*lines]
    return [replace(max(lines, key=lambda line: len(line.x)), label="schedule")] if lines else []


def _chosen(
    row: Row, choose: Callable[[Mapping[str, float]], Mapping[str, float]]
) -> Iterable[tuple[str, Line]]:
    """Lines of a panel of `monitor.plots`: as trained, or on probes what only probes have."""
    for prefix in ("", PROBE):
        seeds = [
            {step: choose(metrics.by_space(m, prefix)) for step, m in steps.items()}
            for steps in row.seeds
        ]
        names = list(dict.fromkeys(name for steps in seeds for m in steps.values() for name in m))
        for name in names:
            for line in replace(row, seeds=seeds).lines(name)[:1]:
                style = row.look if prefix else line.look
                yield name, replace(line, label=row.label, look=style, in_key=True)
        if names:
            return


def _along(rows: Sequence[Row]) -> list[Panel]:
    """Reward, and diversity in every space, over steps."""
    panels = [Panel("reward", [line for row in rows for line in row.lines(REWARD)])]
    for space in dict.fromkeys((*_spaces(rows, f"{PROBE}{VENDI}"), *_spaces(rows, VENDI))):
        lines = [line for row in rows for line in row.lines(f"{VENDI}{space}")]
        panels.append(Panel(f"Vendi in the group, {space} space", lines))
    return panels


def _variances(rows: Sequence[Row], spaces: Sequence[str], rewards: Sequence[str]) -> list[Panel]:
    """Variance in the group as a share of the first: one row's spaces in one panel, as the paper
    has them; of several rows a panel for each space."""
    names = {s: LATENT.get(s, f"{s}, the reward's" if s in rewards else s) for s in spaces}
    if len(rows) == 1:
        lines = [
            rows[0].share(f"{VARIANCE}{space}", name, look=look(number))
            for number, (space, name) in enumerate(names.items())
        ]
        found = [line for line in lines if line]
        return [Panel("variance in the group, share of the first", found)]
    panels: list[Panel] = []
    for space, name in names.items():
        lines = [row.share(f"{VARIANCE}{space}") for row in rows]
        title = f"variance of {name}, share of the first"
        panels.append(Panel(title, [line for line in lines if line]))
    return panels


def _spaces(rows: Sequence[Row], prefix: str) -> list[str]:
    """What any row has measured under a prefix, as trained or on probes."""
    return list(dict.fromkeys(s for row in rows for p in ("", PROBE) for s in row.has(p + prefix)))


def _chart(title: str, words: str, panels: Sequence[Panel]) -> Chart | None:
    """What was not measured is left out."""
    measured = [panel for panel in panels if panel.lines]
    return Chart(title, words, measured) if measured else None
