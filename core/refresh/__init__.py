"""What is registered, resolved afresh: whether it drifted, and its next versions."""
