"""Dropout that stays on at prediction, and dropout whose rate is learned."""
