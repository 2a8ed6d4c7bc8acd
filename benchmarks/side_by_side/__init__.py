"""autopar's plans beside each other and beside training by hand: plans made ahead, timed in turn, reported."""
