"""From masks and depth to places in space: depth images, cameras, registration, geometry of targets.

Lengths are metres. Points lie in the camera's optical frame: x right, y down, z forward. NaN is an invalid depth.
"""
