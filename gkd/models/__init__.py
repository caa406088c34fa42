"""Backbones: image to embedding, with their input conversion and their weight files.

Shapes: N images, D embedding dimension, C classes, H x W pixels.
"""

from gkd.models.backbone import Backbone
from gkd.models.class_weight_files import load_class_weights
from gkd.models.cost import count_macs, num_parameters
from gkd.models.create import BACKBONES, create_backbone
from gkd.models.head_file import load_head, save_head
from gkd.models.input_spec import InputSpec
from gkd.models.load_report import LoadReport
from gkd.models.onnx_backbone import OnnxBackbone
from gkd.models.student_file import load_student, save_student
from gkd.models.weights import load_network, load_weights

__all__ = [
    "BACKBONES",
    "Backbone",
    "InputSpec",
    "LoadReport",
    "OnnxBackbone",
    "count_macs",
    "create_backbone",
    "load_class_weights",
    "load_head",
    "load_network",
    "load_student",
    "load_weights",
    "num_parameters",
    "save_head",
    "save_student",
]
