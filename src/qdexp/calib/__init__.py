"""Calibration data: timestep strategies over one recorded full-precision trajectory."""
