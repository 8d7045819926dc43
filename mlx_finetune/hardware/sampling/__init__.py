"""What the machine does while it trains: where each figure comes from, and the sampler that asks for all of them."""
