"""Circuits: on which MLP neurons the facts depend most (EAP-IG), and which of them may be edited."""
