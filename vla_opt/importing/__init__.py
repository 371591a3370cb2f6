"""Published demonstrations in other formats, made into LeRobotDatasets v3.

    import_dataset(ImportConfig(source=..., root=...))

Formats: LIBERO's hdf5, RLDS (TFRecords of openvla's `*_no_noops`), raw folders of DROID, and
LeRobotDatasets v2.1. What is read is turned into this project's conventions (pictures upright,
observation before action, gripper low = open) and written down beside the data.
"""

from vla_opt.importing.config import FORMATS, ImportConfig, detect_format
from vla_opt.importing.noops import is_noop, kept_rows
from vla_opt.importing.run import ImportSummary, import_dataset

__all__ = [
    "FORMATS",
    "ImportConfig",
    "ImportSummary",
    "detect_format",
    "import_dataset",
    "is_noop",
    "kept_rows",
]
