"""Pixels and sound in and out of files: numpy and FFmpeg only, no models, no torch."""
