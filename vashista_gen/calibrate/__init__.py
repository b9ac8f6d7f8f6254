"""`vashista-gen calibrate`: what is measured once for a model and then lies beside its spec.

Contains: the file and its reader (file), which import neither torch nor numpy, since the spec layer reads calibrations;
centres, balances and budgets (keys, budgets); margins that hold with a stated frequency (conformal, omission); the
order of it all (run).
Must not contain: anything that a decode step computes.
"""

from vashista_gen.calibrate.file import Calibration, LayerCalibration, Margin, load, save

__all__ = ["Calibration", "LayerCalibration", "Margin", "load", "save"]
