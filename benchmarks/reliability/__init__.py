"""Reliability: kills, devices, damage, and what safety costs."""
