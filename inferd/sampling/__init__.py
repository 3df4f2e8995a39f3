"""Logits to tokens: penalties, masks, the draw, and log probabilities of the unmodified distribution."""
