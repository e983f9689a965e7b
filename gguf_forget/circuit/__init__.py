"""Circuits: which MLP neurons hold the facts (EAP-IG), and which of them may be edited."""
