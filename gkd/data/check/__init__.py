"""Checks of .rec files, .bin files and folders of images, and the repair of a .rec."""

from gkd.data.check.decoding import decoder_complains
from gkd.data.check.faults import Fault, Faults
from gkd.data.check.folder_check import check_folder
from gkd.data.check.pair_check import check_pairs, unbalanced_folds
from gkd.data.check.record_check import CheckedRecords, check_records
from gkd.data.check.repair import repair

__all__ = [
    "CheckedRecords",
    "Fault",
    "Faults",
    "check_folder",
    "check_pairs",
    "check_records",
    "decoder_complains",
    "repair",
    "unbalanced_folds",
]
