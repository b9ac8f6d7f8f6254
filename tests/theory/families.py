"""Instances with a prescribed face, multipliers and support gap, and the hypothesis strategies that draw them.

With y* at the origin and a unit normal n, put q = -rho n. A key at height h along n and anywhere across it has
<k - y*, y* - q> = rho h: face keys get h = 0 and weighted mean 0, others h = mu / rho with mu >= Delta. KKT then
makes a* and Delta what was asked for, up to the rounding of the construction. A rotation and an offset hide it.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

LAYOUTS = (
    "generic",  # off-face keys anywhere, multipliers from Delta upwards
    "shadow",  # off-face keys straight above face keys, mu = Delta: near duplicates when Delta is small
    "cluster",  # off-face keys within 1e-9 of one another
    "two_keys",  # a lopsided two-key face: attains (E)
    "narrow",  # hundreds of keys straight above a single one, L between its bounds with and without (M - |I|) / |I|
    "thin_face",  # two face keys 1e-5 apart: badly conditioned, still independent
    "copied_face",  # exact copies of face keys: the face is dependent, the gap is clear
    "near_copies",  # face keys moved by 1e-9 inside the face's plane: a* is not resolved
    "simplex",  # q inside a simplex of d + 1 keys: |I| = d + 1
    "crowd",  # q inside the hull of many keys
    "constant",  # one key M times
)
INDEPENDENT = ("generic", "shadow", "cluster", "two_keys", "narrow", "thin_face")


@dataclass(frozen=True)
class Instance:
    """A problem (keys [M, d], query [d], epsilon) and what it was built to have (None where nothing is promised)."""

    layout: str
    keys: np.ndarray
    query: np.ndarray
    epsilon: float
    weights: np.ndarray | None = None  # [M] a*
    support_gap: float | None = None

    def __repr__(self) -> str:
        size = None if self.weights is None else int((self.weights > 0).sum())
        shape = f"M={len(self.keys)}, d={self.keys.shape[1]}, |I|={size}"
        return f"Instance({self.layout}, {shape}, Delta={self.support_gap}, eps={self.epsilon:.3g})"


def build(
    layout, seed, dim, num_keys, face_size, support_gap, distance, width, offset, log_leakage, log_scale
) -> Instance:
    """The instance of these parameters; epsilon from log_leakage (log10 of the wanted L) or, if that is None, from
    log_scale: epsilon = 10^log_scale max ||k - y*||^2."""
    rng = np.random.default_rng(seed)
    if layout in ("simplex", "crowd", "constant"):
        keys, query, weights = _inside(layout, rng, dim, num_keys, width)
        support_gap, face_size = None, len(keys)
    else:
        face_size = 2 if layout == "two_keys" else min(face_size, dim)
        dim = max(dim, face_size, 3 if layout == "thin_face" else 1)
        face_size = max(face_size, 2) if layout == "thin_face" else face_size
        if layout == "narrow":  # D ||y_eps - y*|| = L (Delta / rho)^2 then stays below Delta / 2
            face_size, num_keys, distance = 1, max(num_keys, 150), max(distance, 2 * np.sqrt(support_gap))
        num_keys = max(num_keys, face_size + 1)
        keys, query, weights = _outside(layout, rng, dim, num_keys, face_size, support_gap, distance, width)
    scale = max(float((keys**2).sum(axis=1).max()), 1e-12)
    count = len(keys) - face_size
    epsilon = scale * 10.0**log_scale
    if log_leakage is not None and count > 0:
        # L / (1 - L) is about count / |I| exp(-Delta / eps)
        odds = 10.0**log_leakage / (1 - min(10.0**log_leakage, 0.99))
        exponent = np.log(count / face_size) - np.log(odds)
        epsilon = support_gap / exponent if exponent > 0 else 10 * scale
    if layout == "narrow":
        epsilon = support_gap / (rng.uniform(1.05, 1.8) * np.log(count))
    rotation = np.linalg.qr(rng.normal(size=(keys.shape[1],) * 2))[0]
    shift = offset * rng.normal(size=keys.shape[1])
    return Instance(layout, keys @ rotation + shift, query @ rotation + shift, float(epsilon), weights, support_gap)


def _outside(layout, rng, dim, num_keys, face_size, support_gap, distance, width):
    """Keys with y* at 0 and the normal along the last axis; heights are mu / distance."""
    lopsided = 2.5 if layout == "two_keys" else 1.0
    log_weights = lopsided * rng.uniform(-1, 1, size=face_size)
    face_weights = np.exp(log_weights) / np.exp(log_weights).sum()
    face = np.zeros((face_size, dim))
    face[:, :-1] = width * rng.normal(size=(face_size, dim - 1))
    if layout == "thin_face":
        face[1, :-1] = face[0, :-1] + 1e-5 * width * rng.normal(size=dim - 1)
    face -= face_weights @ face

    copied = 3 if layout in ("copied_face", "near_copies") else 0
    count = max(1, num_keys - face_size - copied)
    multipliers = support_gap * (1 + rng.exponential(size=count))
    multipliers[rng.integers(count)] = support_gap
    rest = np.zeros((count, dim))
    if layout in ("shadow", "two_keys", "narrow"):
        rest = face[np.arange(count) % face_size].copy()
        multipliers[:] = support_gap
    elif layout == "cluster":
        multipliers[:] = support_gap
        rest[:, :-1] = width * rng.normal(size=dim - 1) + 1e-9 * width * rng.normal(size=(count, dim - 1))
    else:
        rest[:, :-1] = width * rng.normal(size=(count, dim - 1))
    rest[:, -1] = multipliers / distance
    copies = face[rng.integers(face_size, size=copied)]
    if layout == "near_copies":
        copies[:, :-1] += 1e-9 * width * rng.normal(size=(copied, dim - 1))
    keys = np.concatenate([face, copies, rest])
    weights = np.zeros(len(keys))
    weights[:face_size] = face_weights
    query = np.zeros(dim)
    query[-1] = -distance
    order = rng.permutation(len(keys))
    return keys[order], query, weights[order]


def _inside(layout, rng, dim, num_keys, width):
    if layout == "constant":
        return np.tile(width * rng.normal(size=dim), (num_keys, 1)), width * rng.normal(size=dim), None
    count = dim + 1 if layout == "simplex" else max(num_keys, dim + 2)
    keys = width * rng.normal(size=(count, dim))
    weights = rng.uniform(0.2, 1.0, size=count)
    weights /= weights.sum()
    return keys, weights @ keys, weights if layout == "simplex" else None


@st.composite
def instances(draw, layouts=LAYOUTS) -> Instance:
    """Delta log-uniform in [1e-6, 10], |I| from 1 to d + 1, M to 2000; half the epsilons aim at L in [1e-13, 1].

    Hypothesis draws shapes, layout and a seed; the continuous numbers come from the seed, so they are uniform.
    """
    dim = draw(st.sampled_from((1, 2, 3, 5, 12, 33, 64)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng([seed, 1])
    return build(
        layout=draw(st.sampled_from(layouts)),
        seed=seed,
        dim=dim,
        num_keys=draw(st.sampled_from((2, 3, 7, 30, 150, 600, 2000))),
        face_size=draw(st.integers(1, dim)),
        support_gap=10.0 ** rng.uniform(-6, 1),
        distance=10.0 ** rng.uniform(-0.5, 1),
        width=10.0 ** rng.uniform(-2, 0.5),
        offset=draw(st.sampled_from((0.0, 0.0, 1.0, 100.0))),
        log_leakage=rng.uniform(-13, 0) if draw(st.booleans()) else None,
        log_scale=rng.uniform(-8, 1),
    )


@dataclass(frozen=True)
class Candidates:
    """Logits [n] with a candidate mask [n], values [n, d_v], and a split of the tokens into groups [n]."""

    family: str
    logits: np.ndarray
    candidates: np.ndarray
    values: np.ndarray
    groups: np.ndarray
    slack: np.ndarray  # [max group + 1] >= 0, added to each group's largest logit

    def __repr__(self) -> str:
        return f"Candidates({self.family}, n={len(self.logits)}, k={int(self.candidates.sum())})"


@st.composite
def candidate_sets(draw) -> Candidates:
    """Two-level (attains J and K), near-tie, one-hot, constant, gaussian and huge logits; top-k or random sets."""
    family = draw(st.sampled_from(("two_level", "near_tie", "one_hot", "constant", "gaussian", "huge")))
    num_tokens = draw(st.sampled_from((1, 2, 5, 40, 300, 2000)))
    kept = draw(st.integers(1, num_tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.normal(size=num_tokens)
    chosen = rng.permutation(num_tokens)[:kept]
    logits = {
        "two_level": np.zeros(num_tokens),
        "near_tie": 1e-9 * noise,
        "one_hot": np.where(np.arange(num_tokens) == rng.integers(num_tokens), 60.0, 0.1 * noise),
        "constant": np.full(num_tokens, 7.0),
        "gaussian": 3.0 * noise,
        "huge": 4000.0 * noise,
    }[family]
    if family == "two_level":
        logits[chosen] += draw(st.sampled_from((-2.0, 0.0, 1.0, 9.0, 40.0, 800.0)))
    elif draw(st.booleans()):
        chosen = np.argsort(-logits)[:kept]
    candidates = np.zeros(num_tokens, dtype=bool)
    candidates[chosen] = True
    values = draw(st.sampled_from((1e-3, 1.0, 1e4))) * rng.normal(size=(num_tokens, 4))
    values += draw(st.sampled_from((0.0, 50.0)))
    groups = rng.integers(draw(st.sampled_from((1, 3, 20))), size=num_tokens)
    slack = draw(st.sampled_from((0.0, 0.5))) * rng.uniform(size=groups.max() + 1)
    return Candidates(family, logits, candidates, values, groups, slack)
