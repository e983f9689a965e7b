"""Unlearning inside a circuit: objectives, retain-Fisher projection, magnitude floor, training through the grid."""
