"""What the lane's tests share: the daemon under test, how its answers are read, and the prompts."""
