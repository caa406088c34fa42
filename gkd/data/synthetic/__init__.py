"""Faces that the code itself draws: people made of numbers, for a first run, tests and demonstrations.

identity → surface (a person's head, drawn once) → photo (posed, lit and taken, once a picture) → JPEG. Every picture
is a function of (seed, identity, image) alone. Two machines agree on the numbers behind it; its pixels may differ in
the last bit where their NumPy or OpenCV round differently.
"""

from gkd.data.synthetic.dataset import SyntheticFaces
from gkd.data.synthetic.faces import contact_sheet, draw_face
from gkd.data.synthetic.verification import make_pairs
from gkd.data.synthetic.writing import write_synthetic

__all__ = ["SyntheticFaces", "contact_sheet", "draw_face", "make_pairs", "write_synthetic"]
