"""Layers: inflate, scan tars, apply whiteouts, merge into a tree in memory."""
