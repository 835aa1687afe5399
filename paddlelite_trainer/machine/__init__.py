"""Paddle and the machine below it: devices, precision, random numbers, signals, ranks."""
