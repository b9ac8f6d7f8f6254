"""Hard and entropic attention in float64, and the statements (A) to (L) about them. README.md has the derivations."""

from . import candidate_bounds, entropic_bounds, logit_bounds
from .entropic import EntropicSolution, entropic_projection
from .frank_wolfe import frank_wolfe
from .geometry import FaceConditioning, diameter, face_conditioning, radius
from .projection import Projection, certify, project_onto_hull

__all__ = [
    "EntropicSolution",
    "FaceConditioning",
    "Projection",
    "candidate_bounds",
    "certify",
    "diameter",
    "entropic_bounds",
    "entropic_projection",
    "face_conditioning",
    "frank_wolfe",
    "logit_bounds",
    "project_onto_hull",
    "radius",
]
