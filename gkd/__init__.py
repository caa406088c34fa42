"""Face-recognition training with Grouped Knowledge Distillation.

Sub-packages are imported on their own (`import gkd.distill` needs only torch); this file stays empty of imports.
"""

__version__ = "0.1.0"
