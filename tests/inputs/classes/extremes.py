"""Numbers that would train nonsense, and keys that do not fit together."""

from tests.inputs.case import Case


def out(key, *values):
    """A number beyond its bounds."""
    name = key.replace(".", r"\.")
    return [Case((f"--{key}", value), rf"{name}: got .*, needs") for value in values]


def taken(key, *values):
    return [Case((f"--{key}", value), None) for value in values]


def said(words, says, **options):
    return Case(words, says, **options)


MARGINAL = "--scorers.dino.weight 0 --method.name marginal_pec --method.image_spaces [dino]"

CASES = [
    *out(
        "run.name", "..", ".", "...", "-x", "a b", "a/b", "", "é\u2028", "x" * 101, "a\\b", "$(ls)"
    ),
    *taken("run.name", "a", "a.b-c_d", "7", "größe", "x" * 100),
    *out("run.steps", "0", "-1", "1.5", "1e9", "100000000000", "true", "[1]", "{a: 1}", ".nan"),
    *out("run.seed", "-1", "1.5", "99999999999999999999", ".inf"),
    *taken("run.seed", "0", "9223372036854775807"),
    *out("run.checkpoint_every", "0", "-3", "99999999999"),
    *out("run.keep_checkpoints", "0", "-1"),
    *out("run.folder", ""),
    *out("model.resolution", "0", "-8", "4", "100000", "512.5", "big"),
    said("--model.resolution [512]", r"model\.resolution\.1: missing"),
    said("--model.resolution [512,0]", r"model\.resolution\.1: got 0, needs at least 8"),
    said("--model.resolution [a,512]", r"model\.resolution\.0: got 'a', needs a whole number"),
    *out("model.guidance", "0", "0.5", "-1", "1e30", ".inf", ".nan", "101"),
    *out("model.true_cfg", "0", "1e6"),
    *out("model.dtype", "float64", "fp16", "int8", "null"),
    *out("model.max_sequence_length", "0", "513", "1e3"),
    *out("model.lora_rank", "-1", "100000", "4097", "1.5"),
    *out("model.lora_alpha", "0", "-1", "1e6"),
    *out("model.path", ""),
    *out("scorers.pickscore.weight", "-1", "1e-300", "1e30", ".inf"),
    *out("scorers.pickscore.batch_size", "0", "-1", "1000000000"),
    *out("scorers.pickscore.retries", "-1", "1000000"),
    *out("scorers.pickscore.timeout_s", "0", "-1", "1e300"),
    *out("sampling.steps", "0", "-1", "1001", "1e2"),
    *out("sampling.noise_level", "0", "-1", "1e-300", "1e30"),
    *out("sampling.group_size", "0", "1", "-2", "100000"),
    *out("sampling.train_fraction", "0", "-0.5", "1.01", "1e30"),
    *out("sampling.window_size", "-1", "100000"),
    *out("sampling.batch_size", "0", "1e9"),
    *out("sampling.kind", "ode", "SDE"),
    *out("perceptual.steps", "-1", "100000"),
    *out("perceptual.batch_size", "0", "many"),
    *out("objective.clip_low", "0", "-1", "1", "5", "1e-300"),
    *out("objective.clip_high", "0", "-1", "1e-300", "1e30"),
    *taken("objective.clip_high", "5"),
    *out("objective.advantage_clip", "0", "-5", "1e-300", "1e30"),
    *out("objective.kl", "-1", "1e-300", "1e30"),
    *out("objective.reference_kl", "-0.1", "1e-300"),
    *out("objective.reference_every", "-1", "1.5"),
    *out("forward.beta", "0", "-1", "1e-300", "1e30"),
    *out("forward.times", "-1", "100000"),
    *out("forward.shift", "0", "1e-300", "1e30"),
    *out("learner.lr", "0", "-1e-4", "1e-300", "5", "1e30", ".inf"),
    said("--learner.betas [0.9,1]", r"learner\.betas\.1: got 1, needs a number below 1"),
    said("--learner.betas [1,0.9]", r"learner\.betas\.0: got 1, needs a number below 1"),
    said("--learner.betas [-1,0.9]", r"learner\.betas\.0: got -1, needs at least 0"),
    *out("learner.eps", "0", "1e-300", "1e30", "-1"),
    *out("learner.weight_decay", "-1", "1e30"),
    *out("learner.max_grad_norm", "-1", "1e-300", "1e30"),
    *taken("learner.max_grad_norm", "0", "0.0", "1e-3"),
    *out("learner.updates", "0", "-1", "1e9"),
    *out("learner.micro_batch", "0", "-8"),
    *out("learner.zero_stage", "4", "-1", "1.5"),
    *out("learner.ema_decay", "1", "1.5", "-0.1"),
    *taken("learner.ema_decay", "0", "0.999"),
    *out("learner.ema_every", "0", "-1"),
    *out("learner.old.first", "1", "-1", "2"),
    *out("learner.old.most", "1", "5"),
    *out("learner.old.rise", "-1", "2", "1e30"),
    *out("learner.old.after", "-1"),
    *out("data.groups_per_step", "0", "-1", "1e9"),
    *out("data.prompts", ""),
    *out("monitor.experiment", ""),
    *out("monitor.probe_every", "-1", "1.5"),
    *out("monitor.probe_groups", "0", "-1", "100000"),
    *out("runtime.backend", "spark", "null"),
    *out("runtime.max_staleness", "-1", "9", "1.5"),
    *out("runtime.inflight", "0", "-1"),
    *out("runtime.timeout_s", "0", "-1", "1e300", ".nan"),
    *out("runtime.max_failures", "-1", "1.5"),
    *out("runtime.rollout.workers", "0", "-1", "1000000", "1.5"),
    *out("runtime.rollout.cpus", "-1", "1e30", "1e-300"),
    *out("runtime.perception.gpus", "-1", "1e30", "1e-300"),
    *out("runtime.learner.memory_gb", "-1", "1e30"),
    # Methods.
    *(
        said(f"--method.name {name} --method.strength {value}", r"method\.strength: got .*, needs")
        for name in ("pec", "marginal_pec", "entropy_reg", "kl_cov", "gardo")
        for value in ("0", "1e-300", "1e30")
    ),
    *(
        said(
            f"--method.name clip_cov --method.fraction {value}", r"method\.fraction: got .*, needs"
        )
        for value in ("0", "1", "-1", "1.5")
    ),
    *(
        said(f"{MARGINAL} --method.keep {value}", r"method\.keep: got .*, needs")
        for value in ("0", "5", "1e-300", "-1")
    ),
    # Spaces.
    said(
        "--method.name pec --method.spaces []",
        r"method\.spaces: pec needs one or more; set it to \[pickscore\]",
    ),
    said(
        "--method.name marginal_pec --method.image_spaces []",
        r"method\.image_spaces: marginal_pec needs",
    ),
    said(
        "--scorers.dino.weight 0 --method.name gardo --method.judges []",
        r"method\.judges: gardo needs",
    ),
    said("--method.name clip_cov --method.spaces []", None),
    said(
        "--method.name pec --method.spaces [pickscore,pickscore]",
        r"method\.spaces: 'pickscore' is there 2 times",
    ),
    said(
        "--perceptual.spaces [pickscore,pickscore,pickscore]",
        r"perceptual\.spaces: 'pickscore' is there 3 times",
    ),
    said(
        "--monitor.spaces [dino,dino] --scorers.dino.weight 0",
        r"monitor\.spaces: 'dino' is there 2 times",
    ),
    said(("--monitor.spaces", "['']"), r"monitor\.spaces: '' is not among scorers"),
    said("--monitor.spaces [nobody]", r"monitor\.spaces: 'nobody' is not among scorers"),
    *(
        said(
            f"--scorers.{kind}.weight 1 {path} {key} [{kind}]",
            rf"'{kind}' is a {kind}, which only scores",
        )
        for kind, path in (
            ("geneval", ""),
            ("http", "--scorers.http.path http://x/y"),
            ("unifiedreward", "--scorers.unifiedreward.path http://x/v1"),
        )
        for key in ("--perceptual.spaces", "--monitor.spaces", "--method.name pec --method.spaces")
    ),
    said("--scorers.dino.weight 1", r"scorers\.dino\.weight: a dino only encodes"),
    said("--scorers.x.kind dino --scorers.x.weight 1", r"scorers\.x\.weight: a dino only encodes"),
    said(
        "--scorers.dino.weight 0 --method.name gardo --method.judges [dino]",
        r"method\.judges: 'dino' is a dino, which only encodes",
    ),
    said("--scorers.pickscore.weight 0", r"scorers: none has a weight above 0"),
    said("--scorers.latent.kind clip", r"scorers: 'latent' can be no name"),
    said(("--scorers.a b.kind", "clip"), r"scorers: 'a b' can be no name"),
    # What does not fit together.
    said("--sampling.window_low 3", r"sampling\.window_low 3, window_high 0: are of a window"),
    said("--sampling.window_size 3", r"sampling\.window_size:"),
    said("--sampling.window_size 3 --sampling.window_high 99", r"sampling\.window_size:"),
    said("--model.true_cfg 3", r"model\.true_cfg 3: is of flux"),
    said(
        "--sampling.kind cps --sampling.noise_level 3",
        r"sampling\.noise_level 3: cps is defined from 0 to 1",
    ),
    said("--model.lora_targets []", r"model\.lora_targets: names no layer"),
    said(("--model.lora_targets", "['']"), r"model\.lora_targets: '' is no layer"),
    said(("--model.lora_targets", "[attn.to_q, '.*']"), r"model\.lora_targets: '\.\*' is no layer"),
    said("--model.lora_targets [attn.to_q,attn.to_q]", r"'attn\.to_q' is there more than once"),
    said("--runtime.rollout.gpus 1.5", r"runtime\.rollout\.gpus 1\.5: above 1 whole cards"),
    said("--runtime.learner.gpus 2.25", r"runtime\.learner\.gpus 2\.25: above 1 whole cards"),
    said("--runtime.rollout.gpus 0.25", None),
    said(
        "--learner.process forward --learner.old.first 0.9 --method.name flow_grpo",
        r"learner\.old\.first 0\.9 is above learner\.old\.most 0\.5; set it lower",
    ),
    said("--method.name nobody", r"method\.name: unknown 'nobody'"),
    said("--model.family sd9", r"model\.family: unknown 'sd9'"),
    said("--learner.process forward", None),
    said(
        "--learner.process forward --method.name pec", r"method\.name pec acts on denoising steps"
    ),
    said("--sampling.solver dpmpp_2m", r"sampling\.solver"),
]
