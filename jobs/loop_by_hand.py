"""Flow-GRPO with marginal PEC in one file: plain torch and the package's functions, no Ray or YAML.

    python jobs/loop_by_hand.py [STEPS]

What `jobs/train_pec.py` does on the embedded world with `runtime.max_staleness 0` and no probes;
tests/test_loop_by_hand.py holds that the numbers are the same. docs/method.md has the equations.

Letters: G groups of K images of one prompt, T denoising steps of which the first S are trained,
latents [C, H, W], features [D]. Images are numbered 0 .. G K - 1, group by group.
"""

import sys
from functools import partial

from percent_ray import job

if __name__ == "__main__":
    job.catch()  # before the imports below, which take seconds

import torch
from torch import Tensor

from percent_ray.data.prompts import PromptStream, read_prompts
from percent_ray.flow import noise, sampler, sde
from percent_ray.learn.batch import chunks
from percent_ray.models import sd3
from percent_ray.models.base import Decoder
from percent_ray.objective import advantage, diversity, entropy, grpo, strength
from percent_ray.recipe.paths import locate_prompts
from percent_ray.recipe.tree import Model
from percent_ray.scorers import dino, pickscore

G, K, T, S, SEED = 6, 24, 6, 3, 42
EMBEDDED = {"path": "shapes/sd3", "resolution": 32, "t5": False, "max_sequence_length": 1}
MODEL = Model(**EMBEDDED, guidance=1, dtype="float32", lora_rank=4, lora_alpha=8)
SDE = {"noise_level": 0.7, "kind": "flow_sde"}
CPU = torch.device("cpu")


def main(steps: int) -> list[dict[str, float]]:
    """Train for `steps` steps; prints and returns what was measured in each."""
    policy = sd3.load_policy(MODEL, seed=SEED, device=CPU, text=True)
    decoder = sd3.load_decoder(MODEL, device=CPU)
    judge = pickscore.load("shapes/pickscore", device=CPU)
    watched = dino.load("shapes/dino", device=CPU)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=2e-3, weight_decay=1e-4)
    stream = PromptStream(read_prompts(locate_prompts("shapes/train.jsonl")), SEED)
    state: strength.State = {}
    history: list[dict[str, float]] = []
    for step in range(steps):
        prompts = [stream.prompt(step * G + g) for g in range(G)]
        conditions = [policy.encode([prompt.text]) for prompt in prompts]
        paths = [sample(policy, c, step * G + g) for g, c in enumerate(conditions)]
        images = [decoder.decode(path.final) for path in paths]
        scores = [judge.score(images[g], [prompts[g]] * K) for g in range(G)]
        features = torch.stack([watched.encode(group) for group in images])
        log_p_perc = torch.stack([perceive(decoder, judge, path) for path in paths])
        log_prob = torch.stack([path.log_probs.T for path in paths])
        advantages, state = shape(torch.stack(scores), features, state)
        norm = update(policy, optimizer, paths, conditions, advantages.flatten(), step)
        measured = {
            "reward/mean": torch.stack(scores).mean(),
            "entropy/policy": entropy.policy_entropy(log_prob, paths[0].std, kind="flow_sde"),
            "entropy/perceptual_pickscore": entropy.perceptual_entropy(log_p_perc),
            "diversity/vendi_dino": sum(map(diversity.vendi, features)) / G,
            "grad/norm": norm,
        }
        history.append({name: float(value) for name, value in measured.items()})
        print(f"step {step + 1}", *(f"{k} {v:.4f}" for k, v in history[-1].items()), sep="  ")
    return history


def sample(policy: sd3.StableDiffusion3, condition: dict[str, Tensor], group: int) -> sampler.Path:
    """K images of one prompt: S noisy steps, then plain ODE steps. Noise is a function of ids."""
    draw = partial(noise.group_noise, SEED, group, range(K), shape=policy.latent_shape)
    velocity = partial(policy.velocity, condition=condition)
    options = {"steps": range(S), "noise_at": draw, "storage_dtype": torch.float32}
    return sampler.rollout(velocity, draw(noise.INITIAL), policy.sigmas(T), **options, **SDE)


def perceive(decoder: Decoder, judge: pickscore.PickScore, path: sampler.Path) -> Tensor:
    """log p_perc [K, S]: decode what was drawn and the mean that it was drawn around, encode both,
    score the one under a Gaussian around the other."""
    pairs = torch.stack([path.latents[1:], path.means]).transpose(1, 2)  # [2, K, S, C, H, W]
    features = judge.encode(decoder.decode(pairs.flatten(0, 2)))
    drawn, means = entropy.scale_features(features, "rms").unflatten(0, (2, K, S))
    return entropy.perceptual_log_prob(drawn, means, path.std)


def shape(
    rewards: Tensor, features: Tensor, state: strength.State
) -> tuple[Tensor, strength.State]:
    """Advantages [G, K] of rewards [G, K] plus the marginal entropy of features [G, K, D]."""
    unit = entropy.scale_features(features, "unit")
    state = {"bandwidth": diversity.median_bandwidth(unit), **state}  # that of the first step
    term = diversity.marginal_terms(unit, state["bandwidth"])
    weight, state = strength.calibrated(state, rewards, term, rel=0.4, name="dino")
    return advantage.advantages(rewards + weight * term, std="group"), state


def update(
    policy: sd3.StableDiffusion3,
    optimizer: torch.optim.Optimizer,
    paths: list[sampler.Path],
    conditions: list[dict[str, Tensor]],
    advantages: Tensor,
    step: int,
) -> float:
    """Two optimizer steps of the clipped surrogate, each on half of the images. Every transition is
    replayed by the function that drew it. Returns the gradient's mean norm."""
    latents = torch.cat([path.latents for path in paths], dim=1)  # [S + 1, G K, C, H, W]
    old = torch.cat([path.log_probs for path in paths], dim=1)  # [S, G K]
    rows = {name: torch.cat([c[name] for c in conditions]) for name in conditions[0]}  # [G, ...]
    sigmas, norms = policy.sigmas(T), []
    for half in chunks([K] * G, 2, seed=SEED, version=step):
        for chosen in torch.tensor(half).split(K):
            condition = {name: value[chosen // K] for name, value in rows.items()}
            for i in range(S):
                x, then = latents[i, chosen], latents[i + 1, chosen]
                velocity = policy.velocity(x, sigmas[i].expand(K), condition)
                now = sde.transition(velocity, x, *sigmas[i : i + 2], sigma_second=sigmas[1], **SDE)
                log_prob, clip = now.log_prob(then), {"clip_low": 1e-3, "clip_high": 1e-3}
                loss, _ = grpo.grpo_loss(log_prob, old[i, chosen], advantages[chosen], **clip)
                (loss.sum() / (len(half) * S)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(policy.trainable().values(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return sum(norms) / len(norms)


def parse(argv: list[str]) -> int:
    parser = job.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="?", type=int, default=5, metavar="STEPS", help="(5)")
    steps = parser.parse_args(argv).steps
    if steps < 1:
        raise ValueError(f"STEPS is {steps}; give 1 or more")
    return steps


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
