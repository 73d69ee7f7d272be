"""The parts that both command lines share."""
