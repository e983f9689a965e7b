"""Unlearning in a circuit: objectives, retain-Fisher projection, floor, training through the grid."""
