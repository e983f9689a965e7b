"""Codes of a quantized file, fitted to what the model is to answer: floor or ceiling of each weight (ours)."""
