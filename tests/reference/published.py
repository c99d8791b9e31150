"""Numbers that other people's published code gave when it was run, with the repository and commit each came from.

Only inputs and results stand here, none of that code. All steps go from `t` to `t_next` at state `X` with velocity `V` (the
reference policy's is `V_REFERENCE`) and are scored at `X_NEXT`; latents have the shape [1, 1, 2, 3] and are written flat. Steps
were computed in float32 on diffusers' time grids.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOW_GRPO = "yifan123/flow_grpo ac4c86e8cae021841f1fde853d340e0db67690dd"
FLOW_GRPO_CPS = "yifan123/flow_grpo 54809b5fcf4d3930d2a17fa553928704bd0b719e"  # the first one with a branch for cps
FLOW_CPS = "IamCreateAI/FlowCPS b402c7a3d5b2539e6c42fed6c6c042bab9a1be05"
DANCE_GRPO = "XueZeyue/DanceGRPO 15cc71d53cc2e6e18a68ee607d5fb6ba9a99e344"  # its DDIM step is kvablack/ddpo-pytorch's
DIFFUSION_NFT = "NVlabs/DiffusionNFT 24af5554898d85e93efa492f42b5e9cdf4156e9b"
TRL = "huggingface/trl v1.16.0"
DIFFUSERS = "huggingface/diffusers v0.42.1"

X = (0.5, -1.25, 2.0, 0.75, -0.5, 1.5)
V = (1.0, 0.5, -0.75, -1.5, 0.25, 2.0)
V_REFERENCE = (0.75, 0.5, -0.5, -1.0, 0.0, 1.25)
X_NEXT = (0.25, -1.0, 1.5, 1.0, -0.75, 1.25)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stochastic step: deviation and mean, and where published the log-density of `X_NEXT` and the KL under their names."""

    source: str
    kernel: str
    t: float
    t_next: float
    level: float
    std: float
    mean: tuple[float, ...]
    density: str
    log_density: float
    kl_scaling: str | None = None
    kl: float | None = None


def _flow_grpo(t: float, t_next: float, std: float, mean: tuple[float, ...], log_density: float, kl: float) -> Step:
    return Step(
        source=FLOW_GRPO,
        kernel="flow_sde",
        t=t,
        t_next=t_next,
        level=0.7,
        std=std,
        mean=mean,
        density="flow_grpo",
        log_density=log_density,
        kl_scaling="flow_grpo",
        kl=kl,
    )


def _cps(source: str, name: str, first: bool, kl: float) -> Step:
    early = (0.1462988, -0.698747, 1.1124452, 0.5524482, -0.2850488, 0.5498965)
    late = (0.1348273, -1.0518463, 1.671041, 0.9170189, -0.4326514, 0.6427412)
    return Step(
        source=source,
        kernel="cps",
        t=1.0 if first else 0.60215056,
        t_next=0.889 if first else 0.46487603,
        level=0.7,
        std=0.79210478 if first else 0.41420758,
        mean=early if first else late,
        density=name,
        log_density=-0.19305551 if first else -0.086927831,
        kl_scaling=name,
        kl=kl,
    )


def _dance(t: float, t_next: float, mean: tuple[float, ...], log_density: float) -> Step:
    return Step(
        source=DANCE_GRPO,
        kernel="constant_eta",
        t=t,
        t_next=t_next,
        level=0.3,
        std=0.094868341,
        mean=mean,
        density="mean",
        log_density=log_density,
    )


STEPS = {
    "flow_grpo, first of 10": _flow_grpo(
        1.0, 0.889, 0.7, (0.2665, -0.9992501, 1.5932502, 0.7327501, -0.40525, 0.9105), -0.61575049, 0.00023259035
    ),
    "flow_grpo, first of 4": _flow_grpo(
        1.0, 0.667, 0.7, (0.0445, -1.1102501, 1.7597501, 1.06575, -0.46075, 0.4665), -0.70235127, 0.0062799403
    ),
    "flow_grpo, first of 2": _flow_grpo(
        1.0, 0.001, 0.7, (-0.6215, -1.4432501, 2.2592499, 2.06475, -0.62725, -0.8655001), -1.779363, 0.16955836
    ),
    "flow_grpo, first of 10, shift 3": _flow_grpo(
        1.0,
        0.96012932,
        0.7,
        (0.3376293, -0.9636854, 1.5399032, 0.6260561, -0.3874677, 1.0527587),
        -0.61681414,
        1.0779153e-05,
    ),
    "flow_grpo, fifth of 10": _flow_grpo(
        0.55599999,
        0.44499999,
        0.26097891,
        (0.33118, -1.2425351, 1.9811463, 0.911355, -0.5039238, 1.1317351),
        -0.039716881,
        0.0025936731,
    ),
    "flow_grpo, seventh of 10, shift 3": _flow_grpo(
        0.60215056,
        0.46487603,
        0.31907016,
        (0.2868257, -1.2297845, 1.9591099, 0.9429588, -0.5004591, 1.0313838),
        -0.086216807,
        0.0032821223,
    ),
    "flow_grpo, ninth of 10": _flow_grpo(
        0.112,
        0.001,
        0.082825124,
        (0.3464925, -1.2808163, 2.0423963, 0.9343237, -0.5192363, 1.1776724),
        -3.835578,
        0.025751485,
    ),
    "flow_grpo's cps, first of 10": _cps(FLOW_GRPO_CPS, "flow_grpo", True, 0.0016364368),
    "flow_grpo's cps, seventh of 10": _cps(FLOW_GRPO_CPS, "flow_grpo", False, 0.027572904),
    "FlowCPS, first of 10": _cps(FLOW_CPS, "cps", True, 0.002053499),
    "FlowCPS, seventh of 10": _cps(FLOW_CPS, "cps", False, 0.0094612511),
    "DanceGRPO, first of 10": _dance(1.0, 0.9, (0.39775, -1.2943749, 2.066, 0.896625, -0.52275, 1.29325), -3.1288776),
    "DanceGRPO, fifth of 10": _dance(
        0.6, 0.5, (0.39325, -1.292125, 2.0622501, 0.8988751, -0.522, 1.2827499), -3.0568721
    ),
}

# flow_grpo's step of one number: x = 1, v = 0, from t = 1 to 0.9 at level 0.7, scored at 1
ONE_NUMBER = {"std": 0.7, "mean": 0.755, "log_density": -0.62351358}


@dataclass(frozen=True, kw_only=True)
class Ddim:
    """A DDIM step at eta 0.7 in its own coordinates: the state is `X` there and the predicted noise `V`; `log_density` is
    the mean over dimensions."""

    alpha_bar: float
    alpha_bar_next: float
    std: float
    mean: tuple[float, ...]
    log_density: float


DDIM = (
    Ddim(  # deviation and mean: DIFFUSERS; log-density: DANCE_GRPO
        alpha_bar=0.014151133,
        alpha_bar_next=0.036869586,
        std=0.54311365,
        mean=(0.0218059, -2.4102921, 3.8172045, 2.3884864, -1.0033797, 0.8506768),
        log_density=-3.0098813,
    ),
    Ddim(
        alpha_bar=0.27633247,
        alpha_bar_next=0.42448279,
        std=0.36878982,
        mean=(0.228313, -1.7449545, 2.7723579, 1.5166414, -0.7175514, 1.0763297),
        log_density=-1.4363285,
    ),
)

# DIFFUSERS, FlowMatchEulerDiscreteScheduler: from t to t_next, the next state
EULER = (
    (1.0, 0.889, (0.389, -1.3055, 2.08325, 0.9165, -0.52775, 1.278)),
    (0.60215056, 0.46487603, (0.3627255, -1.3186373, 2.1029558, 0.9559118, -0.5343186, 1.225451)),
)

# --- advantages ------------------------------------------------------------------------------------------------------

REWARDS = (0.0, 1.0, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75, 2.0, 3.0, 2.5, 2.25)  # three groups of four
STABILISER = 1e-4  # both add it to the deviation
_GROUP_OF_TRL = (-1.0244551, 1.3171566, -0.43905219, 0.14635073)
_BATCH_OF_TRL = (-0.45089151, 0.57971765, -0.19323922, 0.064413073)
_NONE_OF_TRL = (-0.4375, 0.5625, -0.1875, 0.0625)
_GLOBAL = (-0.47093867, 0.60549258, -0.20183086, 0.067276953)
_CONSTANT = (0.0,) * 4


def _moved(first: tuple[float, ...]) -> tuple[float, ...]:
    """The third group is the first one in another order, two units higher."""
    return first + _CONSTANT + (first[0], first[1], first[3], first[2])


ADVANTAGES = {
    "group": (TRL, "scale_rewards group", _moved(_GROUP_OF_TRL)),
    "batch": (TRL, "scale_rewards batch", _moved(_BATCH_OF_TRL)),
    "none": (TRL, "scale_rewards none", _moved(_NONE_OF_TRL)),
    "global": (FLOW_GRPO, "global_std True", _moved(_GLOBAL)),
}

# FLOW_GRPO: three groups of three under global_std, and the gradient of the policy loss with respect to each sample's
# log-probability at ratio 1. Samples whose advantage is 0, of which one is in a group with contrast, are not trained on.
FILTERED_REWARDS = (0.0, 0.5, 1.0, 0.25, 0.25, 0.25, 0.0, 0.0, 0.75)
FILTERED_GRADIENT = (0.29991004, 0.0, -0.29991004, 0.0, 0.0, 0.0, 0.14995502, 0.14995502, -0.29991004)

# --- DIFFUSION_NFT ---------------------------------------------------------------------------------------------------

# decay of the old policy after so many steps, by the number of its schedule
NFT_DECAY = {
    0: {0: 0.0, 1: 0.0, 100: 0.0, 1000: 0.0},
    1: {0: 0.0, 1: 0.001, 75: 0.075, 499: 0.499, 500: 0.5, 501: 0.5, 1000: 0.5},
    2: {0: 0.0, 1: 0.0, 75: 0.0, 76: 0.0075, 100: 0.1875, 200: 0.9375, 208: 0.9975, 209: 0.999, 1000: 0.999},
}

# (beta, t, advantage, loss, first two numbers of the gradient to the velocity): current policy V, old one V_REFERENCE, state X,
# clean latents X_NEXT, advantages clipped at 5
NFT_LOSS = (
    (1.0, 0.25, -7.0, 1.8509615, (0.1923077, -0.5769231)),
    (1.0, 0.25, -1.0, 2.0048077, (0.1153846, -0.1153846)),
    (1.0, 0.9, 2.0, 4.7921104, (0.5715, 0.0920769)),
    (0.1, 0.25, 2.0, 21.712074, (-0.0328125, 0.2642045)),
    (0.1, 0.9, -1.0, 36.386183, (-0.1807946, -0.3851253)),
)
