"""Tests. Folders mirror the packages."""

import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # Of the repository.
