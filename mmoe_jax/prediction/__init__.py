"""Prediction: scores and gates of finished runs."""
