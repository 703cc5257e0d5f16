"""What a speedrun is made of: its arms, its plan, one timed run, and its words."""
